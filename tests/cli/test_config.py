"""`rayrl-dt config`: nothing that a config file may have is missing, and the file it writes changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest
import yaml

from rayrl_dt.cli.config_reference import reference
from rayrl_dt.cli.config_template import template
from rayrl_dt.errors import UserError
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.runs.config_files import ALGORITHMS, SECTIONS, build_config

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_reference_has_every_key_and_says_what_ours_are(algorithm: str) -> None:
    sections = {section.name: section for section in reference(algorithm)}
    for name in SECTIONS:
        accepted = ALGORITHMS[algorithm].keywords(name)
        listed = [key.name for key in sections[name].keys] if name in sections else []
        assert sorted(listed) == sorted(accepted), name
    ours = [key for section in sections.values() for key in section.keys if key.ours]
    undescribed = [key.name for key in ours if not key.description]
    assert not undescribed
    model = next(key for key in sections["rl_module"].keys if key.name == "model_config")
    assert {key.name for key in model.inner} == {field.name for field in fields(ModelConfig)}
    assert all(key.description for key in model.inner)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_file_with_all_defaults_builds_the_config_without_them(algorithm: str) -> None:
    values = yaml.safe_load(template(algorithm))
    data = {"dataset": values["offline_data"]["dataset"]}
    built = [build_config(file) for file in (values, {"algorithm": algorithm, "offline_data": data})]
    full, plain = (config.to_dict() for config in built)
    # The model's choices are written out, the rest is the same.
    for config in (full, plain):
        config["model_config"] = config["_model_config"] = None
    assert full == plain and built[0].sequence_model == built[1].sequence_model
    assert len(values["training"]) > 12
    assert len(values["rl_module"]["model_config"]) == len(fields(ModelConfig))


def test_keys_behind_a_mark_are_yaml_too() -> None:
    lines = (line.replace("#", "", 1) for line in template("OnlineDT").splitlines() if "# " not in line[:8])
    values = yaml.safe_load("\n".join(lines))
    assert values["env_runners"]["num_env_runners"] == 0 and values["debugging"]["seed"] == 0
    assert values["evaluation"]["action_gradient"] == {
        "eta": 0.03,
        "n": 10,
        "rule": "plain",
        "zeta1": 0.9,
        "zeta2": 0.999,
        "epsilon": 1e-8,
        "form": "printed",
    }
    assert values["tune"]["scheduler"] == "none"


def test_config_prints_keys_defaults_and_descriptions(run: Run) -> None:
    status, out, err = run("config", "TD3BC")
    assert status == 0, err
    words = " ".join(out.split())
    assert "alpha: 2.5 weight of the normalized values beside the squared error; 0 is behavior" in words
    assert "backbone: mlp" in out and "RLlib's own" in out
    for name in SECTIONS:
        for key in ALGORITHMS["TD3BC"].keywords(name):
            assert f" {key}:" in out
    status, out, _ = run("config")
    assert status == 0 and all(f" {algorithm} " in out for algorithm in ALGORITHMS)
    status, out, _ = run("config", "TD3BC", "evaluation", "training")
    assert status == 0 and " target_returns:" in out and " alpha:" in out and " top_percent:" not in out
    status, out, _ = run("config", "TD3BC", "--yaml")
    assert status == 0 and out == template("TD3BC")


_SECTIONS = (
    (("DT", "trainin"), "Did you mean 'training'"),
    (("DT", "training", "--yaml"), "--yaml writes every section"),
)


def test_config_refuses_what_it_does_not_know(run: Run) -> None:
    for arguments, message in (
        (("OnlineDTT",), "Did you mean 'OnlineDT'"),
        (("--yaml",), "name it"),
        *_SECTIONS,
    ):
        status, _, err = run("config", *arguments)
        assert status == 2 and err.startswith("error: ") and message in err
        assert len(err.strip().splitlines()) == 1


def test_keys_that_rllib_has_given_up_are_no_keys() -> None:
    values = {
        "algorithm": "DT",
        "offline_data": {"dataset": "recipe:x"},
        "fault_tolerance": {"ignore_worker_failures": True},
    }
    with pytest.raises(UserError, match="fault_tolerance has no key 'ignore_worker_failures'"):
        build_config(values)
