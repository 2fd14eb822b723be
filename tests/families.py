"""Models of any family: with random parameters everywhere, and those that the authors' code was recorded with."""

import jax
import jax.numpy as jnp
import numpy as np

from mixer_jax import models, weights
from mixer_jax.weights import torch_layout
from tests.conftest import GOLDEN

VIT = dict(
  num_classes=5, patch_size=4, num_blocks=2, hidden_dim=16, mlp_dim=24, num_heads=2,
  representation_size=0,
)  # fmt: skip
RESNET = dict(num_classes=5, num_units=(2, 1), width=8, num_groups=4)


def random_params(family, height, width, seed=0, /, **fields):
  """Returns (module, parameters) for images of this size; activations stay of order 1."""
  model, variables = random_variables(family, height, width, seed, **fields)
  return model, variables["params"]


def random_variables(family, height, width, seed=0, /, **fields):
  """Returns (module, variables) for images of this size; activations stay of order 1."""
  model = models.build(family, **fields)
  shapes = models.abstract_variables(model, shape(family, height, width, 3))
  rng = np.random.default_rng(seed)

  def draw(path, x):
    noise = rng.standard_normal(x.shape, np.float32)
    if path[-1].key == "kernel":
      value = noise / np.prod(x.shape[:-1]) ** 0.5
    elif path[-1].key == "var":
      value = np.exp(0.2 * noise)
    else:
      value = (path[-1].key in ("scale", "gamma", "alpha")) + 0.2 * noise
    return value.astype(np.float32)

  return model, jax.tree_util.tree_map_with_path(draw, shapes)


def shape(family, height, width, channels):
  """Returns the shape of an image, or of the shortest clip that every arrangement in time goes with."""
  return (*(16,) * (family == "mlp3d"), height, width, channels)


def image(*shape, seed=1):
  return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


def golden(name, nchw):
  """Returns (module, variables, recorded arrays by name, images and maps channels last)."""
  found = weights.load(GOLDEN / f"{name}.safetensors")
  origin = weights.describe(found)
  recorded = {
    k: v.transpose(0, 2, 3, 1) if nchw and v.ndim == 4 and "grad" not in k else v
    for k, v in np.load(GOLDEN / f"{name}.npz").items()
  }
  recorded["image"] = jnp.asarray(recorded["image"])
  return models.build(origin.family, **origin.fields), found, recorded


def assert_close(have, want, relative=3e-6, absolute=1e-6):
  """The tolerance of the data's README: in parts of the largest value."""
  np.testing.assert_allclose(have, want, atol=relative * np.abs(want).max() + absolute, rtol=0)


def mean_loss(model, labels):
  @jax.jit(static_argnums=3)
  def loss(params, stats, image, train):
    tree = {"params": params, "batch_stats": stats}
    logits, new = model.apply(tree, image, train=train, mutable=["batch_stats", "intermediates"])
    log_probs = jax.nn.log_softmax(logits)
    value = -jnp.mean(log_probs[jnp.arange(len(labels)), labels])
    seen = models.sown_by_name(new.get("intermediates", {}))
    return value, ({"logits": logits, **seen}, new.get("batch_stats", {}))

  return jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=3)


def assert_is_recorded(model, found, recorded, maps=None, *, train=False, positions=None):
  """Compares logits, maps, the loss, its gradients and, after a training pass, the running statistics.

  All are compiled once, which takes most of the time.

  Args:
    model, found, recorded: from `golden`.
    maps: name that the model sows -> recorded name, of evaluation alone; default: the four stages.
    train: take the batch's statistics.
    positions: torch's name of a BatchNorm -> positions in each image that enter its statistics.
  """
  prefix = "train/" if train else ""
  maps = {f"stage_{i}": f"stage{i}" for i in range(1, 5)} if maps is None else maps
  (value, (seen, stats)), grads = mean_loss(model, recorded["labels"])(
    found["params"], found.get("batch_stats", {}), recorded["image"], train
  )
  assert_close(value, recorded[f"{prefix}loss"][0])
  names = {} if train else {"pre_logits": "pre_logits", **maps}
  for sown, name in {"logits": f"{prefix}logits", **names}.items():
    assert_close(seen[sown], recorded[name])
  tree = {"params": grads} | ({"batch_stats": stats} if stats else {})
  theirs, before = torch_layout.to_torch(tree), torch_layout.to_torch(found)
  wanted = {k for k in recorded if k.startswith(f"{prefix}grad/")}
  for key in wanted:
    assert_close(theirs[key.removeprefix(f"{prefix}grad/")], recorded[key], 5e-6, 5e-6)
  assert len(wanted) > 10
  for name, value in theirs.items() if train else ():
    if name.endswith("running_mean"):
      assert_close(value, recorded[f"train/buffers/{name}"])
    if name.endswith("running_var"):  # torch keeps the batch's variance times n/(n - 1)
      n = len(recorded["image"]) * positions(name)
      batch = (value - 0.9 * before[name]) * n / (n - 1)
      assert_close(0.9 * before[name] + batch, recorded[f"train/buffers/{name}"])
