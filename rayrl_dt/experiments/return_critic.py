"""Decision Transformer as a critic: how likely is success, while an episode runs (paper, section 5).

In Key-to-Door the only reward, 1 or 0, comes with the last step, so that each return-to-go of an episode tells
its outcome. A Decision Transformer that also predicts return tokens learns how likely success is, from what has
happened so far: before anything happens p(R_1), the share of successes in the data; then it should rise when
the key is taken and jump at the door.

Where the paper is silent: it says that the first return is not supplied. We supply none, neither in training nor
later, for any later one would give the outcome away just as well; and after the last action the outcome is
predicted once more, as with delayed rewards every return-to-go is the episode's return. What the first step in
the door room did, which decides, is one prediction in sixteen; it enters the loss once more, as a mean of its
own, or else the door would be learned long after the key. Observations are numbered (the task has 123).
The model learns from 10,000 uniformly random walks, as the recipe `key-to-door-10k` makes them, and is judged on
others.

Shape legend: N episodes, K steps (15), T = 1 + 3K tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rayrl_dt.data.recipes.scripted import random_walks
from rayrl_dt.envs.key_to_door import KeyToDoor, success_probability
from rayrl_dt.errors import whole
from rayrl_dt.experiments.return_model import Progress, ReturnModel, Sequences, fit, unseen
from rayrl_dt.reports.document import Block, Paragraph, Picture, Table, Tiles, number, percent
from rayrl_dt.reports.page import result_folder, write_page
from rayrl_dt.reports.style import COLORS, FAINT, INK, canvas, style_axes
from rayrl_dt.types import RawEpisode

__all__ = ["STEPS", "run"]

KINDS = ("no key", "key, but no success", "success")
TOKENS = ("return", "state", "action")
HORIZON = sum(KeyToDoor.room_steps)
KEY_STEP = KeyToDoor.room_steps[0]
"""The key can be reached by the last step in its room, and by no other."""
DOOR_STEP = sum(KeyToDoor.room_steps[:2]) + 1
"""The door can be reached by the first step in its room, and by no other: one wrong move misses it."""
EXACT = {"at the start": float(success_probability()), "with the key": 1 / 4}
"""How likely a random walk succeeds: one of the four moves leads to the door."""
STEPS = 2_000
"""Gradient steps unless told otherwise: about a minute on one free core."""
_LR = 1e-3
"""With three times as much, whether 2,000 steps teach what key and door bring together hangs on the seed."""
WALKS = 10_000
HELD_OUT = 4_000
EPISODES_PER_KIND = 100

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Episodes:
    """Random walks in Key-to-Door.

    Attributes:
        sequences: returns are 1 for success and 0 for failure, states are numbers of observations.
        kinds: `(N,)` indices into `KINDS`.
        states: how many different observations there are.
    """

    sequences: Sequences
    kinds: Array
    states: int

    def __getitem__(self, rows: slice) -> Episodes:
        return Episodes(self.sequences[rows], self.kinds[rows], self.states)

    def of_kind(self, kind: str, *, at_most: int = EPISODES_PER_KIND) -> Sequences:
        """Return the first episodes of a kind."""
        rows = np.flatnonzero(self.kinds == KINDS.index(kind))[:at_most]
        return self.sequences[torch.from_numpy(rows)]


def collect(walks: int, *, seed: int) -> Episodes:
    """Make uniformly random walks; walk i is the same however many there are, but for the numbers of its states."""
    env = KeyToDoor()
    observations = np.zeros((walks, HORIZON, *(env.observation_space.shape or ())), np.float32)
    actions = np.zeros((walks, HORIZON), np.int64)
    returns, kinds, lengths = (np.zeros(walks, np.int64) for _ in range(3))
    # Each walk is played again, as only the environment tells whether the key was taken.
    for row, walk in enumerate(random_walks(KeyToDoor(), seed, walks, None)):
        length = lengths[row] = len(walk.actions)
        observations[row, :length] = walk.observations[:-1]
        actions[row, :length] = walk.actions
        returns[row] = walk.rewards.sum()
        kinds[row] = _has_key(env, walk) + returns[row]
    different, states = np.unique(observations.reshape(walks * HORIZON, -1), axis=0, return_inverse=True)
    sequences = Sequences(
        # What is left to come is the outcome until the end, and once more after it.
        returns=torch.from_numpy(returns)[:, None].expand(-1, HORIZON + 1),
        states=torch.from_numpy(states.reshape(walks, HORIZON)),
        actions=torch.from_numpy(actions),
        lengths=torch.from_numpy(lengths),
    )
    return Episodes(sequences, kinds, len(different))


def _has_key(env: KeyToDoor, walk: RawEpisode) -> bool:
    env.reset(seed=walk.seed)
    return any([env.step(action)[-1]["has_key"] for action in walk.actions])


def train(episodes: Episodes, *, seed: int, steps: int, progress: Progress = unseen) -> ReturnModel:
    """Train a model of the episodes' returns and actions that is never given a return."""
    model = ReturnModel(return_classes=2, states=episodes.states, actions=4, steps=HORIZON, seed=seed)
    how = {"steps": steps, "seed": seed, "emphasis": DOOR_STEP}
    fit(model, episodes.sequences, give_returns=False, progress=progress, lr=_LR, **how)
    return model


@torch.inference_mode()
def success_so_far(model: ReturnModel, episodes: Sequences) -> Array:
    """Return how likely success is after 0, 1, ... K steps, `(N, K + 1)`; NaN after an episode's end."""
    logits, _ = model(*_without_returns(model, episodes))
    going_on = torch.arange(HORIZON + 1) <= episodes.lengths[:, None]
    likely: Array = logits.softmax(dim=-1)[..., 1].where(going_on, torch.nan).numpy()
    return likely


@torch.inference_mode()
def attention_received(model: ReturnModel, episodes: Sequences) -> Array:
    """Return how much the predictions of returns look at each earlier token, `(N, T)`.

    It is a mean over layers, heads and the predictions of the episode that are read after the token; the tokens
    from the last prediction on have none.
    """
    weights = model.attention(*_without_returns(model, episodes)).mean(dim=(1, 2))
    tokens = torch.arange(weights.shape[-1])
    readers = tokens[:: len(TOKENS)]
    after = (readers[:, None] > tokens) & (readers <= len(TOKENS) * episodes.lengths[:, None])[..., None]
    received = (weights[:, readers] * after).sum(dim=1) / after.sum(dim=1).clamp(min=1)
    result: Array = received.numpy()
    return result


def _without_returns(model: ReturnModel, episodes: Sequences) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the model reads, which is no return at all."""
    return torch.full_like(episodes.actions, model.withheld), episodes.states, episodes.actions


def run(folder: Path, *, seed: int = 0, steps: int = STEPS, progress: Progress = unseen) -> dict[str, Any]:
    """Run the experiment, write `report.html` into the folder, and return what `result.json` beside it holds.

    Raises:
        UserError: `steps` or `folder` cannot be.
    """
    whole("--steps", steps, least=1)
    settings = {"experiment": "critic", "seed": seed, "gradient_steps": steps}
    result_folder(folder, settings)
    walks = collect(WALKS + HELD_OUT, seed=seed)
    model = train(walks[:WALKS], seed=seed, steps=steps, progress=progress)
    held_out = walks[WALKS:]
    kinds = {kind: _summary(model, held_out.of_kind(kind)) for kind in KINDS}
    shown = held_out.of_kind("success", at_most=1)
    length = int(shown.lengths[0])
    start, *received = attention_received(model, shown)[0].tolist()[: 1 + len(TOKENS) * length]
    attention = {"start": start} | {name: received[i :: len(TOKENS)] for i, name in enumerate(TOKENS)}
    result = {
        **settings,
        "walks": WALKS,
        "exact": EXACT,
        "kinds": kinds,
        "attention": attention,
    }
    write_page(folder, "report", "A Decision Transformer as a critic", _report(result), result=result)
    return result


def _summary(model: ReturnModel, episodes: Sequences) -> dict[str, Any]:
    """Return the mean prediction of one kind of episodes after each step, and at the moments that matter.

    At the door means after each episode's last step.
    """
    likely = success_so_far(model, episodes)
    last = likely[np.arange(len(likely)), episodes.lengths.numpy()]
    means = [float(column[~np.isnan(column)].mean()) for column in likely.T if not np.isnan(column).all()]
    middle = KEY_STEP + KeyToDoor.room_steps[1] // 2
    return {
        "episodes": len(episodes),
        "probability": means,
        "at": {
            "start": means[0],
            "key": means[KEY_STEP],
            "middle": means[middle],
            "door": float(last.mean()),
        },
    }


def _draw_success(kinds: dict[str, Any]) -> Figure:
    figure, (axes,) = canvas(1, 1, (7.6, 4.0))
    ends = np.cumsum([0, *KeyToDoor.room_steps])
    for begin, end, room in zip(ends, ends[1:], ("key room", "empty room", "door room"), strict=False):
        axes.axvline(end, color=FAINT, lw=0.8, ls=":", zorder=1)
        axes.text((begin + end) / 2, 104, room, ha="center", fontsize=8.5, color=FAINT)
    for index, (kind, numbers) in enumerate(kinds.items()):
        shares = 100 * np.array(numbers["probability"])
        style = {"color": COLORS[index], "marker": "os^"[index], "ls": ("-", "--", "-")[index]}
        axes.plot(np.arange(len(shares)), shares, lw=1.8, ms=4.5, label=kind, **style)
    for (where, share), shift in zip(EXACT.items(), (1.5, -7), strict=True):
        axes.axhline(100 * share, color=FAINT, lw=0.8, ls=(0, (5, 4)), zorder=1)
        text = f"exact {where}: {percent(share)}"
        axes.text(12.8, 100 * share + shift, text, ha="right", fontsize=8, color=FAINT)
    axes.set_ylim(-3, 112)
    axes.set_xlim(-0.4, HORIZON + 0.4)
    axes.set_yticks(range(0, 101, 25))
    axes.set_xticks(range(HORIZON + 1))
    style_axes(axes, "How likely is success?", "steps done", "predicted probability of success (%)")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="center", bbox_to_anchor=(0.5, 0.62))
    return figure


def _draw_attention(attention: dict[str, Any]) -> Figure:
    figure, (axes,) = canvas(1, 1, (7.6, 3.4))
    steps = np.arange(1, len(attention["state"]) + 1)
    for index, name in enumerate(TOKENS):
        axes.bar(steps + 0.28 * (index - 1), attention[name], width=0.26, color=COLORS[index], label=name)
    axes.bar(0, attention["start"], width=0.26, color=FAINT, label="start")
    names = {KEY_STEP: "takes\nthe key", DOOR_STEP: "opens\nthe door"}
    ticks = [f"{step}\n{names.get(step, '')}".strip() for step in steps.tolist()]
    axes.set_xticks([0, *steps], ["", *ticks])
    title = "Where the predictions look, in one successful episode"
    style_axes(axes, title, "step of the token", "mean attention")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, ncols=2)
    return figure


def _report(result: dict[str, Any]) -> list[Block]:
    kinds = result["kinds"]
    with_key, without = kinds["success"]["at"], kinds["no key"]["at"]
    return [
        Paragraph(f"{number(result['walks'])} random walks, seed {result['seed']}", "muted"),
        Paragraph(
            f"With the key the model expects success with probability {percent(with_key['key'])}, without it with "
            f"{percent(without['key'])}; exact are {percent(EXACT['with the key'])} and 0%."
        ),
        Tiles(
            [
                (
                    "Before the first step",
                    percent(with_key["start"]),
                    f"exact {percent(EXACT['at the start'])}",
                ),
                ("With the key", percent(with_key["key"]), f"exact {percent(EXACT['with the key'])}"),
                ("Without the key", percent(without["key"]), "exact 0%"),
                ("At the door, with the key", percent(with_key["door"]), "exact 100%"),
            ]
        ),
        Paragraph(
            "The model reads states and actions, and predicts after each step how likely the episode will succeed. "
            "It was trained on uniformly random walks; these are the means over others, of three kinds."
        ),
        Picture(
            "success.png",
            _draw_success(kinds),
            "Predicted probability of success after each step, for three kinds of episodes",
        ),
        Table(
            ["Episodes", "Number", "Start", "After the key room", "Halfway", "At the end"],
            [
                [kind.capitalize(), number(numbers["episodes"]), *map(percent, numbers["at"].values())]
                for kind, numbers in kinds.items()
            ],
        ),
        Picture(
            "attention.png",
            _draw_attention(result["attention"]),
            "Attention that the predictions of one successful episode pay to each token",
            "Mean over layers, heads and the predictions that come after the token. What is learned about the key "
            "may be kept in the tokens right after it.",
        ),
    ]
