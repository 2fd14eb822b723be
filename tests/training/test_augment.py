"""Erasing, mixing and targets against timm's recorded results; today's stream; independence of the devices."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from mixer_jax import schema
from mixer_jax.parallel import sharding
from mixer_jax.training import augment, normalization, state, step
from tests.conftest import GOLDEN
from tests.marks import long
from tests.training.steps import batches

MISC = json.loads((GOLDEN / "family/aug_misc.json").read_text())
MIXED = np.load(GOLDEN / "family/aug_mixup_losses.npz")
RECIPE = dict(erasing_p=0.5, mixup_p=0.8, cutmix_p=1.0, pairing="flip", label_smoothing=0.1)
BATCH, CLASSES = 16, 10


def make(num_classes, normalize=normalization.unit, **changes):
  section = vars(schema.Augment(**changes))
  return augment.make_augment(normalize=normalize, num_classes=num_classes, **section)


def pixels(*shape):
  return jnp.asarray(np.random.default_rng(0).integers(0, 256, shape, np.uint8))


# --- mixup as it was --------------------------------------------------------------------------------


def test_mixup_mixes_neighbours_of_the_whole_batch():
  levels, label = np.asarray(pixels(6, 2, 2, 3)), np.eye(6)
  image = levels / 255 * 2 - 1
  mix = make(6, mixup_p=0.5)
  shares = []
  for seed in range(200):
    mixed, labels = mix(jax.random.key(seed), jnp.asarray(levels), jnp.arange(6))
    a = float(labels[0, 0])
    np.testing.assert_allclose(labels, a * label + (1 - a) * np.roll(label, 1, axis=0), atol=1e-6)
    np.testing.assert_allclose(mixed, a * image + (1 - a) * np.roll(image, 1, axis=0), atol=1e-5)
    shares.append(a)
  assert min(shares) >= 0.5
  # max(a, 1 − a) of Beta(½, ½), the arcsine law, has mean ½ + 1/π.
  assert abs(np.mean(shares) - (0.5 + 1 / np.pi)) < 0.03


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_mixup_alone_gives_the_bits_of_earlier_versions(p):
  """The share is drawn from the step's key itself."""

  @jax.jit
  def earlier(key, image, label):
    a = jax.random.beta(key, p, p)
    a, target = jnp.maximum(a, 1.0 - a), jax.nn.one_hot(label, 6)
    unit, other = normalization.unit, jnp.roll(image, 1, axis=0)
    return a * unit(image) + (1.0 - a) * unit(other), a * target + (1.0 - a) * jnp.roll(
      target, 1, axis=0
    )

  today = jax.jit(make(6, mixup_p=p))
  for seed in range(20):
    batch = (jax.random.key(seed), pixels(6, 4, 4, 3), jnp.arange(6))
    jax.tree.map(np.testing.assert_array_equal, today(*batch), earlier(*batch))


def test_without_mixup_nothing_is_mixed():
  image = pixels(2, 2, 2, 1)
  values, targets = make(3)(jax.random.key(0), image, jnp.array([[2, 0], [1, -1]]))
  np.testing.assert_array_equal(values, normalization.unit(image))
  np.testing.assert_array_equal(targets > 0, [[True, False, True], [False, True, False]])


@pytest.mark.parametrize("changes", [dict(cutmix_p=1.0), dict(erasing_p=1.0)])
def test_all_frames_of_a_clip_are_changed_alike(changes):
  """Each frame is what it is as an image; but for the noise in the erased box, whose place is the same."""
  image, label = pixels(4, 3, 16, 12, 3), jnp.arange(4)
  change, key = jax.jit(make(6, **changes)), jax.random.key(3)
  values, targets = change(key, image, label)
  assert np.abs(values - normalization.unit(image)).max() > 0.1
  for t in range(3):
    frame, alone = change(key, image[:, t], label)
    np.testing.assert_array_equal(targets, alone)
    if "erasing_p" in changes:
      same = normalization.unit(image[:, t])
      np.testing.assert_array_equal(values[:, t] == same, frame == same)
    else:
      np.testing.assert_array_equal(values[:, t], frame)


# --- timm's results on the same draws ---------------------------------------------------------------


@pytest.mark.parametrize("row", [r for r in MISC["random_erasing"]["rows"] if len(r["draws"]) > 1])
def test_the_erased_box_is_timms(row):
  """The draws are whether to erase; area and log aspect of each attempt; top and left."""
  tried = [value for kind, *_, value in row["draws"] if kind == "uniform"]
  size = augment.first_that_fits(jnp.array(tried[::2]), jnp.array(tried[1::2]), *row["image"])
  assert [*map(int, size)] == row["box_top_left_height_width"][2:]


def test_where_no_attempt_fits_nothing_is_erased():
  size = augment.first_that_fits(jnp.full(10, 1 / 3), jnp.full(10, 1.2), 32, 48)
  assert [*map(int, size)] == [0, 0]


def pasted(share, y, x, size, version="timm_0.4.12"):
  """Returns the corners, and the shares of target and pixels."""
  height, width = size
  box = augment.cutmix_corners(
    jnp.float32(share), jnp.int32(y), jnp.int32(x), height, width, version
  )
  return box, augment.outside(box, height, width)


@pytest.mark.parametrize("row", MISC["cutmix_boxes"])
@pytest.mark.parametrize("version", ["timm_0.4.12", "timm_1.0.31"])
def test_the_pasted_box_is_timms(row, version):
  wanted = row["timm_0_4" if version == "timm_0.4.12" else "timm_1_0_31"]
  box, (own, pixels) = pasted(row["lam"], row["cy"], row["cx"], row["hw"], version)
  assert [*map(int, box)] == wanted["box_yl_yh_xl_xh"]
  np.testing.assert_allclose(own, wanted["corrected_lam"], atol=1e-7)
  np.testing.assert_allclose(jnp.mean(pixels), own, atol=1e-6)


def recorded(name):
  return np.moveaxis(MIXED[name], 1, -1)  # timm's channels come first


@pytest.mark.parametrize(
  ("name", "shares"),
  [
    ("mixup_lam0.3", lambda: (jnp.float32(0.3),) * 2),
    ("mixup_lam0.82", lambda: (jnp.float32(0.82),) * 2),
    ("cutmix_lam0.4_cy5_cx3", lambda: pasted(0.4, 5, 3, (12, 10))[1]),
    ("cutmix_lam0.7_cy11_cx9", lambda: pasted(0.7, 11, 9, (12, 10))[1]),
  ],
)
def test_mixed_images_and_smoothed_targets_are_timms(name, shares, monkeypatch):
  monkeypatch.setattr(augment, "draw_shares", lambda *_, **__: shares())
  image, label = recorded("mix/image"), MIXED["mix/labels"]
  table = jnp.asarray(image.reshape(-1, 3))  # no 8-bit levels: those here are pixels' numbers
  numbers = np.arange(len(table)).reshape(image.shape[:3])
  levels = jnp.uint8(np.stack([numbers // 256, numbers % 256, numbers * 0], axis=-1))
  mix = make(
    5, lambda x: table[x[..., 0].astype(int) * 256 + x[..., 1]], mixup_p=1.0, cutmix_p=1.0,
    pairing="flip", label_smoothing=0.1,
  )  # fmt: skip
  got, target = mix(jax.random.key(0), levels, jnp.asarray(label))
  np.testing.assert_allclose(got, recorded(f"mix/{name}/image"), atol=1e-6)
  np.testing.assert_allclose(target, MIXED[f"mix/{name}/target"], atol=1e-6)


# --- what is drawn ----------------------------------------------------------------------------------


def test_erased_images_lose_one_box_to_unit_normals():
  image = jnp.full((400, 24, 32, 3), 7.0)
  got = np.asarray(jax.jit(augment.erase, static_argnums=2)(jax.random.key(0), image, 0.25))
  changed = (got != 7).any(3)
  assert (changed == (got != 7).all(3)).all()
  erased = changed[changed.any((1, 2))]
  assert pytest.approx(len(erased) / 400, abs=3 * np.sqrt(0.25 * 0.75 / 400)) == 0.25
  aspects, places = [], []  # height / width; the share of the free rows and columns before the box
  for box in erased:
    rows, columns = box.any(1), box.any(0)
    aspects.append(rows.sum() / columns.sum())
    places.append((rows.argmax() / (24 - rows.sum()), columns.argmax() / (32 - columns.sum())))
    np.testing.assert_array_equal(box, rows[:, None] & columns)  # a product of two ...
    assert np.abs(np.diff(rows)).sum() + np.abs(np.diff(columns)).sum() <= 4  # ... intervals
    assert 0.015 < box.mean() < 0.36  # 0.02 to 1/3, sides rounded
  assert min(aspects) < 0.4 and max(aspects) > 2.5  # 0.3 to 1 / 0.3
  np.testing.assert_array_equal((np.min(places, 0), np.max(places, 0)), ((0, 0), (1, 1)))
  np.testing.assert_allclose(np.mean(places, 0), 0.5, atol=0.1)
  noise = got[changed]
  assert (noise.mean(), noise.std()) == pytest.approx((0, 1), abs=5 / np.sqrt(noise.size))


@pytest.mark.parametrize(("mix_p", "switch_p"), [(1.0, 0.5), (0.6, 0.25)])
def test_how_often_batches_are_mixed_and_how(mix_p, switch_p):
  """Of mixed batches switch_p have CutMix's box; the shares are those of Beta(p, p)."""
  mixed, cut, shares = np.zeros(1000, bool), np.zeros(1000, bool), np.zeros(1000)
  pasted = np.zeros((64, 64))
  draw = jax.jit(
    lambda keys: augment.draw_shares(
      keys[0], keys[1], 64, 64, mixup_p=0.8, cutmix_p=0.5, switch_p=switch_p, mix_p=mix_p,
      pairing="flip", cutmix_box="timm_0.4.12",
    )
  )  # fmt: skip
  for i in range(1000):
    own, kept = draw(jax.random.split(jax.random.key(i)))
    mixed[i], cut[i], shares[i] = own < 1, len(np.unique(kept)) == 2, own
    if cut[i]:
      pasted += 1 - np.asarray(kept)[..., 0]
    assert np.mean(kept) == pytest.approx(float(own), abs=1e-6)
  assert mixed.mean() == pytest.approx(mix_p, abs=0.05)
  assert cut[mixed].mean() == pytest.approx(switch_p, abs=0.05)
  mixup = shares[mixed & ~cut]
  assert (mixup.mean(), mixup.var()) == pytest.approx((0.5, 1 / 4 / (2 * 0.8 + 1)), abs=0.05)
  for axis in (0, 1):  # the boxes lie anywhere: their pixels are spread evenly about the middle
    density = pasted.sum(axis)
    assert np.average(np.arange(64), weights=density) == pytest.approx(31.5, abs=3)


# --- independence -----------------------------------------------------------------------------------


class Witness(nn.Module):
  """A model whose gradients are the images and the targets that the step trains on."""

  @nn.compact
  def __call__(self, image, *, train=False, index=None, mask=None):
    del train, mask
    images = self.param("images", nn.initializers.zeros, (BATCH, *image.shape[1:]))
    targets = self.param("targets", nn.initializers.zeros, (BATCH, CLASSES))
    value = jnp.sum(images[index] * image, axis=(1, 2, 3))
    return jnp.concatenate([targets[index], value[:, None]], axis=1)


@functools.cache
def trained_on(num_devices, parts):
  """Returns the images and targets of a step on so many devices, in so many parts."""
  model, tx = Witness(), optax.sgd(BATCH)
  mesh = sharding.make_mesh(data=num_devices, devices=jax.devices()[:num_devices])
  zeros = {"images": jnp.zeros((BATCH, 16, 16, 3)), "targets": jnp.zeros((BATCH, CLASSES))}
  first = state.first_state({"params": zeros}, tx, seed=0, ema_decay=0.0)
  shardings = sharding.make_shardings(mesh, first.variables(), (), first)
  train_step = step.make_train_step(
    model=model, tx=tx, schedule=lambda _: jnp.ones(()), learning_rate=1.0,
    loss=lambda logits, target: logits[:, -1] + jnp.sum(logits[:, :-1] * target, axis=1),
    augment=make(CLASSES, **RECIPE), grad_accum_steps=parts, ema_decay=0.0, ema_warmup=False,
    multipliers=lambda params: jax.tree.map(lambda _: 1.0, params), param_shardings=shardings.variables["params"],
  )  # fmt: skip
  (batch,) = batches(1)
  jitted = jax.jit(train_step, in_shardings=(shardings.state, shardings.batch))
  params = jitted(first, batch)[0].params
  return -np.asarray(params["images"]), -np.asarray(params["targets"])


@pytest.mark.parametrize(("num_devices", "parts"), [long(1, 4), (2, 1), long(4, 1), (4, 4)])
def test_the_recipe_gives_the_same_bits_on_any_devices_in_any_parts(num_devices, parts):
  image, target = trained_on(1, 1)
  assert target.max() < 0.91 and image.min() < -1.01  # mixed and smoothed; erased
  got = trained_on(num_devices, parts)
  np.testing.assert_array_equal(got[0], image)
  np.testing.assert_array_equal(got[1], target)
