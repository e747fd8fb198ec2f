"""Plans of sweeps: what a file asks for, and what is refused before anything is scheduled."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayrl_dt.doctor.nodes import compare_storage
from rayrl_dt.errors import UserError
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.policy.double_check import DoubleCheck
from rayrl_dt.policy.guidance import Guidance
from rayrl_dt.policy.sampled_actions import SampledActions
from rayrl_dt.runs.config_files import build_config
from rayrl_dt.tuning.refinement_job import read_refinement_job
from rayrl_dt.tuning.sweep_checks import require_shared
from rayrl_dt.tuning.sweep_spec import _with_whole_paths, read_sweep

BASE: dict[str, Any] = {
    "algorithm": "OnlineDT",
    "offline_data": {"dataset": "recipe:pendulum-mixed"},
    "online": {"alpha": {"loguniform": [0.01, 1.0]}, "actor_interval": {"choice": [1, 2]}},
    "evaluation": {"target_returns": [-150]},
    "tune": {"num_samples": 4, "metric": "evaluation/return_mean"},
}


def planned(**changes: Any) -> Any:
    return read_sweep({**BASE, **changes}, default_name="test")


def tuned(**settings: Any) -> dict[str, Any]:
    return {"tune": {**BASE["tune"], **settings}}


def test_a_plan_has_the_spaces_and_evaluates_in_every_iteration() -> None:
    spec = planned()
    assert [space.path for space in spec.spaces] == ["online.alpha", "online.actor_interval"]
    assert spec.name == "test" and spec.settings.best == "max" and spec.settings.num_samples == 4
    assert spec.at({})["evaluation"] == {"target_returns": [-150], "evaluation_interval": 1}
    assert spec.at({})["online"] == {"alpha": 0.01, "actor_interval": 1}
    assert [corner["online"]["alpha"] for corner in spec.corners] == [0.01, 1.0, 0.01]
    assert [corner["online"]["actor_interval"] for corner in spec.corners] == [1, 1, 2]
    assert "tune" not in spec.param_space


def test_the_files_own_evaluation_interval_stays() -> None:
    assert planned(evaluation={"evaluation_interval": 10}).values["evaluation"] == {"evaluation_interval": 10}


def test_policies_that_are_asked_for_nothing_are_compared_by_their_returns() -> None:
    reinformer = {
        "algorithm": "Reinformer",
        "offline_data": BASE["offline_data"],
        "training": {"lr": {"choice": [1e-3, 1e-4]}},
        "tune": {"scheduler": "asha"},
    }
    assert read_sweep(reinformer, default_name="test").settings.metric == "evaluation/return_mean"
    asked = {**reinformer, "rl_module": {"model_config": {"target_rule": "decrement"}}}
    assert read_sweep(asked, default_name="test").settings.metric == "evaluation/alignment_error"
    with pytest.raises(UserError, match="are asked for none; set evaluation/return_mean"):
        read_sweep({**reinformer, "tune": {"metric": "evaluation/alignment_error"}}, default_name="test")


def test_what_a_sweep_left_is_the_sweep() -> None:
    for changes in ({}, tuned(seeds=[3, 5], scheduler="asha"), {"name": "mine"}):
        spec = planned(**changes)
        assert read_sweep(yaml.safe_load(spec.to_yaml()), default_name="other").to_yaml() == spec.to_yaml()


def test_paths_mean_the_same_to_trials_with_working_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("poor", "data", "other", "recipe:pendulum-mixed"):
        (tmp_path / name).mkdir()
    choice = {"choice": ["poor", "absent", str(tmp_path / "poor")]}
    values = {"online": {**BASE["online"], "start_from": "poor"}, "training": {"critic_from": choice}}
    whole = _with_whole_paths(
        {**values, "offline_data": {"dataset": {"grid": ["store:data", "dqn-replay:other#seed=1"]}}}
    )
    assert whole["online"] == {**BASE["online"], "start_from": str(tmp_path / "poor")}
    assert whole["training"] == {
        "critic_from": {"choice": [str(tmp_path / "poor"), "absent", str(tmp_path / "poor")]}
    }
    assert whole["offline_data"]["dataset"] == {
        "grid": [f"store:{tmp_path / 'data'}", f"dqn-replay:{tmp_path / 'other'}#seed=1"]
    }
    nothing = {"offline_data": {"dataset": "store:"}}
    assert _with_whole_paths(nothing) == nothing
    assert _with_whole_paths(BASE) == BASE and planned().values["online"] == BASE["online"]


def test_seeds_are_a_grid() -> None:
    spec = planned(**tuned(seeds=[3, 5]))
    assert spec.param_space["debugging"] == {"seed": {"grid_search": [3, 5]}}
    assert spec.settings.seeds == (3, 5)


def test_the_mode_is_what_the_metric_means_unless_given() -> None:
    assert planned(**tuned(metric="evaluation/alignment_error")).settings.best == "min"
    assert planned(**tuned(metric="evaluation/alignment_error", mode="max")).settings.best == "max"


def test_samples_override_the_file() -> None:
    assert read_sweep(BASE, default_name="test", samples=9).settings.num_samples == 9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (tuned(sampels=3), "tune has no key 'sampels'.*num_samples"),
        (tuned(metric="evaluation/retrun_mean"), "no iteration reports.*evaluation/return_mean"),
        (tuned(metric="loss"), "no iteration reports.*Allowed"),
        ({"evaluation": {"evaluation_interval": 0}}, "no iteration would report"),
        (tuned(scheduler="ahsa"), "Did you mean 'asha'"),
        (tuned(search="grid"), "tune.search is 'grid'"),
        (tuned(mode="best"), "tune.mode"),
        (tuned(num_samples=0), "num_samples is 0.*at least 1"),
        (tuned(max_concurrent=0.5), "max_concurrent is 0.5"),
        (tuned(max_failures=-1), "max_failures is -1"),
        (tuned(grace_period=True), "grace_period is True"),
        (tuned(seeds=[1, 1]), r"tune.seeds is \[1, 1\]"),
        (tuned(seeds=[]), "tune.seeds"),
        (tuned(seeds=2), "tune.seeds is 2"),
        ({**tuned(seeds=[0]), "debugging": {"seed": {"choice": [0, 1]}}}, "twice"),
        ({"tune": None}, "section tune"),
        ({"tune": [1]}, "section tune"),
        ({"online": {"alpha": 0.1}}, "there is no search space.*rayrl-dt train"),
        ({"onlin": {}}, "Did you mean 'online'"),
        ({"online": {"alhpa": {"uniform": [0, 1]}}}, "Did you mean 'alpha'"),
        ({"training": {"lr": {"uniform": [-1, 1]}}}, "training.lr is -1"),
        ({"evaluation": {"action_selection": {"choice": ["auto", "mod"]}}}, "action_selection is 'mod'"),
        (tuned(loggers="wandb"), "list names"),
        (tuned(loggers=["wandb", "mlfow"]), "Did you mean 'mlflow'"),
        ({"run": "runs/x"}, "both run and algorithm"),
        (tuned(scheduler="pbt", seeds=[0, 1]), "one population.*remove tune.seeds"),
        ({**tuned(scheduler="pbt"), "training": {"lr": {"grid": [1e-3, 1e-4]}}}, "cannot mutate a grid"),
        (
            {
                "rl_module": {
                    "model_config": {"embed_dim": {"grid": [24, 16]}, "num_heads": {"grid": [1, 3]}},
                }
            },
            "embed_dim 16 is not a multiple of num_heads 3",
        ),
        (
            {"training": {"train_batch_size_per_learner": {"uniform": [16, 64]}}},
            r"lies between, too: .*whole number.*; list its values \(choice\), or write randint",
        ),
        (
            {"training": {"train_batch_size_per_learner": {"quniform": [16, 64, 0.5]}}},
            r"train_batch_size_per_learner is 16.5; it must be a whole number",
        ),
        (
            {
                "training": {"train_batch_size_per_learner": {"randint": [60, 65]}},
                "online": {"critic_updates_per_actor": 4},
            },
            r"\{randint: \[60, 65\]\}, which draws what lies between, too: .*cannot be cut",
        ),
        (
            {
                **tuned(seeds=list(range(300))),
                "rl_module": {
                    "model_config": {"embed_dim": {"grid": [24, 16]}, "num_heads": {"grid": [1, 3]}}
                },
            },
            "embed_dim 16 is not a multiple of num_heads 3",
        ),
        (
            {"online": {"critic_width": {"loguniform": [16, 64]}}},
            r"critic_width is {loguniform: \[16, 64\]}, which draws what lies between, too",
        ),
        (tuned(scheduler="pbt", num_samples=1), "needs a population"),
        (
            {**tuned(scheduler="pbt"), "rl_module": {"model_config": {"embed_dim": {"choice": [8, 16]}}}},
            "rl_module.model_config.embed_dim must not change",
        ),
        *(
            (
                {**tuned(scheduler="pbt"), section: {key: {"choice": list(options)}}},
                f"hang on {section}.{key}",
            )
            for section, key, *options in (
                ("online", "critic_width", 64, 128),
                ("online", "pretrain_steps", 100, 200),
                ("training", "decayed", "all", "weights"),
                ("online", "critic_layer_norm", True, False),
                ("online", "optimizer", "lamb", "adamw"),
                ("online", "rl_gradient", "td3", "none"),
                ("online", "reward_scale", "auto", 10.0),
                ("online", "action_regularization", 0.0, 0.1),
                ("training", "return_scale", 1.0, 10.0),
            )
        ),
    ],
)
def test_a_wrong_sweep_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned(**changes)


REFINING: dict[str, Any] = {
    "run": "runs/x",
    "evaluation": {
        "target_returns": [-150, -300],
        "action_gradient": {"eta": {"grid": [0.1, 1]}, "n": {"randint": [1, 9]}, "rule": "adam"},
    },
    "tune": {"num_samples": 3, "metric": "evaluation/return_mean", "seeds": [4, 5]},
}


def test_a_file_that_names_a_run_only_evaluates_it() -> None:
    spec = read_sweep(REFINING, default_name="test")
    assert spec.run == str(Path("runs/x").resolve()) and spec.expected == 12
    job = read_refinement_job(spec.corners[0])
    assert (job.targets, job.episodes, job.env, job.seed) == ("-150,-300", 10, None, 4)
    assert job.settings == ActionGradient(eta=0.1, n=1, rule="adam")
    options = shlex.split(job.command)
    assert options[:3] == ["rayrl-dt", "eval", spec.run] and "--targets=-150,-300" in options
    assert ActionGradient.parse(options[-1]) == job.settings
    with pytest.raises(UserError, match="rayrl-dt tune"):
        build_config(spec.corners[0])
    others: list[tuple[Any, dict[str, Any]]] = [
        (SampledActions, {"n": 5, "noise": 0.2}),
        (DoubleCheck, {"n": 5, "spread": 0.1, "mode": "max"}),
    ]
    for way, values in others:
        other = read_refinement_job({"run": "runs/x", "evaluation": {way.section: values}})
        how, text = shlex.split(other.command)[-2:]
        assert how == f"--{way.section.replace('_', '-')}"
        assert way.parse(text) == other.settings == way.read(values)
    guided = read_refinement_job({"run": "runs/x", "evaluation": {"guidance": 2.5}})
    assert guided.settings == Guidance(2.5) and shlex.split(guided.command)[-2:] == ["--guidance", "2.5"]
    with pytest.raises(UserError, match="search one of them at a time"):
        read_refinement_job({"run": "runs/x", "evaluation": {"guidance": 2.5, "sampled_actions": 5}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": 3}, "run is 3; name a run folder"),
        ({"training": {"lr": 1}}, "unknown section 'training' beside run"),
        ({"evaluation": {"action_gradient": {"n": {"grid": [1, -1]}}}}, "n is -1"),
        ({"evaluation": {"action_gradient": {"ruel": {"grid": ["adam"]}}}}, "Did you mean 'rule'"),
        ({"evaluation": {"sampled_actions": {"grid": [1, -2]}}}, "n is -2"),
        ({"evaluation": {"sampled_actions": {"grid": [1, 2]}, "action_gradient": {"n": 1}}}, "choose one"),
        ({"evaluation": {"double_check": {"n": {"grid": [1, 0]}}}}, "double_check.n is 0"),
        ({"evaluation": {"action_gradient": 3}, "debugging": {"seed": 0}}, "action_gradient is 3"),
        ({"evaluation": {"interval": 2}}, "no key 'interval' beside run"),
        ({"evaluation": {"episodes_per_target": {"grid": [1, 0]}}}, "episodes_per_target is 0"),
        ({"evaluation": {}, "tune": {}}, "no search space"),
        ({"tune": {"scheduler": "asha"}}, "reports once"),
    ],
)
def test_a_wrong_sweep_of_a_run_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_sweep({**REFINING, **changes}, default_name="test")


@pytest.mark.parametrize("logger", ["wandb", "mlflow"])
def test_loggers_are_asked_for_where_they_are_missing(logger: str) -> None:
    if importlib.util.find_spec(logger) is not None:
        assert planned(**tuned(loggers=[logger])).settings.loggers == (logger,)
        return
    with pytest.raises(UserError, match=rf"pip install 'rayrl_dt\[{logger}\]'"):
        planned(**tuned(loggers=[logger]))


@pytest.mark.skipif(importlib.util.find_spec("optuna") is not None, reason="optuna is installed")
def test_optuna_is_asked_for_where_it_is_missing() -> None:
    with pytest.raises(UserError, match=r"pip install 'rayrl_dt\[optuna\]'"):
        planned(**tuned(search="optuna"))


def test_optuna_knows_no_grids() -> None:
    pytest.importorskip("optuna")
    assert planned(**tuned(search="optuna")).settings.search == "optuna"
    with pytest.raises(UserError, match="no grids"):
        planned(**tuned(search="optuna"), training={"lr": {"grid": [1e-3, 1e-4]}})
    with pytest.raises(UserError, match="remove it, or set search: random"):
        planned(**tuned(search="optuna", seeds=[0, 1]))
    with pytest.raises(UserError, match="pbt"):
        planned(**tuned(search="optuna", scheduler="pbt"))


def test_storage_that_the_nodes_do_not_share_is_refused_by_name() -> None:
    wrote, unread = {"head": None, "worker 3f": None}, {"head": [], "worker 3f": ["head"]}
    with pytest.raises(
        UserError, match=r"/home/out is not shared by all nodes \(worker 3f does not see.*choose an --out"
    ):
        require_shared(Path("/home/out"), compare_storage(Path("/home/out"), wrote, unread))
    require_shared(Path("/shared"), compare_storage(Path("/shared"), wrote, {"head": [], "worker 3f": []}))
