"""Rollouts in parts, on runners of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rayrl_dt.algorithms.runners.synchronous import Evaluate, run_on_runners
from rayrl_dt.evaluation.rollout import Slot

pytestmark = pytest.mark.ray


def test_episodes_come_in_the_order_of_the_slots(tiny: Callable[..., Any], pendulum_data: str) -> None:
    slots = [
        Slot(target=-100.0 * number, episodes=count, seed=number)
        for number, count in enumerate((1, 3, 0, 2, 1))
    ]
    algorithm = (
        tiny(pendulum_data).evaluation(evaluation_interval=1, evaluation_num_env_runners=2).build_algo()
    )
    try:
        runners, here = algorithm.eval_env_runner_group, algorithm.env_runner_group
        assert (runners.num_remote_env_runners(), here.num_remote_env_runners()) == (2, 0)
        weights = {"from_worker_or_learner_group": algorithm.learner_group, "inference_only": True}
        runners.sync_weights(**weights)
        here.sync_weights(**weights)
        remote, local = (run_on_runners(algorithm, each, slots, Evaluate(False)) for each in (runners, here))
    finally:
        algorithm.stop()
    assert [episode.target for episode in remote.episodes] == [
        slot.target for slot in slots for _ in range(slot.episodes)
    ]
    returns = [[episode.episode_return for episode in found.episodes] for found in (remote, local)]
    assert returns[0] == pytest.approx(returns[1], rel=1e-3)
