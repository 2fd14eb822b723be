"""The report of the paper in miniature, a page with pictures: what was run and found, and the paper's claims."""

import os
import pathlib
import platform
from typing import Any

import jax
import numpy as np

from mixer_jax import figures as pictures
from mixer_jax import inference, models, page, schema
from mixer_jax.data import ops, splits
from mixer_jax.figures import hidden_units
from mixer_jax.tools.paper_tables import figures, mini, tables, verdicts
from mixer_jax.tools.paper_tables.mini import MODELS, Outcomes, Pretrain, Setting, Transfer

_EXAMPLES = 24
_NAMES = {"digits": "scikit-learn's digits", "digits_0_4": "the digits 0 to 4", "digits_5_9": "the digits 5 to 9"}  # fmt: skip


def write(directory: pathlib.Path, setting: Setting) -> pathlib.Path:
  """Writes the report of the runs that are finished into their directory; returns its path.

  Raises:
    InputError: a run of another configuration is among them.
  """
  seen = mini.read(directory, setting)
  sections = (_introduction, _claims, _examples, _data_and_scale, _permutations, _resolution, _weights, _commands)  # fmt: skip
  parts = [text for section in sections for text in section(directory, setting, seen)]
  path = directory / "report.html"
  path.write_text(page.whole("MLP-Mixer in miniature", parts), encoding="utf-8")
  return path


def _picture(figure: Any, description: str) -> str:
  return page.wide(page.picture(pictures.encode(figure), description))


def _name(dataset: str) -> str:
  return "Fashion-MNIST" if "fashion_mnist" in dataset else _NAMES.get(dataset, dataset)


def _shown(value: float | None) -> str:
  return "–" if value is None else f"{value:.1f}"


def _top1(seen: Outcomes, key: mini.Key) -> str:
  return _shown(seen[key].top1 if key in seen else None)


def _introduction(directory: pathlib.Path, setting: Setting, seen: Outcomes) -> list[str]:
  config = mini.config_of(Pretrain("mixer", *setting.largest), setting, directory)
  return [
    page.paragraph(
      "The story of MLP-Mixer (arXiv:2105.01601) retold by small models on small real images: Mixer, ViT "
      "and ResNet pre-trained at three sizes on three shares of the images with the same number of steps, "
      "then transferred, read out with few examples, and given permuted images."
    ),
    page.table(
      (),
      [
        (
          "pre-training",
          f"{_name(setting.dataset)}: {config.data.num_examples:,} images of {config.num_classes} classes, "
          f"tested on {config.evaluators.val.num_examples:,}; {mini.IMAGE_SIZE} px, patches of {config.model.patch_size}",
        ),
        ("transfer and few-shot", _name(setting.target)),
        ("steps", f"{setting.steps} of {config.batch_size} images each"),
        (
          "runs",
          f"{len(seen)} of {len(mini.runs_of(setting))} finished, "
          f"{sum(outcome.core_hours for outcome in seen.values()):.2f} core-hours",
        ),
        (
          "machine",
          f"{os.cpu_count()} × {platform.processor() or platform.machine()}, "
          f"{jax.devices()[0].device_kind}, Python {platform.python_version()}, JAX {jax.__version__}",
        ),
      ],
    ),
  ]


def _claims(directory: pathlib.Path, setting: Setting, seen: Outcomes) -> list[str]:
  del directory
  lines = [
    (c.claim, c.paper, c.seen or "–", c.verdict) for c in verdicts.check_claims(seen, setting)
  ]
  return [
    page.heading("What the paper claims, and what was seen"),
    page.table(("claim", "paper", "seen here", "verdict"), lines),
    page.paragraph(
      "A difference counts where it exceeds twice its standard error over the test images; each "
      "pre-training is one run with one seed, so that what varies between seeds is not in that error. "
      "Models, images and runs are thousands of times smaller than the paper's: agreement here proves "
      "nothing there, and a claim that does not hold here is not refuted."
    ),
  ]


def _example_images(config: Any, count: int) -> list[tuple[str, np.ndarray]]:
  """Returns (class, image) of the first test images."""
  options = schema.read(config)
  source = splits.make(options, options.evaluators["val"], "config.evaluators.val.").open()
  names = source.class_names or [str(i) for i in range(config.num_classes)]
  examples = [source[i] for i in range(count)]
  return [(names[int(e["label"])], ops.decode_image(e["image"])) for e in examples]


def _examples(directory: pathlib.Path, setting: Setting, seen: Outcomes) -> list[str]:
  del seen
  config = mini.config_of(Pretrain("mixer", *setting.largest), setting, directory)
  figure, axes = figures.new_figure(8, _EXAMPLES // 8, width=1.1, height=1.3)
  figures.draw_images(axes, _example_images(config, _EXAMPLES))
  description = f"The first {_EXAMPLES} test images of {_name(setting.dataset)}"
  return [page.heading("The images"), _picture(figure, description)]


def _data_and_scale(directory: pathlib.Path, setting: Setting, seen: Outcomes) -> list[str]:
  size, percent = setting.largest
  count = {
    (m, s): num_params(mini.config_of(Pretrain(m, s, percent), setting, directory))
    for m in MODELS
    for s in setting.sizes
  }
  grid = [Pretrain(m, s, p) for m in MODELS for s in setting.sizes for p in setting.percents]
  run = [k for k in grid if k in seen]
  by_percent = [(k, k.percent) for k in run if k.size == size]
  by_params = [(k, count[k.model, k.size]) for k in run if k.percent == percent]
  figure, axes = figures.new_figure(3, width=4.0, height=3.3)
  for one, title, label, value, points in (
    (axes[0], f"size {size}, top-1 of its own classes", "% of the images", "top1", by_percent),
    (axes[1], f"size {size}, 5-shot on the target", "% of the images", "five_shot", by_percent),
    (axes[2], "all images, top-1 of its own classes", "parameters", "top1", by_params),
  ):
    lines = {
      name: [(x, getattr(seen[k], value)) for k, x in points if k.model == m]
      for m, name in MODELS.items()
    }
    style = {name: {"color": figures.COLOURS[name], "marker": "o"} for name in lines}
    figures.draw_lines(one, lines, style)
    one.set(title=title, xlabel=label, ylabel="%", xscale="log")
  rows = [
    (
      MODELS[k.model], k.size, f"{count[k.model, k.size]:,}", f"{k.percent:g} %", _top1(seen, k),
      _shown(seen[k].five_shot if k in seen else None), f"{seen[k].speed:,.0f}" if k in seen else "–",
    )
    for k in grid
  ]  # fmt: skip
  return [
    page.heading("Data and scale (figures 2 and 3 of the paper)"),
    _picture(figure, "Accuracy of Mixer, ViT and ResNet by images and parameters"),
    page.paragraph(
      f"Every point took {setting.steps} steps. Top-1 is of the pre-trained model's own head, before any "
      f"fine-tuning; 5-shot is linear on its frozen features, on {_name(setting.target)}."
    ),
    page.table(
      ("model", "size", "parameters", "images", "top-1 %", "5-shot %", "images/s in training"), rows
    ),
  ]


def num_params(config: Any) -> int:
  """Returns the number of a configuration's parameters."""
  module = models.build(**config.model, num_classes=config.num_classes)
  shape = schema.read(config).input_shape
  return tables.count(models.abstract_variables(module, shape)["params"])


def _permutations(directory: pathlib.Path, setting: Setting, seen: Outcomes) -> list[str]:
  config = mini.config_of(Pretrain("mixer", *setting.largest), setting, directory)
  ((_, image),) = _example_images(config, 1)
  inputs, axes = figures.new_figure(3, width=2.6, height=2.8)
  photos = figures.permuted_photos(image, mini.IMAGE_SIZE, config.model.patch_size)
  figures.draw_images(axes, photos)
  drawn, axes = figures.new_figure(len(mini.PERMUTED), width=4.0, height=3.3)
  lines = []
  for one, model in zip(axes, mini.PERMUTED, strict=True):
    keys = {o: Pretrain(model, *setting.largest, o) for o in figures.ORDERS}
    figures.draw_by_order(one, {o: seen[k].curve for o, k in keys.items() if k in seen})
    one.set(title=f"{MODELS[model]}-{setting.sizes[-1]}", ylabel="top-1 %")
    lines.append((MODELS[model], *(_top1(seen, k) for k in keys.values())))
  return [
    page.heading("Permuted images (figure 4 of the paper)"),
    _picture(inputs, "A test image and its two permutations"),
    _picture(drawn, "Top-1 by step, on each of the three inputs"),
    page.table(("top-1 %", *figures.ORDERS.values()), lines),
    page.paragraph(
      "Random crops come before the permutation, so that the images stay the same but for the order of "
      "their pixels. With correspondingly permuted initial weights Mixer's losses are equal step for step "
      "(tests/training/test_invariance.py); here all runs of a model start from the same weights."
    ),
  ]


def _resolution(directory: pathlib.Path, setting: Setting, seen: Outcomes) -> list[str]:
  del directory

  def cell(model: str, px: int) -> str:
    keys = [Transfer(model, px, seed) for seed in mini.SEEDS]
    values = [seen[k].top1 for k in keys if k in seen]
    mean = sum(values) / len(values) if len(values) == len(keys) else None
    return f"{_shown(mean)} ({', '.join(map(_shown, values)) or 'not run'})"

  lines = [
    (f"{title}-{setting.sizes[-1]}", *(cell(model, px) for px in mini.TRANSFER_PX))
    for model, title in MODELS.items()
  ]
  return [
    page.heading("Transfer at a higher resolution (section 3 and appendix C)"),
    page.table(("top-1 % after fine-tuning", *(f"{px} px" for px in mini.TRANSFER_PX)), lines),
    page.paragraph(
      f"Fine-tuned on {_name(setting.target)} for {mini.FINETUNE_STEPS} steps from the models pre-trained on "
      "all images; mean and single seeds. Mixer's token mixing is enlarged as in appendix C, ViT's position "
      "embeddings are interpolated, ResNet takes any size."
    ),
  ]


def _weights(directory: pathlib.Path, setting: Setting, seen: Outcomes) -> list[str]:
  title = page.heading("What Mixer's weights look like (figures 5 to 7 of the paper)")
  key = Pretrain("mixer", *setting.largest)
  if key not in seen:
    return [title, page.paragraph("not run")]
  trained = inference.load(workdir=str(directory / key.name), config=None)
  after, before = (v["params"] for v in (trained.variables, trained.setup.init_variables()))
  cosines = [
    f"{hidden_units.mean_cosine(hidden_units.hidden_units(params, 0)):+.2f}".replace("-", "−")
    for params in (before, after)
  ]
  first, name = hidden_units.block_name(0), f"Mixer-{key.size}"
  return [
    title,
    _picture(hidden_units.draw_pairs(after), "Hidden units of token mixing, in pairs"),
    page.paragraph(
      f"Hidden units of token mixing of {name}, trained on all images: each is a picture with a weight for every "
      "patch, ordered from low to high frequency, beside the unit nearest to its negative. Mean cosine of the pairs "
      f"in {first}: {cosines[1]}; before training, of random weights paired in the same way, {cosines[0]}. The paper "
      "shows pairs of opposite phase."
    ),
    _picture(hidden_units.draw_filters({name: after}), "Filters of the embedding"),
  ]


def _commands(directory: pathlib.Path, setting: Setting, seen: Outcomes) -> list[str]:
  del seen
  commands = [mini.command_of(key, setting, directory) for key in mini.runs_of(setting)]
  return [
    page.heading("Commands"),
    page.paragraph(
      "Every run by itself, in the project's root; its whole configuration is in its config.json:"
    ),
    page.code("\n".join(commands)),
  ]
