"""Config files that come with the package, in a checkout and in a wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rayrl_dt.cli.main import app
from rayrl_dt.errors import UserError
from rayrl_dt.runs.config_files import read_yaml
from rayrl_dt.runs.shipped_configs import config_path, shipped_configs

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["dt_pendulum", "dt_pendulum.yaml", "tune_configs/dt_pendulum.yaml"])
def test_a_name_is_enough_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_yaml(name) == read_yaml(ROOT / "tune_configs" / "dt_pendulum.yaml")
    # A file of one's own goes before it, and what is elsewhere is no name.
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("algorithm: BC\n")
    assert read_yaml(name) == {"algorithm": "BC"}
    assert config_path("other/dt_pendulum.yaml") == Path("other/dt_pendulum.yaml")
    with pytest.raises(UserError, match=r"cannot read dt_pendulums .*rayrl-dt configs list"):
        read_yaml("dt_pendulums")


def test_configs_are_listed_and_copied(tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert set(shipped_configs()) == {path.stem for path in (ROOT / "tune_configs").glob("*.yaml")}
    listed = run(app, ["configs", "list"])
    assert listed.exit_code == 0 and "radt_pendulum" in listed.output
    to = tmp_path / "new"
    assert run(app, ["configs", "copy", "dt_pendulum", "smoke.yaml", "--to", str(to)]).exit_code == 0
    assert sorted(path.name for path in to.iterdir()) == ["dt_pendulum.yaml", "smoke.yaml"]
    assert (to / "smoke.yaml").read_bytes() == shipped_configs()["smoke"].read_bytes()
    with pytest.raises(UserError, match="exists already"):
        run(app, ["configs", "copy", "bc_hopper_10", "smoke", "--to", str(to)], catch_exceptions=False)
    with pytest.raises(UserError, match="Did you mean 'smoke'"):
        run(app, ["configs", "copy", "bc_hopper_10", "smokes", "--to", str(to)], catch_exceptions=False)
    assert len(list(to.iterdir())) == 2


@pytest.mark.slow
def test_a_wheel_holds_them(tmp_path: Path) -> None:
    source, wheels, site = tmp_path / "source", tmp_path / "wheels", tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("rayrl_dt", "tune_configs"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", wheels, source], check=True, timeout=300)
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", site, *wheels.iterdir()], check=True, timeout=120
    )
    code = (
        "import rayrl_dt, rayrl_dt.runs.config_files as files; from rayrl_dt.runs.shipped_configs import "
        "shipped_configs as s; print(rayrl_dt.__file__, len(s()), files.read_yaml('dt_pendulum')['algorithm'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert found.stdout.split() == [str(site / "rayrl_dt" / "__init__.py"), str(len(shipped_configs())), "DT"]
