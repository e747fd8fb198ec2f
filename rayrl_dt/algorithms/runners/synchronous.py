"""Runs slots on env runners, in this process or remote, and waits until every part is there."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from rayrl_dt.algorithms.rllib_internals import actors_of
from rayrl_dt.algorithms.runners.failure import RunnerFailure
from rayrl_dt.algorithms.runners.timeouts import SilenceTimer
from rayrl_dt.errors import EnvironmentFailed, UserError
from rayrl_dt.evaluation.rollout import Rollouts, RolloutsStopped, Slot

__all__ = ["Collect", "Evaluate", "RunnerCall", "run_on_runners"]

_MAX_ATTEMPTS = 3
_POLL_INTERVAL_S = 0.5


class RunnerCall(Protocol):
    """What a runner is to do with its slots; sent to remote runners, hence plain data."""

    def __call__(self, runner: Any, slots: list[Slot]) -> Rollouts:
        """Run the slots."""


@dataclass(frozen=True)
class Evaluate:
    """Runs the slots without exploration."""

    sample_actions: bool

    def __call__(self, runner: Any, slots: list[Slot]) -> Rollouts:
        """Run the slots."""
        rollouts: Rollouts = runner.evaluate(slots, sample_actions=self.sample_actions)
        return rollouts


@dataclass(frozen=True)
class Collect:
    """Runs the slots with exploration and records their steps.

    Attributes:
        weights: of the policy, in the object store once for all runners; None for those that the runner has. They come
            with the call, so that a runner that was restarted a moment ago cannot act on old ones.
        stop: asked before each step whether to end; None on remote runners, whose results are not waited for then.
    """

    weights: ray.ObjectRef[dict[str, Any]] | None = None
    stop: Callable[[], bool] | None = None

    def __call__(self, runner: Any, slots: list[Slot]) -> Rollouts:
        """Run the slots."""
        if self.weights is not None:
            runner.load_policy(ray.get(self.weights))
        rollouts: Rollouts = runner.collect(slots, self.stop)
        return rollouts


@dataclass(frozen=True)
class _Part:
    """The call that a remote runner gets; it names its part, since lost runners return nothing."""

    part: int
    slots: list[Slot]
    call: RunnerCall

    def __call__(self, runner: Any) -> tuple[int, Rollouts | RunnerFailure]:
        # Raised, it would look like a lost runner.
        try:
            return self.part, self.call(runner, self.slots)
        except Exception as error:
            return self.part, RunnerFailure.of(error)


def run_on_runners(
    algorithm: Any,
    runners: Any,
    slots: list[Slot],
    call: RunnerCall,
    *,
    stop: Callable[[], bool] | None = None,
) -> Rollouts:
    """Run the slots on the local runner, or in parts on the remote ones; a lost runner's part runs again.

    There are as many parts as runners are configured, whoever of them is there: a lost runner changes nothing but the
    time that it takes. One that takes more than `env_runners.episode_timeout_s` for an episode is restarted.

    Args:
        algorithm: restores lost runners.
        runners: an `EnvRunnerGroup` whose weights are synchronized.
        slots: targets, quotas and seeds; a part depends on nothing else, so running it again loses nothing.
        call: what to do with them.
        stop: asked while remote runners are waited for; True ends it.

    Returns:
        The episodes in the order of the slots, however many runners there were.

    Raises:
        UserError: a part was lost for good with its runners, or an environment raised.
        RolloutsStopped: `stop` asked for it.
    """
    if runners.num_remote_env_runners() == 0:
        try:
            return call(runners.local_env_runner, slots)
        except EnvironmentFailed as error:
            failure = RunnerFailure.of(error)
        except (UserError, RolloutsStopped):
            raise
        except Exception as error:
            failure = RunnerFailure.of(error)
        raise failure.error()  # whose cause is text: Ray copies causes, which this exception may not survive
    count, config = runners.num_remote_env_runners(), algorithm.config
    waiting = {part: slots[part::count] for part in range(count) if slots[part::count]}
    done: dict[int, Rollouts] = {}
    for _ in range(_MAX_ATTEMPTS):
        parts = [_Part(part, part_slots, call) for part, part_slots in waiting.items()]
        for part, result in _gather(runners, parts, config.episode_timeout_s, stop):
            if isinstance(result, RunnerFailure):
                raise result.error()
            done[part] = result
            del waiting[part]
        if not waiting:
            break
        _restore(algorithm, runners, config.restart_timeout_s, stop)
        runners.sync_weights(from_worker_or_learner_group=algorithm.learner_group, inference_only=True)
    if waiting:
        raise UserError(
            f"{len(waiting)} of {count} parts of the rollouts were lost with their runners, {_MAX_ATTEMPTS} times: "
            f"these died, or took more than {config.episode_timeout_s:g} s for an episode "
            "(env_runners.episode_timeout_s); check the runners' memory and logs, then resume from the last checkpoint"
        )
    return _joined(slots, done, count)


def _joined(slots: list[Slot], parts: dict[int, Rollouts], count: int) -> Rollouts:
    """Return the rollouts of `count` parts, of which each has every `count`-th slot, in the order of the slots."""
    left = {part: iter(result.episodes) for part, result in parts.items()}
    return Rollouts(
        episodes=tuple(
            record
            for number, slot in enumerate(slots)
            for record in islice(left[number % count], slot.episodes)
        ),
        env_steps=sum(result.env_steps for result in parts.values()),
        seconds=max(result.seconds for result in parts.values()),
    )


def _restore(algorithm: Any, runners: Any, timeout_s: float, stop: Callable[[], bool] | None) -> None:
    """Take restarted runners back into service, and wait for one if there is no other."""
    deadline = time.monotonic() + timeout_s
    algorithm.restore_env_runners(runners)
    while not runners.healthy_worker_ids() and time.monotonic() < deadline:
        if stop is not None and stop():
            raise RolloutsStopped
        time.sleep(_POLL_INTERVAL_S)
        algorithm.restore_env_runners(runners)


def _gather(
    runners: Any, parts: Sequence[_Part], episode_timeout_s: float, stop: Callable[[], bool] | None
) -> list[tuple[int, Rollouts | RunnerFailure]]:
    """Return what the runners answer, each of which gets a part as soon as it is free.

    One that dies or hangs answers nothing, and is taken out of service.

    Args:
        runners: an `EnvRunnerGroup`.
        parts: to be run.
        episode_timeout_s: seconds for each episode of a slot; the slots of a part run side by side.
        stop: see `run_on_runners`.
    """
    # The group's own calls wait for all of them, however long that takes.
    manager = actors_of(runners)
    free, waiting = deque(runners.healthy_worker_ids()), deque(parts)
    pending: dict[Any, int] = {}
    episodes = max((slot.episodes for part in parts for slot in part.slots), default=0)
    timer = SilenceTimer(episode_timeout_s * episodes)
    answers: list[tuple[int, Rollouts | RunnerFailure]] = []
    while pending or (free and waiting):
        while free and waiting:
            runner = free.popleft()
            pending[manager.actors()[runner].apply.remote(waiting.popleft())] = runner
        if stop is not None and stop():
            raise RolloutsStopped
        ready, _ = ray.wait(list(pending), timeout=_POLL_INTERVAL_S)
        for reference in ready:
            runner = pending.pop(reference)
            try:
                answers.append(ray.get(reference))
                free.append(runner)
            except RayTaskError:
                raise
            except RayError:  # killed for its memory, or lost with its node or on the way
                manager.set_actor_state(runner, healthy=False)
        for runner in timer.expired(pending.values(), free):
            # Its call fails then, as a dead runner's does.
            ray.kill(manager.actors()[runner], no_restart=False)
    return answers
