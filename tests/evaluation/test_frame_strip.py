"""Frames of episodes at three targets, from a policy to its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import contract
import numpy as np
import pytest
from builders import build_model
from typer.testing import CliRunner

from rayrl_dt import load_dataset
from rayrl_dt.cli.main import app
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.frame_strip import FrameStrip, record_strip
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.reports.run_report import write_report


def bundle_of(kind: str, folder: Path) -> Bundle:
    store = load_dataset(contract.make_data(folder / "data", kind, "discrete"))
    model = build_model(store, backbone="dt", context_length=2)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    return Bundle.open(save_bundle(model.spec, weights, folder / "run" / "policy", gradient_steps=1))


@pytest.mark.parametrize(
    ("kind", "shape"), [("frame", (40, 40)), ("image", (36, 36, 3)), ("mixed", (36, 36, 3))]
)
def test_an_episode_is_played_at_the_lowest_middle_and_highest_target(
    tmp_path: Path, kind: str, shape: tuple[int, ...]
) -> None:
    strip = record_strip(bundle_of(kind, tmp_path), "1,5,3,4", seed=3)
    assert strip.targets.tolist() == [1.0, 4.0, 5.0]
    assert strip.frames.shape == (3, 8, *shape) and strip.frames.dtype == np.uint8
    # The contract's images have one value, another at each step; all three episodes begin alike.
    flat = strip.frames.reshape(3, 8, -1)
    assert (flat == flat[..., :1]).all() and len(np.unique(flat[0, :, 0])) > 4
    assert (flat[:, 0] == flat[0, 0]).all()
    assert strip.steps[:, 0].tolist() == [0, 0, 0] and set(strip.steps[:, -1].tolist()) <= {
        contract.STEPS,
        contract.STEPS - 1,
    }
    strip.save(tmp_path / "frames.npz")
    for name, value in vars(FrameStrip.open(tmp_path / "frames.npz")).items():
        np.testing.assert_array_equal(value, getattr(strip, name))


def test_the_report_of_a_run_shows_them(tmp_path: Path) -> None:
    bundle_of("frame", tmp_path)
    run = tmp_path / "run"
    (run / "config.yaml").write_text("algorithm: DT\n")
    (run / "run.json").write_text('{"algorithm": "DT"}')
    words = ["eval", str(run / "policy"), "--targets", "1,2", "--episodes", "1", "--frames"]
    found = CliRunner().invoke(app, words, catch_exceptions=False)
    assert found.exit_code == 0 and "frames.npz" in found.output.replace("\n", "")
    page = write_report([run], tmp_path / "report")
    assert "What it saw" in page.read_text()
    assert (tmp_path / "report" / "frames.png").stat().st_size > 5_000
    (run / "evaluations" / "frames.npz").write_bytes(b"PK")
    assert "frames.npz cannot be read" in write_report([run], tmp_path / "report").read_text()


def test_what_shows_nothing_is_refused(tmp_path: Path) -> None:
    bundle = bundle_of("vector", tmp_path)
    with pytest.raises(UserError, match="no images but float32 of shape"):
        record_strip(bundle, "1")
    values: dict[str, Any] = {name: np.zeros(2) for name in FrameStrip.__dataclass_fields__}
    np.savez(tmp_path / "other.npz", **values)
    with pytest.raises(UserError, match="no strip of frames"):
        FrameStrip.open(tmp_path / "other.npz")
