"""A trained model as a directory or a repository of the Hugging Face hub, which timm and `mixer_jax.load` read."""

import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from mixer_jax import files, models, schema, weights
from mixer_jax.data import preprocess
from mixer_jax.errors import InputError
from mixer_jax.evaluators import best
from mixer_jax.inference import trained as trained_lib
from mixer_jax.training import normalization
from mixer_jax.weights import hub, torch_layout

_REPOSITORY = "hf://"


def push(trained: trained_lib.Trained, to: str, scores: Mapping[str, float]) -> str:
  """Writes model.safetensors, config.json and README.md into a new directory, or to "hf://OWNER/NAME".

  Args:
    to: a directory that does not exist or is empty, or a repository, made if it is not there.
    scores: name -> what was measured of the model, for the card.

  Returns:
    A line on where it is.

  Raises:
    InputError: the directory has files, or there is no torch layout of the model.
    SaveError: a file could not be written.
  """
  if to.startswith(_REPOSITORY):
    repository, api = to.removeprefix(_REPOSITORY), hub.import_library().HfApi()
    with tempfile.TemporaryDirectory() as directory:
      _write(trained, epath.Path(directory), scores)
      api.create_repo(repository, exist_ok=True)
      api.upload_folder(
        repo_id=repository, folder_path=directory, commit_message=_public(trained.name)
      )
    return to
  directory = epath.Path(files.path_of(to, "--to"))
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise InputError(f"--to={to} is not empty: choose a new directory.")
  directory.mkdir(parents=True, exist_ok=True)
  _write(trained, directory, scores)
  return str(directory)


def _write(trained: trained_lib.Trained, to: epath.Path, scores: Mapping[str, float]) -> None:
  state = torch_layout.to_torch(jax.device_get(trained.variables))
  described = config(trained)
  torch_layout.save_safetensors(to / hub.WEIGHTS, state, trained_lib.class_names(trained))
  for name, text in (
    (hub.CONFIG, json.dumps(described, indent=1, ensure_ascii=False) + "\n"),
    ("README.md", card(trained, described, scores)),
  ):
    with files.replacing(to / name) as partial:
      partial.write_text(text)


def config(trained: trained_lib.Trained) -> dict[str, Any]:
  """Returns config.json: what timm reads, and below "mixer_jax" what this project does."""
  options, model = trained.setup.options, trained.setup.model
  sides, channels = options.input_shape[:-1], options.input_shape[-1]
  family = options.model["name"]
  fields = models.function_fields(model)
  ops = options.evaluators[best(options)[0]].ops
  mean, std = normalization.moments(options.normalize, channels).tolist()
  named = hub.architecture(family, fields, sides, channels) if len(sides) == 2 else None
  theirs = {"architecture": named[0], "model_args": named[1]} if named else {}
  return {
    **theirs,
    "num_classes": options.num_classes,
    "label_names": trained_lib.class_names(trained),
    "pretrained_cfg": {
      "custom_load": False,
      "input_size": [channels, *sides],
      "fixed_input_size": True,
      **_crop(ops, sides),
      "mean": mean,
      "std": std,
      "num_classes": options.num_classes,
      "pool_size": None,
      "first_conv": "patch_embed.proj" if family == "vit" else "stem.proj",
      "classifier": "head",
    },
    hub.OWN: {
      "family": family,
      "fields": fields,
      "image_size": schema.joined(*schema.sides(options.image_size)),
      "frames": options.frames,
      "normalize": options.normalize,
      "ops": ops,
      "loss": options.loss,
    },
  }


def _crop(ops: str, sides: Sequence[int]) -> dict[str, Any]:
  """Returns timm's words for operations that resize and crop."""
  given = dict(preprocess.calls(ops, "ops"))
  side = max(sides)
  if (short := given.get("resize_short")) is not None:
    filtered = short.get("interpolation", "bicubic")
    return {
      "crop_pct": short.get("crop_pct", 0.875), "crop_mode": "center", "interpolation": filtered,
    }  # fmt: skip
  squashed = given.get("resize")
  size = (given.get("resize_small") or squashed or {}).get("size_px") or round(side * 256 / 224)
  cropped = "central_crop" in given
  return {
    "crop_pct": side / size if cropped else 1.0,
    "crop_mode": "center" if squashed is None else "squash",
    "interpolation": "bilinear",
  }


def card(
  trained: trained_lib.Trained, described: Mapping[str, Any], scores: Mapping[str, float]
) -> str:
  """Returns the model card: what the model is, how it was trained and measured, and how it is loaded."""
  options, step = trained.setup.options, trained.step
  count = sum(x.size for x in jax.tree.leaves(trained.variables["params"]))
  own = described[hub.OWN]
  facts = [
    f"{trained.setup.title}, {count:,} parameters, {options.examples} of {options.size} px, {options.num_classes} classes",
    f"preprocessing: `{own['ops']}`, values (pixel / 255 − mean) / std with mean "
    f"{described['pretrained_cfg']['mean']} and std {described['pretrained_cfg']['std']}",
    f"probabilities: {'sigmoids' if options.loss == 'sigmoid_xent' else 'a softmax'} of the logits",
  ]
  if step is None:
    known = weights.RELEASED.get(trained.name)
    facts.append(
      f"parameters of {_public(trained.name)}" + (f", licence {known.licence}" if known else "")
    )
  else:
    facts.append(
      f"trained on {_public(options.data.dataset, 2)} ({options.data.split}), {step} steps of {options.batch_size} {options.examples}, "
      f"loss {options.loss}, optimizer {options.optimizer.name}, peak learning rate {options.learning_rate:g}"
      + (f", from {_public(options.init.weights)}" if options.init.weights else "")
    )
  facts += [f"{name}: {value:.4f}" for name, value in scores.items()]
  exact = own["fields"].get("gelu") == "tanh" and own["family"] != "vit"
  tanh = ', act_layer=functools.partial(torch.nn.GELU, approximate="tanh")' if exact else ""
  timm = f"timm.create_model('local-dir:DIR', pretrained=True{tanh})"
  kind, file = ("image", "photo.jpg") if options.frames is None else ("video", "clip.mp4")
  usage = f"import mixer_jax\n\nmixer_jax.load('DIR').predict('{file}')\n"
  usage += f"\nimport functools, timm, torch\n\n{timm}\n" if "architecture" in described else ""
  return "\n".join(
    [
      *("---", f"library_name: {'timm' if 'architecture' in described else 'mixer-jax'}"),
      *("tags:", f"- {kind}-classification", "- mixer-jax", "---", ""),
      *(f"# {trained.setup.title}, {options.size} px", "", *[f"- {fact}" for fact in facts], ""),
      *("```python", usage.rstrip(), "```", ""),
    ]
  )


def _public(place: str, names: int = 1) -> str:
  """Returns the last names of a path: who reads a card does not know this machine's directories. Other places stay."""
  path = pathlib.PurePath(place)
  return str(pathlib.PurePath(*path.parts[-names:])) if path.is_absolute() else place
