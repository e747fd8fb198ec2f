"""What the walks are, what the critic may see, and that it learns when an outcome is decided."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import scramble
from torch import Tensor

from rayrl_dt.data.recipes.scripted import random_walks
from rayrl_dt.envs.key_to_door import KeyToDoor
from rayrl_dt.errors import UserError
from rayrl_dt.experiments import return_critic
from rayrl_dt.experiments.return_critic import (
    DOOR_STEP,
    EXACT,
    HORIZON,
    KEY_STEP,
    KINDS,
    Episodes,
    attention_received,
    collect,
    success_so_far,
    train,
)
from rayrl_dt.experiments.return_model import ReturnModel, Sequences


@pytest.fixture(scope="module")
def walks() -> Episodes:
    return collect(2000, seed=0)


@pytest.fixture
def model(walks: Episodes) -> ReturnModel:
    built = ReturnModel(return_classes=2, states=walks.states, actions=4, steps=HORIZON, width=16)
    scramble(built)
    return built


def test_walks_are_the_recipes_with_their_kinds(walks: Episodes) -> None:
    kinds: Counter[str] = Counter()
    env = KeyToDoor()
    data = walks.sequences
    numbers: dict[int, tuple[float, ...]] = {}
    for row, walk in enumerate(random_walks(KeyToDoor(), 0, 400, None)):
        length = len(walk.actions)
        assert data.lengths[row] == length
        assert data.actions[row, :length].tolist() == walk.actions.tolist()
        for state, observation in zip(data.states[row].tolist(), walk.observations[:-1], strict=False):
            assert numbers.setdefault(state, tuple(observation)) == tuple(observation)
        success = bool(walk.rewards.sum() > 0)
        assert (data.returns[row] == int(success)).all() and data.returns.shape[1] == HORIZON + 1
        env.reset(seed=walk.seed)
        taken = [env.step(action)[-1]["has_key"] for action in walk.actions]
        assert not any(taken) or taken.index(True) == KEY_STEP - 1
        assert not success or length == DOOR_STEP
        kind = KINDS[walks.kinds[row]]
        assert kind == ("success" if success else "key, but no success" if any(taken) else "no key")
        kinds[kind] += 1
    assert set(kinds) == set(KINDS)
    assert len(set(numbers.values())) == len(numbers) <= walks.states


def test_the_exact_probabilities_are_those_of_the_walks(walks: Episodes) -> None:
    counts = np.bincount(walks.kinds)
    assert counts[2] / counts.sum() == pytest.approx(EXACT["at the start"], abs=0.015)
    assert counts[2] / counts[1:].sum() == pytest.approx(EXACT["with the key"], abs=0.09)


def test_a_longer_collection_begins_with_the_same_walks(walks: Episodes) -> None:
    fewer = collect(50, seed=0)
    assert torch.equal(fewer.sequences.actions, walks.sequences.actions[:50])
    assert (fewer.kinds == walks.kinds[:50]).all()
    assert not torch.equal(collect(50, seed=1).sequences.actions, fewer.sequences.actions)


def test_episodes_of_a_kind(walks: Episodes) -> None:
    chosen = walks.of_kind("success", at_most=5)
    rows = np.flatnonzero(walks.kinds == 2)[:5]
    assert len(chosen) == 5 and torch.equal(chosen.actions, walks.sequences.actions[rows])
    late = walks[100:]
    assert len(late.kinds) == len(late.sequences) == 1900 and late.kinds[0] == walks.kinds[100]


def test_the_critic_sees_neither_returns_nor_the_future(walks: Episodes, model: ReturnModel) -> None:
    data = walks.sequences[:20]
    likely = success_so_far(model, data)
    assert likely.shape == (20, HORIZON + 1)
    ended = np.arange(HORIZON + 1) > data.lengths.numpy()[:, None]
    assert (np.isnan(likely) == ended).all() and np.nanmin(likely) > 0 and np.nanmax(likely) < 1
    np.testing.assert_array_equal(success_so_far(model, replace(data, returns=1 - data.returns)), likely)
    for step in (1, 7, 14):
        other = data.states.clone(), data.actions.clone()
        for values, classes in zip(other, (walks.states, 4), strict=True):
            values[:, step:] = (values[:, step:] + 1) % classes
        changed = success_so_far(model, replace(data, states=other[0], actions=other[1]))
        np.testing.assert_allclose(changed[:, : step + 1], likely[:, : step + 1], rtol=0, atol=1e-6)
        assert np.nanmax(np.abs(changed[:, step + 1] - likely[:, step + 1])) > 1e-3


class FakeAttention:
    """Every token looks at token `favorite` and at itself, half and half; the first one at itself only."""

    withheld = 2
    favorite = 5

    def attention(self, returns: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        assert (returns == self.withheld).all()
        tokens = 1 + 3 * HORIZON
        weights = torch.eye(tokens)
        weights[self.favorite + 1 :] *= 0.5
        weights[self.favorite + 1 :, self.favorite] = 0.5
        return weights.expand(len(states), 2, 3, -1, -1)


def test_attention_received_is_a_mean_over_later_predictions(walks: Episodes) -> None:
    data = walks.of_kind("success", at_most=2)
    fake: Any = FakeAttention()
    received = attention_received(fake, data)
    assert received.shape == (2, 1 + 3 * HORIZON)
    assert received[:, 5].tolist() == [0.5, 0.5]
    # Looking at oneself does not count.
    assert np.delete(received, 5, axis=1).max() == 0


@pytest.mark.slow
def test_attention_of_predictions_after_the_end_does_not_count(walks: Episodes, model: ReturnModel) -> None:
    data = walks.of_kind("success", at_most=3)
    received = attention_received(model, data)
    last = 3 * DOOR_STEP
    assert (received[:, :last] > 0).all() and (received[:, last:] == 0).all()
    weights = model.attention(torch.full_like(data.actions, 2), data.states, data.actions).mean(dim=(1, 2))
    expected = torch.stack([weights[:, 3 * step, 37] for step in (13, 14)]).mean(dim=0)
    np.testing.assert_allclose(received[:, 37], expected.detach(), rtol=1e-5)


def test_the_critic_learns_when_the_outcome_is_decided() -> None:
    # The fifth action decides: 3 is success. Nothing else tells.
    generator = torch.Generator().manual_seed(0)
    actions = torch.randint(4, (512, HORIZON), generator=generator)
    outcome = (actions[:, 4:5] == 3).long()
    lengths = torch.full((512,), HORIZON)
    data = Sequences(outcome.expand(-1, HORIZON + 1), torch.zeros_like(actions), actions, lengths)
    model = train(Episodes(data, np.zeros(512), states=1), seed=0, steps=120)
    likely = success_so_far(model, data)
    decided = outcome[:, 0].numpy() == 1
    assert np.abs(likely[:, :5].mean(axis=0) - 0.25).max() < 0.1
    for step in (5, 6, 10, HORIZON):
        assert likely[decided, step].mean() > 0.9 and likely[~decided, step].mean() < 0.1


def test_the_experiment_is_a_function_of_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(return_critic, "WALKS", 50)
    monkeypatch.setattr(return_critic, "HELD_OUT", 350)
    results = [
        return_critic.run(tmp_path / name, seed=seed, steps=2)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert results[0] == results[1] != results[2]
    assert json.loads((tmp_path / "a" / "result.json").read_text()) == results[0]
    for picture in ("success.png", "attention.png"):
        assert (tmp_path / "a" / picture).stat().st_size > 5_000
    page = (tmp_path / "a" / "report.html").read_text()
    assert page.count("data:image/png") == 2 and "With the key" in page
    kinds = results[0]["kinds"]
    assert list(kinds) == list(KINDS)
    assert len(kinds["no key"]["probability"]) == 16 and len(kinds["success"]["probability"]) == 15
    success = kinds["success"]
    assert 1 < success["episodes"] < 100 == kinds["no key"]["episodes"]
    assert success["at"]["key"] == success["probability"][2]
    assert success["at"]["door"] == pytest.approx(success["probability"][-1])
    attention = results[0]["attention"]
    assert [len(attention[name]) for name in ("return", "state", "action")] == [DOOR_STEP] * 3


def test_at_the_door_means_at_each_episodes_own_end(walks: Episodes, model: ReturnModel) -> None:
    episodes = walks.of_kind("no key", at_most=40)
    assert set(episodes.lengths.tolist()) == {14, 15}
    likely = success_so_far(model, episodes)
    summary = return_critic._summary(model, episodes)
    ends = [row[length] for row, length in zip(likely, episodes.lengths.tolist(), strict=True)]
    assert summary["at"]["door"] == pytest.approx(np.mean(ends))
    assert summary["probability"] == pytest.approx(np.nanmean(likely, axis=0))


def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 1"):
        return_critic.run(tmp_path / "new", steps=0)
    assert not (tmp_path / "new").exists()
