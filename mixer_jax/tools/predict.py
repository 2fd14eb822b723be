"""Names the classes of image files, or of video files, with probabilities.

python -m mixer_jax.tools.predict --workdir=DIR PHOTO.jpg 'holiday/*.jpg' FOLDER
python -m mixer_jax.tools.predict --weights=imagenet1k/Mixer-B_16 --output=top5.csv FOLDER

Images meet the evaluation pre-processing of the run or of the weights; of a video, a model of clips takes the view in the
middle. Exit status: 0 all were predicted, 1 some could not be (each is named, the others are predicted), 2 bad input.
"""

import sys

from absl import flags

from mixer_jax.errors import InputError
from mixer_jax.tools import command, model_flags

_TOP = flags.DEFINE_integer("top", 5, "Number of classes to name for each image.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", 64, "Number of images to compute at once.", lower_bound=1
)
_OUTPUT = flags.DEFINE_string(
  "output",
  None,
  "File to write the predictions to: .csv, .json, or .png for a grid of pictures. They are also printed.",
)
_STRIPS = flags.DEFINE_string(
  "strips", None, "Directory to write a picture of the frames used of each video to."
)
_CLASS_NAMES = flags.DEFINE_string(
  "class_names",
  None,
  "Text file with one class name per line. Default: the checkpoint's names, or ImageNet's in words.",
)


def main(argv: list[str]) -> None:
  if len(argv) < 2:
    raise InputError(
      "give image files, directories or globs: predict --weights=imagenet1k/Mixer-B_16 PHOTO.jpg"
    )
  from mixer_jax import inference
  from mixer_jax.inference import predict

  output = predict.check_output(_OUTPUT.value) if _OUTPUT.value else None
  trained = model_flags.load()
  strips = predict.check_strips(_STRIPS.value, trained.setup) if _STRIPS.value else None
  kind = predict.kind_of(trained.setup)
  names = (
    predict.read_class_names(_CLASS_NAMES.value, trained.setup.options.num_classes)
    if _CLASS_NAMES.value
    else inference.class_names(trained)
  )
  if trained.step is None:
    scale = "sigmoids" if trained.setup.options.loss == "sigmoid_xent" else "a softmax"
    print(
      f"{trained.name}: {trained.setup.title}, probabilities are {scale}",
      file=sys.stderr,
      flush=True,
    )
  ignored: list[tuple[str, str]] = []
  predictions, paths = [], predict.find_images(argv[1:], ignored, kind)
  for one in predict.predict(
    trained, paths, names, top=_TOP.value, batch_size=_BATCH_SIZE.value, strips=strips
  ):
    predictions.append(one)
    if "error" in one:
      print(f"bad {kind.name} {one['file']}: {one['error']}", file=sys.stderr, flush=True)
    else:
      print(predict.format_text(one), flush=True)
  if output is not None:
    predict.save(output, predictions, paths, kind)
  bad = sum("error" in one for one in predictions)
  counts = [f"{bad} bad"] * (bad > 0) + [f"{len(ignored)} other files ignored"] * bool(ignored)
  print(", ".join([f"{len(paths) - bad} of {len(paths)} {kind.name}s predicted", *counts]))
  if bad:
    sys.exit(1)


if __name__ == "__main__":
  command.run(main)
