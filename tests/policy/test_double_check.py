"""The double check: which returns are asked for, which action is taken (methods: section 10, 10 to 12)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import build_model, scramble
from torch import Tensor, nn

from rayrl_dt import UserError
from rayrl_dt.critics.calibration import Calibration
from rayrl_dt.critics.networks import IQLCritic
from rayrl_dt.critics.training import new_critic
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.interop.critics import calibration_of, save_critic
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.double_check import DoubleCheck, DoubleCheckRefiner
from rayrl_dt.policy.refiner import Asked
from rayrl_dt.serving.policy import SequencePolicy

MakeStore = Callable[..., TrajectoryStore]
SLOTS = 3
TARGETS = np.array([2.0, 9.0, 16.0])


@pytest.fixture(params=["dt", "radt", "decoupled", "convformer"])
def model(make_store: MakeStore, request: pytest.FixtureRequest) -> SequenceModel:
    return build_model(make_store(), backbone=request.param)


@pytest.fixture
def calibration() -> Calibration:
    return Calibration(np.array([-10.0, 30.0]), np.array([-2.0, 2.0]), 0.5)


class Course:
    """Some steps of three slots with a double check; keeps what the actor saw and did."""

    def __init__(self, model: SequenceModel, refiner: Any, *, steps: int = 9) -> None:
        rng = np.random.default_rng(0)
        actor = VectorActor(model, SLOTS)
        actor.refiner = refiner
        self.windows, self.observations, self.taken, self.left = [], [], [], []
        for step in range(steps):
            seen = rng.normal(size=(SLOTS, 3)).astype(np.float32)
            rewards, starting = rng.normal(size=SLOTS), np.full(SLOTS, step == 0)
            active = np.array([True, step % 2 == 0, True])
            self.taken.append(actor.act(seen, rewards, starting, TARGETS, active).copy())
            self.windows.append(actor._context.window(np.arange(SLOTS)).to_torch())
            self.observations.append(seen)
            self.left.append(actor.returns_to_go.copy())
            if step % 2:
                self.taken[-1][1] = np.nan


@pytest.mark.parametrize("n", [2, 5, 8])
@pytest.mark.parametrize("mode", ["align", "max"])
def test_it_takes_what_the_critic_chooses(
    model: SequenceModel, critic: IQLCritic, calibration: Calibration, mode: str, n: int
) -> None:
    """Among the actions for returns that are asked for one by one, each by a forward of its own."""
    settings = DoubleCheck(n=n, spread=0.7, mode=mode)
    course = Course(model, DoubleCheckRefiner(settings, critic, model.spec, calibration))
    reach = 0.7 * (model.spec.data_returns["p95"] - model.spec.data_returns["p5"])
    shifts = reach * np.linspace(-1, 1, n + (n % 2 == 0))[-n:]
    assert len(shifts) == n and np.abs(shifts).min() < 1e-9
    elsewhere = 0
    for window, seen, taken, left in zip(
        course.windows, course.observations, course.taken, course.left, strict=True
    ):
        with torch.no_grad():
            candidates = torch.stack(
                [
                    model(replace(window, returns_to_go=window.returns_to_go + shift), last_only=True)[:, -1]
                    for shift in shifts.tolist()
                ]
            )
            normalized = model.to_model_observations(torch.from_numpy(seen)).expand(n, -1, -1)
            merit = critic.q(normalized, candidates).amin(dim=0)
            if mode == "align":
                merit = -(merit - torch.from_numpy(calibration(left)).float()).abs()
        for row in range(SLOTS):
            if np.isnan(taken[row]).any():  # was not active
                continue
            chosen = np.abs(candidates[:, row].numpy() - taken[row]).max(axis=-1).argmin()
            np.testing.assert_allclose(taken[row], candidates[chosen, row].numpy(), atol=1e-4)
            assert merit[chosen, row] >= merit[:, row].max() - 1e-4
            elsewhere += abs(shifts[chosen]) > 1e-9
    assert elsewhere > 5


def test_one_return_or_no_spread_is_the_policy(
    model: SequenceModel, critic: IQLCritic, calibration: Calibration
) -> None:
    plain = Course(model, None).taken
    for settings in (DoubleCheck(n=1), DoubleCheck(spread=0)):
        found = Course(model, DoubleCheckRefiner(settings, critic, model.spec, calibration)).taken
        assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(found, plain, strict=True))


def test_nothing_is_changed_and_nothing_drawn(
    model: SequenceModel, critic: IQLCritic, calibration: Calibration
) -> None:
    def weights() -> list[Tensor]:
        return [each.clone() for network in (model, critic) for each in network.parameters()]

    before = weights()
    first, second = (
        Course(model, DoubleCheckRefiner(DoubleCheck(n=6), critic, model.spec, calibration)).taken
        for _ in range(2)
    )
    assert all(np.array_equal(*pair, equal_nan=True) for pair in zip(first, second, strict=True))
    assert all(torch.equal(*pair) for pair in zip(before, weights(), strict=True))
    assert all(each.grad is None for network in (model, critic) for each in network.parameters())


class Scaled(nn.Module):
    """A critic whose values are another's in another unit."""

    def __init__(self, critic: nn.Module, factor: float) -> None:
        super().__init__()
        self.critic, self.factor = critic, factor

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        values: Tensor = self.factor * self.critic(observations, actions)
        return values


@pytest.mark.parametrize("mode", ["align", "max"])
def test_the_unit_of_rewards_chooses_nothing(make_store: MakeStore, mode: str) -> None:
    spec = build_model(make_store()).spec
    critic = new_critic(spec, hidden=32, seed=0)
    scramble(critic)
    observations = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    left, slope = np.linspace(-5, 30, 20), torch.linspace(-1, 1, 20)[:, None]
    found = []
    for unit in (1.0, 64.0):
        scaled = new_critic(spec, hidden=32, seed=0)
        scaled.q = Scaled(critic.q, unit)
        data = {name: unit * value for name, value in spec.data_returns.items()}
        known = Calibration(unit * np.array([-10.0, 30.0]), unit * np.array([-2.0, 2.0]), 0.5)
        refiner = DoubleCheckRefiner(
            DoubleCheck(n=9, spread=1.0, mode=mode), scaled, replace(spec, data_returns=data), known
        )

        def actions_for(shifts: Tensor, unit: float = unit) -> Tensor:
            return torch.tanh(shifts[..., None] / unit / 10 * slope).expand(-1, -1, 2)

        found.append(refiner(observations, torch.zeros(20, 2), asked=Asked(unit * left, actions_for)))
    assert torch.equal(*found) and (found[0] != 0).any()


@pytest.mark.parametrize(
    ("options", "config", "message"),
    [
        ({}, {"backbone": "reinformer"}, "backbone reinformer. sets its own target; leave it out"),
        ({}, {"backbone": "no-return"}, "backbone no-return. reads no returns"),
        ({"actions": 3}, {}, "needs continuous actions"),
    ],
)
def test_policies_that_cannot_be_asked_are_refused(
    make_store: MakeStore, options: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    spec = build_model(make_store(), **{**config, "head": "deterministic"}).spec
    if options:
        spec = build_model(make_store(**options)).spec
    critic = new_critic(build_model(make_store()).spec, hidden=8, seed=0)
    with pytest.raises(UserError, match=message):
        DoubleCheckRefiner(DoubleCheck(), critic, spec, None)


def test_a_policy_that_does_not_know_its_datas_returns_is_refused(make_store: MakeStore) -> None:
    spec = replace(build_model(make_store()).spec, data_returns={"p95": 3.0})
    critic = new_critic(spec, hidden=8, seed=0)
    with pytest.raises(UserError, match="does not know those of test; import it with its data"):
        DoubleCheckRefiner(DoubleCheck(mode="max"), critic, spec, None)


@pytest.mark.parametrize("mode", ["align", "max"])
def test_a_loaded_policy_checks_its_targets_too(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr("rayrl_dt.critics.calibration._FLAT", -1.0)
    monkeypatch.setattr("rayrl_dt.interop.critics.run_data", lambda bundle: make_store())
    model, settings = build_model(make_store()), DoubleCheck(n=6, spread=0.7, mode=mode)
    critic = new_critic(model.spec, hidden=8, seed=0)
    scramble(critic)
    bundle = Bundle.open(save_bundle(model.spec, model.state_dict(), tmp_path / "policy"))
    save_critic(bundle, critic.state_dict(), record={})
    actor = VectorActor(model, 1)
    actor.refiner = DoubleCheckRefiner(settings, critic, model.spec, calibration_of(bundle))
    checked = SequencePolicy.load(bundle.folder, double_check=settings)
    plain = SequencePolicy.load(bundle.folder)
    for policy in (checked, plain):
        policy.reset(9.0)
    found, alone = [], []
    for step, seen in enumerate(np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)):
        found.append(checked.act(seen, 0.5))
        alone.append(plain.act(seen, 0.5))
        wanted = actor.act(seen[None], np.array([0.5]), np.array([step == 0]), np.array([9.0]))[0]
        np.testing.assert_array_equal(found[-1], wanted)
    assert not np.array_equal(found, alone)


@pytest.mark.parametrize("backbone", ["dt", "decoupled"])
def test_a_target_may_change_in_mid_episode(make_store: MakeStore, backbone: str) -> None:
    """A cached plan then does what the model does with the window as it is."""
    from rayrl_dt.policy.acting.plan import CachedPlan
    from rayrl_dt.policy.acting.select import acting_plan
    from rayrl_dt.policy.context import ContextBuffer

    model = build_model(make_store(), backbone=backbone)
    context = ContextBuffer.of(model.spec, SLOTS, 6)
    plan, rng = acting_plan(model, context, "fp32"), np.random.default_rng(0)
    assert isinstance(plan, CachedPlan)
    for step in range(12):
        context.append(TARGETS - step, rng.normal(size=(SLOTS, 3)).astype(np.float32), np.full(SLOTS, step))
        plan.outputs(None)
        context.set_returns(TARGETS * (step + 1))
        wanted = model(context.window().to_torch(), last_only=True)[:, -1]
        torch.testing.assert_close(plan.outputs(None), wanted.detach(), rtol=1e-5, atol=1e-5)
        context.set_actions(rng.uniform(-1, 1, (SLOTS, 2)))
