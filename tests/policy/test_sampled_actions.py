"""The best of sampled actions: never worse for the critic, the policy's own where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from builders import build_model
from torch import Tensor

from rayrl_dt.critics.networks import IQLCritic
from rayrl_dt.critics.training import new_critic
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.refinement import choose_refinement
from rayrl_dt.policy.sampled_actions import SampledActions, SamplingRefiner

MakeStore = Callable[..., TrajectoryStore]
N = 32


@pytest.fixture(params=["deterministic", "gaussian"])
def model(make_store: MakeStore, request: pytest.FixtureRequest) -> SequenceModel:
    return build_model(make_store(), head=request.param)


def acted(model: SequenceModel, settings: SampledActions | None, critic: IQLCritic) -> np.ndarray[Any, Any]:
    """The first actions of N slots."""
    actor = VectorActor(model, N)
    actor.refiner = None if settings is None else SamplingRefiner(settings, critic, model.spec)
    return actor.act(observations(), np.zeros(N), np.ones(N, bool), np.full(N, 3.0))


def observations() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)


def lower(model: SequenceModel, critic: IQLCritic, actions: np.ndarray[Any, Any]) -> Tensor:
    seen = model.to_model_observations(torch.from_numpy(observations()))
    return critic.q(seen, model.to_model_actions(torch.from_numpy(actions))).amin(dim=0).detach()


def test_no_samples_and_no_noise_leave_the_policy(model: SequenceModel, critic: IQLCritic) -> None:
    plain = acted(model, None, critic)
    assert np.array_equal(acted(model, SampledActions(n=0), critic), plain)
    still = acted(model, SampledActions(n=5, noise=0.0), critic)
    # A Gaussian policy draws from itself, whatever the noise.
    assert np.array_equal(still, plain) is not model.spec.head.stochastic


def test_q_never_falls_and_more_samples_find_more(model: SequenceModel, critic: IQLCritic) -> None:
    values = [lower(model, critic, acted(model, None, critic))]
    for n in (1, 10, 200):
        taken = acted(model, SampledActions(n=n), critic)
        assert (np.abs(taken) <= 1).all()
        values.append(lower(model, critic, taken))
        assert (values[-1] >= values[0] - 1e-5).all()
    means = [float(value.mean()) for value in values]
    assert means == sorted(means) and means[-1] > means[0]


def test_draws_are_the_policys_own(model: SequenceModel, critic: IQLCritic) -> None:
    """A critic that asks for a certain candidate gets what the formula draws."""
    seed, settings = 5, SampledActions(n=1, noise=0.3, seed=5)
    from rayrl_dt.seeding import torch_generator

    noise = torch.randn(1, N, 2, generator=torch_generator(seed, "sampled-actions"))[0]
    plain = torch.from_numpy(acted(model, None, critic))
    if model.spec.head.stochastic:
        actor = VectorActor(model, N)
        actor.act(observations(), np.zeros(N), np.ones(N, bool), np.full(N, 3.0))
        assert actor._plan is not None
        mean, log_std = model.spec.head.law(actor._plan.outputs(None).detach())
        expected = torch.tanh(mean + log_std.exp() * noise)
    else:
        expected = (plain + 0.3 * noise).clamp(-1, 1)
    taken = torch.from_numpy(acted(model, settings, critic))
    changed = (taken - plain).abs().sum(dim=1) > 0
    assert 0 < changed.sum() < N
    torch.testing.assert_close(taken[changed], expected[changed], rtol=1e-5, atol=1e-5)
    better = lower(model, critic, expected.numpy()) > lower(model, critic, plain.numpy())
    assert torch.equal(better, changed)


def test_it_is_repeatable_and_leaves_all_weights(model: SequenceModel, critic: IQLCritic) -> None:
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    with torch.inference_mode():
        one = acted(model, SampledActions(n=8), critic)
    assert np.array_equal(one, acted(model, SampledActions(n=8), critic))
    assert not np.array_equal(one, acted(model, SampledActions(n=8, seed=1), critic))
    assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())
    assert all(parameter.grad is None for parameter in (*critic.parameters(), *model.parameters()))


def test_text_is_read() -> None:
    expected = SampledActions(n=7, noise=0.2)
    assert SampledActions.parse("n=7, noise=0.2") == expected
    assert SampledActions.from_value(expected.to_json()) == expected
    # As YAML reads "2e-1".
    assert SampledActions.from_value({"n": 7, "noise": "2e-1"}) == expected
    assert SampledActions.parse("7") == SampledActions.from_value(7) == SampledActions(n=7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("many", "cannot be read"),
        ("n=-1", "n is -1"),
        ("n=1.5", "n is 1.5"),
        ("noise=nan", "noise is nan"),
        ("noize=1", "Did you mean 'noise'"),
    ],
)
def test_bad_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SampledActions.parse(text)


@pytest.mark.parametrize("value", [True, 2.5, "many", [3]])
def test_a_value_of_another_kind_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match="write how many"):
        SampledActions.from_value(value)


def test_one_way_at_a_time_and_continuous_actions_only(make_store: MakeStore) -> None:
    with pytest.raises(UserError, match="choose one"):
        choose_refinement(ActionGradient(), SampledActions())
    continuous, discrete = build_model(make_store()), build_model(make_store(actions=3))
    critic = new_critic(continuous.spec, hidden=8, seed=0)
    with pytest.raises(UserError, match="continuous actions"):
        SamplingRefiner(SampledActions(), critic, discrete.spec)
