"""Finetunes Pendulum with rewards in several units: by default the runs end alike, whatever the unit is.

    python tests/benchmarks/units.py                                       # x1, x1000, x0.001, two seeds: 6 runs
    python tests/benchmarks/units.py --factors 1 1024 --seeds 1            # a power of two: the same to the last digit
    python tests/benchmarks/units.py --reward-scale 1 --return-scale 1000  # with scales that fit one unit alone

Starts from tune_configs/td3_odt_pendulum.yaml, with the scales of the data and a smaller budget (some 4 to 8 minutes
for 6 runs on one core). Data, targets and the filter of episodes are scaled alike. Printed are mean returns of the
last evaluation, divided by the factor.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from rayrl_dt.data import sources
from rayrl_dt.runs.config_files import read_yaml
from rayrl_dt.runs.loop import train
from rayrl_dt.settings import as_number

CONFIG = Path(__file__).parents[2] / "tune_configs" / "td3_odt_pendulum.yaml"


def register(factor: float) -> str:
    """Registers Pendulum with other rewards; returns its id."""
    name = f"PaidPendulum{str(factor).replace('.', 'p').replace('-', 'm')}-v1"

    def make(**options: Any) -> gym.Env[Any, Any]:
        env = gym.make("Pendulum-v1", **options).unwrapped
        return gym.wrappers.TransformReward(env, lambda reward: factor * float(reward))

    gym.register(name, entry_point=make, max_episode_steps=200)
    return name


def scaled_data(dataset: str, factor: float, folder: Path) -> str:
    """Saves the data with other rewards; returns their source id."""
    store = sources.load(dataset)
    paid = replace(
        store,
        rewards=store.rewards * factor,
        returns_to_go=store.returns_to_go * factor,
        info=replace(store.info, env_spec=None),
    )
    return f"store:{paid.save(folder)}"


def values_of(
    options: argparse.Namespace, factor: float, seed: int, dataset: str, env: str
) -> dict[str, Any]:
    """The content of a run's config file."""
    values = read_yaml(CONFIG)
    values["environment"] = {"env": env}
    values["offline_data"].update(
        dataset=dataset, below_return=factor * values["offline_data"]["below_return"]
    )
    values["training"].update(return_scale=options.return_scale, warmup_steps=options.pretraining // 2)
    values["online"].update(
        reward_scale=as_number(options.reward_scale),
        alpha=options.alpha,
        pretrain_steps=options.pretraining,
        env_steps=options.rounds * values["online"]["env_steps_per_iteration"],
    )
    targets = [factor * target for target in values["evaluation"]["target_returns"]]
    values["evaluation"].update(
        target_returns=targets, episodes_per_target=options.episodes, evaluation_interval=None
    )
    values["debugging"] = {"seed": seed}
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description="Finetunes Pendulum with rewards in several units.")
    parser.add_argument(
        "--dataset", default="recipe:pendulum-mixed", help="of Pendulum-v1, as in a config file"
    )
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0, 1000.0, 0.001])
    parser.add_argument("--seeds", type=int, default=2, help="how many")
    parser.add_argument("--alpha", type=float, default=1.0, help="weight of the critic; the quickstart's")
    parser.add_argument("--pretraining", type=int, default=500, help="gradient steps")
    parser.add_argument("--rounds", type=int, default=12, help="of 400 environment steps and 150 updates")
    parser.add_argument("--episodes", type=int, default=20, help="of the last evaluation")
    parser.add_argument("--reward-scale", default="auto")
    parser.add_argument("--return-scale", type=float, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        found: dict[float, list[float]] = {}
        for number, factor in enumerate(options.factors):
            root = Path(scratch) / str(number)
            env, dataset = register(factor), scaled_data(options.dataset, factor, root / "data")
            for seed in range(options.seeds):
                begin = time.monotonic()
                outcome = train(values_of(options, factor, seed, dataset, env), root / f"run{seed}")
                (target,) = outcome.last["evaluation"]["targets"]
                found.setdefault(factor, []).append(statistics.mean(target["returns"]) / factor)
                seconds = time.monotonic() - begin
                print(f"x{factor:g}, seed {seed}: {found[factor][-1]:.2f} in {seconds:.0f} s", flush=True)
    print(
        f"\n{'rewards':>10}"
        + "".join(f"{f'seed {seed}':>12}" for seed in range(options.seeds))
        + f"{'mean':>12}"
    )
    for factor, returns in found.items():
        row = "".join(f"{value:12.2f}" for value in (*returns, statistics.mean(returns)))
        print(f"{f'x{factor:g}':>10}{row}")


if __name__ == "__main__":
    main()
