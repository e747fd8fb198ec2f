"""What a policy would achieve for each return that it is asked for, from logged data alone: fitted Q evaluation.

A critic learns by how much an episode that asked for a return misses it: D = achieved - asked. Asked for R at step t
and paid r, an episode is left with R - r, and misses as much as before. So D(s, a, R, t) is D(s', a', R - r, t + 1),
where a' is what the policy does there for R - r, and where an episode ends D = r - R. There is no discount. Steps of
the data are taken as if their episodes had been asked for returns drawn at random: that is one shift of a window's
returns, so one forward of the policy over the steps that follow serves a whole window. The policy sees as many steps,
and is guided as much, as when it acts.

What is assumed: time and observations are the state (the policy sees its context, the critic does not), the data hold
the actions that the policy takes, and episodes end where the data's longest do.

Shape legend: B windows, K steps, A action dimensions, E first states.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayrl_dt.data import windows
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.objectives.return_shift import as_if_asked
from rayrl_dt.seeding import numpy_generator, seeded_weights
from rayrl_dt.types import Window

__all__ = ["Evaluation", "check_estimable", "estimate", "fit_evaluation"]

Array = np.ndarray[Any, Any]

_WIDTH, _BATCH, _RATE, _POLYAK = 128, 64, 1e-3, 0.02
_FIRST_STATES = 256


@dataclass(frozen=True)
class Evaluation:
    """A fitted critic of one policy.

    Attributes:
        model: the policy.
        network: from a step and a return to D, in units of `span`.
        span: distance of the targets that it knows, raw.
        middle: of them.
        horizon: steps of the longest episode.
    """

    model: SequenceModel
    network: nn.Module
    span: float
    middle: float
    horizon: int

    def missed(self, window: Window[Tensor], actions: Tensor, returns: Tensor, network: nn.Module) -> Tensor:
        """Return D `(B, K)` in units of `span` for raw windows, actions `(B, K, A)` in [-1, 1], returns `(B, K, 1)`."""
        inputs = self.model.inputs(window)
        time = window.timesteps[..., None] / self.horizon
        asked = (returns - self.middle) / self.span
        read = torch.cat([inputs.observations.flatten(2), actions, asked, time], dim=-1)
        missed: Tensor = network(read)[..., 0]
        return missed

    @torch.no_grad()
    def acts(self, window: Window[Tensor], returns: Tensor) -> Tensor:
        """Return what the policy does at each step `(B, K, A)` for returns `(B, K, 1)`."""
        return self.model.spec.head.mode(self.model.guided_for(window, returns)).float()


def check_estimable(spec: PolicySpec, targets: Sequence[float]) -> None:
    """Check that the errors of a policy can be estimated.

    Args:
        spec: of the policy.
        targets: raw returns that will be asked for.

    Raises:
        UserError: its observations are images, its actions discrete, its target stays as it is, it has no output for
            every step, or there are no two targets to tell apart.
    """
    vectors = len(spec.seen_space.shape or ()) == 1
    decrements = spec.model.target_rule == "decrement"
    if not (vectors and spec.head.continuous and spec.backbone.every_step and decrements):
        raise UserError(
            f"the errors of a policy with backbone {spec.model.backbone}, head {spec.model.head} and target rule "
            f"{spec.model.target_rule} on {spec.seen_space} cannot be estimated; it must take continuous actions on "
            "windows of vectors, and be asked for what is left of its target"
        )
    if len(set(targets)) < 2:
        raise UserError(
            f"the errors of a policy that is asked for {targets[0]:g} alone cannot be estimated: the 5th and the 95th "
            f"percentile of the returns of {spec.dataset} coincide; judge a policy of data whose returns differ"
        )


def fit_evaluation(
    model: SequenceModel,
    store: TrajectoryStore,
    targets: Sequence[float],
    *,
    steps: int,
    seed: int = 0,
    progress: Callable[[], None] | None = None,
) -> Evaluation:
    """Fit the critic of a policy.

    Args:
        model: the policy, frozen.
        store: logged data of its task.
        targets: raw returns that will be asked for, two at least.
        steps: gradient steps.
        seed: of weights and batches.
        progress: called after each step.

    Raises:
        UserError: see `check_estimable`.
    """
    spec = model.spec
    check_estimable(spec, targets)
    low, high = min(targets), max(targets)
    size = spec.action_size + 2 + int(np.prod(spec.seen_space.shape or ()))
    with seeded_weights(seed, "return-evaluation"):
        layers = [nn.Linear(size, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, _WIDTH), nn.ReLU()]
        network = nn.Sequential(*layers, nn.Linear(_WIDTH, 1))
    slow = copy.deepcopy(network).requires_grad_(False)
    found = Evaluation(model.eval(), network, high - low, (high + low) / 2, int(store.lengths.max()))
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE, fused=True)
    parameters: list[Tensor] = list(network.parameters())
    slow_parameters: list[Tensor] = list(slow.parameters())
    for step in range(steps):
        rng = numpy_generator(seed, "return-evaluation", step)
        raw = windows.sample(store, rng, _BATCH, spec.acts_on, successors=True, episode_returns=True)
        # Beyond both ends, for what is left of a target wanders.
        asked = rng.uniform(low - 0.1 * (high - low), high + 0.1 * (high - low), (_BATCH, 1)).astype(
            np.float32
        )
        window = raw.to_torch()
        loss = _loss(found, slow, window, torch.from_numpy(asked))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(slow_parameters, parameters, _POLYAK)
        if progress is not None:
            progress()
    return found


def _loss(found: Evaluation, slow: nn.Module, window: Window[Tensor], asked: Tensor) -> Tensor:
    """Return the squared error of D, `()`, where the episodes of windows had asked for returns `(B, 1)`."""
    after = window.next
    assert after is not None and window.rewards is not None and window.terminated is not None
    assert window.episode_returns is not None
    returns, left = (
        as_if_asked(each, window.episode_returns, asked) for each in (window, after)
    )  # (B, K, 1)
    with torch.no_grad():
        following = found.missed(after, found.acts(after, left), left, slow)  # (B, K)
        ended = window.terminated | (window.timesteps == found.horizon - 1)
        at_end = (window.rewards - returns[..., 0]) / found.span
        wanted = torch.where(ended, at_end, following)
    logged = found.missed(window, found.model.to_model_actions(window.actions), returns, found.network)
    errors = (logged - wanted).square()
    return errors.where(window.mask, 0.0).sum() / window.mask.sum()


@torch.no_grad()
def estimate(found: Evaluation, store: TrajectoryStore, targets: Sequence[float]) -> list[float]:
    """Return the raw return that the policy is expected to achieve for each target, from the data's first states."""
    episodes = np.arange(min(store.num_episodes, _FIRST_STATES))
    window = windows.gather(store, episodes, np.zeros_like(episodes), 1).to_torch()  # (E, 1)
    achieved = []
    for target in targets:
        returns = torch.full_like(window.returns_to_go, target)
        missed = found.missed(window, found.acts(window, returns), returns, found.network)
        achieved.append(target + float(missed.mean()) * found.span)
    return achieved
