"""What remote learners raise, which RLlib may drop, and what is said when one dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from rayrl_dt.algorithms.rllib_internals import actors_of, learners_lost
from rayrl_dt.errors import TrainingDiverged, UserError

__all__ = ["ask_learners", "hearing_learners", "naming_lost_learners"]


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


def ask_learners(learner_group: Any, question: Callable[[Any], Any]) -> list[Any]:
    """Return what a function says of each learner.

    Raises:
        Exception: what it raises there.
    """
    return [_answer(result) for result in learner_group.foreach_learner(question)]


@contextmanager
def hearing_learners(learner_group: Any) -> Iterator[None]:
    """Raise what remote learners raise; RLlib's checkpoints would go on without those that did, and say nothing."""
    if not learner_group.is_remote:
        yield
        return
    manager = actors_of(learner_group)
    ask = manager.foreach_actor

    def heard(*args: Any, **kwargs: Any) -> Any:
        results = ask(*args, **kwargs)
        for result in results:
            if not result.ok and isinstance(result.get(), RayTaskError):
                manager.set_actor_state(result.actor_id, healthy=True)  # it lives, and is asked again
        for result in results:
            _answer(result)
        return results

    manager.foreach_actor = heard
    try:
        yield
    finally:
        del manager.foreach_actor


def _answer(result: Any) -> Any:
    """Return what a learner answers.

    Raises:
        Exception: as the learner raised it; without the traceback of its process where that says it all in one line.
    """
    value = result.get()
    if result.ok:
        return value
    cause = getattr(value, "cause", None)  # of Ray's wrapper
    if isinstance(cause, (TrainingDiverged, UserError)):
        raise cause from None
    if isinstance(cause, Exception):
        raise cause from value
    raise value
