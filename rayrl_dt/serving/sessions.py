"""Episodes that clients act in: opened with a target each, answered in batches, ended when nobody comes back."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rayrl_dt.errors import UserError
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.own_pace import OwnPaceActor
from rayrl_dt.seeding import torch_generator
from rayrl_dt.serving.limits import Limits
from rayrl_dt.serving.policy import raw_target
from rayrl_dt.serving.requests import Refused

__all__ = ["Answer", "Session", "Sessions", "Step"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Step:
    """What a session asks: the action for an observation.

    Attributes:
        name: of the session.
        observation: `(*obs)` as the policy reads it.
        reward: raw, of the step before; None for the first observation.
        number: of the step in its session, from 0, as the client counts; None if it does not.
    """

    name: str
    observation: Array
    reward: float | None
    number: int | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What a session gets.

    Attributes:
        action: as the environment takes it.
        return_to_go: raw, what is left to achieve, or what the policy predicts.
        step: how many actions the session had before.
    """

    action: Any
    return_to_go: float
    step: int


@dataclass(eq=False)
class Session:
    """An episode of a client.

    Attributes:
        name: what the client calls it by; nobody guesses it.
        slot: its row in the actor.
        target: raw return that is asked for; None of a policy that predicts its own.
        draw: generator of its actions; None for the policy's mode.
        used: when it was used last, in seconds of the clock.
        steps: actions so far.
        last: the answer to the newest step, for a client that did not get it; None before the first.
    """

    name: str
    slot: int
    target: float | None
    draw: torch.Generator | None
    used: float
    steps: int = 0
    last: Answer | None = None

    def had(self, step: Step) -> Answer | None:
        """Return the answer that a step got already; None for one that goes on.

        Raises:
            Refused: it is neither the newest step nor the one after it, or has no reward.
        """
        if step.number is not None and step.number != self.steps:
            if self.last is not None and step.number == self.last.step:
                return self.last
            raise Refused(
                409,
                f"step is {step.number}, and the session is at {self.steps}; send that one, or the one before",
            )
        if step.reward is None and self.steps > 0:
            raise Refused(400, "the body has no reward; send that of the step before, too")
        return None


class Sessions:
    """Keeps the sessions of one policy, and acts for all that ask at once.

    Args:
        model: the policy network.
        spec: how it acts; None for the model's own.
        limits: how many, and how long they may idle.
        clock: seconds that only grow.

    Attributes:
        spec: as given.
        limits: as given.
        actions: how many were answered.
    """

    def __init__(
        self,
        model: SequenceModel,
        spec: PolicySpec | None = None,
        *,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec or model.spec
        self.limits = limits or Limits()
        self.actions = 0
        self._clock = clock
        self._actor = OwnPaceActor(
            model, self.limits.sessions, context_length=self.spec.acts_on, guidance=self.spec.guidance
        )
        # The one that has idled longest comes first.
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._ended: OrderedDict[str, str] = OrderedDict()
        self._free = list(range(self.limits.sessions))[::-1]

    @property
    def taken(self) -> int:
        """How many are open."""
        self._expire()
        return len(self._open)

    def open(self, target_return: float | None = None, seed: int = 0) -> Session:
        """Begin an episode.

        Args:
            target_return: as for `SequencePolicy.reset`.
            seed: of actions that are drawn; the same seed draws as `SequencePolicy(sample_seed=seed)` does.

        Raises:
            Refused: the policy takes no such target, or there are as many sessions as there may be.
        """
        try:
            target = raw_target(self.spec, target_return)
        except UserError as error:
            raise Refused(400, str(error)) from error
        self._expire()
        if not self._free:
            raise Refused(
                429,
                f"all {self.limits.sessions} sessions are taken; close those that are done, or wait "
                f"{self.seconds_to_wait():.0f} s until one has idled for {self.limits.idle_seconds:g} s",
            )
        draw = torch_generator(seed, "policy-actions") if self.spec.action_selection == "sample" else None
        predicted = self.spec.model.target_rule == "predicted"
        session = Session(
            secrets.token_urlsafe(16), self._free.pop(), None if predicted else target, draw, self._clock()
        )
        self._open[session.name] = session
        return session

    def seconds_to_wait(self) -> float:
        """Return when the session that has idled longest ends, in seconds, if nobody uses it; 0 without sessions."""
        oldest = next(iter(self._open.values()), None)
        return 0.0 if oldest is None else max(0.0, oldest.used + self.limits.idle_seconds - self._clock())

    def find(self, name: str) -> Session:
        """Return an open session.

        Raises:
            Refused: it ended, or never was.
        """
        self._expire()
        if name in self._open:
            return self._open[name]
        if name in self._ended:
            raise Refused(410, f"the session {self._ended[name]}; open another one")
        raise Refused(404, "there is no such session; open one with POST /sessions")

    def close(self, name: str) -> Session:
        """End an episode.

        Raises:
            Refused: as `find`.
        """
        session = self.find(name)
        self._end(session, "was closed")
        return session

    def act(self, asked: Sequence[Step]) -> list[Answer | Refused]:
        """Return an answer for each step, or why there is none; a step that is refused changes nothing.

        One that says its number and is sent again gets the answer that it had, and its session does not move.
        """
        answers: dict[int, Answer | Refused] = {}
        going: dict[str, tuple[int, Session]] = {}
        again: dict[int, int] = {}
        for number, step in enumerate(asked):
            try:
                session = self.find(step.name)
                if step.name in going:
                    first, _ = going[step.name]
                    if step.number is None or step.number != asked[first].number:
                        raise Refused(
                            409, "another step of this session is being answered; wait for its action"
                        )
                    again[number] = first
                elif (last := session.had(step)) is None:
                    going[step.name] = number, session
                else:
                    answers[number] = last
                self._use(session)
            except Refused as refused:
                answers[number] = refused
        if going:
            numbers = [number for number, _ in going.values()]
            sessions = [session for _, session in going.values()]
            answers.update(zip(numbers, self._act([asked[n] for n in numbers], sessions), strict=True))
        answers.update({number: answers[first] for number, first in again.items()})
        return [answers[number] for number in range(len(asked))]

    def _act(self, asked: Sequence[Step], sessions: Sequence[Session]) -> list[Answer | Refused]:
        slots = np.array([session.slot for session in sessions])
        actions, finite = self._actor.act_for(
            slots,
            np.stack([step.observation for step in asked]),
            np.array([step.reward or 0.0 for step in asked]),
            np.array([session.steps == 0 for session in sessions]),
            np.array([session.target or 0.0 for session in sessions]),
            [session.draw for session in sessions],
        )
        to_go = self._actor.returns_to_go[slots]
        head, layout = self.spec.head, self.spec.action_layout
        answers: list[Answer | Refused] = []
        for row, session in enumerate(sessions):
            if not finite[row]:
                reason = (
                    "the policy's outputs for this observation, reward and target are not finite; send others"
                )
                answers.append(Refused(400, reason))
                continue
            session.last = Answer(layout.restore(head.single(actions[row])), float(to_go[row]), session.steps)
            answers.append(session.last)
            session.steps += 1
            self.actions += 1
        return answers

    def _use(self, session: Session) -> None:
        session.used = self._clock()
        self._open.move_to_end(session.name)

    def _expire(self) -> None:
        """End the sessions that nobody has used for too long."""
        while self._open and self.seconds_to_wait() == 0:
            idle = f"ended, since nobody used it for {self.limits.idle_seconds:g} s"
            self._end(next(iter(self._open.values())), idle)

    def _end(self, session: Session, why: str) -> None:
        del self._open[session.name]
        self._free.append(session.slot)
        self._ended[session.name] = why
        while len(self._ended) > self.limits.sessions:
            self._ended.popitem(last=False)
