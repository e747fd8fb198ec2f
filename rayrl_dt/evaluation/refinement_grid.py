"""Ways to act with one checkpoint, side by side, without training: grids of action gradients, double checks, guidance.

Policy, critic and environments are set up once. Every cell runs the same episodes (same seeds, same target), and the
same checkpoint as it acts without is always among them: it is what a cell is to be compared with. Picking the best cell
of a grid flatters it; a claim needs episodes with other seeds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from rayrl_dt.critics.calibration import Calibration
from rayrl_dt.errors import UserError, whole
from rayrl_dt.evaluation.refined_policy import RefinedPolicy
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.interop.critics import calibration_of
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.policy.double_check import DoubleCheck
from rayrl_dt.policy.guidance import Guidance
from rayrl_dt.policy.refinement import WayToAct

__all__ = [
    "LAYOUTS",
    "Cell",
    "Layout",
    "RefinementGrid",
    "Sweep",
    "action_gradients",
    "double_checks",
    "evaluate_grid",
]


@dataclass(frozen=True)
class Layout:
    """How a way to act is laid out: a field of its settings along each axis, empty where there is none.

    Attributes:
        title: what its cells are.
        panel: field that tells the panels apart.
        row: field of the rows.
        column: field of the columns; one of its values leaves the policy as it is.
        labels: of rows and columns.
        picture: file of the heat map.
    """

    title: str
    panel: str
    row: str
    column: str
    labels: tuple[str, str]
    picture: str


LAYOUTS: dict[type[WayToAct], Layout] = {
    ActionGradient: Layout(
        "Action gradients", "rule", "eta", "n", ("step size η", "steps n"), "refinement.png"
    ),
    DoubleCheck: Layout("Double checks", "mode", "spread", "n", ("spread", "returns n"), "double_check.png"),
    Guidance: Layout("Guidance", "", "", "weight", ("", "guidance w"), "guidance.png"),
}


@dataclass(frozen=True)
class Cell:
    """The episodes of one way to act.

    Attributes:
        settings: None for the control.
        returns: raw return of each episode.
        lengths: steps of each episode.
    """

    settings: WayToAct | None
    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean raw return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation over the episodes (divided by n, not n - 1)."""
        return float(np.std(self.returns))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        how: dict[str, Any] = {"way": None}
        if self.settings is not None:
            how = {"way": self.settings.section, **self.settings.to_json()}
        return {
            **how,
            "return_mean": self.mean,
            "return_std": self.std,
            "length_mean": float(np.mean(self.lengths)),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
        }


@dataclass(frozen=True)
class Sweep:
    """The cells of one way to act.

    Attributes:
        layout: of the way.
        control: the same checkpoint and episodes without it.
        alone: the column that the control stands in.
        cells: at least one.
    """

    layout: Layout
    control: Cell
    alone: float
    cells: tuple[Cell, ...]

    def cell(self, panel: Any, row: Any, column: Any) -> Cell:
        """Return the cell at a place; the control in its own column, whatever panel and row."""
        if column == self.alone:
            return self.control
        return next(cell for cell in self.cells if self._place(cell) == (panel, row, column))

    @property
    def axes(self) -> tuple[list[Any], list[Any], list[Any]]:
        """The panels, rows and columns, that of the control among the last."""
        panels, rows, columns = zip(*map(self._place, self.cells), strict=True)
        return list(dict.fromkeys(panels)), sorted(set(rows)), sorted({self.alone, *columns})

    def _place(self, cell: Cell) -> tuple[Any, ...]:
        fields = self.layout.panel, self.layout.row, self.layout.column
        return tuple(getattr(cell.settings, name) if name else "" for name in fields)


@dataclass(frozen=True)
class RefinementGrid:
    """Finished sweeps over one checkpoint.

    Attributes:
        control: the same checkpoint and episodes as it acts without.
        cells: those of each way in turn, and of a way one for each panel, row and column.
        target: raw return asked for.
        env: where.
        checkpoint: what was evaluated.
        critic: the record of the critic that was asked.
        seed: of the episodes.
        env_steps: taken by all cells together.
        guidance: that of the control.
        calibration: of the critic, where a double check asked it.
        warnings: one line each.
    """

    control: Cell
    cells: tuple[Cell, ...]
    target: float
    env: str | None
    checkpoint: str
    critic: Mapping[str, Any]
    seed: int
    env_steps: int
    guidance: float = 1.0
    calibration: Calibration | None = None
    warnings: tuple[str, ...] = ()

    @property
    def sweeps(self) -> list[Sweep]:
        """The cells by their ways."""
        alone = {ActionGradient: 0, DoubleCheck: 1, Guidance: self.guidance}
        found = (
            (way, tuple(cell for cell in self.cells if isinstance(cell.settings, way))) for way in LAYOUTS
        )
        return [Sweep(LAYOUTS[way], self.control, alone[way], cells) for way, cells in found if cells]

    @property
    def best(self) -> Cell:
        """The cell with the highest mean return, the control among them."""
        return max((self.control, *self.cells), key=lambda cell: cell.mean)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return {
            "checkpoint": self.checkpoint,
            "env": self.env,
            "target": self.target,
            "seed": self.seed,
            "env_steps": self.env_steps,
            "critic": dict(self.critic),
            "guidance": self.guidance,
            "control": self.control.to_json(),
            "cells": [cell.to_json() for cell in self.cells],
            "warnings": list(self.warnings),
        }


def action_gradients(
    etas: Sequence[float], steps: Sequence[int], rules: Sequence[str]
) -> list[ActionGradient]:
    """Return the action gradients of a grid.

    Raises:
        UserError: a value is out of range, or none of them does anything.
    """
    found = [ActionGradient(eta=eta, n=n, rule=rule) for rule, eta, n in product(rules, etas, steps)]
    return _at_work(found, "n = 0 or eta = 0; give an n and an eta above 0")


def double_checks(ns: Sequence[int], spreads: Sequence[float], modes: Sequence[str]) -> list[DoubleCheck]:
    """Return the double checks of a grid.

    Raises:
        UserError: as `action_gradients`.
    """
    found = [DoubleCheck(n=n, spread=spread, mode=mode) for mode, spread, n in product(modes, spreads, ns)]
    return _at_work(found, "one return or no spread; give an n above 1 and a spread above 0")


def _at_work(found: list[Any], otherwise: str) -> list[Any]:
    wanted = list(dict.fromkeys(settings for settings in found if not settings.idle))
    if not wanted:
        raise UserError(f"every cell of the grid has {otherwise}")
    return wanted


def evaluate_grid(
    path: str | os.PathLike[str] | Bundle,
    ways: Iterable[WayToAct],
    *,
    target: str = "dataset:max",
    episodes: int = 10,
    env: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> RefinementGrid:
    """Evaluate the policy of a bundle in several ways to act, and once as it acts without.

    Args:
        path: as for `RefinedPolicy`.
        ways: to act; with guidance among them, guidance 1 is always run.
        target: one target as for `parse_targets`, by default the data's best return.
        episodes: of each cell.
        env: overrides the policy's environment.
        seed: of the episodes, the same in every cell.
        progress: called with (episodes done, episodes in total).

    Raises:
        UserError: there is no policy or critic, it cannot act in one of the ways, none of them is another than its
            own, or the target is not one.
    """
    whole("--episodes", episodes, least=1)
    bundle = Bundle.open(path)
    own = bundle.spec.guidance
    wanted: list[WayToAct] = list(dict.fromkeys(ways))
    if any(isinstance(way, Guidance) for way in wanted):
        wanted = [way for way in (*wanted, Guidance(1.0)) if way != Guidance(own)]
        wanted = list(dict.fromkeys(wanted))
    if not wanted:
        raise UserError(
            f"every cell of the grid has guidance {own:g}, as the policy acts; give a weight besides, as in 0,{own:g}"
        )
    policy = RefinedPolicy(
        bundle,
        targets=target,
        episodes=episodes,
        env=env,
        seed=seed,
        asks_critic=any(not isinstance(way, Guidance) for way in wanted),
    )
    done, total = 0, episodes * (1 + len(wanted))

    def count(finished: int) -> None:
        nonlocal done
        done += finished
        if progress is not None:
            progress(done, total)

    cells, env_steps = [], 0
    try:
        if len(policy.asked.targets) != 1:
            raise UserError(
                f"--target is {target!r}, which is {len(policy.asked.targets)} targets; a grid takes one"
            )
        for way in wanted:  # what cannot be tried is refused before anything is played
            policy.take(way)
        for settings in (None, *wanted):
            rollouts = policy.run(settings, progress=count)
            returns, lengths = zip(
                *((item.episode_return, item.length) for item in rollouts.episodes), strict=True
            )
            cells.append(Cell(settings, returns, lengths))
            env_steps += rollouts.env_steps
    finally:
        policy.close()
    calibrated = any(isinstance(way, DoubleCheck) and way.calibrated for way in wanted)
    return RefinementGrid(
        control=cells[0],
        cells=tuple(cells[1:]),
        target=policy.asked.targets[0],
        env=policy.env,
        checkpoint=str(policy.bundle.path),
        critic=policy.bundle.header.get("critic", {}),
        seed=seed,
        env_steps=env_steps,
        guidance=own,
        calibration=calibration_of(bundle) if calibrated else None,
        warnings=policy.asked.warnings,
    )
