"""What a run prints of itself before its first step."""

import importlib.metadata
import pathlib
import shutil
from collections.abc import Mapping

import jax
from etils import epath

from mixer_jax.data import sources
from mixer_jax.errors import installing
from mixer_jax.evaluators import Evaluator
from mixer_jax.parallel import sharding
from mixer_jax.training import experiment


def headline(
  exp: experiment.Experiment,
  source: sources.Source,
  measured: Mapping[str, Evaluator],
  directory: epath.Path,
  start_step: int,
) -> str:
  """Returns the run's model, data, evaluators, devices and workdir as lines."""
  parameters = sum(x.size for x in jax.tree.leaves(exp.abstract_state.params))
  device = exp.mesh.devices.flat[0]
  begin = f"resuming at step {start_step}" if start_step else "starting"
  used = exp.train_split.num_used
  subset = f" ({used:,} of them used)" if used < exp.options.data.num_examples else ""
  kept = exp.train_split.kept_bytes(source)
  memory = f", decoded once and kept in memory (about {kept / 1e6:,.1f} MB)" if kept else ""
  return (
    f"{exp.title} with {parameters:,} parameters, {exp.options.size} px\n"
    f"data {exp.options.data.dataset} {exp.options.data.split}: {exp.options.data.num_examples:,} {exp.options.examples}{subset}"
    f"{memory}\n"
    f"evaluators: {', '.join(f'{name} {one.title}' for name, one in measured.items())};"
    f" best by {exp.options.best}\n"
    f"{exp.mesh.size} × {device.device_kind} in {jax.process_count()} process(es),"
    f" batch {exp.options.batch_size}, {exp.total_steps} steps\n"
    f"{unused_gpu(device.platform, jax.config.jax_platforms)}"
    f"{_placement(exp)}\n"
    f"{_kernels(exp)}"
    f"workdir {directory}: {begin}"
  )


def _kernels(exp: experiment.Experiment) -> str:
  """Returns the line that says what mixes tokens, where there is a choice; "" on a CPU or TPU."""
  asked, used = exp.options.kernels, getattr(exp.model, "kernels", "xla")
  if asked != "pallas" and exp.mesh.devices.flat[0].platform not in ("gpu", "cuda"):
    return ""
  return f"token mixing by {used} (config.kernels={asked})\n"


def lacking_classes(exp: experiment.Experiment, source: sources.Source) -> str:
  """Returns a line about classes of the model that the data lack; "" if there are none."""
  there, wanted = source.num_classes, exp.options.num_classes
  if there is None or there >= wanted:
    return ""
  return (
    f"config.num_classes is {wanted}, but {source.name} has {there} classes: {wanted - there} outputs of the "
    f"model have no {exp.options.examples}. Set config.num_classes={there} unless that is meant."
  )


def unused_gpu(platform: str, asked: str | None, devices: str = "/dev") -> str:
  """Returns a line if a run computes on the CPU of a machine with an NVIDIA GPU and JAX_PLATFORMS asks for nothing."""
  there = any(pathlib.Path(devices).glob("nvidia[0-9]*")) or shutil.which("nvidia-smi")
  if platform != "cpu" or asked or not there:
    return ""
  if importlib.metadata.entry_points(group="jax_plugins"):
    advice = "JAX's warning above says why; nvidia-smi must list the GPU, with the driver of docs/install.md"
  else:
    advice = f"to use it, stop, and then {installing('cuda')}, and resume"
  return f"training on the CPU although the machine has an NVIDIA GPU: {advice}\n"


def _placement(exp: experiment.Experiment) -> str:
  """Returns where the state lives: a line, or a table where the configuration shards parameters."""
  size = sharding.bytes_per_device(exp.abstract_state, exp.shardings.state)
  line = f"state of {size / 1e6:,.3f} MB on each device"
  if exp.mesh.shape.get("fsdp", 1) == 1:
    return line
  shards = sharding.table(sharding.describe(exp.abstract_state, exp.shardings))
  return (
    f"{line}: {exp.mesh.shape['data']} replicas, each on {exp.mesh.shape['fsdp']} devices\n{shards}"
  )
