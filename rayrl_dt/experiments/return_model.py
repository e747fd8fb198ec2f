"""A causal transformer that predicts returns as well as actions, and the loop that trains it.

Decision Transformer (Chen et al. 2021) reads (R_t, s_t, a_t) and predicts actions. Two of the paper's
experiments let it predict returns too: the shortest path of a graph (section 1) and the critic (section 5).
Here returns are classes, and each head reads the token right *before* the one that it predicts; a head that
read R_t itself would copy its input. A learned start token stands before the first.

States and actions are numbered, as returns are. There is no dropout: it kept both experiments from learning.

Shape legend: B batch, N sequences, K steps, T = 1 + 3K tokens, P predicted returns, C return classes,
A actions, L layers, H heads, d width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rayrl_dt import losses, precision
from rayrl_dt.errors import TrainingDiverged
from rayrl_dt.models.blocks import Block, attention_bias
from rayrl_dt.models.dropout import DropoutSource
from rayrl_dt.seeding import numpy_generator, seeded_weights

__all__ = ["CRITIC_ORDER", "GRAPH_ORDER", "Progress", "ReturnModel", "Sequences", "fit", "unseen"]

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is, mostly in gradient steps."""


def unseen(done: int, total: int) -> None:
    """Take progress that nobody watches."""


CRITIC_ORDER = ("return", "state", "action")
"""The paper's order: the return of a step is predicted from the steps before it."""
GRAPH_ORDER = ("state", "return", "action")
"""The return of a step is predicted from its state too, so that it can be chosen for a given start."""


@dataclass(frozen=True)
class Sequences:
    """Episodes from their first step on, padded at the end; what padding holds has no influence.

    Attributes:
        returns: `(N, K + 1)` int64, the class of the return-to-go at each step and after the last.
        states: `(N, K)` int64.
        actions: `(N, K)` int64.
        lengths: `(N,)` int64, the real steps of each episode.
    """

    returns: Tensor
    states: Tensor
    actions: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: Tensor | slice) -> Sequences:
        return Sequences(self.returns[rows], self.states[rows], self.actions[rows], self.lengths[rows])


class ReturnModel(nn.Module):
    """A pre-norm GPT-2 body over a start token and the three tokens of each step, with two heads.

    The sizes are those of the shape legend; `states` are how many there are, `order` says what a step's tokens are, the
    action last, and `seed` decides the initial weights.
    """

    def __init__(
        self,
        *,
        return_classes: int,
        states: int,
        actions: int,
        steps: int,
        order: tuple[str, ...] = CRITIC_ORDER,
        width: int = 64,
        layers: int = 2,
        heads: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.order = order
        self.withheld = return_classes
        source = DropoutSource()  # blocks want one; at a probability of zero nothing is drawn
        with seeded_weights(seed, "init"):
            # One class more: an input return may be withheld.
            self.embed_return = nn.Embedding(return_classes + 1, width)
            self.embed_state = nn.Embedding(states, width)
            self.embed_action = nn.Embedding(actions, width)
            self.embed_step = nn.Embedding(steps, width)
            self.start = nn.Parameter(torch.randn(width))
            self.norm_embedding = nn.LayerNorm(width)
            self.blocks = nn.ModuleList(Block(width, heads, 0.0, "gelu", source) for _ in range(layers))
            self.norm = nn.LayerNorm(width)
            self.return_head = nn.Linear(width, return_classes)
            self.action_head = nn.Linear(width, actions)

    def forward(self, returns: Tensor, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Predict each step's return and action from the tokens before them.

        Args:
            returns: `(B, K)` int64 classes; `withheld` stands for one that is not given.
            states: `(B, K)` int64.
            actions: `(B, K)` int64; the last one is not seen by any action.

        Returns:
            Return logits `(B, P, C)` and action logits `(B, K, A)`. P is K, or K + 1 where steps begin with their
            return: the last action then is followed by one more, that of what is left when all is done.
        """
        x = self._tokens(returns, states, actions)
        bias = attention_bias(None, x.shape[1], 3, x)
        for block in self.blocks:
            x = block(x, bias)
        x = self.norm(x)
        # Token 1 + i of the sequence is number i of the first step, so token i is the one before it.
        before_return, before_action = (x[:, self.order.index(name) :: 3] for name in ("return", "action"))
        return self.return_head(before_return), self.action_head(before_action)

    def attention(self, returns: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """Return the attention weights `(B, L, H, T, T)`; the arguments are those of `forward`."""
        x = self._tokens(returns, states, actions)
        bias = attention_bias(None, x.shape[1], 3, x)
        weights = []
        for block in self.blocks:
            assert isinstance(block, Block)
            projected = block.attention.qkv(block.norm_attention(x))
            query, key, _ = projected.unflatten(-1, (3, block.attention.heads, -1)).permute(2, 0, 3, 1, 4)
            scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
            weights.append((scores + bias).softmax(dim=-1))
            x = block(x, bias)
        return torch.stack(weights, dim=1)

    def _tokens(self, returns: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        """Return the embedded sequence `(B, T, d)`."""
        embedded = {
            "return": self.embed_return(returns),
            "state": self.embed_state(states),
            "action": self.embed_action(actions),
        }
        steps = torch.stack([embedded[name] for name in self.order], dim=2)
        steps = steps + self.embed_step.weight[: returns.shape[1], None]
        start = self.start.expand(len(steps), 1, -1)
        tokens: Tensor = self.norm_embedding(torch.cat([start, steps.flatten(1, 2)], dim=1))
        return tokens


def fit(
    model: ReturnModel,
    data: Sequences,
    *,
    steps: int,
    seed: int,
    batch_size: int = 64,
    lr: float = 3e-3,
    warmup: int = 50,
    give_returns: bool = True,
    emphasis: int | None = None,
    progress: Progress = unseen,
) -> list[float]:
    """Minimize the cross-entropy of returns plus that of actions over real steps, and return each step's loss in nats.

    By AdamW with linear warm-up, then a cosine to zero, and gradient norms clipped at 1.

    Args:
        model: what to train, in place.
        data: what to train on.
        steps: gradient steps.
        seed: of the batches.
        batch_size: sequences per gradient step.
        lr: the highest learning rate.
        warmup: gradient steps until it is reached.
        give_returns: whether the model reads returns; it predicts them all the same.
        emphasis: the return predicted after this many steps enters the loss once more, as a mean of its own.
        progress: called after each gradient step.

    Raises:
        TrainingDiverged: the loss became NaN or infinite.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.1)
    arithmetic = precision.resolve("auto", "cpu")
    history = []
    for step in range(steps):
        rng = numpy_generator(seed, "batch", step)
        batch = data[torch.from_numpy(rng.integers(len(data), size=batch_size))]
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / warmup, 1.0) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        with precision.autocast("cpu", arithmetic):
            loss = _loss(model, batch, give_returns, emphasis)
        if not bool(torch.isfinite(loss)):
            raise TrainingDiverged(f"the loss became {loss.item()} at gradient step {step}; lower the rate")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        history.append(float(loss.detach()))
        progress(step + 1, steps)
    return history


def _loss(model: ReturnModel, batch: Sequences, give_returns: bool, emphasis: int | None) -> Tensor:
    given = batch.returns[:, :-1]
    if not give_returns:
        given = torch.full_like(given, model.withheld)
    returns, actions = model(given, batch.states, batch.actions)
    truth = batch.returns[:, : returns.shape[1]]
    steps, lengths = torch.arange(returns.shape[1]), batch.lengths[:, None]
    taken = steps[: actions.shape[1]] < lengths
    # Where a return follows the last action, it is predicted too.
    predicted = steps < lengths + returns.shape[1] - actions.shape[1]
    loss = losses.cross_entropy(returns, truth, predicted)
    loss = loss + losses.cross_entropy(actions, batch.actions, taken)
    if emphasis is not None:
        loss = loss + losses.cross_entropy(returns, truth, predicted & (steps == emphasis))
    return loss
