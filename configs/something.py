"""MLP-3D on Something-Something, V2 or V1, from a CycleMLP of images.

Published, 16 frames at 224 px, 1 × 3 views, top-1 / top-5 (arXiv:2206.06292); none was trained here:

      XS           S            M            L
  V2  66.0 / 90.4  67.2 / 91.3  68.0 / 91.7  68.5 / 92.0
  V1  54.4 / 82.5  55.2 / 83.2  56.2 / 83.5  56.5 / 83.5

python train.py --config=configs/something.py:XS --workdir=gs://BUCKET/mlp3d-xs-something
python eval.py --workdir=gs://BUCKET/mlp3d-xs-something --evaluators=views

What is known and what is assumed: configs/kinetics.py. Here a clip has a frame of each of 16 equal parts of the video,
and is not mirrored, for classes tell left from right. The other version, and shorter:
configs/something.py:XS,version=1,epochs=30.
"""

from mixer_jax.configs import common, kinetics
from mixer_jax.errors import InputError


def get_config(arg: str = "XS"):
  given = common.parse_arg(arg, variant="XS", epochs="60", version="2")
  if given["version"] not in ("1", "2"):
    raise InputError(f"version={given['version']} of Something-Something is unknown; known: 1, 2.")
  sampling = ("segments", "segments(views=1)", "segments(views=1)")
  return kinetics.recipe(given, f"something_v{given['version']}", sampling)
