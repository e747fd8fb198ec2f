"""Benchmarks: the schema of their figures, what they leave behind (nothing), and their refusals."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from rayrl_dt import benchmarks
from rayrl_dt.errors import UserError


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sends temporary files to a folder of their own, to see what is left in it."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    # torch makes its cache where temporary files go, at whatever moment it first thinks of it.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    return folder


def check(found: list[benchmarks.Measurement], units: dict[str, str]) -> None:
    assert {m.name: m.unit for m in found} == units
    for measurement in found:
        written = json.loads(json.dumps(measurement.to_json()))
        assert list(written) == ["name", "value", "unit", "detail"]
        assert written["value"] > 0
        assert " thread" in written["detail"] and torch.__version__ in written["detail"]


def test_sampler_measures_both_stores_and_leaves_nothing(scratch: Path) -> None:
    said: list[str] = []
    check(
        benchmarks.run("sampler", seconds=0.05, progress=said.append),
        {"sampler/memory": "batches/s", "sampler/mapped": "batches/s"},
    )
    assert said == ["sampler: memory", "sampler: mapped"]
    assert list(scratch.iterdir()) == []


def test_threads_are_set_while_measuring_and_restored(scratch: Path) -> None:
    before = torch.get_num_threads()
    during: list[int] = []
    wanted = before + 1
    found = benchmarks.run(
        "sampler", seconds=0.01, threads=wanted, progress=lambda _: during.append(torch.get_num_threads())
    )
    assert set(during) == {wanted}
    assert f"{wanted} threads" in found[0].detail
    assert torch.get_num_threads() == before


def test_threads_and_files_survive_no_failure(scratch: Path) -> None:
    before = torch.get_num_threads()

    def fail(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        benchmarks.run("sampler", threads=before + 1, progress=fail)
    assert torch.get_num_threads() == before
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian", {}), "Did you mean 'train'"),
        (("sampler", {"seconds": 0.0}), "positive"),
        (("sampler", {"seconds": float("nan")}), "positive"),
        (("sampler", {"threads": 0}), "at least 1"),
    ],
)
def test_refusals_name_the_remedy(arguments: tuple[str, dict[str, Any]], message: str) -> None:
    which, options = arguments
    with pytest.raises(UserError, match=message):
        benchmarks.run(which, **options)


def test_the_data_has_hoppers_shapes_and_is_the_same_each_time() -> None:
    first, second = benchmarks._make_store(), benchmarks._make_store()
    assert (first.num_episodes, first.num_steps) == (100, 50_000)
    assert first.observations.shape == (50_000, 11) and first.actions.shape == (50_000, 3)
    assert (first.observations == second.observations).all()


@pytest.mark.ray
def test_rollout_measures_each_number_of_slots(
    ray_session: None, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmarks.throughput, "ROLLOUT_SLOTS", (1, 2))
    found = benchmarks.run("rollout", seconds=0.1)
    check(found, {"rollout/env_steps_1": "env-steps/s", "rollout/env_steps_2": "env-steps/s"})
    assert "fp32" in found[0].detail or "bf16" in found[0].detail


@pytest.mark.ray
def test_online_compares_the_methods_at_each_size(
    ray_session: None, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = {"embed_dim": 8, "num_layers": 1, "context_length": 3}
    monkeypatch.setattr(benchmarks.online, "SIZES", {"8x1": tiny})
    found = benchmarks.run("online", seconds=0.2)
    check(
        found,
        {
            **{f"online/8x1/{name}": "updates/s" for name in benchmarks.online.METHODS},
            "online/8x1/cost_odt_deterministic_to_odt": "ratio",
            "online/8x1/cost_td3_odt_to_odt": "ratio",
            "online/8x1/cost_td3_odt_interval_2_to_odt": "ratio",
        },
    )
    assert all("width and layers 8x1, context 3" in measurement.detail for measurement in found)
    assert list(scratch.iterdir()) == []


@pytest.mark.ray
def test_beyond_compares_with_radt_and_many_returns_with_one(
    ray_session: None, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {**benchmarks._MODEL, "embed_dim": 16, "num_layers": 1}
    monkeypatch.setattr(benchmarks, "_MODEL", small)
    found, beyond = benchmarks.run("beyond", seconds=0.2), benchmarks.beyond
    asked = [f"{backbone}_{count}" for backbone in ("radt", "decoupled") for count in (1, beyond.RETURNS)]
    check(
        found,
        {
            **{f"beyond/train/{name}": "updates/s" for name in beyond.TRAINING},
            **{f"beyond/train/cost_{name}_to_radt": "ratio" for name in beyond.TRAINING if name != "radt"},
            **{f"beyond/act/{name}": "steps/s" for name in beyond.ACTING},
            **{f"beyond/act/cost_{name}_to_radt": "ratio" for name in beyond.ACTING if name != "radt"},
            **{f"beyond/ask/{name}": "steps/s" for name in asked},
            **{f"beyond/ask/cost_{name}_32_to_{name}_1": "ratio" for name in ("radt", "decoupled")},
        },
    )
    assert list(scratch.iterdir()) == []


@pytest.mark.ray
def test_train_and_learner(ray_session: None, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    small = {**benchmarks._MODEL, "embed_dim": 16, "num_layers": 1}
    monkeypatch.setattr(benchmarks, "_MODEL", small)
    check(benchmarks.run("train", seconds=0.2), {"train/gradient_steps": "steps/s"})
    found = benchmarks.run("learner", seconds=0.2)
    check(
        found,
        {"learner/rllib": "steps/s", "learner/bare_torch": "steps/s", "learner/rllib_to_bare": "ratio"},
    )
    assert 0.05 < found[2].value < 20
    # Ray was running before: it still runs.
    assert ray.is_initialized()
