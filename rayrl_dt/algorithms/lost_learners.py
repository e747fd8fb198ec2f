"""What is said when the process of a remote learner dies: RLlib's own words hang on who misses it first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayActorError

from rayrl_dt.algorithms.rllib_internals import learners_lost
from rayrl_dt.errors import TrainingDiverged, UserError

__all__ = ["naming_lost_learners"]


@contextmanager
def naming_lost_learners(algorithm: Any) -> Iterator[None]:
    """Say in one line that a learner's process has died, whatever it is that misses it.

    The others stop, too: what they learned without it would be another run than the one that was asked for.

    Args:
        algorithm: a `SequenceAlgorithm`.

    Raises:
        UserError: in place of what was raised inside, if a learner is lost, or was before all was set up.
    """
    try:
        yield
    except (TrainingDiverged, UserError):
        raise
    except Exception as error:
        if getattr(algorithm, "learner_group", None) is None:  # it is just being set up
            if not isinstance(error, RayActorError):
                raise
            raise UserError(
                "a learner or an env runner died while it was being started; look into the memory and the logs of the "
                "nodes, then give the command again, with --resume if there is a checkpoint"
            ) from error
        lost = learners_lost(algorithm.learner_group)
        if lost == 0:
            raise
        raise UserError(
            f"{lost} of {algorithm.config.num_learners} learners died; look into the memory and the logs of their "
            "nodes, then continue from the last checkpoint with --resume"
        ) from error
