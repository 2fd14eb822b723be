"""From a source to batches: what the batch of a step holds is a pure function of (seed, step).

The running number n = step·batch + row names an epoch n // N, of N rows, and a place in that epoch's permutation,
(n % N) // repeats, which names an example; the example's randomness is a function of (seed, epoch, index, copy). So the position
in the data is the step: a resumed run needs no state of a loader, and neither workers nor processes
change what is read. Batches are {"image": uint8 (b, h, w, c), of clips (b, t, h, w, c), "label": int32 (b,), or
(b, m) padded with −1 where images have up to m labels, "mask": float32 (b,)}.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from absl import logging

from mixer_jax.data import sources, synthetic
from mixer_jax.data.preprocess import Preprocess
from mixer_jax.errors import BadRecordError, InputError

Batch = dict[str, np.ndarray]
Empty = Callable[[Sequence[int], Any], np.ndarray]  # shape, dtype -> array


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitSpec:
  """A split and its preprocessing. Opening it is the first thing that touches the disk.

  Attributes:
    dataset, data_dir, split, label: see sources.open_source; "synthetic" is made on the fly.
    num_examples: examples of the split; checked against the data when it is opened.
    num_classes: labels must be below it.
    labels_per_image: the most labels that an image has. Above 1, a batch's labels are
      (b, labels_per_image), padded with −1.
    ops: the preprocessing.
    on_bad_record: what an undecodable image or an impossible label does. "stop" stops the run; "skip" masks
      the row, logs it and counts it.
    subset_percent: percentage of the examples to use. For one seed, smaller subsets are contained in larger
      ones.
    subset_seed: chooses the subset, independently of the run's seed.
    repeats: copies of an example that follow one another, each processed anew (repeated augmentation, Hoffer et
      al., arXiv:1901.09335). An epoch has as many rows as without them, so of one permutation only the first
      part is seen (DeiT, samplers.py: RASampler).
    drop_remainder: an epoch ends with its last whole batch, as with torch's drop_last.
    where: what stands before its keys in messages: "config.data.".
  """

  dataset: str
  data_dir: str | None
  split: str
  label: str | None
  num_examples: int
  num_classes: int
  labels_per_image: int
  ops: Preprocess
  on_bad_record: Literal["stop", "skip"]
  subset_percent: float = 100.0
  subset_seed: int = 0
  repeats: int = 1
  drop_remainder: bool = False
  where: str = ""

  @property
  def num_used(self) -> int:
    """Examples of the subset."""
    return max(round(self.num_examples * self.subset_percent / 100), 1)

  def epoch_size(self, batch_size: int) -> int:
    """Returns the rows of an epoch."""
    return self.num_used - (self.num_used % batch_size if self.drop_remainder else 0)

  def open(self) -> sources.Source:
    """Opens the source; raises InputError if it is absent, not what the configuration says, or `ops` do not fit it."""
    if self.dataset == "synthetic":
      videos = len(self.ops.input_shape) == 4
      return synthetic.open_source(
        self.num_examples, self.num_classes, self.labels_per_image, videos=videos
      )
    source = sources.open_source(
      dataset=self.dataset, data_dir=self.data_dir, split=self.split, label=self.label
    )
    if len(source) != self.num_examples:
      raise InputError(
        f"{self.where}num_examples is {self.num_examples}, but {source.name} has {len(source)} examples: "
        "correct it or the split."
      )
    if source.num_classes is not None and source.num_classes > self.num_classes:
      raise InputError(
        f"{self.where}split: {source.name} has {source.num_classes} classes, more than num_classes "
        f"{self.num_classes}."
      )
    self.check_ops(source)
    return source

  def kept_bytes(self, source: sources.Source) -> int:
    """Returns the memory that the examples take decoded, if all are like the first; 0 if they are not kept."""
    if not isinstance(source, sources.Source):
      return 0
    with contextlib.suppress(BadRecordError):
      if decode := self.ops.decode:
        total = decode(source[0]["image"]).nbytes * self.num_used
        return total if total <= sources.KEPT_BYTES else 0
    return 0

  def check_ops(self, source: sources.Source) -> None:
    """Processes the first record; raises InputError if `ops` cannot make the model's images of it.

    A bad record stops the run, or is skipped, where it is loaded.
    """
    with contextlib.suppress(BadRecordError):
      self.ops(source[0], example_rng(0, 0, 0))


class Order:
  """The sequence n -> index: a fresh permutation of the examples every epoch, without a table."""

  def __init__(self, spec: SplitSpec, seed: int):
    import grain  # Costs 2 s and 200 MB, which commands without data need not pay.

    # Hashed, because Grain adds the epoch to its seed: neighbouring seeds would share permutations.
    run, subset = (
      int(np.random.SeedSequence(s).generate_state(1)[0]) for s in (seed, [spec.subset_seed, 1])
    )
    self._places: Any = grain.MapDataset.range(spec.num_used).shuffle(seed=run).repeat()
    # Looked up by the place within an epoch, so that it is the same subset in every epoch.
    whole = spec.num_used == spec.num_examples
    all_examples: Any = grain.MapDataset.range(spec.num_examples)
    self._examples = range(spec.num_examples) if whole else all_examples.shuffle(seed=subset)

  def __getitem__(self, n: int) -> int:
    return int(self._examples[int(self._places[n])])


def example_rng(seed: int, epoch: int, index: int, copy: int = 0) -> np.random.Generator:
  """Returns the generator of an example: no two (epoch, index, copy) share numbers (Philox counters)."""
  return _Rngs(seed)(epoch, index, copy)


class _Rngs:
  """`rngs(epoch, index, copy)` is `example_rng` by one generator that is set anew, which takes a tenth of making one."""

  def __init__(self, seed: int):
    self._philox = np.random.Philox(key=seed)
    self._generator = np.random.Generator(self._philox)
    self._state = self._philox.state

  def __call__(self, epoch: int, index: int, copy: int) -> np.random.Generator:
    self._state["state"]["counter"][:] = 0, copy, epoch, index
    self._philox.state = self._state
    return self._generator


class _Loader:
  """Loads rows into a batch; shared by training and evaluation."""

  def __init__(self, spec: SplitSpec, source: sources.Source):
    self._spec = spec
    self._source = source
    self._keeps = spec.kept_bytes(source) > 0

  def load(self, index: int, rng: np.random.Generator, view: int = 0) -> dict[str, Any] | None:
    """Returns a view of the example, None if it is skipped; raises InputError that names a bad record."""
    try:
      example = self._spec.ops(self._example(index), rng, view)
      return example | {"label": self._checked_label(example["label"])}
    except BadRecordError as e:
      message = f"bad record {index} of {self._source.name}: {e}"
      if self._spec.on_bad_record == "stop":
        raise InputError(
          f"{message}. Repair the data, or skip and count such records with "
          "--config.data.on_bad_record=skip"
        ) from e
      logging.warning("skipped %s", message)
      return None

  def _example(self, index: int) -> dict[str, Any]:
    decode = self._spec.ops.decode
    if decode is None or not self._keeps:
      return self._source[index]
    return self._source.decoded(index, decode)

  def _checked_label(self, label: np.ndarray) -> np.ndarray:
    """Returns int32 (), or (labels_per_image,) padded with −1; raises BadRecordError."""
    ids, most = np.ravel(label).tolist(), self._spec.labels_per_image
    for i in ids:
      if not 0 <= i < self._spec.num_classes:
        raise BadRecordError(f"label {i} is not in 0..{self._spec.num_classes - 1}")
    if len(ids) > most:
      raise BadRecordError(f"has {len(ids)} labels; labels_per_image says at most {most}")
    if most == 1 and len(ids) == 0:
      raise BadRecordError("has no label")
    return np.array(ids[0] if most == 1 else ids + [-1] * (most - len(ids)), np.int32)

  def batch(self, examples: Iterator[dict[str, Any] | None], size: int, empty: Empty) -> Batch:
    """Gathers `size` rows; None is a row with mask 0 that repeats a good one (mixup may reach into it).

    Each is copied as soon as it is there: memory that is kept for a batch's worth of single images is
    fresh every time, and costs more than the copy.
    """
    most = self._spec.labels_per_image
    image = empty((size, *self._spec.ops.input_shape), np.uint8)
    label = empty((size,) if most == 1 else (size, most), np.int32)
    mask = empty((size,), np.float32)
    mask[:] = 0
    for row, example in enumerate(examples):
      if example is not None:
        image[row], label[row], mask[row] = example["image"], example["label"], 1
    good = int(mask.argmax())
    image[mask == 0] = image[good] if mask[good] else 0
    label[mask == 0] = label[good] if mask[good] else (0 if most == 1 else -1)
    return {"image": image, "label": label, "mask": mask}


class TrainBatches:
  """`batches[step]`: this process's rows of the batch that `step` trains on."""

  def __init__(
    self, spec: SplitSpec, source: sources.Source, *, seed: int, batch_size: int, rows: np.ndarray,
    total_steps: int,
  ):  # fmt: skip
    self._loader = _Loader(spec, source)
    self._seed, self._batch_size, self._rows = seed, batch_size, rows
    self._spec, self._total_steps = spec, total_steps
    self._epoch_size = spec.epoch_size(batch_size)
    self._order = Order(spec, seed)

  def __len__(self) -> int:
    return self._total_steps

  def example(self, epoch: int, index: int, copy: int = 0) -> dict[str, Any] | None:
    """Returns an example as it is trained on in that epoch; "drawn" tells which crop, flip and operations.

    A tuple of (operation, what it drew), from which the pixels can be made again (ops.py).
    """
    return self._loader.load(index, example_rng(self._seed, epoch, index, copy))

  def indices(self, step: int) -> list[tuple[int, int, int]]:
    """Returns (epoch, index, copy) of each row."""
    numbers = (step * self._batch_size + int(row) for row in self._rows)
    return [self._place(*divmod(n, self._epoch_size)) for n in numbers]

  def _place(self, epoch: int, row: int) -> tuple[int, int, int]:
    place, copy = divmod(row, self._spec.repeats)
    return epoch, self._order[epoch * self._spec.num_used + place], copy

  def __getitem__(self, step: int) -> Batch:
    return self.load(step)

  def load(self, step: int, empty: Empty = np.empty) -> Batch:
    """Returns `self[step]`, made in arrays of (shape, dtype) that `empty` gives."""
    rngs = _Rngs(self._seed)
    examples = (self._loader.load(p[1], rngs(*p)) for p in self.indices(step))
    return self._loader.batch(examples, len(self._rows), empty)


class EvalBatches:
  """`batches[i]`: this process's rows of the i-th evaluation batch, in the order of the data.

  Where the preprocessing has several views, row n of the evaluation is view n % views of example n // views. A batch
  holds `batch_size` of these rows; rows past them, which fill the batch up to a multiple of the
  devices, and rows past the end of the split have mask 0, so that every view of every example counts once.
  """

  def __init__(self, spec: SplitSpec, source: sources.Source, *, batch_size: int, rows: np.ndarray):
    self._loader = _Loader(spec, source)
    self._views, self._num_rows = spec.ops.views, spec.num_examples * spec.ops.views
    self._batch_size, self._rows = batch_size, rows

  def __len__(self) -> int:
    return -(-self._num_rows // self._batch_size)

  def __getitem__(self, i: int) -> Batch:
    return self.load(i)

  def load(self, i: int, empty: Empty = np.empty) -> Batch:
    """See TrainBatches.load."""
    rngs = _Rngs(0)
    examples = (self._example(i, int(row), rngs) for row in self._rows)
    return self._loader.batch(examples, len(self._rows), empty)

  def _example(self, i: int, row: int, rngs: _Rngs) -> dict[str, Any] | None:
    n = i * self._batch_size + row
    if row >= self._batch_size or n >= self._num_rows:
      return None
    index, view = divmod(n, self._views)
    return self._loader.load(index, rngs(0, index, 0), view)
