"""The report of the paper in miniature: what was run, seen and claimed, as Markdown with pictures."""

import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mixer_jax import inference, models, schema
from mixer_jax import tables as text_tables
from mixer_jax.data import ops, splits
from mixer_jax.errors import InputError
from mixer_jax.figures import hidden_units
from mixer_jax.tools.paper_tables import figures, mini, tables, verdicts
from mixer_jax.tools.paper_tables.mini import MODELS, Outcomes, Pretrain, Setting, Transfer
from mixer_jax.tools.paper_tables.results import Results

_COLOURS = {"mixer": "tab:red", "vit": "tab:blue", "resnet": "tab:green"}
_EXAMPLES = 24
PICTURES = "report"  # directory beside the report


def write(found: Results, setting: Setting) -> pathlib.Path:
  """Writes the report of the runs that are finished into their directory; returns its path.

  Raises:
    InputError: a run of another configuration is among them.
  """
  seen = mini.read(found, setting)
  (found.directory / PICTURES).mkdir(exist_ok=True)
  parts = [
    "# MLP-Mixer in miniature",
    *_introduction(found, setting, seen),
    "## What the paper claims, and what was seen",
    _table(
      ("claim", "paper", "seen here", "verdict"),
      [(c.claim, c.paper, c.seen or "–", c.verdict) for c in verdicts.judge(seen, setting)],
    ),
    "A difference counts where it exceeds twice its standard error over the test images; each "
    "pre-training is one run with one seed, so that what varies between seeds is not in that error. "
    "Models, images and runs are thousands of times smaller than the paper's: agreement here proves "
    "nothing there, and a claim that does not hold here is not refuted.",
    *_examples(found, setting),
    *_data_and_scale(found, setting, seen),
    *_permutations(found, setting, seen),
    *_resolution(setting, seen),
    *_weights(found, setting, seen),
    *_commands(found, setting),
  ]
  path = found.directory / "report.md"
  path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
  return path


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
  return text_tables.as_markdown(header, [[str(cell) for cell in row] for row in rows])


def _picture(found: Results, name: str, figure: Any, description: str) -> str:
  """Writes a matplotlib figure, or the bytes of a PNG; returns its place in the report."""
  path = found.directory / PICTURES / f"{name}.png"
  if isinstance(figure, bytes):
    path.write_bytes(figure)
  else:
    figure.savefig(path, dpi=110)
  return f"![{description}]({PICTURES}/{path.name})"


def _config(found: Results, setting: Setting, model: str = "mixer", size: str = "") -> Any:
  """Returns the configuration of a model trained on all images, of the largest if no size is given."""
  largest, percent = mini.largest(setting)
  return mini.config_of(Pretrain(model, size or largest, percent), setting, found.directory)


def _introduction(found: Results, setting: Setting, seen: Outcomes) -> list[str]:
  config = _config(found, setting)
  hours = sum(run.curve("core_hours")[-1][1] for run in found.runs if run.curve("core_hours"))
  wanted = len(mini.pretrainings(setting)) + len(mini.transfers(setting))
  device = jax.devices()[0]
  return [
    "The story of MLP-Mixer (arXiv:2105.01601) retold by small models on small real images: Mixer, ViT "
    "and ResNet pre-trained at three sizes on three shares of the images with the same number of steps, "
    "then transferred, read out with few examples, and given permuted images.",
    _table(
      ("", ""),
      [
        ("pre-training", f"{_name(setting.dataset)}: {config.data.num_examples:,} images of {config.num_classes} classes, "
         f"tested on {config.evaluators.val.num_examples:,}; {setting.image_size} px, patches of {config.model.patch_size}"),
        ("transfer and few-shot", _name(setting.target)),
        ("steps", f"{setting.steps} of {config.batch_size} images each"),
        ("runs", f"{len(seen.top1)} of {wanted} finished, {hours:.2f} core-hours"),
        ("machine", f"{os.cpu_count()} × {platform.processor() or platform.machine()}, {device.device_kind}, "
         f"Python {platform.python_version()}, JAX {jax.__version__}"),
      ],
    ),
  ]  # fmt: skip


def _name(dataset: str) -> str:
  names = {"digits": "scikit-learn's digits", "digits_0_4": "the digits 0 to 4", "digits_5_9": "the digits 5 to 9"}  # fmt: skip
  return "Fashion-MNIST" if "fashion_mnist" in dataset else names.get(dataset, dataset)


def _shown(value: float | None) -> str:
  return "–" if value is None else f"{value:.1f}"


# --- pictures of the data --------------------------------------------------------------------------


def _example_images(config: Any, count: int) -> tuple[list[np.ndarray], list[str]]:
  options = schema.read(config, models.schema)
  source = splits.make(options, options.evaluators["val"], "config.evaluators.val.").open()
  examples = [source[i] for i in range(count)]
  names = source.class_names or [str(i) for i in range(config.num_classes)]
  images = [ops.decode_image(e["image"]) for e in examples]
  return images, [names[int(e["label"])] for e in examples]


def _draw_images(axes: Any, titled: Sequence[tuple[str, np.ndarray]]) -> None:
  for one, (title, image) in zip(axes, titled, strict=True):
    one.imshow(image, interpolation="nearest")
    one.set_title(title, fontsize=8, pad=2)
    one.set_axis_off()


def _examples(found: Results, setting: Setting) -> list[str]:
  images, names = _example_images(_config(found, setting), _EXAMPLES)
  figure, axes = figures.new_figure(8, _EXAMPLES // 8, width=1.1, height=1.3)
  _draw_images(axes, list(zip(names, images, strict=True)))
  description = f"The first {_EXAMPLES} test images of {_name(setting.dataset)}"
  return ["## The images", _picture(found, "images", figure, description)]


# --- data and scale --------------------------------------------------------------------------------


def _data_and_scale(found: Results, setting: Setting, seen: Outcomes) -> list[str]:
  grid = [Pretrain(m, s, p) for m in MODELS for s in setting.sizes for p in setting.percents]
  count = {(m, s): num_params(_config(found, setting, m, s)) for m in MODELS for s in setting.sizes}
  lines = [
    (
      MODELS[k.model], k.size, f"{count[k.model, k.size]:,}", f"{k.percent:g} %",
      _shown(seen.top1.get(k)), _shown(seen.five_shot.get(k)),
      f"{seen.speed[k]:,.0f}" if k in seen.speed else "–",
    )
    for k in grid
  ]  # fmt: skip
  size, _ = mini.largest(setting)
  figure, axes = figures.new_figure(3, width=4.0, height=3.3)
  _plot(axes[0], f"size {size}, top-1 of its own classes", by_percent(seen.top1, setting))
  _plot(axes[1], f"size {size}, 5-shot on the target", by_percent(seen.five_shot, setting))
  _plot(axes[2], "all images, top-1 of its own classes", by_params(seen.top1, setting, count))
  for one, label in zip(axes, ("% of the images", "% of the images", "parameters"), strict=True):
    one.set_xlabel(label)
  return [
    "## Data and scale (figures 2 and 3 of the paper)",
    _picture(found, "scale", figure, "Accuracy of Mixer, ViT and ResNet by images and parameters"),
    f"Every point took {setting.steps} steps. Top-1 is of the pre-trained model's own head, before any "
    f"fine-tuning; 5-shot is linear on its frozen features, on {_name(setting.target)}.",
    _table(
      ("model", "size", "parameters", "images", "top-1 %", "5-shot %", "images/s in training"),
      lines,
    ),
  ]


def num_params(config: Any) -> int:
  """Returns the number of a configuration's parameters."""
  module = models.build(**config.model, num_classes=config.num_classes)
  return tables.count(
    models.abstract_variables(module, schema.read(config, models.schema).input_shape)["params"]
  )


Lines = dict[str, list[tuple[float, float]]]  # model -> points


def by_percent(values: Any, setting: Setting) -> Lines:
  """Returns the largest models' accuracy by share of the images."""
  keys = {m: [Pretrain(m, setting.sizes[-1], p) for p in setting.percents] for m in MODELS}
  return {m: [(k.percent, values[k]) for k in keys[m] if k in values] for m in MODELS}


def by_params(values: Any, setting: Setting, count: dict[tuple[str, str], int]) -> Lines:
  """Returns accuracy by number of parameters, with all images."""
  keys = {m: [Pretrain(m, s, setting.percents[-1]) for s in setting.sizes] for m in MODELS}
  return {m: [(count[m, k.size], values[k]) for k in keys[m] if k in values] for m in MODELS}


def _plot(axes: Any, title: str, lines: Lines) -> None:
  for model, points in lines.items():
    if points:
      axes.plot(*zip(*points, strict=True), "o-", color=_COLOURS[model], label=MODELS[model])
  axes.set(title=title, ylabel="%", xscale="log")
  axes.grid(alpha=0.3)
  if axes.lines:
    axes.legend(fontsize=9)


# --- permutations ----------------------------------------------------------------------------------


def _permutations(found: Results, setting: Setting, seen: Outcomes) -> list[str]:
  config = _config(found, setting)
  (image, *_), _ = _example_images(config, 1)
  inputs, axes = figures.new_figure(3, width=2.6, height=2.8)
  _draw_images(axes, figures.permuted_photos(image, setting.image_size, config.model.patch_size))
  drawn, axes = figures.new_figure(len(mini.PERMUTED), width=4.0, height=3.3)
  lines = []
  for one, model in zip(axes, mini.PERMUTED, strict=True):
    keys = {o: Pretrain(model, *mini.largest(setting), o) for o in ("", *mini.ORDERS)}
    figures.draw_curves(one, {o: seen.curves.get(k, []) for o, k in keys.items()})
    one.set(title=f"{MODELS[model]}-{setting.sizes[-1]}", ylabel="top-1 %")
    lines.append((MODELS[model], *(_shown(seen.top1.get(k)) for k in keys.values())))
  return [
    "## Permuted images (figure 4 of the paper)",
    _picture(found, "permuted_inputs", inputs, "A test image and its two permutations"),
    _picture(found, "permuted_curves", drawn, "Top-1 by step, on each of the three inputs"),
    _table(
      ("top-1 %", "original", "patches and their pixels permuted", "all pixels permuted"), lines
    ),
    "Random crops come before the permutation, so that the images stay the same but for the order of "
    "their pixels. With correspondingly permuted initial weights Mixer's losses are equal step for step "
    "(tests/training/test_invariance.py); here all runs of a model start from the same weights.",
  ]


# --- transfer --------------------------------------------------------------------------------------


def _resolution(setting: Setting, seen: Outcomes) -> list[str]:
  sizes = (setting.image_size, 2 * setting.image_size)
  lines = []
  for model, title in MODELS.items():
    cells = []
    for px in sizes:
      keys = [Transfer(model, px, seed) for seed in mini.SEEDS]
      values = [seen.top1[k] for k in keys if k in seen.top1]
      mean = _shown(sum(values) / len(values)) if len(values) == len(keys) else "–"
      cells.append(f"{mean} ({', '.join(f'{v:.1f}' for v in values)})" if values else mean)
    lines.append((f"{title}-{setting.sizes[-1]}", *cells))
  return [
    "## Transfer at a higher resolution (section 3 and appendix C)",
    _table(("top-1 % after fine-tuning", *(f"{px} px" for px in sizes)), lines),
    f"Fine-tuned on {_name(setting.target)} for {mini.FINETUNE_STEPS} steps from the models pre-trained on "
    "all images; mean and single seeds. Mixer's token mixing is enlarged as in appendix C, ViT's position "
    "embeddings are interpolated, ResNet takes any size.",
  ]


# --- weights ---------------------------------------------------------------------------------------


def _weights(found: Results, setting: Setting, seen: Outcomes) -> list[str]:
  title = "## What Mixer's weights look like (figures 5 to 7 of the paper)"
  key = Pretrain("mixer", *mini.largest(setting))
  if key not in seen.top1:
    return [title, "not run"]
  try:
    trained = inference.load(workdir=str(found.directory / key.name), config=None)
  except InputError as e:
    return [title, f"The checkpoint cannot be read: {e}"]
  after, before = (
    jax.device_get(v["params"]) for v in (trained.variables, trained.setup.init_variables())
  )
  cosines = [f"{mean_cosine(params):+.2f}".replace("-", "−") for params in (before, after)]
  units = [
    _picture(
      found, f"hidden_units_{i}", hidden_units.encode_png([mosaic]),
      f"Hidden units of token mixing in block {i}, in pairs",
    )
    for i, mosaic in enumerate(hidden_units.paired_mosaics(after), 1)
  ]  # fmt: skip
  filters = hidden_units.encode_png([hidden_units.filter_mosaic(after)], width_px=500)
  return [
    title,
    "\n".join(units),
    f"Hidden units of token mixing of Mixer-{key.size}, trained on all images: each is a picture with a "
    "weight for every patch (red positive, blue negative), ordered from low to high frequency, beside the unit "
    f"nearest to its negative. Mean cosine of the pairs in block 1: {cosines[1]}; before training, of "
    f"random weights paired in the same way, {cosines[0]}. The paper shows pairs of opposite phase.",
    _picture(found, "embedding", filters, "Filters of the embedding"),
    "All filters of the embedding, from low to high frequency.",
  ]


def mean_cosine(params: dict[str, Any]) -> float:
  """Returns the mean cosine of block 1's pairs of hidden units."""
  units = hidden_units.hidden_units(params, 0)
  flat = units.reshape(len(units), -1)
  flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
  pairs = hidden_units.opposite_pairs(units)
  return float(np.mean(np.sum(flat[pairs[:, 0]] * flat[pairs[:, 1]], axis=1)))


# --- how to run it again ---------------------------------------------------------------------------


def _commands(found: Results, setting: Setting) -> list[str]:
  keys = [*mini.pretrainings(setting), *mini.transfers(setting)]
  commands = [mini.command_of(key, setting, found.directory) for key in keys]
  return [
    "## Commands",
    "Every run by itself, in the project's root; its whole configuration is in its config.json:",
    "\n".join(["```", *commands, "```"]),
  ]
