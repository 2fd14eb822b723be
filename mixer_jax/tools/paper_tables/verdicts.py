"""What the paper claims beside what the miniature saw, also where it does not hold at this scale.

A difference counts if it exceeds twice its standard error: of n test images, a share p has √(p(1−p)/n).
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from mixer_jax.tools.paper_tables import mini
from mixer_jax.tools.paper_tables.mini import MODELS, Key, Outcomes, Pretrain, Setting, Transfer

HOLDS, NOT, UNDECIDED, NOT_RUN = "holds", "does not hold", "within noise", "not run"
Difference = tuple[float, float]  # percentage points, their standard error


@dataclasses.dataclass(frozen=True)
class Claim:
  """A claim of the paper's, its numbers, ours, and one of the four verdicts above."""

  claim: str
  paper: str
  seen: str
  verdict: str


def noise(percent: float, count: int) -> float:
  """Returns the standard error of an accuracy in per cent over so many images."""
  share = min(max(percent / 100, 0.5 / count), 1 - 0.5 / count)
  return 100 * math.sqrt(share * (1 - share) / count)


def verdict(differences: Sequence[Difference]) -> str:
  """Returns whether all differences are positive, or one is negative; neither for sure: within noise."""
  if any(d < -2 * e for d, e in differences):
    return NOT
  return HOLDS if all(d > 2 * e for d, e in differences) else UNDECIDED


def difference(seen: Outcomes, a: Key, b: Key) -> Difference:
  """Returns top-1 of a less that of b."""
  errors = [noise(seen.top1[k], seen.count[k]) for k in (a, b)]
  return seen.top1[a] - seen.top1[b], math.hypot(*errors)


def judge(seen: Outcomes, setting: Setting) -> list[Claim]:
  """Returns the paper's claims in its order; those whose runs are missing say so."""
  claims = []
  for claim, paper, look in _CLAIMS:
    try:
      found, result = look(seen, setting)
    except KeyError:
      found, result = "", NOT_RUN
    claims.append(Claim(claim, paper, found, result))
  return claims


def _listed(seen: Outcomes, keys: dict[str, Pretrain]) -> str:
  return ", ".join(f"{name} {seen.top1[key]:.1f}" for name, key in keys.items())


def _scale(seen: Outcomes, setting: Setting) -> tuple[str, str]:
  keys = {s: Pretrain("mixer", s, setting.percents[-1]) for s in setting.sizes}
  steps = [difference(seen, b, a) for a, b in itertools.pairwise(keys.values())]
  return f"all images, top-1: {_listed(seen, keys)}", verdict(steps)


def _small_data(seen: Outcomes, setting: Setting) -> tuple[str, str]:
  keys = {s: Pretrain("mixer", s, setting.percents[0]) for s in setting.sizes}
  smaller = max(setting.sizes[:-1], key=lambda s: seen.top1[keys[s]])
  found = f"{setting.percents[0]:g} % of the images, top-1: {_listed(seen, keys)}"
  return found, verdict([difference(seen, keys[smaller], keys[setting.sizes[-1]])])


def _data(seen: Outcomes, setting: Setting) -> tuple[str, str]:
  ends = {m: [Pretrain(m, setting.sizes[-1], setting.percents[i]) for i in (0, -1)] for m in MODELS}
  gains = {m: difference(seen, many, few) for m, (few, many) in ends.items()}
  shots = {m: [seen.five_shot[k] for k in keys] for m, keys in ends.items()}
  mixer, error = gains["mixer"]
  found = (
    f"size {setting.sizes[-1]}, {setting.percents[0]:g} % → {setting.percents[-1]:g} % of the images, top-1: "
    + ", ".join(f"{MODELS[m]} {gain:+.1f}" for m, (gain, _) in gains.items())
    + "; 5-shot on the target: "
    + ", ".join(f"{MODELS[m]} {few:.1f} → {many:.1f}" for m, (few, many) in shots.items())
  )
  others = [gains[m] for m in MODELS if m != "mixer"]
  return found, verdict([(mixer - gain, math.hypot(error, e)) for gain, e in others])


def _vit(seen: Outcomes, setting: Setting) -> tuple[str, str]:
  keys = {MODELS[m]: Pretrain(m, *mini.largest(setting)) for m in MODELS}
  found = f"size {setting.sizes[-1]}, all images, top-1: {_listed(seen, keys)}"
  return found, verdict([difference(seen, keys["ViT"], keys["Mixer"])])


def _speed(seen: Outcomes, setting: Setting) -> tuple[str, str]:
  speeds = {m: seen.speed[Pretrain(m, *mini.largest(setting))] for m in MODELS}
  ratio = speeds["mixer"] / speeds["vit"]
  found = f"training here, size {setting.sizes[-1]}, images/s: " + ", ".join(
    f"{MODELS[m]} {speed:,.0f}" for m, speed in speeds.items()
  )
  result = HOLDS if ratio > 1.1 else NOT if ratio < 0.9 else UNDECIDED
  return f"{found} (Mixer {ratio:.1f} times ViT)", result


def _resolution(seen: Outcomes, setting: Setting) -> tuple[str, str]:
  means, gains = [], {}
  for model, title in MODELS.items():
    values, errors = [], []
    for px in (setting.image_size, 2 * setting.image_size):
      keys = [Transfer(model, px, seed) for seed in mini.SEEDS]
      values.append(sum(seen.top1[k] for k in keys) / len(keys))
      # The seeds share their test images, so that they do not add to the count.
      errors.append(noise(values[-1], seen.count[keys[0]]))
    means.append(f"{title} {values[0]:.1f} → {values[1]:.1f}")
    gains[model] = values[1] - values[0], math.hypot(*errors)
  found = f"{setting.image_size} → {2 * setting.image_size} px, mean of {len(mini.SEEDS)} seeds: "
  return found + ", ".join(means), verdict([gains["mixer"]])


def _permuted(setting: Setting, model: str) -> dict[str, Pretrain]:
  return {order: Pretrain(model, *mini.largest(setting), order) for order in ("", *mini.ORDERS)}


def _patches(seen: Outcomes, setting: Setting) -> tuple[str, str]:
  mixer, resnet = _permuted(setting, "mixer"), _permuted(setting, "resnet")
  change, error = difference(seen, mixer["patches"], mixer[""])
  lost = verdict([difference(seen, resnet[""], resnet["patches"])])
  found = ", ".join(
    f"{title} {seen.top1[keys['']]:.1f} → {seen.top1[keys['patches']]:.1f}"
    for title, keys in (("Mixer", mixer), ("ResNet", resnet))
  )
  return found, lost if abs(change) <= 2 * error else NOT


def _pixels(seen: Outcomes, setting: Setting) -> tuple[str, str]:
  lost = {}
  for model in mini.PERMUTED:
    keys = _permuted(setting, model)
    share = 100 / seen.top1[keys[""]]
    value, error = difference(seen, keys[""], keys["pixels"])
    lost[model] = share * value, share * error
  (mixer, mixer_error), (resnet, resnet_error) = lost["mixer"], lost["resnet"]
  found = f"Mixer loses {mixer:.0f} %, ResNet {resnet:.0f} %"
  return found.replace("-", "−"), verdict([(resnet - mixer, math.hypot(mixer_error, resnet_error))])


_CLAIMS = (
  (
    "Larger Mixers are more accurate where there are many images.",
    "JFT-300M, ImageNet top-1 after fine-tuning: S/16 73.8, B/16 80.0, L/16 84.1",
    _scale,
  ),
  (
    "With few images the largest Mixer overfits and is worse than a smaller one.",
    "pre-trained on ImageNet alone: B/16 76.4, L/16 71.8",
    _small_data,
  ),
  (
    "Mixer gains more from data than ViT and ResNet.",
    "figure 2, right: ImageNet 5-shot over 3, 10, 30, 100 % of JFT-300M (a picture alone)",
    _data,
  ),
  (
    "ViT of the same size is slightly more accurate than Mixer.",
    "JFT-300M, 14 epochs, ImageNet top-1 after fine-tuning: ViT-L/16 85.6, Mixer-L/16 84.8",
    _vit,
  ),
  (
    "Mixer is faster than ViT.",
    "inference on TPU v3, images/s and core: Mixer-L/16 419, ViT-L/16 280 (1.5 times)",
    _speed,
  ),
  (
    "Fine-tuning Mixer at twice the resolution is more accurate.",
    "Mixer-L/16 of JFT-300M, ImageNet top-1 after fine-tuning: 84.8 at 224 px, 86.8 at 448 px",
    _resolution,
  ),
  (
    "Patches, and the pixels in each, permuted: Mixer learns as before, ResNet learns less.",
    "figure 4: Mixer-B/16's curve stays, ResNet50x1's falls (a picture alone)",
    _patches,
  ),
  (
    "All pixels permuted: ResNet loses more of its accuracy than Mixer.",
    "Mixer-B/16 loses about 45 % of its accuracy, ResNet50x1 about 75 %",
    _pixels,
  ),
)
