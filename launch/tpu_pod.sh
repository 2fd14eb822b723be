#!/usr/bin/env bash
# Runs a command of this project on all hosts of a TPU slice that exists (docs/launch.md makes one).
#
#   launch/tpu_pod.sh [--dry_run] setup NAME ZONE             copies the committed sources, installs them
#   launch/tpu_pod.sh [--dry_run] train NAME ZONE --config=FILE --workdir=gs://BUCKET/DIR …
#   launch/tpu_pod.sh [--dry_run] stop  NAME ZONE             SIGTERM: saves, then ends
#
# `train` starts the training on every host, where it goes on when this connection ends, shows host 0's log,
# and ends with it and its exit status. The same command resumes. $JAX_COMPILATION_CACHE_DIR reaches the hosts.
set -euo pipefail
cd "$(dirname "$0")/.."

run() { "$@"; }
if [[ ${1:-} == --dry_run ]]; then
  run() { printf '%q ' "$@" && echo; }
  shift
fi
if [[ ! ${1:-} =~ ^(setup|train|stop)$ || -z ${2:-} || -z ${3:-} ]]; then
  echo "usage: launch/tpu_pod.sh [--dry_run] setup|train|stop NAME ZONE [train.py's flags]" >&2
  exit 2
fi
what=$1 name=$2 zone=$3
shift 3

on() { # hosts, command
  run gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone" "--worker=$1" "--command=$2"
}

case $what in
  setup)
    archive=$(mktemp -d)/mixer-jax.tar.gz
    trap 'rm -rf "$(dirname "$archive")"' EXIT
    run git archive --format=tar.gz "--output=$archive" HEAD
    run gcloud compute tpus tpu-vm scp "$archive" "$name:mixer-jax.tar.gz" "--zone=$zone" --worker=all
    # The images of TPU hosts have Python 3.10; uv brings another without touching it.
    on all "mkdir -p mixer-jax && tar -xzf mixer-jax.tar.gz -C mixer-jax && cd mixer-jax &&
python3 -m pip install --quiet --user uv &&
python3 -m uv venv --quiet --allow-existing --python 3.12 .venv &&
python3 -m uv pip install --quiet --python .venv/bin/python --editable '.[tpu,gcs]'"
    on all "cd mixer-jax && .venv/bin/python -c 'import jax; print(jax.local_devices())'"
    ;;
  train)
    if (($# == 0)); then
      echo "error: train.py's flags are missing" >&2
      exit 2
    fi
    flags=$(printf '%q ' "$@")
    cache=
    if [[ -n ${JAX_COMPILATION_CACHE_DIR:-} ]]; then
      cache="JAX_COMPILATION_CACHE_DIR=$(printf '%q' "$JAX_COMPILATION_CACHE_DIR") "
    fi
    # train.pid is the shell's, which leaves the exit status behind before it ends.
    on all "cd mixer-jax && if [ -f train.pid ] && kill -0 \$(cat train.pid) 2> /dev/null
then echo 'a training is running here; stop it first' >&2; exit 1; fi
rm -f train.status
(trap '' HUP
${cache}.venv/bin/python train.py --distributed --wait_for_workdir $flags
echo \$? > train.status) > train.log 2>&1 < /dev/null & echo \$! > train.pid"
    on 0 "cd mixer-jax && tail --follow --lines=+1 --pid=\$(cat train.pid) train.log
status=\$(cat train.status || echo 1)
echo \"train.py ended with exit status \$status\" >&2
exit \$status"
    ;;
  stop)
    on all "pkill -TERM -P \$(cat mixer-jax/train.pid) || { echo 'no training is running here' >&2; exit 1; }"
    ;;
esac
