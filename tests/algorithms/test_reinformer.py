"""Reinformer through RLlib: it learns returns and actions, comes back, and is asked for nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rayrl_dt import Reinformer, ReinformerConfig, SequencePolicy
from rayrl_dt.algorithms.online.algorithm import OnlineDTConfig
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.evaluate import evaluate_bundle
from rayrl_dt.evaluation.result import EvaluationResult
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.reports.run_report import write_report
from rayrl_dt.runs import loop as runs
from rayrl_dt.runs.config_files import build_config, read_yaml

pytestmark = pytest.mark.ray

TINY = {"context_length": 4, "embed_dim": 16, "num_layers": 2, "num_heads": 2}


@pytest.fixture
def configure(ray_session: None, pendulum_data: str) -> Callable[..., Any]:
    """Returns a function that configures a run of seconds on Pendulum."""

    def make(*, dataset: str = pendulum_data, steps: int = 8, **model: Any) -> Any:
        return (
            ReinformerConfig()
            .offline_data(dataset=dataset)
            .rl_module(model_config={**TINY, **model})
            .training(
                gradient_steps=steps,
                gradient_steps_per_iteration=4,
                train_batch_size_per_learner=8,
                warmup_steps=2,
            )
            .evaluation(target_returns="dataset:3", episodes_per_target=2)
        )

    return make


def train(algorithm: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    while not algorithm.done:
        result = algorithm.train()
    return result


def weights(algorithm: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.asarray(value) for name, value in algorithm.policy_state().items()}


@pytest.mark.parametrize(
    "model",
    [{}, {"head": "gaussian", "context_rule": "newest"}, {"shared_networks": True, "context_rule": "whole"}],
    ids=["two networks", "gaussian", "one network"],
)
def test_it_trains_resumes_exactly_and_comes_back(
    configure: Callable[..., Any], tmp_path: Path, model: dict[str, Any]
) -> None:
    whole = configure(**model).build_algo()
    before = weights(whole)
    result = train(whole)["learners"]["default_policy"]
    after = weights(whole)
    assert 0 < result["return_loss"] < result["loss"]
    assert all(not np.array_equal(before[name], after[name]) for name in before if "network" in name)
    half = configure(**model).build_algo()
    half.train()
    half.save_to_path(str(tmp_path / "half"))
    half.stop()
    resumed = Reinformer.from_checkpoint(str(tmp_path / "half"))
    train(resumed)
    found = weights(resumed)
    assert all(np.array_equal(after[name], found[name]) for name in after)
    bundle = save_bundle(resumed.policy_spec, found, tmp_path / "policy", gradient_steps=8)
    spec = Bundle.open(bundle).model.spec
    assert spec.model == whole.policy_spec.model and spec.model.target_rule == "predicted"
    policy = SequencePolicy.load(bundle)
    policy.reset()
    action = policy.act(np.array([1.0, 0.0, 0.0], np.float32))
    assert policy.spec.action_space.contains(action)
    evaluation = whole.evaluate()["alignment"]
    assert evaluation == {**resumed.evaluate()["alignment"], "env_steps_per_s": evaluation["env_steps_per_s"]}
    again = evaluate_bundle(bundle, targets="dataset:3", episodes_per_target=2).to_json()
    (item,) = again["targets"]
    assert item["episodes"] == 2
    whole.stop()
    resumed.stop()


def test_both_losses_fall(configure: Callable[..., Any]) -> None:
    algorithm = configure(steps=240).training(lr=3e-3, gradient_steps_per_iteration=60).build_algo()
    found = [algorithm.train()["learners"]["default_policy"] for _ in range(4)]
    for read in (lambda r: r["return_loss"], lambda r: r["loss"] - r["return_loss"]):
        assert read(found[-1]) < 0.95 * read(found[0])
    algorithm.stop()


def test_discrete_actions_and_elastic_contexts(configure: Callable[..., Any], cartpole_data: str) -> None:
    algorithm = configure(dataset=cartpole_data, steps=4, context_rule="elastic").build_algo()
    result = train(algorithm)
    assert np.isfinite(result["learners"]["default_policy"]["loss"])
    assert algorithm.evaluate()["return_mean"] > 0
    algorithm.stop()


@pytest.mark.long
def test_two_learners_agree_with_ddp(configure: Callable[..., Any]) -> None:
    """Every weight takes part in the one forward that DDP watches."""
    algorithm = configure(steps=4).learners(num_learners=2).build_algo()
    before = weights(algorithm)
    train(algorithm)
    after = weights(algorithm)
    assert all(not np.array_equal(before[name], after[name]) for name in before if "network" in name)
    algorithm.stop()


def test_an_evaluation_says_that_nothing_was_asked(configure: Callable[..., Any]) -> None:
    algorithm = configure(steps=4).build_algo()
    train(algorithm)
    metrics = algorithm.evaluate()
    algorithm.stop()
    evaluation = metrics["alignment"]
    (item,) = evaluation["targets"]
    assert item["episodes"] == 2 and metrics["return_mean"] == item["return_mean"]
    assert evaluation["targets_ignored"]
    for name in ("alignment_error", "alignment_error_relative", "per_episode_error", "spearman"):
        assert evaluation[name] is None
    assert metrics["alignment_error"] is None
    assert any("predicts its own returns" in warning for warning in evaluation["warnings"])
    assert EvaluationResult.from_json(json.loads(json.dumps(evaluation))).to_json() == evaluation


def test_the_best_checkpoint_of_a_run_has_the_highest_return(
    ray_session: None, tmp_path: Path, pendulum_data: str
) -> None:
    values = {
        "algorithm": "Reinformer",
        "offline_data": {"dataset": pendulum_data},
        "rl_module": {"model_config": TINY},
        "training": {
            "gradient_steps": 6,
            "gradient_steps_per_iteration": 2,
            "train_batch_size_per_learner": 8,
        },
        "evaluation": {"episodes_per_target": 2, "evaluation_interval": 1},
    }
    folder = tmp_path / "run"
    runs.train(values, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    returns = [line["evaluation"]["targets"][0]["return_mean"] for line in lines]
    best = json.loads((folder / "evaluations" / "best.json").read_text())
    assert len(returns) == 3 and best["targets"][0]["return_mean"] == max(returns)
    page = write_report([folder], tmp_path / "report").read_text()
    assert "predicts its own returns" in page and "Alignment error" not in page
    shutil.copytree(folder, tmp_path / "twin")
    both = write_report([folder, tmp_path / "twin"], tmp_path / "both").read_text()
    assert "twin" in both and "Achieved against desired" not in both


def test_the_preset_and_its_file() -> None:
    config = build_config(read_yaml(Path(__file__).parents[2] / "tune_configs" / "reinformer_hopper.yaml"))
    assert isinstance(config, ReinformerConfig)
    model = config.sequence_model
    assert (model.backbone, model.context_length, model.target_rule) == ("reinformer", 5, "auto")
    assert (model.context_rule, model.shared_networks, model.return_expectile) == ("consecutive", False, 0.99)


def test_it_is_not_finetuned_online(pendulum_data: str) -> None:
    config = (
        OnlineDTConfig()
        .offline_data(dataset=pendulum_data)
        .rl_module(model_config={"backbone": "reinformer", "context_length": 4})
    )
    with pytest.raises(UserError, match=r"reinformer cannot be finetuned online.*algorithm: Reinformer"):
        config.validate()
