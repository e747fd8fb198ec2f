"""The RL gradient of discrete actions, its steps written out for vectors and for frames."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import contract
import pytest
import torch
from builders import scramble
from torch import Tensor
from torch.nn import functional

from rayrl_dt import OnlineDTConfig, UserError
from rayrl_dt.objectives.gradient import Batch

B, K, LR, POLYAK, GAMMA, ALPHA = 8, 4, 1e-3, 0.3, 0.9, 0.4
STRONG = {"critic_ensemble": 4, "critic_updates_per_actor": 2, "critic_layer_norm": True}


@pytest.fixture
def build(ray_session: None, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Returns a function that builds an algorithm whose finetuning has begun."""
    built: list[Any] = []

    def make(observations: str, **online: Any) -> Any:
        config = OnlineDTConfig().offline_data(
            dataset=contract.make_data(tmp_path / observations, observations, "discrete")
        )
        model = {"context_length": K, "embed_dim": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
        config.rl_module(model_config=model)
        config.training(train_batch_size_per_learner=B, lr=LR, warmup_steps=0, weight_decay=0.01)
        config.training(grad_clip=None, precision="fp32")
        config.online(rl_gradient="expected_q", optimizer="adamw", pretrain_steps=0, env_steps=24)
        config.online(polyak=POLYAK, gamma=GAMMA, alpha=ALPHA, reward_scale=4.0, critic_width=16, **online)
        algorithm = config.build_algo()
        built.append(algorithm)
        algorithm.learner_group._learner.gradient_step = 1
        algorithm.learner_group._learner.networks.train()
        return algorithm

    yield make
    for algorithm in built:
        algorithm.stop()


def features(model: Any, observations: Tensor) -> Tensor:
    """Vectors normalized; frames by plain convolutions of pixels from 0 to 1."""
    if observations.dtype != torch.uint8:
        return (observations - torch.tensor(model.spec.normalizer.mean)) / torch.tensor(
            model.spec.normalizer.std
        )
    x = observations.flatten(0, 1).float() / 255
    for layer in model.trunk.embed_observation.encoder.network.layers:
        x = functional.relu(functional.conv2d(x, layer.weight, layer.bias, layer.stride))
    return x.flatten(1).unflatten(0, observations.shape[:2]).detach()


def values(critic: Any, seen: Tensor, members: Any = None) -> Tensor:
    """`(M, B, K, n)`, layer by layer."""
    found = []
    for number in range(critic.ensemble) if members is None else members:
        *hidden, last = (m for m in getattr(critic, f"q{number + 1}") if isinstance(m, torch.nn.Linear))
        x = seen
        for layer in hidden:
            x = functional.linear(x, layer.weight, layer.bias)
            x = functional.relu(functional.layer_norm(x, x.shape[-1:]) if critic.layer_norm else x)
        found.append(functional.linear(x, last.weight, last.bias))
    return torch.stack(found)


@pytest.mark.ray
@pytest.mark.parametrize("observations", ["vector", "frame"])
@pytest.mark.parametrize("online", [{}, {**STRONG, "normalize_q": True}], ids=["plain", "strong"])
def test_a_step_is_what_it_says(build: Callable[..., Any], observations: str, online: dict[str, Any]) -> None:
    """Two gradient steps in a row: the slow copies of the first enter the second."""
    algorithm = build(observations, **online)
    learner, config = algorithm.learner_group._learner, algorithm.config
    networks, ensemble = learner.networks, config.critic_ensemble
    for seed, name in enumerate(("model", "critic", "target_critic", "target_model")):
        scramble(getattr(networks, name), seed)
        if observations == "frame":  # scrambled convolutions explode
            with torch.no_grad():
                for layer in getattr(networks, name).modules():
                    if isinstance(layer, torch.nn.Conv2d):
                        layer.weight *= 0.3
    policy, critic, slow, actor = (
        copy.deepcopy(getattr(networks, name))
        for name in ("model", "critic", "target_critic", "target_model")
    )
    adams = {
        network: torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.01)
        for network, lr in ((policy, LR), (critic, config.critic_lr))
    }

    def descend(network: Any, loss: Tensor) -> None:
        adams[network].zero_grad()
        loss.backward()
        adams[network].step()

    def follow(copied: Any, network: Any) -> None:
        with torch.no_grad():
            for one, other in zip(copied.parameters(), network.parameters(), strict=True):
                one.mul_(1 - POLYAK).add_(POLYAK * other)

    (source,) = algorithm.offline_data.iterators(0)
    assert sum(found.mask.sum() for found in source.batches(rank=0, first_step=0, count=2)) > B
    for step, window in enumerate(source.batches(rank=0, first_step=0, count=2)):
        window, noise = window.to_torch(), torch.Generator().manual_seed(step)
        learner._take_step(Batch(window, networks.model, torch.Generator().manual_seed(step)))

        mask, taken = window.mask, (window.actions - 1).clamp(0)  # actions count from 1, padding holds 0
        with torch.no_grad():
            law, ahead = actor(window.next).softmax(-1), features(actor, window.next.observations)
        seen = features(policy, window.observations)
        parts = config.critic_updates_per_actor
        for part in range(parts):
            rows = slice(part * B // parts, (part + 1) * B // parts)
            if part > 0:
                follow(slow, critic)
            members = None if ensemble == 2 else torch.randperm(ensemble, generator=noise)[:2].tolist()
            with torch.no_grad():
                expected = torch.einsum("mbkn,bkn->mbk", values(slow, ahead[rows], members), law[rows])
                target = window.rewards[rows] / 4 + GAMMA * expected.amin(0) * ~window.terminated[rows]
            chosen = values(critic, seen[rows]).gather(-1, taken[rows].expand(ensemble, -1, -1)[..., None])
            errors = (chosen[..., 0] - target) ** 2
            descend(critic, sum(error[mask[rows]].mean() for error in errors))

        logits = policy(window)
        fit = functional.cross_entropy(logits[mask], taken[mask])
        with torch.no_grad():
            every = values(critic, seen)
        expected = torch.einsum("mbkn,bkn->mbk", every, logits.softmax(-1))
        judged = (expected.amin(0) if ensemble == 2 else expected.mean(0))[mask]
        size = judged.abs().mean().detach() if config.normalize_q else 1.0
        descend(policy, fit - ALPHA * judged.mean() / size)
        follow(slow, critic)
        follow(actor, policy)
    found = networks.model, networks.critic, networks.target_critic, networks.target_model
    for one, other in zip(found, (policy, critic, slow, actor), strict=True):
        for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(
                a, b, rtol=2e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("head", ["deterministic", "gaussian", "multi-categorical"])
def test_other_heads_are_refused(head: str) -> None:
    config = OnlineDTConfig().offline_data(dataset="recipe:pendulum-mixed").online(rl_gradient="expected_q")
    config.rl_module(model_config={"head": head})
    with pytest.raises(
        UserError, match=f"expected_q needs discrete actions, .* '{head}'; set head"
    ) as refused:
        config.validate()
    assert "\n" not in str(refused.value)


@pytest.mark.ray
def test_each_gradient_says_which_one_to_take_instead(
    ray_session: None, cartpole_data: str, pendulum_data: str
) -> None:
    for dataset, refused, remedy in (
        (cartpole_data, "td3", "expected_q or none"),
        (pendulum_data, "expected_q", "td3 or sac or pg or awac or q_align or none"),
    ):
        with pytest.raises(UserError, match=f"{refused} does not take .*set online.rl_gradient: {remedy}"):
            OnlineDTConfig().offline_data(dataset=dataset).online(rl_gradient=refused).build_algo()
