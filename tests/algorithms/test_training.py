"""Training through RLlib: learning, schedules, exact resume, several learners, lost runners."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayrl_dt import BC, DT, DTConfig, UserError
from rayrl_dt.algorithms.learner import scheduled_lr
from rayrl_dt.errors import TrainingDiverged

pytestmark = pytest.mark.ray


def weights(algorithm: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.asarray(value) for name, value in algorithm.policy_state().items()}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def train(algorithm: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    while not algorithm.done:
        result = algorithm.train()
    return result


def test_warm_up_is_linear_then_constant_or_a_cosine() -> None:
    def constant(step: int, warmup: int = 10_000) -> float:
        return scheduled_lr(1e-4, step, warmup_steps=warmup)

    assert constant(0) == pytest.approx(1e-4 / 10_000)
    assert constant(9_999) == pytest.approx(1e-4)
    assert constant(50_000) == 1e-4
    assert constant(0, warmup=0) == 1e-4

    def cosine(step: int) -> float:
        return scheduled_lr(1.0, step, warmup_steps=100, schedule="cosine", total_steps=1_100)

    assert cosine(0) == pytest.approx(0.01)
    assert cosine(100) == pytest.approx(1.0)
    assert cosine(600) == pytest.approx(0.5)
    assert cosine(1_100) == pytest.approx(0.0, abs=1e-12)
    assert cosine(5_000) == pytest.approx(0.0, abs=1e-12)
    floored = [
        scheduled_lr(1.0, step, warmup_steps=100, schedule="cosine", total_steps=1_100, floor=0.1)
        for step in (0, 600, 1_050)
    ]
    assert floored == pytest.approx([0.01, 0.5, 0.1])


def test_a_cosine_may_be_longer_than_a_run_or_shorter(tiny: Callable[..., Any], pendulum_data: str) -> None:
    def rates(**settings: Any) -> list[float]:
        config = tiny(pendulum_data).training(
            gradient_steps=6, gradient_steps_per_iteration=1, lr=1.0, warmup_steps=0, **settings
        )
        algorithm = config.training(lr_decay="cosine", lr_floor=0.1).build_algo()
        logged = [algorithm.train()["learners"]["default_policy"]["lr"] for _ in range(6)]
        algorithm.stop()
        return logged

    expected = partial(scheduled_lr, 1.0, warmup_steps=0, schedule="cosine", floor=0.1)
    for steps in (None, 12, 3):
        assert rates(lr_decay_steps=steps) == [expected(step, total_steps=steps or 6) for step in range(6)]
    with pytest.raises(UserError, match="lr_decay_steps is 12, and nothing reads it"):
        tiny(pendulum_data).training(lr_decay_steps=12).validate()


def test_what_decays_and_how_gradients_are_remembered(tiny: Callable[..., Any], pendulum_data: str) -> None:
    """As in the authors' code for Atari: weights of linear maps decay, and nothing else."""
    config = tiny(pendulum_data).training(decayed="weights", adam_beta2=0.95, weight_decay=0.1)
    learner = config.build_algo().learner_group._learner
    model = learner.sequence_module.model
    decayed, spared = learner.get_optimizer("default_policy").param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert decayed["betas"] == spared["betas"] == (0.9, 0.95)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
    shown = {names[id(parameter)] for parameter in decayed["params"]}
    assert {"head.weight", "trunk.embed_observation.weight", "trunk.blocks.0.attention.qkv.weight"} <= shown
    assert not any("norm" in name or name.endswith("bias") or "timestep" in name for name in shown)


def test_the_loss_falls(tiny: Callable[..., Any], pendulum_data: str) -> None:
    algorithm = tiny(pendulum_data, steps=80).training(lr=3e-3, gradient_steps_per_iteration=20).build_algo()
    losses = [algorithm.train()["learners"]["default_policy"]["loss"] for _ in range(4)]
    assert losses[-1] < 0.9 * losses[0]
    algorithm.stop()


def test_learning_rate_follows_the_gradient_step(tiny: Callable[..., Any], pendulum_data: str) -> None:
    algorithm = tiny(pendulum_data).build_algo()
    seen = [float(algorithm.train()["learners"]["default_policy"]["lr"]) for _ in range(2)]
    assert seen == pytest.approx([3e-4 * 4 / 6, 3e-4])
    optimizer = algorithm.learner_group._learner.get_optimizer("default_policy")
    assert optimizer.param_groups[0]["lr"] == pytest.approx(3e-4)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(
        list(algorithm.learner_group._learner.sequence_module.parameters())
    )
    algorithm.stop()


def test_same_seed_same_run_and_other_seed_another(tiny: Callable[..., Any], pendulum_data: str) -> None:
    runs = []
    for seed in (0, 0, 1):
        algorithm = tiny(pendulum_data, steps=4).debugging(seed=seed).build_algo()
        # Anything that moves the global generators in between must not matter.
        torch.rand(7)
        np.random.rand(3)
        train(algorithm)
        runs.append(weights(algorithm))
        algorithm.stop()
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_resume_in_a_new_process_is_bit_exact(
    tiny: Callable[..., Any], joining_ray: dict[str, str], pendulum_data: str, tmp_path: Path
) -> None:
    whole = tiny(pendulum_data).build_algo()
    train(whole)
    expected = weights(whole)
    whole.stop()
    half = tiny(pendulum_data).build_algo()
    half.train()
    half.save_to_path(str(tmp_path / "half"))
    half.stop()
    script = (
        "import sys, numpy as np\n"
        "from rayrl_dt import DT\n"
        "from rayrl_dt.algorithms.session import start_ray\n"
        "start_ray()\n"
        "algorithm = DT.from_checkpoint(sys.argv[1])\n"
        "assert algorithm.gradient_steps == 4 and algorithm.iteration == 1\n"
        "while not algorithm.done: algorithm.train()\n"
        "np.savez(sys.argv[2], **algorithm.policy_state())\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "half"), str(tmp_path / "weights.npz")]
    subprocess.run(command, check=True, timeout=600, env=joining_ray)
    assert same(expected, dict(np.load(tmp_path / "weights.npz")))


def test_an_older_checkpoint_replaces_newer_weights(
    tiny: Callable[..., Any], pendulum_data: str, tmp_path: Path
) -> None:
    algorithm = tiny(pendulum_data).build_algo()
    algorithm.train()
    older = weights(algorithm)
    algorithm.save_to_path(str(tmp_path / "older"))
    algorithm.train()
    assert not same(older, weights(algorithm))
    algorithm.restore_from_path(str(tmp_path / "older"))
    assert same(older, weights(algorithm))
    runner = algorithm.env_runner_group.local_env_runner.module.model.state_dict()
    assert all(np.array_equal(runner[name].numpy(), older[name]) for name in older)
    assert algorithm.gradient_steps == 4
    algorithm.stop()


@pytest.mark.timeout(590)
def test_two_learners_stay_equal_and_a_lost_runner_is_made_up_for(
    tiny: Callable[..., Any], pendulum_data: str, tmp_path: Path
) -> None:
    import ray

    config = (
        tiny(pendulum_data, steps=8)
        .learners(num_learners=2, num_cpus_per_learner=1)
        .evaluation(evaluation_interval=1, evaluation_num_env_runners=2, episodes_per_target=3)
        .fault_tolerance(restart_failed_env_runners=True)
    )
    algorithm = config.build_algo()
    algorithm.train()
    manager = algorithm.eval_env_runner_group._worker_manager
    ray.kill(manager.actors()[manager.healthy_actor_ids()[0]], no_restart=False)
    evaluation = algorithm.train()["evaluation"]["alignment"]
    assert [target["episodes"] for target in evaluation["targets"]] == [3, 3, 3]

    def state(learner: Any) -> tuple[int, int, list[float]]:
        parameters = learner.sequence_module.parameters()
        return learner._rank, learner.gradient_step, [float(p.detach().double().sum()) for p in parameters]

    first, second = (result.get() for result in algorithm.learner_group.foreach_learner(state))
    assert (first[0], second[0]) == (0, 1)
    assert first[1:] == second[1:]
    algorithm.save_to_path(str(tmp_path / "two"))
    expected = weights(algorithm)
    algorithm.stop()
    restored = DT.from_checkpoint(str(tmp_path / "two"))
    assert same(expected, weights(restored))
    assert [r.get()[1] for r in restored.learner_group.foreach_learner(state)] == [8, 8]
    restored.stop()


@pytest.mark.timeout(590)
def test_one_remote_learner_equals_the_local_one(tiny: Callable[..., Any], pendulum_data: str) -> None:
    states = []
    for learners in (0, 1):
        algorithm = tiny(pendulum_data).learners(num_learners=learners, num_cpus_per_learner=1).build_algo()
        train(algorithm)
        states.append(weights(algorithm))
        algorithm.stop()
    assert same(states[0], states[1])


def test_learners_draw_different_batches(tiny: Callable[..., Any], pendulum_data: str) -> None:
    algorithm = tiny(pendulum_data).build_algo()
    iterator = algorithm.offline_data.iterators(1)[0]
    (a,) = iterator.batches(rank=0, first_step=5, count=1)
    (b,) = iterator.batches(rank=1, first_step=5, count=1)
    (c,) = iterator.batches(rank=0, first_step=5, count=1)
    assert not np.array_equal(a.observations, b.observations)
    assert np.array_equal(a.observations, c.observations)
    algorithm.stop()


def test_rollouts_are_whole_episodes(tiny: Callable[..., Any], cartpole_data: str) -> None:
    algorithm = tiny(cartpole_data).env_runners(num_envs_per_env_runner=3).build_algo()
    runner = algorithm.env_runner_group.local_env_runner
    episodes = runner.sample(num_episodes=4)
    assert len(episodes) >= 4
    for episode in episodes:
        assert episode.is_done
        assert episode.get_return() == len(episode) == len(episode.get_actions())
    steps = runner.sample(num_timesteps=600)
    assert sum(len(episode) for episode in steps) > 0
    algorithm.stop()


def test_statistics_come_from_all_data_whatever_the_filter(
    tiny: Callable[..., Any], pendulum_data: str
) -> None:
    specs = []
    for percent in (None, 30):
        algorithm = tiny(pendulum_data).offline_data(top_percent=percent).build_algo()
        specs.append(algorithm.policy_spec.to_json())
        if percent is not None:
            assert algorithm.offline_data.store.num_steps < algorithm.offline_data.full.num_steps
        algorithm.stop()
    assert specs[0] == specs[1]


def test_a_run_goes_on_with_longer_episodes_and_with_no_other_task(make_store: Callable[..., Any]) -> None:
    config = DTConfig().offline_data(dataset="test")
    config.resolve(make_store(lengths=(3, 4)))
    begun = config.resolved_spec
    config.resolve(make_store(lengths=(30, 30), seed=1))
    spec = config.resolved_spec
    assert spec.model.max_episode_steps == begun.model.max_episode_steps == 4
    assert (spec.action_low, spec.action_high) == (begun.action_low, begun.action_high)
    for other in ({"observation_dim": 4}, {"actions": 3}):
        with pytest.raises(UserError, match=r"the policy of this run was trained in other spaces \(.* task$"):
            config.resolve(make_store(**other))


def test_delayed_rewards_hold_targets_constant(tiny: Callable[..., Any], pendulum_data: str) -> None:
    algorithm = tiny(pendulum_data).offline_data(delayed_reward=True).build_algo()
    assert algorithm.policy_spec.model.target_rule == "constant"
    assert algorithm.offline_data.store.delayed_reward
    algorithm.stop()


def test_nan_in_the_loss_stops_the_run_and_leaves_the_weights(
    tiny: Callable[..., Any], pendulum_data: str
) -> None:
    algorithm = tiny(pendulum_data).build_algo()
    learner = algorithm.learner_group._learner
    with torch.no_grad():
        learner.sequence_module.model.head.bias.fill_(float("nan"))
    before = weights(algorithm)
    with pytest.raises(TrainingDiverged, match="gradient step 0"):
        algorithm.train()
    after = weights(algorithm)
    assert all(np.array_equal(before[name], after[name], equal_nan=True) for name in before)
    algorithm.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.training(gradient_steps=0), "gradient_steps is 0"),
        (lambda c: c.training(lr=-0.5), "training.lr"),
        (lambda c: c.training(precision="fp8"), "Allowed: auto, bf16, fp32"),
        (lambda c: c.training(return_scale=0.0), "return_scale"),
        (lambda c: c.offline_data(top_percent=0), "top_percent"),
        (lambda c: c.rl_module(model_config={"backbone": "dtt"}), "Did you mean 'dt'"),
        (lambda c: c.rl_module(model_config={"embed_dims": 3}), "Did you mean 'embed_dim'"),
        (lambda c: c.rl_module(model_config={"embed_dim": 10, "num_heads": 3}), "not a multiple"),
        (lambda c: c.rl_module(model_config={"head": "categorical"}), "categorical"),
        (lambda c: c.evaluation(action_selection="argmax"), "action_selection"),
        (lambda c: c.evaluation(target_returns="a,b"), "cannot read"),
        (lambda c: c.environment("CartPole-v1"), "observations"),
        (lambda c: c.environment("Pendulumm-v1"), "Pendulum"),
        (lambda c: c.offline_data(dataset="store:/nowhere"), "nowhere"),
        (lambda c: c.offline_data(dataset="minary:x"), "minari"),
    ],
)
def test_bad_values_are_refused_with_the_remedy(
    tiny: Callable[..., Any], pendulum_data: str, change: Callable[[Any], Any], message: str
) -> None:
    config = change(tiny(pendulum_data, steps=4))
    with pytest.raises(UserError, match=message):
        config.build_algo().evaluate()


def test_a_checkpoint_of_another_architecture_is_refused(
    tiny: Callable[..., Any], pendulum_data: str, tmp_path: Path
) -> None:
    small = tiny(pendulum_data).build_algo()
    small.save_to_path(str(tmp_path / "small"))
    small.stop()
    wide = tiny(pendulum_data, embed_dim=32).build_algo()
    before = weights(wide)
    with pytest.raises(
        UserError,
        match=r"embed_dim is 32, and .* learned with 16, which its weights hang on; set .*embed_dim back",
    ):
        wide.restore_from_path(str(tmp_path / "small"))
    assert same(before, weights(wide))
    wide.stop()


@pytest.mark.timeout(590)
def test_tune_runs_the_algorithm(tiny: Callable[..., Any], pendulum_data: str, tmp_path: Path) -> None:
    """The algorithm is an ordinary trainable: search spaces, stopping and metrics are Tune's."""
    from ray import tune

    config = tiny(pendulum_data, steps=8).evaluation(evaluation_interval=1)
    config.training(lr=tune.grid_search([1e-3, 1e-4]))
    results = tune.Tuner(
        DT, param_space=config, run_config=tune.RunConfig(storage_path=str(tmp_path), verbose=0)
    ).fit()
    assert len(results) == 2 and not results.errors
    for result in results:
        assert result.metrics["gradient_steps"] == 8
        assert np.isfinite(result.metrics["evaluation"]["alignment_error"])
        json.dumps(result.metrics["evaluation"]["alignment"])


def test_bc_is_an_mlp_on_one_state(tiny: Callable[..., Any], pendulum_data: str) -> None:
    from rayrl_dt import BCConfig

    algorithm = BCConfig().offline_data(dataset=pendulum_data).training(gradient_steps=2).build_algo()
    assert isinstance(algorithm, BC)
    assert algorithm.policy_spec.model.backbone == "mlp"
    assert algorithm.policy_spec.model.context_length == 1
    algorithm.stop()
