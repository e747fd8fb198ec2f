from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import build_model, edit_header, random_window
from safetensors.torch import load_file, save_file

from rayrl_dt.critics.training import new_critic
from rayrl_dt.data import staging
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.evaluate import evaluate_bundle
from rayrl_dt.interop import bundle
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.interop.critics import save_critic
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.serving.policy import SequencePolicy

MakeStore = Callable[..., TrajectoryStore]
SPACES: tuple[dict[str, int], ...] = ({}, {"actions": 4}, {"actions": 4, "first_action": -9})


def load_model(path: Path) -> SequenceModel:
    return Bundle.open(path).model


@pytest.fixture
def model(make_store: MakeStore) -> SequenceModel:
    return build_model(make_store())


@pytest.fixture
def saved(model: SequenceModel, tmp_path: Path) -> Path:
    return save_bundle(model.spec, model.state_dict(), tmp_path / "bundle")


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("as_arrays", [False, True])
def test_round_trip_is_bit_exact(
    make_store: MakeStore, tmp_path: Path, backbone: str, space: dict[str, int], as_arrays: bool
) -> None:
    model = build_model(make_store(**space), backbone=backbone, dropout=0.1)
    weights: dict[str, Any] = dict(model.state_dict())
    if as_arrays:
        weights = {name: value.numpy() for name, value in weights.items()}
    path = save_bundle(model.spec, weights, tmp_path / "a" / "b", command="rayrl-dt train", gradient_steps=7)
    again = Bundle.open(path).model
    assert not again.training
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    window = random_window(model, [6, 2])
    with torch.no_grad():
        assert torch.equal(again(window), model(window))
    header = Bundle.open(path).header
    assert (header["command"], header["gradient_steps"]) == ("rayrl-dt train", 7)
    assert {"python", "torch", "numpy", "rayrl_dt"} <= header["versions"].keys()


def test_files_are_json_and_safetensors_only(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["policy.json", "policy.safetensors"]
    json.loads((saved / "policy.json").read_text())
    weights = load_file(saved / "policy.safetensors")
    assert "observation_mean" in weights
    for path in saved.iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK")), "neither a pickle nor torch's zip of one"
    assert sorted(path.name for path in saved.parent.iterdir()) == ["bundle"], "nothing is left beside it"


def test_loading_runs_no_pickle(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a bundle must not be unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    load_model(saved)


def test_others_may_read_it(saved: Path) -> None:
    assert stat.S_IMODE(saved.stat().st_mode) & 0o500 == 0o500
    ordinary = saved.parent / "ordinary"
    ordinary.mkdir()
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
@pytest.mark.parametrize("name", ["policy.safetensors", "policy.json"])
def test_truncated_files_are_reported(saved: Path, name: str, keep: int) -> None:
    whole = (saved / name).read_bytes()
    (saved / name).write_bytes(whole[:keep])
    with pytest.raises(UserError, match=rf"{name}.*export the policy again") as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_reported(saved: Path, value: float) -> None:
    weights = load_file(saved / "policy.safetensors")
    name = sorted(weights)[0]
    weights[name].view(-1)[0] = value
    save_file(weights, saved / "policy.safetensors")
    with pytest.raises(UserError, match=f"NaN or infinite numbers in {name}"):
        load_model(saved)


def test_a_table_of_timesteps_without_a_length_is_reported(saved: Path) -> None:
    header = json.loads((saved / "policy.json").read_text())
    del header["spec"]["model"]["max_episode_steps"]
    (saved / "policy.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match="max_episode_steps is null"):
        load_model(saved)


def test_missing_weights_are_reported(saved: Path) -> None:
    (saved / "policy.safetensors").unlink()
    with pytest.raises(UserError, match=r"policy.safetensors is missing or truncated"):
        load_model(saved)


@pytest.mark.parametrize("path", [("spec", "model", "embed_dim"), ("spec", "model", "num_layers")])
def test_another_architecture_is_reported(saved: Path, path: tuple[str, ...]) -> None:
    edit_header(saved, path, lambda value: value * 2)
    with pytest.raises(UserError, match=r"another architecture: \S+ is (absent|\().*use the model_config"):
        load_model(saved)


def test_weights_of_another_model_are_reported(model: SequenceModel, make_store: MakeStore) -> None:
    other = build_model(make_store(), num_layers=1)
    for source, target in ((model, other), (other, model)):
        with pytest.raises(UserError, match=r"here holds another architecture: trunk.blocks.1.*absent"):
            bundle.load_weights(target, source.state_dict(), source="here")


def test_a_newer_format_asks_for_an_upgrade(saved: Path) -> None:
    edit_header(saved, ("format",), lambda value: value + 1)
    with pytest.raises(UserError, match=r"format 4, this version reads up to 3; upgrade rayrl_dt"):
        load_model(saved)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"spec": {}}', '{"format": 1}'])
def test_other_json_files_are_no_bundle(saved: Path, text: str) -> None:
    (saved / "policy.json").write_text(text)
    with pytest.raises(UserError, match=r"is not a policy bundle; .*rayrl-dt import"):
        load_model(saved)


@pytest.mark.parametrize("key", ["model", "normalizer", "return_scale", "action_space"])
def test_an_incomplete_policy_is_reported(saved: Path, key: str) -> None:
    header = json.loads((saved / "policy.json").read_text())
    del header["spec"][key]
    (saved / "policy.json").write_text(json.dumps(header))
    with pytest.raises(UserError, match=rf"not a whole policy \('{key}'\)"):
        load_model(saved)


def test_a_part_that_this_version_lacks_is_reported(saved: Path) -> None:
    edit_header(saved, ("spec", "model", "backbone"), lambda _: "mamba")
    with pytest.raises(UserError, match=r"backbone is 'mamba'"):
        load_model(saved)


def test_a_bundle_that_does_not_say_how_it_acts_is_whole(saved: Path) -> None:
    header = json.loads((saved / "policy.json").read_text())
    for name in ("acting_context_length", "action_selection"):
        del header["spec"][name]
    (saved / "policy.json").write_text(json.dumps(header))
    spec = Bundle.open(saved).model.spec
    assert (spec.acts_on, spec.action_selection) == (spec.model.context_length, None)
    edit_header(saved, ("spec", "acting_context_length"), lambda _: "five")
    with pytest.raises(UserError, match="cannot act on a context length of 'five'"):
        load_model(saved)


def to_format_1(folder: Path) -> None:
    """Rewrite a bundle to what was written before format 2: British names, and nothing on how it acts."""
    weights = load_file(folder / "policy.safetensors")
    renamed = {name.replace("summarize", "summarise"): value for name, value in weights.items()}
    save_file(renamed, folder / "policy.safetensors")
    header = json.loads((folder / "policy.json").read_text())
    spec = header["spec"]
    spec["normaliser"] = spec.pop("normalizer")
    for name in ("acting_context_length", "action_selection"):
        del spec[name]
    (folder / "policy.json").write_text(json.dumps({**header, "format": 1}))


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "radt"])
def test_bundles_of_format_1_act_as_before(make_store: MakeStore, tmp_path: Path, backbone: str) -> None:
    model = build_model(make_store(), backbone=backbone, context_length=1 if backbone == "mlp" else 4)
    path = save_bundle(model.spec, model.state_dict(), tmp_path / "bundle", gradient_steps=7)

    def actions() -> list[Any]:
        policy = SequencePolicy.load(path)
        policy.reset(None if backbone == "reinformer" else 1.0)
        observation = np.zeros(model.spec.observation_space.shape or (1,), np.float32)
        return [policy.act(observation + step, float(step) if step else None) for step in range(6)]

    before = actions()
    to_format_1(path)
    assert np.array_equal(actions(), before)
    assert Bundle.open(path).gradient_steps == 7
    critic = new_critic(model.spec, hidden=8, seed=0)
    save_critic(Bundle.open(path), critic.state_dict(), record={"steps": 1})
    again = Bundle.open(path)
    assert again.header["format"] == 1 and torch.equal(again.critic.value[0].weight, critic.value[0].weight)


def test_a_bundle_of_format_1_is_evaluated(make_store: MakeStore, tmp_path: Path) -> None:
    model = build_model(make_store(actions=2, observation_dim=4))
    path = save_bundle(model.spec, model.state_dict(), tmp_path / "bundle")
    options: dict[str, Any] = {"targets": "5,20", "episodes_per_target": 2, "env": "CartPole-v1"}
    before = evaluate_bundle(path, **options)
    to_format_1(path)
    assert evaluate_bundle(path, **options).targets == before.targets


def test_a_radt_of_format_1_is_to_be_trained_again(make_store: MakeStore, tmp_path: Path) -> None:
    model = build_model(make_store(), backbone="radt")
    path = save_bundle(model.spec, model.state_dict(), tmp_path / "bundle")
    to_format_1(path)
    with pytest.raises(UserError, match=r"RADT.*format 1.*train it again") as caught:
        Bundle.open(path)
    assert "\n" not in str(caught.value)


def test_it_is_read_once(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Bundle.open(saved)
    assert Bundle.open(opened) is opened and opened.model is opened.model
    for name in ("policy.json", "policy.safetensors"):
        (saved / name).unlink()
    assert opened.model.spec == opened.spec


@pytest.mark.parametrize("inside", [".", "policy"])
def test_finding_it(model: SequenceModel, tmp_path: Path, inside: str) -> None:
    path = save_bundle(model.spec, model.state_dict(), tmp_path / "run" / inside)
    assert Bundle.open(tmp_path / "run").folder.resolve() == path.resolve()
    assert Bundle.open(str(path)).folder.resolve() == path.resolve()


def test_no_other_folder_is_replaced(model: SequenceModel, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "models" / "old").mkdir(parents=True)
    (tmp_path / "models" / "old" / "weights").write_text("months of work")
    for write in (
        lambda folder: save_bundle(model.spec, model.state_dict(), folder),
        Bundle.open(saved).copy_to,
    ):
        with pytest.raises(
            UserError, match=r"models exists and holds no policy\.json, so it is not replaced; choose"
        ):
            write(tmp_path / "models")
        assert (tmp_path / "models" / "old" / "weights").read_text() == "months of work"


def test_a_bundle_is_replaced(model: SequenceModel, saved: Path) -> None:
    with torch.no_grad():
        model.head.bias.fill_(0.5)
    assert save_bundle(model.spec, model.state_dict(), saved, gradient_steps=2) == saved
    assert (Bundle.open(saved).model.head.bias == 0.5).all()
    assert Bundle.open(saved).header["gradient_steps"] == 2
    assert [path.name for path in saved.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("moment", "error"),
    [
        ("weights", OSError("disk full")),
        ("weights", KeyboardInterrupt()),
        ("header", OSError("disk full")),
        ("header", KeyboardInterrupt()),
        (1, OSError("moving the old one away")),
        (2, OSError("moving the new one in")),
    ],
)
def test_a_failure_leaves_the_old_bundle(
    model: SequenceModel,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str | int,
    error: BaseException,
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def fail(*_: Any, **__: Any) -> None:
        raise error

    if moment == "weights":
        monkeypatch.setattr(bundle, "save_file", fail)
    elif moment == "header":
        monkeypatch.setattr(json, "dumps", fail)
    else:
        # Where two folders cannot be exchanged. Rename number 0 tries to do it at once, which the old bundle prevents.
        monkeypatch.setattr(staging, "_exchanged", lambda *_: False)
        rename, calls = Path.rename, iter(range(10))
        monkeypatch.setattr(
            Path, "rename", lambda self, target: fail() if next(calls) == moment else rename(self, target)
        )
    with torch.no_grad():
        model.head.bias.fill_(0.5)
    with pytest.raises(type(error)):
        save_bundle(model.spec, model.state_dict(), saved)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    assert [path for path in saved.parent.rglob("*") if path.is_file() and path.parent != saved] == []


def test_a_first_bundle_that_fails_leaves_nothing(
    model: SequenceModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(bundle, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_bundle(model.spec, model.state_dict(), tmp_path / "run" / "policy")
    assert list((tmp_path / "run").iterdir()) == []


def test_weights_in_another_number_type_are_converted(saved: Path, model: SequenceModel) -> None:
    halves = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    save_bundle(model.spec, halves, saved)
    again = load_model(saved)
    assert again.head.weight.dtype == torch.float32
    np.testing.assert_allclose(again.head.weight.detach(), model.head.weight.detach(), rtol=1e-2, atol=1e-2)
