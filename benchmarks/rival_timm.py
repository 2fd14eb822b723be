"""The contestants of step.py and family.py that run in PyTorch, eager or through torch.compile: timm's or the authors' models.

Runs in an environment of its own, as a child: `python rival_timm.py eager|compiled|tuned CASE`, a step.Case and the type as JSON.
The training step is timm's: sigmoid cross-entropy, clipping by the global norm, torch's AdamW.
"""

import importlib
import json
import os
import sys
from typing import Any

import torch
import turns

NUM_CLASSES, LEARNING_RATE, WEIGHT_DECAY = 1000, 1e-3, 0.1


def import_timm() -> Any:
  """Returns timm; torchvision from the registry is built for CUDA and may not find its operators on CPU."""
  try:
    importlib.import_module("torchvision")
  except RuntimeError:  # without operators
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
      operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
  import timm

  return timm


def normalize(image: torch.Tensor) -> torch.Tensor:
  return image.float() / 127.5 - 1.0


def make_model(rival: dict[str, Any]) -> Any:
  """Returns the model of a step.Case; a checkout's module lies in its "path"."""
  import_timm()  # which the checkouts import, too
  if path := rival.get("path"):
    sys.path.insert(0, path)
  factory = getattr(importlib.import_module(rival["module"]), rival["factory"])
  return factory(num_classes=NUM_CLASSES, **rival["arguments"])


def make_prepare(mode: str, case_json: str) -> Any:
  case = json.loads(case_json)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  if device == "cuda":
    torch.set_float32_matmul_precision("high")  # TensorFloat-32, JAX's default
  autocast = torch.autocast(device, torch.bfloat16, enabled=case["dtype"] == "bfloat16")

  def prepare(work: str, batch_size: int) -> turns.Run:
    if work == "matmul":
      x = torch.randn(batch_size, batch_size, device=device)  # its side, here
      return repeated(lambda: x @ x)
    layout = torch.channels_last if mode == "tuned" else torch.contiguous_format
    model = make_model(case["rival"]).to(device, memory_format=layout)
    how = {"compiled": {}, "tuned": {"mode": "max-autotune"}}
    forward = torch.compile(model, **how[mode]) if mode in how else model
    shape = (batch_size, 3, case["image_size"], case["image_size"])
    image = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    image = image.contiguous(memory_format=layout)
    label = torch.arange(batch_size, device=device) % NUM_CLASSES

    def inference() -> None:
      with torch.inference_mode(), autocast:
        forward(normalize(image))

    if work == "inference":
      model.eval()
      return repeated(inference)
    model.train()
    optimizer = torch.optim.AdamW(
      model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=mode == "tuned" or None
    )

    def training() -> None:
      optimizer.zero_grad()
      with autocast:
        logits = forward(normalize(image))
      targets = torch.nn.functional.one_hot(label, NUM_CLASSES).float()
      loss = torch.nn.functional.binary_cross_entropy_with_logits(
        logits.float(), targets, reduction="sum"
      )
      (loss / batch_size).backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      optimizer.step()

    return repeated(training)

  def repeated(call: Any) -> turns.Run:
    def run(calls: int) -> None:
      for _ in range(calls):
        call()
      if device == "cuda":
        torch.cuda.synchronize()

    return run

  return prepare


def peak_bytes() -> int | None:
  """Returns the most memory of the device that was in use; None on CPU."""
  return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


if __name__ == "__main__":
  if hasattr(os, "sched_getaffinity"):
    torch.set_num_threads(len(os.sched_getaffinity(0)))
  turns.serve(lambda: make_prepare(*sys.argv[1:]), peak_bytes)
