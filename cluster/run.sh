#!/usr/bin/env bash
# Checks the cluster, then starts a sweep or a finetuning, or resumes the one that the folder OUT holds.
#
#   run.sh tune CONFIG.yaml OUT [OPTION]...
#   run.sh finetune RUN OUT [OPTION]...
#
# OUT lies on the storage that all nodes share, or is a URI (s3://bucket/NAME). Running it again is how to resume, after a lost node, a lost
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

# Whether OUT holds something to resume: of a URI, the list that a run's copy ends with, or the sweep's file.
begun() {
  if [[ $out != *://* ]]; then
    [[ -d $out && -n $(ls -A "$out") ]]
  else
    python - "$out" << 'END'
import sys
from pyarrow.fs import FileSystem, FileType

system, root = FileSystem.from_uri(sys.argv[1])
found = system.get_file_info([f"{root}/{name}" for name in ("files.json", "sweep.yaml")])
sys.exit(all(file.type == FileType.NotFound for file in found))
END
  fi
}

storage=$out
[[ $out == *://* ]] || storage=$(dirname "$out")
rayrl-dt doctor --address "$RAY_ADDRESS" --storage "$storage"

arguments=("$what" --out "$out" "$@")
if [[ $command == tune ]]; then
  arguments+=(--address "$RAY_ADDRESS")
fi
if begun; then
  arguments+=(--resume)
fi
exec rayrl-dt "$command" "${arguments[@]}"
