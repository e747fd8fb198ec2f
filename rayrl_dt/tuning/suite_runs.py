"""The runs of a suite: methods x data sets x seeds, each a config file's content and a run folder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayrl_dt.algorithms.online.config import OnlineConfig
from rayrl_dt.errors import UserError
from rayrl_dt.interop.run_files import MAXIMUM, read_records, step_of
from rayrl_dt.runs.checkpoints import latest_checkpoint
from rayrl_dt.runs.config_files import apply_overrides, build_config, read_yaml
from rayrl_dt.tuning.space import grid_points, replaced, value_at

__all__ = ["SuiteRun", "read_suite"]

_DATASET, _SEED = "offline_data.dataset", "debugging.seed"


@dataclass(frozen=True, eq=False)
class SuiteRun:
    """One run of the suite.

    Attributes:
        name: of the method, equal for all of its seeds and data sets.
        values: the config file's content.
        folder: the run folder.
        gradient_steps: after which it is done, at the latest.
    """

    name: str
    values: Mapping[str, Any]
    folder: Path
    gradient_steps: int

    @property
    def dataset(self) -> str:
        """Source of the training data."""
        return str(self.values["offline_data"]["dataset"])

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def config(self) -> Path:
        """The config file that the run is started with."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def finished(self) -> bool:
        """Whether the run is trained to its end and evaluated."""
        return self.trained and (self.folder / MAXIMUM).exists()

    @property
    def trained(self) -> bool:
        """Whether the newest checkpoint is the last one."""
        newest = latest_checkpoint(self.folder)
        if newest is None:
            return False
        step = int(newest.name)
        # Finetuning may end earlier: whole episodes are more than a round must collect.
        return step >= self.gradient_steps or any(
            step_of(record) == step and record.get("done", False) for record in read_records(self.folder)[0]
        )


def read_suite(
    configs: Sequence[Path],
    out: Path,
    *,
    seeds: Sequence[int] | None = None,
    datasets: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> list[SuiteRun]:
    """Return the runs of the suite: configs x data sets x seeds, the seeds in the outermost loop.

    A file describes one method, or several: `variants:` maps a name to what that method changes in the rest of the
    file, and a grid (`{grid: [10, 20]}`) makes one method per value.

    Args:
        configs: YAML files.
        out: folder of the suite.
        seeds: overrides the configs' own seeds.
        datasets: overrides the configs' own data sets.
        overrides: `section.key=value` for all configs.

    Raises:
        UserError: a config is wrong, or two methods have the same name.
    """
    if not configs:
        raise UserError("there is no config; name one or several YAML files, as in tune_configs/")
    runs: dict[Path, SuiteRun] = {}
    for path in configs:
        for values in _methods(apply_overrides(read_yaml(path), overrides), default=path.stem):
            own, own_seed = value_at(values, _DATASET), value_at(values, _SEED) or 0
            for dataset, seed in itertools.product(datasets or [own], [own_seed] if seeds is None else seeds):
                run = _suite_run(values, dataset, int(seed), out)
                if run.folder in runs:
                    raise UserError(
                        f"two methods are called {run.name!r}; give one another `name:` in its file"
                    )
                runs[run.folder] = run
    return sorted(runs.values(), key=lambda run: run.values["debugging"]["seed"])


def _methods(values: dict[str, Any], *, default: str) -> Iterator[dict[str, Any]]:
    """Return the methods of a file: its variants, times the values of its grids. Each gets a name of its own."""
    variants = values.pop("variants", None)
    if variants is None:
        variants = {str(values.get("name") or default): {}}
    if not isinstance(variants, dict) or not variants:
        raise UserError("variants must be a mapping from a method's name to what it changes")
    for name, changes in variants.items():
        if not isinstance(changes or {}, dict):
            raise UserError(f"variants.{name} is {changes!r}; write a mapping of what it changes")
        base = {key: value for key, value in _merge(values, changes or {}).items() if key != "tune"}
        for point in grid_points(base):
            parts = [
                f"{path.rpartition('.')[2]}={option}"
                for path, option in point.items()
                if path not in (_DATASET, _SEED)
            ]
            yield replaced(base, {**point, "name": " ".join([str(name), *parts])})


def _merge(base: Any, changes: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return {**base, **{key: _merge(base.get(key), value) for key, value in changes.items()}}


def _suite_run(values: Mapping[str, Any], dataset: Any, seed: int, out: Path) -> SuiteRun:
    name = str(values["name"])
    values = replaced(values, {_DATASET: dataset, _SEED: seed})
    config = build_config(values)
    folder = out / "runs" / _slug(str(dataset).partition(":")[2]) / f"{_slug(name)}-seed{seed}"
    if isinstance(config, OnlineConfig):
        # Its `gradient_steps` are set when the data is there.
        return SuiteRun(name, values, folder, config.total_gradient_steps)
    return SuiteRun(name, values, folder, int(config.gradient_steps))


def _slug(text: str) -> str:
    return re.sub(r"[^\w.=-]+", "-", text).strip("-") or "run"
