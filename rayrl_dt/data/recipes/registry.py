"""The recipes by name: what each makes, and how to make it once or again."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rayrl_dt.data.readers import minari_io
from rayrl_dt.errors import UserError, suggest

__all__ = ["Recipe", "dataset_id", "ensure", "get", "make", "names", "not_its_own"]


@dataclass(frozen=True)
class Recipe:
    """How to make one data set on this machine.

    Attributes:
        name: what users call it.
        dataset_id: the Minari id that it gets; with `{}` for the environment where that is an option.
        description: one line.
        entry: `module:function`, imported when called, so that listing recipes imports no Ray. The function
            takes `dataset_id, seed, episodes, overwrite, progress` and the options, and returns the id.
        episodes: how many it makes unless told otherwise; None if the options decide.
        settings: fixed arguments of the function.
        options: names of further arguments that the user may give.
        extra: the pip extra that it needs.
    """

    name: str
    dataset_id: str
    description: str
    entry: str
    episodes: int | None
    settings: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    extra: str | None = None

    def function(self) -> Callable[..., str]:
        """Import and return the function that makes the data set."""
        module, _, name = self.entry.partition(":")
        found: Callable[..., str] = getattr(importlib.import_module(module), name)
        return found


_SEED = 0
_SCRIPTED = "rayrl_dt.data.recipes.scripted"
_RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "pendulum-mixed",
            "rayrl_dt/pendulum/mixed-v0",
            "Pendulum-v1: energy swing-up of graded skill, returns from -1900 to 0",
            f"{_SCRIPTED}:graded",
            episodes=1000,
            settings={"env_id": "Pendulum-v1"},
        ),
        Recipe(
            "cartpole-mixed",
            "rayrl_dt/cartpole/mixed-v0",
            "CartPole-v1: linear balancing of graded skill, returns from 8 to 500, discrete actions",
            f"{_SCRIPTED}:graded",
            episodes=500,
            settings={"env_id": "CartPole-v1"},
        ),
        Recipe(
            "reacher-mixed",
            "rayrl_dt/reacher/mixed-v0",
            "Reacher-v5: Jacobian-transpose reaching of graded skill, returns from -55 to -1",
            f"{_SCRIPTED}:graded",
            episodes=1000,
            settings={"env_id": "Reacher-v5"},
        ),
        *(
            Recipe(
                f"pointmaze-{maze.lower()}",
                f"rayrl_dt/pointmaze/{maze.lower()}-v0",
                f"PointMaze_{maze}-v3: way-points of graded skill, sparse reward",
                f"{_SCRIPTED}:graded",
                episodes=episodes,
                settings={"env_id": f"PointMaze_{maze}-v3"},
                extra="robotics",
            )
            for maze, episodes in (("UMaze", 300), ("Medium", 200))
        ),
        *(
            Recipe(
                f"key-to-door-{size}",
                f"rayrl_dt/key-to-door/random-{size}-v0",
                f"Key-to-Door: {walks:,} uniformly random walks, 3.1% of which succeed",
                f"{_SCRIPTED}:key_to_door",
                episodes=walks,
            )
            for size, walks in (("1k", 1000), ("10k", 10_000))
        ),
        *(
            Recipe(
                f"{game.lower()}-mixed",
                f"rayrl_dt/{game.lower()}/mixed-v0",
                f"ALE/{game}-v5: games of a scripted player of graded skill, returns from {low} to {high}",
                "rayrl_dt.data.recipes.atari:games",
                episodes=episodes,
                settings={"game": game},
                extra="atari",
            )
            for game, episodes, low, high in (
                ("Breakout", 60, 0, 80),
                ("Freeway", 20, 0, 20),
                ("Pong", 24, -21, 19),
            )
        ),
        Recipe(
            "trained",
            "rayrl_dt/{}/replay-v0",
            "any continuous-action environment: SAC's replay, medium and best data (options env, steps)",
            "rayrl_dt.algorithms.baselines.sac_recipe:make",
            episodes=None,
            options=("env", "steps", "overrides"),
        ),
    )
}


def names() -> list[str]:
    """Return the names of all recipes."""
    return list(_RECIPES)


def get(name: str) -> Recipe:
    """Return a recipe.

    Raises:
        UserError: there is none of that name.
    """
    if name not in _RECIPES:
        raise UserError(f"unknown recipe {name!r}.{suggest(name, _RECIPES)}")
    return _RECIPES[name]


def make(
    name: str,
    *,
    seed: int = _SEED,
    episodes: int | None = None,
    dataset_id: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> str:
    """Make a recipe's data set; the same seed makes the same data.

    Args:
        name: the recipe.
        seed: of everything random.
        episodes: how many, instead of the recipe's default.
        dataset_id: the id to give it, instead of the recipe's.
        overwrite: replace a data set of that id.
        progress: called with (done, in all), in episodes (`trained`: environment steps).
        options: of the recipe, if it has any.

    Returns:
        The Minari id (`trained`: of the replay data; medium and best lie beside it).

    Raises:
        UserError: the recipe or an option is unknown, or the id is taken.
    """
    recipe = get(name)
    _check_options(recipe, episodes, options)
    target = dataset_id or _id_of(recipe, options)
    if minari_io.exists(target) and not overwrite:
        raise UserError(f"the data set {target} is there already; overwrite it, or give another dataset_id")
    return recipe.function()(
        dataset_id=target,
        seed=seed,
        episodes=recipe.episodes if episodes is None else episodes,
        overwrite=overwrite,
        progress=progress,
        **recipe.settings,
        **options,
    )


def dataset_id(name: str) -> str:
    """Return the Minari id of the data set that a recipe makes without options.

    Raises:
        UserError: there is no such recipe.
    """
    return _id_of(get(name), {})


def ensure(name: str, **options: Any) -> str:
    """Return the id of a recipe's data set, making it first, with the options of `make`, if it is not there."""
    recipe = get(name)
    target = options.get("dataset_id") or _id_of(recipe, options)
    if not minari_io.exists(target):
        try:
            make(name, **options)
        except UserError:
            if not minari_io.exists(target):
                raise
            # Another process made the same data in the meantime.
    return target


def not_its_own(name: str, seed: Any, episodes: int) -> list[str]:
    """Return a note where the data under a recipe's id are of another seed or size than it makes by itself.

    Args:
        name: the recipe.
        seed: that the data say they were made with; None where they do not say.
        episodes: how many there are.
    """
    if seed is None or (seed, episodes) == (_SEED, get(name).episodes):
        return []
    return [
        f"these are {episodes:,} episodes of seed {seed}, as somebody made them here; the recipe's own are "
        f"{get(name).episodes:,} of seed {_SEED}: type rayrl-dt data make {name} --overwrite to have them"
    ]


def _check_options(recipe: Recipe, episodes: int | None, options: dict[str, Any]) -> None:
    for option in options:
        if option not in recipe.options:
            allowed = ("seed", "episodes", "dataset_id", "overwrite", *recipe.options)
            raise UserError(f"recipe {recipe.name} has no option {option!r}.{suggest(option, allowed)}")
    if episodes is not None and episodes < 1:
        raise UserError(f"episodes is {episodes}; give at least 1")


def _id_of(recipe: Recipe, options: dict[str, Any]) -> str:
    if "{}" not in recipe.dataset_id:
        return recipe.dataset_id
    env = options.get("env")
    if not env:
        raise UserError(f"recipe {recipe.name} needs an environment; give env, for instance env=Pendulum-v1")
    # An id may hold a module or a namespace; data set ids take letters, digits, - and _ only.
    return recipe.dataset_id.format("".join(c if c.isalnum() or c in "-_" else "_" for c in str(env)))
