"""Checking the target twice: the policy is asked for several returns, and a critic chooses (Pei et al. 2025, Doctor).

Around the return that is left to come lie others. The policy says what it would do for each, and the action is taken
whose Q is nearest to what Q is where that return is left ("align"), or the highest ("max"). The user's own target is
always among them, and of equally good ones it is taken. Nothing is drawn.

Differs from the paper: any policy and any critic that share units, not one network of both; the others lie evenly on
both sides of the target, by a share of the data's returns (the code: uniform up to four times the data's best), and
move the whole window, so its returns still tell of its rewards (the code: each constant); returns are undiscounted here
and Q is not, so a calibration that was fitted on data stands between them (`rayrl_dt.critics.calibration`).

Shape legend: M candidates, N rows (slots), S observation dimensions, A action dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rayrl_dt.critics.calibration import Calibration
from rayrl_dt.critics.networks import IQLCritic
from rayrl_dt.errors import UserError
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.action_gradient import check_continuous
from rayrl_dt.policy.candidates import CandidateCritic, best_of
from rayrl_dt.policy.refiner import Asked, Draw
from rayrl_dt.settings import Settings, choice, count, real, setting

__all__ = ["DoubleCheck", "DoubleCheckRefiner", "check_asked"]


@dataclass(frozen=True)
class DoubleCheck(Settings):
    """How targets are checked.

    Attributes:
        n: returns that the policy is asked for, the user's own among them; 1 leaves the policy as it is.
        spread: how far the others lie from it at most, as a share of the distance between the 5th and the 95th
            percentile of the data's returns.
        mode: "align" takes the action whose value is nearest to that of the return, "max" the highest.

    Raises:
        UserError: a value is out of range.
    """

    section: ClassVar[str] = "double_check"

    n: int = setting(32, count(1))
    spread: float = setting(0.25, real(least=0))
    mode: str = setting("align", choice("align", "max"))

    @property
    def idle(self) -> bool:
        """Whether it leaves every action as it is."""
        return self.n == 1 or self.spread == 0

    @property
    def calibrated(self) -> bool:
        """Whether it needs to know what Q is where a return is left."""
        return self.mode == "align" and not self.idle


class DoubleCheckRefiner:
    """Takes the action for the return that a critic chooses, for all slots at once.

    Args:
        settings: how.
        critic: in the units of the policy.
        spec: of the policy.
        calibration: of the critic; only asked in mode "align".

    Raises:
        UserError: the actions are discrete, or the policy is not asked for a return or does not know its data's.
    """

    def __init__(
        self, settings: DoubleCheck, critic: IQLCritic, spec: PolicySpec, calibration: Calibration | None
    ) -> None:
        check_asked(spec)
        assert calibration is not None or not settings.calibrated
        self.settings, self._calibration = settings, calibration
        self._judge = CandidateCritic(critic.q, spec)
        reach = settings.spread * (spec.data_returns["p95"] - spec.data_returns["p5"])
        half = settings.n // 2
        # Of an even number one more lies above the target than below. The target itself comes first, elsewhere.
        places = [place for place in range(-half, half + 1)[-settings.n :] if place != 0]
        self._shifts = torch.tensor([reach * place / half for place in places])

    def __call__(
        self,
        observations: np.ndarray[Any, Any],
        actions: Tensor,
        draw: Draw | None = None,
        asked: Asked | None = None,
    ) -> Tensor:
        """Return the chosen candidate for each row; see `Refiner`."""
        if self.settings.idle:
            return actions
        assert asked is not None
        with torch.no_grad():
            others = asked.actions_for(self._shifts[:, None].expand(-1, len(actions)))  # (M - 1, N, A)
            candidates, merit = self._judge(observations, actions, others)  # (M, N, A) and (M, N)
            if self.settings.mode == "align":
                assert self._calibration is not None
                wanted = self._calibration(asked.returns_to_go)  # (N,)
                merit = -(merit - torch.as_tensor(wanted, dtype=torch.float32, device=merit.device)).abs()
            return best_of(candidates, merit).to(actions.device)


def check_asked(spec: PolicySpec) -> None:
    """Raise UserError if a policy is not asked for a return or does not know its data's, or has discrete actions."""
    check_continuous(spec)
    predicts = spec.model.target_rule == "predicted"
    if predicts or not spec.backbone.reads_returns:
        why = "sets its own target" if predicts else "reads no returns"
        raise UserError(
            f"a double check asks the policy for several returns, and this one (backbone {spec.model.backbone}) {why}; "
            "leave it out, or choose sampled actions"
        )
    if not {"p5", "p95"} <= spec.data_returns.keys():
        raise UserError(
            "a double check asks for returns around the target, by a share of the data's, and the policy does not know "
            f"those of {spec.dataset}; import it with its data (rayrl-dt import --dataset), or choose sampled actions"
        )
