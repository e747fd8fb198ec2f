"""ONNX graphs compute what the policy computes, with onnxruntime alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import build_model, random_window, store_for, taken

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.envs.packed import Packed
from rayrl_dt.errors import UserError
from rayrl_dt.interop.onnx import INPUTS, OUTPUTS, export_onnx
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.types import Trajectory

onnxruntime = pytest.importorskip("onnxruntime")
BOX = gym.spaces.Box(-2.0, 3.0, (2,), np.float32)
FEATURES = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)


class Spaces(gym.Env[Any, Any]):
    def __init__(self, observations: gym.Space[Any], actions: gym.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, actions


CASES = {
    **{
        name: (FEATURES, BOX, {"backbone": name, **({"context_length": 1} if name == "mlp" else {})})
        for name, backbone in BACKBONES.items()
        if not backbone.predicts_returns
    },
    "discrete": (FEATURES, gym.spaces.Discrete(4, start=1), {"backbone": "dt"}),
    "gaussian": (FEATURES, BOX, {"backbone": "radt", "head": "gaussian"}),
    "images": (gym.spaces.Box(0, 255, (36, 36), np.uint8), gym.spaces.Discrete(3), {"backbone": "dt"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_graph_acts_as_the_policy(case: str, tmp_path: Path) -> None:
    observations, actions, config = CASES[case]
    model = build_model(store_for(Spaces(observations, actions)), **config)
    steps = (
        model.spec.context_length
        if hasattr(model.spec, "context_length")
        else model.spec.model.context_length
    )
    window = random_window(model, [steps, 1, min(2, steps), 1])
    if case == "images":
        shape = (*window.mask.shape, *(model.spec.seen_space.shape or ()))
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        window = replace(window, observations=pixels)
    session = onnxruntime.InferenceSession(export_onnx(model, tmp_path / "out") / "policy.onnx")
    action, outputs = session.run(OUTPUTS, {name: getattr(window, name).numpy() for name in INPUTS})
    with torch.no_grad():
        wanted = model(window, last_only=True)[:, -1]
    np.testing.assert_allclose(outputs, wanted.numpy(), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(action, taken(model, wanted), atol=1e-5, rtol=1e-5)


def test_a_policy_that_predicts_its_returns_is_refused(tmp_path: Path) -> None:
    model = build_model(store_for(Spaces(FEATURES, BOX)), backbone="reinformer")
    with pytest.raises(UserError, match=r"two passes.*--format bundle"):
        export_onnx(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_picture_beside_numbers_is_refused(tmp_path: Path) -> None:
    space = Packed(2, (36, 36))
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (4, 36, 36), np.uint8)
    packed = space.pack(rng.normal(size=(4, 2)).astype(np.float32), pictures)
    episode = Trajectory(packed, np.zeros((3, 2), np.float32), np.ones(3, np.float32), terminated=True)
    model = build_model(TrajectoryStore.from_trajectories([episode], DatasetInfo("test", space, BOX)))
    with pytest.raises(UserError, match=r"a picture of \(36, 36\) and numbers.*--format bundle") as caught:
        export_onnx(model, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


GUIDED = {
    "dt": ({"backbone": "dt"}, 3.0),
    "nothing asked": ({"backbone": "dt", "head": "gaussian"}, 0.0),
    "gaussian": ({"backbone": "radt", "head": "gaussian"}, 2.0),
    "decoupled": ({"backbone": "decoupled", "modulation": "block"}, 0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", GUIDED)
def test_a_graph_follows_the_guidance_of_its_policy(case: str, tmp_path: Path) -> None:
    config, guidance = GUIDED[case]
    model = build_model(store_for(Spaces(FEATURES, BOX)), return_dropout=0.2, **config)
    model.spec = model.spec.acting(context_length=None, action_selection=None, guidance=guidance)
    session = onnxruntime.InferenceSession(export_onnx(model, tmp_path / "out") / "policy.onnx")
    count, steps = 3, model.spec.acts_on
    actor, plain = VectorActor(model, count), VectorActor(model, count, guidance=1.0)
    window = {
        "observations": np.zeros((count, steps, 3), np.float32),
        "actions": np.zeros((count, steps, *model.spec.head.shape), model.spec.head.dtype),
        "returns_to_go": np.zeros((count, steps, 1), np.float32),
        "timesteps": np.zeros((count, steps), np.int64),
        "mask": np.zeros((count, steps), bool),
    }
    rng = np.random.default_rng(0)
    rewards, moved = np.zeros(count), False
    for step in range(steps + 3):
        observations = rng.normal(size=(count, 3)).astype(np.float32)
        starting = np.full(count, step == 0)
        wanted = actor.act(observations, rewards, starting, np.full(count, 5.0))
        moved |= not np.allclose(plain.act(observations, rewards, starting, np.full(count, 5.0)), wanted)
        newest = {"observations": observations, "returns_to_go": actor.returns_to_go[:, None]}
        for name, values in window.items():
            window[name] = np.roll(values, -1, axis=1)
            window[name][:, -1] = {**newest, "timesteps": step, "mask": True}.get(name, 0)
        (action,) = session.run(["action"], window)
        np.testing.assert_allclose(action, wanted, atol=1e-5, rtol=1e-5)
        window["actions"][:, -1] = wanted
        plain.took(wanted)
        rewards = rng.normal(size=count)
    assert moved, "the guidance changes actions"
