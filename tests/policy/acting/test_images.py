"""Acting on images that are encoded once, held to the model on whole windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import scramble, with_choices
from image_data import image_store

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.envs.packed import Packed
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.acting.images import KeptImagesPlan, image_embedding
from rayrl_dt.policy.acting.plan import WholeWindowPlan
from rayrl_dt.policy.acting.select import acting_plan
from rayrl_dt.policy.context import ContextBuffer

SIZES = {"context_length": 5, "embed_dim": 16, "num_layers": 2, "num_heads": 2}


def packed_store() -> TrajectoryStore:
    """The images with two numbers beside each."""
    store, space = image_store(), Packed(2, (40, 40))
    numbers = np.random.default_rng(1).normal(size=(len(store.observations), 2))
    info = replace(store.info, observation_space=space)
    return replace(store, observations=space.pack(numbers, store.observations), info=info)


def store_of_choices() -> TrajectoryStore:
    """The images, and two discrete choices at each step."""
    return with_choices(image_store(), gym.spaces.MultiDiscrete([3, 2]))


def model_of(backbone: str, store: TrajectoryStore | None = None, **chosen: Any) -> SequenceModel:
    config = ModelConfig.from_dict({**SIZES, "backbone": backbone, **chosen})
    model = SequenceModel(PolicySpec.from_store(config, store or image_store(), return_scale=1.0))
    scramble(model)
    return model.eval()


def played(model: SequenceModel, store: TrajectoryStore, guidance: float) -> Any:
    """Step three slots, which start anew at times of their own and are not all asked; yield both plans' outputs."""
    rng = np.random.default_rng(0)
    context = ContextBuffer.of(model.spec, 3, model.spec.model.context_length)
    quick, slow = (
        acting_plan(model, context, "fp32", guidance=guidance, keeps=keeps) for keeps in (True, False)
    )
    timesteps = np.zeros(3, int)
    for step in range(14):
        starting = np.array([step == 0, step in (0, 3), step in (0, 9)])
        context.clear(starting)
        quick.clear(starting)
        timesteps = np.where(starting, 0, timesteps + 1)
        drawn = rng.integers(store.num_steps, size=3)
        context.append(rng.normal(size=3), store.observations[drawn], timesteps)
        if step == 6:
            continue  # nobody is asked
        rows = [None, np.array([0, 2]), np.array([1])][step % 3]
        yield quick, quick.outputs(rows), slow.outputs(rows)
        context.set_actions(store.actions[drawn])


@pytest.mark.parametrize(
    ("backbone", "chosen", "guidance", "make_store"),
    [
        ("dt", {}, 1.0, image_store),
        ("dt", {"embeddings": "gym"}, 1.0, packed_store),
        ("dt", {"return_dropout": 0.1}, 2.5, image_store),
        ("radt", {}, 1.0, store_of_choices),
        ("radt", {"embeddings": "gym"}, 1.0, image_store),
        ("decoupled", {"return_dropout": 0.1}, 0.0, image_store),
        ("no-return", {}, 1.0, image_store),
        ("convformer", {}, 1.0, image_store),
    ],
)
def test_kept_images_give_the_outputs_of_whole_windows(
    backbone: str, chosen: dict[str, Any], guidance: float, make_store: Callable[[], TrajectoryStore]
) -> None:
    store = make_store()
    for plan, found, wanted in played(model_of(backbone, store, **chosen), store, guidance):
        assert type(plan if guidance == 1 else plan._plan) is KeptImagesPlan
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_each_image_is_encoded_once(monkeypatch: pytest.MonkeyPatch, guidance: float) -> None:
    model = model_of("dt", return_dropout=0.1)
    embedding = image_embedding(model.trunk)
    assert embedding is not None
    encoded: list[int] = []
    forward = type(embedding.encoder).forward

    def counted(encoder: Any, observations: Any) -> Any:
        encoded.append(observations.shape[:2].numel())
        return forward(encoder, observations)

    context = ContextBuffer.of(model.spec, 3, 5)
    plan = acting_plan(model, context, "fp32", guidance=guidance)
    monkeypatch.setattr(type(embedding.encoder), "forward", counted)
    for step in range(9):
        context.append(np.zeros(3), np.zeros((3, 40, 40), np.uint8), np.full(3, step))
        plan.outputs(None)
        plan.outputs_for(torch.ones(2, 3), None)  # as a double check asks, too
    assert encoded == [3, 0] * 9


def test_changed_weights_end_the_plan() -> None:
    model = model_of("dt")
    plan = acting_plan(model, ContextBuffer.of(model.spec, 1, 5), "fp32")
    assert plan.holds()
    scramble(model, seed=1)
    assert not plan.holds()


def test_an_mlp_is_asked_about_the_whole_window() -> None:
    model = model_of("mlp", num_heads=1)
    assert image_embedding(model.trunk) is None
    assert type(acting_plan(model, ContextBuffer.of(model.spec, 1, 5), "fp32")) is WholeWindowPlan
