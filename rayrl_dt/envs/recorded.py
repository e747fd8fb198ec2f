"""The environment of a data set, as one object: made once from what the data say, kept whole, and made anywhere.

A data set is somebody else's file, and an entry point is code. Entry points of well-known packages are followed if they
are environments; those of others only where the user trusts the package.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from types import ModuleType
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, WrapperSpec

from rayrl_dt.envs.observations import Flattening
from rayrl_dt.envs.plain import PlainEnv
from rayrl_dt.envs.resolve import make_spec, make_vector, registered, unknown
from rayrl_dt.errors import UserError

__all__ = ["ENDLESS", "RecordedEnv", "time_limit"]

ENDLESS = 1_000_000
"""A recorded limit of so many steps or more says that there is none."""

TRUSTED = (
    "ale_py",
    "gymnasium",
    "gymnasium_robotics",
    "highway_env",
    "metaworld",
    "minigrid",
    "miniworld",
    "mo_gymnasium",
    "panda_gym",
    "rayrl_dt",
    "shimmy",
)
"""Packages of environments whose classes a data set may name."""


@dataclass(frozen=True)
class Wrapping:
    """A wrapper that the data was recorded in.

    Attributes:
        name: of it.
        entry_point: `module:Class`.
        kwargs: of its constructor; None if they were not recorded.
    """

    name: str
    entry_point: str
    kwargs: dict[str, Any] | None


@dataclass(frozen=True)
class RecordedEnv:
    """What data was recorded in, and what policies learned from it are evaluated in.

    Attributes:
        id: Gymnasium's id; `package:Id-v0` where the package has to be imported first, or `module:Class`.
        entry_point: `module:Class`, for where no package registers the id; None if it was not recorded.
        kwargs: of its constructor, without the render mode.
        max_episode_steps: time limit; None for none.
        wrappers: from the inside out, without the time limit.
        evaluation: where policies are evaluated; None for here.
    """

    id: str
    entry_point: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    wrappers: tuple[Wrapping, ...] = ()
    evaluation: RecordedEnv | None = None

    @classmethod
    def of(cls, spec: EnvSpec, evaluation: EnvSpec | None = None) -> RecordedEnv:
        """Take over a specification, and that of the environment to evaluate in if it is another."""
        other = None if evaluation is None else cls.of(evaluation)
        kwargs = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
        made = cls(
            id=spec.id,
            entry_point=spec.entry_point if isinstance(spec.entry_point, str) else None,
            kwargs=kwargs,
            max_episode_steps=time_limit(spec.max_episode_steps),
            wrappers=tuple(
                Wrapping(each.name, each.entry_point, each.kwargs) for each in spec.additional_wrappers
            ),
        )
        return made if other == made else replace(made, evaluation=other)

    @classmethod
    def named(cls, name: str, **kwargs: Any) -> RecordedEnv:
        """Return the environment that the user names: `Id-v0`, `package:Id-v0` or `module:Class`.

        Args:
            name: of it; its module is imported, so data must not choose it.
            kwargs: as for `changed`.

        Raises:
            UserError: it is unknown.
        """
        module, _, member = name.rpartition(":")
        if module:
            _imported(module, name)
        known = registered(member)
        if known is None and not module:
            raise unknown(name)
        made = cls(name, entry_point=name) if known is None else replace(cls.of(known), id=name)
        return made.changed(**kwargs)

    @property
    def package(self) -> str:
        """The package whose code makes it, to be trusted where the user chose it; empty if none is named."""
        module = self.id.rpartition(":")[0] or (self.entry_point or "").partition(":")[0]
        return module.partition(".")[0]

    @property
    def for_evaluation(self) -> RecordedEnv:
        """The environment in which policies are evaluated."""
        return self.evaluation or self

    @property
    def limit(self) -> int:
        """The most steps of an episode, here or in evaluations; 0 if there is no limit."""
        return max(self.max_episode_steps or 0, self.for_evaluation.max_episode_steps or 0)

    def changed(self, **kwargs: Any) -> RecordedEnv:
        """Return the same environment with other arguments of its constructor, here and in evaluations.

        `max_episode_steps` is an argument, too.
        """
        arguments = {name: value for name, value in kwargs.items() if name != "max_episode_steps"}
        steps = kwargs.get("max_episode_steps", self.max_episode_steps)
        evaluation = None if self.evaluation is None else self.evaluation.changed(**kwargs)
        return replace(
            self,
            kwargs={**self.kwargs, **arguments},
            max_episode_steps=time_limit(steps),
            evaluation=evaluation,
        )

    def make(self, *, flattening: Flattening | None = None, trusted: Collection[str] = ()) -> PlainEnv:
        """Make it.

        Args:
            flattening: of the data; None for the environment's own order of parts.
            trusted: packages whose code may run beside the well-known ones, because the user says so.

        Raises:
            UserError: it is unknown here, needs code that is not trusted, or cannot be made.
        """
        return PlainEnv(make_spec(self.spec(trusted=trusted), {}), flattening)

    def make_vector(
        self, num_envs: int, *, trusted: Collection[str] = (), **options: Any
    ) -> gym.vector.VectorEnv[Any, Any, Any]:
        """Make `num_envs` copies; the options are those of `rayrl_dt.envs.make_vector`."""
        return make_vector(self.spec(trusted=trusted), num_envs, **options)

    def spec(self, *, trusted: Collection[str] = ()) -> EnvSpec:
        """Return Gymnasium's specification, with the entry point as it is registered here.

        Raises:
            UserError: it is unknown here, or needs code that is not trusted.
        """
        module, _, name = self.id.rpartition(":")
        if module:
            if self.package not in (*TRUSTED, *trusted):
                raise self._refusal(self.id)
            _imported(module, self.id)
        known = registered(name)
        entry_point = self.entry_point if known is None else known.entry_point
        if entry_point is None:
            raise UserError(
                f"the environment {self.id!r} of the data is not registered here; install its package and name it: "
                "environment.env: package:Id-v0"
            )
        if known is None:
            self._check(str(entry_point), gym.Env, trusted)
        for wrapper in self.wrappers:
            self._check(wrapper.entry_point, gym.Wrapper, trusted)
        return EnvSpec(
            id=name,
            entry_point=entry_point,
            max_episode_steps=self.max_episode_steps,
            kwargs=dict(self.kwargs),
            additional_wrappers=tuple(WrapperSpec(**vars(each)) for each in self.wrappers),
        )

    def _check(self, entry_point: str, kind: type, trusted: Collection[str]) -> None:
        module, _, name = entry_point.partition(":")
        package = module.partition(".")[0]
        if package in trusted:
            return
        if package not in TRUSTED:
            raise self._refusal(entry_point)
        found = getattr(_imported(module, self.id), name, None)
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise UserError(
                f"the data name {entry_point} as code of their environment {self.id}, which is no {kind.__name__}; "
                "name an environment yourself: environment.env"
            )

    def _refusal(self, code: str) -> UserError:
        package = code.partition(":")[0].partition(".")[0]
        name = self.id.rpartition(":")[2]
        return UserError(
            f"the data name {code} as code of their environment {self.id}; if you trust {package}, name the "
            f"environment yourself: environment.env: {package}:{name}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RecordedEnv:
        """Inverse of `to_json`."""
        evaluation = values["evaluation"]
        return cls(
            **{
                **values,
                "wrappers": tuple(Wrapping(**each) for each in values["wrappers"]),
                "evaluation": None if evaluation is None else cls.from_json(evaluation),
            }
        )


def _imported(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (ImportError, gym.error.Error) as error:
        raise UserError(
            f"the environment {name} needs {module}, which cannot be imported ({error}); install it, or put it on "
            "PYTHONPATH"
        ) from error


def time_limit(recorded: Any) -> int | None:
    """Return a recorded time limit as a whole number; None where it is none, or too far away to be one."""
    whole = isinstance(recorded, int | float) and not isinstance(recorded, bool) and 0 < recorded < ENDLESS
    return int(recorded) if whole else None
