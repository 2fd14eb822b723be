"""Pictures of a run, in its directory: learning curves, predictions, a Mixer's weights, and a page with all of them."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath

from mixer_jax import configuration, figures, files, page, schema
from mixer_jax.errors import InputError
from mixer_jax.evaluators import report
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
    self._section, self._of, self._workdir = section, built[section.of], directory
    self._setup = setup
    own = section.every_steps
    self.every_steps = self._of.every_steps if own is None else own
    self.title = f"of {section.of}"
    self.sources: dict[str, Any] = {}

  def __call__(self, variables: Any, step: int) -> Iterator[tuple[str, float]]:
    """Writes report.html and plots/*.png, those of the weights with their step; yields nothing.

    What cannot be drawn or written is a line: nobody's run ends for a picture.
    """
    rows = self._of.rows(variables, step)
    if jax.process_index() == 0:
      try:
        self._draw(variables, rows, step)
      except Exception as e:
        metrics.log(f"WARNING: the pictures of step {step} could not be made: {e}")
    yield from ()

  def _draw(self, variables: Any, rows: Any, step: int) -> None:
    options, section, source = self._setup.options, self._section, self._of.source
    records = metrics.read_metrics(self._workdir)
    title = f"{self._setup.title} on {options.data.dataset}, step {step}"
    wrong = f"{int((rows['top1'] == 0).sum())} of {len(rows['top1'])} {options.examples} of {section.of} are wrong"
    panels = curves.panels(
      records, options, section.of, self._setup.learning_rate, log_loss=section.log_loss
    )
    samples = curves.samples(source, rows, options.image_channels)
    weights = _of_weights(variables["params"], schema.sides(options.image_size))
    pictures = {
      "learning_curves": figures.encode(curves.learning_curves(panels, title)),
      "predictions": figures.encode(curves.predictions(samples, wrong)),
      **{f"{name}_step{step}": content for name, content in weights.items()},
    }
    parts = [
      *report.facts(self._setup, records),
      *report.learning_curves(panels),
      *report.results(records),
      *report.predictions(samples, wrong),
      *report.confusions(rows, options, source.class_names),
      *report.weights(weights),
      *report.origin(self._workdir),
    ]
    self._write({f"plots/{name}.png": content for name, content in pictures.items()})
    self._write({"report.html": page.whole(title, parts).encode()})

  def _write(self, contents: Mapping[str, bytes]) -> None:
    (self._workdir / "plots").mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
      with files.replacing(self._workdir / name) as partial:
        partial.write_bytes(content)

  def line(self, values: Mapping[str, float]) -> str:
    del values
    return f"{self._workdir / 'report.html'}, {self._workdir / 'plots'}"


def _of_weights(params: dict[str, Any], image_size: tuple[int, int]) -> dict[str, bytes]:
  """Returns a Mixer's hidden units and embedding (the paper's figures 5 and 7) as PNG.

  None of other families, or where the parameters are spread over processes.
  """
  if not all(x.is_fully_addressable or x.is_fully_replicated for x in jax.tree.leaves(params)):
    return {}
  try:
    return {
      "hidden_units": figures.encode(hidden_units.draw_pairs(params, image_size)),
      "embedding": figures.encode(hidden_units.draw_filters({"stem": params})),
    }
  except InputError:  # has no such weights
    return {}
