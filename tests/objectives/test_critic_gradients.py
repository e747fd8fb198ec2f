"""The RL gradients with critics, each step of theirs written out with weights that hide nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from builders import scramble
from torch import Tensor
from torch.nn import functional

from rayrl_dt import OnlineDTConfig, UserError
from rayrl_dt.critics.networks import TwinCritic
from rayrl_dt.objectives.critic_gradient import CriticGradient, CriticSettings, judged
from rayrl_dt.objectives.gradient import Batch

pytestmark = pytest.mark.ray

B, LR, POLYAK, GAMMA = 8, 1e-3, 0.3, 0.9
STRONG = {"critic_ensemble": 4, "critic_subset": 2, "critic_updates_per_actor": 2, "critic_layer_norm": True}
AIMED = {"gradient_returns": "target", "exploration_target": -100.0}
CASES: dict[str, dict[str, Any]] = {
    "td3": {"rl_gradient": "td3"},
    "td3, strong": {"rl_gradient": "td3", **STRONG},
    "td3, aimed": {"rl_gradient": "td3", **AIMED},
    "td3, strong and aimed": {"rl_gradient": "td3", **STRONG, **AIMED},
    "sac": {"rl_gradient": "sac", "head": "gaussian", "temperature_lr": 0.1},
    "sac, strong": {"rl_gradient": "sac", "head": "gaussian", "bc_weight": 0.0, "alpha": 1.0, **STRONG},
    "sac, no entropy in targets": {"rl_gradient": "sac", "head": "gaussian", "entropy_in_targets": False},
    "sac, aimed": {"rl_gradient": "sac", "head": "gaussian", **AIMED},
    "pg": {"rl_gradient": "pg"},
    "pg, aimed": {"rl_gradient": "pg", **AIMED},
    "pg, gaussian": {"rl_gradient": "pg", "head": "gaussian"},
    "awac": {"rl_gradient": "awac", "advantage_temperature": 0.5, "advantage_cap": 1.5},
    "awac, gaussian": {"rl_gradient": "awac", "head": "gaussian", **STRONG},
    "q_align": {"rl_gradient": "q_align", "order_weight": 3.0},
    "q_align, gaussian": {"rl_gradient": "q_align", "head": "gaussian", "order_high": -200.0, **STRONG},
}


@pytest.fixture
def build(ray_session: None, pendulum_data: str) -> Iterator[Callable[..., Any]]:
    """Returns a function that builds an algorithm whose finetuning has begun."""
    built: list[Any] = []

    def make(*, head: str = "deterministic", **online: Any) -> Any:
        model = {"context_length": 4, "embed_dim": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
        config = OnlineDTConfig().offline_data(dataset=pendulum_data)
        config.rl_module(model_config={**model, "head": head})
        config.training(train_batch_size_per_learner=B, lr=LR, warmup_steps=0, weight_decay=0.01)
        config.training(grad_clip=None, precision="fp32")
        chosen = {"polyak": POLYAK, "gamma": GAMMA, "reward_scale": 4.0, "critic_width": 16, "alpha": 0.4}
        if online["rl_gradient"] in ("awac", "q_align"):
            del chosen["alpha"]
        config.online(optimizer="adamw", pretrain_steps=0, env_steps=200, **{**chosen, **online})
        algorithm = config.build_algo()
        built.append(algorithm)
        learner = algorithm.learner_group._learner
        learner.gradient_step = 1
        learner.networks.train()
        return algorithm

    yield make
    for algorithm in built:
        algorithm.stop()


def windows(algorithm: Any, count: int) -> list[Any]:
    (source,) = algorithm.offline_data.iterators(0)
    return [window.to_torch() for window in source.batches(rank=0, first_step=0, count=count)]


def value(network: torch.nn.Sequential, inputs: Tensor, layer_norm: bool) -> Tensor:
    """One critic, layer by layer."""
    *hidden, last = (module for module in network if isinstance(module, torch.nn.Linear))
    x = inputs
    for layer in hidden:
        x = functional.linear(x, layer.weight, layer.bias)
        x = functional.layer_norm(x, x.shape[-1:]) if layer_norm else x
        x = functional.relu(x)
    return functional.linear(x, last.weight, last.bias)[..., 0]


def values(critic: TwinCritic, observations: Tensor, actions: Tensor, members: Any = None) -> Tensor:
    inputs, count = torch.cat([observations, actions], -1), critic.ensemble
    chosen = range(count) if members is None else members
    return torch.stack([value(getattr(critic, f"q{m + 1}"), inputs, critic.layer_norm) for m in chosen])


def drawn(model: Any, outputs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Squashed Gaussian actions and their log-density, by torch's own distributions."""
    mean, raw = outputs.chunk(2, -1)
    law = torch.distributions.Normal(mean, (-5 + 3.5 * (torch.tanh(raw) + 1)).exp())
    before = mean + law.scale * noise
    return torch.tanh(before), (law.log_prob(before) - torch.log(1 - torch.tanh(before) ** 2)).sum(-1)


def negative_log_likelihood(outputs: Tensor, actions: Tensor) -> Tensor:
    mean, raw = outputs.chunk(2, -1)
    law = torch.distributions.Normal(mean, (-5 + 3.5 * (torch.tanh(raw) + 1)).exp())
    inside = actions.clamp(-1 + 1e-6, 1 - 1e-6)
    return -(law.log_prob(torch.atanh(inside)) - torch.log(1 - inside**2)).sum(-1)


def mean(x: Tensor, mask: Tensor) -> Tensor:
    return x[mask].mean()


def asked_for(window: Any, shift: Tensor, low: float, high: float) -> tuple[Any, Tensor]:
    """The windows with their returns moved, row by row, and by how much each was."""
    returns, moved = window.returns_to_go.clone(), torch.zeros(len(shift))
    for row, real in enumerate(window.mask):
        first = float(window.returns_to_go[row, :, 0][real][0])
        end = min(max(first + float(shift[row]), min(low, first)), max(high, first))
        moved[row] = end - first
        returns[row][real] += end - first
    return replace(window, returns_to_go=returns), moved


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_what_it_says(build: Callable[..., Any], case: str) -> None:
    """Two gradient steps in a row: the slow copies of the first enter the second."""
    algorithm = build(**CASES[case])
    learner, config = algorithm.learner_group._learner, algorithm.config
    networks, kind, gaussian = learner.networks, config.rl_gradient, CASES[case].get("head") == "gaussian"
    for seed, name in enumerate(
        ("model", "critic", "target_critic", *(() if kind == "sac" else ("target_model",)))
    ):
        scramble(getattr(networks, name), seed)
    policy, critic, slow = (copy.deepcopy(getattr(networks, n)) for n in ("model", "critic", "target_critic"))
    actor = policy if kind == "sac" else copy.deepcopy(networks.target_model)
    log_temperature = torch.tensor(math.log(config.initial_temperature), requires_grad=gaussian)
    adams = {
        "critic": torch.optim.AdamW(critic.parameters(), lr=config.critic_lr, weight_decay=0.01),
        "policy": torch.optim.AdamW(policy.parameters(), lr=LR, weight_decay=0.01),
        "temperature": torch.optim.AdamW([log_temperature], lr=config.temperature_lr, weight_decay=0.0),
    }
    parts, ensemble, subset = (
        vars(config)[f"critic_{name}"] for name in ("updates_per_actor", "ensemble", "subset")
    )

    def descend(name: str, loss: Tensor) -> None:
        adams[name].zero_grad()
        loss.backward()
        adams[name].step()

    def follow(copied: Any, network: Any) -> None:
        with torch.no_grad():
            for one, other in zip(copied.parameters(), network.parameters(), strict=True):
                one.mul_(1 - POLYAK).add_(POLYAK * other)

    normalizer = policy.spec.normalizer
    shift, spread = torch.tensor(normalizer.mean), torch.tensor(normalizer.std)
    data, wrong = policy.spec.data_returns, []
    low, high = min(data["min"], 0.0), max(data["max"], 0.0)
    if kind == "q_align" and config.order_high != "auto":
        high = config.order_high
    for step, window in enumerate(windows(algorithm, 2)):
        noise = torch.Generator().manual_seed(step)
        learner._take_step(Batch(window, networks.model, torch.Generator().manual_seed(step)))

        seen, following = ((w.observations - shift) / spread for w in (window, window.next))
        actions, mask, next_window = window.actions / 2, window.mask, window.next

        def aimed(some: Any, window: Any = window) -> Any:
            """The windows of episodes that began with the target, with what was earned since taken off."""
            further = -100.0 - window.episode_returns
            return replace(some, returns_to_go=some.returns_to_go + (further * some.mask)[..., None])

        aims = "aimed" in case
        if aims:
            next_window = aimed(next_window)
        if kind == "q_align":
            next_window, _ = asked_for(next_window, torch.full((B,), high - low), low, high)
        with torch.no_grad():
            outputs, bonus = actor(next_window), torch.zeros(B, 4)
            draw = torch.randn(B, 4, 1, generator=noise)
            if gaussian:
                ahead, density = drawn(actor, outputs, draw)
                if kind == "sac" and config.entropy_in_targets:
                    bonus = -(log_temperature.exp() / config.alpha) * density
            else:
                ahead = (outputs + (0.2 * draw).clamp(-0.5, 0.5)).clamp(-1 + 1e-6, 1 - 1e-6)
        size = B // parts
        for part in range(parts):
            rows = slice(part * size, (part + 1) * size)
            if part > 0:
                follow(slow, critic)
            members = None if subset == ensemble else torch.randperm(ensemble, generator=noise)[:subset]
            with torch.no_grad():
                lowest = values(slow, following[rows], ahead[rows], members)
                lowest = (lowest + bonus[rows]).min(0).values
                target = window.rewards[rows] / 4 + GAMMA * lowest * ~window.terminated[rows]
            errors = (values(critic, seen[rows], actions[rows]) - target) ** 2
            descend("critic", sum(mean(error, mask[rows]) for error in errors))

        outputs = policy(window)
        if kind == "q_align":
            draw = torch.randn(B, generator=noise)
            spread_of_shifts = data["p95"] - data["p5"]
            size = (draw.abs() * spread_of_shifts).clamp(min=0.2 * spread_of_shifts / 3)
            asked, moved = asked_for(window, torch.copysign(size, draw), low, high)
            further = policy(asked)
        together = (lambda q: q.min(0).values) if ensemble == 2 else (lambda q: q.mean(0))
        own = outputs.chunk(2, -1)[0].tanh() if gaussian else outputs
        weights = torch.ones(B, 4)
        if kind == "awac":
            with torch.no_grad():
                advantage = together(values(critic, seen, actions)) - together(values(critic, seen, own))
            weights = (advantage / config.advantage_temperature).exp().clamp(max=config.advantage_cap)
            assert not gaussian or weights[mask].std() > 0.01
        errors = negative_log_likelihood(outputs, actions) if gaussian else ((own - actions) ** 2).mean(-1)
        loss = config.bc_weight * mean(weights * errors, mask)
        climbing = policy(aimed(window)) if aims else outputs
        climber = climbing.chunk(2, -1)[0].tanh() if gaussian else climbing
        if gaussian:
            held = climbing if kind == "sac" else outputs
            _, density = drawn(policy, held, torch.randn(B, 4, 1, generator=noise))
            temperature = log_temperature.detach().exp()
            loss = loss + temperature * mean(density, mask)
            descend("temperature", log_temperature.exp() * (-mean(density, mask).detach() + 1))
        if kind == "td3":
            judges = values(critic, seen, climber)
            loss = loss - config.alpha * mean(judges[0] if ensemble == 2 else judges.mean(0), mask)
        elif kind == "sac":
            taken, _ = drawn(policy, climbing, torch.randn(B, 4, 1, generator=noise))
            loss = loss - config.alpha * mean(together(values(critic, seen, taken)), mask)
        elif kind == "pg":
            judges = together(values(critic, seen, climber))
            loss = loss - config.alpha * mean(judges, mask) / mean(judges.detach().abs(), mask)
        elif kind == "q_align":
            other = further.chunk(2, -1)[0].tanh() if gaussian else further
            anchor = values(critic, seen, own).detach()
            falls = (-(values(critic, seen, other) - anchor) * moved.sign()[:, None]).clamp(min=0)
            falls = falls.min(0).values if ensemble == 2 else falls.mean(0)
            penalty = mean(falls, mask & (moved != 0)[:, None])
            loss = loss + config.order_weight * penalty / mean(anchor.abs().mean(0), mask)
            wrong.append(float(penalty.detach()))
        descend("policy", loss)
        follow(slow, critic)
        if kind != "sac":
            follow(actor, policy)
    found = [networks.model, networks.critic, networks.target_critic]
    wanted = [policy, critic, slow]
    if kind != "sac":
        found.append(networks.target_model)
        wanted.append(actor)
    for one, other in zip(found, wanted, strict=True):
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(
                a, b, rtol=2e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
    if gaussian:
        torch.testing.assert_close(networks.log_temperature, log_temperature.detach())
    assert kind != "q_align" or min(wrong) > 0, "something is out of order, or nothing is tested"


class _Draws(CriticGradient):
    """What a target asks, without the rest."""


def test_a_target_asks_distinct_critics_drawn_anew() -> None:
    """Invariant 17: M of E, none twice, each as often as any other; all of them without a draw."""
    few = _Draws(CriticSettings(critic_ensemble=5, critic_subset=2))
    noise = torch.Generator().manual_seed(0)
    drawn = [few.members(noise) for _ in range(500)]
    assert all(len(set(members)) == 2 for members in drawn)
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=5)
    assert (counts - 200).abs().max() < 5 * math.sqrt(500 * 0.4 * 0.6)
    assert len({tuple(members) for members in drawn}) == 20
    before = noise.get_state()
    assert _Draws(CriticSettings(critic_ensemble=3, critic_subset=3)).members(noise) is None
    assert torch.equal(noise.get_state(), before), "TD3's noise is what it was before there were ensembles"


def test_pretraining_climbs_at_what_was_achieved(build: Callable[..., Any]) -> None:
    """And the target is asked for from the first step online, also of windows that are to fit no return."""
    algorithm = build(rl_gradient="td3", alpha_pretrain=0.4, **AIMED)
    gradient, networks = algorithm.config.gradient, algorithm.learner_group._learner.networks
    window = next(one for one in windows(algorithm, 100) if (one.mask & (one.timesteps == 0)).any())
    batch = Batch(window, networks.model, torch.Generator())
    assert gradient.asked_returns(networks, batch, online=False) is None
    assert gradient.asked_next(networks, batch, online=False) is window.next
    asked = gradient.asked_returns(networks, batch, online=True)
    batch.window = replace(window, returns_to_go=torch.full_like(window.returns_to_go, math.nan))
    assert torch.equal(gradient.asked_returns(networks, batch, online=True), asked)
    first = (window.timesteps == 0) & window.mask
    assert (asked[0, ..., 0][first] + 100.0).abs().max() < 1e-3
    assert (asked[0, ..., 0][~window.mask] == 0).all()


def test_what_critics_make_of_an_action_together() -> None:
    two, three = torch.tensor([[1.0, 5.0], [2.0, 3.0]]), torch.tensor([[1.0], [2.0], [6.0]])
    assert judged(two).tolist() == [1.0, 3.0] and judged(three).tolist() == [3.0]


def test_steps_of_the_critics_share_no_window(build: Callable[..., Any]) -> None:
    """Invariant 19: u steps on disjoint parts, one of the actor on all of the batch."""
    algorithm = build(rl_gradient="td3", critic_updates_per_actor=4)
    learner = algorithm.learner_group._learner
    seen: list[Tensor] = []
    learner.networks.critic.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    asked: list[int] = []
    learner.networks.model.register_forward_pre_hook(lambda _, args: asked.append(args[0].batch_size))
    (window,) = windows(algorithm, 1)
    learner._take_step(Batch(window, learner.networks.model, torch.Generator().manual_seed(0)))
    assert [len(part) for part in seen] == [2, 2, 2, 2] and asked == [B]
    assert torch.equal(torch.cat(seen), learner.networks.model.inputs(window).observations)
    steps = {
        name: {
            int(s["step"])
            for s in learner.get_optimizer("default_policy", name).state_dict()["state"].values()
        }
        for name in ("critic", "policy")
    }
    assert steps == {"critic": {4}, "policy": {1}}


@pytest.mark.parametrize(
    ("online", "head", "message"),
    [
        (
            {"critic_subset": 3},
            "auto",
            r"critic_subset is 3, and there are 2 critics .* critic_ensemble to 3 or more",
        ),
        ({"critic_ensemble": 1}, "auto", "critic_ensemble is 1; it must be a whole number of at least 2"),
        (
            {"critic_updates_per_actor": 3},
            "auto",
            r"critic_updates_per_actor is 3, .* 64 cannot .* set that to 63",
        ),
        ({"rl_gradient": "sac"}, "auto", r"sac needs a policy that draws .* 'auto', .* set head: gaussian"),
        (
            {"rl_gradient": "sac"},
            "deterministic",
            r"sac needs .* 'deterministic'; set head: gaussian, or rl_gradient",
        ),
        (
            {"rl_gradient": "ppo"},
            "auto",
            "rl_gradient is 'ppo'. Allowed: awac, expected_q, none, pg, q_align, sac, td3",
        ),
        (
            {"gradient_returns": "target", "exploration_targets": "best"},
            "auto",
            "gradient_returns target climbs at one return, .* best asks .* exploration_targets: constant",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(online: dict[str, Any], head: str, message: str) -> None:
    config = OnlineDTConfig().offline_data(dataset="recipe:pendulum-mixed").online(**online)
    config.rl_module(model_config={"head": head})
    with pytest.raises(UserError, match=message) as refused:
        config.validate()
    assert "\n" not in str(refused.value)
