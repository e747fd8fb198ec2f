"""Training in the light of a frozen critic, through RLlib: it counts, stays as it is, and is part of the run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from rayrl_dt import ReinformerConfig, UserError
from rayrl_dt.algorithms.online.algorithm import OnlineDTConfig
from rayrl_dt.critics.training import CriticTraining
from rayrl_dt.data.sources import load
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.interop.critics import add_critic
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.runs import loop as runs

pytestmark = pytest.mark.ray

SMALL = CriticTraining(steps=20, batch_size=16, hidden=16)
TINY = {"context_length": 4, "embed_dim": 16, "num_layers": 1, "num_heads": 2}


def judged_policy(dataset: str, folder: Path) -> str:
    """An untrained policy with a critic, as a bundle."""
    spec = PolicySpec.from_store(ModelConfig.from_dict(TINY), load(dataset), return_scale=None)
    path = save_bundle(spec, SequenceModel(spec).state_dict(), folder)
    add_critic(path, training=SMALL, dataset=dataset)
    return str(path)


@pytest.fixture(scope="module")
def critic(pendulum_data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return judged_policy(pendulum_data, tmp_path_factory.mktemp("judge") / "policy")


def weights(algorithm: Any) -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.asarray(value) for name, value in algorithm.policy_state().items()}


def critic_weights(algorithm: Any) -> dict[str, np.ndarray[Any, Any]]:
    state = algorithm.learner_group.get_weights()["default_policy"]
    return {name: np.asarray(value) for name, value in state.items() if name.startswith("critic.")}


def finish(algorithm: Any) -> dict[str, np.ndarray[Any, Any]]:
    while not algorithm.done:
        algorithm.train()
    found = weights(algorithm)
    algorithm.stop()
    return found


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("backbone", ["DT", "RADT", "Reinformer"])
@pytest.mark.parametrize(
    "objective",
    [
        {"objective": "pg"},
        {"objective": "pg", "pg_weighting": "adaptive"},
        {"objective": "awac", "awac_temperature": 0.5},
    ],
)
def test_it_counts_and_a_checkpoint_needs_nothing_but_itself(
    tiny: Callable[..., Any],
    pendulum_data: str,
    tmp_path: Path,
    critic: str,
    backbone: str,
    objective: dict[str, Any],
) -> None:
    own = tmp_path / "own"
    shutil.copytree(critic, own)

    def configured(**training: Any) -> Any:
        config = tiny(pendulum_data, steps=8, algorithm="RADT" if backbone == "RADT" else "DT")
        if backbone == "Reinformer":
            config = ReinformerConfig().update_from_dict(
                {**config.to_dict(), "model_defaults": ReinformerConfig().model_defaults}
            )
        return config.training(**training)

    plain = finish(configured().build_algo())
    judged = configured(**objective, critic_from=str(own))
    whole = judged.build_algo()
    given = Bundle.open(own).critic.state_dict()
    half = judged.build_algo()
    result = half.train()["learners"]["default_policy"]
    assert np.isfinite(result["q_mean"]) and result["bc_loss"] > 0
    half.save_to_path(str(tmp_path / "half"))
    half.stop()
    shutil.rmtree(own)
    resumed = type(whole).from_checkpoint(os.path.relpath(tmp_path / "half"))  # relative, too
    assert all(np.array_equal(given[name[7:]], value) for name, value in critic_weights(resumed).items())
    assert len(critic_weights(resumed)) == len(given)
    # Env runners act without it.
    assert not any(name.startswith("critic") for name in whole.env_runner.module.get_state())
    after = finish(whole)
    assert same(after, finish(resumed)) and not same(after, plain)


def test_a_weight_of_zero_is_no_critic(tiny: Callable[..., Any], pendulum_data: str, critic: str) -> None:
    plain = finish(tiny(pendulum_data, steps=4).build_algo())
    silent = tiny(pendulum_data, steps=4).training(objective="pg", pg_weight=0, critic_from=critic)
    assert same(plain, finish(silent.build_algo()))


@pytest.mark.parametrize("frozen", [True, False])
def test_q_align_counts_and_resumes_and_its_critic_is_the_bundles(
    tiny: Callable[..., Any], pendulum_data: str, tmp_path: Path, critic: str, frozen: bool
) -> None:
    """With a critic that is given, which stays; or with one that is trained, which acting finds beside the policy."""
    options = {"align_start": 0.25, **({"critic_from": critic} if frozen else {"align_critic_width": 16})}

    def configured(weight: float) -> Any:
        return tiny(pendulum_data, steps=8).training(objective="q_align", align_weight=weight, **options)

    plain = finish(tiny(pendulum_data, steps=8).build_algo())
    assert same(plain, finish(configured(0.0).build_algo()))
    half = configured(3.0).build_algo()
    before = critic_weights(half)
    logged = half.train()["learners"]["default_policy"]
    assert {"bc_loss", "q_mean", "align_loss", "align_agreement", "align_slope"} <= logged.keys()
    assert ("critic_loss" in logged) != frozen
    half.save_to_path(str(tmp_path / "half"))
    assert same(before, critic_weights(half)) == frozen
    bundle = Bundle.open(tmp_path / "half")
    if not frozen:
        assert bundle.header["critic"]["reward_scale"] == half.policy_spec.reward_scale
        own = {name: value.numpy() for name, value in bundle.critic.q.state_dict().items()}
        assert same(own, {name[7:]: value for name, value in critic_weights(half).items()})
    resumed = type(half).from_checkpoint(str(tmp_path / "half"))
    after = finish(half)
    assert same(after, finish(resumed)) and not same(after, plain)


def test_two_learners_leave_the_critic_alone(
    tiny: Callable[..., Any], pendulum_data: str, critic: str
) -> None:
    config = tiny(pendulum_data, steps=4).training(objective="pg", critic_from=critic)
    algorithm = config.learners(num_learners=2).build_algo()
    before, given = weights(algorithm), Bundle.open(critic).critic.state_dict()
    algorithm.train()
    assert all(np.array_equal(given[name[7:]], value) for name, value in critic_weights(algorithm).items())
    assert not same(before, weights(algorithm))
    algorithm.stop()


def test_a_run_keeps_its_own_copy(ray_session: None, pendulum_data: str, critic: str, tmp_path: Path) -> None:
    values = {
        "algorithm": "DT",
        "offline_data": {"dataset": pendulum_data},
        "rl_module": {"model_config": TINY},
        "training": {
            "gradient_steps": 8,
            "gradient_steps_per_iteration": 4,
            "train_batch_size_per_learner": 8,
            "objective": "pg",
            "critic_from": str(tmp_path / "judge"),
        },
        "evaluation": {"target_returns": "dataset:1", "episodes_per_target": 1, "evaluation_interval": 1},
    }
    shutil.copytree(critic, tmp_path / "judge")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    runs.train(values, whole)
    runs.train({**values, "training": {**values["training"], "gradient_steps": 4}}, broken)
    shutil.rmtree(tmp_path / "judge")
    assert runs.train(values, broken, resume=True).gradient_steps == 8
    found = [load_file(str(folder / "policy" / "policy.safetensors")) for folder in (whole, broken)]
    assert same(*found)
    lines = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert all({"bc_loss", "q_mean"} <= line.keys() for line in lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "pgg"}, "Did you mean 'pg'"),
        ({"objective": "pg"}, "rayrl-dt critic RUN, and set training.critic_from"),
        ({"objective": "awac"}, "rayrl-dt critic RUN, and set training.critic_from"),
        ({"critic_from": "runs/x"}, "imitation asks no critic; remove it"),
        ({"objective": "pg", "critic_from": "runs/x", "pg_weight": -0.5}, "pg_weight is -0.5"),
        ({"objective": "pg", "critic_from": "runs/x", "pg_weight": float("nan")}, "pg_weight is nan"),
        ({"objective": "awac", "critic_from": "runs/x", "awac_temperature": 0}, "awac_temperature is 0"),
        ({"objective": "awac", "critic_from": "runs/x", "awac_cap": "big"}, "awac_cap is 'big'"),
        ({"objective": "pg", "critic_from": "runs/gone"}, "runs/gone does not exist"),
        (
            {"objective": "pg", "critic_from": "x", "pg_floor": 0.5},
            "pg_floor is 0.5.*set training.pg_weighting: adaptive",
        ),
        ({"objective": "q_align", "align_weight": -1}, "align_weight is -1"),
        ({"objective": "q_align", "align_shift": "far"}, "align_shift is 'far'.*or auto"),
        *(
            (
                {"objective": "q_align", "critic_from": "x", name: value},
                f"{name} is {value}, and nothing reads it with training.critic_from.*or remove training.critic_from",
            )
            for name, value in {
                "align_target_shift": 3.0,
                "align_gamma": 0.9,
                "align_polyak": 0.1,
                "align_critic_lr": 0.01,
                "align_critic_width": 16,
            }.items()
        ),
        ({"objective": "q_align", "align_low": 5.0, "align_high": 1.0}, "align_low is 5 and align_high 1"),
        (
            {"align_margin": 0.5},
            "align_margin is 0.5, and nothing reads it with .*set training.objective: q_align",
        ),
    ],
)
def test_bad_values_are_refused(
    tiny: Callable[..., Any], pendulum_data: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tiny(pendulum_data).training(**options).build_algo()


def test_what_does_not_fit_is_refused(
    tiny: Callable[..., Any], pendulum_data: str, cartpole_data: str, critic: str, tmp_path: Path
) -> None:
    objective = {"objective": "pg", "critic_from": critic}
    with pytest.raises(UserError, match=r"objective pg needs continuous actions.*objective: imitation"):
        tiny(cartpole_data).training(**objective).build_algo()
    with pytest.raises(UserError, match=r"objective q_align needs continuous actions.*objective: imitation"):
        tiny(cartpole_data).training(objective="q_align").build_algo()
    data = load(pendulum_data)
    half = data.__class__.from_trajectories([data.trajectory(1)], data.info)
    with pytest.raises(UserError, match=r"they are all about .*align_shift"):
        tiny(f"store:{half.save(tmp_path / 'one')}").training(objective="q_align").build_algo()
    with pytest.raises(UserError, match="another normalizer"):
        tiny(f"store:{half.save(tmp_path / 'other')}").training(**objective).build_algo()
    online = OnlineDTConfig().offline_data(dataset=pendulum_data).training(**objective)
    with pytest.raises(UserError, match=r"training on logged data alone.*online.rl_gradient"):
        online.validate()
