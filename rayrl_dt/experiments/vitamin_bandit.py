"""A bandit that supervised finetuning cannot climb and a critic's gradient can (the toy example of TD3+ODT).

One state, actions in [-1, 1], reward (a + 1)^2 up to 0 and 1 - 2a beyond: the best action is 0. The logged actions lie
at both far ends, 100 in (-1, -0.95) and 28 in (0.5, 1), so none earns more than 0.0025. A policy pi(R) is fitted to
them, then acts on R = 1, learns from what it tried, and so on. Whether it finds the top is a matter of the loss,
w_BC (pi(R) - a)^2 - w_Q Q(pi(R)), with R the reward that the replayed action a earned. It has found it where the
policy, asked for the best reward, earns more than 0.8.

The authors' script is one seed with the weights 0.02 and 1, and its critic is told the reward that it predicts; here
are many seeds and several weights, and a plain critic too. All of them train at once: the weights of the networks are
stacked along a leading dimension. Seeds differ in data, initial weights, batches and noise; methods of one seed differ
in nothing but their losses.

Where the paper is silent: networks have ReLU layers and PyTorch's initial weights, the policy ends in a tanh; the
replay keeps everything; an epoch is one pass over it in shuffled batches, the critic's step before the policy's; all
methods pretrain with the supervised loss alone, the critics beside them. There is nothing to bootstrap from, so there
are no target networks.

Shape legend: M methods, S seeds, N = M * S learners (those of the first method first), D logged actions, B batch.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rayrl_dt.errors import whole
from rayrl_dt.experiments.bandit_learners import Learners, Method, of_seeds
from rayrl_dt.experiments.return_model import Progress, unseen
from rayrl_dt.reports.document import Block, Paragraph, Picture, Table, Tiles, number
from rayrl_dt.reports.page import result_folder, write_page
from rayrl_dt.reports.style import COLORS, FAINT, INK, canvas, style_axes
from rayrl_dt.seeding import numpy_generator

__all__ = ["METHODS", "run"]

EPOCHS = 40
"""Online epochs unless told otherwise; the paper has 16."""
COUNTED = (16, 40)
"""Online epochs after which successes are counted."""
SEEDS = 20
PRETRAIN_EPOCHS = 5
ROLLOUTS = 64
NOISE = 0.01
BATCH_SIZE = 32
LOW, LOW_COUNT = (-1.0, -0.95), 100
HIGH, HIGH_COUNT = (0.5, 1.0), 28
BEST_REWARD = 1.0
SUCCESS = 0.8


METHODS = (
    Method("ODT", 1.0, 0.0),
    Method("DDPG", 0.0, 1.0),
    Method("0.02 BC - Q", 0.02, 1.0),
    Method("0.02 BC - Q, reward-fed critic", 0.02, 1.0, reward_fed=True),
    Method("BC - 0.1 Q", 1.0, 0.1),
    Method("BC - Q", 1.0, 1.0),
)


def reward(actions: Tensor) -> Tensor:
    """Return what actions earn, elementwise: 0 at -1, 1 at 0, -1 at 1."""
    return torch.where(actions <= 0, (actions + 1).square(), 1 - 2 * actions)


def logged_actions(seed: int, seeds: int) -> Tensor:
    """Return the logged actions of each seed, `(S, D)`."""
    rows = []
    for member in range(seeds):
        rng = numpy_generator(seed, "bandit-data", member)
        rows.append(np.concatenate([rng.uniform(*LOW, LOW_COUNT), rng.uniform(*HIGH, HIGH_COUNT)]))
    return torch.tensor(np.array(rows), dtype=torch.float32)


def train(
    *,
    seed: int,
    epochs: int,
    seeds: int,
    methods: tuple[Method, ...] = METHODS,
    progress: Progress = unseen,
) -> Tensor:
    """Pretrain and finetune each of M methods with each of S seeds, for as many online epochs.

    Returns:
        `(epochs + 1, M, S)` actions of each policy asked for the best reward, before finetuning and after each epoch.
    """
    learners = Learners(methods, seeds, seed)
    replay = logged_actions(seed, seeds).repeat(len(methods), 1)
    for epoch in range(PRETRAIN_EPOCHS):
        _epoch(learners, replay, seed, epoch, seeds, online=False)
    learners.restart_optimizers()
    best = torch.full((len(replay), 1), BEST_REWARD)
    course = [learners.act(best).detach()]
    for epoch in range(epochs):
        noise = of_seeds(seeds, partial(torch.rand, ROLLOUTS), seed, "bandit-noise", epoch)
        tried = course[-1] + NOISE * (2 * noise - 1).repeat(len(methods), 1)
        replay = torch.cat([replay, tried.clamp(-1.0, 1.0)], dim=1)
        _epoch(learners, replay, seed, PRETRAIN_EPOCHS + epoch, seeds, online=True)
        course.append(learners.act(best).detach())
        progress(epoch + 1, epochs)
    return torch.stack(course).view(epochs + 1, len(methods), seeds)


def _epoch(learners: Learners, replay: Tensor, seed: int, epoch: int, seeds: int, *, online: bool) -> None:
    """Make one pass over the replayed actions `(N, R)`, shuffled alike for all methods of a seed."""
    orders = of_seeds(seeds, partial(torch.randperm, replay.shape[1]), seed, "bandit-order", epoch)
    shuffled = replay.gather(1, orders.repeat(len(replay) // seeds, 1))
    for actions in torch.split(shuffled, BATCH_SIZE, dim=1):
        learners.update(actions, reward(actions), online=online)


def run(
    folder: Path,
    *,
    seed: int = 0,
    epochs: int = EPOCHS,
    seeds: int = SEEDS,
    progress: Progress = unseen,
) -> dict[str, Any]:
    """Run the experiment, write `report.html` into the folder, and return what `result.json` beside it holds.

    Raises:
        UserError: `epochs`, `seeds` or `folder` cannot be.
    """
    whole("--epochs", epochs, least=1)
    whole("--seeds", seeds, least=1)
    settings = {"experiment": "vitamin-bandit", "seed": seed, "seeds": seeds, "online_epochs": epochs}
    result_folder(folder, settings)
    taken = train(seed=seed, epochs=epochs, seeds=seeds, progress=progress)
    actions, rewards = taken.double(), reward(taken).double()
    counted = sorted({epoch for epoch in COUNTED if epoch < epochs} | {epochs})
    result: dict[str, Any] = {
        **settings,
        "methods": {
            method.name: {
                "bc_weight": method.bc_weight,
                "q_weight": method.q_weight,
                "reward_fed": method.reward_fed,
                "successes": {str(epoch): int((rewards[epoch, index] > SUCCESS).sum()) for epoch in counted},
                "action": actions[:, index].mean(dim=-1).tolist(),
                "reward": rewards[:, index].mean(dim=-1).tolist(),
            }
            for index, method in enumerate(METHODS)
        },
    }
    write_page(folder, "report", "Which loss finds the top of a bandit?", _report(result), result=result)
    return result


def _draw(result: dict[str, Any], what: str, title: str) -> Figure:
    figure, (axes,) = canvas(1, 1, (7.6, 4.0))
    best, wanted = {"reward": (BEST_REWARD, SUCCESS), "action": (0.0, None)}[what]
    for level in (best, wanted):
        if level is not None:
            axes.axhline(level, color=FAINT, lw=0.8, ls=(0, (5, 4)), zorder=1)
    for index, (name, numbers) in enumerate(result["methods"].items()):
        dashes = ("-", "--", "-.")[index % 3]
        axes.plot(numbers[what], lw=1.8, color=COLORS[index], ls=dashes, label=name)
    style_axes(axes, title, "online epochs", f"{what}, mean of {result['seeds']} seeds")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _report(result: dict[str, Any]) -> list[Block]:
    methods, seeds = result["methods"], result["seeds"]
    epochs = list(next(iter(methods.values()))["successes"])
    found = {name: methods[name]["successes"][epochs[-1]] for name in ("ODT", "DDPG", "0.02 BC - Q")}
    tiles = [
        (name, f"{count} of {seeds}", f"find the top within {epochs[-1]} epochs")
        for name, count in found.items()
    ]
    rewards = _draw(result, "reward", "Reward of the policies asked for the best")
    actions = _draw(result, "action", "Action of the policies asked for the best reward")
    return [
        Paragraph(f"{seeds} seeds of each method, derived from {result['seed']}", "muted"),
        Paragraph(
            f"Of {seeds} seeds {found['ODT']} find the top within {epochs[-1]} online epochs with ODT's loss, "
            f"{found['DDPG']} with DDPG's, and {found['0.02 BC - Q']} with a little of ODT's beside it."
        ),
        Tiles(tiles),
        Paragraph(
            f"The best action, 0, earns {BEST_REWARD:g}; the logged ones lie at both ends and earn next to nothing. A "
            f"seed succeeds where the policy, asked for a reward of {BEST_REWARD:g}, earns more than {SUCCESS:g}."
        ),
        Table(
            ["Method", *(f"Successes after {epoch}" for epoch in epochs), "Mean reward", "Mean action"],
            [
                [
                    name,
                    *(f"{numbers['successes'][epoch]} / {seeds}" for epoch in epochs),
                    number(numbers["reward"][-1], 2),
                    number(numbers["action"][-1], 2),
                ]
                for name, numbers in methods.items()
            ],
        ),
        Picture(
            "rewards.png",
            rewards,
            "Mean reward of each method's policies after each online epoch",
        ),
        Picture(
            "actions.png",
            actions,
            "Mean action of each method's policies after each online epoch",
        ),
    ]
