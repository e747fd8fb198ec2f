"""Steady finetuning: exact shares of logged data, collecting before learning, targets that follow the replay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import build_model, store_for

from rayrl_dt import OnlineDT, OnlineDTConfig, UserError
from rayrl_dt.algorithms.offline_data import LoggedShare, Sampling, StoreIterator
from rayrl_dt.algorithms.online.exploration import EXPLORATION
from rayrl_dt.algorithms.online.mixture import Mixture, interleaved
from rayrl_dt.data.replay import TrajectoryReplay
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.data.windows import gather
from rayrl_dt.evaluation.rollout import Slot, run_slots
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.collector import Collector
from rayrl_dt.seeding import derive_seed
from rayrl_dt.types import Window

STRONG: dict[str, Any] = {
    "critic_ensemble": 3,
    "critic_subset": 2,
    "critic_updates_per_actor": 2,
    "critic_layer_norm": True,
    "offline_fraction": 0.5,
    "offline_fraction_steps": 5,
    "collect_before_update": 200,
    "exploration_targets": "quantiles",
}
METHODS: dict[str, dict[str, Any]] = {
    "td3": STRONG,
    "sac": {
        **STRONG,
        "rl_gradient": "sac",
        "head": "gaussian",
        "exploration_targets": "best",
        "averaged_share": 0.5,
    },
    "pg": {**STRONG, "rl_gradient": "pg", "head": "gaussian"},
    "awac": {**STRONG, "rl_gradient": "awac", "offline_fraction": 0.0, "offline_fraction_steps": None},
    "q_align": {**STRONG, "rl_gradient": "q_align"},
    "td3 at the target": {
        **STRONG,
        "exploration_targets": "constant",
        "gradient_returns": "target",
        "averaged_share": 0.5,
    },
}
Configure = Callable[..., OnlineDTConfig]


@pytest.fixture
def online(ray_session: None, pendulum_data: str) -> Configure:
    """Returns a function that configures a run of seconds: 2 updates, then 3 rounds of one episode and 3 updates."""

    def make(*, head: str = "auto", **settings: Any) -> Any:
        config = OnlineDTConfig().offline_data(dataset=pendulum_data)
        model = {"context_length": 4, "embed_dim": 16, "num_layers": 1, "num_heads": 2, "head": head}
        config.rl_module(model_config=model).training(gradient_steps_per_iteration=2, precision="fp32")
        config.training(train_batch_size_per_learner=8, warmup_steps=3)
        config.evaluation(target_returns="dataset:2", episodes_per_target=1)
        sizes = {"pretrain_steps": 2, "env_steps": 600, "env_steps_per_iteration": 200, "critic_width": 8}
        return config.online(**{**sizes, "updates_per_iteration": 3, **settings})

    return make


def state(algorithm: Any) -> dict[str, np.ndarray[Any, Any]]:
    """All weights of the learner, and how far its optimizers are."""
    learner = algorithm.learner_group._learner
    found = {name: value.numpy().copy() for name, value in learner.networks.state_dict().items()}
    for name in ("policy", "critic"):
        steps = learner.get_optimizer("default_policy", name).state_dict()["state"].values()
        found[f"steps of {name}"] = np.array([float(each["step"]) for each in steps])
    return found


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def finish(algorithm: Any) -> None:
    for _ in range(20):
        if not algorithm.done:
            algorithm.train()
    assert algorithm.done


@pytest.mark.ray
@pytest.mark.parametrize("method", METHODS)
def test_with_all_of_it_on_a_run_resumes_bit_for_bit(online: Configure, method: str, tmp_path: Path) -> None:
    """Invariant 19, too: the steps of the critics are twice those of the policy, also after a resume."""
    whole = online(**METHODS[method]).build_algo()
    finish(whole)
    assert (whole.rounds, whole.gradient_steps, whole.env_steps) == (3, 2 + 2 * 3, 600)
    assert whole.replay.counts.added_episodes == whole.collected_episodes == 3, "nothing logged is in it"
    half = online(**METHODS[method]).build_algo()
    half.train()
    half.train()
    assert (half.rounds, half.gradient_steps) == (2, 5), "the first round allows no updates"
    returns = half.replay.episode_returns()
    assert len(returns) == 2 and half.report()["collected_return"] == pytest.approx(returns.mean())
    half.save_to_path(str(tmp_path / "half"))
    half.stop()
    resumed = OnlineDT.from_checkpoint(str(tmp_path / "half"))
    finish(resumed)
    assert_same(state(whole), state(resumed))
    assert set(state(whole)["steps of policy"]) == {8.0} and set(state(whole)["steps of critic"]) == {16.0}
    for part in ("steps", "episodes"):
        assert_same(whole.replay.state()[part], resumed.replay.state()[part])
    assert whole.asked_return == resumed.asked_return == whole.replay.state()["episodes"]["asked"][-1]
    whole.stop()
    resumed.stop()


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.parametrize("method", ["td3", "td3 at the target"])
def test_a_shared_replay_makes_no_difference(online: Configure, method: str) -> None:
    """Logged windows are drawn in the learner, collected ones in the replay's process."""
    found = []
    for runners in (0, 1):
        algorithm = (
            online(**METHODS[method], env_steps_per_iteration=400)
            .env_runners(num_env_runners=runners)
            .build_algo()
        )
        finish(algorithm)
        found.append(state(algorithm))
        algorithm.stop()
    assert_same(*found)


@pytest.mark.ray
def test_the_policy_that_collects_before_the_first_update_is_the_pretrained_one(online: Configure) -> None:
    """Invariant 20: no weight moves in the first 400 steps, and their actions are those of the pretrained policy."""
    algorithm = online(
        collect_before_update=400, exploration_noise=0.0, exploration_target=-100.0
    ).build_algo()
    algorithm.train()
    assert algorithm.gradient_steps == 2 and algorithm.replay is None
    before, runner = state(algorithm), algorithm.env_runner_group.local_env_runner
    slots = [Slot(-100.0, 1, derive_seed(0, "collect", number) % 2**31) for number in range(2)]
    algorithm.env_runner_group.sync_weights(
        from_worker_or_learner_group=algorithm.learner_group, inference_only=True
    )
    wanted = [runner.collect([slot]).episodes[0] for slot in slots]
    for slot, episode in zip(slots, wanted, strict=True):
        assert (
            runner.evaluate([slot], sample_actions=False).episodes[0].episode_return == episode.episode_return
        )
    seen: list[Any] = []
    take = algorithm.learner_group._learner._take_step
    algorithm.learner_group._learner._take_step = lambda batch: (
        seen.append((state(algorithm), algorithm.env_steps)),
        take(batch),
    )
    algorithm.train()
    assert len(seen) == 3 and seen[0][1] == 600, (
        "the round that goes beyond 400 steps is the first to allow updates"
    )
    for name, value in before.items():
        np.testing.assert_array_equal(value, seen[0][0][name], err_msg=name)
    store = algorithm.replay.store
    for number, episode in enumerate(wanted):
        begin = int(store.starts[number - 3])
        np.testing.assert_array_equal(store.actions[begin : begin + 200], episode.trajectory.actions)
    algorithm.stop()


@pytest.fixture
def two_stores(make_store: Callable[..., TrajectoryStore]) -> tuple[TrajectoryStore, TrajectoryStore]:
    """Logged and collected steps, which the first number of their observations tells apart."""
    logged = make_store(lengths=(9, 30))
    collected = make_store(lengths=(5, 12, 20), seed=1)
    return logged, replace(collected, observations=collected.observations + 1e6)


def mixture(
    stores: tuple[TrajectoryStore, TrajectoryStore], share: LoggedShare, batch_size: int = 16
) -> Mixture:
    sampling = Sampling(batch_size, 3, seed=4, successors=True, share=share)
    logged, collected = stores
    return Mixture(StoreIterator(logged, replace(sampling, logged=True)), StoreIterator(collected, sampling))


def logged_windows(window: Window[Any]) -> Any:
    """`(B,)`, whether each window is logged."""
    return window.observations[:, -1, 0] < 1e5


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.75, 1.0])
def test_each_batch_holds_exactly_its_share(two_stores: Any, fraction: float) -> None:
    """Invariant 18: round(f B) logged windows, spread evenly, and none at f = 0."""
    batches = list(mixture(two_stores, LoggedShare(fraction, 0)).batches(rank=0, first_step=0, count=20))
    for window in batches:
        logged = logged_windows(window)
        assert window.batch_size == 16 and logged.sum() == round(16 * fraction)
        for part in np.split(logged, 4):
            assert abs(part.sum() - 4 * fraction) <= 1
        assert np.array_equal(window.next.mask, window.mask) and window.rewards.shape == (16, 3)
    assert any(not np.array_equal(batches[0].observations, other.observations) for other in batches[1:])


def test_the_share_falls_to_nothing_at_its_end(two_stores: Any) -> None:
    source = mixture(two_stores, LoggedShare(0.5, first_step=100, anneal_steps=8))
    shares = [int(logged_windows(w).sum()) for w in source.batches(rank=0, first_step=98, count=14)]
    assert shares == [8, 8, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0]
    (again,) = source.batches(rank=0, first_step=103, count=1)
    assert logged_windows(again).sum() == 5, "a function of the step, as resuming asks"


def test_joined_windows_are_those_that_were_drawn(two_stores: Any) -> None:
    one, other = (
        gather(store, np.zeros(count, int), np.arange(count), 3, successors=True)
        for store, count in zip(two_stores, (2, 4), strict=True)
    )
    joined, is_logged = (both := interleaved(one, other)), logged_windows(interleaved(one, other))
    assert is_logged.tolist() == [False, True, False, False, True, False] and both.batch_size == 6
    for source, chosen in ((one, is_logged), (other, ~is_logged)):
        for name in (
            "observations",
            "actions",
            "returns_to_go",
            "rewards",
            "timesteps",
            "terminated",
            "mask",
        ):
            np.testing.assert_array_equal(getattr(joined, name)[chosen], getattr(source, name))
        np.testing.assert_array_equal(joined.next.observations[chosen], source.next.observations)


def test_targets_follow_the_replay() -> None:
    returns = np.array([-900.0, -500.0, -300.0, -100.0, -200.0])
    best = EXPLORATION["best"](span=1000.0, margin=0.1, quantile=0.8)
    assert best.target(returns, np.random.default_rng(0)) == -100.0 + 100.0
    quantiles = EXPLORATION["quantiles"](span=1000.0, margin=0.0, quantile=0.5)
    drawn = [quantiles.target(returns, np.random.default_rng(seed)) for seed in range(200)]
    assert -300.0 <= min(drawn) < -280.0 and -120.0 < max(drawn) <= -100.0


@pytest.mark.ray
def test_a_curriculum_asks_for_more_than_was_ever_achieved(online: Configure) -> None:
    algorithm = online(exploration_targets="best", exploration_margin=0.2).build_algo()
    algorithm.train()
    returns = algorithm.offline_data.store.episode_returns
    algorithm.train()
    span = returns.max() - returns.min()
    assert algorithm.asked_return == pytest.approx(returns.max() + 0.2 * span, rel=1e-6)
    assert algorithm.report()["asked_return"] == algorithm.asked_return
    asked = algorithm.replay.state()["episodes"]["asked"]
    assert np.isnan(asked[:-1]).all() and asked[-1] == algorithm.asked_return
    algorithm.stop()


def test_actions_are_likely_under_what_was_asked_and_not_under_what_was_achieved() -> None:
    """Invariant 22: the mean score of stored actions is 0 where they were drawn, under the returns asked for then."""
    env = gym.make_vec("Pendulum-v1", num_envs=4)
    steps, asked = 4, 4000.0  # far from anything achieved
    model = build_model(
        store_for(gym.make("Pendulum-v1")), return_scale=1000.0, head="gaussian", context_length=steps
    )
    with torch.no_grad():
        model.head.weight.mul_(0.3)
    collector = Collector(env, VectorActor(model, 4, sample=torch.Generator().manual_seed(0)), record=True)
    episodes = run_slots(collector, [Slot(asked, 1, seed) for seed in range(4)]).episodes
    store = store_for(gym.make("Pendulum-v1"))
    replay = TrajectoryReplay(store.info, model.spec.normalizer, capacity=9)
    replay.fill(store)
    replay.add([e.trajectory for e in episodes if e.trajectory], [e.target for e in episodes])
    to_go = replay.asked_returns_to_go()
    assert np.isnan(to_go[:30]).all() and not np.isnan(to_go[30:]).any(), "three logged episodes of ten steps"
    begin = int(replay.store.starts[3])
    assert to_go[begin] == asked and to_go[begin + 1] == pytest.approx(asked - replay.store.rewards[begin])
    for returns, likely in ((to_go, True), (replay.store.returns_to_go, False)):
        scores = _scores(model, replace(replay.store, returns_to_go=returns), steps)
        z = float(scores.mean() / scores.std() * len(scores) ** 0.5)
        assert (abs(z) < 4) == likely, z
        assert likely == (abs(float(scores.std()) - 1) < 0.15)


def _scores(model: Any, store: TrajectoryStore, steps: int) -> Any:
    """The standardized distance of each collected action from the policy's mean, with the context it was drawn in."""
    episodes, offsets = (each.ravel() for each in np.meshgrid(np.arange(3, 7), np.arange(200 - steps + 1)))
    window = gather(store, episodes, offsets, steps).to_torch()
    with torch.no_grad():
        mean, log_std = model.spec.head.law(model(window))  # (B, K, A)
    before = torch.atanh((window.actions / 2).clamp(-1 + 1e-6, 1 - 1e-6))
    return ((before - mean) / log_std.exp())[:, -1, 0].numpy()


@pytest.mark.parametrize(
    ("online", "message"),
    [
        (
            {"offline_fraction": 1.5},
            r"offline_fraction is 1.5; it must be a finite number .* at most 1, or null",
        ),
        (
            {"offline_fraction_steps": 5},
            "offline_fraction_steps is 5, and there is no offline_fraction to fall",
        ),
        ({"collect_before_update": 24_000}, r"collect_before_update is 24000, and nothing would be learned"),
        (
            {"exploration_targets": "best", "exploration_target": 1.0},
            "exploration_target is 1, and nothing reads it",
        ),
        ({"exploration_targets": "more"}, "exploration_targets is 'more'"),
        ({"exploration_targets": "best", "mode": "async"}, r"follows the replay .* set online.mode: sync"),
    ],
)
def test_what_does_not_go_together_is_refused(online: dict[str, Any], message: str) -> None:
    config = OnlineDTConfig().offline_data(dataset="recipe:pendulum-mixed").online(**online)
    with pytest.raises(UserError, match=message) as refused:
        config.env_runners(num_env_runners=1).validate()
    assert "\n" not in str(refused.value)


def test_a_share_of_no_logged_data_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"offline_fraction is 0.5, and there are no logged data .* set offline_data"
    ):
        OnlineDTConfig().online(offline_fraction=0.5).validate()
