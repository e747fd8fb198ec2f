"""Records the exact numbers of short runs, to show that a refactor changes none.

    python tests/benchmarks/same_numbers.py before.json                        # with the code before
    python tests/benchmarks/same_numbers.py after.json --compare before.json   # with the code after

The second exits with 1 if a number differs. PYTHONPATH says which code is run; the first line of output names it.

Every algorithm takes some 30 gradient steps on tiny data; recorded are digests of its weights, its last metrics, its
evaluation, and 50 steps of acting with its bundle. Names of parameters do not count, values and shapes do. The numbers
are those of one machine and one PyTorch, and of this file: record before and after on the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from safetensors.numpy import load_file

import rayrl_dt
from rayrl_dt import ActionGradient, OnlineDTConfig, SequencePolicy
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.evaluation.evaluate import evaluate_bundle
from rayrl_dt.interop.critics import add_critic
from rayrl_dt.types import Trajectory

# Both before and after there were packages `runs` and `critics`.
try:
    from rayrl_dt.runs.loop import train
except ImportError:
    from rayrl_dt.runs import train
try:
    from rayrl_dt.critics.training import CriticTraining
except ImportError:
    from rayrl_dt.critic.training import CriticTraining

SEQUENCE: dict[str, dict[str, Any]] = {
    "model": {"context_length": 5, "embed_dim": 16, "num_layers": 2, "num_heads": 2, "dropout": 0.1},
    "training": {"gradient_steps_per_iteration": 15, "train_batch_size_per_learner": 8, "precision": "fp32"},
    "evaluation": {"target_returns": "dataset:3", "episodes_per_target": 2},
}
OFFLINE = {"gradient_steps": 30, "warmup_steps": 10}
ONLINE = {"pretrain_steps": 15, "env_steps": 600, "env_steps_per_iteration": 200, "updates_per_iteration": 6}
ONLINE |= {"replay_capacity_trajectories": 5, "critic_width": 16}
MEMORYLESS = ("IQL", "CQL", "TD3BC")
SPELLINGS = {"optimizer": "optimiser", "normalize_q": "normalise_q"}
SPELLINGS |= {"action_regularization": "action_regularisation"}
"""Settings as they are called now, and as they were before."""
RETURN_SCALES = {"Pendulum-v1": 1000, "CartPole-v1": 10}
"""The defaults before scales followed from the data, when reward scales were 1."""
CLOCKS = {"time_total_s", "steps_per_s", "env_steps_per_s"}
JUDGE = "the run dt"
"""Stands for the folder of the first run, whose bundle has a critic."""

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "dt": ("DT", {}),
    "dt, bf16": ("DT", {"training.precision": "bf16", "training.lr_decay": "cosine"}),
    "dt, discrete": ("DT", {"offline_data.dataset": "CartPole-v1"}),
    "dt, gaussian": ("DT", {"model.head": "gaussian", "model.timestep_embedding": "none"}),
    "dt, delayed": ("DT", {"offline_data.delayed_reward": True, "offline_data.return_balance": 0.5}),
    "radt": ("RADT", {}),
    "radt, without stepra": ("RADT", {"model.use_stepra": False}),
    "convformer": ("DT", {"model.backbone": "convformer"}),
    "starformer": ("DT", {"model.backbone": "starformer"}),
    "reinformer": ("Reinformer", {"offline_data.window_starts": "full"}),
    "bc, mlp": ("BC", {"model.context_length": 1, "offline_data.top_percent": 50}),
    "bc, transformer": ("BC", {"model.backbone": "no-return"}),
    "bc, discrete": ("BC", {"model.backbone": "no-return", "offline_data.dataset": "CartPole-v1"}),
    "pg": ("DT", {"training.objective": "pg", "training.critic_from": JUDGE}),
    "awac": ("DT", {"training.objective": "awac", "training.critic_from": JUDGE}),
    "radt, pg": ("RADT", {"training.objective": "pg", "training.critic_from": JUDGE}),
    "dt, refined": (
        "DT",
        {"evaluation.action_gradient": {"eta": 0.01, "n": 3}, "evaluation.critic_from": JUDGE},
    ),
    "dt, sampled": ("DT", {"evaluation.sampled_actions": 5, "evaluation.critic_from": JUDGE}),
    "iql": ("IQL", {}),
    "cql": ("CQL", {}),
    "td3bc": ("TD3BC", {}),
    "odt": ("OnlineDT", {"online.rl_gradient": "none", "model.head": "gaussian"}),
    "odt, deterministic": ("OnlineDT", {"online.rl_gradient": "none", "online.optimizer": "adamw"}),
    "td3+odt": ("OnlineDT", {"online.actor_interval": 2, "online.alpha_pretrain": 0.1}),
    "td3+odt, held": ("OnlineDT", {"online.normalize_q": True, "online.action_regularization": 0.05}),
    "td3+odt, radt": ("OnlineDT", {"model.backbone": "radt"}),
    "td3+odt, from dt": ("OnlineDT", {"online.start_from": JUDGE}),
}
EVALUATED = ("dt", "radt", "td3+odt")


def make_store(folder: Path, env_id: str, lengths: Iterable[int]) -> None:
    """Saves episodes of random actions."""
    env = gym.make(env_id)
    trajectories = []
    for number, length in enumerate(lengths):
        observation, _ = env.reset(seed=number)
        env.action_space.seed(number)
        observations, terminated = [observation], False
        actions: list[Any] = []
        rewards: list[float] = []
        while len(actions) < length and not terminated:
            actions.append(env.action_space.sample())
            observation, reward, terminated, _, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(float(reward))
        episode = np.stack(observations), np.array(actions), np.array(rewards, np.float32)
        trajectories.append(Trajectory(*episode, terminated))
    info = DatasetInfo(str(folder), env.observation_space, env.action_space, env.spec)
    TrajectoryStore.from_trajectories(trajectories, info).save(folder)


def config_of(algorithm: str, settings: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The content of a run's config file, for data and earlier runs in `root`."""
    values: dict[str, Any] = {section: dict(chosen) for section, chosen in SEQUENCE.items()}
    values["offline_data"] = {"dataset": "Pendulum-v1"}
    if algorithm == "OnlineDT":
        values["online"] = {**ONLINE, "reward_scale": 1}
    else:
        values["training"].update(OFFLINE)
    if algorithm in MEMORYLESS:
        values["model"] = {"embed_dim": 16}
        values["training"] |= {"critic_width": 16, "reward_scale": 1}
    before = {new: old for new, old in SPELLINGS.items() if hasattr(OnlineDTConfig(), old)}
    for path, value in settings.items():
        section, name = path.split(".")
        values[section][before.get(name, name)] = str(root / "dt") if value == JUDGE else value
    data = values["offline_data"]["dataset"]
    values["training"]["return_scale"] = RETURN_SCALES[data]
    values["offline_data"]["dataset"] = f"store:{root / data}"
    model = values.pop("model")
    if "online.start_from" not in settings:
        values["rl_module"] = {"model_config": model}
    return {"algorithm": algorithm, **values}


def digest(values: Any) -> str:
    """Digest of an array's values, shape and type."""
    array = np.asarray(values)
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()


def digests(tensors: Mapping[str, Any]) -> Counter[str]:
    """Digests of tensors, whatever they are called."""
    return Counter(digest(value) for value in tensors.values())


def whole(parts: Counter[str]) -> str:
    """One digest of many."""
    text = " ".join(sorted(parts.elements()))
    return f"{hashlib.sha256(text.encode()).hexdigest()[:32]} of {parts.total()} tensors"


def act(folder: Path, **options: Any) -> str:
    """Digest of 50 actions of a run's policy in its environment, and the sum of the rewards."""
    policy = SequencePolicy.load(folder, **options)
    env = gym.make(
        "CartPole-v1" if isinstance(policy.spec.action_space, gym.spaces.Discrete) else "Pendulum-v1"
    )
    actions: list[Any] = []
    reward, total, ended = 0.0, 0.0, True
    for step in range(50):
        if ended:
            observation, _ = env.reset(seed=step)
            policy.reset()
        actions.append(policy.act(observation, None if ended else reward))
        observation, paid, terminated, truncated, _ = env.step(actions[-1])
        reward, ended = float(paid), terminated or truncated
        total += reward
    return f"{digest(np.stack(actions))[:32]}, return {total!r}"


def record(name: str, values: dict[str, Any], folder: Path) -> dict[str, str]:
    """Trains one run and returns its numbers."""
    last = dict(train(values, folder).last)
    policy = digests(load_file(str(folder / "policy" / "policy.safetensors")))
    newest = sorted(folder.glob("checkpoints/*/**/default_policy/module_state.pkl"))[-1]
    found = {
        "policy": whole(policy),
        "critic and the rest": whole(digests(pickle.loads(newest.read_bytes())) - policy),
        "evaluation": repr([target["returns"] for target in last.pop("evaluation")["targets"]]),
        "acting": act(folder),
        **{key: repr(value) for key, value in last.items() if key not in CLOCKS},
    }
    if name in EVALUATED:
        result = evaluate_bundle(folder, targets="dataset:3", episodes_per_target=2, seed=3)
        found["evaluation of the bundle"] = repr([list(target.returns) for target in result.targets])
    if name == "dt":
        raw = {"reward_scale": 1} if hasattr(CriticTraining, "reward_scale") else {}
        training = CriticTraining(steps=20, batch_size=16, hidden=16, precision="fp32", **raw)
        add_critic(folder, training=training)
        found["trained critic"] = whole(digests(load_file(str(folder / "policy" / "critic.safetensors"))))
        found["acting, refined"] = act(folder, action_gradient=ActionGradient(eta=0.01, n=3))
    return found


def compare(before: Mapping[str, str], after: Mapping[str, str]) -> int:
    """Prints what differs, and a line for each run; returns the number of differences."""
    keys = list({**before, **after})
    differing = [key for key in keys if before.get(key) != after.get(key)]
    for key in differing:
        print(f"DIFFERS {key}\n  before {before.get(key)}\n  after  {after.get(key)}")
    wrong = Counter(key.split(": ")[0] for key in differing)
    for run, count in Counter(key.split(": ")[0] for key in keys).items():
        print(f"{run:24} {count - wrong[run]:3} equal {wrong[run]:3} different")
    return len(differing)


def main() -> int:
    parser = argparse.ArgumentParser(description="Records the exact numbers of short runs.")
    parser.add_argument("out", type=Path, help="where the numbers go (JSON)")
    parser.add_argument("--compare", type=Path, help="an earlier recording; exit 1 if a number differs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"code: {rayrl_dt.__file__}")
    found = {"machine: torch": f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}"}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_store(root / "Pendulum-v1", "Pendulum-v1", [200] * 6 + [3, 1])
        make_store(root / "CartPole-v1", "CartPole-v1", [50] * 20)
        for name, (algorithm, settings) in RUNS.items():
            begin = time.monotonic()
            numbers = record(name, config_of(algorithm, settings, root), root / name.replace(", ", "-"))
            found |= {f"{name}: {key}": value for key, value in numbers.items()}
            print(f"{name:24} {time.monotonic() - begin:5.1f} s", flush=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    return int(options.compare is not None and compare(json.loads(options.compare.read_text()), found) > 0)


if __name__ == "__main__":
    sys.exit(main())
