"""A trained model without a configuration: what it makes of pixels and of files, and how its head was trained."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mixer_jax
from mixer_jax import losses, models
from mixer_jax.data import imagenet, sources
from mixer_jax.errors import InputError
from mixer_jax.inference import trained
from tests.conftest import GOLDEN

FILE = GOLDEN / "mixer_tiny_checkpoint.npz"


@pytest.fixture(scope="module")
def model():
  return mixer_jax.load(FILE)


def test_pixels_of_any_size_are_what_their_file_is(model, tmp_path):
  """One, several, a batch or grey; features are those of the module on what it is given of them."""
  image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
  cv2.imwrite(str(tmp_path / "x.png"), image[..., ::-1])
  want = model.predict(str(tmp_path / "x.png"))
  assert len(want[0]) == 5
  assert model.predict(image) == want
  assert model.predict([image, image]) == model.predict(np.stack([image, image])) == want * 2
  assert model.predict(image[..., 0]) == model.predict(np.repeat(image[..., :1], 3, axis=-1))


def test_features_are_those_of_the_module(model):
  """Of an image that the preprocessing leaves as it is."""
  image = np.random.default_rng(0).integers(0, 256, (2, 18, 18, 3), np.uint8)
  seen = model.setup.normalize(
    jnp.asarray(image[:, 1:17, 1:17])
  )  # resized to 18 of 16 pixels, then cropped
  want = {"logits": model.module.apply(model.variables, seen), **mixer_jax.features(*model, seen)}
  found = model.features(image)
  assert found.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_allclose(found[name], value, atol=1e-5)


@pytest.mark.parametrize(
  "image", [np.zeros((3, 20, 20), np.uint8), np.zeros((20, 20, 3)), np.zeros((20, 20, 4), np.uint8)]
)
def test_what_are_no_pixels_is_named(model, image):
  with pytest.raises(InputError, match=r"image 1 .*uint8 \(height, width, 3\)"):
    model.predict([np.zeros((20, 20, 3), np.uint8), image])


@pytest.mark.parametrize("loss", ["sigmoid_xent", "softmax_xent"])
def test_the_biases_of_a_head_tell_its_loss(loss):
  """Of a linear classifier trained by Adam on ten classes that overlap."""
  labels = np.arange(200) % 10
  x = np.eye(10)[labels] + np.random.default_rng(0).normal(size=(200, 10))
  params = {"kernel": jnp.zeros((10, 10)), "bias": jnp.zeros(10)}
  tx = optax.adam(0.05)

  def step(carry, _):
    params, state = carry
    grads = jax.grad(
      lambda p: losses.LOSSES[loss](x @ p["kernel"] + p["bias"], jnp.eye(10)[labels]).mean()
    )(params)
    updates, state = tx.update(grads, state)
    return (optax.apply_updates(params, updates), state), None

  (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), length=300)
  for family in ("mixer", "resnet"):
    head = next(iter(models.FAMILIES[family].HEAD))
    tree = params
    for part in reversed(head.split("/")):
      tree = {part: tree}
    assert trained._loss_of({"params": tree}, family) == loss


def test_imagenets_classes_are_those_of_tfds_and_have_words():
  ids = imagenet.class_ids(1000)
  assert ids == sources.class_names(dataset="imagenet2012", data_dir=None, label=None)
  words = imagenet.in_words([*ids, "n1", "Katze"])
  assert words[0] == "tench (n01440764)" and words[-2:] == ["n1", "Katze"]
  for count, first in ((21843, "organism (n00004475)"), (11221, "benthos (n00005787)")):
    found = imagenet.class_ids(count)
    assert len(set(found)) == count and found == sorted(found)
    assert imagenet.in_words(found[:1]) == [first]
  assert imagenet.class_ids(10) == []
