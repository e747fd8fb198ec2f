"""Several methods x data sets x seeds, trained and measured alike, and one page that compares them.

Each run is a process of its own (`rayrl-dt train`, then an evaluation at the data's best return), so that one that
dies takes no other with it; the page is written from what finished and says what is missing. The same call again goes
on where the last one stopped.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rayrl_dt.algorithms.online.config import OnlineConfig
from rayrl_dt.data import sources
from rayrl_dt.errors import UserError
from rayrl_dt.interop.run_files import RECORD
from rayrl_dt.reports.comparison import compare_runs, reductions
from rayrl_dt.reports.document import Block, Notice
from rayrl_dt.reports.page import write_page
from rayrl_dt.reports.run_folder import MAXIMUM, load_runs
from rayrl_dt.runs.checkpoints import latest_checkpoint
from rayrl_dt.runs.config_files import apply_overrides, build_config, read_yaml, search_spaces

__all__ = ["Failure", "Member", "Progress", "plan", "run", "write_comparison"]

_POLL_SECONDS = 0.5
_ENUMERABLE = ("grid", "choice")
_DATASET, _SEED = "offline_data.dataset", "debugging.seed"


@dataclass(frozen=True, eq=False)
class Member:
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
            record["gradient_steps"] == step and record.get("done", False) for record in _records(self.folder)
        )


@dataclass(frozen=True)
class Failure:
    """A run that did not finish, and the last line it printed."""

    member: Member
    reason: str


@dataclass(frozen=True)
class Progress:
    """How far the suite is.

    Attributes:
        done: runs that finished, earlier ones included.
        failed: runs that did not.
        total: all runs.
        running: gradient step of each run that is under way, as of its last iteration.
    """

    done: int
    failed: int
    total: int
    running: Mapping[Member, int]


def plan(
    configs: Sequence[Path],
    out: Path,
    *,
    seeds: Sequence[int] | None = None,
    datasets: Sequence[str] | None = None,
    overrides: Sequence[str] = (),
) -> list[Member]:
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
    members: dict[Path, Member] = {}
    for path in configs:
        for values in _expand(apply_overrides(read_yaml(path), overrides), default=path.stem):
            own: Any = (values.get("offline_data") or {}).get("dataset")
            own_seed: Any = (values.get("debugging") or {}).get("seed", 0)
            for dataset, seed in itertools.product(datasets or [own], [own_seed] if seeds is None else seeds):
                member = _member(values, dataset, int(seed), out)
                if member.folder in members:
                    raise UserError(
                        f"two methods are called {member.name!r}; give one another `name:` in its file"
                    )
                members[member.folder] = member
    return sorted(members.values(), key=lambda member: member.values["debugging"]["seed"])


def run(
    members: Sequence[Member],
    *,
    jobs: int = 1,
    episodes_at_maximum: int = 20,
    observe: Callable[[Progress], None] | None = None,
) -> list[Failure]:
    """Train and evaluate what is not finished yet, `jobs` runs at a time.

    Ctrl-C reaches the runs too: each writes a checkpoint, and the next call goes on from there.

    Args:
        members: from `plan`.
        jobs: processes at a time; the cores are divided among them.
        episodes_at_maximum: of the evaluation at the data's best return.
        observe: told about progress every half second.

    Raises:
        UserError: `jobs` is not positive, or a run folder holds another config's run.
    """
    if jobs < 1:
        raise UserError(f"jobs is {jobs}; it must be at least 1")
    for member in members:
        _prepare(member)
    unfinished = [member for member in members if not member.finished]
    done = len(members) - len(unfinished)
    failures = _load_data(unfinished)
    missing = {failure.member for failure in failures}
    waiting = [member for member in unfinished if member not in missing]
    active: dict[Member, tuple[Iterator[list[str]], subprocess.Popen[bytes]]] = {}
    environment = {**os.environ, "OMP_NUM_THREADS": _threads(jobs), "TERM": "dumb"}
    try:
        while waiting or active:
            while waiting and len(active) < jobs:
                member = waiting.pop(0)
                commands = _commands(member, episodes_at_maximum)
                active[member] = commands, _start(next(commands), member, environment)
            for member, (commands, process) in list(active.items()):
                status = process.poll()
                if status is None:
                    continue
                following = next(commands, None) if status == 0 else None
                if following is not None:
                    active[member] = commands, _start(following, member, environment)
                    continue
                del active[member]
                if status == 0 and member.finished:
                    done += 1
                else:
                    failures.append(Failure(member, _reason(member, status)))
            if observe is not None:
                steps = {member: _gradient_step(member) for member in active}
                observe(Progress(done, len(failures), len(members), steps))
            if active:
                time.sleep(_POLL_SECONDS)
    finally:
        for _, process in active.values():
            # After Ctrl-C the runs are writing their checkpoints already; any other end asks them to.
            process.terminate()
        for _, process in active.values():
            process.wait()
    return failures


def write_comparison(members: Sequence[Member], failures: Sequence[Failure], out: Path) -> Path:
    """Write `alignment.html` (with Markdown and PNG files) about what is there, and return its path.

    Raises:
        UserError: no run has left anything to report.
    """
    missing = {failure.member.folder: failure.reason for failure in failures}
    found = [member for member in members if (member.folder / RECORD).exists()]
    if not found:
        reasons = "; ".join(dict.fromkeys(missing.values())) or "none was started"
        raise UserError(f"no run has left anything to compare ({reasons}); see the logs below {out}")
    loaded = load_runs([member.folder for member in found])

    def compose(folder: Path) -> list[Block]:
        lines = [
            f"{member.folder.relative_to(out)}: {missing.get(member.folder, 'not finished')}"
            for member in members
            if not member.finished
        ]
        notice: list[Block] = [Notice("What is missing", lines)] if lines else []
        return [*notice, *reductions(loaded), *compare_runs(loaded, folder)]

    return write_page(out, "alignment", f"Return alignment: {len(loaded)} runs", compose)


def _expand(values: dict[str, Any], *, default: str) -> Iterator[dict[str, Any]]:
    """Return the methods of a file: its variants, times the values of its grids. Each gets a name of its own."""
    variants = values.pop("variants", None)
    if variants is None:
        variants = {str(values.get("name") or default): {}}
    if not isinstance(variants, dict) or not variants:
        raise UserError("variants must be a mapping from a method's name to what it changes")
    for name, changes in variants.items():
        base = _merge(values, changes or {})
        for path, options in (axes := _axes(base)).items():
            if not isinstance(options, list) or not options:
                raise UserError(f"{path} must list its values: {{grid: [...]}}")
        for point in itertools.product(*axes.values()):
            chosen = apply_overrides(base, [])
            parts = [str(name)]
            for path, option in zip(axes, point, strict=True):
                *sections, key = path.split(".")
                _at(chosen, sections)[key] = option
                parts += [f"{key}={option}"] if path not in (_DATASET, _SEED) else []
            chosen["name"] = " ".join(parts)
            chosen.pop("tune", None)
            yield chosen


def _axes(values: dict[str, Any]) -> dict[str, Any]:
    """Return the options of each search space of a config, by its dotted path."""
    axes = {}
    for path in search_spaces(values):
        ((kind, options),) = _at(values, path.split(".")).items()
        if kind not in _ENUMERABLE:
            raise UserError(
                f"{path} is a {kind} space; to compare some of its values list them: {{grid: [...]}}"
            )
        axes[path] = options
    return axes


def _merge(base: Any, changes: Any) -> Any:
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    return {**base, **{key: _merge(base.get(key), value) for key, value in changes.items()}}


def _at(values: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        values = values[key]
    return values


def _member(values: Mapping[str, Any], dataset: Any, seed: int, out: Path) -> Member:
    name = str(values["name"])
    values = {
        **values,
        "offline_data": {**(values.get("offline_data") or {}), "dataset": dataset},
        "debugging": {**(values.get("debugging") or {}), "seed": seed},
    }
    config = build_config(values)
    folder = out / "runs" / _slug(str(dataset).partition(":")[2]) / f"{_slug(name)}-seed{seed}"
    if isinstance(config, OnlineConfig):
        # Its `gradient_steps` are set when the data is there.
        return Member(name, values, folder, config.total_gradient_steps)
    return Member(name, values, folder, int(config.gradient_steps))


def _prepare(member: Member) -> None:
    """Write the run's config file, and clears what a run that died before its first checkpoint left."""
    text = yaml.safe_dump(dict(member.values), sort_keys=False)
    if member.config.exists() and yaml.safe_load(member.config.read_text()) != yaml.safe_load(text):
        raise UserError(
            f"{member.folder} holds a run of another config ({member.config}); choose another --out, or delete it"
        )
    member.folder.parent.mkdir(parents=True, exist_ok=True)
    member.config.write_text(text)
    if latest_checkpoint(member.folder) is None:
        shutil.rmtree(member.folder, ignore_errors=True)


def _load_data(members: Sequence[Member]) -> list[Failure]:
    """Download or make each data set once, before several processes want it; those of a missing one fail."""
    reasons: dict[str, str | None] = {}
    for member in members:
        if member.dataset in reasons:
            continue
        try:
            sources.load(member.dataset)
        except UserError as error:
            reasons[member.dataset] = str(error)
        else:
            reasons[member.dataset] = None
    return [Failure(member, reason) for member in members if (reason := reasons[member.dataset]) is not None]


def _commands(member: Member, episodes_at_maximum: int) -> Iterator[list[str]]:
    """Return what is left to do for a run, one command after the other."""
    program = [sys.executable, "-m", "rayrl_dt"]
    folder = str(member.folder)
    if not member.trained:
        again = [] if latest_checkpoint(member.folder) is None else ["--resume"]
        yield [*program, "train", str(member.config), "--out", folder, *again]
    maximum = ["--targets", "dataset:max", "--episodes", str(episodes_at_maximum)]
    seed = ["--seed", str(member.values["debugging"]["seed"])]
    yield [*program, "eval", folder, *maximum, *seed, "--json", str(member.folder / MAXIMUM)]


def _start(command: list[str], member: Member, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with member.log.open("ab") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )


def _reason(member: Member, status: int) -> str:
    lines = [line.strip() for line in member.log.read_text(errors="replace").splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "error:" in line or "diverged:" in line), None)
    ended = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return f"{said or (lines[-1] if lines else 'no output')} ({ended}; log: {member.log})"


def _gradient_step(member: Member) -> int:
    records = _records(member.folder)
    return int(records[-1]["gradient_steps"]) if records else 0


def _records(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `metrics.jsonl`; none before the first, and none that is still being written."""
    records: list[dict[str, Any]] = []
    try:
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            records.append(json.loads(line))
    except (OSError, ValueError):
        return records
    return records


def _threads(jobs: int) -> str:
    return os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // jobs))


def _slug(text: str) -> str:
    return re.sub(r"[^\w.=-]+", "-", text).strip("-") or "run"
