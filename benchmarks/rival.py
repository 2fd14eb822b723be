"""The rival of input_pipeline.py: the authors' input pipeline in tf.data, on one thread.

Crop and resize follow big_vision (`pp/ops_image.py`), RandAugment its `pp/archive/autoaugment.py`, with
TensorFlow's own operations. Runs in an environment of its own, as a child that answers one JSON line
for each line of its input: {"work": "crop" | "randaugment" | "load" | "load_randaugment", "kind", "count"}.
"""

import json
import os
import pathlib
import sys
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import tensorflow as tf

SIZE, BATCH, MAGNITUDE, LAYERS = 224, 64, 15, 2
FILL = 128


def crop(data):
  """Returns a random crop of an encoded image, decoded within its box alone, resized and flipped."""
  start, size, _ = tf.image.sample_distorted_bounding_box(
    tf.image.extract_jpeg_shape(data), tf.zeros([0, 0, 4], tf.float32), area_range=(0.05, 1.0),
    min_object_covered=0.0, use_image_if_no_bounding_boxes=True,
  )  # fmt: skip
  window = tf.stack([start[0], start[1], size[0], size[1]])
  image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
  image = tf.image.resize(image, (SIZE, SIZE), tf.image.ResizeMethod.BILINEAR)
  image = tf.cast(tf.clip_by_value(image, 0, 255), tf.uint8)
  return tf.image.random_flip_left_right(image)


def blend(poor, rich, factor):
  poor, rich = tf.cast(poor, tf.float32), tf.cast(rich, tf.float32)
  return tf.cast(tf.clip_by_value(poor + factor * (rich - poor), 0, 255), tf.uint8)


def warp(image, transform):
  """Nearest pixel; an added channel tells which pixels came from inside."""
  with_mask = tf.concat([image, tf.ones([SIZE, SIZE, 1], tf.uint8)], 2)
  moved = tf.raw_ops.ImageProjectiveTransformV3(
    images=with_mask[None], transforms=[transform], output_shape=[SIZE, SIZE], fill_value=0.0,
    interpolation="NEAREST", fill_mode="CONSTANT",
  )[0]  # fmt: skip
  return tf.where(moved[:, :, 3:] == 0, tf.constant(FILL, tf.uint8), moved[:, :, :3])


def sign(value):
  return value * (1.0 - 2.0 * tf.floor(tf.random.uniform([]) + 0.5))


def rotate(image, level):
  angle = sign(30.0 * level * 3.14159265 / 180)
  cos, sin, last = tf.cos(angle), tf.sin(angle), SIZE - 1.0
  x = (last - (cos * last - sin * last)) / 2
  y = (last - (sin * last + cos * last)) / 2
  return warp(image, [cos, -sin, x, sin, cos, y, 0.0, 0.0])


def autocontrast(image, level):
  del level

  def scale(channel):
    low = tf.cast(tf.reduce_min(channel), tf.float32)
    high = tf.cast(tf.reduce_max(channel), tf.float32)
    stretch = 255.0 / (high - low)
    stretched = tf.cast(channel, tf.float32) * stretch - low * stretch
    stretched = tf.cast(tf.clip_by_value(stretched, 0, 255), tf.uint8)
    return tf.cond(high > low, lambda: stretched, lambda: channel)

  return tf.stack([scale(image[:, :, c]) for c in range(3)], 2)


def equalize(image, level):
  del level

  def scale(channel):
    counts = tf.histogram_fixed_width(tf.cast(channel, tf.int32), [0, 255], nbins=256)
    nonzero = tf.boolean_mask(counts, counts > 0)
    step = (tf.reduce_sum(nonzero) - nonzero[-1]) // 255

    def equalized():
      curve = (tf.cumsum(counts) + step // 2) // step
      curve = tf.clip_by_value(tf.concat([[0], curve[:-1]], 0), 0, 255)
      return tf.cast(tf.gather(curve, tf.cast(channel, tf.int32)), tf.uint8)

    return tf.cond(step == 0, lambda: channel, equalized)

  return tf.stack([scale(image[:, :, c]) for c in range(3)], 2)


def color(image, level):
  gray = tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image))
  return blend(gray, image, 0.1 + 1.8 * level)


def contrast(image, level):
  gray = tf.cast(tf.image.rgb_to_grayscale(image), tf.int32)
  counts = tf.histogram_fixed_width(gray, [0, 255], nbins=256)
  mean = tf.clip_by_value(tf.reduce_sum(tf.cast(counts, tf.float32)) / 256.0, 0, 255)
  return blend(tf.cast(tf.fill([SIZE, SIZE, 3], mean), tf.uint8), image, 0.1 + 1.8 * level)


def sharpness(image, level):
  kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32)[:, :, None, None] / 13.0
  smooth = tf.nn.depthwise_conv2d(
    tf.cast(image, tf.float32)[None], tf.tile(kernel, [1, 1, 3, 1]), [1, 1, 1, 1], "VALID"
  )
  smooth = tf.pad(tf.cast(tf.clip_by_value(smooth[0], 0, 255), tf.uint8), [[1, 1], [1, 1], [0, 0]])
  inside = tf.pad(tf.ones([SIZE - 2, SIZE - 2, 3], tf.bool), [[1, 1], [1, 1], [0, 0]])
  return blend(tf.where(inside, smooth, image), image, 0.1 + 1.8 * level)


def solarize(image, level):
  threshold = tf.constant(int(256 * level) % 256, tf.uint8)
  return tf.where(image < threshold, image, 255 - image)


def solarize_add(image, level):
  added = tf.cast(tf.cast(image, tf.int32) + int(110 * level), tf.int32)
  return tf.where(image < 128, tf.cast(tf.clip_by_value(added, 0, 255), tf.uint8), image)


def posterize(image, level):
  shift = tf.constant(min(max(8 - int(4 * level), 0), 7), tf.uint8)
  return tf.bitwise.left_shift(tf.bitwise.right_shift(image, shift), shift)


def cutout(image, level):
  half = int(40 * level)
  y, x = (tf.random.uniform([], 0, SIZE, tf.int32) for _ in range(2))
  top, bottom = tf.maximum(0, y - half), tf.maximum(0, SIZE - y - half)
  left, right = tf.maximum(0, x - half), tf.maximum(0, SIZE - x - half)
  hole = tf.zeros([SIZE - top - bottom, SIZE - left - right], image.dtype)
  mask = tf.pad(hole, [[top, bottom], [left, right]], constant_values=1)
  return tf.where(tf.tile(mask[:, :, None], [1, 1, 3]) == 0, tf.constant(FILL, tf.uint8), image)


OPERATIONS = [
  autocontrast,
  equalize,
  lambda image, _: 255 - image,
  rotate,
  posterize,
  solarize,
  color,
  contrast,
  lambda image, level: blend(tf.zeros_like(image), image, 0.1 + 1.8 * level),
  sharpness,
  lambda image, level: warp(image, [1.0, sign(0.3 * level), 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]),
  lambda image, level: warp(image, [1.0, 0.0, 0.0, sign(0.3 * level), 1.0, 0.0, 0.0, 0.0]),
  lambda image, level: warp(image, [1.0, 0.0, sign(100.0 * level), 0.0, 1.0, 0.0, 0.0, 0.0]),
  lambda image, level: warp(image, [1.0, 0.0, 0.0, 0.0, 1.0, sign(100.0 * level), 0.0, 0.0]),
  cutout,
  solarize_add,
]


def randaugment(image):
  for _ in range(LAYERS):
    branches = [lambda o=o, i=image: o(i, MAGNITUDE / 10) for o in OPERATIONS]
    image = tf.switch_case(tf.random.uniform([], 0, len(branches), tf.int32), branches)
    image = tf.ensure_shape(image, [SIZE, SIZE, 3])
  return image


def records(directory: pathlib.Path, kind: str):
  """Returns the photos of a kind as tf.train.Example, from a TFRecord file that is written once."""
  path = directory / f"{kind}.tfrecord"
  if not path.exists():
    with tf.io.TFRecordWriter(str(path)) as writer:
      for i, photo in enumerate(sorted((directory / kind / "photos").glob("*.jpg"))):
        image = tf.train.BytesList(value=[photo.read_bytes()])
        feature = {
          "image": tf.train.Feature(bytes_list=image),
          "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[i % 10])),
        }
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        writer.write(example.SerializeToString())
  return tf.data.TFRecordDataset(str(path))


def dataset(directory: pathlib.Path, work: str, kind: str, count: int):
  """Returns batches of `count` images in all."""
  examples = records(directory, kind).repeat()
  features = {
    "image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)
  }  # fmt: skip
  augment = randaugment if work.endswith("randaugment") else lambda image: image

  def prepare(record):
    example = tf.io.parse_single_example(record, features)
    return {"image": augment(crop(example["image"])), "label": example["label"]}

  if work.startswith("load"):
    examples = examples.shuffle(256)
  batches = examples.take(count).map(prepare).batch(BATCH)
  if work.startswith("load"):
    batches = batches.prefetch(2)
  options = tf.data.Options()
  options.threading.private_threadpool_size = 1
  options.threading.max_intra_op_parallelism = 1
  return batches.with_options(options)


def main(directory: pathlib.Path) -> None:
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(1)
  for line in sys.stdin:
    job = json.loads(line)
    # One element of the pipeline first: tracing and filling the cache are not its speed.
    batches = iter(dataset(directory, **job | {"count": job["count"] + BATCH}))
    next(batches)
    wall, cpu, images = time.perf_counter(), time.process_time(), 0
    for batch in batches:
      images += batch["image"].numpy().shape[0]
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(json.dumps({"images": images, "cpu_s": cpu, "wall_s": wall}), flush=True)


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
