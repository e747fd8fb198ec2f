"""One checkpoint with its environments, to act in one way after the other: with its critic, or with guidance."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from rayrl_dt.evaluation.rollout import Rollouts, action_draws, assign_slots, run_slots
from rayrl_dt.evaluation.targets import policy_targets
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.interop.critics import refiner_of
from rayrl_dt.models.spec import evaluated_in
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.collector import Collector
from rayrl_dt.policy.guidance import Guidance
from rayrl_dt.policy.refinement import WayToAct
from rayrl_dt.seeding import derive_seed

__all__ = ["RefinedPolicy"]

_SLOTS = 32


class RefinedPolicy:
    """The policy of a bundle, and its critic where one is asked, loaded once, in environments that are made once.

    Every call of `run` plays the same episodes (same seeds, same targets, same draws), so only the way differs.

    Args:
        path: run folder, checkpoint or bundle; one that is `trusting()` may run code of any package as
            its environment.
        targets: as for `parse_targets`.
        episodes: per target.
        env: overrides the policy's environment.
        seed: of the episodes.
        asks_critic: whether one of the ways needs the bundle's critic.

    Attributes:
        bundle: of the policy and its critic.
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
        asks_critic: bool = True,
    ) -> None:
        self.bundle = bundle = Bundle.open(path)
        if asks_critic:
            bundle.critic  # noqa: B018 (without one it fails at once)
        spec, model = bundle.spec, bundle.model
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

    def run(
        self, settings: WayToAct | None = None, *, progress: Callable[[int], None] | None = None
    ) -> Rollouts:
        """Play the episodes in a way to act; see `take`.

        Args:
            settings: of the way.
            progress: called with the number of episodes that just ended.
        """
        self.take(settings)
        self._actor.sample = action_draws(self.bundle.spec, self._slots)
        return run_slots(self._collector, self._slots, progress=progress)

    def take(self, settings: WayToAct | None) -> None:
        """Take a way to act.

        Args:
            settings: of the way; None for the policy alone, as it was evaluated in training.

        Raises:
            UserError: there is no critic to ask, or the policy cannot act so.
        """
        guidance, refiner = None, None
        if isinstance(settings, Guidance):
            guidance = settings.weight
        elif settings is not None:
            refiner = refiner_of(self.bundle, settings)
        acting = self.bundle.spec.acting(context_length=None, action_selection=None, guidance=guidance)
        self._actor.guide(acting.guidance)
        self._actor.refiner = refiner

    def close(self) -> None:
        """Close the environments."""
        self._vector.close()
