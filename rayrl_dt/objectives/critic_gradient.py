"""What RL gradients with critics of single steps share: the critics' own steps.

Two critics, or an ensemble of which each target asks a random few (Chen et al. 2021, REDQ; Ball et al. 2023, "Efficient
Online Reinforcement Learning with Offline Data" (RLPD), section 4.3), and several steps of theirs for one of the policy
(Zhou et al. 2024, "Efficient Online Reinforcement Learning Fine-Tuning Need Not Retain Offline Data" (WSRL)).

Shape legend: B batch, K steps, A action dimensions, S observation dimensions, E critics, M that a target asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rayrl_dt import losses
from rayrl_dt.critics.companions import Companions
from rayrl_dt.errors import UserError
from rayrl_dt.models.head import Head
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.objectives.gradient import (
    CRITIC,
    CRITIC_LOSS,
    Batch,
    Bench,
    GradientSettings,
    Networks,
    RLGradient,
    Trained,
)
from rayrl_dt.objectives.objective import Q_MEAN
from rayrl_dt.policy.acting.every_step import outputs_at_every_step
from rayrl_dt.precision import autocast, dtype_of
from rayrl_dt.settings import automatic, count, flag, real, setting, whole_value
from rayrl_dt.types import Window

__all__ = ["CriticGradient", "CriticSettings", "descend_critics", "judged", "judgment"]


@dataclass(frozen=True)
class CriticSettings(GradientSettings):
    """The critics.

    Attributes:
        gamma: the critic's discount.
        polyak: share of the new weights in the targets at each of their steps.
        reward_scale: the critic learns from rewards divided by it; targets and returns stay raw. "auto" follows from
            the data, so that alpha weighs the same whatever the rewards' unit is
            (`rayrl_dt.data.scaling.reward_scale`). The authors use 1, and 100 and 1000 on Adroit.
        critic_lr: learning rate of the critic (AdamW).
        critic_weight_decay: its weight decay.
        critic_width: units of its two hidden layers.
        critic_layer_norm: layer norm without parameters in them; what the authors use outside MuJoCo.
        critic_ensemble: how many critics there are: 2 in TD3, 10 in RLPD and WSRL. A policy climbs the mean of more
            than two.
        critic_subset: how many of them a target asks, drawn anew for each step of the critics; it takes their lowest
            value. 2 in TD3, RLPD and WSRL.
        critic_updates_per_actor: steps of the critics in a gradient step, each on a part of the batch of its own; the
            actor's is on all of it. 4 in WSRL (batches of 4 x 256), 20 in RLPD. An `actor_interval` of 2 makes them
            twice as many for one of the actor.
    """

    gamma: float = setting(0.99, real(above=0, most=1))
    polyak: float = setting(0.005, real(above=0, most=1))
    reward_scale: float | str = setting("auto", automatic(real(above=0)), fixed=whole_value)
    critic_lr: float = setting(1e-3, real(above=0))
    critic_weight_decay: float = setting(0.01, real(least=0))
    critic_width: int = setting(256, count(1), fixed=whole_value)
    critic_layer_norm: bool = setting(False, flag(), fixed=whole_value)
    critic_ensemble: int = setting(2, count(2), fixed=whole_value)
    critic_subset: int = setting(2, count(1))
    critic_updates_per_actor: int = setting(1, count(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.critic_subset > self.critic_ensemble:
            raise UserError(
                f"online.critic_subset is {self.critic_subset}, and there are {self.critic_ensemble} critics to draw "
                f"them from; set critic_subset to {self.critic_ensemble} or less, or critic_ensemble to "
                f"{self.critic_subset} or more"
            )


class CriticGradient(RLGradient):
    """Trains critics towards r + gamma min Q'(s', a'), a' of the policy's slow copy on the shifted window."""

    reads = CriticSettings
    successors = True
    logs: ClassVar[tuple[str, ...]] = (CRITIC_LOSS, Q_MEAN)

    settings: CriticSettings

    @property
    def companions(self) -> Companions:
        """Critics, slow copies of them and of the policy."""
        settings = self.settings
        shape = {
            "hidden": settings.critic_width,
            "layer_norm": settings.critic_layer_norm,
            "ensemble": settings.critic_ensemble,
        }
        return Companions(critic="twin", shape=shape, slow=("model", "critic"))

    @classmethod
    def fits(cls, head: Head) -> bool:
        """Return whether actions are vectors, which its critics take."""
        return head.continuous

    def check_batch(self, batch_size: int) -> None:
        """Refuse batches that cannot be cut into the critics' parts.

        Raises:
            UserError: the parts would not be equal.
        """
        updates = self.settings.critic_updates_per_actor
        if batch_size % updates:
            raise UserError(
                f"online.critic_updates_per_actor is {updates}, and training.train_batch_size_per_learner {batch_size} "
                f"cannot be cut into so many equal parts; set that to {updates * max(1, batch_size // updates)}"
            )

    def trained(self, networks: Networks) -> Iterable[Trained]:
        """Return the critics."""
        settings = self.settings
        yield Trained(CRITIC, networks.critic.parameters(), settings.critic_lr, settings.critic_weight_decay)

    def critic_step(self, bench: Bench, batch: Batch) -> None:
        """Move the critics on each part of the batch, and their slow copy after each part but the last.

        After the last one it moves with the policy's, as in TD3. The policies stay meanwhile, so what comes next is
        drawn at once.
        """
        networks, following = bench.networks, batch.window.next
        assert following is not None
        with torch.no_grad():
            actions, bonus = self.following(bench, batch)  # (B, K, A) and (B, K)
            model = self.followed(networks)
            with autocast(following.mask.device, networks.precision):
                # (B, K, S)
                observations = model.features(model.to_model_observations(following.observations))
        parts = batch.parts(self.settings.critic_updates_per_actor)
        ahead = (each.chunk(len(parts)) for each in (observations, actions, bonus))
        for number, (part, *what) in enumerate(zip(parts, *ahead, strict=True)):
            if number:
                networks.move_targets(self.settings.polyak, only="critic")
            self._descend(bench, part, *what)

    def _descend(
        self, bench: Bench, batch: Batch, observations: Tensor, actions: Tensor, bonus: Tensor
    ) -> None:
        """Take one step of the critics, for what comes next as `following` has it."""
        settings, networks, window = self.settings, bench.networks, batch.window
        assert window.rewards is not None and window.terminated is not None
        scale, dtype = float(settings.reward_scale), dtype_of(networks.precision)
        rewards = window.rewards / scale  # (B, K)
        with torch.no_grad():
            members = self.members(batch.noise)
            values = networks.target_critic(observations, actions, dtype, members=members)  # (M, B, K)
            target = losses.td3_target(
                rewards, window.terminated, values + bonus, gamma=settings.gamma
            )  # (B, K)
        values = networks.critic(batch.features, batch.inputs.actions, dtype)  # (E, B, K)
        mean = descend_critics(
            bench,
            window,
            values,
            target,
            known=window.mask,
            paid=rewards.abs() + settings.gamma * bonus.abs().where(window.mask, 0.0),
            gamma=settings.gamma,
            reward_scale=scale,
        )
        bench.log(Q_MEAN, mean)

    def members(self, noise: torch.Generator) -> list[int] | None:
        """Draw the critics that a target asks; None for all, for which nothing is drawn."""
        count, of = self.settings.critic_subset, self.settings.critic_ensemble
        return None if count == of else torch.randperm(of, generator=noise)[:count].tolist()

    def followed(self, networks: Networks) -> SequenceModel:
        """Return the policy that targets follow: the slow copy."""
        return networks.target_model

    def asked_next(self, networks: Networks, batch: Batch, *, online: bool) -> Window[Tensor]:
        """Return the shifted windows as targets ask for them: with the returns that their episodes achieved."""
        following = batch.window.next
        assert following is not None
        return following

    def following(self, bench: Bench, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the actions `(B, K, A)` that targets assume next, and what their values get beside `(B, K)`.

        They are those of the policy's slow copy, drawn where it draws and with clipped noise where it does not.
        """
        networks, head = bench.networks, bench.networks.model.spec.head
        following = self.asked_next(networks, batch, online=bench.online)
        outputs = outputs_at_every_step(self.followed(networks), following, networks.precision).float()
        if head.stochastic:
            actions = head.sample_with_density(outputs, batch.noise)[0]
        else:
            actions = losses.smooth_actions(outputs, batch.normal(outputs))
        return actions, torch.zeros_like(actions[..., 0])

    def policy_moved(self, networks: Networks) -> None:
        """Move the targets."""
        networks.move_targets(self.settings.polyak)


def descend_critics(
    bench: Bench,
    window: Window[Tensor],
    values: Tensor,
    target: Tensor,
    *,
    known: Tensor,
    paid: Tensor,
    gamma: float,
    reward_scale: float,
) -> Tensor:
    """Take one step of the critics towards their targets, and check that their values stay possible.

    Args:
        bench: takes the step.
        window: raw.
        values: `(E, B, K)` of the critics.
        target: `(B, K)`.
        known: `(B, K)`, the steps that have a target.
        paid: `(B, K)`, sizes of what the targets add to the values that follow, such as scaled rewards.
        gamma: the critics' discount.
        reward_scale: that rewards were divided by.

    Returns:
        `()`, the mean of the values over real steps.
    """
    loss = losses.td3_critic_loss(values, target, known)
    bench.descend(CRITIC, loss, "the critic's loss")
    mean = values.detach().where(window.mask, 0.0).sum() / (len(values) * window.mask.sum())
    bench.check_values(mean, paid, gamma=gamma, reward_scale=reward_scale)
    bench.log(CRITIC_LOSS, loss.detach())
    return mean


def judgment(networks: Networks, batch: Batch, actions: Tensor) -> Tensor:
    """Return what the critics, held still, make of actions `(B, K, A)` at the steps of a batch, `(B, K)`."""
    values = networks.critic.held(batch.features, actions, dtype_of(networks.precision))
    return judged(values)  # (E, B, K) -> (B, K)


def judged(values: Tensor) -> Tensor:
    """Return what critics `(E, ...)` make of actions together: the lower of two, the mean of more (RLPD)."""
    return values.amin(dim=0) if len(values) == 2 else values.mean(dim=0)
