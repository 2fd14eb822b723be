"""Moving Fashion-MNIST: only the order of the tubelets tells a class, and only a model that mixes time learns it."""

import numpy as np
import pytest

from benchmarks import moving_fashion
from mixer_jax.data import fashion_mnist, videos


def test_tubelets_tell_nothing_of_the_class(tmp_path):
  """After mp4 and JPEG, all classes have the same four tubelets to the bit, of the same draws, in other orders."""
  image = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
  seen = []
  for order in moving_fashion.CLASSES:
    frames = moving_fashion.clip(image, np.random.default_rng(1), order)
    (tmp_path / "x.mp4").write_bytes(moving_fashion.encode(frames))
    encoded = videos.read(str(tmp_path / "x.mp4"))
    seen.append([b"".join(encoded[i : i + 4]) for i in range(0, 16, 4)])
  assert len({*seen[0]}) == 4 and len({tuple(tubelets) for tubelets in seen}) == 6
  assert all(sorted(tubelets) == sorted(seen[0]) for tubelets in seen)


def test_each_motion_begins_anew_and_moves_as_it_is_called():
  image = np.full((28, 28), 255, np.uint8)
  order = moving_fashion.CLASSES[0]
  starts = set()
  for seed in range(50):
    frames = moving_fashion.clip(image, np.random.default_rng(seed), order)
    corners = np.array([np.argwhere(frame)[0] for frame in frames]).reshape(4, 4, 2)
    for name, tubelet in zip(order, corners, strict=True):
      np.testing.assert_array_equal(
        np.diff(tubelet, axis=0), [3 * np.array(moving_fashion.MOTIONS[name])] * 3
      )
    assert np.count_nonzero(frames) == frames.shape[0] * 14 * 14
    starts.add(tuple(corners[1, 0] - corners[0, 3]))
  assert len(starts) > 40


@pytest.mark.campaign
@pytest.mark.skipif(not fashion_mnist.is_installed(), reason="apt install dataset-fashion-mnist")
def test_only_a_model_that_mixes_time_learns_the_order(tmp_path):
  """Of 600 videos a guess among six has a standard deviation of 1.5 %."""
  top1 = moving_fashion.results(tmp_path)
  assert top1["mixed"] >= 0.95
  assert abs(top1["alone"] - 1 / 6) < 0.06
