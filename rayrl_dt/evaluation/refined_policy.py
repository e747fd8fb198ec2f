"""One checkpoint with its critic and environments, to act with the critic in one way after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from rayrl_dt.evaluation.rollout import Rollouts, assign_slots, run_slots
from rayrl_dt.evaluation.targets import policy_targets
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.interop.critics import refiner_of
from rayrl_dt.models.spec import evaluated_in
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.collector import Collector
from rayrl_dt.policy.refinement import Refinement
from rayrl_dt.seeding import derive_seed

__all__ = ["RefinedPolicy"]

_SLOTS = 32


class RefinedPolicy:
    """The policy and the critic of a bundle, loaded once, in environments that are made once.

    Every call of `run` plays the same episodes (same seeds, same targets), so only the way differs.

    Args:
        path: run folder, checkpoint or bundle, with a critic; one that is `trusting()` may run code of any package as
            its environment.
        targets: as for `parse_targets`.
        episodes: per target.
        env: overrides the policy's environment.
        seed: of the episodes.

    Attributes:
        bundle: of the policy and the critic.
        asked: the returns that are asked for.
        env: the environment's id.

    Raises:
        UserError: there is no policy or critic, the targets cannot be read, or no environment is known.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Bundle,
        *,
        targets: str | float | Sequence[float],
        episodes: int,
        env: str | None = None,
        seed: int = 0,
    ) -> None:
        self.bundle = bundle = Bundle.open(path)
        spec, model, _ = bundle.spec, bundle.model, bundle.critic
        self.asked = policy_targets(spec, targets)
        where = evaluated_in(spec, env)
        self.env = where.id
        self._slots = assign_slots(
            self.asked.targets, episodes, max_slots=_SLOTS, seed=derive_seed(seed, "evaluation")
        )
        self._vector = where.make_vector(
            len(self._slots),
            spaces=(spec.observation_space, spec.action_space),
            flattening=spec.flattening,
        )
        self._actor = VectorActor(model, len(self._slots))
        self._collector = Collector(self._vector, self._actor, record=False)

    def run(self, settings: Refinement, *, progress: Callable[[int], None] | None = None) -> Rollouts:
        """Play the episodes with a way to act with the critic; with n = 0 the policy acts alone.

        Args:
            settings: of the way.
            progress: called with the number of episodes that just ended.
        """
        self._actor.refiner = refiner_of(self.bundle, settings)
        return run_slots(self._collector, self._slots, progress=progress)

    def close(self) -> None:
        """Close the environments."""
        self._vector.close()
