"""Writes a trained model as timm and the Hugging Face hub keep it: weights, configuration, classes, and a model card.

python -m mixer_jax.tools.push --workdir=DIR --to=MODEL
python -m mixer_jax.tools.push --workdir=DIR --checkpoint=best --to=hf://OWNER/NAME

MODEL is a new directory. mixer_jax.load reads it, and timm.create_model("local-dir:MODEL") if timm has such a model.
"""

from absl import flags

from mixer_jax.tools import command, model_flags

_TO = flags.DEFINE_string("to", None, "New directory, or hf://OWNER/NAME.", required=True)


def main(argv: list[str]) -> None:
  command.no_arguments(argv)
  from mixer_jax.inference import hub
  from mixer_jax.workdir import directory, metrics

  trained = model_flags.load()
  scores: dict[str, float] = {}
  if trained.step is not None:
    records = metrics.read_metrics(directory.path_of(model_flags.chosen()["workdir"]))
    of_step = [r for r in records if r["step"] == trained.step]
    scores = {k: v for r in of_step for k, v in r.items() if "/" in k and isinstance(v, float)}
  print(f"{trained.name} -> {hub.push(trained, _TO.value, scores)}")


if __name__ == "__main__":
  command.run(main)
