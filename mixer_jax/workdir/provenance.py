"""What a checkpoint was trained with: run and step, configuration, class names, fingerprints of the splits.

Every checkpoint carries it as provenance.json. A run resumes if its configuration and data are those of the
checkpoint, but for the keys that may change.
"""

import contextlib
import dataclasses
import fnmatch
import json
import secrets
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from etils import epath

from mixer_jax import configuration, files, printing, schema
from mixer_jax.configuration import NonNegativeInt, PositiveInt
from mixer_jax.data import sources
from mixer_jax.errors import InputError
from mixer_jax.workdir import directory as workdirs
from mixer_jax.workdir import metrics

T = TypeVar("T")
_FILE = "provenance.json"
_MAX_BYTES = 1 << 24
_RECORDS = ".records of "  # between the key that names a split and its name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
  """Fingerprint of a data set's split: short hashes of a few encoded images with their labels."""

  name: str
  num_examples: PositiveInt
  records: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
  """What a checkpoint was trained with.

  Attributes:
    format: of the file.
    run: drawn at random where a run starts, kept where it resumes.
    step: finished steps.
    configuration: as in config.json.
    class_names: of the training split's label; () if it has none.
    splits: section of the configuration -> fingerprint (Split) of the data that it names.
    records: number of those in metrics.jsonl up to this step. None if it is not known.
    records_sha256: of those (metrics.digest). None if it is not known.
  """

  format: Literal[1] = 1
  run: str = dataclasses.field(default_factory=lambda: secrets.token_hex(6))
  step: NonNegativeInt = 0
  configuration: dict
  class_names: tuple[str, ...]
  splits: dict
  records: NonNegativeInt | None = None
  records_sha256: str | None = None


def describe(config: Mapping[str, Any], opened: Mapping[str, sources.Source]) -> Provenance:
  """Returns the provenance of a new run; `opened` is key that names a split -> that split, the first trained on."""
  names = next((s.class_names for s in opened.values()), None) or ()
  splits = {
    key: Split(name=s.name, num_examples=len(s), records=s.fingerprint())
    for key, s in opened.items()
  }
  return Provenance(
    configuration=configuration.plain(config), class_names=tuple(names), splits=splits
  )


def write(directory: epath.Path, provenance: Provenance) -> None:
  text = json.dumps(dataclasses.asdict(provenance), indent=1, ensure_ascii=False)
  (directory / _FILE).write_text(f"{text}\n")


def read(workdir: epath.Path, step: int) -> Provenance | None:
  """Reads the provenance of a checkpoint, None if it is of before there was one.

  Raises:
    InputError: it is of another format or step, or no text that can be printed; the value at fault is named.
  """
  path = workdirs.checkpoint_path(workdir, step) / _FILE
  try:
    if files.is_regular(path) and path.stat().length > _MAX_BYTES:
      raise InputError(f"{path} is larger than {_MAX_BYTES >> 20} MiB.")
    content = json.loads(files.read(path))
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (ValueError, RecursionError) as e:
    raise InputError(f"{path} is not JSON: {e}") from e
  found = _made(Provenance, content, str(path))
  splits = {k: _made(Split, v, f"{path}.splits.{k}") for k, v in found.splits.items()}
  if found.step != step:
    raise InputError(f"{path}.step is {found.step}, but the checkpoint is that of step {step}.")
  for name in (*found.class_names, *splits, *(split.name for split in splits.values())):
    if not printing.is_printable(name):
      raise InputError(f"{path} has the name {name!a}, which cannot be printed.")
  return dataclasses.replace(found, splits=splits)


def _made(declared: type[T], content: Any, where: str) -> T:
  if not isinstance(content, dict):
    raise InputError(f"{where} is {content!r:.40}; expected a JSON object.")
  return configuration.call(declared, content, where)


def resume(
  new: Provenance, workdir: epath.Path, step: int | None, allow_change: Sequence[str]
) -> Provenance:
  """Returns the new provenance as the run's that it goes on from; prints what `allow_change` lets differ.

  Without a checkpoint (`step` is None) the workdir takes every configuration. Keys and sections of `allow_change` may
  differ besides those of the new `may_change`.

  Raises:
    InputError: configuration or data are others, or `allow_change` names no key.
  """
  before = None if step is None else read(workdir, step)
  last = workdirs.find_config(workdir)
  saved = before.configuration if before else last
  keys = {**configuration.flatten(saved or {}), **configuration.flatten(new.configuration)}
  added = {*new.configuration["may_change"]} - {*schema.Options.may_change}
  _check_keys("--allow_change", allow_change, keys)
  _check_keys("config.may_change", sorted(added), keys)
  if step is None:  # nothing is lost
    if changed := configuration.differences(last or new.configuration, new.configuration, ()):
      metrics.log(f"{workdir} has no checkpoint yet, starts anew with:\n  " + "\n  ".join(changed))
    return new
  if saved is None:
    raise InputError(
      f"{workdir} has checkpoints, but no config.json to tell what they were trained with: put it back, or start "
      f"a new workdir from their weights: {shlex.quote(f'--config.init.weights={workdir}')}."
    )
  saved = schema.translated(saved)
  if last and "evaluators" in last:  # the last start may have changed them without a checkpoint
    saved = {**saved, "evaluators": last["evaluators"]}
  saved = schema.completed(saved)
  come_and_gone = _evaluators(saved) ^ _evaluators(new.configuration)
  if before:  # which may know fewer or more of them than the last start
    come_and_gone |= _evaluators(before.configuration) ^ _evaluators(new.configuration)
  may_change = [*new.configuration["may_change"], *(f"evaluators.{name}" for name in come_and_gone)]
  may_change += ["init"]  # it has done its work
  may_change += _moved(before, new) if before else []
  old = _comparable(saved) | _records(before, new)
  now = _comparable(new.configuration) | _records(before and new, new)
  if refused := configuration.changed(old, now, [*may_change, *allow_change]):
    listed = "\n  ".join(refused.values())
    raise InputError(
      f"{workdir} belongs to a run with another configuration or other data:\n  {listed}\nChoose another "
      f"workdir, give what it was started with, or allow the change: --allow_change=KEY,…{_harmless(refused)}"
    )
  if changed := configuration.differences(old, now, may_change):
    metrics.log("changed, as --allow_change permits:\n  " + "\n  ".join(changed))
  if before is None:
    return new
  return dataclasses.replace(
    new, run=before.run, records=before.records, records_sha256=before.records_sha256
  )


def _harmless(changed: Iterable[str]) -> str:
  """Returns which of the changed keys leave the parameters as they are, with the flag, or "" if there are none."""
  keys = {key.partition(_RECORDS)[0] for key in changed}
  measured = sorted(key for key in keys if key == "best" or key.startswith("evaluators."))
  if not measured:
    return ""
  return (
    f"\nOnly what is measured changes, and no parameter, with --allow_change={','.join(measured)}"
  )


def _moved(before: Provenance, new: Provenance) -> list[str]:
  """Returns the keys that name data sets whose records are the same as before, wherever they are."""
  return [
    f"{key.rpartition('.')[0]}.dataset"
    for key, split in new.splits.items()
    if _contents(before.splits.get(key)) == _contents(split) and "unreadable" not in split.records
  ]


def _contents(split: Split | None) -> tuple[int, tuple[str, ...]] | None:
  return split and (split.num_examples, tuple(split.records))


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the keys and their values, of those that can be written in several ways the one for people."""
  flat = configuration.flatten(config)
  # Of a damaged one the differences will show it.
  with contextlib.suppress(InputError, KeyError, TypeError):
    flat["image_size"] = schema.joined(*schema.sides(flat["image_size"]))
  return flat


def _evaluators(config: Mapping[str, Any]) -> set[str]:
  """Returns their names; none of a saved configuration that is of an earlier version, or damaged."""
  match config:
    case {"evaluators": {**sections}}:
      return {*sections}
  return set()


def _records(provenance: Provenance | None, new: Provenance) -> dict[str, str]:
  """Returns hashes of records as keys below the one that names the split, so that it lets them change.

  They show the name that the split has now, whatever it was.
  """
  splits = provenance.splits if provenance else {}
  names = {key: split.name for key, split in {**splits, **new.splits}.items()}
  return {f"{key}{_RECORDS}{names[key]}": " ".join(split.records) for key, split in splits.items()}


def _check_keys(where: str, patterns: Iterable[str], keys: Iterable[str]) -> None:
  known = {key.rsplit(".", n)[0] for key in keys for n in range(key.count(".") + 1)}
  for pattern in patterns:
    if not fnmatch.filter(known, pattern):
      hint = configuration.nearest(pattern, sorted(known))
      raise InputError(f"{where}: the configuration has no key or section {pattern!r}.{hint}")
