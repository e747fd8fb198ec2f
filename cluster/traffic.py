"""What an asynchronous finetuning moves per second between the nodes of a cluster, from the sizes of real messages.

    python cluster/traffic.py --nodes 100 --runners 16 --slots 8 --rate 500 --updates 100 --lag 300

Sizes are those of the pickled messages that `rayrl_dt` sends, for policies on Hopper (11 observations, 3 actions); the
rates are yours. Needs no Ray and no cluster.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import time
from dataclasses import dataclass
from typing import Any

from rayrl_dt.algorithms.runners.asynchronous import StreamResult
from rayrl_dt.benchmarks.workload import BATCH_SIZE, make_store
from rayrl_dt.data import windows
from rayrl_dt.data.replay import TrajectoryReplay
from rayrl_dt.evaluation.rollout import EpisodeRecord
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import ModelConfig, PolicySpec
from rayrl_dt.seeding import numpy_generator
from rayrl_dt.types import Normalizer

_POLICIES = {
    "default (64 x 2, K 5)": {"context_length": 5, "embed_dim": 64, "num_layers": 2, "num_heads": 1},
    "Hopper (128 x 3, K 20)": {"context_length": 20, "embed_dim": 128, "num_layers": 3, "num_heads": 1},
    "ODT's (512 x 4, K 20)": {"context_length": 20, "embed_dim": 512, "num_layers": 4, "num_heads": 4},
}


@dataclass(frozen=True)
class Sizes:
    """Bytes of the messages of a policy.

    Attributes:
        weights: of the policy.
        step: an environment step in an episode that travels.
        batch: windows of one gradient step, with the shifted ones that TD targets need.
    """

    weights: int
    step: float
    batch: int


def measure(model: dict[str, Any]) -> Sizes:
    """Pickles one message of each kind."""
    store = make_store()
    config = ModelConfig.from_dict({**model, "max_episode_steps": 1000})
    state = SequenceModel(PolicySpec.from_store(config, store, return_scale=1000.0)).state_dict()
    episode = store.trajectory(0)
    record = EpisodeRecord(0.0, 0.0, len(episode.rewards), episode)
    result = StreamResult(stream=0, episodes=(record,), env_steps=record.length, weights=0, episodes_before=0)
    rng = numpy_generator(0, "traffic")
    batch = windows.sample(store, rng, BATCH_SIZE, model["context_length"], successors=True)
    return Sizes(
        weights=_pickled({name: value.numpy() for name, value in state.items()}),
        step=_pickled(result) / record.length,
        batch=_pickled(batch),
    )


def replay_rate() -> float:
    """Environment steps per second that the replay takes in here, from messages as they arrive."""
    store = make_store()
    replay = TrajectoryReplay(store.info, Normalizer.identity(store.observations.shape[1:]), capacity=500)
    messages = [pickle.dumps([store.trajectory(number)], protocol=5) for number in range(len(store.lengths))]
    begin = time.perf_counter()
    for message in messages:
        replay.add(pickle.loads(message))
    return store.num_steps / (time.perf_counter() - begin)


def _pickled(message: Any) -> int:
    return len(pickle.dumps(message, protocol=5))


def main() -> None:
    """Print a table of sizes and rates for each policy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=100, help="that collect")
    parser.add_argument("--runners", type=int, default=16, help="env runners on each")
    parser.add_argument("--slots", type=int, default=8, help="environments of each runner")
    parser.add_argument("--rate", type=float, default=500, help="environment steps per second of a runner")
    parser.add_argument("--updates", type=float, default=100, help="gradient steps per second")
    parser.add_argument("--lag", type=int, default=300, help="online.max_policy_lag")
    parser.add_argument("--fragment", type=int, default=50, help="vector steps of a call")
    given = parser.parse_args()
    steps = given.rate * given.runners * given.nodes
    # The driver puts new weights into the object store once they have moved by a quarter of the lag; a node fetches
    # them once, whatever the number of its runners.
    refreshes = given.updates / max(1, given.lag // 4)
    calls = steps / (given.slots * given.fragment)
    line = "{:<24}{:>12}{:>10}{:>12}{:>16}{:>14}{:>14}\n".format
    write = sys.stdout.write
    write(f"{given.nodes} nodes x {given.runners} runners x {given.slots} slots: {steps:,.0f} steps/s, ")
    write(f"at least {calls:,.0f} calls/s, weights anew {refreshes:.2f} times/s\n")
    write(line("policy", "weights", "step", "batch", "weights down", "episodes up", "windows"))
    write(line("", "bytes", "bytes", "bytes", "MB/s", "MB/s", "MB/s"))
    for name, model in _POLICIES.items():
        sizes = measure(model)
        down, up = sizes.weights * refreshes * given.nodes, sizes.step * steps
        through = sizes.batch * given.updates
        numbers = (f"{sizes.weights:,}", f"{sizes.step:.1f}", f"{sizes.batch:,}")
        write(line(name, *numbers, *(f"{rate / 1e6:,.2f}" for rate in (down, up, through))))
    write(f"one replay takes in {replay_rate():,.0f} steps/s on this machine\n")


if __name__ == "__main__":
    main()
