from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from builders import build_model, store_for
from scripted_env import ScriptedEnv, reward_of, scripted_vector

from rayrl_dt import envs
from rayrl_dt.envs.vector import vectorize
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.evaluate import assemble, evaluate_model
from rayrl_dt.evaluation.result import EvaluationResult
from rayrl_dt.evaluation.rollout import EpisodeRecord, Rollouts, Slot, assign_slots, run_slots
from rayrl_dt.evaluation.targets import TargetReturns
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.collector import Collector


@pytest.mark.parametrize("episodes", [1, 3, 10, 20])
@pytest.mark.parametrize("targets", [1, 2, 7, 40])
@pytest.mark.parametrize("max_slots", [1, 8, 32])
def test_plan_divides_the_quota(episodes: int, targets: int, max_slots: int) -> None:
    wanted = [10.0 * k for k in range(targets)]
    slots = assign_slots(wanted, episodes, max_slots=max_slots, seed=3)
    by_target = {target: [slot for slot in slots if slot.target == target] for target in wanted}
    for own in by_target.values():
        quotas = [slot.episodes for slot in own]
        assert sum(quotas) == episodes
        assert max(quotas) - min(quotas) <= 1 and min(quotas) >= 1
        assert len({slot.seed for slot in own}) == len(own), "no episode is run twice"
        # Common random numbers: the j-th slots of all targets start from the same state.
        assert [slot.seed for slot in own] == [slot.seed for slot in by_target[wanted[0]]]
        assert all(0 <= slot.seed < 2**31 for slot in own)
    assert len(slots) <= max(max_slots, targets)
    assert [slot.target for slot in slots] == sorted(slot.target for slot in slots)


def test_plan_depends_on_the_seed() -> None:
    one, other = (assign_slots([1.0], 4, max_slots=4, seed=seed) for seed in (0, 1))
    assert not {slot.seed for slot in one} & {slot.seed for slot in other}
    assert one == assign_slots([1.0], 4, max_slots=4, seed=0)


def scripted_model() -> SequenceModel:
    return build_model(store_for(ScriptedEnv(0, (1,))))


def collector_for(*lengths: tuple[int, ...], **options: Any) -> Collector:
    vector = scripted_vector(*lengths, **options)
    return Collector(vector, VectorActor(scripted_model(), len(lengths)), record=False)


def expected_record(slot: int, episode: int, length: int, target: float) -> EpisodeRecord:
    return EpisodeRecord(target, sum(reward_of(slot, episode, t) for t in range(length)), length)


def test_each_slot_runs_its_quota_and_no_more() -> None:
    # Counting the first finishers would take nine episodes of the fast slot.
    lengths, quotas = ((1,), (50,), (2, 7)), (3, 2, 4)
    collector = collector_for(*lengths)
    slots = [Slot(target=float(i), episodes=n, seed=100 + i) for i, n in enumerate(quotas)]
    counted: list[int] = []
    rollouts = run_slots(collector, slots, progress=counted.append)
    expected = [
        expected_record(slot, episode, lengths[slot][episode % len(lengths[slot])], float(slot))
        for slot, quota in enumerate(quotas)
        for episode in range(quota)
    ]
    assert list(rollouts.episodes) == expected, "in the order of the slots, whoever finishes first"
    assert rollouts.env_steps == sum(record.length for record in expected)
    assert sum(counted) == sum(quotas)
    assert rollouts.seconds > 0
    assert [env.seeds[0] for env in collector.env.envs] == [100, 101, 102]
    assert not collector.active.any()


def test_a_slot_that_is_done_takes_no_steps_and_wakes_with_the_next_reset() -> None:
    lengths = ((2,), (30,), (5,))
    numbers = itertools.cycle(range(3))

    def make() -> ScriptedEnv:
        number = next(numbers)
        return ScriptedEnv(number, lengths[number])

    vector = vectorize(make, 3)
    collector = Collector(vector, VectorActor(scripted_model(), 3), record=True)
    plain = Collector(scripted_vector(*lengths), VectorActor(scripted_model(), 3), record=True)
    slots = [Slot(1.0, 3, 0), Slot(2.0, 1, 0), Slot(3.0, 0, 0)]
    found, expected = run_slots(collector, slots), run_slots(plain, slots)
    for one, other in zip(found.episodes, expected.episodes, strict=True):
        assert (one.target, one.episode_return) == (other.target, other.episode_return)
        assert one.trajectory is not None and other.trajectory is not None
        np.testing.assert_array_equal(one.trajectory.actions, other.trajectory.actions)
    again = run_slots(collector, slots)
    assert [record.length for record in again.episodes] == [2, 2, 2, 30]
    taken = [sum(map(len, env.unwrapped.actions_taken)) for env in vector.envs]
    assert taken == [2 * 3 * 2, 2 * 30, 0]
    assert sum(sum(map(len, env.actions_taken)) for env in plain.env.envs) > sum(taken)


def test_a_slot_without_quota_idles_from_the_start() -> None:
    rollouts = run_slots(collector_for((2,), (3,)), [Slot(1.0, 0, 0), Slot(2.0, 2, 0)])
    assert [record.target for record in rollouts.episodes] == [2.0, 2.0]
    assert rollouts.env_steps == 6


def test_no_quota_at_all_ends_at_once() -> None:
    assert run_slots(collector_for((2,)), [Slot(1.0, 0, 0)]).episodes == ()


def test_a_collector_runs_again() -> None:
    collector = collector_for((2,), (5,))
    slots = [Slot(1.0, 2, 0), Slot(2.0, 1, 0)]
    first, second = run_slots(collector, slots), run_slots(collector, slots)
    assert [r.length for r in first.episodes] == [r.length for r in second.episodes]
    assert first.env_steps == second.env_steps == 9


def test_done_slots_are_left_out_of_the_forward() -> None:
    collector = collector_for((1,), (20,))
    sizes: list[int] = []
    collector.actor.model.register_forward_pre_hook(lambda _, args: sizes.append(args[0].batch_size))
    run_slots(collector, [Slot(1.0, 2, 0), Slot(2.0, 1, 0)])
    assert sizes == [2, 1, 2] + [1] * 17, "the second call is the first slot's reset"


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_slots_do_not_depend_on_their_company(mode: str) -> None:
    model = build_model(store_for(envs.make("Pendulum-v1")))

    def run(slots: list[Slot], mode: Any = "sync") -> list[EpisodeRecord]:
        vector = envs.RecordedEnv.named("Pendulum-v1", max_episode_steps=12).make_vector(
            len(slots), mode=mode
        )
        try:
            return list(
                run_slots(Collector(vector, VectorActor(model, len(slots)), record=False), slots).episodes
            )
        finally:
            vector.close()

    slots = [Slot(-100.0, 2, 5), Slot(-900.0, 1, 5), Slot(-100.0, 3, 6)]
    together = run(slots, mode)
    alone = [record for slot in slots for record in run([slot])]
    assert [(r.target, r.length) for r in together] == [(r.target, r.length) for r in alone]
    np.testing.assert_allclose(
        [r.episode_return for r in together], [r.episode_return for r in alone], rtol=1e-4
    )


def cartpole() -> SequenceModel:
    return build_model(store_for(envs.make("CartPole-v1")))


PLAN = TargetReturns((5.0, 20.0, 80.0))


def run_cartpole(model: SequenceModel, **options: Any) -> Rollouts:
    return evaluate_model(
        model, PLAN, env="CartPole-v1", episodes_per_target=4, **{"max_slots": 6, "seed": 1, **options}
    )


@pytest.mark.parametrize("selection", ["sample", "mode"])
def test_an_evaluation_repeats(selection: str) -> None:
    model, counted = cartpole(), []
    first = run_cartpole(model, action_selection=selection, progress=counted.append)
    assert first.episodes == run_cartpole(model, action_selection=selection).episodes
    assert first.episodes != run_cartpole(model, action_selection=selection, seed=2).episodes
    assert [record.target for record in first.episodes] == [5.0] * 4 + [20.0] * 4 + [80.0] * 4
    assert sum(counted) == 12
    assert all(record.episode_return == record.length for record in first.episodes), "CartPole pays 1 a step"
    assert first.env_steps == sum(record.length for record in first.episodes)


def test_drawing_actions_differs_from_choosing_them() -> None:
    model = cartpole()
    drawn, chosen = (run_cartpole(model, action_selection=name).episodes for name in ("sample", "mode"))
    assert run_cartpole(model).episodes == drawn != chosen, "a policy that does not say draws"


def test_evaluating_leaves_the_weights_alone() -> None:
    model = cartpole()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run_cartpole(model, precision="bf16")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_targets_change_what_is_done() -> None:
    model = build_model(store_for(envs.make("Pendulum-v1")))
    plan = TargetReturns((-1000.0, 1000.0))
    rollouts = evaluate_model(model, plan, env="Pendulum-v1", episodes_per_target=1)
    low, high = rollouts.episodes
    assert low.length == high.length == 200
    assert low.episode_return != high.episode_return, "same start, another target"


def test_equal_targets_under_common_seeds_do_the_same() -> None:
    model = build_model(store_for(envs.make("Pendulum-v1")), backbone="no-return")
    rollouts = evaluate_model(
        model, TargetReturns((-1000.0, 1000.0)), env="Pendulum-v1", episodes_per_target=2
    )
    returns = np.array([record.episode_return for record in rollouts.episodes]).reshape(2, 2)
    np.testing.assert_allclose(returns[0], returns[1], rtol=1e-5)
    assert returns[0, 0] != returns[0, 1]


def test_an_unknown_environment_is_asked_for() -> None:
    with pytest.raises(UserError, match="not recorded; name one with --env"):
        evaluate_model(cartpole(), PLAN)


def test_another_environment_is_refused() -> None:
    with pytest.raises(UserError, match="observations are"):
        evaluate_model(cartpole(), PLAN, env="Pendulum-v1")


def test_results_are_grouped_by_target() -> None:
    rollouts = Rollouts(
        episodes=tuple(
            EpisodeRecord(target, 10 * target + n, 5 + n) for target in (2.0, 1.0) for n in range(3)
        ),
        env_steps=36,
        seconds=2.0,
    )
    result = assemble(
        rollouts,
        TargetReturns((2.0, 1.0), warnings=("careful",)),
        env="X-v0",
        dataset="test",
        reference=None,
        score_note="none known",
        checkpoint="here",
        gradient_steps=9,
    )
    assert isinstance(result, EvaluationResult)
    assert [target.target for target in result.targets] == [2.0, 1.0]
    assert result.targets[0].returns == (20.0, 21.0, 22.0)
    assert result.targets[1].lengths == (5, 6, 7)
    assert (result.env_steps_per_s, result.warnings) == (18.0, ("careful",))
    assert (result.checkpoint, result.gradient_steps, result.score_note) == ("here", 9, "none known")
