"""What the transfer protocol (tools/transfer.py) and later evaluations say of a pre-trained model."""

import dataclasses
import pathlib
import statistics
from collections.abc import Sequence

from mixer_jax import protocol, weights
from mixer_jax.data import datasets
from mixer_jax.errors import InputError
from mixer_jax.paper import rows
from mixer_jax.paper.results import Found, Run
from mixer_jax.paper.rows import Pretraining
from mixer_jax.paper.sheets import LeftOut, Missing

IMAGENET, REAL = protocol.FIVE[0], "imagenet2012_real"
_RELEASED = {"ImageNet": "imagenet1k", "ImageNet-21k": "imagenet21k"}


@dataclasses.dataclass(frozen=True)
class Setting:
  """How a table fine-tunes: the configuration's file, and the results' directory below RESULTS."""

  file: str
  directory: str


TABLE2 = Setting("configs/finetune.py", "table2")
TABLE3 = Setting("configs/finetune_table3.py", "table3")


@dataclasses.dataclass(frozen=True)
class Transferred:
  """Means over seeds in per cent, after fine-tuning; None: not finished.

  Attributes:
    imagenet, real, avg5, vtab: top-1.
    left_out: runs that were found and not used.
  """

  imagenet: float | None
  real: float | None
  avg5: float | None
  vtab: float | None
  left_out: list[LeftOut]


def source_of(pretraining: Pretraining, run: Run | None) -> str | None:
  """Returns the weights that a pre-training's transfer starts from: the run's, else released ones."""
  if run is not None:
    return str(run.path)
  family, _, variant = pretraining.model.partition("-")
  directory = _RELEASED.get(pretraining.dataset)
  name = f"{directory}/{family}-{variant.replace('/', '_')}"
  return name if name in weights.RELEASED else None


def read(found: Found, source: str, size: int, setting: Setting) -> Transferred:
  """Returns what is known of these weights at this image size (VTAB-1k: at its own sizes)."""
  runs, left_out = _matching(found, source, setting)
  results = {name: run.top1 for name, run in runs.items() if run.top1 is not None}
  five = [protocol.Transfer(source, d, size) for d in protocol.FIVE]
  vtab = [protocol.Transfer(source, d, protocol.size_of(d, None, 224)) for d in datasets.VTAB]
  table = protocol.table([*five, *vtab], None, protocol.NUM_SEEDS, results)
  means = {row.dataset: row.mean for row in table if len(row.top1) == protocol.NUM_SEEDS}
  reported = [
    runs[r.name]
    for r in protocol.test_runs(five[0], None, protocol.NUM_SEEDS, results)
    if r.name in runs
  ]
  real = [_evaluation(run, REAL) for run in reported]
  done = len(real) == protocol.NUM_SEEDS and all(v is not None for v in real)
  return Transferred(
    imagenet=_percent(means.get(IMAGENET)),
    real=_percent(statistics.mean([v for v in real if v is not None])) if done else None,
    avg5=_percent(means.get("Avg 5")),
    vtab=_percent(means.get("VTAB-1k")),
    left_out=left_out,
  )


def _percent(share: float | None) -> float | None:
  return None if share is None else 100 * share


def _evaluation(run: Run, dataset: str) -> float | None:
  """Returns the last top-1 that the run's final checkpoint had on this data set."""
  values = [
    e["top1"]
    for e in run.evaluations
    if e.get("dataset") == dataset and e.get("step") == run.last_step
  ]
  return values[-1] if values else None


def _matching(found: Found, source: str, setting: Setting) -> tuple[dict[str, Run], list[LeftOut]]:
  """Returns {protocol's name: run} of the runs that start from these weights, and those left out."""
  runs: dict[str, Run] = {}
  left_out = []
  for run in found.runs:
    own = run.value("init.weights")
    if own is None or not _same(str(own), source):
      continue
    try:
      asked = _asked(run, source)
      wanted = _wanted(asked, str(own), setting)
      changed = rows.differences(run.config, wanted, ())
    except (InputError, KeyError, TypeError, ValueError) as e:
      left_out.append(LeftOut(str(run.path), f"not a run of the protocol: {e}"))
      continue
    if changed:
      reason = f"another configuration than {setting.file}: {rows.some(changed)}"
      left_out.append(LeftOut(str(run.path), reason))
    elif run.top1 is None:
      left_out.append(
        LeftOut(str(run.path), f"half a run: step {run.last_step} of {wanted.total_steps}")
      )
    elif asked.name in runs:
      left_out.append(LeftOut(str(run.path), f"{runs[asked.name].path} is the same and was used"))
    else:
      runs[asked.name] = run
  return runs, left_out


def _same(a: str, b: str) -> bool:
  return a == b or (
    a not in weights.RELEASED
    and pathlib.Path(a).expanduser().resolve() == pathlib.Path(b).resolve()
  )


def _asked(run: Run, source: str) -> protocol.Run:
  config = run.config
  transfer = protocol.Transfer(source, config["data"]["dataset"], config["image_size"])
  judge = "dev" if config["evaluation"]["split"] == "dev" else "test"
  return protocol.Run(transfer, float(config["learning_rate"]), int(config["seed"]), judge)


def _wanted(asked: protocol.Run, own: str, setting: Setting):
  t = asked.transfer
  config = rows.load(
    f"{setting.file}:weights={own},dataset={t.dataset},size={t.size},lr={asked.lr},judge={asked.judge}"
  )
  config.seed = asked.seed
  return config


def missing(
  found: Found,
  pretraining: Pretraining,
  source: str | None,
  size: int,
  setting: Setting,
  done: Transferred | None,
  wanted: Sequence[str],
  cost: str,
) -> Missing | None:
  """Returns the commands that produce what is wanted of "imagenet", "real", "avg5", "vtab" and not done."""
  open_ = [w for w in wanted if done is None or getattr(done, w) is None]
  if not open_:
    return None
  commands = []
  weights_of = source
  if weights_of is None:
    weights_of = f"{found.directory}/pretrain/{pretraining.name}"
    commands.append(f"python train.py --config={pretraining.file} --workdir={weights_of}")
  results = f"{found.directory}/{setting.directory}"
  tool = f"python -m mixer_jax.tools.transfer --weights={weights_of} --results={results}"
  tool += f" --config={setting.file}" * (setting is not TABLE2)
  if "avg5" in open_:
    commands.append(f"{tool} --datasets=five --size={size}")
  elif "imagenet" in open_ or ("real" in open_ and (done is None or done.imagenet is None)):
    commands.append(f"{tool} --datasets={IMAGENET} --size={size}")
  if "real" in open_:
    place = protocol.Transfer(weights_of, IMAGENET, size).name
    commands.append(
      f"for run in {results}/{place}/test-*; do"
      f" python eval.py --workdir=$run --dataset={REAL} --record; done"
    )
  if "vtab" in open_:
    commands.append(f"{tool} --datasets=vtab")
  what = f"{pretraining.dataset}, {pretraining.model}, {pretraining.epochs:g} epochs, {size} px"
  return Missing(f"{what}: {', '.join(open_)}", commands, cost)
