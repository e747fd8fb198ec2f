"""When a silent runner is taken for one that hangs: on a clock that the test moves."""

from __future__ import annotations

import time

import pytest

from rayrl_dt.algorithms.runners.timeouts import SilenceTimer


class Clock:
    """Stands still until it is told otherwise."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(time, "monotonic", moved)
    return moved


def looks(
    timer: SilenceTimer, clock: Clock, count: int, *, awaited: set[int], answered: set[int]
) -> list[list[int]]:
    """Looks every half second."""
    found = []
    for _ in range(count):
        clock.now += 0.5
        found.append(timer.expired(awaited, answered))
    return found


def test_a_runner_hangs_after_so_many_seconds_of_silence_and_its_count_begins_anew(clock: Clock) -> None:
    timer = SilenceTimer(2.0)
    found = looks(timer, clock, 10, awaited={1, 2}, answered={2})
    # More than two seconds: at the fifth look, and five looks later again.
    assert found == [[], [], [], [], [1], [], [], [], [], [1]]


def test_an_answer_ends_the_silence(clock: Clock) -> None:
    timer = SilenceTimer(2.0)
    for _ in range(5):
        assert looks(timer, clock, 4, awaited={1}, answered=set()) == [[]] * 4
        assert looks(timer, clock, 1, awaited={1}, answered={1}) == [[]]


def test_who_has_nothing_to_do_is_not_silent(clock: Clock) -> None:
    timer = SilenceTimer(2.0)
    looks(timer, clock, 4, awaited={1}, answered=set())
    looks(timer, clock, 9, awaited=set(), answered=set())
    assert looks(timer, clock, 4, awaited={1}, answered=set()) == [[]] * 4


def test_a_machine_put_to_sleep_is_no_silence(clock: Clock) -> None:
    """Between two looks a second counts at most."""
    timer = SilenceTimer(2.0)
    for _ in range(2):
        clock.now += 10_000
        assert timer.expired({1}, set()) == []
    clock.now += 10_000
    assert timer.expired({1}, set()) == [1]
