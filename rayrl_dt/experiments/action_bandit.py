"""Four ways to act, on one state where the best action is not in the data (Action Gradient paper, section 3).

The reward of an action a in [-1, 1] is 1 - a^2, and the data hold actions above 1/2 only: none of them earns more than
3/4. A policy that follows the data's returns stops there, however well it reads them:

    DT    a network from return to action, asked for the data's best return
    TP    the same network, asked for the return that expectile regression predicts (trajectory prediction)
    PG    the same network, trained on with the critic's gradient (equation 9)
    AG    DT's action, refined by the critic while acting (equations 1 and 2)

The critic is a regression of the reward on the action, here by the trainer of every other critic: an episode is one
step, so its targets are the rewards. It extrapolates from (1/2, 1] to below 1/2, and that is what PG and AG live on.
It goes on rising past the best action, of which it knows nothing: AG stops near it because its steps are few, and
`AG with n = 30` climbs on, to actions that the critic likes better and that earn less.

Where the paper is silent: the data are one-sided, for with actions on both sides the mean of the actions of any return
is 0, and a policy trained on squared errors would take the best action by accident. `DT asked for 1` shows what a
return beyond the data does: with one-sided data the network extrapolates as well. PG weighs the critic by 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from rayrl_dt import losses
from rayrl_dt.critics.networks import IQLCritic
from rayrl_dt.critics.passes import layers_of
from rayrl_dt.critics.training import CriticTraining, IQLTrainer, new_critic
from rayrl_dt.critics.transitions import Transitions
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.errors import whole
from rayrl_dt.experiments.return_model import Progress, unseen
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.action_gradient import ActionGradient, climb
from rayrl_dt.reports.document import Block, Paragraph, Picture, Table, Tiles, number
from rayrl_dt.reports.page import result_folder, write_page
from rayrl_dt.reports.style import COLORS, FAINT, INK, canvas, style_axes
from rayrl_dt.seeding import numpy_generator, seeded_weights, torch_generator
from rayrl_dt.types import Trajectory

__all__ = ["METHODS", "SEEDS", "STEPS", "Outcome", "expectile_of", "reward_of", "run", "run_seed"]

METHODS = ("DT", "TP", "PG", "AG")
STEPS = 1_500
"""Gradient steps of each network unless told otherwise: less than a minute for all seeds on one free core."""
SEEDS = 10
SAMPLES = 1_000
EXPECTILE = 0.99
ETA, N = 0.1, 10
WIDTH, BATCH, RATE = 64, 128, 1e-3
BEYOND, FARTHER = "DT asked for 1", "AG with n = 30"
_GRID = np.linspace(-1.0, 1.0, 101, dtype=np.float32)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Outcome:
    """What one seed came to.

    Attributes:
        actions: of each method.
        best: reward of the best action in the data.
        gain: how much higher the critic values AG's action than DT's.
        critic: `(101,)` lower one of the twin critics on equally spaced actions in [-1, 1].
    """

    actions: dict[str, float]
    best: float
    gain: float
    critic: tuple[float, ...]


def reward_of(actions: Any) -> Any:
    """Return 1 - a^2."""
    return 1.0 - actions**2


def expectile_of(values: Array, expectile: float) -> float:
    """Return what expectile regression predicts in a single state: the sample's expectile."""
    found = float(values.mean())
    for _ in range(200):
        weights = np.where(values < found, 1 - expectile, expectile)
        found = float((weights * values).sum() / weights.sum())
    return found


def run_seed(seed: int, *, steps: int) -> Outcome:
    """Train the networks of one seed, each for as many gradient steps, and act by all methods."""
    actions = numpy_generator(seed, "bandit-data").uniform(0.5, 1.0, SAMPLES).astype(np.float32)
    rewards = reward_of(actions)
    data = torch.from_numpy(actions)[:, None], torch.from_numpy(rewards)[:, None]
    critic = _fit_critic(*data, seed=seed, steps=steps)
    policy = _network(seed)
    _fit_policy(policy, *data, seed=seed, steps=steps, critic=None)
    best = float(rewards.max())
    taken = {
        "DT": _act(policy, best),
        "TP": _act(policy, expectile_of(rewards, EXPECTILE)),
        BEYOND: _act(policy, 1.0),
    }
    start = torch.tensor([[taken["DT"]]])
    refined, farther = _climb(critic, start, n=N), _climb(critic, start, n=3 * N)
    _fit_policy(policy, *data, seed=seed, steps=steps, critic=critic)
    taken |= {"PG": _act(policy, best), "AG": float(refined), FARTHER: float(farther)}
    gain = float(_value(critic, refined) - _value(critic, start))
    curve = _value(critic, torch.from_numpy(_GRID)[:, None])
    return Outcome(taken, best, gain, tuple(curve.tolist()))


def _climb(critic: IQLCritic, start: Tensor, *, n: int) -> Tensor:
    """Return AG's action `(1, 1)`."""
    twins = layers_of(critic.q.q1), layers_of(critic.q.q2)
    return climb(twins, torch.zeros(1, 1), start, ActionGradient(eta=ETA, n=n))


def _fit_critic(actions: Tensor, rewards: Tensor, *, seed: int, steps: int) -> IQLCritic:
    """Return a critic of one-step episodes."""
    observations = torch.zeros_like(actions)
    transitions = Transitions(
        pairs=torch.cat([observations, actions], dim=-1),
        rewards=rewards[:, 0],
        following=observations,
        terminated=torch.ones(len(actions), dtype=torch.bool),
    )
    training = CriticTraining(steps=steps, batch_size=BATCH, lr=RATE, hidden=WIDTH, precision="fp32")
    critic = new_critic(_spec(), hidden=WIDTH, seed=seed)
    IQLTrainer(critic, transitions, training, seed=seed).run(steps)
    return critic.requires_grad_(False)


def _spec() -> PolicySpec:
    """Describe a policy of one state and one action dimension."""
    box = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    still, one = np.zeros((2, 1), np.float32), np.ones(1, np.float32)
    episode = Trajectory(still, one[:, None], one, terminated=True)
    store = TrajectoryStore.from_trajectories([episode], DatasetInfo("one state", box, box))
    return PolicySpec.from_store(ModelConfig(backbone="mlp", context_length=1), store, return_scale=1.0)


def _network(seed: int) -> nn.Sequential:
    """Return a policy from return to action: what Decision Transformer is with one state and one step."""
    with seeded_weights(seed, "bandit-policy"):
        hidden = [nn.Linear(1, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()]
        return nn.Sequential(*hidden, nn.Linear(WIDTH, 1), nn.Tanh())


def _fit_policy(
    policy: nn.Sequential,
    actions: Tensor,
    returns: Tensor,
    *,
    seed: int,
    steps: int,
    critic: IQLCritic | None,
) -> None:
    """Fit actions to returns; with a critic, also climb its value, normalized and detached (equation 9)."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=RATE, fused=True)
    generator = torch_generator(seed, "bandit-batches", int(critic is not None))
    rows = torch.randint(len(actions), (steps, BATCH), generator=generator)
    mask = torch.ones(BATCH, 1, dtype=torch.bool)
    for chosen in rows:
        made = policy(returns[chosen])
        loss = losses.masked_mse(made[:, None], actions[chosen][:, None], mask)
        if critic is not None:
            values = critic.q.first(torch.zeros_like(made), made)[:, None]
            loss = loss + losses.td3_actor_loss(values, mask, normalize=True)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _act(policy: nn.Sequential, asked: float) -> float:
    return float(policy(torch.tensor([[asked]])))


@torch.no_grad()
def _value(critic: IQLCritic, actions: Tensor) -> Tensor:
    """Return the lower one of the twin critics for actions `(N, 1)`, `(N,)`."""
    values: Tensor = critic.q(torch.zeros_like(actions), actions).amin(dim=0)
    return values


def run(folder: Path, *, seed: int = 0, steps: int = STEPS, progress: Progress = unseen) -> dict[str, Any]:
    """Run the experiment on `SEEDS` seeds from `seed` on, write `report.html`, and return what `result.json` holds.

    Raises:
        UserError: `steps` or `folder` cannot be.
    """
    whole("--steps", steps, least=1)
    settings = {"experiment": "action-gradient", "seed": seed, "gradient_steps": steps}
    result_folder(folder, settings)
    outcomes = []
    for done in range(SEEDS):
        outcomes.append(run_seed(seed + done, steps=steps))
        progress(done + 1, SEEDS)
    result: dict[str, Any] = {
        **settings,
        "seeds": SEEDS,
        "eta": ETA,
        "n": N,
        "data_best": float(np.mean([outcome.best for outcome in outcomes])),
        "critic_gain_min": min(outcome.gain for outcome in outcomes),
        "methods": {name: _summary(outcomes, name) for name in (*METHODS, BEYOND, FARTHER)},
    }
    blocks = _report(result, _draw(outcomes))
    write_page(folder, "report", "Acting with a critic, in one state", blocks, result=result)
    return result


def _summary(outcomes: list[Outcome], name: str) -> dict[str, Any]:
    actions = np.array([outcome.actions[name] for outcome in outcomes])
    rewards = reward_of(actions)
    return {
        "actions": actions.tolist(),
        "rewards": rewards.tolist(),
        "mean": float(rewards.mean()),
        "std": float(rewards.std()),
        "min": float(rewards.min()),
    }


def _draw(outcomes: list[Outcome]) -> Figure:
    figure, (axes,) = canvas(1, 1, (7.6, 4.4))
    axes.axvspan(0.5, 1.0, color="#f1f3f5", zorder=0)
    axes.text(0.75, 1.16, "data", ha="center", fontsize=8.5, color=FAINT)
    for index, outcome in enumerate(outcomes):
        name = "critic of each seed" if index == 0 else None
        axes.plot(_GRID, outcome.critic, color=FAINT, lw=0.7, alpha=0.6, label=name)
    axes.plot(_GRID, reward_of(_GRID), color=INK, lw=1.6, label="reward")
    styles = zip(METHODS, COLORS[: len(METHODS)], "os^D", strict=True)
    for name, color, marker in styles:
        actions = np.array([outcome.actions[name] for outcome in outcomes])
        axes.plot(actions, reward_of(actions), ls="", marker=marker, ms=6, color=color, label=name, alpha=0.8)
    axes.set_ylim(-0.25, 1.25)
    style_axes(axes, f"What each method does, {len(outcomes)} seeds", "action", "reward")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower center")
    return figure


def _report(result: dict[str, Any], figure: Figure) -> list[Block]:
    methods = result["methods"]
    means = {name: number(numbers["mean"], 3) for name, numbers in methods.items()}
    tiles = [(name, means[name], "mean reward") for name in METHODS]
    return [
        Paragraph(
            f"Seeds {result['seed']} to {result['seed'] + SEEDS - 1}; the reward is 1 \u2212 a\u00b2, and actions in "
            "the data lie above 0.5",
            "muted",
        ),
        Paragraph(
            f"The best action of the data earns {number(result['data_best'], 3)}, DT {means['DT']}. A critic's "
            f"gradient earns {means['PG']} in training (PG), and {means['AG']} while acting (AG)."
        ),
        Tiles([("Best in the data", number(result["data_best"], 3), ""), *tiles]),
        Picture("actions.png", figure, "Reward, what the critics make of it, and the actions of each method"),
        Table(
            ["Method", "Mean reward", "± std", "Lowest"],
            [
                [name, *(number(numbers[key], 3) for key in ("mean", "std", "min"))]
                for name, numbers in methods.items()
            ],
        ),
        Paragraph(
            f"Action gradient: \u03b7 {ETA:g}, n {N}. By the critic's own account its action is never worse than "
            f"DT's: the smallest gain is {number(result['critic_gain_min'], 3)}. A return beyond the data makes the "
            "network extrapolate, which helps here and is luck elsewhere. The critic rises past the best action, so "
            "that more steps climb to actions that earn less."
        ),
    ]
