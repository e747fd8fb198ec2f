"""An algorithm's gradient steps, in this process or on remote learners, and what they say of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import LEARNER_RESULTS, LEARNER_UPDATE_TIMER, TIMERS

from rayrl_dt.algorithms.learner import GRADIENT_STEPS, SequenceLearner
from rayrl_dt.algorithms.offline_data import BatchSource
from rayrl_dt.algorithms.remote_learners import ask_learners, hearing_learners
from rayrl_dt.algorithms.rllib_internals import take_gradient_steps

__all__ = ["Updates"]

_SECONDS_OF_A_CALL = 1.0


class Updates:
    """Has the learners of an algorithm take gradient steps.

    A remote learner answers when a call is over and not before. So it gets calls of about a second, between which
    somebody may want to stop. What is logged is the mean over all steps of an iteration, whatever its calls were.

    Args:
        algorithm: a `SequenceAlgorithm`, with its learners.
    """

    def __init__(self, algorithm: Any) -> None:
        self._algorithm = algorithm
        self._group = algorithm.learner_group
        self._told: int | None = None
        self._piece = 1

    def take(self, sources: Sequence[BatchSource], steps: int) -> None:
        """Take gradient steps on what the sources give, one per learner, and count them and their seconds.

        Raises:
            TrainingDiverged: a loss, a gradient or the critic's values did; all learners have stopped.
        """
        algorithm, begin = self._algorithm, time.perf_counter()
        if self._told != algorithm.expected_gradient_steps:
            self._told = algorithm.expected_gradient_steps
            ask_learners(self._group, partial(_expect, steps=self._told))
        with algorithm.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)), hearing_learners(self._group):
            for piece in self._pieces(steps):
                results = take_gradient_steps(self._group, sources, piece)
                algorithm.metrics.aggregate(results, key=LEARNER_RESULTS)
        algorithm.last_update_seconds += time.perf_counter() - begin
        # The learner's own count: somebody may have stopped it early.
        counted = algorithm.metrics.peek((LEARNER_RESULTS, DEFAULT_MODULE_ID, GRADIENT_STEPS))
        algorithm.gradient_steps = int(counted)

    def _pieces(self, steps: int) -> Iterator[int]:
        """Yield how many steps each call takes, until all are taken or somebody wants to stop."""
        if not self._group.is_remote:  # the learner looks up after each step itself
            yield steps
            return
        while steps > 0:
            begin, piece = time.perf_counter(), min(steps, self._piece)
            yield piece
            steps -= piece
            self._piece = max(1, int(piece * _SECONDS_OF_A_CALL / (time.perf_counter() - begin)))
            if self._algorithm.stop_asked():
                return

    def log_means(self) -> None:
        """Log what the steps since the last time have logged, as the mean over them and over the learners."""
        found = ask_learners(self._group, SequenceLearner.take_means)
        for key in {key: None for means in found for key in means}:
            known = [means[key] for means in found if not math.isnan(means.get(key, math.nan))]
            mean = statistics.fmean(known) if known else math.nan
            self._algorithm.metrics.log_value((LEARNER_RESULTS, DEFAULT_MODULE_ID, key), mean, window=1)


def _expect(learner: Any, *, steps: int) -> None:
    """Tell a learner how long the run is."""
    learner.expected_steps = steps
