"""What runs code of its writer is not resumed from the folder of somebody else."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from rayrl_dt.errors import UserError
from rayrl_dt.interop.owners import check_owner
from rayrl_dt.runs.loop import train

STRANGER = 4_242


def test_a_folder_of_ones_own_is_taken(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    check_owner(tmp_path)
    check_owner(tmp_path / "absent")


def test_another_users_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} belongs to another user.*pickles.*--trust-checkpoint"):
        check_owner(tmp_path, me=os.getuid() + 1)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_a_strangers_file_within_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints" / "000000003").mkdir(parents=True)
    (folder / "config.yaml").write_text("algorithm: DT")
    state = folder / "checkpoints" / "000000003" / "algorithm_state.pkl"
    state.write_bytes(b"")
    shutil.chown(state, STRANGER)
    values = {"algorithm": "DT", "offline_data": {"dataset": "recipe:pendulum-mixed"}}
    with pytest.raises(UserError, match=f"{state} belongs to another user \\(id {STRANGER}\\)"):
        train(values, folder, resume=True)
    assert not (folder / ".lock").exists()
