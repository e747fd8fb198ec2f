from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import build_model, scramble, with_choices

from rayrl_dt.algorithms.online.lamb import Lamb
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.models.decision_transformer import TransformerTrunk
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.acting.plan import ActingPlan, CachedPlan, WholeWindowPlan
from rayrl_dt.policy.acting.select import acting_plan
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.context import ContextBuffer

MakeStore = Callable[..., TrajectoryStore]
Array = np.ndarray[Any, Any]
SLOTS = 3

MODELS: dict[str, dict[str, Any]] = {
    "dt": {"backbone": "dt"},
    "no-return": {"backbone": "no-return"},
    "one-layer": {"backbone": "dt", "num_layers": 1},
    "decoupled": {"backbone": "decoupled"},
    "decoupled-mlp": {"backbone": "decoupled", "modulation": "mlp", "num_layers": 1},
    "decoupled-block": {"backbone": "decoupled", "modulation": "block"},
    "radt": {"backbone": "radt"},
    "radt-one-layer": {"backbone": "radt", "num_layers": 1},
    "radt-pre": {"backbone": "radt", "norm": "pre"},
    "radt-plain-residual": {"backbone": "radt", "adaptive_scaling": False},
    "radt-without-seqra": {"backbone": "radt", "use_seqra": False},
    "radt-without-stepra": {"backbone": "radt", "use_stepra": False},
    "radt-without-stepra-post": {"backbone": "radt", "use_stepra": False, "norm": "post"},
}
CHOICES = gym.spaces.MultiDiscrete([4, 4], start=[3, 3])
HEADS: dict[str, tuple[Callable[[MakeStore], TrajectoryStore], dict[str, Any]]] = {
    "continuous": (lambda make: make(), {}),
    "gaussian": (lambda make: make(), {"head": "gaussian"}),
    "discrete": (lambda make: make(actions=4, first_action=3), {}),
    "choices": (lambda make: with_choices(make(), CHOICES), {}),
}


def context_of(model: SequenceModel, length: int | None = None) -> ContextBuffer:
    return ContextBuffer.of(model.spec, SLOTS, length or model.spec.model.context_length)


class Course:
    """Episodes of 4, 9 and endless steps in three slots, with random returns, observations and actions.

    Each step is shown to a context and a plan; `compare` asks the plan and the model about it.
    """

    def __init__(self, model: SequenceModel, *, length: int | None = None, precision: str = "fp32") -> None:
        self.model, self.precision = model, precision
        self.context = context_of(model, length)
        self.plan: ActingPlan = acting_plan(model, self.context, precision)
        self.rng = np.random.default_rng(0)
        self.time = np.zeros(SLOTS, np.int64)

    def steps(self, count: int) -> Iterator[int]:
        """Appends steps; each gets its action when the next one is asked for."""
        for step in range(count):
            starting = self.time == np.array([4, 9, 10**9])
            if starting.any():
                self.context.clear(starting)
                self.plan.clear(starting)
            self.time[starting] = 0
            observations = self.rng.normal(size=(SLOTS, 3)).astype(np.float32)
            self.context.append(self.rng.normal(size=SLOTS) * 5, observations, self.time)
            yield step
            head = self.model.spec.head
            shape = (SLOTS, *head.shape)
            actions = (
                self.rng.uniform(-1, 1, shape) if head.continuous else 3 + self.rng.integers(4, size=shape)
            )
            self.context.set_actions(actions)
            self.time += 1

    def compare(self, rows: list[int] | None = None) -> None:
        chosen = None if rows is None else np.array(rows)
        found = self.plan.outputs(chosen)
        torch.testing.assert_close(found, self.expected(chosen), rtol=1e-5, atol=2e-5)

    def expected(self, rows: Array | None = None) -> torch.Tensor:
        with torch.no_grad():
            outputs: torch.Tensor = self.model(self.context.window(rows).to_torch(), last_only=True)[:, -1]
        return outputs


@pytest.mark.parametrize(
    ("head", "heads"),
    [("continuous", 1), ("continuous", 2), ("gaussian", 1), ("discrete", 2), ("choices", 1)],
)
@pytest.mark.parametrize("name", MODELS)
def test_a_plan_does_what_the_model_does(make_store: MakeStore, name: str, head: str, heads: int) -> None:
    data, config = HEADS[head]
    model = build_model(data(make_store), num_heads=heads, **{"num_layers": 3, **MODELS[name], **config})
    course = Course(model)
    assert isinstance(course.plan, CachedPlan)
    for _ in course.steps(25):
        course.compare()


@pytest.mark.parametrize("name", ["dt", "radt"])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_contexts_may_be_shorter_than_the_models(make_store: MakeStore, name: str, length: int) -> None:
    course = Course(build_model(make_store(), **MODELS[name]), length=length)
    for _ in course.steps(20):
        course.compare()


@pytest.mark.parametrize("name", ["dt", "radt"])
def test_windows_slide_past_the_end_of_the_cache_and_of_the_timesteps(
    make_store: MakeStore, name: str
) -> None:
    course = Course(build_model(make_store(), **MODELS[name], max_episode_steps=30))
    for _ in course.steps(200):
        course.compare()


@pytest.mark.parametrize("name", ["dt", "radt"])
@pytest.mark.parametrize("heads", [1, 2])
def test_slots_may_be_left_out_and_steps_skipped(make_store: MakeStore, name: str, heads: int) -> None:
    course = Course(build_model(make_store(), **MODELS[name], num_heads=heads))
    rows: list[list[int] | None] = [None, [0, 2], [1], [2, 1, 0]]
    asked = 0
    for step in course.steps(160):
        # Gaps of 0 to 8 steps: some longer than the context.
        if step % 10 in (0, 1, 3, 4, 9) or 60 < step < 70:
            course.compare(rows[asked % len(rows)])
            asked += 1
    assert asked > 60


@pytest.mark.parametrize("name", ["dt", "radt"])
def test_values_that_are_not_finite_end_with_their_episode(make_store: MakeStore, name: str) -> None:
    course = Course(build_model(make_store(), **MODELS[name]))
    for step in course.steps(9):
        if step == 2:
            course.context.append(
                np.full(SLOTS, np.nan), np.full((SLOTS, 3), np.inf, np.float32), course.time
            )
            assert not course.plan.outputs(None).isfinite().any()
        if step > 3:
            course.compare([0])
            assert course.plan.outputs(np.array([0])).isfinite().all()


def in_place(model: SequenceModel) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)


def in_inference_mode(model: SequenceModel) -> None:
    with torch.inference_mode():
        model.head.weight.add_(0.1)


def step(optimizer: torch.optim.Optimizer) -> None:
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()


def by_adamw(model: SequenceModel) -> None:
    step(torch.optim.AdamW(model.parameters(), lr=0.05))


def by_fused_adamw(model: SequenceModel) -> None:
    step(torch.optim.AdamW(model.parameters(), lr=0.05, fused=True))


def by_lamb(model: SequenceModel) -> None:
    step(Lamb(model.parameters(), lr=0.05))


def loaded(model: SequenceModel) -> None:
    other = copy.deepcopy(model)
    scramble(other, seed=1)
    model.load_state_dict(other.state_dict())


def assigned(model: SequenceModel) -> None:
    other = copy.deepcopy(model)
    scramble(other, seed=2)
    model.load_state_dict(other.state_dict(), assign=True)


def in_place_through_data(model: SequenceModel) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.1)


def one_tensor_through_data(model: SequenceModel) -> None:
    model.head.bias.data.add_(0.1)


def new_data(model: SequenceModel) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.05


def new_data_twice(model: SequenceModel) -> None:
    # The second one might get the address of the original.
    new_data(model)
    new_data(model)


def new_buffer(model: SequenceModel) -> None:
    model.observation_mean.add_(0.5)


def new_module(model: SequenceModel) -> None:
    model.head = copy.deepcopy(model.head)
    scramble(model.head, seed=3)


CHANGES = [
    in_place,
    in_inference_mode,
    by_adamw,
    by_fused_adamw,
    by_lamb,
    loaded,
    assigned,
    in_place_through_data,
    one_tensor_through_data,
    new_data,
    new_data_twice,
    new_buffer,
    new_module,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["dt", "radt"])
def test_changed_weights_act_at_once_in_mid_episode(
    make_store: MakeStore, name: str, change: Callable[[SequenceModel], None]
) -> None:
    course = Course(build_model(make_store(), **MODELS[name]))
    for step in course.steps(20):
        assert course.plan.holds()
        if step == 12:
            before = course.expected()
            change(course.model)
            assert (course.expected() - before).abs().max() > 1e-3
            assert not course.plan.holds()
            course.plan = acting_plan(course.model, course.context, "fp32")
        course.compare()


@pytest.mark.parametrize("name", ["dt", "radt"])
def test_an_actor_never_acts_on_old_weights(make_store: MakeStore, name: str) -> None:
    def run(change: Callable[[SequenceModel], None]) -> list[Array]:
        model = build_model(make_store(), **MODELS[name])
        whole = build_model(make_store(), **MODELS[name])
        whole.register_forward_pre_hook(lambda *_: None)
        actors = VectorActor(model, 2), VectorActor(whole, 2)
        rng = np.random.default_rng(0)
        taken = []
        for step in range(15):
            if step == 8:
                change(model)
                change(whole)
            arguments = (
                rng.normal(size=(2, 3)).astype(np.float32),
                rng.normal(size=2),
                np.array([step in (0, 10), step == 0]),
                np.array([3.0, 8.0]),
            )
            actions, expected = (actor.act(*arguments) for actor in actors)
            np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=2e-5)
            taken.append(actions)
        return taken

    steady, changed = run(lambda model: None), run(loaded)
    np.testing.assert_array_equal(steady[:8], changed[:8])
    assert np.abs(steady[8] - changed[8]).max() > 1e-3


@pytest.mark.parametrize("name", ["dt", "radt"])
def test_hooks_see_whole_windows_as_long_as_they_are_there(make_store: MakeStore, name: str) -> None:
    model = build_model(make_store(), **MODELS[name])
    course = Course(model)
    seen: list[int] = []
    for step in course.steps(20):
        if step == 8:
            handle = model.trunk.blocks[0].register_forward_hook(lambda _, args, out: seen.append(len(out)))
        if step == 15:
            handle.remove()
        if not course.plan.holds():
            course.plan = acting_plan(model, course.context, "fp32")
        listening = 8 <= step < 15
        assert isinstance(course.plan, WholeWindowPlan if listening else CachedPlan)
        seen.clear()
        course.plan.outputs(None)
        assert seen == [SLOTS] * listening
        course.compare()


class OtherModel(SequenceModel):
    """A model of a user's own."""


class OtherTrunk(TransformerTrunk):
    """A trunk of a user's own."""


def test_what_no_plan_is_made_for_sees_whole_windows(make_store: MakeStore) -> None:
    model = build_model(make_store())
    other_trunk = copy.deepcopy(model)
    other_trunk.trunk.__class__ = OtherTrunk
    with torch.inference_mode():
        untracked = build_model(make_store())
    models = [
        *(build_model(make_store(), backbone=name) for name in ("mlp", "convformer", "starformer")),
        OtherModel(model.spec).eval(),
        other_trunk,
        copy.deepcopy(model).double(),
        untracked,
    ]
    for each in models:
        course = Course(each)
        assert isinstance(course.plan, WholeWindowPlan)
        for _ in course.steps(8):
            course.compare()
        assert course.plan.holds()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("heads", [1, 2])
def test_bf16_is_no_further_from_the_truth_than_the_models_bf16(
    make_store: MakeStore, name: str, heads: int
) -> None:
    model = build_model(make_store(), **{**MODELS[name], "num_heads": heads, "embed_dim": 32})
    with torch.no_grad():
        model.head.weight.mul_(0.01)  # away from where tanh is flat
        model.head.bias.mul_(0.01)
    course = Course(model, precision="bf16")
    whole = WholeWindowPlan(model, course.context, "bf16", lambda: True)
    assert isinstance(course.plan, CachedPlan)
    errors: dict[str, list[float]] = {"plan": [], "model": []}
    for _ in course.steps(40):
        exact = course.expected()
        for which, plan in (("plan", course.plan), ("model", whole)):
            outputs = plan.outputs(None).float()
            errors[which].append(float((outputs - exact).square().mean()))
    plan_error, model_error = (np.sqrt(np.mean(errors[which])) for which in ("plan", "model"))
    assert 0.0 < plan_error < 1.5 * model_error  # both round, in other places


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["dt", "radt"])
def test_the_same_calls_give_the_same_numbers(make_store: MakeStore, name: str, precision: str) -> None:
    model = build_model(make_store(), **MODELS[name])
    first, second = Course(model, precision=precision), Course(model, precision=precision)
    for _ in zip(first.steps(90), second.steps(90), strict=True):
        assert torch.equal(first.plan.outputs(None), second.plan.outputs(None))


def test_a_plan_leaves_the_model_as_it_was(make_store: MakeStore) -> None:
    model = build_model(make_store(), dropout=0.5)
    state = copy.deepcopy(model.state_dict())
    course = Course(model)
    for _ in course.steps(10):
        course.compare()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    # Nothing that the plan computed in inference mode is in the way of training.
    model.train()
    model(course.context.window().to_torch()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.trunk.embed_observation.parameters())
