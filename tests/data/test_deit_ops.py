"""The DeiT recipe's input against timm and torchvision (golden/family; Pillow 13.0.0 decodes there), to the bit."""

import hashlib
import json

import numpy as np
import PIL.Image
import pytest
from PIL import ImageEnhance

from mixer_jax.data import deit_ops, deit_randaugment, ops
from mixer_jax.data.deit_ops import Draw
from mixer_jax.data.preprocess import Preprocess
from mixer_jax.errors import BadRecordError
from tests.conftest import GOLDEN
from tests.encoded import golden_jpeg

MISC = json.loads((GOLDEN / "family" / "aug_misc.json").read_text())
RANDAUGMENT = json.loads((GOLDEN / "family" / "aug_randaugment.json").read_text())
BILINEAR = np.load(GOLDEN / "family" / "aug_randaugment_bilinear.npz")
ENTRIES = {e["key"]: e for e in RANDAUGMENT["entries"] if "full_photo" in e or e["key"] in BILINEAR}
RECIPE = "rand-m9-mstd0.5-inc1"


class Recorded:
  """A generator that answers with recorded draws; fails where another kind of draw is asked for."""

  def __init__(self, *draws):
    self.draws = [(kind, values[-1]) for kind, *values in draws]

  def _next(self, *kinds):
    kind, value = self.draws.pop(0)
    assert kind in kinds
    return value

  def random(self):
    return self._next("random")

  def uniform(self, *_):
    return self._next("uniform")

  def normal(self, *_):
    return self._next("gauss")

  def integers(self, *_, **__):
    return self._next("choice", "randint")


def is_golden(image, golden):
  """True for the pixels of the golden record, which tells a few of them, to read where they differ."""
  assert list(image.shape) == golden["shape"]
  for y, x, *color in golden.get("pixels", []):
    assert image[y, x].tolist() == color
  return hashlib.sha256(np.ascontiguousarray(image)).hexdigest() == golden["sha256"]


@pytest.fixture(scope="module")
def photo():
  return ops.decode_image(golden_jpeg("photo_coffee"), dct="accurate")


@pytest.fixture(scope="module")
def small(photo):
  left, top, right, bottom = RANDAUGMENT["small_box_xyxy"]
  return deit_ops.resize(photo[top:bottom, left:right], (72, 96), "bicubic")


# --- decoding, crops, evaluation --------------------------------------------------------------------


@pytest.mark.parametrize("row", MISC["eval_transforms"], ids=lambda r: r["photo"] + r["crop_pct"])
def test_evaluation_is_timms(row):
  data = (GOLDEN / row["photo"]).read_bytes()
  assert is_golden(ops.decode_image(data, dct="accurate"), row["decoded"])
  text = f"decode(mode='pillow')|resize_short({row['crop_pct']})|central_crop(rounding='even')"
  got = Preprocess(text, (224, 224, 3))({"image": data, "label": 0}, np.random.default_rng(0))
  assert is_golden(got["image"], row["crop"])


@pytest.mark.parametrize("name", ["photo_china", "photo_astronaut", "photo_coffee"])
def test_the_default_decoder_differs_from_pillows_by_eight_levels_at_most(name):
  fast, accurate = (
    ops.decode_image(golden_jpeg(name), dct=dct).astype(int) for dct in ("fast", "accurate")
  )
  assert 5 < np.abs(fast - accurate).max() <= 8
  assert 0.9 < np.abs(fast - accurate).mean() < 1.1


def test_boxes_are_timms():
  for row in MISC["random_resized_crop"]["rows"]:
    rng = Recorded(*row["draws"])
    box = deit_ops.sample_box(rng, *row["image_hw"], tuple(MISC["random_resized_crop"]["scale"]))
    assert list(box) == row["box_top_left_height_width"]
    assert not rng.draws


def test_resized_crops_are_timms(photo):
  for row in MISC["resized_crops"]["rows"]:
    y, x, h, w = row["box_top_left_height_width"]
    crop = photo[y : y + h, x : x + w]
    assert is_golden(deit_ops.resize(crop, (224, 224), "bicubic"), row["size224"])


@pytest.mark.parametrize("name", deit_ops.FILTERS)
@pytest.mark.parametrize("kind", ["noise", "steps"])
def test_resizing_is_pillows(name, kind):
  """Shrunk, enlarged, tiny, one side as it was, the height first; values beyond both ends."""
  rng = np.random.default_rng(0)
  sizes = [((1, 1), (9, 4)), ((9, 200), (9, 60)), ((300, 90), (40, 90)), ((300, 90), (50, 97))]
  sizes += [(rng.integers(1, 400, 2), rng.integers(1, 300, 2)) for _ in range(25)]
  for (h, w), (new_h, new_w) in sizes:
    image = rng.integers(0, 256, (h, w, 3), np.uint8)
    image = image // 128 * 255 if kind == "steps" else image
    picture = PIL.Image.fromarray(image).resize((new_w, new_h), PIL.Image.Resampling[name.upper()])
    got = deit_ops.resize(image, (int(new_h), int(new_w)), name)
    np.testing.assert_array_equal(got, np.asarray(picture), f"{h}×{w}")


def test_the_longer_side_is_cut_and_a_rectangle_covered():
  assert deit_ops.covering_shape(333, 499, (256, 256)) == (256, 383)  # 383.6
  assert deit_ops.covering_shape(100, 100, (27, 45)) == (45, 45)
  assert deit_ops.covering_shape(100, 300, (27, 45)) == (27, 81)
  wide = np.zeros((1, 1_000_000, 3), np.uint8)
  with pytest.raises(BadRecordError, match="256×256000000"):
    ops.resize_short((224, 224))({"image": wide, "label": 0}, np.random.default_rng(0))


# --- RandAugment and colour jitter ------------------------------------------------------------------


def plain(name):
  return name.removesuffix("Increasing")


def drawn(entry, used="bicubic"):
  name = plain(entry["op"])
  return [Draw(name, (*entry["args"], *[used] * (name in deit_randaugment.REACH)))]


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_operations_are_pillows(photo, small, entry):
  if "full_photo" in entry:
    assert is_golden(deit_ops.apply(photo, drawn(entry)), entry["full_photo"])
  else:
    got = deit_ops.apply(small, drawn(entry, "bilinear"))
    np.testing.assert_array_equal(got, BILINEAR[entry["key"]])


def test_arguments_follow_from_the_magnitude():
  policy = deit_randaugment.parse(RECIPE + "-n1")
  for index, row in enumerate(RANDAUGMENT["level_table"]):
    for key, sign in (("level_to_arg", 0.0), ("level_to_arg_negated", 1.0)):
      for level, wanted in row.get(key, {}).items():
        draws = [("choice", [index]), ("random", 0.5), ("gauss", float(level)), ("random", sign)]
        ((name, arguments),) = deit_randaugment.draw(Recorded(*draws), policy, "bicubic")
        assert name == plain(row["op"])
        if "level_to_arg_negated" in row and name not in deit_randaugment.REACH:
          wanted = [max(0.1, factor) for factor in wanted]  # as timm 1.0.31: the same in float32
        assert [a for a in arguments if a != "bicubic"] == wanted


@pytest.mark.parametrize("trace", RANDAUGMENT["traces"], ids=lambda t: t["seed"])
def test_timms_draws_give_timms_images(small, trace):
  steps = trace["steps"]
  choice = [RANDAUGMENT["ops_in_order"].index(step["op"]) for step in steps]
  rng = Recorded(("choice", choice), *(draw for step in steps for draw in step["draws"]))
  draws = deit_randaugment.draw(rng, deit_randaugment.parse(RECIPE), "bicubic")
  assert not rng.draws
  assert [name for name, _ in draws] == [plain(s["op"]) for s in steps if s["applied"]]
  assert is_golden(deit_ops.apply(small, draws), trace["result"])


def test_policies_have_timms_defaults():
  assert deit_randaugment.parse("rand") == deit_randaugment.Policy(10, 2, 0.5, 0.0, 10, 0)
  long = deit_randaugment.parse("rand-inc1-p0.7-mmax20-mstd101-n3-m12")
  assert long == deit_randaugment.Policy(12, 3, 0.7, 101.0, 20, 1)


def test_layers_are_applied_with_their_probability_and_uniform_magnitudes():
  policy = deit_randaugment.parse("rand-m8-n1-p0.7-mstd101")
  rng = np.random.default_rng(0)
  drawn = [deit_randaugment.draw(rng, policy, "random") for _ in range(6000)]
  assert abs(np.mean([len(d) for d in drawn]) - 0.7) < 0.03
  degrees, filters = zip(
    *(d[0].arguments for d in drawn if d and d[0].name == "Rotate"), strict=True
  )
  assert set(filters) == {"bilinear", "bicubic"}
  assert 0.9 * 24 < max(degrees) <= 24 and -24 <= min(degrees) < -0.9 * 24
  assert abs(np.mean(np.abs(degrees)) - 12) < 1.5


def test_grey_images_become_one_channel_of_three_apart_from_the_fill(small):
  grey = np.ascontiguousarray(small[..., :1])
  for entry in ENTRIES.values():
    if entry["op"] not in deit_randaugment.REACH:
      three = deit_ops.apply(np.repeat(grey, 3, 2), drawn(entry))
      np.testing.assert_array_equal(deit_ops.apply(grey, drawn(entry)), three[..., :1])
  moved = deit_ops.apply(grey, [Draw("TranslateXRel", (0.5, "bicubic"))])
  assert (moved[:, 49:] == 117).all() and moved.shape == grey.shape


def test_colour_jitter_is_torchvisions(small):
  enhancers = {n: getattr(ImageEnhance, n) for n in ("Brightness", "Contrast", "Color")}
  op, orders = ops.color_jitter(3, 0.4), set()
  for seed in range(40):
    got = op({"image": small}, np.random.default_rng(seed))
    ((_, draws),) = got["drawn"]
    orders.add(tuple(name for name, _ in draws))
    picture = PIL.Image.fromarray(small)
    for name, (factor,) in draws:
      assert 0.6 <= factor <= 1.4
      picture = enhancers[name](picture).enhance(factor)
    np.testing.assert_array_equal(got["image"], np.asarray(picture))
  assert len(orders) == 6
  ((_, draws),) = ops.color_jitter(3, 5.0)({"image": small}, np.random.default_rng(0))["drawn"]
  assert all(0 <= factor <= 6 for _, (factor,) in draws)


def test_what_was_drawn_can_be_replayed(photo):
  text = f"decode(mode='pillow')|random_resized_crop|flip|timm_randaugment('{RECIPE}', 'random')|color_jitter"
  for seed in range(12):
    got = Preprocess(text, (48, 64, 3))(
      {"image": golden_jpeg("photo_coffee"), "label": 1}, np.random.default_rng(seed)
    )
    (_, ((y, x, h, w), used)), (_, mirrored), (_, first), (_, second) = got["drawn"]
    image = deit_ops.resize(photo[y : y + h, x : x + w], (48, 64), used)
    image = image[:, ::-1] if mirrored else image
    np.testing.assert_array_equal(got["image"], deit_ops.apply(image, (*first, *second)))
