"""The critic of a bundle: what is kept, what is refused, which data it learns from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from builders import build_model, edit_header

from rayrl_dt.critics.networks import IQLCritic, units_of
from rayrl_dt.critics.training import CriticTraining, new_critic
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import TrainingDiverged, UserError
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.interop.critics import add_critic, run_data, save_critic
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.types import Normalizer

MakeStore = Callable[..., TrajectoryStore]
SMALL = CriticTraining(steps=5, batch_size=8, hidden=16, precision="fp32")


def load_critic(path: Path) -> IQLCritic:
    return Bundle.open(path).critic


@pytest.fixture
def store(make_store: MakeStore) -> TrajectoryStore:
    return make_store()


@pytest.fixture
def model(store: TrajectoryStore) -> SequenceModel:
    return build_model(store)


@pytest.fixture
def saved(model: SequenceModel, tmp_path: Path) -> Path:
    return save_bundle(model.spec, model.state_dict(), tmp_path / "run" / "policy", gradient_steps=7)


@pytest.fixture
def critic(model: SequenceModel) -> IQLCritic:
    return new_critic(model.spec, hidden=16, seed=3)


def test_round_trip(saved: Path, model: SequenceModel, critic: IQLCritic) -> None:
    assert save_critic(Bundle.open(saved.parent), critic.state_dict(), record={"steps": 5}) == saved
    again = load_critic(saved)
    assert all(torch.equal(again.state_dict()[name], value) for name, value in critic.state_dict().items())
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert sorted(path.name for path in saved.iterdir()) == [
        "critic.safetensors",
        "policy.json",
        "policy.safetensors",
    ]
    header = Bundle.open(saved).header
    assert header["critic"] == {"steps": 5, "units": units_of(model.spec)} and header["gradient_steps"] == 7
    assert torch.equal(Bundle.open(saved).model.head.bias, model.head.bias)
    assert [path.name for path in saved.parent.iterdir()] == ["policy"]


def test_a_critic_is_replaced(saved: Path, model: SequenceModel, critic: IQLCritic) -> None:
    save_critic(
        Bundle.open(saved), new_critic(model.spec, hidden=8, seed=1).state_dict(), record={"steps": 1}
    )
    save_critic(Bundle.open(saved), critic.state_dict(), record={"steps": 2})
    assert Bundle.open(saved).header["critic"]["steps"] == 2
    assert torch.equal(load_critic(saved).value[0].weight, critic.value[0].weight)


def test_a_bundle_without_a_critic_says_how_to_get_one(saved: Path) -> None:
    with pytest.raises(UserError, match=r"has no critic.*train one: rayrl-dt critic"):
        load_critic(saved)


def test_a_discrete_policy_is_refused(make_store: MakeStore, tmp_path: Path) -> None:
    model = build_model(make_store(actions=4))
    path = save_bundle(model.spec, model.state_dict(), tmp_path / "discrete")
    for refused in (lambda: load_critic(path), lambda: add_critic(path, training=SMALL)):
        with pytest.raises(UserError, match="continuous actions"):
            refused()


@pytest.mark.parametrize("what", ["mean", "std", "action_low"])
def test_a_critic_of_other_units_is_refused(
    saved: Path, model: SequenceModel, critic: IQLCritic, tmp_path: Path, what: str
) -> None:
    save_critic(Bundle.open(saved), critic.state_dict(), record={})
    spec, normalizer = model.spec, model.spec.normalizer
    changed = {
        "mean": replace(spec, normalizer=Normalizer(normalizer.mean + np.float32(1e-3), normalizer.std)),
        "std": replace(spec, normalizer=Normalizer(normalizer.mean, normalizer.std * np.float32(2))),
        "action_low": replace(spec, action_low=tuple(low - 0.5 for low in spec.action_low)),
    }[what]
    with pytest.raises(UserError, match=r"another normalizer or other action bounds.*rayrl-dt critic"):
        Bundle.open(saved).critic_for(changed)
    # A file that was copied into another policy's bundle brings its own fingerprint.
    other = save_bundle(changed, SequenceModel(changed).state_dict(), tmp_path / "other")
    shutil.copy(saved / "critic.safetensors", other)
    with pytest.raises(UserError, match="another normalizer"):
        load_critic(other)


def test_a_truncated_critic_is_reported(saved: Path, model: SequenceModel, critic: IQLCritic) -> None:
    save_critic(Bundle.open(saved), critic.state_dict(), record={})
    file = saved / "critic.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"truncated.*train it again"):
        load_critic(saved)


def test_training_puts_it_into_the_bundle(saved: Path, store: TrajectoryStore, tmp_path: Path) -> None:
    source = f"store:{store.save(tmp_path / 'data')}"
    seen: list[tuple[int, int]] = []
    found = add_critic(
        saved.parent,
        training=SMALL,
        seed=4,
        dataset=source,
        command="rayrl-dt critic",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert found == saved and seen == [(5, 5)]
    record = Bundle.open(saved).header["critic"]
    assert (record["seed"], record["dataset"], record["command"]) == (4, source, "rayrl-dt critic")
    # No "auto" is left.
    assert record.items() >= {**SMALL.to_json(), "reward_scale": Bundle.open(saved).spec.reward_scale}.items()
    before = load_critic(saved).state_dict()
    with pytest.raises(TrainingDiverged):
        add_critic(saved, training=replace(SMALL, steps=100, lr=1e30), dataset=source)
    assert all(torch.equal(load_critic(saved).state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("inside", [".", "policy", "checkpoints/000000010/policy"])
def test_the_runs_own_data_are_used(
    store: TrajectoryStore, model: SequenceModel, tmp_path: Path, inside: str
) -> None:
    data, run = store.save(tmp_path / "data"), tmp_path / "run"
    bundle = save_bundle(model.spec, model.state_dict(), run / inside)
    limit = float(np.median(store.episode_returns))
    section = {"dataset": f"store:{data}", "below_return": limit, "top_percent": None, "delayed_reward": True}
    (run / "config.yaml").write_text(yaml.safe_dump({"offline_data": section}))
    (run / "run.json").write_text(json.dumps({}))
    found = run_data(Bundle.open(bundle))
    assert 0 < found.num_episodes < store.num_episodes and found.delayed_reward
    assert (found.episode_returns < limit).all()
    edit_header(bundle, ("spec", "dataset"), lambda _: section["dataset"])
    spec = Bundle.open(bundle).spec
    for copy in (
        # Of a bundle that leaves it to the run, as older versions wrote them, and of one that knows.
        Bundle.open(bundle).copy_to(tmp_path / "copy"),
        save_bundle(spec, model.state_dict(), tmp_path / "known", offline_data=section),
    ):
        again = run_data(Bundle.open(copy))
        assert np.array_equal(again.episode_returns, found.episode_returns) and again.delayed_reward
        assert "dataset" not in Bundle.open(copy).header["offline_data"], "the specification says it"


@pytest.mark.parametrize(
    ("name", "value"),
    [("below_return", "low"), ("top_percent", 0), ("delayed_reward", "no"), ("top_percent", [])],
)
def test_a_filter_that_cannot_be_is_reported(
    model: SequenceModel, tmp_path: Path, name: str, value: object
) -> None:
    bundle = save_bundle(model.spec, model.state_dict(), tmp_path, offline_data={name: value})
    with pytest.raises(UserError, match=rf"offline_data\.{name} is ") as caught:
        run_data(Bundle.open(bundle))
    assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("here", [True, False])
def test_a_policy_of_all_its_data_gets_all_of_them(
    store: TrajectoryStore, model: SequenceModel, tmp_path: Path, here: bool
) -> None:
    data = store.save(tmp_path / "data")
    spec = replace(model.spec, dataset=f"store:{data if here else tmp_path / 'gone'}")
    bundle = Bundle.open(save_bundle(spec, model.state_dict(), tmp_path / "bundle"))
    if here:
        assert run_data(bundle).num_steps == store.num_steps
        return
    with pytest.raises(UserError, match="--dataset"):
        run_data(bundle)
