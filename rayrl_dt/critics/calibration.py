"""What a critic's values are where a return is left to come: Q is discounted and a return is not, data connect them.

Q says what the critic's own policy gets, discounted; a return-to-go is what an episode got, in full. The calibration is
the best function of the return-to-go, among those that never fall, for Q of the logged actions (isotonic regression by
pooling neighbors; Barlow et al. 1972). How much is left of an episode is not told apart.

Shape legend: N logged steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rayrl_dt.critics.networks import IQLCritic
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.seeding import numpy_generator

__all__ = ["Calibration", "fit_calibration", "isotonic"]

Array = np.ndarray[Any, Any]

_STEPS = 20_000
# Chance alone explains less than a thousandth.
_FLAT = 0.02


@dataclass(frozen=True)
class Calibration:
    """A function from raw returns-to-go to values that never falls.

    Attributes:
        returns: `(N,)` rising.
        values: `(N,)` of Q, not falling; straight lines between them, constant beyond them.
        explained: share of the variance of Q of the logged actions that it explains.
        logged: `(N,)` mean Q of the logged actions where each return was left, if it was fitted.
    """

    returns: Array
    values: Array
    explained: float
    logged: Array | None = None

    def __call__(self, returns_to_go: Array) -> Array:
        """Return the values of returns."""
        found: Array = np.interp(returns_to_go, self.returns, self.values)
        return found


def isotonic(values: Array, weights: Array) -> Array:
    """Return the series `(N,)` that never falls with the least squared distance to `values (N,)`, weighted."""
    from scipy.optimize import isotonic_regression  # a quarter of a second of every process's start otherwise

    fitted: Array = isotonic_regression(values, weights=weights).x
    return fitted


def fit_calibration(
    critic: IQLCritic, model: SequenceModel, store: TrajectoryStore, *, seed: int = 0
) -> Calibration:
    """Fit a calibration on logged steps.

    Args:
        critic: in the units of the policy.
        model: the policy; it says how observations and actions are scaled.
        store: the logged data.
        seed: of the steps that are looked at, where there are more than 20,000.

    Raises:
        UserError: it is flat: what Q says of the logged actions has nothing to do with what they led to.
    """
    rows = np.arange(store.num_steps)
    if len(rows) > _STEPS:
        rows = np.sort(numpy_generator(seed, "calibration").choice(rows, _STEPS, replace=False))
    episodes, offsets = store.locate(rows)
    steps = store.starts[episodes] + offsets
    device = next(critic.q.parameters()).device
    with torch.no_grad():
        observations = torch.from_numpy(np.array(store.observations[steps])).to(device)
        actions = torch.from_numpy(np.array(store.actions[steps])).to(device)
        twins = critic.q(model.to_model_observations(observations), model.to_model_actions(actions))
    found = twins.amin(dim=0).double().cpu().numpy()  # (2, N) -> (N,)
    returns, place, counts = np.unique(
        store.returns_to_go[steps].astype(np.float64), return_inverse=True, return_counts=True
    )
    logged = np.bincount(place, found) / counts
    fitted = isotonic(logged, counts.astype(np.float64))
    variance = float(found.var())
    explained = 1.0 - float(np.mean(np.square(found - fitted[place]))) / variance if variance > 0 else 0.0
    if explained < _FLAT:
        raise UserError(
            f"the critic's values say next to nothing of the returns in {store.info.source} (a rising function of them "
            f"explains {explained:.1%}), so no target can be checked with it: train it longer (rayrl-dt critic RUN "
            "--steps 100000; --gamma 0.999 where rewards come late), or check with mode=max"
        )
    return Calibration(returns, fitted, explained, logged)
