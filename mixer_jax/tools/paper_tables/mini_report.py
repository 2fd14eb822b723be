"""The report of the paper in miniature: one page of what was run, seen and claimed."""

import os
import platform
import shlex
from typing import Any

import jax
import numpy as np

from mixer_jax import inference, models
from mixer_jax.data import ops
from mixer_jax.errors import InputError
from mixer_jax.figures import hidden_units, page
from mixer_jax.tools.paper_tables import figures, mini, tables, verdicts
from mixer_jax.tools.paper_tables.mini import MODELS, Pretrain, Seen, Setting, Transfer
from mixer_jax.tools.paper_tables.results import Found, Run
from mixer_jax.training import experiment

_COLOURS = {"mixer": "tab:red", "vit": "tab:blue", "resnet": "tab:green"}
_EXAMPLES = 24


def write(found: Found, setting: Setting) -> str:
  """Returns the page of the runs that are finished.

  Raises:
    InputError: a run of another configuration is among them.
  """
  seen = mini.read(found, setting)
  parts = [
    *_introduction(found, setting, seen),
    page.heading("What the paper claims, and what was seen"),
    page.table(
      ("claim", "paper", "seen here", "verdict"),
      [(c.claim, c.paper, c.seen or "–", c.verdict) for c in verdicts.judge(seen, setting)],
      stacked=True,
    ),
    page.paragraph(
      "A difference counts where it exceeds twice its standard error over the test images; each "
      "pre-training is one run with one seed, so that what varies between seeds is not in that error. "
      "Models, images and runs are thousands of times smaller than the paper's: agreement here proves "
      "nothing there, and a claim that does not hold here is not refuted."
    ),
    *_examples(setting),
    *_data_and_scale(setting, seen),
    *_permutations(setting, seen),
    *_resolution(setting, seen),
    *_weights(found, setting, seen),
    *_commands(found, setting),
  ]
  return page.document("MLP-Mixer in miniature", parts)


def _introduction(found: Found, setting: Setting, seen: Seen) -> list[str]:
  config = mini.load_config(
    Pretrain("mixer", setting.largest, setting.percents[-1]).command(setting)
  )
  hours = sum(_last(run, "core_hours") for run in found.runs)
  wanted = len(mini.pretrainings(setting)) + len(mini.transfers(setting))
  device = jax.devices()[0]
  return [
    page.paragraph(
      "The story of MLP-Mixer (arXiv:2105.01601) retold by small models on small real images: Mixer, ViT "
      "and ResNet pre-trained at three sizes on three shares of the images with the same number of steps, "
      "then transferred, read out with few examples, and given permuted images."
    ),
    page.table(
      ("", ""),
      [
        ("pre-training", f"{_name(setting.dataset)}: {config.data.num_examples:,} images of {config.num_classes} classes, "
         f"tested on {config.evaluation.num_examples:,}; {setting.image_size} px, patches of {config.model.patch_size}"),
        ("transfer and few-shot", _name(setting.target)),
        ("steps", f"{setting.steps} of {config.batch_size} images each"),
        ("runs", f"{len(seen.top1)} of {wanted} finished, {hours:.2f} core-hours"),
        ("machine", f"{os.cpu_count()} × {platform.processor() or platform.machine()}, {device.device_kind}, "
         f"Python {platform.python_version()}, JAX {jax.__version__}"),
      ],
    ),
  ]  # fmt: skip


def _last(run: Run, name: str) -> float:
  curve = run.curve(name)
  return curve[-1][1] if curve else 0.0


def _name(dataset: str) -> str:
  names = {"digits": "scikit-learn's digits", "digits_0_4": "the digits 0 to 4", "digits_5_9": "the digits 5 to 9"}  # fmt: skip
  return "Fashion-MNIST" if "fashion_mnist" in dataset else names.get(dataset, dataset)


def _shown(value: float | None) -> str:
  return "–" if value is None else f"{value:.1f}"


# --- pictures of the data --------------------------------------------------------------------------


def _example_images(setting: Setting, count: int) -> tuple[list[np.ndarray], list[str]]:
  config = mini.load_config(
    Pretrain("mixer", setting.largest, setting.percents[-1]).command(setting)
  )
  source = experiment.build_model(config, experiment.make_mesh(config)).eval_split.open()
  examples = [source[i] for i in range(count)]
  names = source.class_names or [str(i) for i in range(config.num_classes)]
  images = [ops.decode_image(e["image"]) for e in examples]
  return images, [names[int(e["label"])] for e in examples]


def _examples(setting: Setting) -> list[str]:
  images, names = _example_images(setting, _EXAMPLES)
  figure, axes = figures.new_figure(8, _EXAMPLES // 8, width=1.1, height=1.3)
  for one, image, name in zip(axes, images, names, strict=True):
    one.imshow(image, interpolation="nearest")
    one.set_title(name, fontsize=8, pad=2)
    one.set_axis_off()
  return [
    page.heading("The images"),
    page.picture(figure, f"The first {_EXAMPLES} test images of {_name(setting.dataset)}"),
  ]


# --- data and scale --------------------------------------------------------------------------------


def _data_and_scale(setting: Setting, seen: Seen) -> list[str]:
  grid = [Pretrain(m, s, p) for m in MODELS for s in setting.sizes for p in setting.percents]
  count = {(m, s): num_params(m, s, setting) for m in MODELS for s in setting.sizes}
  lines = [
    (
      MODELS[k.model], k.size, f"{count[k.model, k.size]:,}", f"{k.percent:g} %",
      _shown(seen.top1.get(k)), _shown(seen.five_shot.get(k)),
      f"{seen.speed[k]:,.0f}" if k in seen.speed else "–",
    )
    for k in grid
  ]  # fmt: skip
  largest = setting.largest
  panels = (
    (
      f"size {largest}, top-1 of its own classes",
      "% of the images",
      by_percent(seen.top1, setting),
    ),
    (
      f"size {largest}, 5-shot on the target",
      "% of the images",
      by_percent(seen.five_shot, setting),
    ),
    ("all images, top-1 of its own classes", "parameters", by_params(seen.top1, setting, count)),
  )
  return [
    page.heading("Data and scale (figures 2 and 3 of the paper)"),
    page.beside(*(_plot(*panel) for panel in panels)),
    page.paragraph(
      f"Every point took {setting.steps} steps. Top-1 is of the pre-trained model's own head, before any "
      f"fine-tuning; 5-shot is linear on its frozen features, on {_name(setting.target)}."
    ),
    page.table(
      ("model", "size", "parameters", "images", "top-1 %", "5-shot %", "images/s in training"),
      lines,
    ),
  ]


def num_params(model: str, size: str, setting: Setting) -> int:
  """Returns the number of a model's parameters."""
  config = mini.load_config(Pretrain(model, size, setting.percents[-1]).command(setting))
  module = models.build(**config.model, num_classes=config.num_classes)
  return tables.count(
    models.abstract_variables(module, (config.image_size, config.image_size, 3))["params"]
  )


Lines = dict[str, list[tuple[float, float]]]  # model -> points


def by_percent(values: Any, setting: Setting) -> Lines:
  """Returns the largest models' accuracy by share of the images."""
  keys = {m: [Pretrain(m, setting.largest, p) for p in setting.percents] for m in MODELS}
  return {m: [(k.percent, values[k]) for k in keys[m] if k in values] for m in MODELS}


def by_params(values: Any, setting: Setting, count: dict[tuple[str, str], int]) -> Lines:
  """Returns accuracy by number of parameters, with all images."""
  keys = {m: [Pretrain(m, s, setting.percents[-1]) for s in setting.sizes] for m in MODELS}
  return {m: [(count[m, k.size], values[k]) for k in keys[m] if k in values] for m in MODELS}


def _plot(title: str, xlabel: str, lines: Lines) -> str:
  figure, (axes,) = figures.new_figure(1, width=4.0, height=3.3)
  for model, points in lines.items():
    if points:
      axes.plot(*zip(*points, strict=True), "o-", color=_COLOURS[model], label=MODELS[model])
  axes.set(title=title, xlabel=xlabel, ylabel="%", xscale="log")
  axes.grid(alpha=0.3)
  if axes.lines:
    axes.legend(fontsize=9)
  return page.picture(figure, f"{title}, by {xlabel}, of Mixer, ViT and ResNet")


# --- permutations ----------------------------------------------------------------------------------


def _permutations(setting: Setting, seen: Seen) -> list[str]:
  config = mini.load_config(
    Pretrain("mixer", setting.largest, setting.percents[-1]).command(setting)
  )
  (image, *_), _ = _example_images(setting, 1)
  shown = figures.permuted_photos(image, setting.image_size, config.model.patch_size)
  figure, axes = figures.new_figure(3, width=2.6, height=2.8)
  for one, (title, picture) in zip(axes, shown, strict=True):
    one.imshow(picture, interpolation="nearest")
    one.set_title(title, fontsize=9)
    one.set_axis_off()
  curves, lines = [], []
  for model in mini.PERMUTED:
    keys = {
      order: Pretrain(model, setting.largest, setting.percents[-1], order)
      for order in ("", *mini.ORDERS)
    }
    drawn, (one,) = figures.new_figure(1, width=4.0, height=3.3)
    figures.draw_curves(one, {o: seen.curves.get(k, []) for o, k in keys.items()})
    one.set(title=f"{MODELS[model]}-{setting.largest}", ylabel="top-1 %")
    curves.append(
      page.picture(drawn, f"Top-1 of {MODELS[model]} by step, on each of the three inputs")
    )
    lines.append((MODELS[model], *(_shown(seen.top1.get(k)) for k in keys.values())))
  return [
    page.heading("Permuted images (figure 4 of the paper)"),
    page.picture(figure, "A test image and its two permutations"),
    page.beside(*curves),
    page.table(
      ("top-1 %", "original", "patches and their pixels permuted", "all pixels permuted"), lines
    ),
    page.paragraph(
      "Random crops come before the permutation, so that the images stay the same but for the order of "
      "their pixels. With correspondingly permuted initial weights Mixer's losses are equal step for step "
      "(tests/test_invariance.py); here all runs of a model start from the same weights."
    ),
  ]


# --- transfer --------------------------------------------------------------------------------------


def _resolution(setting: Setting, seen: Seen) -> list[str]:
  lines = []
  for model, title in MODELS.items():
    cells = []
    for px in (setting.image_size, 2 * setting.image_size):
      keys = [Transfer(model, px, seed) for seed in mini.SEEDS]
      values = [seen.top1[k] for k in keys if k in seen.top1]
      mean = _shown(sum(values) / len(values)) if len(values) == len(keys) else "–"
      cells.append(f"{mean} ({', '.join(f'{v:.1f}' for v in values)})" if values else mean)
    lines.append((f"{title}-{setting.largest}", *cells))
  sizes = (f"{setting.image_size} px", f"{2 * setting.image_size} px")
  return [
    page.heading("Transfer at a higher resolution (section 3 and appendix C)"),
    page.table(("top-1 % after fine-tuning", *sizes), lines),
    page.paragraph(
      f"Fine-tuned on {_name(setting.target)} for {mini.FINETUNE_STEPS} steps from the models pre-trained on "
      "all images; mean and single seeds. Mixer's token mixing is enlarged as in appendix C, ViT's position "
      "embeddings are interpolated, ResNet takes any size."
    ),
  ]


# --- weights ---------------------------------------------------------------------------------------


def _weights(found: Found, setting: Setting, seen: Seen) -> list[str]:
  title = page.heading("What Mixer's weights look like (figures 5 to 7 of the paper)")
  key = Pretrain("mixer", setting.largest, setting.percents[-1])
  if key not in seen.top1:
    return [title, page.paragraph("not run")]
  try:
    trained = inference.load(workdir=str(found.directory / key.name), config=None)
  except InputError as e:
    return [title, page.paragraph(f"The checkpoint cannot be read: {e}")]
  after, before = (
    jax.device_get(v["params"]) for v in (trained.variables, trained.setup.init_variables())
  )
  cosines = [f"{mean_cosine(params):+.2f}".replace("-", "−") for params in (before, after)]
  return [
    title,
    page.beside(
      *(
        page.image(
          hidden_units.encode_png([mosaic]), f"Hidden units of token mixing in block {i + 1}, in pairs"
        )
        for i, mosaic in enumerate(hidden_units.paired_mosaics(after))
      )
    ),
    page.paragraph(
      f"Hidden units of token mixing of Mixer-{setting.largest}, trained on all images: each is a picture with a "
      "weight for every patch (red positive, blue negative), ordered from low to high frequency, beside the unit "
      f"nearest to its negative. Mean cosine of the pairs in block 1: {cosines[1]}; before training, of "
      f"random weights paired in the same way, {cosines[0]}. The paper shows pairs of opposite phase."
    ),
    page.image(
      hidden_units.encode_png([hidden_units.filter_mosaic(after)], width_px=500), "Filters of the embedding"
    ),
    page.paragraph("All filters of the embedding, from low to high frequency."),
  ]  # fmt: skip


def mean_cosine(params: dict[str, Any]) -> float:
  """Returns the mean cosine of block 1's pairs of hidden units."""
  units = hidden_units.hidden_units(params, 0)
  flat = units.reshape(len(units), -1)
  flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
  pairs = hidden_units.opposite_pairs(units)
  return float(np.mean(np.sum(flat[pairs[:, 0]] * flat[pairs[:, 1]], axis=1)))


# --- how to run it again ---------------------------------------------------------------------------


def _commands(found: Found, setting: Setting) -> list[str]:
  lines = []
  for key in [*mini.pretrainings(setting), *mini.transfers(setting)]:
    command = mini.command_of(key, setting, found.directory)
    words = [*command.split(" "), f"--workdir={found.directory / key.name}"]
    lines.append("python train.py " + " ".join(shlex.quote(w) for w in words))
  configs = []
  for model, title in MODELS.items():
    key = Pretrain(model, setting.largest, setting.percents[-1])
    config = mini.load_config(key.command(setting))
    configs.append(
      page.details(f"Configuration of {title}-{key.size}", page.code(config.to_json(indent=1)))
    )
  return [
    page.heading("Commands and configurations"),
    page.paragraph("Every run by itself, in the project's root:"),
    page.details(f"{len(lines)} commands", page.code("\n".join(lines))),
    *configs,
  ]
