#!/usr/bin/env bash
# Checks the cluster, then starts a sweep or a finetuning, or resumes the one that the folder OUT holds.
#
#   run.sh tune CONFIG.yaml OUT [OPTION]...
#   run.sh finetune RUN OUT [OPTION]...
#
# OUT lies on the storage that all nodes share. Running it again is how to resume, after a lost node, a lost
# head, or a job that ran out of time.
set -euo pipefail

usage() {
  echo "usage: run.sh tune CONFIG.yaml OUT [OPTION]... | run.sh finetune RUN OUT [OPTION]..." >&2
  exit 2
}

[[ $# -ge 3 && ( $1 == tune || $1 == finetune ) ]] || usage
command=$1 what=$2 out=$3
shift 3

# Without an address, training would start a Ray of its own on this node. KubeRay's and the launcher's `ray
# job submit` set it; elsewhere Ray finds the cluster of the node that this runs on.
export RAY_ADDRESS=${RAY_ADDRESS:-auto}

rayrl-dt doctor --address "$RAY_ADDRESS" --storage "$(dirname "$out")"

arguments=("$what" --out "$out" "$@")
if [[ $command == tune ]]; then
  arguments+=(--address "$RAY_ADDRESS")
fi
if [[ -d $out && -n $(ls -A "$out") ]]; then
  arguments+=(--resume)
fi
exec rayrl-dt "$command" "${arguments[@]}"
