"""Collection that never stops: each remote runner has its next call before it has answered the last.

A runner's environments go on from call to call, so nobody waits for a long episode. A call returns with the step in
which an episode ends, or after some steps, so that a lost runner loses its unfinished episodes only. The more runners
there are, the longer their calls are at least: one process answers them all. Weights travel once through the object
store, whoever asks for them, and only when they have moved far enough.

What a result brings is counted against what its stream says it has brought. So where one is lost and its runner lives
(its node's object store was lost, say), the stream ends and the runner begins another.

A runner that is silent for long, hung or slow, holds nobody else up: its weights no longer count as those that the
learner must not leave behind, and what it brings too late, with weights older than that, is lost as if on its way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from rayrl_dt.algorithms.rllib_internals import actors_of
from rayrl_dt.algorithms.runners.failure import RunnerFailure
from rayrl_dt.algorithms.runners.timeouts import SilenceTimer
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.rollout import EpisodeRecord

__all__ = ["AsyncRunners", "ContinueStream", "Patience", "StreamResult", "StreamTotals"]

_LOG = logging.getLogger(__name__)
_CALLS_PER_RUNNER = 2
# A slow environment's call ends after so long, so that it gets newer weights.
_CALL_S = 1.0
# A call takes 1.3 ms of the driver, so it is busy with calls for half of the time at most, up to 400 runners.
_LEAST_CALL_S_PER_RUNNER = 0.0025
_PROBE_INTERVAL_S = 2.0
_PROBE_TIMEOUT_S = 0.2
# How often in a row a runner may be restarted for its silence.
_MAX_RESTARTS_IN_A_ROW = 3
_NOBODY = -1


@dataclass(frozen=True)
class Patience:
    """How long runners are waited for.

    Attributes:
        lag_s: seconds of silence after which a runner holds the learner up no longer.
        call_s: after which it is restarted.
        restart_s: that no runner may be there at all.
    """

    lag_s: float = 10.0
    call_s: float = 600.0
    restart_s: float = 120.0


@dataclass(frozen=True)
class StreamResult:
    """What one call brought.

    Attributes:
        stream: number of the call that began the runner's stream; another one after the runner's process was replaced.
        episodes: that ended, with their steps.
        env_steps: taken, those of unfinished episodes included.
        weights: gradient step of the weights that acted.
        episodes_before: episodes that the stream had brought before this call.
    """

    stream: int
    episodes: tuple[EpisodeRecord, ...]
    env_steps: int
    weights: int
    episodes_before: int


@dataclass(frozen=True)
class ContinueStream:
    """The call: go on collecting.

    Attributes:
        number: of the call; a new stream is seeded with it.
        policy: weights of the policy in the object store.
        weights: gradient step that they are of.
        steps: vector steps to take at most, where `least_seconds` have passed then.
        seconds: to take at most, but for the last step.
        least_seconds: to take at least, also where an episode ends before.
        oldest_stream: a stream that an earlier call began ends, and this call begins another.
    """

    number: int
    policy: ray.ObjectRef[dict[str, Any]]
    weights: int
    steps: int
    seconds: float
    least_seconds: float
    oldest_stream: int

    def __call__(self, runner: Any) -> StreamResult | RunnerFailure:
        """Run on the runner; what its environment raises comes back as a value, since Ray would lose the runner."""
        try:
            result: StreamResult = runner.continue_stream(self)
            return result
        except Exception as error:
            return RunnerFailure.of(error)


@dataclass(frozen=True)
class StreamTotals:
    """What a runner's stream has brought, from the start of its process to its end.

    Attributes:
        runner: its index.
        episodes: that ended.
        steps: of them.
    """

    runner: int
    episodes: int = 0
    steps: int = 0


@dataclass(frozen=True)
class _PendingCall:
    """A call that a runner has not answered yet, and the gradient step of the weights that it acts with."""

    runner: int
    weights: int


class AsyncRunners:
    """Keeps every healthy remote runner of a group busy.

    Args:
        group: RLlib's `EnvRunnerGroup`.
        steps: vector steps of a call at most, but for calls that many runners make longer.
        calls: calls made in this run so far; numbers go on from there, and streams that those calls began end.
        patience: how long runners are waited for.

    Attributes:
        calls: calls made.
        streams: what each stream has brought, by the number of the call that began it.
    """

    def __init__(self, group: Any, *, steps: int, calls: int, patience: Patience) -> None:
        self._manager = actors_of(group)
        self._group = group
        self._steps = steps
        self._pending: dict[Any, _PendingCall] = {}  # in the order of their calls
        self._first_call = calls
        self._oldest_streams: dict[int, int] = {}  # by runner, of those that lost a stream
        self._probed = time.monotonic()
        self._patience = patience
        self._timer = SilenceTimer(patience.call_s)
        self._nobody = SilenceTimer(patience.restart_s)
        self._late: set[int] = set()  # runners that brought something too late
        self._timeouts: dict[int, int] = {}  # times in a row, by runner
        self.calls = calls
        self.streams: dict[int, StreamTotals] = {}

    @property
    def oldest_weights(self) -> int | None:
        """Gradient step of the oldest weights that a call under way acts with, those of silent runners aside."""
        heard = (
            call.weights
            for call in self._pending.values()
            if self._timer.silent(call.runner) <= self._patience.lag_s
        )
        return min(heard, default=None)

    @property
    def restarts(self) -> int:
        """Streams that began anew: of runners that died and came back, or of which something was lost on its way."""
        return len(self.streams) - len({totals.runner for totals in self.streams.values()})

    def send(self, policy: Callable[[], tuple[Any, int]]) -> None:
        """Top up the calls of every healthy runner.

        Args:
            policy: returns a reference to the policy's weights, and the gradient step that they are of; asked once if
                there is anything to send.
        """
        busy: dict[int, int] = {}
        for under_way in self._pending.values():
            busy[under_way.runner] = busy.get(under_way.runner, 0) + 1
        runners = {
            runner: _CALLS_PER_RUNNER - busy.get(runner, 0) for runner in self._manager.healthy_actor_ids()
        }
        if not any(room > 0 for room in runners.values()):
            return
        policy_reference, weights = policy()
        least = min(_CALL_S, _LEAST_CALL_S_PER_RUNNER * len(runners))
        for _ in range(_CALLS_PER_RUNNER):
            for runner, room in runners.items():
                if room > 0:
                    oldest = self._oldest_streams.get(runner, self._first_call)
                    call = ContinueStream(
                        self.calls, policy_reference, weights, self._steps, _CALL_S, least, oldest
                    )
                    reference = self._manager.actors()[runner].apply.remote(call)
                    self._pending[reference] = _PendingCall(runner, weights)
                    self.calls += 1
                    runners[runner] -= 1

    def receive(self, *, timeout: float, oldest: int) -> list[StreamResult]:
        """Return what has arrived; wait for something if nothing has.

        Runners that were lost are looked for. One that has been silent for too long is restarted, as if it had died.

        Args:
            timeout: seconds to wait at most; 0 where there is other work, and runners may be away for any time.
            oldest: gradient step of the oldest weights that may have acted; what older ones did is lost.

        Raises:
            UserError: an environment raised, no runner has come back for long, or one hangs again and again.
        """
        self._restore()
        if not self._pending:
            time.sleep(min(timeout, 0.01))
        found, _ = ray.wait(list(self._pending), timeout=timeout) if self._pending else ([], [])
        if found:
            # The wait ends with the first; the others that are there come along.
            found, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
        ready = set(found)
        results: list[StreamResult] = []
        answered, behind = set[int](), set[int]()
        for reference, call in list(self._pending.items()):
            if reference not in ready:
                behind.add(call.runner)
            # A stream's results may overtake each other on their way, and are lost together.
            if call.runner in behind or reference not in self._pending:
                continue
            del self._pending[reference]
            result = self._unpack(reference, call, oldest)
            if result is not None:
                results.append(result)
                answered.add(call.runner)
        missed = timeout > 0 and not self._manager.healthy_actor_ids()
        if self._nobody.expired([_NOBODY] if missed else [], ()):
            raise UserError(
                f"no env runner has come back for {self._patience.restart_s:.0f} s; look into the runners' logs and "
                "memory (where processes start slowly, raise env_runners.restart_timeout_s), then continue from the "
                "last checkpoint with --resume"
            )
        for runner in answered:
            self._timeouts.pop(runner, None)
        for runner in self._timer.expired({call.runner for call in self._pending.values()}, answered):
            self._restart(runner)
        return results

    def _restart(self, runner: int) -> None:
        """End the process of a runner that hangs: its calls then fail as a dead one's, and Ray starts another."""
        self._timeouts[runner] = self._timeouts.get(runner, 0) + 1
        if self._timeouts[runner] > _MAX_RESTARTS_IN_A_ROW:
            raise UserError(
                f"env runner {runner} has not answered for {self._timer.timeout_s:.0f} s, {self._timeouts[runner]} "
                "times in a row; see whether its environment hangs (where it is merely slow, raise "
                "env_runners.call_timeout_s), then continue from the last checkpoint with --resume"
            )
        ray.kill(self._manager.actors()[runner], no_restart=False)

    def _unpack(self, reference: Any, call: _PendingCall, oldest: int) -> StreamResult | None:
        """Return what a call brought; None if it was lost, with its runner or alone, or came too late."""
        try:
            found = ray.get(reference)
        except RayTaskError:
            raise
        except RayError:  # dead, killed for its memory, or lost with its node or on the way
            self._manager.set_actor_state(call.runner, healthy=False)
            self._drop(call.runner)
            return None
        if isinstance(found, RunnerFailure):
            raise found.error()
        assert isinstance(found, StreamResult)
        if found.weights < oldest:
            self._say_late(call.runner)
            self._drop(call.runner)
            return None
        totals = self.streams.get(found.stream, StreamTotals(call.runner))
        if found.episodes_before != totals.episodes:
            raise RuntimeError(
                f"stream {found.stream} has brought {totals.episodes} episodes and says {found.episodes_before}"
            )
        brought = sum(episode.length for episode in found.episodes)
        self.streams[found.stream] = StreamTotals(
            call.runner, totals.episodes + len(found.episodes), totals.steps + brought
        )
        return found

    def _say_late(self, runner: int) -> None:
        if runner not in self._late:
            self._late.add(runner)
            _LOG.warning(
                "Env runner %d was silent for more than %g s, and what it then brought is older than "
                "online.max_policy_lag allows and is left out. Where its environment is slow and the others are not, "
                "raise that, or env_runners.lag_timeout_s: then all wait for it.",
                runner,
                self._patience.lag_s,
            )

    def _drop(self, runner: int) -> None:
        """Take a runner's calls under way for lost; if it lives, its stream ends here."""
        self._oldest_streams[runner] = self.calls
        self._pending = {
            reference: call for reference, call in self._pending.items() if call.runner != runner
        }

    def _restore(self) -> None:
        """Take runners that Ray has restarted back into service."""
        now = time.monotonic()
        if (
            self._manager.num_healthy_actors() == self._manager.num_actors()
            or now - self._probed < _PROBE_INTERVAL_S
        ):
            return
        self._probed = now
        self._group.probe_unhealthy_env_runners(timeout_seconds=_PROBE_TIMEOUT_S)
