"""Small policies with weights that hide nothing, and windows to feed them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rayrl_dt.data.readers import minari_io
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.types import Trajectory, Window

TINY: dict[str, Any] = {"context_length": 6, "embed_dim": 16, "num_layers": 2, "num_heads": 2, "dropout": 0.0}

# Minari 0.5.4, the first that writes bytes as they are, needs Python 3.11. What is done with the one before is held by
# `test_bytes_that_minari_would_change_are_refused`, on every Python.
writes_bytes = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Minari of Python 3.10 writes bytes with losses"
)


def scramble(module: nn.Module, seed: int = 0) -> None:
    """Gives every parameter, also biases and LayerNorms, a value that matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1.0 + 0.3 * noise if "norm" in name and name.endswith("weight") else 0.3 * noise)


def build_model(
    store: TrajectoryStore, *, seed: int = 0, return_scale: float | None = 10.0, **config: Any
) -> SequenceModel:
    """A tiny policy for the store's spaces, in eval mode."""
    model_config = ModelConfig.from_dict({**TINY, **config})
    model = SequenceModel(PolicySpec.from_store(model_config, store, return_scale=return_scale))
    scramble(model, seed)
    return model.eval()


def store_for(
    env: gym.Env[Any, Any], *, episodes: int = 3, steps: int = 10, seed: int = 0
) -> TrajectoryStore:
    """A few random trajectories with an environment's spaces, without stepping it."""
    rng = np.random.default_rng(seed)
    env.action_space.seed(seed)
    shape = env.observation_space.shape or ()
    trajectories = [
        Trajectory(
            rng.normal(size=(steps + 1, *shape)).astype(np.float32),
            np.stack([env.action_space.sample() for _ in range(steps)]),
            rng.normal(size=steps).astype(np.float32),
            terminated=False,
        )
        for _ in range(episodes)
    ]
    return TrajectoryStore.from_trajectories(
        trajectories, DatasetInfo("test", env.observation_space, env.action_space)
    )


def with_choices(store: TrajectoryStore, space: gym.spaces.MultiDiscrete) -> TrajectoryStore:
    """The same episodes with random actions of several discrete choices."""
    size = (store.num_steps, len(space.nvec))
    actions = np.random.default_rng(0).integers(space.start, space.start + space.nvec, size=size)
    return replace(store, actions=actions, info=replace(store.info, action_space=space))


def random_window(model: SequenceModel, real: Sequence[int], *, seed: int = 0) -> Window[Tensor]:
    """A batch of left-padded windows with the given numbers of real steps and zeros as padding."""
    spec, rng = model.spec, np.random.default_rng(seed)
    batch, steps = len(real), spec.model.context_length
    mask = np.arange(steps) >= steps - np.array(real)[:, None]
    if isinstance(spec.action_space, gym.spaces.Discrete):
        actions = spec.action_space.start + rng.integers(spec.action_size, size=(batch, steps))
    else:
        low, high = np.array(spec.action_low), np.array(spec.action_high)
        actions = rng.uniform(low, high, (batch, steps, len(low))).astype(np.float32)
    first = rng.integers(5, size=(batch, 1))
    window = Window(
        returns_to_go=rng.normal(size=(batch, steps, 1)).astype(np.float32) * 5,
        observations=rng.normal(size=(batch, steps, *spec.observation_space.shape)).astype(np.float32) * 2,
        actions=actions,
        timesteps=first + np.arange(steps),
        mask=mask,
    )
    return pad(window.to_torch(), 0)


def taken(
    model: SequenceModel, outputs: Tensor, generator: torch.Generator | None = None
) -> np.ndarray[Any, Any]:
    """The environment's actions for outputs of one step: the mode, or drawn with a generator."""
    return model.to_env_actions(model.spec.head.choose(outputs, generator))


def pad(window: Window[Tensor], value: float) -> Window[Tensor]:
    """Overwrites the padding of a window with a value, in every field."""
    padding = ~window.mask

    def filled(values: Tensor) -> Tensor:
        result = values.clone()
        result[padding] = torch.tensor(value).to(values.dtype)
        return result

    return replace(
        window,
        **{
            name: filled(getattr(window, name))
            for name in ("returns_to_go", "observations", "actions", "timesteps")
        },
    )


EVALUATION_KEYS = {
    "targets",
    "alignment_error",
    "alignment_error_relative",
    "per_episode_error",
    "spearman",
    "normalized_score",
    "env_steps",
    "env_steps_per_s",
    "env",
    "dataset",
    "checkpoint",
}
"""What every evaluation's JSON holds, whatever else it holds."""


def edit_header(folder: Path, path: tuple[str, ...], change: Callable[[Any], Any]) -> None:
    """Changes a value in a bundle's `policy.json`, or puts it there."""
    header = json.loads((folder / "policy.json").read_text())
    inner = header
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = change(inner.get(path[-1]))
    (folder / "policy.json").write_text(json.dumps(header))


def write_noise(dataset_id: str, trajectories: Any, info: DatasetInfo, *, overwrite: bool = False) -> str:
    """Writes a data set of Minari's below its root, of an environment that is not recorded."""
    return minari_io.write(
        dataset_id,
        trajectories,
        observation_space=info.observation_space,
        action_space=info.action_space,
        env_spec=None,
        author="tests",
        algorithm_name="noise",
        description="Random numbers.",
        overwrite=overwrite,
    )
