"""The environment of a data set, as one object: made once from what the data say, kept whole, and made anywhere.

Data sets and policies are somebody else's files, and an entry point is code. Entry points of well-known packages are
followed if they are environments; others only where the user names the environment, or trusts it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from types import ModuleType
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, WrapperSpec

from rayrl_dt.envs.atari import PREPROCESSING, TIME_LIMIT, is_game, outer_limit, preprocessed
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.envs.plain import PlainEnv
from rayrl_dt.envs.resolve import TRUSTED, made_of, refused, registered, unknown
from rayrl_dt.envs.spec_text import code_of, lettered, numbered, restored, spec_of_text, writable, written
from rayrl_dt.envs.vector import vectorize
from rayrl_dt.errors import UserError, one_line, whole

__all__ = ["ENDLESS", "RecordedEnv", "name_of", "time_limit"]

ENDLESS = 1_000_000
"""A recorded limit of so many steps or more says that there is none."""

_SHOW = ("HumanRendering", "RecordVideo", "RenderCollection")
"""Wrappers that change nothing but what is seen."""


@dataclass(frozen=True)
class Wrapping:
    """A wrapper that the data was recorded in.

    Attributes:
        name: of it.
        entry_point: `module:Class`.
        kwargs: of its constructor, as texts hold them; None if they were not recorded.
    """

    name: str
    entry_point: str
    kwargs: dict[str, Any] | None


@dataclass(frozen=True)
class RecordedEnv:
    """What data was recorded in, and what policies learned from it are evaluated in.

    Attributes:
        id: Gymnasium's id; `package:Id-v0` where the package has to be imported first, or `module:Class`.
        entry_point: `module:Class`, for where no package registers the id. None if it was not recorded: without a time
            limit of its own it then has the registered one.
        kwargs: of its constructor, without the render mode, as texts hold them (`rayrl_dt.envs.spec_text`).
        max_episode_steps: time limit; None for none.
        wrappers: from the inside out, without the time limit and those that show it.
        evaluation: where policies are evaluated; None for here.
        trusted: whether its code may run whatever its package, because the user says so; never written.
    """

    id: str
    entry_point: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    max_episode_steps: int | None = None
    wrappers: tuple[Wrapping, ...] = ()
    evaluation: RecordedEnv | None = None
    trusted: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, spec: EnvSpec, evaluation: EnvSpec | None = None) -> RecordedEnv:
        """Take over a specification, and that of the environment to evaluate in if it is another.

        Raises:
            UserError: no file can hold an argument of it.
        """
        spec = writable(spec)
        other = None if evaluation is None else cls.of(evaluation)
        kwargs = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
        made = cls(
            id=spec.id,
            entry_point=code_of(spec.entry_point),
            kwargs=kwargs,
            max_episode_steps=time_limit(spec.max_episode_steps),
            wrappers=tuple(
                Wrapping(each.name, each.entry_point, each.kwargs)
                for each in spec.additional_wrappers
                if each.name not in _SHOW
            ),
        )
        return made if other == made else replace(made, evaluation=other)

    @classmethod
    def named(cls, name: str, /, **kwargs: Any) -> RecordedEnv:
        """Return the environment that the user names: `Id-v0`, `package:Id-v0`, `module:Class`, or JSON of a spec.

        Args:
            name: of it; its module is imported, so data must not choose it.
            kwargs: as for `changed`.

        Raises:
            UserError: it is unknown.
        """
        if name.lstrip().startswith("{"):
            return cls.of(spec_of_text(name)).changed(**kwargs).trusting()
        known, creator = _known(name)
        if known is None and creator is None:
            raise unknown(name)
        if known is not None and is_game(name):
            known, kwargs = preprocessed(known, kwargs)
        made = cls(name, entry_point=name) if known is None else replace(cls.of(known), id=name)
        return made.changed(**{**made.kwargs, **kwargs}).trusting()

    @property
    def for_evaluation(self) -> RecordedEnv:
        """The environment in which policies are evaluated."""
        return self.evaluation or self

    @property
    def limit(self) -> int:
        """The most steps of an episode, here or in evaluations; 0 if there is no limit."""
        return max(each.max_episode_steps or outer_limit(each) for each in (self, self.for_evaluation))

    @property
    def needs_this_process(self) -> bool:
        """Whether no other process can make it: its code is a script's, or has no name."""
        return "__main__" in self.packages or not (self.entry_point or ":" in self.id)

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages whose code it runs, where they were recorded."""
        code = self.id if ":" in self.id else self.entry_point or ""
        codes = (code, *(wrapper.entry_point for wrapper in self.wrappers))
        return tuple(dict.fromkeys(_package(each) for each in codes if each))

    def changed(self, /, **kwargs: Any) -> RecordedEnv:
        """Return the same environment with other arguments of its constructor, here and in evaluations.

        `max_episode_steps` is an argument, too.

        Raises:
            UserError: an argument cannot be written to a file.
        """
        arguments = {name: value for name, value in kwargs.items() if name != "max_episode_steps"}
        steps = kwargs.get("max_episode_steps", self.max_episode_steps)
        if "max_episode_steps" in kwargs and steps is not None:
            steps = whole("environment.env_config.max_episode_steps", steps, least=1)
        wrappers = self.wrappers
        if "max_episode_steps" in kwargs and any(each.entry_point == PREPROCESSING for each in wrappers):
            # Gymnasium's own limit stands inside of wrappers, where it would count emulated frames.
            limit = (
                () if steps is None else (Wrapping("TimeLimit", TIME_LIMIT, {"max_episode_steps": steps}),)
            )
            wrappers, steps = (*(each for each in wrappers if each.entry_point != TIME_LIMIT), *limit), None
        for name, value in arguments.items():
            try:
                json.dumps(value)  # numbers of NumPy are not of its types
                arguments[name] = written(value)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"environment.env_config.{name} is {value!r}, which no file can hold; use numbers, texts and lists"
                ) from error
        evaluation = None if self.evaluation is None else self.evaluation.changed(**kwargs)
        return replace(
            self,
            kwargs={**self.kwargs, **arguments},
            max_episode_steps=time_limit(steps),
            wrappers=wrappers,
            evaluation=evaluation,
        )

    def trusting(self) -> RecordedEnv:
        """Return the same environment, whose code may run whatever its package: the user says so."""
        evaluation = None if self.evaluation is None else self.evaluation.trusting()
        return replace(self, trusted=True, evaluation=evaluation)

    def make(
        self, flattening: Flattening | None = None, *, render_mode: str | None = None
    ) -> gym.Env[Any, Any]:
        """Make it.

        Args:
            flattening: of the data; None for the environment's own order of parts.
            render_mode: of Gymnasium; None where nobody looks.

        Raises:
            UserError: it is unknown here, needs code that is not trusted, or cannot be made.
        """
        shown = {} if render_mode is None else {"render_mode": render_mode}
        return PlainEnv(made_of(self.spec(), self.id, **shown), flattening)

    def make_vector(
        self, num_envs: int, *, flattening: Flattening | None = None, **options: Any
    ) -> gym.vector.VectorEnv[Any, Any, Any]:
        """Make `num_envs` copies; the options are those of `rayrl_dt.envs.vectorize`."""
        return vectorize(partial(self.make, flattening), num_envs, native=self.spec, **options)

    def spec(self) -> EnvSpec:
        """Return Gymnasium's specification, with the entry point as it is registered here.

        Raises:
            UserError: it is unknown here, or needs code that is not trusted.
        """
        if ":" in self.id and not self.trusted and _package(self.id) not in TRUSTED:
            raise self._refusal(self.id)
        known, _ = _known(self.id)
        entry_point = self.entry_point if known is None else known.entry_point
        if entry_point is None:
            raise UserError(
                f"the environment {self.id!r} is not registered here; install its package and name it, as "
                "package:Id-v0 (environment.env, or --env)"
            )
        if known is None:
            self._check(str(entry_point), gym.Env)
        for wrapper in self.wrappers:
            self._check(wrapper.entry_point, gym.Wrapper)
            if wrapper.kwargs is None:
                raise UserError(
                    f"the environment {self.id} was recorded in {wrapper.name}, whose arguments are not recorded: they "
                    "are functions or objects, or the wrapper is no gymnasium.utils.RecordConstructorArgs; register an "
                    "environment that is made in it, and name that: package:Id-v0 (environment.env, or --env)"
                )
        steps = self.max_episode_steps
        if known is not None and self.entry_point is None and steps is None:
            steps = time_limit(known.max_episode_steps)
        try:
            return EnvSpec(
                id=self.id.rpartition(":")[2],
                entry_point=entry_point,
                max_episode_steps=steps,
                kwargs=restored(self.kwargs),
                additional_wrappers=tuple(WrapperSpec(**restored(vars(each))) for each in self.wrappers),
            )
        # An id or an array that is none.
        except (gym.error.Error, ValueError, TypeError, OverflowError) as error:
            raise refused(self.id, error) from error

    def _check(self, entry_point: str, kind: type) -> None:
        if self.trusted:
            return
        if _package(entry_point) not in TRUSTED:
            raise self._refusal(entry_point)
        module, _, name = entry_point.partition(":")
        found = getattr(_imported(module, self.id), name, None)
        if not (isinstance(found, type) and issubclass(found, kind)):
            raise UserError(
                f"the environment {self.id} is recorded with {entry_point} as its code, which is no {kind.__name__}; "
                "name an environment yourself: environment.env, or --env"
            )

    def _refusal(self, code: str) -> UserError:
        package = _package(code)
        name = self.id if ":" in self.id else f"{package}:{self.id}"
        return UserError(
            f"the environment {self.id} is recorded with code that anybody may have written, {code}, so it was not run;"
            f" if you trust {package}, add --trust-environment (environment.trust_environment: true in a file, "
            f"trusting() in Python), or name the environment yourself: {name} (environment.env, or --env)"
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        values = lettered(asdict(self))
        del values["trusted"]
        evaluation = None if self.evaluation is None else self.evaluation.to_json()
        return {**values, "wrappers": list(values["wrappers"]), "evaluation": evaluation}

    @classmethod
    def from_json(cls, values: dict[str, Any] | str) -> RecordedEnv:
        """Inverse of `to_json`; also reads an id, or a specification of Gymnasium's, as older policies have it.

        Raises:
            ValueError: it is neither.
        """
        if isinstance(values, str):
            return cls.of(EnvSpec.from_json(values)) if values.startswith("{") else cls(values)
        codes = (
            values["id"],
            values["entry_point"] or "",
            *(each["entry_point"] for each in values["wrappers"]),
        )
        if not all(isinstance(code, str) for code in codes) or not isinstance(values["kwargs"], dict):
            raise ValueError(f"no environment: {values}")
        evaluation = values["evaluation"]
        return cls(
            id=values["id"],
            entry_point=values["entry_point"],
            kwargs=numbered(values["kwargs"]),
            max_episode_steps=time_limit(values["max_episode_steps"]),
            wrappers=tuple(Wrapping(**numbered(each)) for each in values["wrappers"]),
            evaluation=None if evaluation is None else cls.from_json(evaluation),
        )


def name_of(creator: Callable[..., Any]) -> str:
    """Return `module:Class` for a class or function that makes environments.

    Raises:
        UserError: other processes could not import it.
    """
    name = code_of(creator)
    if name is None or name.startswith("__main__:"):
        raise UserError(
            f"the environment {getattr(creator, '__name__', creator)!r} is a class that other processes cannot import; "
            "put it into a module of its own and name it: environment.env: module:Class"
        )
    return name


def _package(code: str) -> str:
    """Return the package of `package.module:name`."""
    return code.partition(":")[0].partition(".")[0]


def _known(name: str) -> tuple[EnvSpec | None, Any]:
    """Return what is registered under a name, and what its module has under it; the module is imported."""
    module, _, member = name.rpartition(":")
    creator = getattr(_imported(module, name), member, None) if module else None
    return (registered(member) if creator is None else gym.registry.get(member)), creator


def _imported(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a module is anybody's code
        raise UserError(
            f"the environment {name} needs {module}, which cannot be imported ({one_line(error)}); install it, or put "
            "it on PYTHONPATH"
        ) from error


def time_limit(recorded: Any) -> int | None:
    """Return a recorded time limit as a whole number; None where it is none, or too far away to be one."""
    whole_number = (
        isinstance(recorded, int | float) and not isinstance(recorded, bool) and 0 < recorded < ENDLESS
    )
    return int(recorded) if whole_number else None
