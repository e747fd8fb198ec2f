"""Another RL gradient is a class and a row: one that is nowhere else trains online, with a critic of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from rayrl_dt import OnlineDTConfig, UserError
from rayrl_dt.algorithms.online.learner import online_metrics
from rayrl_dt.critics.companions import Companions
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.objectives.gradient import CRITIC, Batch, Bench, GradientSettings, Networks, RLGradient, Trained
from rayrl_dt.objectives.rl_gradients import RL_GRADIENTS
from rayrl_dt.settings import real, setting

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class SarsaSettings(GradientSettings):
    """The settings of a critic of the data's own actions.

    Attributes:
        actor_interval: see `GradientSettings`.
        push: weight of its gradient.
    """

    push: float = setting(0.5, real(least=0))


class Sarsa(RLGradient):
    """Values what the data do next, and pushes the policy up that."""

    reads = SarsaSettings
    successors = True
    logs = ("sarsa_loss",)
    settings: SarsaSettings

    @property
    def companions(self) -> Companions:
        return Companions(critic="twin", shape={"hidden": 8}, slow=("critic",))

    def check_model(self, model: ModelConfig) -> None:
        if model.num_layers > 2:
            raise UserError("online.rl_gradient sarsa is for shallow policies")

    def trained(self, networks: Networks) -> Iterable[Trained]:
        yield Trained(CRITIC, networks.critic.parameters(), 1e-2, 0.0)

    def critic_step(self, bench: Bench, batch: Batch) -> None:
        networks, window = bench.networks, batch.window
        assert window.next is not None and window.rewards is not None
        following = networks.model.inputs(window.next)
        with torch.no_grad():
            ahead = networks.target_critic(following.observations, following.actions).amin(dim=0)
        values = networks.critic(batch.inputs.observations, batch.inputs.actions)
        loss = (values - window.rewards / 100 - 0.9 * ahead)[:, window.mask].square().mean()
        bench.descend(CRITIC, loss, "the critic's loss")
        bench.log("sarsa_loss", loss.detach())

    def policy_loss(
        self, fit: Tensor, outputs: Tensor, networks: Networks, batch: Batch, *, online: bool
    ) -> Tensor:
        values = networks.critic.first(batch.inputs.observations, outputs.float())
        return fit - self.settings.push * values[batch.window.mask].mean()

    def policy_moved(self, networks: Networks) -> None:
        networks.move_targets(0.5)


def test_a_gradient_is_a_class_and_a_row(
    ray_session: None, pendulum_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RL_GRADIENTS, "sarsa", Sarsa)
    model = {"context_length": 4, "embed_dim": 16, "num_layers": 1, "num_heads": 2}
    weights = []
    for push in (0.5, 0.0):
        config = OnlineDTConfig().offline_data(dataset=pendulum_data).rl_module(model_config=model)
        config.training(train_batch_size_per_learner=8).online(rl_gradient="sarsa", actor_interval=1)
        config.online(pretrain_steps=0, env_steps=200, env_steps_per_iteration=200, updates_per_iteration=3)
        config.push = push
        algorithm = config.build_algo()
        before = {name: value.clone() for name, value in _networks(algorithm).state_dict().items()}
        learner = algorithm.train()["learners"]["default_policy"]
        after = _networks(algorithm).state_dict()
        assert algorithm.done and algorithm.gradient_steps == 3
        moved = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
        assert moved == {"model", "critic", "target_critic"}
        assert "sarsa_loss" in online_metrics() and np.isfinite(learner["sarsa_loss"])
        weights.append(after["model.head.weight"])
        algorithm.stop()
    assert not torch.equal(*weights), "its gradient reaches the policy"


def test_its_own_checks_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RL_GRADIENTS, "sarsa", Sarsa)
    config = OnlineDTConfig().offline_data(dataset="recipe:pendulum-mixed").online(rl_gradient="sarsa")
    config.push = -1.0
    with pytest.raises(UserError, match=r"online.push is -1.0; it must be a finite number of at least 0"):
        config.validate()
    config.push = 0.5
    with pytest.raises(UserError, match="sarsa is for shallow policies"):
        config.rl_module(model_config={"num_layers": 3}).validate()


def _networks(algorithm: object) -> torch.nn.Module:
    networks: torch.nn.Module = algorithm.learner_group._learner.networks  # type: ignore[attr-defined]
    return networks
