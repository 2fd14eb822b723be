"""Pictures of a run, in its directory: learning curves, predictions, and a Mixer's weights."""

import io
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

from mixer_jax import configuration, schema
from mixer_jax.errors import InputError
from mixer_jax.evaluators.classification import Classification
from mixer_jax.figures import curves, hidden_units
from mixer_jax.workdir import metrics


class Pictures:
  """Draws, and measures nothing; see __init__.py."""

  SCORES = ()

  def __init__(
    self,
    setup: Any,
    section: schema.Pictures,
    where: str,
    built: Mapping[str, Any],
    directory: epath.Path | None,
  ):
    if directory is None:
      raise InputError(f"{where[:-1]} needs a run: give --workdir.")
    known = [name for name, other in built.items() if isinstance(other, Classification)]
    if section.of not in known:
      raise InputError(
        f"{where}of is {section.of!r}, a classification that must be evaluated with it (eval.py: name both in "
        "--evaluators)."
        f"{configuration.nearest(section.of, known)}"
      )
    self._name, self._of, self._workdir = section.of, built[section.of], directory
    self._options = setup.options
    own = section.every_steps
    self.every_steps = self._of.every_steps if own is None else own
    self.title = f"of {section.of}"
    self.sources: dict[str, Any] = {}

  def __call__(self, variables: Any, step: int) -> Iterator[tuple[str, float]]:
    """Writes plots/*.png, those of the weights with their step; yields nothing.

    What cannot be drawn or written is a line: nobody's run ends for a picture.
    """
    rows = self._of.rows(variables, step)
    if jax.process_index() == 0:
      try:
        self._write(self._draw(variables, rows, step))
      except Exception as e:
        metrics.log(f"WARNING: the pictures of step {step} could not be made: {e}")
    yield from ()

  def _draw(self, variables: Any, rows: Any, step: int) -> dict[str, bytes]:
    records, options = metrics.read_metrics(self._workdir), self._options
    of_weights = _of_weights(variables["params"], schema.sides(options.image_size))
    predictions = curves.predictions(self._of.source, rows, options.image_channels)
    return {
      "learning_curves.png": _encode(curves.learning_curves(records, self._name)),
      "predictions.png": _encode(predictions),
      **{f"{name}_step{step}.png": content for name, content in of_weights.items()},
    }

  def _write(self, pictures: Mapping[str, bytes]) -> None:
    directory = self._workdir / "plots"
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in pictures.items():
      (directory / name).write_bytes(content)

  def line(self, values: Mapping[str, float]) -> str:
    del values
    return f"{self._workdir / 'plots'}"


def _encode(figure: Any) -> bytes:
  picture = io.BytesIO()
  figure.savefig(picture, format="png", dpi=120)
  return picture.getvalue()


def _of_weights(params: dict[str, Any], image_size: tuple[int, int]) -> dict[str, bytes]:
  """Returns a Mixer's hidden units and embedding (the paper's figures 5 and 7) as PNG.

  None of other families, or where the parameters are spread over processes.
  """
  if not all(x.is_fully_addressable or x.is_fully_replicated for x in jax.tree.leaves(params)):
    return {}
  try:
    return {
      "hidden_units": hidden_units.encode_png(hidden_units.paired_mosaics(params, image_size)),
      "embedding": hidden_units.encode_png([hidden_units.filter_mosaic(params)]),
    }
  except InputError:  # has no such weights
    return {}
