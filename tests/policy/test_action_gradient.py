"""Action Gradient: closed forms of the rules, what it never does, what it refuses (methods: section 9, 23 to 25)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from builders import build_model
from torch import Tensor

from rayrl_dt.critics.networks import IQLCritic
from rayrl_dt.critics.passes import layers_of
from rayrl_dt.critics.training import new_critic
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.action_gradient import RULES, ActionGradient, ActionRefiner, climb
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.serving.policy import SequencePolicy
from rayrl_dt.types import ACTION_LIMIT

MakeStore = Callable[..., TrajectoryStore]
N, S, A = 64, 3, 2
ZETA1, ZETA2, EPSILON = 0.8, 0.6, 1e-3


@pytest.fixture
def model(make_store: MakeStore) -> SequenceModel:
    return build_model(make_store())


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, S, generator=generator), torch.rand(N, A, generator=generator) * 2 - 1


def settings(rule: str = "plain", **options: Any) -> ActionGradient:
    return ActionGradient(
        **{"rule": rule, "zeta1": ZETA1, "zeta2": ZETA2, "epsilon": EPSILON, "eta": 0.03, "n": 10, **options}
    )


def refined(critic: IQLCritic, rows: tuple[Tensor, Tensor], chosen: ActionGradient) -> Tensor:
    return climb((layers_of(critic.q.q1), layers_of(critic.q.q2)), *rows, chosen)


def lower(critic: IQLCritic, observations: Tensor, actions: Tensor) -> Tensor:
    return critic.q(observations, actions).amin(dim=0).detach()


def by_autograd(critic: IQLCritic, rows: tuple[Tensor, Tensor], chosen: ActionGradient) -> Tensor:
    """The same by autograd and the formulas, one iterate after the other, all kept."""
    observations, action = rows
    iterates, mean, square = [action], torch.zeros_like(action), torch.zeros_like(action)
    for step in range(1, chosen.n + 1):
        leaf = iterates[-1].clone().requires_grad_()
        (g,) = torch.autograd.grad(critic.q(observations, leaf).amin(dim=0).sum(), leaf)
        power = 1 if chosen.form == "printed" else step
        if chosen.rule == "momentum":
            mean = mean + ZETA1 * g if chosen.form == "printed" else ZETA1 * mean + g
        else:
            mean = ZETA1 * mean + (1 - ZETA1) * g
        square = ZETA2 * square + (1 - ZETA2) * g**2
        direction = {
            "plain": g,
            "momentum": mean,
            "rmsprop": g / (square**0.5 + EPSILON),
            "adam": mean / (1 - ZETA1**power) / ((square / (1 - ZETA2**power)) ** 0.5 + EPSILON),
        }[chosen.rule]
        iterates.append((iterates[-1] + chosen.eta * direction).clamp(-ACTION_LIMIT, ACTION_LIMIT))
    values = torch.stack([lower(critic, observations, iterate) for iterate in iterates])
    return torch.stack(iterates)[values.argmax(dim=0), torch.arange(len(action))]


@pytest.mark.parametrize("form", ["printed", "standard"])
@pytest.mark.parametrize("rule", RULES)
def test_it_is_what_autograd_gives(
    critic: IQLCritic, rows: tuple[Tensor, Tensor], rule: str, form: str
) -> None:
    chosen = settings(rule, form=form)
    expected, found = by_autograd(critic, rows, chosen), refined(critic, rows, chosen)
    assert (expected - rows[1]).abs().max() > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["momentum", "adam"])
def test_the_forms_differ_after_the_first_step(
    critic: IQLCritic, rows: tuple[Tensor, Tensor], rule: str
) -> None:
    first = [refined(critic, rows, settings(rule, form=form, n=1)) for form in ("printed", "standard")]
    # Momentum as printed scales its first gradient by zeta1, the standard one does not.
    assert torch.equal(*first) == (rule == "adam")
    later = [refined(critic, rows, settings(rule, form=form, n=5)) for form in ("printed", "standard")]
    assert (later[0] - later[1]).abs().max() > 1e-3


def test_momentum_with_zeta_1_begins_as_the_plain_rule(
    critic: IQLCritic, rows: tuple[Tensor, Tensor]
) -> None:
    plain, momentum = settings(n=1), settings("momentum", n=1, zeta1=1.0)
    assert torch.equal(refined(critic, rows, plain), refined(critic, rows, momentum))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("eta", [0.01, 0.3, 3.0])
def test_values_never_fall_and_rise_with_n(
    critic: IQLCritic, rows: tuple[Tensor, Tensor], rule: str, eta: float
) -> None:
    values = [
        lower(critic, rows[0], refined(critic, rows, settings(rule, eta=eta, n=n))) for n in (0, 1, 2, 5, 20)
    ]
    assert torch.equal(values[0], lower(critic, *rows))
    for before, after in pairwise(values):
        assert (after >= before - 1e-6).all()
    assert (values[-1] > values[0] + 1e-3).float().mean() > 0.5


@pytest.mark.parametrize("rule", RULES)
def test_actions_stay_within_bounds(critic: IQLCritic, rows: tuple[Tensor, Tensor], rule: str) -> None:
    found = refined(critic, rows, settings(rule, eta=100.0))
    moved = (found != rows[1]).any(dim=1)
    assert moved.any() and found[moved].abs().max() == torch.tensor(ACTION_LIMIT)


def test_it_finds_the_top_of_a_concave_critic(make_store: MakeStore) -> None:
    # -(|u - .5| + |u| + |u + .5|) / 3 by ReLUs: concave and piecewise linear, highest at u = 0.
    critic = new_critic(build_model(make_store(observation_dim=1, action_dim=1)).spec, hidden=6, seed=0)
    with torch.no_grad():
        for network in (critic.q.q1, critic.q.q2):
            for parameter in network.parameters():
                parameter.zero_()
            network[0].weight[:, 1] = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
            network[0].bias.copy_(torch.tensor([-0.5, 0.5, 0.0, 0.0, 0.5, -0.5]))
            network[2].weight.copy_(torch.eye(6))
            network[4].weight.fill_(-1 / 3)
    starts = torch.linspace(-0.95, 0.95, 20)[:, None]
    found = refined(critic, (torch.zeros(20, 1), starts), settings(eta=0.02, n=300))
    assert found.abs().max() < 0.02


@pytest.mark.parametrize("idle", [{"n": 0}, {"eta": 0.0}])
def test_without_steps_the_policy_is_the_same_bit_for_bit(
    model: SequenceModel, critic: IQLCritic, idle: dict[str, Any]
) -> None:
    refiner = ActionRefiner(settings(**idle), critic, model.spec)
    plain, idling = (acting(model, refiner) for refiner in (None, refiner))
    np.testing.assert_array_equal(plain, idling)
    changed = acting(model, ActionRefiner(settings(), critic, model.spec))
    assert (changed != plain).any()


def acting(model: SequenceModel, refiner: ActionRefiner | None, active: Any = None) -> Any:
    actor, rng = VectorActor(model, 3), np.random.default_rng(0)
    actor.refiner = refiner
    actions = []
    for step in range(8):
        observations = rng.normal(size=(3, 3)).astype(np.float32)
        starting = np.full(3, step == 0)
        actions.append(actor.act(observations, np.zeros(3), starting, np.full(3, 5.0), active).copy())
    return np.array(actions)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_weights_and_gradients_are_untouched(
    model: SequenceModel, critic: IQLCritic, context: Callable[[], Any]
) -> None:
    for parameter in (*model.parameters(), *critic.q.parameters()):
        parameter.grad = torch.full_like(parameter, 7.0)
    before = [value.clone() for value in (*model.state_dict().values(), *critic.state_dict().values())]
    with context():
        acting(model, ActionRefiner(settings(), critic, model.spec))
    after = [*model.state_dict().values(), *critic.state_dict().values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    for parameter in (*model.parameters(), *critic.q.parameters()):
        assert (parameter.grad == 7.0).all() and parameter.requires_grad


def test_refined_actions_are_the_ones_remembered(model: SequenceModel, critic: IQLCritic) -> None:
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].actions.clone()))
    taken = acting(model, ActionRefiner(settings(eta=1.0), critic, model.spec))
    np.testing.assert_array_equal(seen[-1][:, -2].numpy(), taken[-2])


def test_slots_left_out_are_not_refined(model: SequenceModel, critic: IQLCritic) -> None:
    refiner = ActionRefiner(settings(), critic, model.spec)
    everyone = acting(model, refiner)
    some = acting(model, refiner, np.array([True, False, True]))
    np.testing.assert_allclose(some[0][[0, 2]], everyone[0][[0, 2]], rtol=1e-5, atol=1e-6)
    assert (some[:, 1] == 0).all()


def test_observations_are_normalized_as_for_the_policy(model: SequenceModel, critic: IQLCritic) -> None:
    raw, actions = np.random.default_rng(0).normal(size=(5, S)).astype(np.float32) * 9, torch.zeros(5, A)
    normalized = model.to_model_observations(torch.from_numpy(raw)).detach()
    found = ActionRefiner(settings(), critic, model.spec)(raw, actions)
    torch.testing.assert_close(found, refined(critic, (normalized, actions), settings()))


def test_a_single_environment_policy_refines_too(model: SequenceModel, critic: IQLCritic) -> None:
    observation = np.ones(S, np.float32)
    actions = []
    for refiner in (None, ActionRefiner(settings(eta=0.01), critic, model.spec)):
        policy = SequencePolicy(model, refiner=refiner)
        policy.reset(target_return=1.0)
        actions.append(policy.act(observation))
    normalized = model.to_model_observations(torch.from_numpy(observation[None])).detach()
    values = [lower(critic, normalized, torch.from_numpy(action[None])).item() for action in actions]
    assert values[1] > values[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n": -1}, r"n is -1; it must be a whole number of at least 0"),
        ({"n": 2.5}, "n is 2.5"),
        ({"n": True}, "n is True"),
        ({"eta": float("nan")}, "eta is nan"),
        ({"eta": float("inf")}, "eta is inf"),
        ({"eta": -0.1}, r"eta is -0\.1"),
        ({"eta": "fast"}, "eta is 'fast'; it must be a finite number"),
        ({"zeta1": 1.0, "rule": "adam"}, r"zeta1 is 1\.0.*below 1"),
        ({"zeta2": -0.1}, "zeta2"),
        ({"rule": "adamw"}, "rule is 'adamw'.*Did you mean 'adam'"),
        ({"form": "fancy"}, "form is 'fancy'"),
        ({"steps": 3}, "has no key 'steps'"),
    ],
)
def test_bad_settings_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ActionGradient.read(values)


def test_settings_are_read_from_text() -> None:
    expected = ActionGradient(eta=0.1, n=3, rule="adam", zeta1=0.5)
    assert ActionGradient.parse("eta=0.1, n=3,rule=adam,zeta1=5e-1") == expected
    assert ActionGradient.read(expected.to_json()) == expected


@pytest.mark.parametrize("text", ["", "eta", "eta=", "=3", "eta=0.1,,n=3", "eta=0.1;n=3", "n=1.5"])
def test_unreadable_settings_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"cannot be read; write for instance eta=|must be a"):
        ActionGradient.parse(text)


def test_a_discrete_policy_is_refused(make_store: MakeStore, critic: IQLCritic) -> None:
    spec = build_model(make_store(actions=4)).spec
    with pytest.raises(UserError, match="needs continuous actions"):
        ActionRefiner(settings(), critic, spec)


def test_a_critic_of_another_size_is_refused(make_store: MakeStore, critic: IQLCritic) -> None:
    spec = build_model(make_store(observation_dim=4)).spec
    with pytest.raises(UserError, match=r"takes 5 inputs, the policy has 6.*rayrl-dt critic"):
        ActionRefiner(settings(), critic, spec)
