"""A plan: the memory, time and cost of a configuration on some devices, as data and as a table."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mixer_jax import models
from mixer_jax.tools.planning import chips, estimate, fit, flops, published
from mixer_jax.tools.planning.program import Program
from mixer_jax.training.experiment import Experiment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """A plan.

  Attributes:
    devices: name of the topology, or the kind of the devices there are.
    num_devices, num_cores: JAX devices and TensorCores (for other devices the same).
    settings: what decides how much memory is needed: batch_size, grad_accum_steps, remat, fsdp, dtype.
    examples: what a batch has, images or videos.
    parameters: of the model.
    training_flops_per_image: of the model, by its matrix products.
    program: the compiled step. If None, the compiler refused it.
    needed_bytes, limit_bytes: memory that the step needs and that a device has, if known.
    estimate: None if rates are unknown or nothing was compiled.
    rates: source of the devices' rates: "published", "measured here" or "unknown".
    total_steps: of the run.
    published: the paper's row. None if there is none.
  """

  devices: str
  num_devices: int
  num_cores: int
  settings: dict[str, Any]
  examples: str
  parameters: int
  training_flops_per_image: int
  program: Program | None
  needed_bytes: int
  limit_bytes: int | None
  estimate: estimate.Estimate | None
  rates: str
  total_steps: int
  published: published.Published | None

  @property
  def fits(self) -> bool:
    return self.limit_bytes is None or self.needed_bytes <= self.limit_bytes


def make(
  exp: Experiment,
  *,
  devices: str,
  chip: chips.Chip | None,
  limit_bytes: int | None,
  trial: fit.Trial,
) -> Report:
  """Returns the plan of an experiment on the devices of its mesh, called `devices`, by the compiler's numbers in `trial`.

  The chip and the memory of a device may not be known.
  """
  forward, times = forward_flops(exp), None
  if trial.program and chip:
    times = estimate.make(
      chip=chip,
      dtype=_settings(exp)["dtype"],
      num_devices=exp.mesh.size,
      program=trial.program,
      batch_size=exp.options.batch_size,
      total_steps=exp.total_steps,
      forward_flops_per_image=forward,
    )
  return Report(
    devices=devices,
    num_devices=exp.mesh.size,
    num_cores=chip.num_cores(exp.mesh.size) if chip else exp.mesh.size,
    settings=_settings(exp),
    examples=exp.options.examples,
    parameters=sum(x.size for x in jax.tree.leaves(exp.abstract_state.params)),
    training_flops_per_image=flops.TRAINING * forward,
    program=trial.program,
    needed_bytes=trial.needed_bytes,
    limit_bytes=limit_bytes,
    estimate=times,
    rates=chip.rates if chip else "unknown",
    total_steps=exp.total_steps,
    published=published.find(
      exp.options.data.dataset,
      exp.options.model["name"],
      _published_variant(exp.options.model),
      exp.options.total_epochs,
      exp.options.input_shape,
    ),
  )


def _published_variant(fields: Mapping[str, Any]) -> str | None:
  """Returns the variant of a model that is no other in what its function depends on."""
  sizes = models.FAMILIES[fields["name"]].VARIANTS.get(fields.get("variant") or "", {})
  ours, theirs = (
    models.function_fields(models.build(**one)) | {"num_classes": None}
    for one in (fields, {"name": fields["name"], **sizes} if sizes else fields)
  )
  return fields["variant"] if sizes and ours == theirs else None


def forward_flops(exp: Experiment) -> int:
  """Returns the operations of the model's forward pass for one image."""
  image = jax.ShapeDtypeStruct((1, *exp.options.input_shape), jnp.float32)
  return flops.forward_flops(exp.model, exp.abstract_state.variables(), image)


def _settings(exp: Experiment) -> dict[str, Any]:
  return {
    "model": exp.options.model["variant"] or exp.options.model["name"],
    "image_size": exp.options.size,
    "batch_size": exp.options.batch_size,
    "grad_accum_steps": exp.options.grad_accum_steps,
    "remat": getattr(exp.model, "remat", "none"),
    "fsdp": exp.mesh.shape["fsdp"],
    "dtype": getattr(exp.model, "dtype", "float32"),
  }


def to_json(report: Report) -> str:
  """Returns the report as one JSON object; units are in the names."""
  fields: dict[str, Any] = {**dataclasses.asdict(report), "fits": report.fits}
  if report.program:
    fields["program"]["memory"]["total"] = report.program.memory.total
  if report.estimate:
    fields["estimate"]["bound_by"] = report.estimate.bound_by
  return json.dumps(fields, indent=2, default=str)


def table(report: Report) -> str:
  """Returns the report as a table of text."""
  rows = _head(report) + _memory(report)
  if report.program:
    rows += _step(report, report.program)
  if report.estimate:
    rows += _costs(report, report.estimate)
  return "\n".join(f"{name:<15}{text}" for name, text in rows)


Rows = list[tuple[str, str]]


def _head(report: Report) -> Rows:
  s = report.settings
  per_device = s["batch_size"] / report.num_devices
  return [
    (
      "model",
      f"{s['model']}, {report.parameters:,} parameters, {s['image_size']} px, {s['dtype']}",
    ),
    ("devices", f"{report.devices}: {report.num_devices} devices, {report.num_cores} cores"),
    (
      "settings",
      f"batch {s['batch_size']} = {per_device:g} {report.examples} a device, grad_accum_steps "
      f"{s['grad_accum_steps']}, remat {s['remat']}, fsdp {s['fsdp']}",
    ),
  ]


def _memory(report: Report) -> Rows:
  rows: Rows = []
  if report.program:
    memory = report.program.memory
    rows = [
      ("memory", f"arguments {_bytes(memory.arguments)} (state and batch, on each device)"),
      ("", f"temporaries {_bytes(memory.temporaries)}"),
      ("", f"outputs {_bytes(memory.outputs)}, program {_bytes(memory.code)}"),
    ]
  name = "" if rows else "memory"
  needed, limit = report.needed_bytes, report.limit_bytes
  if limit is None:
    return [*rows, (name, f"needed {_bytes(needed)}; the devices' memory is not known")]
  spare = f"{_bytes(abs(limit - needed))} {'to spare' if report.fits else 'too much'}"
  verdict = "fits" if report.fits else "DOES NOT FIT"
  return [*rows, (name, f"needed {_bytes(needed)} of {_bytes(limit)}: {verdict}, {spare}")]


def _step(report: Report, program: Program) -> Rows:
  rows = [
    (
      "step",
      f"{_si(program.flops)}FLOP and {_si(program.bytes_moved)}B moved on each device; compiled in "
      f"{program.compile_seconds:.0f} s",
    ),
    *(
      ("collectives" if i == 0 else "", f"{c.count} × {c.kind}, {_si(c.bytes)}B")
      for i, c in enumerate(program.collectives)
    ),
  ]
  if not report.estimate:
    return [*rows, ("roofline", "the rates of these devices are not known (planning/chips.py)")]
  times = report.estimate
  links = "" if times.link_seconds is None else f", links {_ms(times.link_seconds)}"
  seconds = f"compute {_ms(times.compute_seconds)}, memory {_ms(times.memory_seconds)}{links}"
  return [*rows, ("roofline", f"{seconds} (rates {report.rates}): bound by {times.bound_by}")]


def _costs(report: Report, times: estimate.Estimate) -> Rows:
  return [
    (
      "at best",
      f"{times.images_per_sec_per_core:,.0f} {report.examples}/s/core, model-FLOPs utilisation "
      f"{100 * times.mfu:.0f} %",
    ),
    (
      "whole run",
      f"{report.total_steps:,} steps, at best {_number(times.days * 24)} hours, "
      f"{_number(times.core_days)} core-days",
    ),
    *(_bound(times) if report.rates == "published" else []),
    *(_paper(report, times, report.published) if report.published else []),
  ]


def _bound(times: estimate.Estimate) -> Rows:
  low, high = estimate.MEASURED_SHARE
  text = f"A bound: the paper measured {100 * low:.0f}–{100 * high:.0f} % of such estimates"
  if times.core_days >= 0.01:
    range_ = f"{_number(times.core_days / high)} to {_number(times.core_days / low)}"
    text += f", here {range_} core-days"
  return [("", text)]


def _paper(report: Report, times: estimate.Estimate, row: published.Published) -> Rows:
  on_v3 = report.devices.startswith("v3:") or report.devices == "TPU v3"
  cost = f"{row.core_days:,} core-days" + ", extrapolated there" * row.extrapolated
  speed = f"inference {row.inference_images_per_sec:,} images/s/core"
  if on_v3:
    best = times.inference_images_per_sec_per_core
    cost += f": {100 * times.core_days / row.core_days:.0f} % of the bound's speed"
    speed += f": {100 * row.inference_images_per_sec / best:.0f} % of its bound, {best:,.0f}"
  return [("paper, TPU v3", cost), ("", speed)]


def _bytes(size: float) -> str:
  return f"{size / chips.GIB:.2f} GiB" if size >= chips.GIB / 10 else f"{size / 2**20:.1f} MiB"


def _si(value: float) -> str:
  """Returns the number with three digits and the SI prefix of its unit: "36.5 G"."""
  power = min(max(int(math.log10(value)) // 3, 0), 5) if value >= 1 else 0
  return f"{value / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P'][power]}"


def _number(value: float) -> str:
  return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def _ms(seconds: float) -> str:
  return f"{seconds * 1e3:.3g} ms"
