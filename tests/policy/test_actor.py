from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import build_model, with_choices

from rayrl_dt import UserError
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.serving.along import act_along
from rayrl_dt.types import ACTION_LIMIT, Window

MakeStore = Callable[..., TrajectoryStore]
Array = np.ndarray[Any, Any]


def seen_by(model: SequenceModel) -> list[Window[torch.Tensor]]:
    """Collects copies of the windows that the model is asked about."""
    windows: list[Window[torch.Tensor]] = []
    model.register_forward_pre_hook(
        lambda _, args: windows.append(Window(**{k: v.clone() for k, v in args[0].to_dict().items()}))
    )
    return windows


def feed(
    actor: VectorActor, steps: int, *, target: float = 10.0, seed: int = 0, **options: Any
) -> tuple[list[Array], list[Array]]:
    """Runs `steps` steps of an episode in all slots; returns actions and rewards."""
    rng, slots = np.random.default_rng(seed), actor.slots
    actions, rewards = [], [np.full(slots, np.nan)]
    for step in range(steps):
        observations = rng.normal(size=(slots, 3)).astype(np.float32)
        starting = np.full(slots, step == 0)
        actions.append(actor.act(observations, rewards[-1], starting, np.full(slots, target), **options))
        rewards.append(rng.normal(size=slots))
    return actions, rewards


@pytest.mark.parametrize("slots", [1, 3])
def test_return_to_go_falls_by_the_rewards(make_store: MakeStore, slots: int) -> None:
    model = build_model(make_store(), return_scale=100.0)
    actor, windows = VectorActor(model, slots), seen_by(model)
    inputs: list[torch.Tensor] = []
    model.trunk.register_forward_pre_hook(lambda _, args: inputs.append(args[0].returns_to_go))
    _, rewards = feed(actor, 15, target=250.0)
    for step in range(15):
        paid = np.sum(rewards[1 : step + 1], axis=0)
        scaled = inputs[step][:, -1, 0].numpy()
        np.testing.assert_allclose(scaled * 100.0 + paid, 250.0, rtol=1e-6)
        np.testing.assert_allclose(windows[step].returns_to_go[:, -1, 0].numpy() + paid, 250.0, rtol=1e-6)
    np.testing.assert_allclose(actor.returns_to_go, 250.0 - np.sum(rewards[1:15], axis=0))


def test_return_to_go_stays_when_rewards_were_delayed(make_store: MakeStore) -> None:
    model = build_model(make_store().with_delayed_rewards())
    assert model.spec.model.target_rule == "constant"
    actor, windows = VectorActor(model, 2), seen_by(model)
    feed(actor, 12, target=7.5)
    for window in windows:
        assert (window.returns_to_go[window.mask] == 7.5).all()
    assert (actor.returns_to_go == 7.5).all()


def test_the_same_steps_give_the_same_actions(make_store: MakeStore) -> None:
    model = build_model(make_store())
    first, _ = feed(VectorActor(model, 3), 300)
    actor = VectorActor(model, 3)
    feed(actor, 37, seed=5)
    again, _ = feed(actor, 300)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("noise", [0.1, 3.0])
def test_noise_has_its_law_and_keeps_off_the_bounds(make_store: MakeStore, noise: float) -> None:
    model = build_model(make_store())
    greedy, _ = feed(VectorActor(model, 400), 1)

    def explore(seed: int) -> Array:
        actor = VectorActor(model, 400, sample=torch.Generator().manual_seed(seed), noise=noise)
        return feed(actor, 1)[0][0]

    actions, again, other = explore(0), explore(0), explore(1)
    np.testing.assert_array_equal(actions, again)
    assert (actions != other).any()
    limit = np.float32(ACTION_LIMIT)
    assert np.abs(actions).max() <= limit
    if noise == 3.0:
        assert (np.abs(actions) == limit).mean() > 0.5
    else:
        # Nearer to the bounds they would bend the law.
        inside = np.abs(greedy[0]) < 0.5
        assert inside.sum() > 100
        assert abs((actions - greedy[0])[inside].std() - noise) < 0.03


def test_slots_do_not_see_each_other(make_store: MakeStore) -> None:
    model = build_model(make_store())
    together, alone = VectorActor(model, 3), VectorActor(model, 1)
    rng = np.random.default_rng(0)
    for step in range(40):
        observations = rng.normal(size=(3, 3)).astype(np.float32)
        rewards, targets = rng.normal(size=3), np.array([1.0, 20.0, -5.0])
        # Episodes of different lengths: 7, 11, and one without end.
        starting = np.array([step % 7 == 0, step % 11 == 0, step == 0])
        actions = together.act(observations, rewards, starting, targets)
        only = alone.act(observations[1:2], rewards[1:2], starting[1:2], targets[1:2])
        np.testing.assert_allclose(actions[1:2], only, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trained_on", [1, 6])
def test_a_context_of_one_forgets_everything(make_store: MakeStore, trained_on: int) -> None:
    store = make_store()
    model = build_model(store, context_length=trained_on)

    def act_after(history_seed: int, length: int | None) -> Array:
        actor = VectorActor(model, 1, context_length=length)
        feed(actor, 8, seed=history_seed)
        last = np.array([[5.0, 0.3, -0.4]], np.float32)
        # The same return-to-go, whatever was paid before.
        paid = actor.returns_to_go - 4.0
        return actor.act(last, paid, np.array([False]), np.zeros(1))

    np.testing.assert_array_equal(act_after(1, 1), act_after(2, 1))
    if trained_on > 1:
        assert np.abs(act_after(1, None) - act_after(2, None)).max() > 1e-3


@pytest.mark.parametrize(("wanted", "found"), [(None, 6), (1, 1), (4, 4), (99, 6)])
def test_context_length_is_at_most_the_models(make_store: MakeStore, wanted: int | None, found: int) -> None:
    model = build_model(make_store())
    windows = seen_by(model)
    feed(VectorActor(model, 1, context_length=wanted), 2)
    assert windows[-1].context_length == found


def test_inactive_slots_are_left_out_of_the_forward(make_store: MakeStore) -> None:
    model = build_model(make_store())
    actor, windows = VectorActor(model, 3), seen_by(model)
    before, _ = feed(actor, 2)
    observations, none = np.ones((3, 3), np.float32), np.zeros(3, bool)
    after = actor.act(observations, np.zeros(3), none, np.zeros(3), np.array([True, False, True]))
    assert windows[-1].batch_size == 2
    np.testing.assert_array_equal(after[1], before[-1][1])
    assert (after[[0, 2]] != before[-1][[0, 2]]).all()
    count = len(windows)
    idle = actor.act(observations, np.zeros(3), none, np.zeros(3), none)
    np.testing.assert_array_equal(idle, after)
    assert len(windows) == count


def test_actions_handed_out_do_not_change_later(make_store: MakeStore) -> None:
    actor = VectorActor(build_model(make_store()), 3)
    actions, _ = feed(actor, 3)
    kept = [array.copy() for array in actions]
    feed(actor, 5, active=np.array([True, False, False]))
    np.testing.assert_array_equal(actions, kept)


@pytest.mark.parametrize("options", [{}, {"actions": 4, "first_action": 3}])
def test_bf16_acts_nearly_the_same(make_store: MakeStore, options: dict[str, int]) -> None:
    model = build_model(make_store(**options))
    exact, _ = feed(VectorActor(model, 8), 10)
    dtypes: list[torch.dtype] = []
    model.head.register_forward_hook(lambda _, args, out: dtypes.append(out.dtype))
    rough, _ = feed(VectorActor(model, 8, precision="bf16"), 10)
    assert set(dtypes) == {torch.bfloat16}
    assert rough[0].dtype == exact[0].dtype
    if options:
        assert np.mean(np.array(rough) == np.array(exact)) > 0.8
    else:
        assert np.abs(np.array(rough) - np.array(exact)).max() < 0.1


@pytest.mark.parametrize("start", [0, 3, -9])
def test_discrete_actions_are_drawn_or_chosen(make_store: MakeStore, start: int) -> None:
    model = build_model(make_store(actions=4, first_action=start))
    chosen, _ = feed(VectorActor(model, 50), 4)
    assert np.array(chosen).min() >= start and np.array(chosen).max() < start + 4
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    assert (np.array(feed(VectorActor(model, 50), 4)[0]) == start + 3).all()
    runs = [
        np.array(feed(VectorActor(model, 50, sample=torch.Generator().manual_seed(seed)), 40)[0])
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()
    law, count = np.array([0.1, 0.2, 0.3, 0.4]), runs[0].size
    frequencies = np.bincount(runs[0].ravel() - start, minlength=4) / count
    assert (np.abs(frequencies - law) < 4 * np.sqrt(law * (1 - law) / count)).all()


@pytest.mark.parametrize("draws", [False, True], ids=["mode", "sample"])
@pytest.mark.parametrize("head", ["continuous", "discrete", "choices"])
def test_outputs_that_are_not_finite_are_no_action(make_store: MakeStore, head: str, draws: bool) -> None:
    store = make_store(actions=3 if head == "discrete" else None)
    if head == "choices":
        store = with_choices(store, gym.spaces.MultiDiscrete([3, 2]))
    model = build_model(store)
    actor = VectorActor(model, 2, sample=torch.Generator() if draws else None)
    observations, first = np.zeros((2, 3), np.float32), np.full(2, True)
    observations[1] = np.finfo(np.float32).max
    refused = pytest.raises(UserError, match=r"NaN or infinite.* the target .*begin the episode anew")
    with refused:
        actor.act(observations, np.zeros(2), first, np.zeros(2))
    # An inactive slot is not asked, and the next episode knows nothing of it.
    actor.act(observations, np.zeros(2), first, np.zeros(2), np.array([True, False]))
    actor.act(np.zeros((2, 3), np.float32), np.zeros(2), first, np.zeros(2))
    spoiled = store.observations.copy()
    spoiled[store.starts[1] + 1] = np.finfo(np.float32).max
    with refused:
        act_along(model, replace(store, observations=spoiled), np.array([0, 1]), np.zeros(2))


def test_acting_switches_dropout_off_and_draws_nothing(make_store: MakeStore) -> None:
    model = build_model(make_store(), dropout=0.5).train()
    state = torch.get_rng_state()
    first, _ = feed(VectorActor(model, 2), 5)
    second, _ = feed(VectorActor(model, 2), 5)
    np.testing.assert_array_equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
