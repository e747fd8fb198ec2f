"""Diagnosis: what each check says when something is missing; it never raises."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from rayrl_dt import doctor, precision
from rayrl_dt.doctor import Check, folders, machine

WITHOUT_RAY: dict[str, Any] = {"start_ray": False}


def by_name(checks: list[Check]) -> dict[str, Check]:
    found = {check.name: check for check in checks}
    assert len(found) == len(checks), "names are unique"
    return found


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Makes the packages in the returned set look uninstalled."""
    names: set[str] = set()
    real = metadata.version

    def version(name: str) -> str:
        if name in names:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    return names


def test_this_machine(tmp_path: Path) -> None:
    checks = by_name(doctor.diagnose(storage=tmp_path / "new" / "runs", **WITHOUT_RAY))
    for name in (
        "Python",
        "rayrl_dt",
        "ray",
        "torch",
        "minari",
        "CPU",
        "precision",
        "MuJoCo",
        "Atari",
        "cache",
    ):
        assert checks[name].status == "ok", checks[name]
    assert "torch 2." in checks["torch"].found
    assert precision.resolve("auto", "cpu") in checks["precision"].found
    assert checks["storage"].status == "ok" and "will be created" in checks["storage"].found
    assert list(tmp_path.iterdir()) == [], "no traces"
    for check in checks.values():
        written = json.loads(json.dumps(check.to_json()))
        assert list(written) == ["name", "status", "found", "remedy"]
        assert (check.remedy is None) == (check.status == "ok"), check
        assert "\n" not in check.found + (check.remedy or "")


def test_a_missing_extra_is_a_warning(missing: set[str]) -> None:
    assert by_name(doctor.diagnose(**WITHOUT_RAY))["extra hf"].status == "ok"
    missing.add("transformers")
    check = by_name(doctor.diagnose(**WITHOUT_RAY))["extra hf"]
    assert (check.status, check.found) == ("warning", "transformers is not installed")
    assert check.remedy is not None and "pip install 'rayrl_dt[hf]'" in check.remedy


def test_extras_for_developers_are_not_shown() -> None:
    names = by_name(doctor.diagnose(**WITHOUT_RAY))
    assert {"extra test", "extra dev"} & set(names) == set()


def test_a_missing_package_is_an_error_with_the_command(missing: set[str]) -> None:
    missing.add("minari")
    check = by_name(doctor.diagnose(**WITHOUT_RAY))["minari"]
    assert check.status == "error"
    assert check.remedy is not None and check.remedy.startswith("pip install 'minari[hdf5]")


def test_a_version_out_of_bounds_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.0.0" if name == "torch" else real(name))
    check = by_name(doctor.diagnose(**WITHOUT_RAY))["torch"]
    assert check.status == "error" and "1.0.0" in check.found and "outside" in check.found
    assert check.remedy is not None and ">=2.6" in check.remedy


def test_a_check_that_breaks_is_an_error_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no GL\nsecond line")

    monkeypatch.setattr("rayrl_dt.envs.make", broken)
    checks = by_name(doctor.diagnose(**WITHOUT_RAY))
    assert (checks["MuJoCo"].status, checks["MuJoCo"].found) == ("error", "no GL")
    assert "mujoco" in (checks["MuJoCo"].remedy or "")
    assert checks["Atari"].status == "ok"


def test_storage_below_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check = by_name(doctor.diagnose(storage=tmp_path / "file" / "runs", **WITHOUT_RAY))["storage"]
    assert check.status == "error" and str(tmp_path / "file" / "runs") in check.found
    assert check.remedy == folders.STORAGE_REMEDY


def test_storage_may_be_a_uri(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = {}
    for storage in (f"file://{tmp_path}/runs", f"file://{tmp_path}/file/runs", "s4://bucket/runs"):
        found[storage] = by_name(doctor.diagnose(storage=storage, **WITHOUT_RAY))["storage"]
    assert [check.status for check in found.values()] == ["ok", "error", "error"]
    assert all(uri in check.found for uri, check in found.items()), found
    assert list((tmp_path / "runs").iterdir()) == []


def test_storage_that_cannot_rename_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", refuse)
    check = by_name(doctor.diagnose(storage=tmp_path, **WITHOUT_RAY))["storage"]
    assert check.status == "error" and "not permitted" in check.found
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_MIN_FREE_BYTES", 2**62)
    check = by_name(doctor.diagnose(storage=tmp_path, **WITHOUT_RAY))["storage"]
    assert check.status == "warning" and "free some space" in (check.remedy or "")


def test_minari_root_counts_data_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check = by_name(doctor.diagnose(**WITHOUT_RAY))["Minari data"]
    assert check.status == "warning" and "does not exist" in check.found
    monkeypatch.setattr("rayrl_dt.data.readers.minari_local.list_local", lambda: [{"id": "a/b-v0"}])
    (tmp_path / "minari").mkdir()
    check = by_name(doctor.diagnose(**WITHOUT_RAY))["Minari data"]
    assert check.status == "ok" and check.found.startswith("1 data set in")


def test_a_machine_whose_memory_cannot_be_read_is_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "_MEMORY", tmp_path / "meminfo")
    (check,) = machine.memory()
    assert check.status == "ok" and check.found.startswith("cannot be read here; training")


def test_little_shared_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether or not another test's Ray is running: what Ray would take of this machine.
    (check,) = machine.shared_memory(None)
    assert check.name == "shared memory"
    monkeypatch.setattr(machine, "_OBJECT_STORE_SHARE", 1e6)
    (check,) = machine.shared_memory(None)
    assert check.status == "warning" and "--shm-size=" in (check.remedy or "")


@pytest.mark.ray
def test_a_running_ray_is_used_and_left_running(ray_session: None, tmp_path: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    checks = by_name(doctor.diagnose(storage=tmp_path, address=address))
    assert checks["Ray"].status == "ok" and "5 CPUs" in checks["Ray"].found
    assert checks["Ray nodes"].status == "ok" and checks["Ray nodes"].found.startswith("1 node,")
    assert checks["storage on nodes"].status == "ok"
    assert "shared memory" in checks
    assert list(tmp_path.iterdir()) == []
    assert ray.is_initialized()


@pytest.mark.ray
def test_an_unreachable_cluster_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    check = by_name(doctor.diagnose(address="127.0.0.1:1"))["Ray"]
    assert check.status == "error" and "nobody answers" in check.found
    assert "address" in (check.remedy or "")
