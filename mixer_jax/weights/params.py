"""Parameters as trees: do they fit a model, which model do they belong to, a new head."""

import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mixer_jax.errors import InputError

_BLOCK = re.compile(r"MixerBlock_\d+")


def check_match(params: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
  """Raises InputError that lists the parameters missing, superfluous, of another shape, or not finite numbers.

  Args:
    params: nested parameters, from a file.
    wanted: the model's parameters (arrays or jax.ShapeDtypeStruct).
    where: the file, for the message.
  """
  have: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
  want = {k: v.shape for k, v in traverse_util.flatten_dict(wanted, sep="/").items()}
  problems = _differences(have, want)
  problems += [
    f"values: {n} has {have[n].dtype} values that are not finite numbers"
    for n in sorted(set(have) & set(want))
    if not (jnp.issubdtype(have[n].dtype, np.floating) and np.isfinite(have[n]).all())
  ]
  _report(problems, where, "the model")


def _differences(have: dict[str, Any], want: dict[str, tuple[int, ...]]) -> list[str]:
  problems = [f"missing: {n} {want[n]}" for n in sorted(set(want) - set(have))]
  problems += [f"not in the model: {n} {have[n].shape}" for n in sorted(set(have) - set(want))]
  return problems + [
    f"shape: {n} is {have[n].shape}, the model's is {want[n]}"
    for n in sorted(set(have) & set(want))
    if have[n].shape != want[n]
  ]


def _report(problems: list[str], where: str, model: str) -> None:
  if problems:
    listed = "\n  ".join(problems)
    raise InputError(f"the parameters of {where} do not fit {model}:\n  {listed}")


def model_fields(params: dict[str, Any], where: str = "this tree") -> dict[str, int | None]:
  """Returns the fields of `models.mixer.MlpMixer` that the parameters were made with.

  So `models.build("mixer", **model_fields(params))` is their model: patch_size, num_blocks,
  hidden_dim, tokens_mlp_dim, channels_mlp_dim, and num_classes (None without a head).

  Args:
    params: nested parameters (arrays or jax.ShapeDtypeStruct).
    where: their origin, for the message.

  Raises:
    InputError: they are not a whole Mixer's; what is missing, superfluous or misshapen is listed.
  """
  flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
  try:
    patch_size, _, _, hidden_dim = flat["stem/kernel"].shape
    num_tokens, tokens_mlp_dim = flat["MixerBlock_0/token_mixing/Dense_0/kernel"].shape
    _, channels_mlp_dim = flat["MixerBlock_0/channel_mixing/Dense_0/kernel"].shape
    head = flat.get("head/kernel")
    num_classes = None if head is None else head.shape[1]
  except (KeyError, ValueError, IndexError) as e:
    names = ", ".join(sorted(flat)[:5])
    raise InputError(
      f"{where} holds no Mixer's parameters; it begins with {names or 'none'}."
    ) from e
  fields = dict(
    patch_size=patch_size,
    num_blocks=len({m[0] for name in flat if (m := _BLOCK.match(name))}),
    hidden_dim=hidden_dim,
    tokens_mlp_dim=tokens_mlp_dim,
    channels_mlp_dim=channels_mlp_dim,
    num_classes=num_classes,
  )
  sizes = " ".join(f"{k}={v}" for k, v in fields.items())
  _report(_differences(flat, _shapes(num_tokens, **fields)), where, f"the Mixer with {sizes}")
  return fields


def num_tokens(params: dict[str, Any]) -> int:
  """Returns the number of tokens that a Mixer's parameters are made for."""
  return params["MixerBlock_0"]["token_mixing"]["Dense_0"]["kernel"].shape[0]


def _shapes(
  num_tokens: int,
  *,
  patch_size: int,
  num_blocks: int,
  hidden_dim: int,
  tokens_mlp_dim: int,
  channels_mlp_dim: int,
  num_classes: int | None,
) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every parameter of a Mixer."""

  def dense(name: str, size_in: int, size_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}/kernel": (size_in, size_out), f"{name}/bias": (size_out,)}

  def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}/scale": (hidden_dim,), f"{name}/bias": (hidden_dim,)}

  shapes = {"stem/kernel": (patch_size, patch_size, 3, hidden_dim), "stem/bias": (hidden_dim,)}
  for i in range(num_blocks):
    block = f"MixerBlock_{i}"
    shapes |= norm(f"{block}/LayerNorm_0") | norm(f"{block}/LayerNorm_1")
    for mlp, size, mlp_dim in (
      ("token_mixing", num_tokens, tokens_mlp_dim),
      ("channel_mixing", hidden_dim, channels_mlp_dim),
    ):
      shapes |= dense(f"{block}/{mlp}/Dense_0", size, mlp_dim)
      shapes |= dense(f"{block}/{mlp}/Dense_1", mlp_dim, size)
  shapes |= norm("pre_head_layer_norm")
  return shapes | (dense("head", hidden_dim, num_classes) if num_classes is not None else {})


def replace_head(params: dict[str, Any], num_classes: int, bias: float = 0.0) -> dict[str, Any]:
  """Returns the parameters with a new head, of zeros as the paper starts fine-tuning (section 3).

  Args:
    params: a Mixer's parameters, with a head or without.
    num_classes: width of the new head.
    bias: start of its bias.
  """
  norm = params["pre_head_layer_norm"]["scale"]
  kernel = np.zeros((norm.shape[0], num_classes), norm.dtype)
  return {**params, "head": {"kernel": kernel, "bias": np.full(num_classes, bias, norm.dtype)}}
