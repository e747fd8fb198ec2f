"""Headers of bundles that nobody here wrote: each is refused in one line, before it is given memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from builders import build_model, edit_header

from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.blueprint import shapes_of
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.types import Trajectory

MakeStore = Callable[..., TrajectoryStore]
SPACES: tuple[dict[str, int], ...] = ({}, {"actions": 4})


@pytest.fixture
def saved(make_store: MakeStore, tmp_path: Path) -> Path:
    model = build_model(make_store())
    return save_bundle(model.spec, model.state_dict(), tmp_path / "bundle")


BROKEN: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "head": (("model", "head"), "categorical", "'categorical' does not take actions of Box float32"),
    "no head": (("model", "head"), "auto", "'auto' does not take actions"),
    "stacked vectors": (("model", "frame_stack"), 3, "frame_stack is 3.*no single images"),
    "huge shape": (("observation_space", "shape"), [10**10], "33,554,432 numbers"),
    "wide numbers": (("action_space", "dtype"), "float128", "dtype float128"),
    "objects": (("observation_space", "dtype"), "O", "dtype object"),
    "return scale": (("return_scale",), 0, r"return_scale is 0.0; .* above 0"),
    "no return scale": (("return_scale",), float("nan"), "return_scale is nan; .* above 0"),
    "reward scale": (("reward_scale",), -1, "reward_scale is -1; .* above 0"),
    "deviation": (("normalizer", "std"), [1.0, 0.0, 1.0], r"normalizer.std is \[1, 0, 1\]; .* above 0"),
    "mean": (("normalizer", "mean"), [0.0, float("nan"), 0.0], r"normalizer.mean is \[0, nan, 0\]"),
    "short mean": (("normalizer", "mean"), [0.0, 0.0], r"mean of shape \(2,\).*need \(3,\)"),
    "no bounds": (("action_low",), [], r"action_low \[\] .* are no range"),
    "crossed bounds": (("action_low",), [9.0, 9.0], r"action_low \[9, 9\] .* are no range"),
    "infinite bounds": (("action_high",), [float("inf")] * 2, r"action_high \[inf, inf\] are no range"),
    "no text": (("metadata",), None, "is not a whole policy"),
    "another kind": (("model",), 3, "is not a whole policy"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_header_that_cannot_work_is_reported(saved: Path, case: str) -> None:
    path, value, text = BROKEN[case]
    edit_header(saved, ("spec", *path), lambda _: value)
    with pytest.raises(UserError, match=text) as caught:
        Bundle.open(saved)
    assert str(caught.value).startswith(str(saved / "policy.json")) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "named"), [(("model", "rotary"), "model.rotary"), (("discount",), "discount")], ids=str
)
def test_what_a_newer_version_chose_is_not_left_out(saved: Path, path: tuple[str, ...], named: str) -> None:
    edit_header(saved, ("spec", *path), lambda _: None)
    edit_header(saved, ("versions", "rayrl_dt"), lambda _: "9.0.0")
    with pytest.raises(UserError, match=rf"by rayrl_dt 9\.0\.0 and has {named}, .*; upgrade rayrl_dt$"):
        Bundle.open(saved)


def test_a_graph_is_no_bundle(saved: Path) -> None:
    header = json.loads((saved / "policy.json").read_text())
    (saved / "policy.json").write_text(json.dumps({"spec": header["spec"]}))
    (saved / "policy.onnx").touch()
    with pytest.raises(UserError, match=r"holds an ONNX graph, .*; name the run folder or the bundle"):
        Bundle.open(saved)


def test_a_stack_of_too_many_images_is_reported(tmp_path: Path) -> None:
    space = gym.spaces.Box(0, 255, (36, 36), np.uint8)
    model = build_model(image_store(space))
    path = save_bundle(model.spec, model.state_dict(), tmp_path / "bundle")
    assert Bundle.open(path).model.spec.model.frame_stack == 4
    edit_header(path, ("spec", "model", "frame_stack"), lambda _: 10**9)
    with pytest.raises(UserError, match=r"frame_stack is 1000000000.*use fewer"):
        Bundle.open(path)


def image_store(space: gym.spaces.Box) -> TrajectoryStore:
    pixels = np.random.default_rng(0).integers(0, 256, (4, *space.shape), np.uint8)
    episode = Trajectory(pixels, np.zeros(3, np.int64), np.ones(3, np.float32), terminated=True)
    return TrajectoryStore.from_trajectories([episode], DatasetInfo("test", space, gym.spaces.Discrete(2)))


def test_a_header_nested_without_end_is_reported(saved: Path) -> None:
    (saved / "policy.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"policy.json cannot be read .*export the policy again"):
        Bundle.open(saved)


@pytest.mark.parametrize(
    ("backbone", "name", "value", "text"),
    [
        ("dt", "num_layers", 10**9, r"1000000000 layers \(num_layers\) and \d+ tensors"),
        ("dt", "embed_dim", 2**20, "another architecture"),
        ("dt", "max_episode_steps", 10**11, "another architecture"),
        ("mlp", "context_length", 10**11, "another architecture"),
        ("starformer", "local_dim", 2**20, "another architecture"),
        ("radt", "max_episode_steps", 10**11, r"tables of positions take 5,960 GiB"),
        ("radt", "max_episode_steps", None, "max_episode_steps is null"),
    ],
)
def test_a_header_that_asks_for_memory_is_refused_before_it_gets_some(
    make_store: MakeStore, tmp_path: Path, backbone: str, name: str, value: int | None, text: str
) -> None:
    model = build_model(make_store(), backbone=backbone)
    path = save_bundle(model.spec, model.state_dict(), tmp_path / "bundle")
    edit_header(path, ("spec", "model", name), lambda _: value)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    with pytest.raises(UserError, match=text) as caught:
        _ = Bundle.open(path).model
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 2**10


def test_loading_spares_the_compiler_of_torch(make_store: MakeStore, tmp_path: Path) -> None:
    """Shapes are found without numbers, for which torch would load a second's worth of modules."""
    paths = [
        save_bundle(model.spec, model.state_dict(), tmp_path / backbone / str(number))
        for number, space in enumerate(SPACES)
        for backbone in BACKBONES
        for model in [build_model(make_store(**space), backbone=backbone)]
    ]
    code = f"""
import sys
from rayrl_dt.interop.bundle import Bundle
for path in {[str(path) for path in paths]!r}:
    Bundle.open(path).model
    assert "torch._dynamo" not in sys.modules, path
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("encoder", ["auto", "impala"])
@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "starformer"])
def test_shapes_are_those_of_the_weights(backbone: str, encoder: str) -> None:
    space = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)
    spec = build_model(image_store(space), backbone=backbone, encoder=encoder).spec
    weights = SequenceModel(spec).state_dict()
    found = shapes_of(spec, tensors=len(weights))
    assert found == {name: tuple(value.shape) for name, value in weights.items()}
