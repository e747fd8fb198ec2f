"""A bundle is the policy, whatever its spaces, its numbers and the choices of its model."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import spaces
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.data.windows import gather
from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.types import Trajectory

MODELS = st.builds(
    dict,
    backbone=st.sampled_from(tuple(BACKBONES)),
    context_length=st.integers(1, 4),
    embed_dim=st.sampled_from([4, 8]),
    num_layers=st.integers(1, 2),
    dropout=st.floats(0, 0.9),
    activation=st.sampled_from(["auto", "relu", "gelu"]),
    max_episode_steps=st.none() | st.integers(6, 50),
)


@settings(max_examples=20, deadline=None)
@given(
    store=spaces.stores(spaces.VECTORS),
    model=MODELS,
    return_scale=st.none() | st.floats(1e-3, 1e6),
    command=st.none() | st.text(max_size=10),
)
def test_what_is_saved_is_loaded(
    store: TrajectoryStore, model: dict[str, Any], return_scale: float | None, command: str | None
) -> None:
    spec = PolicySpec.from_store(ModelConfig.from_dict(model), store, return_scale=return_scale)
    decided = (spec.model.head, spec.model.activation, spec.model.target_rule, spec.model.timestep_embedding)
    assert "auto" not in decided
    policy = SequenceModel(spec).eval()
    with tempfile.TemporaryDirectory() as folder:
        bundle = save_bundle(spec, policy.state_dict(), Path(folder) / "bundle", command=command)
        header = Bundle.open(bundle).header
        loaded = Bundle.open(bundle).model
        save_bundle(loaded.spec, loaded.state_dict(), Path(folder) / "again", command=command)
        assert Bundle.open(Path(folder) / "again").header == header
        for name in ("policy.json", "policy.safetensors"):
            one, other = (Path(folder) / each / name for each in ("bundle", "again"))
            assert one.read_bytes() == other.read_bytes()
    assert header["command"] == command
    assert loaded.spec.to_json() == spec.to_json() == json.loads(json.dumps(spec.to_json()))
    for name in ("observation_space", "action_space", "action_low", "action_high", "return_scale", "model"):
        assert getattr(loaded.spec, name) == getattr(spec, name)
    for name, value in policy.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == value.dtype and torch.equal(found, value), name
    episodes = np.arange(store.num_episodes)
    window = gather(store, episodes, store.lengths - 1, spec.model.context_length).to_torch()
    with torch.no_grad():
        assert torch.equal(loaded(window), policy(window))


@settings(max_examples=10, deadline=None)
@given(where=st.sampled_from(["policy.json", "policy.safetensors"]), cut=st.floats(0, 0.95))
def test_half_a_bundle_is_refused(whole_bundle: dict[str, bytes], where: str, cut: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in whole_bundle.items():
            end = int(cut * len(content)) if name == where else len(content)
            (Path(folder) / name).write_bytes(content[:end])
        with pytest.raises(UserError):
            _ = Bundle.open(folder).model


@pytest.fixture(scope="module")
def whole_bundle(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a bundle."""
    episode = Trajectory(
        np.ones((4, 2), np.float32), np.zeros((3, 1), np.float32), np.ones(3, np.float32), True
    )
    info = DatasetInfo(
        "test", gym.spaces.Box(-9, 9, (2,), np.float32), gym.spaces.Box(-1, 1, (1,), np.float32)
    )
    store = TrajectoryStore.from_trajectories([episode], info)
    spec = PolicySpec.from_store(ModelConfig(embed_dim=4, num_layers=1), store, return_scale=None)
    bundle = save_bundle(spec, SequenceModel(spec).state_dict(), tmp_path_factory.mktemp("bundle") / "policy")
    return {file.name: file.read_bytes() for file in bundle.iterdir()}
