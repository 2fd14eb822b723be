"""Writes dense features of image or video files: the map of every stage of a trained model.

python -m mixer_jax.tools.features --workdir=DIR PHOTO.jpg 'holiday/*.jpg' FOLDER --output=maps.npz
python -m mixer_jax.tools.features --config=configs/NAME.py --weights=FILE FOLDER --output=maps.npz

The .npz has `stage_1`, `stage_2`, …, float32 (n, h, w, c), of videos (n, t, h, w, c), and `files` (n,), the names of the images. Images meet the
configuration's evaluation pre-processing. All maps are held in memory until the end. Exit status: 0 all images were
read, 1 some could not be (each is named, the others are written), 2 bad input.
"""

import sys

from absl import flags

from mixer_jax.errors import BadRecordError, InputError
from mixer_jax.tools import command, model_flags

_OUTPUT = flags.DEFINE_string("output", None, "File to write the maps to, .npz.")
_BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", 64, "Number of images to compute at once.", lower_bound=1
)


def main(argv: list[str]) -> None:
  if len(argv) < 2 or not _OUTPUT.value:
    raise InputError(
      "give image files, directories or globs, and a file: features --workdir=DIR PHOTO.jpg --output=maps.npz"
    )
  from mixer_jax.inference import features, predict

  output = predict.check_output(_OUTPUT.value, (".npz",))
  trained = model_flags.load()
  names, maps, kind = [], [], predict.kind_of(trained.setup)
  paths = predict.find_images(argv[1:], kind=kind)
  step = features.make_features_step(trained.setup, "stage_")
  for name, row in predict.outputs(trained, paths, step, batch_size=_BATCH_SIZE.value):
    if isinstance(row, BadRecordError):
      print(f"bad {kind.name} {name}: {row}", file=sys.stderr, flush=True)
    elif not row:
      raise InputError(f"{trained.name} has no maps: its tokens are no grid at the end.")
    else:
      names.append(name)
      maps.append(row)
  if maps:
    features.save(output, names, maps)
    sizes = ", ".join(f"{stage} {'x'.join(map(str, x.shape))}" for stage, x in maps[0].items())
    print(f"{output}: {len(maps)} of {len(paths)} {kind.name}s, {sizes}")
  if len(maps) < len(paths):
    sys.exit(1)


if __name__ == "__main__":
  command.run(main)
