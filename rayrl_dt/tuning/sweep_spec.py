"""What a sweep's file asks for: its `tune:` section, checked with its spaces before anything is scheduled."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from rayrl_dt.errors import UserError
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.runs.config_files import build_config
from rayrl_dt.tuning.refinement_job import RUN, read_refinement_job
from rayrl_dt.tuning.settings import ALIGNMENT, RETURN, TuneSettings, read_settings
from rayrl_dt.tuning.space import Space, find_spaces, replaced, value_at

__all__ = ["SEED", "SweepSpec", "read_sweep"]

SEED = "debugging.seed"
_INTERVAL = "evaluation.evaluation_interval"
# PBT goes on from another trial's weights: only what leaves their shapes and the data's scales alone may change.
_MUTABLE = ("training", "online")
_MOST_COMBINATIONS = 500
# Of what a file names by paths: trials on a cluster have working folders of their own.
_PATHS = {
    "online.start_from": ("",),
    "training.critic_from": ("",),
    "evaluation.critic_from": ("",),
    "offline_data.dataset": ("store:", "d4rl:", "dqn-replay:"),
}


@dataclass(frozen=True, eq=False)
class SweepSpec:
    """A sweep, ready to be scheduled.

    Attributes:
        name: of the sweep.
        values: the config file's content without `tune`, the seeds among its spaces.
        spaces: what is searched.
        settings: the section `tune:`.
    """

    name: str
    values: Mapping[str, Any]
    spaces: tuple[Space, ...]
    settings: TuneSettings

    def at(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the content of a single run's file: each space at its first value, unless `changes` has one."""
        return replaced(self.values, {space.path: space.edges[0] for space in self.spaces} | dict(changes))

    @property
    def corners(self) -> list[dict[str, Any]]:
        """Single runs that between them show every space at its edges, one space at a time."""
        varied = [{space.path: edge} for space in self.spaces for edge in space.edges[1:]]
        return [self.at(changes) for changes in ({}, *varied)]

    @property
    def combinations(self) -> list[dict[str, Any]]:
        """Single runs for all that grids and choices list together; none where these are more than a second takes."""
        listed = [space for space in self.spaces if space.listed and space.path != SEED]
        if math.prod(len(space.options) for space in listed) > _MOST_COMBINATIONS:
            return []
        points = itertools.product(*(space.options for space in listed))
        return [
            self.at({space.path: value for space, value in zip(listed, point, strict=True)})
            for point in points
        ]

    @property
    def run(self) -> str | None:
        """The trained run that all trials evaluate; None where they train."""
        return self.values.get(RUN)

    @property
    def expected(self) -> int:
        """How many trials there are to be."""
        grids = math.prod(len(space.options) for space in self.spaces if space.kind == "grid")
        return self.settings.num_samples * grids

    def to_yaml(self) -> str:
        """Return the sweep as YAML: what a later --resume must agree with."""
        content = {"name": self.name, **self.values, "tune": dict(vars(self.settings))}
        return yaml.safe_dump(content, sort_keys=False)

    @property
    def param_space(self) -> dict[str, Any]:
        """What Ray Tune draws the trials' configs from."""
        return replaced(self.values, {space.path: space.domain() for space in self.spaces})


def read_sweep(values: Mapping[str, Any], *, default_name: str, samples: int | None = None) -> SweepSpec:
    """Read a sweep from a config file's content.

    Every trial is evaluated in each iteration, unless `evaluation.evaluation_interval` says how many make one report;
    `samples` overrides `tune.num_samples`.

    Raises:
        UserError: a key, value or space is wrong, there is nothing to search, or parts do not fit each other.
    """
    settings = read_settings(values, samples=samples)
    name = str(values.get("name") or default_name)
    content = {key: value for key, value in values.items() if key != "tune"}
    if RUN not in content:
        content = _with_interval(_with_whole_paths(content), settings)
    elif content[RUN] and isinstance(content[RUN], str):
        content[RUN] = str(Path(content[RUN]).resolve())
    if settings.seeds is not None:
        grid = {"grid": list(settings.seeds)}
        content = replaced(content, {SEED: grid})
        # What a sweep left has both, and says the same.
        if isinstance(value_at(values, SEED), dict) and value_at(values, SEED) != grid:
            raise UserError(f"tune.seeds and a space at {SEED} say the same thing twice; keep tune.seeds")
    spaces = find_spaces(content)
    if not spaces:
        raise UserError(
            "there is no search space; give a key one, such as training.lr: {loguniform: [1e-4, 1e-2]}, "
            "or train this file with rayrl-dt train"
        )
    spec = SweepSpec(name, content, spaces, settings)
    _check_together(spec)
    if spec.run is not None:
        for corner in spec.corners:
            read_refinement_job(corner)
        _check_draws(spec, read_refinement_job)
        return spec
    configs = [build_config(corner) for corner in spec.corners]
    _check_draws(spec, build_config)
    if settings.metric == ALIGNMENT and any(_asked_for_nothing(config) for config in configs):
        if "metric" in values["tune"]:
            raise UserError(
                f"tune.metric is {ALIGNMENT}, and policies that predict their own returns are asked for none; set "
                f"{RETURN}"
            )
        spec = replace(spec, settings=replace(settings, metric=RETURN))
    if settings.scheduler == "pbt":
        for config in configs[1:]:
            _check_exploit(configs[0].fixed_settings(), config.fixed_settings())
    return spec


def _check_draws(spec: SweepSpec, build: Callable[[Mapping[str, Any]], Any]) -> None:
    """Refuse what trials may draw beside the corners and could not be built of, before the first of them has run.

    Raises:
        UserError: as `build` says it.
    """
    for values in spec.combinations:
        build(values)
    for space in spec.spaces:
        if space.between is None:
            continue
        try:
            build(spec.at({space.path: space.between}))
        except UserError as error:
            raise UserError(
                f"{space.path} is {{{space.kind}: {list(space.options)}}}, which draws what lies between, too: "
                f"{error}; list its values (choice), or write randint or quniform with a fitting step"
            ) from error


def _asked_for_nothing(config: Any) -> bool:
    """Return whether the policy predicts its own returns, so that no evaluation has an alignment error."""
    model = config.sequence_model
    own = BACKBONES[model.backbone].predicts_returns
    return own and model.target_rule in ("auto", "predicted") and not config.delayed_reward


def _check_exploit(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Refuse that a trial goes on from the weights of another one that hang on other settings."""
    for name, value in other.items():
        if value != one[name]:
            raise UserError(
                f"tune.scheduler pbt goes on from other trials' weights, which hang on {name} "
                f"({one[name]!r}, {value!r}); give it one value, or set tune.scheduler: asha"
            )


def _with_whole_paths(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content with the paths that it names made absolute, in lists of values, too."""
    found = {path: _whole(value_at(content, path), kinds) for path, kinds in _PATHS.items()}
    return replaced(content, {path: value for path, value in found.items() if value is not None})


def _whole(value: Any, kinds: tuple[str, ...]) -> Any:
    """Return a value of a key with its paths from the root of the file system on; what is no path of `kinds` stays."""
    if isinstance(value, Mapping):
        return {key: _whole(inner, kinds) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(each, kinds) for each in value]
    kind = next((kind for kind in kinds if isinstance(value, str) and value.startswith(kind)), None)
    if not value or kind is None:
        return value
    place, mark, options = value.removeprefix(kind).partition("#")
    return f"{kind}{Path(place).absolute()}{mark}{options}" if place and Path(place).exists() else value


def _with_interval(content: dict[str, Any], settings: TuneSettings) -> dict[str, Any]:
    """Return the content with an evaluation in every iteration, unless it says how many make one report."""
    interval = value_at(content, _INTERVAL)
    if interval is None:
        return replaced(content, {_INTERVAL: 1})
    if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
        raise UserError(
            f"{_INTERVAL} is {interval!r}, so no iteration would report {settings.metric}; set it to 1 or more"
        )
    return content


def _check_together(spec: SweepSpec) -> None:
    """Refuse loggers that are not installed, and schedulers and searches that cannot work with the spaces."""
    settings, spaces = spec.settings, spec.spaces
    for logger in settings.loggers:
        if importlib.util.find_spec(logger) is None:
            raise UserError(
                f"tune.loggers has {logger}, which needs its package: pip install 'rayrl_dt[{logger}]' "
                "(or leave it out: TensorBoard is always written)"
            )
    if spec.run is not None and settings.scheduler != "none":
        raise UserError(
            f"tune.scheduler is {settings.scheduler!r}, but a trial that evaluates {RUN} reports once; set it to none"
        )
    grids = [space.path for space in spaces if space.kind == "grid"]
    if settings.search == "optuna":
        if importlib.util.find_spec("optuna") is None:
            raise UserError(
                "tune.search optuna needs the package: pip install 'rayrl_dt[optuna]' (or search: random)"
            )
        if settings.seeds is not None:
            raise UserError(
                "tune.search optuna knows no grids, and tune.seeds is one; remove it, or set search: random"
            )
        if grids:
            raise UserError(
                f"tune.search optuna knows no grids ({', '.join(grids)}); write choice, or set search: random"
            )
        if settings.scheduler == "pbt":
            raise UserError("tune.scheduler pbt changes values itself; set tune.search: random")
    if settings.scheduler != "pbt":
        return
    if settings.seeds is not None:
        raise UserError(
            "tune.scheduler pbt has one population, and tune.seeds would make several; remove tune.seeds"
        )
    if grids:
        raise UserError(f"tune.scheduler pbt cannot mutate a grid ({', '.join(grids)}); write choice")
    fixed = [space.path for space in spaces if space.path.split(".")[0] not in _MUTABLE]
    if fixed:
        raise UserError(
            f"tune.scheduler pbt goes on from other trials' weights, {fixed[0]} must not change under them; "
            f"search sections {' and '.join(_MUTABLE)} only"
        )
    if settings.num_samples < 2:
        raise UserError(
            f"tune.scheduler pbt needs a population, num_samples is {settings.num_samples}; set 4"
        )
