"""Slots that move on by themselves, held to actors of one slot that know nothing of each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from builders import build_model
from image_data import image_store

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.own_pace import OwnPaceActor
from rayrl_dt.seeding import torch_generator

MakeStore = Callable[..., TrajectoryStore]
SLOTS = 5


def compare(
    model: SequenceModel, observation: Callable[[np.random.Generator], Any], *, draws: bool, **options: Any
) -> None:
    """Random slots ask at random times, some after a new start; each is held to an actor of its own."""
    rng = np.random.default_rng(0)

    def generators() -> list[torch.Generator | None]:
        return [torch_generator(7, "x", slot) if draws else None for slot in range(SLOTS)]

    together, mine = OwnPaceActor(model, SLOTS, **options), generators()
    alone = [VectorActor(model, 1, sample=draw, **options) for draw in generators()]
    begun = np.zeros(SLOTS, bool)
    for _ in range(60):
        slots = rng.permutation(SLOTS)[: rng.integers(1, SLOTS + 1)]
        observations = np.stack([observation(rng) for _ in slots])
        rewards, targets = rng.normal(size=len(slots)), 5 * rng.normal(size=len(slots))
        starting = ~begun[slots] | (rng.random(len(slots)) < 0.1)
        begun[slots] = True
        found, finite = together.act_for(
            slots, observations, rewards, starting, targets, [mine[slot] for slot in slots]
        )
        assert finite.all()
        for row, slot in enumerate(slots):
            given = (values[row : row + 1] for values in (observations, rewards, starting, targets))
            wanted = alone[slot].act(*given)[0]
            np.testing.assert_allclose(found[row], wanted, rtol=1e-5, atol=1e-5)
            left = alone[slot].returns_to_go[0]
            np.testing.assert_allclose(together.returns_to_go[slot], left, rtol=1e-5, atol=1e-5)


def vector(rng: np.random.Generator) -> Any:
    return rng.normal(size=3).astype(np.float32)


@pytest.mark.parametrize("data", [{}, {"actions": 4, "first_action": 3}], ids=["continuous", "discrete"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_each_acts_as_if_it_were_alone(make_store: MakeStore, backbone: str, data: dict[str, Any]) -> None:
    heads = {} if backbone != "mlp" else {"num_heads": 1}
    model = build_model(make_store(**data), backbone=backbone, **heads)
    compare(model, vector, draws=bool(data))


def test_delayed_rewards_shorter_contexts_and_guidance(make_store: MakeStore) -> None:
    compare(build_model(make_store().with_delayed_rewards()), vector, draws=False, context_length=2)
    compare(build_model(make_store(), return_dropout=0.2), vector, draws=False, guidance=2.5)


def test_stacks_of_images() -> None:
    config = ModelConfig.from_dict(
        {"context_length": 4, "embed_dim": 16, "num_layers": 1, "num_heads": 1, "frame_stack": 3}
    )
    model = SequenceModel(PolicySpec.from_store(config, image_store(), return_scale=1.0)).eval()
    compare(model, lambda rng: rng.integers(0, 256, (40, 40), np.uint8), draws=True)


@pytest.mark.parametrize("data", [{}, {"actions": 4}], ids=["continuous", "discrete"])
def test_one_whose_outputs_are_not_finite_takes_no_other_with_it(
    make_store: MakeStore, data: dict[str, Any]
) -> None:
    model = build_model(make_store(**data))
    clean, dirty = OwnPaceActor(model, 3), OwnPaceActor(model, 3)
    all_slots, rng = np.arange(3), np.random.default_rng(0)
    draws = [[torch_generator(7, "x", slot) if data else None for slot in all_slots] for _ in range(2)]
    for step in range(8):
        observations = rng.normal(size=(3, 3)).astype(np.float32)
        rest = rng.normal(size=3), np.full(3, step == 0), np.full(3, 5.0)
        if step in (0, 4):
            spoiled = observations.copy()
            spoiled[1] = np.finfo(np.float32).max
            _, finite = dirty.act_for(all_slots, spoiled, *rest, draws[1])
            assert finite.tolist() == [True, False, True]
            # The others have moved on; only the refused one asks again.
            again, _ = dirty.act_for(
                all_slots[1:2], observations[1:2], *(v[1:2] for v in rest), draws[1][1:2]
            )
            wanted, _ = clean.act_for(all_slots, observations, *rest, draws[0])
            np.testing.assert_allclose(again[0], wanted[1], rtol=1e-5, atol=1e-5)
            continue
        found, _ = dirty.act_for(all_slots, observations, *rest, draws[1])
        wanted, _ = clean.act_for(all_slots, observations, *rest, draws[0])
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
