"""The rival of small.py: `python rival_small.py IMAGES DIRECTORY` answers jobs on its input.

Runs in an environment that has PyTorch and timm, as one writes it by hand: all images in one tensor, a random order of an
epoch, a batch by its indices.
"""

import gzip
import pathlib
import sys
import time
from typing import Any

import numpy as np
import torch
import turns
from rival_timm import import_timm

BATCH, LEARNING_RATE, WEIGHT_DECAY = 128, 1e-3, 0.1


def read(directory: pathlib.Path, stem: str) -> tuple[torch.Tensor, torch.Tensor]:
  """Returns images uint8 (n, 1, 28, 28) and labels int64 (n,)."""
  images = gzip.decompress((directory / f"{stem}-images-idx3-ubyte.gz").read_bytes())[16:]
  labels = gzip.decompress((directory / f"{stem}-labels-idx1-ubyte.gz").read_bytes())[8:]
  pixels = np.frombuffer(images, np.uint8).reshape(-1, 1, 28, 28).copy()
  return torch.from_numpy(pixels), torch.from_numpy(
    np.frombuffer(labels, np.uint8).astype(np.int64)
  )


class Run:
  """A model in training; see small_jax.py."""

  def __init__(self, images: int, directory: pathlib.Path):
    torch.manual_seed(0)
    mixer = import_timm().models.mlp_mixer.MlpMixer
    self._model = mixer(10, 28, 3, 4, num_blocks=4, embed_dim=64, mlp_ratio=(0.5, 4.0))
    assert sum(p.numel() for p in self._model.parameters()) == 150_158
    self._optimizer = torch.optim.AdamW(
      self._model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
    )
    self._images, self._labels = (x[:images] for x in read(directory, "train"))
    self._test = read(directory, "t10k")
    self._steps = images // BATCH
    self.step(torch.arange(BATCH))

  def answer(self, job: dict[str, Any]) -> dict[str, float]:
    if job["work"] == "score":
      return self.score()
    cpu = time.process_time()
    order = torch.randperm(len(self._images))[: self._steps * BATCH].reshape(self._steps, BATCH)
    for indices in order:
      if job["work"] == "input":
        self.batch(indices)
      else:
        self.step(indices if job["work"] == "epoch" else order[0])
    return {"cpu_s": time.process_time() - cpu}

  def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return self.pixels(self._images[indices]), self._labels[indices]

  def pixels(self, images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 127.5 - 1.0).expand(-1, 3, -1, -1)

  def step(self, indices: torch.Tensor) -> None:
    images, labels = self.batch(indices)
    self._optimizer.zero_grad()
    torch.nn.functional.cross_entropy(self._model(images), labels).backward()
    torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
    self._optimizer.step()

  @torch.inference_mode()
  def score(self) -> dict[str, float]:
    images, labels = self._test
    guesses = [self._model(self.pixels(part)).argmax(1) for part in images.split(500)]
    return {"top1": (torch.cat(guesses) == labels).float().mean().item()}


if __name__ == "__main__":
  torch.set_num_threads(1)
  turns.reply(lambda: Run(int(sys.argv[1]), pathlib.Path(sys.argv[2])).answer)
