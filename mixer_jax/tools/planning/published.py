"""What the paper reports of speed and cost (arXiv:2105.01601, table 3), at 224 pixels on TPU v3."""

import dataclasses


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


IMAGE_SIZE = 224
# (data.dataset, model.variant, epochs)
ROWS = {
  ("imagenet2012", "B/16", 300): Published(1384, 10, True),
  ("imagenet2012", "L/16", 300): Published(419, 40, True),
  ("imagenet21k", "B/16", 300): Published(1384, 150, True),
  ("imagenet21k", "L/16", 300): Published(419, 410, True),
  ("jft300m", "S/32", 5): Published(11489, 10, False),
  ("jft300m", "S/16", 5): Published(3994, 30, False),
  ("jft300m", "B/32", 7): Published(4208, 50, False),
  ("jft300m", "B/16", 7): Published(1384, 80, False),
  ("jft300m", "L/32", 7): Published(1314, 120, False),
  ("jft300m", "L/16", 7): Published(419, 230, False),
  ("jft300m", "L/16", 14): Published(419, 450, False),
  ("jft300m", "H/14", 14): Published(194, 1010, False),
}


def find(dataset: str, variant: str | None, epochs: float | None, size: int) -> Published | None:
  """Returns the paper's row of that data set, size, epochs and image size in pixels, or None."""
  if variant is None or epochs is None or size != IMAGE_SIZE:
    return None
  return ROWS.get((dataset, variant, int(epochs))) if epochs == int(epochs) else None
