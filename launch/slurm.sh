#!/usr/bin/env bash
# Submits a training to Slurm: one process a GPU on each node.
#
#   launch/slurm.sh [--dry_run] NODES GPUS_PER_NODE [sbatch's options …] -- --config=FILE --workdir=DIR …
#
# What follows "--" are train.py's flags; DIR must be shared by the nodes, or a bucket. The job saves two
# minutes before its time is up and queues itself again until the training has ended or failed for good.
set -euo pipefail
cd "$(dirname "$0")/.."

run() { "$@"; }
if [[ ${1:-} == --dry_run ]]; then
  run() { printf '%q ' "$@" && echo; }
  shift
fi
if ! [[ ${1:-} =~ ^[1-9][0-9]*$ && ${2:-} =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/slurm.sh [--dry_run] NODES GPUS_PER_NODE [sbatch's options] -- FLAGS" >&2
  exit 2
fi
nodes=$1 gpus=$2
shift 2
options=()
while (($#)) && [[ $1 != -- ]]; do
  options+=("$1")
  shift
done
if (($# < 2)); then
  echo "error: train.py's flags are missing; they follow --" >&2
  exit 2
fi
shift
run sbatch "--nodes=$nodes" "--ntasks-per-node=$gpus" "--gpus-per-node=$gpus" "${options[@]}" \
  launch/train.sbatch "$@"
