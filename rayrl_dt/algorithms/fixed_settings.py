"""What a checkpoint's weights hang on: kept beside it, and compared before it is restored into another config."""

from __future__ import annotations

import json
from pathlib import Path

from rayrl_dt.algorithms.builders import SettingsConfig
from rayrl_dt.errors import UserError

__all__ = ["check_fixed", "keep_fixed"]

_FILE = "fixed_settings.json"


def keep_fixed(config: SettingsConfig, checkpoint: Path) -> None:
    """Write what must stay while the run of a config goes on."""
    (checkpoint / _FILE).write_text(json.dumps(config.fixed_settings()), encoding="utf-8")


def check_fixed(config: SettingsConfig, checkpoint: Path) -> None:
    """Refuse a checkpoint that learned with other fixed settings than a config's; older ones do not say all of them.

    Raises:
        UserError: naming the first setting that differs.
    """
    file = checkpoint / _FILE
    if not file.is_file():
        return
    learned = json.loads(file.read_text(encoding="utf-8"))
    for name, value in config.fixed_settings().items():
        if name in learned and learned[name] != value:
            raise UserError(
                f"{name} is {value!r}, and {checkpoint} learned with {learned[name]!r}, which its weights hang "
                f"on; set {name} back, or start another run"
            )
