"""Sessions: each acts as a policy of its own does, and their number and idleness have limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builders import build_model

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.serving.limits import Limits
from rayrl_dt.serving.policy import SequencePolicy
from rayrl_dt.serving.requests import Refused
from rayrl_dt.serving.sessions import Answer, Sessions, Step

MakeStore = Callable[..., TrajectoryStore]


class Clock:
    """Seconds that a test moves on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def model(make_store: MakeStore) -> SequenceModel:
    return build_model(make_store())


def step(name: str, reward: float | None = None, value: float = 0.0, *, number: int | None = None) -> Step:
    return Step(name, np.full(3, value, np.float32), reward, number)


def answered(found: list[Answer | Refused]) -> list[Answer]:
    assert not [refused for refused in found if isinstance(refused, Refused)]
    return [answer for answer in found if isinstance(answer, Answer)]


@pytest.mark.parametrize("selection", [None, "sample"])
def test_sessions_act_as_policies_of_their_own(make_store: MakeStore, selection: str | None) -> None:
    model = build_model(make_store() if selection is None else make_store(actions=4, first_action=2))
    spec = model.spec.acting(context_length=4, action_selection=selection)
    sessions, rng = Sessions(model, spec, limits=Limits(sessions=6)), np.random.default_rng(0)
    open_now: dict[str, tuple[SequencePolicy, int]] = {}
    for turn in range(80):
        if len(open_now) < 6 and rng.random() < 0.5:
            seed = None if selection is None else int(rng.integers(100))
            session = sessions.open(float(turn), seed or 0)
            policy = SequencePolicy(model, context_length=4, action_selection=selection, sample_seed=seed)
            policy.reset(float(turn))
            open_now[session.name] = policy, 0
        asking = [name for name in open_now if rng.random() < 0.6]
        rewards = [None if open_now[name][1] == 0 else float(rng.normal()) for name in asking]
        asked = [
            Step(n, rng.normal(size=3).astype(np.float32), r) for n, r in zip(asking, rewards, strict=True)
        ]
        for ask, answer in zip(asked, answered(sessions.act(asked)), strict=True):
            policy, before = open_now[ask.name]
            wanted = policy.act(ask.observation, ask.reward)
            np.testing.assert_allclose(answer.action, wanted, rtol=1e-5, atol=1e-5)
            assert type(answer.action) is type(wanted) and answer.step == before
            open_now[ask.name] = policy, before + 1
        for name in [name for name in open_now if rng.random() < 0.05]:
            assert sessions.close(name).steps == open_now.pop(name)[1]
        assert sessions.taken == len(open_now)


def test_the_return_to_go_falls_by_the_rewards(model: SequenceModel) -> None:
    sessions = Sessions(model)
    name = sessions.open(10.0).name
    found = [answered(sessions.act([step(name, reward)]))[0] for reward in (None, 1.0, 2.5)]
    assert [(answer.return_to_go, answer.step) for answer in found] == [(10.0, 0), (9.0, 1), (6.5, 2)]
    assert sessions.actions == 3


def test_targets_are_those_of_a_policy(model: SequenceModel, make_store: MakeStore) -> None:
    sessions = Sessions(model)
    assert sessions.open().target == model.spec.data_returns["p95"]
    for bad in (float("nan"), float("inf"), -1e300):
        with pytest.raises(Refused, match="finite number") as refused:
            sessions.open(bad)
        assert refused.value.status == 400
    predicting = Sessions(build_model(make_store(), backbone="reinformer"))
    assert predicting.open().target is None
    with pytest.raises(Refused, match="predicts its own returns"):
        predicting.open(3.0)


def test_what_is_refused_changes_nothing(model: SequenceModel) -> None:
    clean, dirty = Sessions(model), Sessions(model)
    one, other = clean.open(5.0).name, dirty.open(5.0).name
    neighbor = dirty.open(5.0).name
    for number in range(5):
        reward = None if number == 0 else 1.0
        wanted = answered(clean.act([step(one, reward, number)]))[0]
        found = dirty.act(
            [
                step("nobody", 1.0),
                step(other, reward, number),
                step(other, reward, 9.0),
                Step(neighbor, np.full(3, np.finfo(np.float32).max), 0.0),
            ]
        )
        statuses = [answer.status if isinstance(answer, Refused) else 200 for answer in found]
        assert statuses == [404, 200, 409, 400]
        assert isinstance(found[1], Answer)
        np.testing.assert_allclose(found[1].action, wanted.action, rtol=1e-5, atol=1e-6)
        if number > 0:
            (refused,) = dirty.act([step(other)])
            assert isinstance(refused, Refused) and "no reward" in str(refused)
    assert dirty.close(neighbor).steps == 0


def test_a_step_that_is_sent_again_gets_the_answer_that_it_had(model: SequenceModel) -> None:
    once, twice = Sessions(model), Sessions(model)
    one, other = once.open(5.0).name, twice.open(5.0).name
    for number in range(4):
        reward = None if number == 0 else 1.0
        (wanted,) = answered(once.act([step(one, reward, number)]))
        together = answered(twice.act([step(other, reward, number, number=number)] * 2))
        (later,) = answered(twice.act([step(other, number=number)]))
        for found in (*together, later):
            np.testing.assert_allclose(found.action, wanted.action, rtol=1e-5, atol=1e-6)
            assert (found.return_to_go, found.step) == (wanted.return_to_go, number)
    found = twice.act([step(other, 1.0, number=number) for number in (2, 5, 4, 3)])
    assert [answer.status if isinstance(answer, Refused) else answer.step for answer in found] == [
        409,
        409,
        4,
        409,
    ]
    assert str(found[1]) == "step is 5, and the session is at 4; send that one, or the one before"
    assert twice.close(other).steps == 5 and twice.actions == 5


def test_a_step_that_is_sent_again_keeps_its_session_open(model: SequenceModel) -> None:
    clock = Clock()
    sessions = Sessions(model, limits=Limits(idle_seconds=60), clock=clock)
    name = sessions.open(5.0).name
    for _ in range(3):
        answered(sessions.act([step(name, number=0)]))
        clock.now += 50
    assert sessions.find(name).steps == 1


def test_idle_sessions_end_the_oldest_first_and_make_room(model: SequenceModel) -> None:
    clock = Clock()
    sessions = Sessions(model, limits=Limits(sessions=2, idle_seconds=60), clock=clock)
    first = sessions.open(1.0).name
    clock.now += 50
    second = sessions.open(1.0).name
    clock.now += 5
    with pytest.raises(
        Refused, match=r"all 2 sessions are taken.* wait 5 s until one has idled for 60 s"
    ) as full:
        sessions.open(1.0)
    assert full.value.status == 429
    answered(sessions.act([step(first)]))  # now the second has idled longer
    clock.now += 55
    with pytest.raises(Refused, match="ended, since nobody used it for 60 s; open another one") as ended:
        sessions.find(second)
    assert ended.value.status == 410 and sessions.taken == 1
    assert sessions.open(1.0).name and sessions.taken == 2
    (refused,) = sessions.act([step(second)])
    assert isinstance(refused, Refused) and refused.status == 410
    answered(sessions.act([step(first, 1.0)]))


def test_a_slot_that_is_taken_again_knows_nothing_of_before(model: SequenceModel) -> None:
    sessions = Sessions(model, limits=Limits(sessions=1))
    before = sessions.open(3.0).name
    first = answered(sessions.act([step(before, None, 2.0)]))[0]
    for number in range(8):
        sessions.act([step(before, 1.0, number)])
    sessions.close(before)
    again = answered(sessions.act([step(sessions.open(3.0).name, None, 2.0)]))[0]
    np.testing.assert_allclose(again.action, first.action, rtol=1e-6)
    assert again.return_to_go == 3.0


def test_ended_names_are_forgotten_in_time(model: SequenceModel) -> None:
    sessions = Sessions(model, limits=Limits(sessions=3))
    names = [sessions.close(sessions.open(1.0).name).name for _ in range(5)]
    statuses = []
    for name in names:
        with pytest.raises(Refused) as refused:
            sessions.find(name)
        statuses.append(refused.value.status)
    assert statuses == [404, 404, 410, 410, 410] and len(set(names)) == 5


@pytest.mark.parametrize("bad", [{"sessions": 0}, {"idle_seconds": 0}, {"batch": 1.5}, {"wait_ms": -1}])
def test_limits_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"serve\.{next(iter(bad))}"):
        Limits(**bad)
