"""Action gradients on one checkpoint: a grid over rule, step size and number of steps, without any training.

Policy, critic and environments are set up once. Every cell runs the same episodes (same seeds, same target), and
n = 0 of the same checkpoint is always among them: it is what a cell is to be compared with. Picking the best cell of
a grid flatters it; a claim needs episodes with other seeds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.refined_policy import RefinedPolicy
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.policy.action_gradient import ActionGradient

__all__ = ["Cell", "RefinementGrid", "evaluate_grid"]


@dataclass(frozen=True)
class Cell:
    """The episodes of one action gradient.

    Attributes:
        settings: n is 0 for the control.
        returns: raw return of each episode.
        lengths: steps of each episode.
    """

    settings: ActionGradient
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
        return {
            **self.settings.to_json(),
            "return_mean": self.mean,
            "return_std": self.std,
            "length_mean": float(np.mean(self.lengths)),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
        }


@dataclass(frozen=True)
class RefinementGrid:
    """A finished grid.

    Attributes:
        control: the same checkpoint and episodes with n = 0.
        cells: one for each rule, eta and n > 0, in that order.
        target: raw return asked for.
        env: where.
        checkpoint: what was evaluated.
        critic: the record of the critic that refined.
        seed: of the episodes.
        env_steps: taken by all cells together.
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
    warnings: tuple[str, ...] = ()

    def cell(self, rule: str, eta: float, n: int) -> Cell:
        """Return the cell of these settings; the control for n = 0."""
        if n == 0:
            return self.control
        return next(
            cell
            for cell in self.cells
            if (cell.settings.rule, cell.settings.eta, cell.settings.n) == (rule, eta, n)
        )

    @property
    def axes(self) -> tuple[list[str], list[float], list[int]]:
        """The rules, step sizes and numbers of steps, 0 among the last."""
        settings = [cell.settings for cell in self.cells]
        rules = list(dict.fromkeys(item.rule for item in settings))
        return rules, sorted({item.eta for item in settings}), sorted({0, *(item.n for item in settings)})

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
            "control": self.control.to_json(),
            "cells": [cell.to_json() for cell in self.cells],
            "warnings": list(self.warnings),
        }


def evaluate_grid(
    path: str | os.PathLike[str] | Bundle,
    *,
    etas: Sequence[float],
    steps: Sequence[int],
    rules: Sequence[str],
    target: str = "dataset:max",
    episodes: int = 10,
    env: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> RefinementGrid:
    """Evaluate every combination of rule, eta and n on the policy of a bundle, and n = 0 once.

    Args:
        path: as for `RefinedPolicy`.
        etas: step sizes.
        steps: numbers of steps n; 0 is always run.
        rules: of the action gradient.
        target: one target as for `parse_targets`, by default the data's best return.
        episodes: of each cell.
        env: overrides the policy's environment.
        seed: of the episodes, the same in every cell.
        progress: called with (episodes done, episodes in total).

    Raises:
        UserError: there is no policy or critic, a setting is out of range, or the target is not one.
    """
    if episodes < 1:
        raise UserError(f"--episodes is {episodes}; it must be at least 1")
    tried = [ActionGradient(eta=eta, n=n, rule=rule) for rule, eta, n in product(rules, etas, steps)]
    wanted = list(dict.fromkeys(settings for settings in tried if not settings.idle))
    if not wanted:
        raise UserError("every cell of the grid has n = 0 or eta = 0; give an n and an eta above 0")
    policy = RefinedPolicy(path, targets=target, episodes=episodes, env=env, seed=seed)
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
        for settings in (ActionGradient(n=0), *wanted):
            rollouts = policy.run(settings, progress=count)
            returns, lengths = zip(
                *((item.episode_return, item.length) for item in rollouts.episodes), strict=True
            )
            cells.append(Cell(settings, returns, lengths))
            env_steps += rollouts.env_steps
    finally:
        policy.close()
    return RefinementGrid(
        control=cells[0],
        cells=tuple(cells[1:]),
        target=policy.asked.targets[0],
        env=policy.env,
        checkpoint=str(policy.bundle.path),
        critic=policy.bundle.header.get("critic", {}),
        seed=seed,
        env_steps=env_steps,
        warnings=policy.asked.warnings,
    )
