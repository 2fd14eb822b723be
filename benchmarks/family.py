"""One variant of each family, inference and training, beside PyTorch: images per second and share of the machine's peak.

    python -m benchmarks.family --cores=2                                # this project alone
    python -m benchmarks.family --cores=2 --rival_python=PYTHON --authors=DIR --json=FILE
    python -m benchmarks.family --tiny --families conv_mlp ccs           # small images, one turn each: to see that it works

Flags, work and turns are those of step.py. PyTorch, eager and compiled, runs in `--rival_python` (the environment that
step.py makes below its --workdir has all that is needed): timm where it has the model, else the authors' checkouts, which lie in
DIR under their repositories' names. What cannot run is a row that says why. FILE gets a Markdown table beside it.
"""

import argparse
import json
import pathlib
from typing import Any, NamedTuple

from benchmarks import step

CONTESTANTS = ("ours", "eager", "compiled")


class Checkout(NamedTuple):
  """Where the authors' model is.

  Attributes:
    folder: the repository's name.
    module: the file, as Python imports it from the folder.
    factory: what returns the model.
    size: the argument that takes the side of the image; None: it takes any image.
    arguments: others.
  """

  folder: str
  module: str
  factory: str
  size: str | None = None
  arguments: dict[str, Any] | None = None


_CCS: dict[str, Any] = {"token_mixing": "circulant", "channel_groups": 8, "gelu": "erf"}
_MIX_SIZES = [[1, 1, 3, 5, 7], [1, 3, 3, 5, 7], [1, 5, 5, 5, 7], [1, 7, 7, 7, 7]]
_MS_MLP = {"depths": [3, 3, 9, 3], "mix_size": _MIX_SIZES, "drop_path_rate": 0.0}
FAMILIES: dict[str, tuple[dict[str, Any], str | Checkout | None]] = {
  "mixer": ({"name": "mixer", "variant": "B/16"}, "mixer_b16_224"),
  "ccs": ({"name": "mixer", "variant": "B/16", **_CCS}, None),
  "res_mlp-12": ({"name": "res_mlp", "variant": "12"}, "resmlp_12_224"),
  "res_mlp-24": ({"name": "res_mlp", "variant": "24"}, "resmlp_24_224"),
  "conv_mlp": (
    {"name": "conv_mlp", "variant": "S"},
    Checkout("Convolutional-MLPs", "src.convmlp", "convmlp_s"),
  ),
  "cycle_mlp": (
    {"name": "cycle_mlp", "variant": "B1"},
    Checkout("CycleMLP", "cycle_mlp", "CycleMLP_B1"),
  ),
  "hire_mlp": (
    {"name": "hire_mlp", "variant": "T"},
    Checkout("Hire-Wave-MLP.pytorch", "mlp_based.hire_mlp", "hire_mlp_tiny"),
  ),
  "s2_mlp": ({"name": "s2_mlp", "variant": "deep"}, None),
  "ms_mlp": (
    {"name": "ms_mlp", "variant": "T"},
    Checkout("MS-MLP", "models.ms_mlp", "MS_MLP", "img_size", _MS_MLP),
  ),
  "smlp_net": (
    {"name": "smlp_net", "variant": "T"},
    Checkout("SPACH", "models", "smlpnet_tiny", "image_size"),
  ),
  "spach": (
    {"name": "spach", "variant": "MS-XS/hybrid"},
    Checkout("SPACH", "models", "spach_ms_xs_patch4_224_hybrid", "img_size"),
  ),
}
"""Family -> what models.build takes; timm's name of the model, or the authors' checkout, or None: neither has code."""


def main() -> None:
  parser = step.make_parser("each family beside PyTorch's models", CONTESTANTS)
  parser.add_argument("--families", nargs="+", choices=[*FAMILIES], default=[*FAMILIES])
  parser.add_argument("--authors", type=pathlib.Path, help="folder of the authors' checkouts")
  args = step.parse(parser)
  step.keep_cores(args)
  rows = [row for family in args.families for row in compare(args, family)]
  table = markdown(rows)
  print(table)
  if args.json:
    args.json.write_text(json.dumps({"cores": args.cores, "rows": rows}, indent=1) + "\n")
    args.json.with_suffix(".md").write_text(table)


def compare(args: argparse.Namespace, family: str) -> list[dict[str, Any]]:
  """Returns a row for each contestant and work."""
  return [{"family": family, **row} for row in step.compare_case(args, *make_case(args, family))]


def make_case(args: argparse.Namespace, family: str) -> tuple[step.Case, str | None]:
  """Returns what is timed, and why PyTorch cannot run it: None if it can."""
  model, rival = FAMILIES[family]
  size = step.TINY_SIZE if args.tiny else step.IMAGE_SIZE
  case = step.Case(model, size, None)
  if rival is None:
    return case, "neither timm nor the authors have code"
  if args.rival_python is None:
    return case, "no --rival_python"
  if isinstance(rival, str):
    return case._replace(rival=step.of_timm(rival, size)), None
  if args.authors is None or not (args.authors / rival.folder).is_dir():
    return case, f"no {rival.folder} in --authors={args.authors}"
  arguments = (rival.arguments or {}) | ({rival.size: size} if rival.size else {})
  spec = {"module": rival.module, "factory": rival.factory, "arguments": arguments}
  spec["path"] = str((args.authors / rival.folder).absolute())
  return case._replace(rival=spec), None


def markdown(rows: list[dict[str, Any]]) -> str:
  """Returns the table."""
  lines = [
    "| model | work | contestant | ms | images/s | share of the peak | ours is … × as fast |",
    "|---|---|---|---|---|---|---|",
  ]
  for row in rows:
    if reason := row.get("not_run"):
      lines.append(f"| {row['model']} | | {row['contestant']} | not run: {reason} | | | |")
      continue
    ratio = "" if row["ours_ratio"] is None else f"{row['ours_ratio']:.2f}"
    lines.append(
      f"| {row['model']} | {row['work']} | {row['contestant']} |"
      f" {1000 * row['batch_size'] / row['images_per_sec']:.0f} | {row['images_per_sec']:.2f} |"
      f" {row['mfu']:.0%} | {ratio} |"
    )
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  main()
