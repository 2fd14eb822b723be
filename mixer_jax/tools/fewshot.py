"""Linear few-shot accuracy of a run or a weights file: 1, 5, 10 and 25 images a class, three draws.

python -m mixer_jax.tools.fewshot --workdir=DIR
python -m mixer_jax.tools.fewshot --config=configs/NAME.py --weights=FILE.npz --dataset=cifar100 \
  --train_split=train --test_split=test
"""

from absl import flags

from mixer_jax import schema
from mixer_jax.tools import command, model_flags

_DATASET = flags.DEFINE_string(
  "dataset", None, "TFDS name, or directory of a prepared data set. Default: the run's data set."
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Directory where TFDS keeps the data set. Default: as in the run."
)
_TRAIN_SPLIT = flags.DEFINE_string(
  "train_split",
  None,
  "Split that the few images are drawn from. Default: the run's training split.",
)
_TEST_SPLIT = flags.DEFINE_string(
  "test_split",
  None,
  "Split to test on. Default: the split of the evaluator that chooses the run's best checkpoint.",
)
_OPS = flags.DEFINE_string(
  "ops",
  schema.Fewshot.ops,
  "Preprocessing of both splits. The default is the paper's for few-shot.",
)


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  trained = model_flags.load()
  from mixer_jax import evaluators
  from mixer_jax.evaluators import fewshot

  options = trained.setup.options
  best = options.evaluators[evaluators.best(options)[0]]
  section = schema.Fewshot(
    dataset=_DATASET.value,
    data_dir=_DATA_DIR.value,
    train_split=_TRAIN_SPLIT.value or options.data.split,
    test_split=_TEST_SPLIT.value or vars(best).get("split") or best.test_split,
    ops=_OPS.value,
    batch_size=best.batch_size,
    num_workers=best.num_workers,
  )
  task = evaluators.Fewshot(trained.setup, section, "--")
  (_, train), (_, test) = task.train, task.test
  print(
    f"{trained.name}: few-shot on {train.name} ({len(train)} of {task.num_train} {options.examples} drawn),"
    f" tested on {test.name} ({len(test)} {options.examples})",
    flush=True,
  )
  values = dict(task(trained.variables, 0))
  print(
    f"{options.examples} a class  " + "".join(f"  draw {s}" for s in fewshot.SEEDS) + "    mean"
  )
  for shots in fewshot.SHOTS:
    draws = "".join(f"  {values[f'{shots}shot_seed{s}']:.4f}" for s in fewshot.SEEDS)
    print(f"{shots:>14}  {draws}  {values[f'{shots}shot']:.4f}", flush=True)


if __name__ == "__main__":
  command.run(main)
