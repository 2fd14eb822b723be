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
  errors = [noise(seen[k].top1, seen[k].num_images) for k in (a, b)]
  return seen[a].top1 - seen[b].top1, math.hypot(*errors)


def check_claims(seen: Outcomes, setting: Setting) -> list[Claim]:
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
  return ", ".join(f"{name} {seen[key].top1:.1f}" for name, key in keys.items())


def _scale(seen: Outcomes, setting: Setting) -> tuple[str, str]:
  keys = {s: Pretrain("mixer", s, setting.percents[-1]) for s in setting.sizes}
  steps = [difference(seen, b, a) for a, b in itertools.pairwise(keys.values())]
  return f"all images, top-1: {_listed(seen, keys)}", verdict(steps)


def _small_data(seen: Outcomes, setting: Setting) -> tuple[str, str]:
  keys = {s: Pretrain("mixer", s, setting.percents[0]) for s in setting.sizes}
  smaller = max(setting.sizes[:-1], key=lambda s: seen[keys[s]].top1)
  found = f"{setting.percents[0]:g} % of the images, top-1: {_listed(seen, keys)}"
  return found, verdict([difference(seen, keys[smaller], keys[setting.sizes[-1]])])


def _data(seen: Outcomes, setting: Setting) -> tuple[str, str]:
  ends = {m: [Pretrain(m, setting.sizes[-1], setting.percents[i]) for i in (0, -1)] for m in MODELS}
  gains = {m: difference(seen, many, few) for m, (few, many) in ends.items()}
  shots = {m: [seen[k].five_shot for k in keys] for m, keys in ends.items()}
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
  keys = {MODELS[m]: Pretrain(m, *setting.largest) for m in MODELS}
  found = f"size {setting.sizes[-1]}, all images, top-1: {_listed(seen, keys)}"
  return found, verdict([difference(seen, keys["ViT"], keys["Mixer"])])


def _speed(seen: Outcomes, setting: Setting) -> tuple[str, str]:
  speeds = {m: seen[Pretrain(m, *setting.largest)].speed for m in MODELS}
  ratio = speeds["mixer"] / speeds["vit"]
  found = f"training here, size {setting.sizes[-1]}, images/s: " + ", ".join(
    f"{MODELS[m]} {speed:,.0f}" for m, speed in speeds.items()
  )
  result = HOLDS if ratio > 1.1 else NOT if ratio < 0.9 else UNDECIDED
  return f"{found} (Mixer {ratio:.1f} times ViT)", result


def _resolution(seen: Outcomes, setting: Setting) -> tuple[str, str]:
  del setting
  means = {m: [_mean_of_seeds(seen, m, px) for px in mini.TRANSFER_PX] for m in MODELS}
  found = f"{' → '.join(map(str, mini.TRANSFER_PX))} px, mean of {len(mini.SEEDS)} seeds: "
  found += ", ".join(f"{MODELS[m]} {a:.1f} → {b:.1f}" for m, ((a, _), (b, _)) in means.items())
  (low, low_error), (high, high_error) = means["mixer"]
  return found, verdict([(high - low, math.hypot(low_error, high_error))])


def _mean_of_seeds(seen: Outcomes, model: str, px: int) -> tuple[float, float]:
  """Returns the mean top-1 and its standard error; the seeds share their test images."""
  results = [seen[Transfer(model, px, seed)] for seed in mini.SEEDS]
  mean = sum(r.top1 for r in results) / len(results)
  return mean, noise(mean, results[0].num_images)


def _permuted(setting: Setting, model: str) -> dict[str, Pretrain]:
  return {order: Pretrain(model, *setting.largest, order) for order in ("", *mini.ORDERS)}


def _patches(seen: Outcomes, setting: Setting) -> tuple[str, str]:
  mixer, resnet = _permuted(setting, "mixer"), _permuted(setting, "resnet")
  change, error = difference(seen, mixer["patches"], mixer[""])
  lost = verdict([difference(seen, resnet[""], resnet["patches"])])
  found = ", ".join(
    f"{title} {seen[keys['']].top1:.1f} → {seen[keys['patches']].top1:.1f}"
    for title, keys in (("Mixer", mixer), ("ResNet", resnet))
  )
  return found, lost if abs(change) <= 2 * error else NOT


def _pixels(seen: Outcomes, setting: Setting) -> tuple[str, str]:
  lost = {}
  for model in mini.PERMUTED:
    keys = _permuted(setting, model)
    share = 100 / seen[keys[""]].top1
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
