"""Acting on predicted returns: what is inserted, how much context is acted on, and that no target is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from builders import build_model, scramble

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.models.model_config import CONTEXT_RULES
from rayrl_dt.models.reinformer import ReinformerTrunk
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.acting.predicted import PredictedReturnPlan, falling_length
from rayrl_dt.policy.acting.select import acting_plan
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.context import ContextBuffer
from rayrl_dt.serving.policy import SequencePolicy
from rayrl_dt.types import Window

MakeStore = Callable[..., TrajectoryStore]
Array = np.ndarray[Any, Any]
K = 6


def build(store: TrajectoryStore, **config: Any) -> SequenceModel:
    return build_model(store, backbone="reinformer", **config)


class Course:
    """An actor, fed with random steps; keeps the windows that it acts on."""

    def __init__(self, model: SequenceModel, slots: int = 3, **options: Any) -> None:
        self.model, self.slots = model, slots
        self.actor = VectorActor(model, slots, **options)
        self.acted: list[Window[torch.Tensor]] = []
        model.register_forward_pre_hook(lambda _, args: self.acted.append(args[0]))

    def run(self, steps: int, *, target: float = 5.0, seed: int = 0) -> Array:
        rng = np.random.default_rng(seed)
        actions = []
        self.predicted: list[Array] = []
        self.observations: list[Array] = []
        for step in range(steps):
            self.observations.append(rng.normal(size=(self.slots, 3)).astype(np.float32))
            rewards, starting = rng.normal(size=self.slots), np.full(self.slots, step == 0)
            targets = np.full(self.slots, target)
            actions.append(self.actor.act(self.observations[-1], rewards, starting, targets))
            self.predicted.append(self.actor.returns_to_go.copy())
        return np.stack(actions)


def lengths(values: list[float], *, real: int | None = None, rule: str = "consecutive") -> int:
    mask = np.arange(len(values)) >= len(values) - (len(values) if real is None else real)
    return int(falling_length(np.array([values]), mask[None], rule)[0])


@pytest.mark.parametrize("rule", ["consecutive", "newest"])
def test_how_far_back_predictions_fell(rule: str) -> None:
    """Invariant 26."""
    for steps in range(1, K + 1):
        falling = [float(-index) for index in range(K)]
        assert lengths(falling, real=steps, rule=rule) == steps
        assert lengths([-value for value in falling], real=steps, rule=rule) == 1
        assert lengths([2.0] * K, real=steps, rule=rule) == 1
    assert lengths([0.0] * K, real=0, rule=rule) == 0
    assert len(falling_length(np.zeros((3, 0)), np.zeros((3, 0), bool), rule)) == 3


def test_the_readings_differ_where_predictions_rose_and_fell_more() -> None:
    values = [9.0, 5.0, 6.0, 4.0]
    assert lengths(values, rule="consecutive") == 2
    assert lengths(values, rule="newest") == 4
    assert lengths([9.0, 3.0, 6.0, 4.0], rule="newest") == 2


@pytest.mark.parametrize("rule", CONTEXT_RULES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("options", [{}, {"actions": 4, "first_action": 3}])
def test_the_target_and_the_rewards_do_not_matter(
    make_store: MakeStore, rule: str, shared: bool, options: dict[str, int]
) -> None:
    model = build(make_store(**options), context_rule=rule, shared_networks=shared)
    one, other, elsewhere = (Course(model) for _ in range(3))
    np.testing.assert_array_equal(one.run(20, target=5.0), other.run(20, target=-1e6))
    np.testing.assert_array_equal(one.predicted, other.predicted)
    elsewhere.run(20, seed=1)
    assert (np.array(one.predicted) != np.array(elsewhere.predicted)).all()


@pytest.mark.parametrize("rule", CONTEXT_RULES)
@pytest.mark.parametrize("shared", [False, True])
def test_what_is_predicted_is_inserted_and_acted_on(make_store: MakeStore, rule: str, shared: bool) -> None:
    """Each step by hand, from the definition: one slot, windows cut to length, two forwards."""
    model = build(make_store(), context_rule=rule, shared_networks=shared, return_scale=3.0)
    course = Course(model, slots=1)
    actions = course.run(14)
    trunk = model.trunk
    assert isinstance(trunk, ReinformerTrunk)
    returns: list[float] = []
    before = 0

    def window(length: int, step: int, newest: float) -> Window[torch.Tensor]:
        steps = range(step - length + 1, step + 1)
        history = [*returns[:step], newest]
        return Window(
            returns_to_go=torch.tensor([[[history[index]] for index in steps]], dtype=torch.float32),
            observations=torch.tensor(np.stack([course.observations[index][0] for index in steps])[None]),
            actions=torch.tensor(
                np.stack([actions[index][0] if index < step else np.zeros(2, np.float32) for index in steps])[
                    None
                ]
            ),
            timesteps=torch.tensor([list(steps)]),
            mask=torch.ones(1, length, dtype=torch.bool),
        )

    def ask(length: int, step: int) -> float:
        with torch.no_grad():
            return 3.0 * float(trunk.predict_returns(model.inputs(window(length, step, 7.0)), last_only=True))

    for step in range(14):
        most = min(K, step + 1)
        if rule == "elastic":
            tried = [ask(length, step) for length in range(1, most + 1)]
            newest, length = max(tried), 1 + int(np.argmax(tried))
        else:
            newest = ask(most if rule == "whole" else min(before + 1, most), step)
            length = most
        if rule in ("consecutive", "newest"):
            length, history = 1, [*returns, newest]
            compared = {"consecutive": lambda w, h=history: h[-w], "newest": lambda w, h=history: h[-1]}[rule]
            while length < K and step - length >= 0 and history[-1 - length] > compared(length):
                length += 1
        assert course.predicted[step][0] == pytest.approx(newest, rel=1e-4, abs=1e-4)
        with torch.no_grad():
            expected = model.to_env_actions(model(window(length, step, newest), last_only=True)[:, -1])
        np.testing.assert_allclose(actions[step], expected, rtol=1e-4, atol=1e-4)
        returns.append(newest)
        before = length


def test_falling_predictions_widen_the_context_and_rising_ones_narrow_it(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 26 in an actor: the steps that it acts on, with predictions as the test says."""
    for sign, seen in ((-1.0, [min(step + 1, K) for step in range(12)]), (1.0, [1] * 12), (0.0, [1] * 12)):
        model = build(make_store())
        course = Course(model, slots=2)
        count = iter(range(100))
        monkeypatch.setattr(
            model.trunk,
            "predict_returns",
            lambda inputs, last_only, c=count, s=sign: torch.full((len(inputs.observations), 1), s * next(c)),
        )
        course.run(12)
        assert [int(window.mask.sum(dim=1).max()) for window in course.acted] == seen


@pytest.mark.parametrize("rule", CONTEXT_RULES)
def test_slots_do_not_see_each_other_and_may_be_left_out(make_store: MakeStore, rule: str) -> None:
    model = build(make_store(), context_rule=rule)
    together, alone = VectorActor(model, 3), VectorActor(model, 1)
    rng = np.random.default_rng(0)
    for step in range(30):
        observations, none = rng.normal(size=(3, 3)).astype(np.float32), np.zeros(3)
        starting = np.array([step % 7 == 0, step % 11 == 0, step == 0])
        # The first slot leaves for good after a while.
        active = np.array([step < 10, True, True])
        actions = together.act(observations, none, starting, none, active)
        only = alone.act(observations[1:2], none[1:2], starting[1:2], none[1:2])
        np.testing.assert_allclose(actions[1:2], only, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(together.returns_to_go[1], alone.returns_to_go[0], rtol=1e-4, atol=1e-5)


def test_there_is_a_plan_that_lasts_and_follows_the_weights(make_store: MakeStore) -> None:
    model = build(make_store())
    context = ContextBuffer(
        1, K, observation_shape=(3,), observation_dtype=np.float32, action_shape=(2,), action_dtype=np.float32
    )
    plan = acting_plan(model, context, "fp32")
    assert isinstance(plan, PredictedReturnPlan)
    context.append(np.zeros(1), np.ones((1, 3), np.float32), np.zeros(1, np.int64))
    before = plan.outputs(None).clone()
    scramble(model, seed=1)
    assert plan.holds() and not torch.equal(before, plan.outputs(None))
    asked = build(make_store(), target_rule="decrement")
    assert not isinstance(acting_plan(asked, context, "fp32"), PredictedReturnPlan)


def test_a_given_target_is_obeyed_with_another_rule(make_store: MakeStore) -> None:
    model = build(make_store(), target_rule="decrement")
    assert not np.array_equal(Course(model).run(5, target=5.0), Course(model).run(5, target=50.0))


def test_shorter_contexts_and_bf16(make_store: MakeStore) -> None:
    model = build(make_store(), context_rule="whole")
    exact = Course(model).run(10)
    assert np.abs(exact - Course(model, precision="bf16").run(10)).max() < 0.2
    short = Course(model, context_length=2)
    short.run(5)
    assert max(window.context_length for window in short.acted) == 2


def test_a_policy_takes_no_target(make_store: MakeStore) -> None:
    policy = SequencePolicy(build(make_store()))
    with pytest.raises(UserError, match=r"target_return is 3.*predicts its own returns; leave it out"):
        policy.reset(3)
    policy.reset()
    first = policy.act(np.zeros(3, np.float32))
    policy.act(np.ones(3, np.float32), 1.0)
    policy.reset()
    np.testing.assert_array_equal(policy.act(np.zeros(3, np.float32)), first)
