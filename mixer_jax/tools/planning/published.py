"""What the paper reports of speed and cost (arXiv:2105.01601, table 3) on TPU v3."""

import dataclasses

from mixer_jax.tools import paper_numbers

_DATASETS = {"imagenet2012": "ImageNet", "imagenet21k": "ImageNet-21k", "jft300m": "JFT-300M"}


@dataclasses.dataclass(frozen=True)
class Published:
  """A row of table 3.

  Attributes:
    inference_images_per_sec: per core, best over batch sizes.
    core_days: of pre-training.
    extrapolated: by the authors, from their JFT-300M runs.
  """

  inference_images_per_sec: int
  core_days: int
  extrapolated: bool


def find(
  dataset: str, model: str, variant: str | None, epochs: float | None, input_shape: tuple[int, ...]
) -> Published | None:
  """Returns the paper's row of config.data.dataset, model, epochs and images, or None."""
  for row in paper_numbers.rows("table3_scale"):
    family, _, row_variant = row["model"].partition("-")
    same_model = (paper_numbers.FAMILIES[family], row_variant) == (model, variant)
    same_run = (row["pretrain"], float(row["pretrain_epochs"])) == (_DATASETS.get(dataset), epochs)
    if same_model and same_run and input_shape == (int(row["image_size"]),) * 2 + (3,):
      speed, cost = int(row["images_per_sec_per_tpuv3_core"]), int(row["tpuv3_core_days"])
      return Published(speed, cost, row["core_days_extrapolated"] == "yes")
  return None
