"""Parameters as trees: do they fit a model, which model do they belong to, a new head."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mixer_jax.errors import InputError
from mixer_jax.weights.families import FAMILIES, family_of


def check_match(params: dict[str, Any], wanted: dict[str, Any], where: str) -> None:
  """Raises InputError that names another family, or lists what does not fit.

  That is: parameters missing, superfluous, of another shape, or not finite numbers.

  Args:
    params: nested parameters, from a file.
    wanted: the model's parameters (arrays or jax.ShapeDtypeStruct).
    where: the file, for the message.
  """
  have: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
  check_family(params, family(wanted, "the model"), where)
  want = {k: v.shape for k, v in traverse_util.flatten_dict(wanted, sep="/").items()}
  problems = _differences(have, want)
  problems += [
    f"values: {n} has {have[n].dtype} values that are not finite numbers"
    for n in sorted(set(have) & set(want))
    if not (jnp.issubdtype(have[n].dtype, np.floating) and np.isfinite(have[n]).all())
  ]
  _report(problems, where, "the model")


def check_family(params: dict[str, Any], wanted: str, where: str) -> None:
  """Raises InputError, which names both, if the parameters are not of the wanted family."""
  if (found := family(params, where)) != wanted:
    raise InputError(
      f"{where} holds a {FAMILIES[found].title}'s parameters (model.name={found!r}), but a "
      f"{FAMILIES[wanted].title}'s ({wanted!r}) are wanted."
    )


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


def family(params: dict[str, Any], where: str = "this tree") -> str:
  """Returns the model family of parameters, a key of `models.FAMILIES`, by their names.

  Args:
    params: nested parameters.
    where: their origin, for the message.

  Raises:
    InputError: they are of no known family.
  """
  return family_of(traverse_util.flatten_dict(params, sep="/"), where).name


def model_fields(params: dict[str, Any], where: str = "this tree") -> dict[str, Any]:
  """Returns the fields of the family's module that the parameters were made with.

  So `models.build(family(params), **model_fields(params))` is their model: for a Mixer patch_size, num_blocks,
  hidden_dim, tokens_mlp_dim, channels_mlp_dim, and num_classes (None without a head). A ResNet's parameters
  do not tell num_groups.

  Args:
    params: nested parameters (arrays or jax.ShapeDtypeStruct).
    where: their origin, for the message.

  Raises:
    InputError: they are not a whole model's; what is missing, superfluous or misshapen is listed.
  """
  flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
  known = family_of(flat, where)
  try:
    fields = known.fields(flat)
    shapes = known.shapes(flat, fields)
  except (KeyError, ValueError, IndexError) as e:
    names = ", ".join(sorted(flat)[:5])
    raise InputError(f"{where} holds no {known.title}'s parameters; it begins with {names}.") from e
  sizes = " ".join(f"{k}={v}" for k, v in fields.items())
  _report(_differences(flat, shapes), where, f"the {known.title} with {sizes}")
  return fields


def num_tokens(params: dict[str, Any]) -> int:
  """Returns the number of patches that a Mixer's or Vision Transformer's parameters are made for."""
  if "Transformer" in params:  # all but the class token
    return params["Transformer"]["posembed_input"]["pos_embedding"].shape[1] - 1
  return params["MixerBlock_0"]["token_mixing"]["Dense_0"]["kernel"].shape[0]


def replace_head(params: dict[str, Any], num_classes: int, bias: float = 0.0) -> dict[str, Any]:
  """Returns the parameters with a new head, of zeros as the paper starts fine-tuning (section 3).

  A Vision Transformer's tanh layer goes with the old head, as in vision_transformer's fine-tuning.

  Args:
    params: of any family, with a head or without.
    num_classes: width of the new head.
    bias: start of its bias.

  Raises:
    InputError: they are of no known family.
  """
  flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
  known = family_of(flat, "this tree")
  norm = flat[known.last_norm]
  # The head's kernel in the form that it has in the files: a ResNet's is a convolution's.
  shape = (*known.head_axes, norm.shape[0], num_classes)
  flat = {k: v for k, v in flat.items() if not k.startswith((f"{known.head}/", "pre_logits/"))}
  flat[f"{known.head}/kernel"] = np.zeros(shape, norm.dtype)
  flat[f"{known.head}/bias"] = np.full(num_classes, bias, norm.dtype)
  return traverse_util.unflatten_dict(flat, sep="/")
