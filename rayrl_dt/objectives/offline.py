"""What a policy is trained towards on logged data: their actions, and what a frozen critic thinks of them.

PG and AWAC are the two ways of Lin et al. 2025 (Action Gradient, section 5, equations 9 and 10) to use the critic in
training where Action Gradient uses it in acting. The critic is that of implicit Q-learning, learned before and from the
same data; it never learns from the policy.

Where the paper is silent: Q is the lower one of the twins, as for Action Gradient; of a Gaussian head the action is
tanh(mean); a deterministic head's log-density is minus its squared error, averaged over the action dimensions. The
sign of equation 10 is misprinted: the weighted log-density is maximized.

Shape legend: B batch, P predicted steps, A action dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rayrl_dt import losses
from rayrl_dt.critics.networks import TwinCritic
from rayrl_dt.errors import UserError
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.objectives.imitation import imitation_loss
from rayrl_dt.objectives.objective import BC_LOSS, Q_MEAN, Imitation, Objective, Terms, mean_of_steps
from rayrl_dt.objectives.q_align import QAligned
from rayrl_dt.settings import choice, real, refuse_unread, setting
from rayrl_dt.types import Window

__all__ = ["OBJECTIVES", "AdvantageWeighted", "PolicyGradient"]


@dataclass(frozen=True)
class PolicyGradient(Objective):
    """L_imitation - weight * E[Q(s, pi)] / E|Q(s, pi)| (equation 9).

    The denominator is detached: with it, the ratio is 1 wherever all Q are positive, and has no gradient.

    Adaptive (Kim et al. 2024, QCS), the weight is that of a window, max(pg_weight (best - return), floor), where the
    return is that of the window's whole episode, from 0 at the 5th percentile of the data's to 1 at the 95th: good
    episodes are cloned, poor ones follow Q. The denominator is then |E[Q(s, a)]| of the logged actions.

    Differs from QCS: its returns are D4RL's scores, and its weight is a hundredth of ours; the mean of Q is that of the
    batch, there of the data.

    Attributes:
        pg_weight: alpha, the critic's share; at 0 the policy is trained as without a critic. QT, which the papers take
            it from, uses 0.4 to 5; adaptive, QCS has 1 to 100.
        pg_weighting: "normalized", the same for all windows, or "adaptive", by the return of each window's episode.
        pg_best: adaptive, the return from which on nothing but the floor follows Q. QCS: 0.9 to 1.1.
        pg_floor: adaptive, the least weight. QCS: 10 on Walker2d medium-expert.
    """

    pg_weight: float = setting(1.0, real(least=0))
    pg_weighting: str = setting("normalized", choice("normalized", "adaptive"))
    pg_best: float = setting(1.0, real())
    pg_floor: float = setting(0.0, real(least=0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pg_weighting != "adaptive":
            refuse_unread(
                type(self),
                self,
                because=f"pg_weighting {self.pg_weighting}",
                remedy="set training.pg_weighting: adaptive",
                names=("pg_best", "pg_floor"),
            )

    @property
    def reads_episode_returns(self) -> bool:
        """Whether the weights follow from them."""
        return self.pg_weighting == "adaptive"

    def check_policy(self, spec: PolicySpec) -> None:
        """Check that there are returns to tell apart.

        Raises:
            UserError: all are the same.
        """
        if self.reads_episode_returns and spec.data_returns["p5"] == spec.data_returns["p95"]:
            raise UserError(
                f"training.pg_weighting adaptive tells good episodes from poor ones, and all returns of {spec.dataset} "
                f"are about {spec.data_returns['p50']:.6g}; set training.pg_weighting: normalized"
            )

    def weights(self, spec: PolicySpec, episode_returns: Tensor) -> Tensor:
        """Return the adaptive weights of raw episode returns, in their shape."""
        low, high = spec.data_returns["p5"], spec.data_returns["p95"]
        quality = (episode_returns - low) / (high - low)
        return (self.pg_weight * (self.pg_best - quality)).clamp(min=self.pg_floor)

    def __call__(
        self, model: SequenceModel, critic: TwinCritic | None, outputs: Tensor, window: Window[Tensor]
    ) -> Terms:
        """Add the critic's gradient through the policy's actions."""
        assert critic is not None
        read = window.last(outputs.shape[1])
        observations = model.inputs(read).observations  # (B, P, S)
        actions = model.spec.head.mode(outputs).float()  # (B, P, A)
        values = critic(observations, actions).amin(dim=0)  # (2, B, P) -> (B, P)
        fit = imitation_loss(model, outputs, window)
        loss = fit
        if self.reads_episode_returns:
            loss = fit + self._adaptive(model, critic, values, read)
        elif self.pg_weight > 0:
            loss = fit + self.pg_weight * losses.td3_actor_loss(values, read.mask, normalize=True)
        return Terms(loss, {BC_LOSS: fit.detach(), Q_MEAN: mean_of_steps(values, read.mask)})

    def _adaptive(
        self, model: SequenceModel, critic: TwinCritic, values: Tensor, read: Window[Tensor]
    ) -> Tensor | float:
        """Return minus the weighted mean of values `(B, P)`, in units of those of the logged actions."""
        assert read.episode_returns is not None
        weights = self.weights(model.spec, read.episode_returns)  # (B, P)
        if self.pg_weight == 0 and self.pg_floor == 0:
            return 0.0
        inputs = model.inputs(read)
        with torch.no_grad():
            logged = critic(inputs.observations, inputs.actions).amin(dim=0)  # (B, P)
        size = mean_of_steps(logged, read.mask).abs()
        loss = losses.td3_actor_loss(weights * values, read.mask, normalize=False)
        return loss / size.clamp(min=torch.finfo(size.dtype).tiny)


@dataclass(frozen=True)
class AdvantageWeighted(Objective):
    """-E[log pi(a) exp((Q(s, a) - Q(s, pi)) / temperature)], weights detached and bounded (equation 10).

    Attributes:
        awac_temperature: lambda, in units of Q, which are rewards divided by the critic's own scale; the larger, the
            nearer to plain imitation.
        awac_cap: largest weight of an action.
    """

    awac_temperature: float = setting(1.0, real(above=0))
    awac_cap: float = setting(100.0, real(above=0))

    def __call__(
        self, model: SequenceModel, critic: TwinCritic | None, outputs: Tensor, window: Window[Tensor]
    ) -> Terms:
        """Weigh each logged action by how much better it is than the policy's."""
        assert critic is not None
        read = window.last(outputs.shape[1])
        inputs = model.inputs(read)
        actions = model.spec.head.mode(outputs.detach()).float()  # (B, P, A)
        own = critic(inputs.observations, actions).amin(dim=0)  # (2, B, P) -> (B, P)
        logged = critic(inputs.observations, inputs.actions).amin(dim=0)
        weights = losses.advantage_weights(logged - own, temperature=self.awac_temperature, cap=self.awac_cap)
        loss = imitation_loss(model, outputs, window, weights)
        return Terms(loss, {BC_LOSS: loss.detach(), Q_MEAN: mean_of_steps(own, read.mask)})


OBJECTIVES: dict[str, type[Objective]] = {
    "imitation": Imitation,
    "pg": PolicyGradient,
    "awac": AdvantageWeighted,
    "q_align": QAligned,
}
"""By their names in `training.objective`; another one is a class and a row here."""
