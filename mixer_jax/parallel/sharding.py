"""Where arrays live: the device mesh, the batch sharded over it, parameters sharded or replicated.

The batch is sharded over all axes of the mesh. "data" counts replicas of the state; "fsdp" counts the
shards of a replica: parameters and their optimizer state are sharded along one of their dimensions, gathered
in the step where they are used, and their gradients reduced to shards again (ZeRO, Rajbhandari et al.
2020; FSDP). Which dimension is a matter of rules on the parameters' names.
"""

import collections
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mixer_jax import rules as rules_lib
from mixer_jax import tables
from mixer_jax.errors import InputError

AXES = ("data", "fsdp")
# Elements from which on "auto" shards a parameter: a smaller one takes longer to gather than it is worth.
MIN_AUTO_SIZE = 2**14
REPLICATED = -1  # no dimension
_PLACES = "auto, replicate or the number of a dimension"


class Shardings(NamedTuple):
  """Where arrays live.

  Attributes:
    variables: of the model's variables, a tree like them.
    batch: of every array of a batch.
    replicated: of small results.
    state: a tree like the train state. None if nothing is trained.
  """

  variables: Any
  batch: NamedSharding
  replicated: NamedSharding
  state: Any = None


def make_mesh(*, data: int, fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
  """Returns a mesh of `data` replicas of the state, each in `fsdp` shards: axes ("data", "fsdp").

  Args:
    data: replicas; −1: as many as the devices make.
    fsdp: devices that share a copy.
    devices: to choose from. Default: the devices of all processes. They may be absent (a topology's).

  Raises:
    InputError: more devices wanted than there are, or processes left without one.
  """
  known = jax.devices() if devices is None else list(devices)
  if fsdp < 1 or (data == -1 and len(known) % fsdp):
    raise InputError(f"fsdp is {fsdp}, which does not divide the {len(known)} devices.")
  replicas = len(known) // fsdp if data == -1 else data
  if not 1 <= replicas * fsdp <= len(known):
    times = f" and fsdp {fsdp}" if fsdp > 1 else ""
    raise InputError(f"data is {data}{times}, but there are {len(known)} devices; -1 takes all.")
  if devices is None and jax.process_count() > 1 and replicas * fsdp != len(known):
    raise InputError("data must be -1 with several processes: each takes part.")
  # jax.make_mesh would refuse an axis that is a part of one of the torus: 2 of v6e:4x4's 4.
  chosen = mesh_utils.create_device_mesh(
    (replicas, fsdp), known[: replicas * fsdp], allow_split_physical_axes=True
  )
  return Mesh(chosen, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def make_shardings(
  mesh: Mesh, variables: Any, rules: tuple[str, ...] = (), state: Any = None
) -> Shardings:
  """Returns the shardings on this mesh; needs no device, so a mesh of absent devices will do.

  Args:
    mesh: without an axis "fsdp" everything is replicated.
    variables: the shapes of the model's variables.
    rules: "REGEX=WHERE" for names such as "MixerBlock_0/token_mixing/Dense_0/kernel"; the first whose
      expression matches a whole name counts. WHERE is "replicate", the number of the dimension to shard,
      or "auto", which is for all other parameters: the largest dimension that the axis divides, of
      parameters of at least MIN_AUTO_SIZE elements.
    state: the train state's shapes, if it is to be trained. What belongs to a parameter (a leaf below its name,
      of its shape: the optimizer's moments, the average) is sharded like it.

  Raises:
    InputError: a rule that is not of that form, decides for no parameter, or cannot be met.
  """
  replicated = NamedSharding(mesh, PartitionSpec())
  batch = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  size = mesh.shape.get("fsdp", 1)
  shapes = {_name(path): x.shape for path, x in _leaves(variables["params"])}
  parsed = rules_lib.parse("rules", rules, _PLACES, _place)
  decided = rules_lib.decide("rules", parsed, [*shapes])
  dimensions = {k: _dimension(k, shape, size, decided[k]) for k, shape in shapes.items()}

  def sharding_of(path: Any, x: Any) -> NamedSharding:
    keys = _name(path).split("/")
    for name in ("/".join(keys[i:]) for i in range(len(keys))):
      if size > 1 and shapes.get(name) == x.shape and (dim := dimensions[name]) != REPLICATED:
        return NamedSharding(mesh, PartitionSpec(*[None] * dim, "fsdp"))
    return replicated

  placed = [jax.tree_util.tree_map_with_path(sharding_of, tree) for tree in (variables, state)]
  return Shardings(placed[0], batch, replicated, placed[1])


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
  return jax.tree_util.tree_leaves_with_path(tree)


def _name(path: Any) -> str:
  """Returns the names of the dictionaries on the path, joined; positions in tuples are left out."""
  return "/".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def _place(text: str) -> str:
  if text not in ("auto", "replicate") and not text.isdecimal():
    raise ValueError(f"{text!r} is none of them")
  return text


def _dimension(
  name: str, shape: tuple[int, ...], size: int, rule: rules_lib.Rule[str] | None
) -> int:
  """Returns the dimension of a parameter that is sharded, `size` times, or REPLICATED."""
  place = "auto" if rule is None else rule.value
  if place == "replicate":
    return REPLICATED
  if place == "auto":
    divisible = [i for i, length in enumerate(shape) if length % size == 0]
    large = divisible and math.prod(shape) >= MIN_AUTO_SIZE
    return max(divisible, key=lambda i: shape[i]) if large else REPLICATED
  if int(place) >= len(shape) or shape[int(place)] % size:
    raise InputError(
      f"rules: {rule and rule.text!r} decides for {name} of shape {shape}, which has no dimension "
      f"{place} that fsdp {size} divides."
    )
  return int(place)


def shard_dim(sharding: NamedSharding) -> int:
  """Returns which dimension of a parameter is sharded along "fsdp", or REPLICATED."""
  spec = tuple(sharding.spec)
  return spec.index("fsdp") if "fsdp" in spec else REPLICATED


def make_gather(param_shardings: Any) -> Callable[[Any], Any]:
  """Returns params -> params, whole on every device; gradients through it come back as shards."""

  def gather(sharding: NamedSharding, p: jax.Array) -> jax.Array:
    if sharding.is_fully_replicated:
      return p
    whole = NamedSharding(sharding.mesh, PartitionSpec())

    @jax.custom_vjp
    def gathered(p: jax.Array) -> jax.Array:
      return jax.lax.with_sharding_constraint(p, whole)

    # Left to itself, the transpose would sum whole gradients on every device.
    gathered.defvjp(
      lambda p: (gathered(p), None), lambda _, g: (jax.lax.with_sharding_constraint(g, sharding),)
    )
    return gathered(p)

  return lambda params: jax.tree.map(gather, param_shardings, params)


class Placement(NamedTuple):
  """Where parameters of one kind live.

  Attributes:
    name: of the parameters, the blocks' numbers as "*".
    number: parameters of this name.
    shape: of one.
    dim: dimension that is sharded along "fsdp", or REPLICATED.
    params_bytes, state_bytes: per device, of all `number`; of the parameters, and with the optimizer's
      moments and the average.
  """

  name: str
  number: int
  shape: tuple[int, ...]
  dim: int
  params_bytes: int
  state_bytes: int


def bytes_per_device(abstract: Any, shardings: Any) -> int:
  """Returns the bytes that a tree of arrays takes on one device."""
  sizes = jax.tree.map(
    lambda x, s: math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize, abstract, shardings
  )
  return sum(jax.tree.leaves(sizes))


def describe(abstract_state: Any, shardings: Shardings) -> list[Placement]:
  """Returns where the parameters live, those of equal blocks together, in the order of the model."""
  other_bytes: collections.Counter[str] = collections.Counter()
  state = shardings.state
  for part in ("opt_state", "ema"):
    for name, x, s in _placed(getattr(abstract_state, part), getattr(state, part)):
      other_bytes[name] += bytes_per_device(x, s)
  found: dict[tuple[Any, ...], Placement] = {}
  for name, x, s in _placed(abstract_state.params, state.params):
    size = bytes_per_device(x, s)
    state_size = size + sum(
      v for k, v in other_bytes.items() if k == name or k.endswith(f"/{name}")
    )
    pattern = re.sub(r"_\d+(?=/.*/)", "_*", name)
    key = (pattern, x.shape, shard_dim(s))
    before = found.get(key, Placement(pattern, 0, x.shape, key[2], 0, 0))
    found[key] = before._replace(
      number=before.number + 1,
      params_bytes=before.params_bytes + size,
      state_bytes=before.state_bytes + state_size,
    )
  return list(found.values())


def _placed(tree: Any, shardings: Any) -> Iterator[tuple[str, Any, NamedSharding]]:
  for (path, x), sharding in zip(_leaves(tree), jax.tree.leaves(shardings), strict=True):
    yield _name(path), x, sharding


def table(placements: Iterable[Placement]) -> str:
  """Returns the placements as text, a line each, with the sums."""
  placements = list(placements)
  lines = [("parameter", "number", "shape", "sharded", "MB a device", "with state")]
  for p in placements:
    sharded = "no" if p.dim == REPLICATED else f"dim {p.dim}"
    lines.append((p.name, str(p.number), str(p.shape), sharded, *_megabytes([p])))
  lines.append(("all", str(sum(p.number for p in placements)), "", "", *_megabytes(placements)))
  return tables.as_text(lines, right=range(1, 6))


def _megabytes(placements: list[Placement]) -> tuple[str, str]:
  params, state = (
    sum(sizes) for sizes in zip(*((p.params_bytes, p.state_bytes) for p in placements), strict=True)
  )
  return f"{params / 1e6:.3f}", f"{state / 1e6:.3f}"


def local_rows(batch: NamedSharding, batch_size: int) -> np.ndarray:
  """Returns the rows of the global batch, ascending, that this process's devices hold: int (n,)."""
  slices = batch.addressable_devices_indices_map((batch_size,)).values()
  return np.unique(np.concatenate([np.arange(batch_size)[s] for s in slices]))


def put_batch(
  local: dict[str, np.ndarray], batch: NamedSharding, rows: np.ndarray, batch_size: int
) -> dict[str, jax.Array]:
  """Puts this process's rows on its devices and returns the global batch.

  Args:
    local: arrays of shape (len(rows), ...).
    rows: their positions in the global batch, ascending, from `local_rows`.
    batch_size: rows of the global batch.
  """

  def put(array: np.ndarray) -> jax.Array:
    shape = (batch_size, *array.shape[1:])

    def shard(index: Any) -> np.ndarray:
      start, stop, _ = index[0].indices(batch_size)
      first = np.searchsorted(rows, start)
      return array[first : first + stop - start]

    return jax.make_array_from_callback(shape, batch, shard)

  return {key: put(array) for key, array in local.items()}
