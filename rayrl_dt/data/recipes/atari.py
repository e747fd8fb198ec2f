"""Real games of Atari of graded skill, by scripted players, without training.

A graded player is disturbed by bursts: at a step outside of one it begins with probability p, and holds one random
action for up to so many steps. p is drawn per episode, evenly in its logarithm. Every tenth episode is uniformly
random, every tenth undisturbed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from rayrl_dt import envs, seeding
from rayrl_dt.data.readers import minari_io
from rayrl_dt.data.recipes.behavior import CLEAN, RANDOM, kind_of
from rayrl_dt.data.recipes.players import BreakoutPlayer, CleanFreewayPlayer, FreewayPlayer, Player
from rayrl_dt.data.recipes.pong import PongPlayer
from rayrl_dt.data.recipes.rollouts import Progress
from rayrl_dt.data.recipes.scripted import AUTHOR, requirements
from rayrl_dt.types import RawEpisode

__all__ = ["games", "play"]

_PLAYERS: dict[str, tuple[type[Player], type[Player]]] = {
    "Breakout": (BreakoutPlayer, BreakoutPlayer),
    "Freeway": (FreewayPlayer, CleanFreewayPlayer),
    "Pong": (PongPlayer, PongPlayer),
}
"""Of each game who plays the graded episodes, and who the undisturbed ones."""


def play(game: str, *, episodes: int, seed: int, progress: Progress | None = None) -> Iterator[RawEpisode]:
    """Yield episodes; episode i is the same however many there are.

    Args:
        game: one that has a player.
        episodes: how many.
        seed: of no-ops and players.
        progress: called after each episode.
    """
    env = envs.make(f"ALE/{game}-v5")
    graded, clean = _PLAYERS[game]
    try:
        for number in range(episodes):
            rng = seeding.numpy_generator(seed, "recipe/behavior", number)
            kind = int(kind_of(np.array(number)))
            player = (clean if kind == CLEAN else graded)(env, rng)
            low, high = (0.0, 0.0) if kind == CLEAN else (player.worst, player.best)
            # Evenly in the logarithm.
            chance = low * (high / low) ** rng.random() if low else 0.0
            yield _episode(env, player, 1.0 if kind == RANDOM else chance, kind == RANDOM, seed, number)
            if progress is not None:
                progress(number + 1, episodes)
    finally:
        env.close()


def _episode(env: Any, player: Player, chance: float, random: bool, seed: int, number: int) -> RawEpisode:
    reset_seed = seeding.derive_seed(seed, "recipe/reset", number) % 2**31
    frames, actions, rewards = [env.reset(seed=reset_seed)[0]], [], []
    held, steps, terminated, over = 0, 0, False, False
    rng, count = player.rng, int(env.action_space.n)
    while not over:
        own = player.act(env.unwrapped.ale.getRAM().astype(np.int64))
        if steps == 0 and rng.random() < chance:
            held = int(rng.integers(count))
            steps = 1 if random else int(rng.integers(1, player.burst + 1))
        action = held if steps else own
        steps = max(steps - 1, 0)
        frame, reward, terminated, truncated, _ = env.step(action)
        frames.append(frame)
        actions.append(action)
        rewards.append(reward)
        over = terminated or truncated
    return RawEpisode(
        observations=np.stack(frames),
        actions=np.array(actions, np.int64),
        rewards=np.array(rewards, np.float32),
        terminated=terminated,
        seed=reset_seed,
    )


def games(
    *, dataset_id: str, seed: int, episodes: int, overwrite: bool, progress: Progress | None, game: str
) -> str:
    """Write episodes of graded skill in a game that has a player."""
    recorded = envs.RecordedEnv.named(f"ALE/{game}-v5")
    env = recorded.make()
    try:
        return minari_io.write(
            dataset_id,
            play(game, episodes=episodes, seed=seed, progress=progress),
            observation_space=env.observation_space,
            action_space=env.action_space,
            env_spec=recorded.spec(),
            author=AUTHOR,
            algorithm_name="scripted player of graded skill",
            description=(
                f"{game}, {episodes} whole games in the papers' preprocessing, single frames of 84 x 84. Every tenth "
                "episode is uniformly random, every tenth the undisturbed player; the others are disturbed by bursts "
                "of one held action. The recorded seeds and actions replay to the same frames."
            ),
            requirements=requirements("gymnasium", "ale-py"),
            seed=seed,
            overwrite=overwrite,
        )
    finally:
        env.close()
