"""How long a served policy takes to answer, and how many it answers, beside the bare policy.

    python tests/benchmarks/serving.py                                # 1, 32 and 200 sessions, 10 s each
    python tests/benchmarks/serving.py --policy runs/hopper --seconds 30
    python tests/benchmarks/serving.py --wait-ms 0                    # for a single client

Clients are real ones, in a process of their own: each session sends its next step when it has its action. The bare
policy is `SequencePolicy.act` in a loop, one session after another. It needs the extra `serve`.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import gymnasium as gym
import numpy as np
import torch

from rayrl_dt.cli.console import quiet_libraries
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.deployment.start import serving
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.serving.limits import Limits
from rayrl_dt.serving.policy import SequencePolicy
from rayrl_dt.types import Trajectory

WARM_UP = 2.0


def untrained(folder: Path) -> Path:
    """Saves an untrained policy for Hopper-v5, as large as those of the configs; its answers take as long as theirs."""
    env, rng = gym.make("Hopper-v5"), np.random.default_rng(0)
    episode = Trajectory(
        rng.normal(size=(21, 11)), rng.uniform(-1, 1, (20, 3)).astype(np.float32), rng.normal(size=20), False
    )
    store = TrajectoryStore.from_trajectories(
        [episode], DatasetInfo("none", env.observation_space, env.action_space)
    )
    config = ModelConfig(context_length=20, embed_dim=128, num_layers=3, num_heads=1)
    spec = PolicySpec.from_store(config, store, return_scale=None)
    return save_bundle(spec, SequenceModel(spec).state_dict(), folder)


def report(name: str, latencies: list[float], seconds: float) -> None:
    p50, p99 = np.percentile(np.array(latencies) * 1000, [50, 99])
    print(
        f"{name:<24} p50 {p50:8.2f} ms   p99 {p99:8.2f} ms   {len(latencies) / seconds:8.0f} requests/s",
        flush=True,
    )


def bare(path: Path, sessions: int, seconds: float) -> None:
    """Steps that many policies, one after another."""
    policies = [SequencePolicy(Bundle.open(path).model) for _ in range(sessions)]
    size = (policies[0].spec.observation_space.shape or ())[0]
    rng, latencies, reward = np.random.default_rng(0), list[float](), None
    for policy in policies:
        policy.reset(1.0)
    begun, rounds = time.perf_counter(), 0
    # The first round makes what later ones use.
    while rounds < 2 or time.perf_counter() < begun + WARM_UP + seconds:
        counts = rounds > 0 and (rounds == 1 or time.perf_counter() > begun + WARM_UP)
        for policy in policies:
            observation, since = rng.normal(size=size), time.perf_counter()
            policy.act(observation, reward)
            if counts:
                latencies.append(time.perf_counter() - since)
        reward, rounds = 0.0, rounds + 1
    report(f"bare, {sessions} sessions", latencies, sum(latencies))


async def _ask(url: str, sessions: int, seconds: float) -> list[float]:
    size = None
    latencies: list[float] = []

    async def client(http: aiohttp.ClientSession, number: int) -> None:
        rng, reward = np.random.default_rng(number), None
        async with http.post(f"{url}/sessions", json={"target_return": 1.0}) as reply:
            where = f"{url}/sessions/{(await reply.json())['session']}"
        begun = time.perf_counter()
        while (since := time.perf_counter()) < begun + WARM_UP + seconds:
            body: dict[str, Any] = {"observation": rng.normal(size=size).tolist(), "reward": reward}
            async with http.post(f"{where}/act", json=body) as reply:
                assert reply.status == 200, await reply.text()
                await reply.read()
            if since > begun + WARM_UP:
                latencies.append(time.perf_counter() - since)
            reward = 0.0
        async with http.delete(where):
            pass

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        async with http.get(f"{url}/policy") as reply:
            size = (await reply.json())["observation_space"]["shape"][0]
        await asyncio.gather(*(client(http, number) for number in range(sessions)))
    return latencies


def asked(url: str, sessions: int, seconds: float) -> list[float]:
    return asyncio.run(_ask(url, sessions, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--policy", type=Path, help="run or bundle on vectors; an untrained one for Hopper without it"
    )
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 32, 200])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--wait-ms", type=float, default=2.0)
    chosen = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = chosen.policy or untrained(Path(folder) / "policy")
        for sessions in chosen.sessions:
            bare(path, sessions, chosen.seconds)
        limits = Limits(wait_ms=chosen.wait_ms)
        with (
            serving(path, port=0, limits=limits) as url,
            multiprocessing.get_context("spawn").Pool(1) as clients,
        ):
            for sessions in chosen.sessions:
                found = clients.apply(asked, (url, sessions, chosen.seconds))
                report(f"served, {sessions} sessions", found, chosen.seconds)


if __name__ == "__main__":
    main()
