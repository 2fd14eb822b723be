#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster as a JobSet (docs/launch.md says what the cluster needs).
#
#   launch/gke.sh [--dry_run] [--data_bucket=BUCKET] NAME IMAGE TOPOLOGY \
#     --config=FILE --config.data.data_dir=/mnt/data --workdir=gs://BUCKET/DIR …
#
# TOPOLOGY as the planner has it: v5e:4x4, v4:2x2x4. The data's bucket is mounted at /mnt/data. --dry_run
# prints the manifest. The same command, after `kubectl delete jobset NAME`, resumes.
# $JAX_COMPILATION_CACHE_DIR reaches the pods.
set -euo pipefail
cd "$(dirname "$0")/.."

dry_run=false bucket=
while [[ ${1:-} =~ ^--(dry_run|data_bucket=.*)$ ]]; do
  case $1 in
    --dry_run) dry_run=true ;;
    --data_bucket=*)
      bucket=${1#*=}
      if ! [[ $bucket =~ ^[a-z0-9][-_.a-z0-9]*[a-z0-9]$ ]]; then
        echo "error: $1: the name of a bucket, without gs:// and without a directory" >&2
        exit 2
      fi
      ;;
  esac
  shift
done
if (($# < 4)); then
  echo "usage: launch/gke.sh [--dry_run] [--data_bucket=BUCKET] NAME IMAGE TOPOLOGY FLAGS…" >&2
  exit 2
fi
name=$1 image=$2 topology=$3
shift 3
if ! [[ $name =~ ^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$ ]]; then
  echo "error: NAME $name: up to 32 lower-case letters, digits and dashes" >&2
  exit 2
fi
if ! [[ $image =~ ^[-a-zA-Z0-9./:_@]+$ ]]; then
  echo "error: IMAGE $image is not the name of a container image" >&2
  exit 2
fi
chip=${topology%%:*} shape=${topology#*:}
flat="1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16" cube="2x2x1 2x2x2 2x2x4 2x4x4"
case $chip in
  v4) accelerator=tpu-v4-podslice shapes=$cube ;;
  v5e) accelerator=tpu-v5-lite-podslice shapes=$flat ;;
  v5p) accelerator=tpu-v5p-slice shapes=$cube ;;
  v6e) accelerator=tpu-v6e-slice shapes=$flat ;;
  tpu7x) accelerator=tpu7x shapes=$cube ;;
  *)
    echo "error: TOPOLOGY $topology: v4:XxYxZ, v5e:XxY, v5p:XxYxZ, v6e:XxY or tpu7x:XxYxZ" >&2
    exit 2
    ;;
esac
offered() { # whether GKE has slices of this shape
  local x y z
  [[ $shape =~ ^[1-9][0-9]{0,2}(x[1-9][0-9]{0,2})+$ ]] || return 1
  [[ " $shapes " != *" $shape "* ]] || return 0
  IFS=x read -r x y z <<<"$shape"
  [[ $shapes == "$cube" && $z =~ ^[0-9]+$ ]] && ((x % 4 + y % 4 + z % 4 == 0 && x <= y && y <= z))
}
if ! offered; then
  [[ $shapes == "$flat" ]] || shapes+=", or XxYxZ of multiples of 4, X ≤ Y ≤ Z"
  echo "error: TOPOLOGY $topology: GKE's slices of $chip are $shapes" >&2
  exit 2
fi
chips=$((${shape//x/*}))
per_host=$((chips < 4 ? chips : 4)) hosts=$(((chips + 3) / 4))

quoted() { # for YAML
  local text=${1//\\/\\\\}
  echo "\"${text//\"/\\\"}\""
}
args=
for flag in "$@"; do
  args+="
                    - $(quoted "$flag")"
done
cache=$(quoted "${JAX_COMPILATION_CACHE_DIR:-}")

manifest=$(<launch/gke_jobset.yaml)
[[ -n $bucket ]] || manifest=$(grep --invert-match '# data$' <<<"$manifest")
[[ -n ${JAX_COMPILATION_CACHE_DIR:-} ]] || manifest=$(grep --invert-match '# cache$' <<<"$manifest")
for field in name image accelerator shape per_host hosts bucket cache args; do
  manifest=${manifest//"\${$field}"/"${!field}"}
done
if $dry_run; then
  echo "$manifest"
else
  kubectl apply --filename=- <<<"$manifest"
fi
