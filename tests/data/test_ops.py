"""Decoding, crops and resizing against the pixels of the authors' TensorFlow pipeline, to the bit."""

import pickle

import cv2
import numpy as np
import pytest

from mixer_jax.data import ops, randaugment
from mixer_jax.data.preprocess import Preprocess
from mixer_jax.errors import InputError
from tests.conftest import GOLDEN
from tests.encoded import encode, golden_jpeg

EXACT = [
  "photo_china",
  "photo_astronaut",
  "photo_coffee",
  "extra_gray",
  "extra_tiny",
  "extra_exif6",
]
ALL = [*EXACT, "extra_cmyk"]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def golden():
  return dict(np.load(GOLDEN / "preprocess.npz"))


@pytest.mark.parametrize("name", EXACT)
def test_decoding_is_tensorflows(golden, name):
  np.testing.assert_array_equal(ops.decode_image(golden_jpeg(name)), golden[f"{name}/decoded"])


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(
  ("text", "key"),
  [
    ("decode|resize_small(256)|central_crop", "eval_resize_small256_crop224"),
    ("decode|resize(256)|central_crop", "fewshot_resize256_crop224"),
  ],
)
def test_evaluation_pipelines_are_the_authors(golden, name, text, key):
  result = Preprocess(text, (224, 224, 3))({"image": golden_jpeg(name), "label": 3}, RNG)
  np.testing.assert_array_equal(result["image"], golden[f"{name}/{key}"])
  assert result["label"] == 3


@pytest.mark.parametrize("name", ALL)
def test_resize_small_shape(golden, name):
  height, width = golden[f"{name}/decoded"].shape[:2]
  assert (*ops.resize_small_shape(height, width, (256, 256)), 3) == tuple(
    golden[f"{name}/resize_small256_shape"]
  )


@pytest.mark.parametrize("name", [n for n in ALL if n != "extra_exif6"])
def test_crops_are_the_authors(golden, name):
  """Exact where partial and full JPEG decoding agree; elsewhere only an edge column may differ."""
  for i in range(int(golden[f"{name}/num_crops"])):
    y, x, h, w = golden[f"{name}/crop{i}_box_yxhw"]
    crop = golden[f"{name}/decoded"][y : y + h, x : x + w]
    got = ops.resize_bilinear(crop, 224, 224).astype(int)
    difference = np.abs(got - golden[f"{name}/crop{i}_resized224"])
    allowed = int(golden[f"{name}/crop{i}_partial_vs_full_decode_maxabsdiff"])
    assert difference.max() <= allowed
    if allowed and name != "extra_tiny":
      assert np.count_nonzero(difference) < 1000


def test_default_sizes_follow_the_papers_ratio(golden):
  example = {"image": golden_jpeg("photo_china"), "label": 0}
  for explicit, default in (
    ("decode|resize_small(256)|central_crop", "decode|resize_small|central_crop"),
    ("decode|resize(size_px=256)|central_crop", "decode|resize|central_crop"),
  ):
    a, b = (Preprocess(t, (224, 224, 3))(example, RNG)["image"] for t in (explicit, default))
    np.testing.assert_array_equal(a, b)
  resized = ops.resize_small((448, 448))({"image": golden["photo_china/decoded"], "label": 0}, RNG)
  assert min(resized["image"].shape[:2]) == 512


def plain_bilinear(image, height, width):
  """The authors' formula, value by value in float32."""

  def taps(size, new_size):
    scale = np.float32(size) / np.float32(new_size)
    place = (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    floor = np.floor(place)
    first, second = np.maximum(floor, 0), np.minimum(np.ceil(place), size - 1)
    return first.astype(int), second.astype(int), place - floor

  left, right, wx = taps(image.shape[1], width)
  top, bottom, wy = taps(image.shape[0], height)
  pixels = image.astype(np.float32)
  rows = pixels[:, left] + (pixels[:, right] - pixels[:, left]) * wx[:, None]
  resized = rows[top] + (rows[bottom] - rows[top]) * wy[:, None, None]
  return np.clip(resized, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["noise", "steps", "white", "checks"])
def test_bilinear_resizing_is_the_plain_formula(kind):
  """Shrunk, enlarged, oblong, tiny, whole and half steps; with flat areas, and with the steepest."""
  rng = np.random.default_rng(0)
  sizes = [(1, 1), (1, 9), (7, 3), (112, 224), (224, 224), (225, 223), (448, 336), (90, 700)]
  sizes += [tuple(rng.integers(2, 600, 2)) for _ in range(6)]
  for h, w in sizes:
    image = rng.integers(0, 256, (h, w, 3), np.uint8)
    if kind == "steps":
      image = image // 64 * 85
    elif kind == "white":
      image[:, : w // 2] = 255
    elif kind == "checks":
      image[:] = (np.indices((h, w)).sum(0) % 2 * 255)[:, :, None]
    for new_h, new_w in ((224, 224), (60, 101)):
      got = ops.resize_bilinear(image[::-1], new_h, new_w)
      np.testing.assert_array_equal(got, plain_bilinear(image[::-1], new_h, new_w), f"{h}×{w}")


def test_fast_resizing_rounds_what_the_exact_one_truncates():
  image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
  off = ops.resize_bilinear_fast(image, 224, 224).astype(int) - plain_bilinear(image, 224, 224)
  assert set(np.unique(off)) == {0, 1}
  assert 0.3 < np.mean(off) < 0.5
  flat = np.full((375, 500, 3), 201, np.uint8)
  np.testing.assert_array_equal(ops.resize_bilinear_fast(flat, 224, 224), flat[:224, :224])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["exact", "pillow"])
@pytest.mark.parametrize("name", [n for n in ALL if n not in ("photo_astronaut", "photo_coffee")])
@pytest.mark.parametrize(
  "crop", ["inception_crop({})", "random_resized_crop({}, interpolation='random')"]
)
def test_a_crop_that_decodes_its_box_alone_draws_and_shows_the_same(
  monkeypatch, crop, name, mode, channels
):
  made = f"decode(mode='{mode}')|{crop.format('area_min=20')}|flip", (96, 80, channels)
  fused = Preprocess(*made)
  monkeypatch.setattr(ops, "CROPS", {})
  apart, drawn = Preprocess(*made), ""
  for seed in range(12):
    got, want = (
      p({"image": golden_jpeg(name), "label": 1}, np.random.default_rng(seed))
      for p in (fused, apart)
    )
    np.testing.assert_array_equal(got["image"], want["image"])
    assert got["drawn"] == want["drawn"]
    drawn += str(got["drawn"])
  assert crop.startswith("inception") or ("bilinear" in drawn and "bicubic" in drawn)


def test_fast_crops_are_close_to_exact_ones():
  # Blurred, since ordinary photos differ: exact crops alias where fast ones average.
  photo = cv2.GaussianBlur(
    cv2.resize(ops.decode_image(golden_jpeg("photo_china")), (1000, 750)), (0, 0), 5
  )
  data = cv2.imencode(".jpg", photo)[1]
  example = {"image": data.tobytes(), "label": 0}
  exact, fast = (
    Preprocess(f"decode(mode='{m}')|inception_crop|flip", (96, 96, 3)) for m in ("exact", "fast")
  )
  for seed in range(10):
    a, b = (p(example, np.random.default_rng(seed)) for p in (exact, fast))
    assert a["drawn"] == b["drawn"]
    assert np.abs(a["image"].astype(int) - b["image"]).mean() < 3
    assert np.abs(a["image"][:, ::-1].astype(int) - b["image"]).mean() > 9


def test_what_was_drawn_can_be_replayed():
  pipeline = Preprocess("decode|inception_crop|flip|randaugment(2, 15)", (64, 64, 3))
  for seed in range(20):
    got = pipeline({"image": golden_jpeg("photo_coffee"), "label": 1}, np.random.default_rng(seed))
    (_, (y, x, h, w)), (_, mirrored), (_, draws) = got["drawn"]
    crop = ops.decode_image(golden_jpeg("photo_coffee"))[y : y + h, x : x + w]
    image = plain_bilinear(crop, 64, 64)
    image = np.ascontiguousarray(image[:, ::-1] if mirrored else image)
    np.testing.assert_array_equal(got["image"], randaugment.apply(image, draws, magnitude=15))
    assert [name for name, _ in got["drawn"]] == ["inception_crop", "flip", "randaugment"]


def test_inception_crops_cover_their_range():
  rng = np.random.default_rng(0)
  boxes = np.array([ops.sample_box(rng, 375, 500, (0.05, 1.0)) for _ in range(4000)])
  y, x, h, w = boxes.T
  assert (y >= 0).all() and (x >= 0).all() and (y + h <= 375).all() and (x + w <= 500).all()
  area = h * w / (375 * 500)
  assert area.min() < 0.07 and area.max() > 0.9 and (area >= 0.05).all()
  # Sides are whole pixels, so the ratio may leave its range by half a pixel of width.
  assert (w <= h * 1.33 + 0.5).all() and (w >= h * 0.75 - 0.5).all()
  # The height, not the area, is uniform: large areas are rarer than under a uniform area.
  assert 0.30 < np.median(area) < 0.42


def test_whole_image_when_no_box_fits():
  assert ops.sample_box(np.random.default_rng(0), 4, 1000, (0.9, 1.0)) == (0, 0, 4, 1000)


def test_flip_mirrors_half_of_the_images():
  image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
  op, rng = ops.flip(), np.random.default_rng(0)
  flipped = [
    np.array_equal(op({"image": image, "label": 0}, rng)["image"], image[:, ::-1])
    for _ in range(2000)
  ]
  assert abs(np.mean(flipped) - 0.5) < 0.03


def test_a_pipeline_is_pure_and_pickles(golden):
  pipeline = Preprocess("decode|inception_crop|flip|randaugment(2, 15)", (224, 224, 3))
  example = {"image": golden_jpeg("photo_coffee"), "label": 1}
  first = pipeline(example, np.random.default_rng(7))["image"]
  again = pickle.loads(pickle.dumps(pipeline))(example, np.random.default_rng(7))["image"]
  np.testing.assert_array_equal(first, again)
  assert np.any(first != pipeline(example, np.random.default_rng(8))["image"])


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("decode|incepton_crop", "Did you mean 'inception_crop'"),
    ("decode|resize_small(size=3)", "Did you mean 'size_px'"),
    ("decode|resize('big')", "expected"),
    ("decode|flip(1, 2)", "at most 0"),
    ("decode|__import__('os')", "unknown operation '__import__'"),
    ("decode|resize(__import__('os'))", "is not an operation such as"),
    ("decode|a.b(1)", "is not an operation such as"),
    ("decode||flip", "is not an operation such as"),
    ("flip", "must start with 'decode'"),
    ("decode|randaugment(2)", "magnitude is missing"),
    ("decode(mode='quick')|inception_crop", "expected one of 'exact', 'fast'"),
    ("decode(mode='fast')|resize(224)", "put inception_crop right after it"),
    ("decode(mode='fast')|random_resized_crop", "put inception_crop right after it"),
    ("decode|inception_crop(area=3)", "Did you mean 'area_m"),
    ("decode|permute_patches(5)", "patch_size 5 does not divide the image of 224x224"),
    ("decode|timm_randaugment('m9')", "must start with 'rand'"),
    ("decode|timm_randaugment('rand-m9-w0')", r"rand-m9-w0'\.w is not read"),
    ("decode|timm_randaugment('rand-m9-tweights')", "'tweights'"),
    ("decode|timm_randaugment('rand-m9-m8')", "'m8' is given twice"),
    ("decode|timm_randaugment('rand-m9.5')", r"\.m is 9\.5"),
    ("decode|timm_randaugment('rand-p1.5')", r"\.p is 1\.5"),
    ("decode|timm_randaugment('rand-inc2')", r"\.inc is 2"),
    ("decode|timm_randaugment('rand-m9', 'lanczos')", "interpolation is 'lanczos'"),
    ("decode|timm_randaugment", "policy is missing"),
    ("decode|resize_short(crop_pct=1.1)", r"crop_pct is 1\.1"),
    ("decode|resize_short(crop_pct=0)", "crop_pct is 0"),
    ("decode|resize_short(interpolation='random')", "interpolation is 'random'"),
    ("decode|central_crop('up')", "rounding is 'up'"),
    ("decode|color_jitter(-1)", "strength is -1"),
    ("decode|random_resized_crop(area_min=0)", "area_min is 0"),
    ("decode|random_resized_crop(area_min=50, area_max=20)", "area_min is 50"),
  ],
)
def test_bad_pipelines_are_named(text, message):
  with pytest.raises(InputError, match=message):
    Preprocess(text, (224, 224, 3))


def test_a_pipeline_that_leaves_another_size_is_refused():
  with pytest.raises(InputError, match=r"instead of \(224, 224\)"):
    Preprocess("decode|resize(256)", (224, 224, 3))(
      {"image": golden_jpeg("photo_china"), "label": 0}, RNG
    )


# --- rectangles, grey and alpha ---------------------------------------------------------------------

RECTANGLE = (24, 40)
PIPELINES = [
  "decode|inception_crop(area_min=20)|flip", "decode(mode='fast')|inception_crop|flip", "decode|resize_small|central_crop",
  "decode|resize|random_crop", "decode|resize(30, 50)|central_crop", "decode|resize(24, 40)|permute_patches(8)",
  "decode|resize(24, 40)|permute_pixels", "decode|random_resized_crop(interpolation='random')|flip",
  "decode|resize_short|central_crop(rounding='even')",
]  # fmt: skip


def encoded(image, extension=".png"):
  image = image[..., [2, 1, 0, 3][: image.shape[2]]] if image.shape[2] > 1 else image
  return {"image": encode(extension, image), "label": 0}


def run(text, image, channels, extension=".png"):
  preprocess = Preprocess(text, (*RECTANGLE, channels))
  return preprocess(encoded(image, extension), np.random.default_rng(3))


def test_rectangles_are_cropped_and_resized_as_the_plain_formula_says():
  image = np.random.default_rng(0).integers(0, 256, (61, 83, 3), np.uint8)
  got = run("decode|inception_crop(area_min=20)", image, 3)
  ((_, (y, x, h, w)),) = got["drawn"]
  crop = image[y : y + h, x : x + w]
  np.testing.assert_array_equal(got["image"], plain_bilinear(crop, *RECTANGLE))
  whole = plain_bilinear(image, 27, 46)  # ·256/224
  np.testing.assert_array_equal(
    run("decode|resize|central_crop", image, 3)["image"], whole[1:25, 3:43]
  )
  got = run("decode|resize|random_crop", image, 3)
  ((_, (y, x)),) = got["drawn"]
  np.testing.assert_array_equal(got["image"], whole[y : y + 24, x : x + 40])


def test_pad_keeps_the_image_in_the_middle():
  image = np.random.default_rng(0).integers(0, 256, (21, 40, 3), np.uint8)
  got = run("decode|pad", image, 3)["image"]
  np.testing.assert_array_equal(got[1:22], image)
  assert not got[[0, 22, 23]].any()


@pytest.mark.parametrize(("shape", "covering"), [((64, 64), (46, 46)), ((30, 120), (27, 108))])
def test_the_default_of_resize_small_covers_a_rectangle(shape, covering):
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  y, x = ((have - want) // 2 for have, want in zip(covering, RECTANGLE, strict=True))
  np.testing.assert_array_equal(
    run("decode|resize_small|central_crop", image, 3)["image"],
    ops.resize_area(image, *covering)[y : y + 24, x : x + 40],
  )


@pytest.mark.parametrize("text", [*PIPELINES, "decode|resize(24, 40)|randaugment(2, 15)"])
@pytest.mark.parametrize("extension", [".png", ".jpg"])
def test_a_grey_image_is_one_channel_of_three(text, extension):
  image = np.random.default_rng(0).integers(0, 256, (61, 83, 1), np.uint8)
  got, three = (run(text, image, channels, extension) for channels in (1, 3))
  assert got["image"].shape == (*RECTANGLE, 1)
  np.testing.assert_array_equal(got["image"], three["image"][..., :1])
  assert got.get("drawn") == three.get("drawn")


@pytest.mark.parametrize("text", PIPELINES)
def test_alpha_goes_with_its_pixels(text):
  image = np.random.default_rng(0).integers(0, 256, (61, 83, 4), np.uint8)
  got = run(text, image, 4)["image"]
  np.testing.assert_array_equal(got[..., :3], run(text, image[..., :3], 3)["image"])
  np.testing.assert_array_equal(got[..., 3:], run(text, image[..., 3:], 1)["image"])


@pytest.mark.parametrize(
  "call", ["randaugment(2, 15)", "timm_randaugment('rand-m9-mstd0.5-inc1')", "color_jitter"]
)
def test_operations_on_colours_have_no_alpha(call):
  with pytest.raises(InputError, match="image_channels must be 1 or 3"):
    Preprocess(f"decode|resize|central_crop|{call}", (16, 16, 4))


@pytest.mark.parametrize(
  "text",
  [
    "decode|resize(0)", "decode|resize(-3)", "decode|resize(1000000000)", "decode|resize_small(100000)",
    "decode|decode", "decode|inception_crop(-5, 3)", "decode|randaugment(-1, 3)", "decode|permute_patches(0)",
    "decode|permute_pixels(-1)", "decode|timm_randaugment('rand-m9-n999999999999')",
    "decode|random_resized_crop(50, 20)", "decode|permute_patches(3)", "decode|inception_crop(90, 10)", "decode|inception_crop(1e-30)",
    "decode|resize(width_px=8)", "decode|resize(8, size_px=9)", "decode|resize(16384)", "decode|resize_small(16384)",
    "decode|flip({[]: 1})", f"decode|resize({'-' * 5000}1)", f"decode|resize({'(' * 500}1{')' * 500})", "decode|randaugment(2, 1e30)",
    "decode|timm_randaugment('rand-m9-mstd100000')", "decode|color_jitter(1e30)",
  ],
)  # fmt: skip
def test_impossible_arguments_are_named_with_their_place(text):
  with pytest.raises(InputError, match=r"^config\.data\.ops"):
    Preprocess(text, (16, 16, 3), "config.data.ops")


@pytest.mark.parametrize("crop", ["central_crop", "random_crop"])
def test_a_crop_of_a_smaller_image_is_refused(crop):
  image = np.random.default_rng(0).integers(0, 256, (12, 50, 3), np.uint8)
  with pytest.raises(
    InputError, match=r"12x50 pixels, before its crop, is smaller than the crop, 24x40"
  ):
    run(f"decode|{crop}|resize(24, 40)", image, 3)
