"""Returns that order actions: asked for more, a policy does what a critic values more (Yang and Zhang 2026, Q-Align).

Beside the supervised loss, each window is asked for a second time with all its returns shifted by one number, up or
down, and wherever that moves the critic's values the wrong way, the second action is pushed back. The first one is the
anchor, and has no gradient. Followed is the authors' released code (Q-Align-DT, Apache-2.0), by our own.

Traps, and what is done about them:

- A policy that does not look at its return has no wrong order, so no loss and no gradient either. All that is asked
  for is an order; one that hardly rises is left as it is, unless `align_margin` asks for more. Hence the log has the
  slope beside the agreement.
- Two forwards with dropout masks of their own would differ without any shift: both draw the same masks.
- The shifted window is moved as a whole, so its returns still tell of its rewards. Its first *real* step is kept within
  the range of returns, padding stays what it is, and a pair that the range has brought together does not count.
- The critic's target acts on the highest return of the range, so Q says "this action, and then the best", and not what
  following the return leads to: it orders, and does not calibrate.

Differs from the released code: shift and range follow from the data unless they are given (there they are written down
for each data set), and so do the weight's units; the critic is that of TD3 here (two hidden layers, ReLU; there three,
Mish), and is not trained before, so the order counts from the middle of the training on; slow copies move at each step;
a window outside of the range is not drawn into it. Not here: its other penalties, and its backbone.

Shape legend: B batch, K steps, M courses of returns, A action dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from rayrl_dt import losses
from rayrl_dt.critics.companions import Companions
from rayrl_dt.critics.networks import TwinCritic
from rayrl_dt.errors import UserError
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.objectives.critic_gradient import descend_critics
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
from rayrl_dt.objectives.objective import Q_MEAN, Imitation, mean_of_steps
from rayrl_dt.objectives.return_order import ALIGN_LOGS, Order, check_asked_for_returns, rise_of
from rayrl_dt.objectives.return_shift import ReturnShift
from rayrl_dt.policy.acting.every_step import outputs_at_every_step
from rayrl_dt.precision import dtype_of
from rayrl_dt.settings import Settings, automatic, choice, count, flag, real, setting, whole_value

__all__ = ["CoTrainedQAlign", "QAlign", "QAligned"]


@dataclass(frozen=True)
class AlignCritic(Settings):
    """How the critic learns that is trained beside the policy; one that is given stays as it is.

    Attributes:
        align_target_shift: what is added to the returns that the critic's target acts on, in raw returns; "auto" for
            the top of the range. At 0 the critic follows the returns of the data.
        align_gamma: the critic's discount.
        align_polyak: share of the new weights in the slow copies at each step.
        align_critic_lr: learning rate of the critic (AdamW without decay).
        align_critic_width: units of its two hidden layers.
    """

    section: ClassVar[str] = "training"

    align_target_shift: float | str = setting("auto", automatic(real(least=0)))
    align_gamma: float = setting(0.99, real(above=0, most=1))
    align_polyak: float = setting(0.005, real(above=0, most=1))
    align_critic_lr: float = setting(3e-4, real(above=0))
    align_critic_width: int = setting(256, count(1), fixed=whole_value)


@dataclass(frozen=True)
class QAligned(AlignCritic, Imitation):
    """The supervised loss, and beside it a gradient that orders the actions by their returns.

    Attributes:
        align_weight: lambda; at 0 the policy is trained as by imitation. The authors' example (HalfCheetah) has 5, and
            does not normalize.
        align_normalize: divide lambda by the mean of |Q|, detached, as PG does; otherwise it is per unit of Q, which
            are rewards divided by the critic's own scale.
        align_start: share of the gradient steps before the order counts: a critic that knows nothing yet, and a policy
            that does not look at its return yet, teach each other to leave it at that. The authors' critic is trained
            before, and counts at once.
        align_shift: standard deviation of the shifts at first, in raw returns; "auto" for the distance between the 5th
            and the 95th percentile of the data's. The authors: 3000 (Hopper, Walker2d), 6000 (HalfCheetah).
        align_shift_end: what it falls to, along half a cosine; "auto" for a third of it. The authors: 1000.
        align_low: lowest return that is asked for by a shift; "auto" for the data's lowest, or 0 if that is lower. The
            authors: -1000.
        align_high: highest one; "auto" for the data's highest, or 0 if that is higher. The authors: 4000 (Hopper),
            20000 (Walker2d), 25000 (HalfCheetah).
        align_twins: penalize where both critics see a wrong order ("min"), or the mean of what each sees ("mean").
        align_margin: how much Q must rise for a rise of the return by the return scale; 0 asks for the order alone.
        align_margin_unit: what a margin of 1 is: a unit of "q", or "calibrated": as much as Q of the logged actions
            rises with the returns that they led to, on a line through each batch. That tells states apart more than
            actions, and one action cannot make up for a state: a margin is a small share of it.
    """

    asks_critic: ClassVar[bool] = True
    trained_critic: ClassVar[type[Settings] | None] = AlignCritic

    align_weight: float = setting(1.0, real(least=0))
    align_normalize: bool = setting(True, flag())
    align_start: float = setting(0.5, real(least=0, below=1))
    align_shift: float | str = setting("auto", automatic(real(above=0)))
    align_shift_end: float | str = setting("auto", automatic(real(above=0)))
    align_low: float | str = setting("auto", automatic(real()))
    align_high: float | str = setting("auto", automatic(real()))
    align_twins: str = setting("min", choice("min", "mean"))
    align_margin: float = setting(0.0, real(least=0))
    align_margin_unit: str = setting("q", choice("q", "calibrated"))

    def gradient(self, critic_hidden: int | None) -> QAlign:
        """Return the gradient with the critic that is given, or with one that it trains."""
        return CoTrainedQAlign(self) if critic_hidden is None else QAlign(self, critic_hidden)

    def shift(self, spec: PolicySpec) -> ReturnShift:
        """Return the shift as it is set, and for the rest what the returns of a policy's data say."""
        return ReturnShift.of_data(
            spec.data_returns,
            start=self.align_shift,
            end=self.align_shift_end,
            low=self.align_low,
            high=self.align_high,
            target=self.align_target_shift,
        )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.align_margin_unit != "q" and self.align_margin == 0:
            raise UserError(
                f"training.align_margin_unit is {self.align_margin_unit}, and nothing reads it with align_margin 0; "
                "set training.align_margin, for instance 0.1, or remove it"
            )

    def check_policy(self, spec: PolicySpec) -> None:
        """Check that neither shift nor range is empty.

        Raises:
            UserError: all returns of the data are the same, or the range is empty.
        """
        self.shift(spec).check(spec, "training.align", "objective: imitation")


class QAlign(RLGradient):
    """The gradient that orders actions, in the light of a frozen critic.

    Args:
        align: its settings.
        critic_hidden: width of the critic.
    """

    logs: ClassVar[tuple[str, ...]] = (Q_MEAN, *ALIGN_LOGS)

    def __init__(self, align: QAligned, critic_hidden: int) -> None:
        super().__init__(GradientSettings())
        self.align, self.critic_hidden = align, critic_hidden

    @property
    def companions(self) -> Companions:
        """The critic that is given."""
        return Companions(critic="iql", shape={"hidden": self.critic_hidden}, critic_trains=False)

    def check_model(self, model: ModelConfig) -> None:
        """Refuse policies that are not asked for returns.

        Raises:
            UserError: the backbone reads none, or acts on returns of its own.
        """
        check_asked_for_returns(model, "training.objective q_align orders actions by", "objective: imitation")

    def asked_returns(self, networks: Networks, batch: Batch, *, online: bool) -> Tensor | None:
        """Return the shifted returns `(1, B, K, 1)`, once they count."""
        if self.align.align_weight == 0 or batch.progress < self.align.align_start:
            return None
        return self.align.shift(networks.model.spec).ask(batch)

    def policy_loss(
        self, fit: Tensor, outputs: Tensor, networks: Networks, batch: Batch, *, online: bool
    ) -> Tensor:
        """Add the loss of wrong orders."""
        if batch.asked is None:
            return fit
        judge, spec = networks.judge, networks.model.spec
        assert judge is not None
        observations = batch.inputs.observations
        order = Order.of(batch, outputs, spec, lambda actions: judge(observations, actions))
        margin = self.align.align_margin * self._unit(judge, networks, batch) * order.shift.abs()
        loss = order.loss(twins=self.align.align_twins, margin=margin)
        batch.logged |= {Q_MEAN: mean_of_steps(order.anchor.amin(dim=0), order.mask), **order.logged(loss)}
        weight: float | Tensor = self.align.align_weight
        return fit + (weight / order.size if self.align.align_normalize else weight) * loss

    def _unit(self, judge: TwinCritic, networks: Networks, batch: Batch) -> Tensor | float:
        """Return what a margin of 1 is, in units of Q by the return scale."""
        if self.align.align_margin_unit == "q" or self.align.align_margin == 0:
            return 1.0
        inputs, window = batch.inputs, batch.window
        with torch.no_grad():
            values = judge(inputs.observations, inputs.actions, dtype_of(networks.precision)).amin(dim=0)
        returns = window.returns_to_go[..., 0] / networks.model.spec.return_scale
        return rise_of(values, returns, window.mask & returns.isfinite())


class CoTrainedQAlign(QAlign):
    """The same, with twin critics that learn beside the policy, from what its slow copy does next.

    The next action is that of the next step of the same window, so one forward of the slow policy serves a batch. The
    last step of a window has none: it teaches where it ends the episode, and is left out elsewhere.

    Args:
        align: its settings.
    """

    successors = True
    logs = (CRITIC_LOSS, *QAlign.logs)

    def __init__(self, align: QAligned) -> None:
        super().__init__(align, align.align_critic_width)

    @property
    def companions(self) -> Companions:
        """Twin critics, and slow copies of them and of the policy."""
        return Companions(critic="twin", shape={"hidden": self.critic_hidden}, slow=("model", "critic"))

    def check_model(self, model: ModelConfig) -> None:
        """Refuse windows of one step, too; see `QAlign`."""
        super().check_model(model)
        if model.context_length < 2:
            raise UserError(
                "training.objective q_align trains its critic on steps that follow each other in a window, and "
                "model_config.context_length is 1; set it to 2 or more, or give a critic with training.critic_from"
            )

    def trained(self, networks: Networks) -> Iterable[Trained]:
        """Return the critics."""
        yield Trained(CRITIC, networks.critic.parameters(), self.align.align_critic_lr, 0.0)

    def critic_step(self, bench: Bench, batch: Batch) -> None:
        """Move the critics towards r + gamma min Q'(s', a') where the slow policy, asked for the most, does a' next."""
        networks, window, inputs = bench.networks, batch.window, batch.inputs
        assert window.rewards is not None and window.terminated is not None
        spec, gamma, dtype = networks.model.spec, self.align.align_gamma, dtype_of(networks.precision)
        law, scale = self.align.shift(spec), spec.reward_scale or 1.0
        with torch.no_grad():
            asked = law.at_the_top(window)
            outputs = outputs_at_every_step(networks.target_model, asked, networks.precision)
            actions = spec.head.mode(outputs).float()  # (B, K, A)
            following = networks.target_critic(
                inputs.observations[:, 1:], actions[:, 1:], dtype
            )  # (2, B, K - 1)
            following = functional.pad(following, (0, 1))  # (2, B, K); the last one is not read
            rewards = window.rewards / scale  # (B, K)
            target = losses.td3_target(rewards, window.terminated, following, gamma=gamma)  # (B, K)
        known = window.mask.clone()
        known[:, -1] &= window.terminated[:, -1]
        values = networks.critic(inputs.observations, inputs.actions, dtype)  # (2, B, K)
        paid = rewards.abs()
        descend_critics(
            bench, window, values, target, known=known, paid=paid, gamma=gamma, reward_scale=scale
        )

    def policy_moved(self, networks: Networks) -> None:
        """Move the slow copies."""
        networks.move_targets(self.align.align_polyak)
