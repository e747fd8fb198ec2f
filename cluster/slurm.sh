#!/usr/bin/env bash
# A sweep or a finetuning on the nodes of a SLURM job, with one Ray over all of them.
#
#   sbatch --nodes=4 cluster/slurm.sh tune tune_configs/smoke.yaml /shared/runs/smoke
#   sbatch --nodes=2 --gpus-per-node=1 cluster/slurm.sh finetune /shared/runs/hopper-dt /shared/runs/hopper-online
#
# The arguments are those of run.sh. Submitting the same line again resumes. Submit from the root of the repository,
# in the Python environment of the project, both on storage that all nodes share.
#
# Whole nodes: `ray symmetric-run` refuses a node that runs a Ray already, and ends with `ray stop`, which stops every
# Ray of the user on the node.
#SBATCH --job-name=rayrl-dt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=24:00:00
# Two minutes before the end, so that the run writes a checkpoint; submitting the same line again resumes it.
#SBATCH --signal=TERM@120
#SBATCH --output=%x-%j.log
set -euo pipefail

fail() {
  echo "slurm.sh: $*" >&2
  exit 2
}

[[ $# -ge 3 ]] || fail "usage: sbatch slurm.sh tune CONFIG.yaml OUT [OPTION]... | finetune RUN OUT [OPTION]..."
[[ -n ${SLURM_JOB_ID:-} ]] || fail "there is no SLURM job; start it with sbatch"
nodes=$SLURM_JOB_NUM_NODES
# Ray waits for exactly as many nodes as there are tasks; a second task on a node is refused by Ray.
# Not every SLURM says how many.
tasks=${SLURM_NTASKS:-$nodes}
[[ $tasks -eq $nodes ]] || fail "$tasks tasks on $nodes nodes; set --ntasks-per-node=1"
# What all nodes share: the folder of OUT, or of a URI this one.
shared=$PWD
[[ $3 == *://* ]] || shared=$(dirname "$3")
mkdir -p "$shared" || fail "$shared cannot be made; name an OUT on shared storage"
[[ -f cluster/run.sh ]] || fail "no cluster/run.sh in $PWD; submit from the root of the repository"

# An address that the other nodes can reach, and that the head finds among its own: some nodes resolve their own
# name to 127.0.1.1, and then there would be no head.
# (No `| head -n 1`: with pipefail, a list that is cut off would end the script.)
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head_node=${head_node%%$'\n'*}
# The first one may be that of a network for management: HEAD_IP=10.1.2.3, or a prefix of it (10.1.), chooses another.
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head_node" hostname -I)
for address in $head_ip none; do
  [[ $address != "${HEAD_IP:-}"* ]] || break
done
[[ $address != none ]] || fail "$head_node has no address that begins with HEAD_IP=${HEAD_IP:-} but $head_ip"
head_ip=$address
[[ -n $head_ip && $head_ip != 127.* ]] || fail "$head_node has no address but '$head_ip'"
port=$((20000 + SLURM_JOB_ID % 10000))

# Ray 2.60 waits 30 s for all nodes unless told otherwise, and nodes come later than that.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-300}
# Sockets lie in it, whose paths may have 107 characters: the job's own scratch folder is often too deep.
export RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID

# Nodes are shared with other users, and whoever reaches an open Ray runs code as its owner. Said to all nodes: Ray 2.60
# otherwise asks for a token on the head and sends none from the others where the home folder holds one.
export RAY_AUTH_MODE=token
export RAY_AUTH_TOKEN_PATH
RAY_AUTH_TOKEN_PATH=$shared/.ray-token-$SLURM_JOB_ID
(umask 077 && od -An -tx1 -N32 /dev/urandom | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")

# A failed `ray start` is echoed, and ends with status 0. So success is what the command leaves behind.
finished=$shared/.finished-$SLURM_JOB_ID
trap 'rm -f "$finished" "$RAY_AUTH_TOKEN_PATH"' EXIT

# On each node. Slurm signals what it has started, and none of the processes of that: `ray symmetric-run` would die of
# SIGTERM at once, and rayrl-dt never hear of it. So this shell hands it on, where rayrl-dt is, and waits for its checkpoint.
on_node() {
  trap 'kill -TERM "$(cat "$RAY_TMPDIR.pid")"' TERM
  trap 'rm -f "$RAY_TMPDIR.pid"' EXIT
  ray symmetric-run "$@" &
  while true; do
    wait $! && status=0 || status=$?
    kill -0 $! || return "$status" # else it was the signal that ended the waiting
  done 2> /dev/null
}

# Without a number of CPUs a task gets one of them, however many Ray is told of. On the head run.sh becomes rayrl-dt, with
# the same number.
# shellcheck disable=SC2016  # the inner shell expands its own arguments
srun --nodes="$nodes" --ntasks="$nodes" --cpus-per-task="${SLURM_CPUS_ON_NODE:?}" --kill-on-bad-exit=1 \
  bash -c "$(declare -f on_node); on_node \"\$@\"" slurm.sh \
  --address "$head_ip:$port" \
  --min-nodes "$nodes" \
  --num-cpus="${SLURM_CPUS_ON_NODE:?}" \
  --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
  --disable-usage-stats \
  -- \
  bash -c 'export RAY_ADDRESS=$1; (echo "$BASHPID" > "$RAY_TMPDIR.pid"; exec bash cluster/run.sh "${@:3}") && touch "$2"' \
  run.sh "$head_ip:$port" "$finished" "$@"

[[ -e $finished ]] || fail "the command did not finish; read the log above, then submit the same line again"
