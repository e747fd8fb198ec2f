"""Acting on images that are encoded once, held to the model on whole windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from builders import scramble
from image_data import image_store

from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.acting.images import KeptImagesPlan, image_embedding
from rayrl_dt.policy.acting.plan import WholeWindowPlan
from rayrl_dt.policy.acting.select import acting_plan
from rayrl_dt.policy.context import ContextBuffer

SIZES = {"context_length": 5, "embed_dim": 16, "num_layers": 2, "num_heads": 2}


def model_of(backbone: str, **chosen: Any) -> SequenceModel:
    config = ModelConfig.from_dict({**SIZES, "backbone": backbone, **chosen})
    model = SequenceModel(PolicySpec.from_store(config, image_store(), return_scale=1.0))
    scramble(model)
    return model.eval()


def played(model: SequenceModel, steps: int = 14) -> Any:
    """Step three slots, which start anew at times of their own and are not all asked; yield both plans' outputs."""
    rng = np.random.default_rng(0)
    context = ContextBuffer.of(model.spec, 3, model.spec.model.context_length)
    quick = acting_plan(model, context, "fp32")
    slow = WholeWindowPlan(model, context, "fp32", lambda: True)
    timesteps = np.zeros(3, int)
    for step in range(steps):
        starting = np.array([step == 0, step in (0, 3), step in (0, 9)])
        context.clear(starting)
        quick.clear(starting)
        timesteps = np.where(starting, 0, timesteps + 1)
        frames = rng.integers(0, 256, (3, 40, 40), np.uint8)
        context.append(rng.normal(size=3), frames, timesteps)
        if step == 6:
            continue  # nobody is asked
        rows = [None, np.array([0, 2]), np.array([1])][step % 3]
        yield quick, quick.outputs(rows), slow.outputs(rows)
        context.set_actions(rng.integers(3, size=3))


@pytest.mark.parametrize("backbone", ["dt", "radt", "no-return", "convformer"])
def test_kept_images_give_the_outputs_of_whole_windows(backbone: str) -> None:
    for plan, found, wanted in played(model_of(backbone)):
        assert type(plan) is KeptImagesPlan
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", ["dt", "radt"])
def test_the_embeddings_of_gym_on_images_too(backbone: str) -> None:
    for _, found, wanted in played(model_of(backbone, embeddings="gym")):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_each_image_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("dt")
    embedding = image_embedding(model.trunk)
    assert embedding is not None
    encoded: list[int] = []
    forward = type(embedding.encoder).forward

    def counted(encoder: Any, observations: Any) -> Any:
        encoded.append(observations.shape[:2].numel())
        return forward(encoder, observations)

    context = ContextBuffer.of(model.spec, 3, 5)
    plan = acting_plan(model, context, "fp32")
    monkeypatch.setattr(type(embedding.encoder), "forward", counted)
    for step in range(9):
        context.append(np.zeros(3), np.zeros((3, 40, 40), np.uint8), np.full(3, step))
        plan.outputs(None)
    assert encoded == [3] * 9


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
