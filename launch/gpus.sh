#!/usr/bin/env bash
# Trains on the GPUs of this machine.
#
#   launch/gpus.sh [--dry_run] [--processes=N] --config=configs/imagenet.py:B/16 --workdir=DIR …
#
# One process drives all GPUs; --processes=N starts N, each with its share of them. The remaining flags
# are train.py's. SIGTERM and Ctrl-C reach all processes, which save; if one fails, the others are stopped.
# $CUDA_VISIBLE_DEVICES: which GPUs, if not all; $PORT: of the coordinator; $PYTHON.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=false processes=1
while [[ ${1:-} =~ ^--(dry_run|processes=.*)$ ]]; do
  case $1 in
    --dry_run) dry_run=true ;;
    --processes=*) processes=${1#*=} ;;
  esac
  shift
done
if ! [[ $processes =~ ^[1-9][0-9]*$ ]]; then
  echo "error: --processes=$processes is not a number of processes" >&2
  exit 2
fi
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
if ((processes > 1)); then
  if [[ -v CUDA_VISIBLE_DEVICES ]]; then
    IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
  else
    mapfile -t gpus < <(nvidia-smi --list-gpus 2>/dev/null | sed -n 's/^GPU \([0-9]*\):.*/\1/p')
  fi
  if ((${#gpus[@]} == 0)); then
    echo "error: found no GPU to share out; say which there are, as in CUDA_VISIBLE_DEVICES=0,1,2,3" >&2
    exit 2
  fi
  share=$((${#gpus[@]} / processes))
  if ((share * processes != ${#gpus[@]})); then
    echo "error: ${#gpus[@]} GPUs cannot be shared out among $processes processes" >&2
    exit 2
  fi
fi
port=${PORT:-12321}

command_of() { # of process $1; the rest are train.py's flags
  local id=$1
  shift
  command=("$python" train.py "$@")
  if ((processes > 1)); then
    command=(env "CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${gpus[*]:id * share:share}")" "${command[@]}"
      --distributed "--coordinator=localhost:$port" "--num_processes=$processes" "--process_id=$id")
  fi
}

if $dry_run; then
  for ((id = 0; id < processes; id++)); do
    command_of "$id" "$@"
    printf '%q ' "${command[@]}"
    echo
  done
  exit 0
fi
if ((processes == 1)); then
  command_of 0 "$@"
  exec "${command[@]}"
fi

# Each child leads a session of its own: Ctrl-C in the terminal must not reach it beside the SIGTERM from
# here, since a second signal ends train.py at once.
children=() stopping=false
stop() {
  $stopping || kill -TERM "${children[@]}" 2>/dev/null || true
  stopping=true
}
trap stop TERM INT HUP
for ((id = 0; id < processes; id++)); do
  command_of "$id" "$@"
  setsid "${command[@]}" &
  children+=($!)
done
status=0 code=0
while ((code != 127)); do # none left
  code=0
  wait -n || code=$?
  if ((code && code != 127 && !status)); then
    status=$code
    stop
  fi
done
exit $status
