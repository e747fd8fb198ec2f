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

from rayrl_dt.errors import UserError
from rayrl_dt.interop.onnx import INPUTS, OUTPUTS, export_onnx
from rayrl_dt.models.backbones import BACKBONES

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
