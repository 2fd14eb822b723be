"""Linear few-shot accuracy of a run or a weights file: 1, 5, 10 and 25 images a class, three draws.

python -m mixer_jax.tools.fewshot --workdir=DIR
python -m mixer_jax.tools.fewshot --config=configs/NAME.py --weights=FILE.npz --dataset=cifar100 \
  --train_split=train --test_split=test
"""

from absl import app, flags

from mixer_jax.tools import command, model_flags

_DATASET = flags.DEFINE_string("dataset", None, "TFDS name or directory; default: the run's.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps it; default: as in the run.")
_TRAIN_SPLIT = flags.DEFINE_string("train_split", None, "Default: the run's training split.")
_TEST_SPLIT = flags.DEFINE_string("test_split", None, "Default: the run's evaluation split.")
_OPS = flags.DEFINE_string(
  "ops", "decode|resize|central_crop", "Pre-processing; the default is the paper's for few-shot."
)


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  trained = model_flags.load()
  from mixer_jax.evaluators import fewshot, fewshot_task
  from mixer_jax.training import experiment

  setup = trained.setup
  task = fewshot_task.open_task(
    setup.eval_split,
    dataset=_DATASET.value or setup.options.data.dataset,
    data_dir=_DATA_DIR.value or setup.options.data.data_dir,
    train_split=_TRAIN_SPLIT.value or setup.options.data.split,
    test_split=_TEST_SPLIT.value or setup.eval_split.split,
    image_ops=_OPS.value,
    where="--ops",
  )
  print(
    f"{trained.name}: few-shot on {task.train_source.name} ({len(task.drawn.rows)} of"
    f" {task.num_train} images drawn), tested on {task.test_source.name}"
    f" ({len(task.test_source)} images)",
    flush=True,
  )
  step = experiment.make_features_step(setup)
  values = dict(
    fewshot_task.evaluate(
      task,
      lambda batch: step(trained.variables, batch),
      batch_size=setup.options.evaluation.batch_size,
      batch_sharding=setup.shardings.batch,
      num_workers=setup.options.evaluation.num_workers,
    )
  )
  print("images a class  " + "".join(f"  draw {s}" for s in fewshot.SEEDS) + "    mean")
  for shots in fewshot.SHOTS:
    draws = "".join(f"  {values[f'{shots}shot_seed{s}']:.4f}" for s in fewshot.SEEDS)
    print(f"{shots:>14}  {draws}  {values[f'{shots}shot']:.4f}", flush=True)


if __name__ == "__main__":
  command.run(app.run, main)
