"""Where a trained transformer looks: the attention that returns, states and actions receive, layer by layer.

Everything is averaged over the heads and over the state tokens of real steps as queries, because actions are read
there. Backbones: "dt" (return, state, action), "no-return" and "radt" (state, action); the latter's SeqRA also
attends to the returns of the window.

The *return share* is one number for a whole policy, comparable between DT and RADT. Per layer and query it is

    sum over the attentions of |what it adds| * (its mass on returns)  /  sum over the attentions of |what it adds|

with the Euclidean norm of what an attention adds to the token. DT has one attention per layer, so this is its mass on
return tokens. RADT has two: self-attention with no mass on returns, and SeqRA (after its scaling by 1 + lambda) with
nothing else. The mean over queries and layers is divided by the same mean for an attention that spreads evenly over
the returns, states and actions seen so far (n, n and n - 1 of them at the n-th step, so n / (3n - 1)): 1 is as much as
chance, about 3 the most there is. StepRA reads the returns without attention and is not in it.

Shape legend: B windows, K steps, T = n K tokens, H heads, d width; Q queries: T, or K where a layer reads only states.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from rayrl_dt.errors import UserError
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.types import Window

__all__ = ["AttentionSummary", "LayerAttention", "SeqRAUse", "read_layers", "summarize"]


@dataclass(frozen=True)
class LayerReading:
    """What one layer did in one forward pass.

    Attributes:
        weights: `(B, H, Q, T)` self-attention.
        attended: `(B, Q, d)` what self-attention adds.
        cross: `(B, H, Q, K)` SeqRA's attention to the returns, or None.
        query: `(B, Q, d)` what SeqRA adds to, or None.
        added: `(B, Q, d)` what SeqRA adds, or None.
        scale: `(B, Q, d)` its lambda, or None where that is fixed at zero.
    """

    weights: Tensor
    attended: Tensor
    cross: Tensor | None = None
    query: Tensor | None = None
    added: Tensor | None = None
    scale: Tensor | None = None


@dataclass(frozen=True)
class SeqRAUse:
    """How much RADT's cross-attention to the returns counts in one layer.

    Attributes:
        gate: mean of 1 + lambda over queries and elements; 1 is a plain residual, 0 is off.
        lambda_size: mean of |lambda|.
        relative_size: mean over queries of |added| / |query|, Euclidean norms.
    """

    gate: float
    lambda_size: float
    relative_size: float


@dataclass(frozen=True)
class LayerAttention:
    """One layer, averaged over heads and queries.

    Attributes:
        shares: self-attention's mass on each kind of token; sums to one.
        ages: `(K,)` mass on the return of the same step, one step back, and so on: of SeqRA where there is one (sums
            to one), else of self-attention (sums to `shares["return"]`); empty where no return is attended to.
        on_returns: the layer's share of attention on returns, norms counted; see the module. None without returns.
        seqra: how much SeqRA counts, or None without it.
    """

    shares: dict[str, float]
    ages: tuple[float, ...]
    on_returns: float | None
    seqra: SeqRAUse | None

    @property
    def mean_age(self) -> float | None:
        """Mean age of the attended returns in steps; None where no return is attended to."""
        mass = sum(self.ages)
        return sum(age * share for age, share in enumerate(self.ages)) / mass if mass > 0 else None


@dataclass(frozen=True)
class AttentionSummary:
    """The attention of one policy on windows of data.

    Attributes:
        backbone: of the policy.
        layers: from the first to the last.
        uniform_shares: what `LayerAttention.shares` would be if every visible token got the same.
        uniform_ages: the same for `LayerAttention.ages`.
        return_share: relative to chance; see the module. None where no attention can reach a return.
        queries: state tokens averaged over.
    """

    backbone: str
    layers: tuple[LayerAttention, ...]
    uniform_shares: dict[str, float]
    uniform_ages: tuple[float, ...]
    return_share: float | None
    queries: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return asdict(self)


def check_readable(model: SequenceModel) -> None:
    """Check that the attention of a policy can be read.

    Raises:
        UserError: the backbone has no such attention, or the model is not on the CPU, where weights are explicit.
    """
    if not model.spec.backbone.attends_to:
        readable = ", ".join(name for name, backbone in BACKBONES.items() if backbone.attends_to)
        raise UserError(
            f"backbone {model.spec.model.backbone!r} has no attention that can be read here; "
            f"look at a policy with backbone {readable}"
        )
    device = model.head.weight.device
    if device.type != "cpu":
        raise UserError(f"attention weights are not kept on {device}; load the policy on the CPU")


def read_layers(model: SequenceModel, window: Window[Tensor]) -> list[LayerReading]:
    """Run a window through the model in eval mode and return what each layer did.

    The model's mode is restored, and no hook stays behind; what cannot be read raises `UserError`.
    """
    check_readable(model)
    # Any: the blocks of the backbones share their names, not a class.
    blocks: list[Any] = list(cast(nn.ModuleList, model.trunk.blocks))
    watched: list[nn.Module] = []
    for block in blocks:
        watched += [block.attention, block.attention.weight_dropout]
        if (aligner := getattr(block, "aligner", None)) is not None:
            watched += [aligner, aligner.attention.weight_dropout]
            watched += [] if aligner.scaling is None else [aligner.scaling]
    training = model.training
    model.eval()
    try:
        with _watching(watched) as seen, torch.no_grad():
            model(window)
    finally:
        model.train(training)
    shape = (window.batch_size, model.spec.model.num_heads, -1)

    def weights(attention: Any) -> Tensor:
        # Before dropout: (B H, Q, S), or (B, H Q, S) where a few tokens are read; either way in this order.
        (values, *_), _ = seen[attention.weight_dropout]
        by_head: Tensor = values.reshape(*shape, values.shape[-1])
        return by_head

    readings = []
    for block in blocks:
        own = {"weights": weights(block.attention), "attended": seen[block.attention][1]}
        if (aligner := getattr(block, "aligner", None)) is not None:
            (query, *_), added = seen[aligner]
            own |= {"cross": weights(aligner.attention), "query": query, "added": added}
            if aligner.scaling is not None:
                own["scale"] = seen[aligner.scaling][1]
        readings.append(LayerReading(**own))
    return readings


def summarize(model: SequenceModel, batches: Iterable[Window[Tensor]]) -> AttentionSummary:
    """Average the attention of a policy over windows of data, as `read_layers` finds it.

    The windows have as many steps each, at most the model's K; all steps that are not padding are queries.
    """
    check_readable(model)
    types = model.spec.backbone.attends_to
    tables: list[list[dict[str, Tensor]]] = []
    seen_steps: list[Tensor] = []
    for window in batches:
        ages = torch.arange(window.context_length)
        seen_steps.append(window.mask.cumsum(dim=1)[window.mask])
        tables.append([_per_query(each, window.mask, types) for each in read_layers(model, window)])
    steps = torch.cat(seen_steps).double()
    layers = tuple(_layer(parts, types) for parts in zip(*tables, strict=True))
    counts = {"return": steps, "state": steps, "action": steps - 1}
    visible = sum((counts[kind] for kind in types), torch.zeros(()))
    # SeqRA sees returns alone.
    sources = visible if "return" in types else steps
    found = [layer.on_returns for layer in layers if layer.on_returns is not None]
    chance = float((steps / (3 * steps - 1)).mean())
    return AttentionSummary(
        backbone=model.spec.model.backbone,
        layers=layers,
        uniform_shares={kind: float((counts[kind] / visible).mean()) for kind in types},
        uniform_ages=_floats(((ages < steps[:, None]) / sources[:, None]).mean(dim=0)) if found else (),
        return_share=sum(found) / len(found) / chance if found else None,
        queries=len(steps),
    )


def _per_query(reading: LayerReading, mask: Tensor, types: Sequence[str]) -> dict[str, Tensor]:
    """Return what `LayerAttention` is the mean of, one row for each state token of a real step."""
    steps = mask.shape[1]
    weights = _states(reading.weights.mean(dim=1), steps)
    by_token = torch.unflatten(weights, -1, (steps, len(types)))  # (B, K, K, n)
    rows = {"shares": by_token.sum(dim=2)}
    if reading.cross is not None and reading.query is not None and reading.added is not None:
        query, added, own = (
            _states(each, steps).double().norm(dim=-1)
            for each in (reading.query, reading.added, reading.attended)
        )
        scale = torch.zeros_like(reading.added) if reading.scale is None else reading.scale
        scale = _states(scale, steps).double()
        tiny = torch.finfo(torch.float64).tiny
        rows |= {
            "ages": _by_age(_states(reading.cross.mean(dim=1), steps)),
            "on_returns": added / (added + own).clamp(min=tiny),
            "gate": 1.0 + scale.mean(dim=-1),
            "lambda_size": scale.abs().mean(dim=-1),
            "relative_size": added / query.clamp(min=tiny),
        }
    elif "return" in types:
        on_returns = by_token[..., types.index("return")]
        rows |= {"ages": _by_age(on_returns), "on_returns": on_returns.sum(dim=-1)}
    return {name: values[mask].double() for name, values in rows.items()}


def _layer(parts: Sequence[dict[str, Tensor]], types: Sequence[str]) -> LayerAttention:
    """Return the means over the queries of all batches."""
    means = {name: torch.cat([part[name] for part in parts]).mean(dim=0) for name in parts[0]}
    return LayerAttention(
        shares=dict(zip(types, _floats(means["shares"]), strict=True)),
        ages=_floats(means["ages"]) if "ages" in means else (),
        on_returns=float(means["on_returns"]) if "on_returns" in means else None,
        seqra=SeqRAUse(*(float(means[each.name]) for each in fields(SeqRAUse))) if "gate" in means else None,
    )


def _states(values: Tensor, steps: int) -> Tensor:
    """Return the rows `(B, K, ...)` of the state tokens among `(B, Q, ...)`, the last but one token of each step."""
    per_step = values.shape[1] // steps
    return values[:, max(per_step - 2, 0) :: per_step]


def _by_age(mass: Tensor) -> Tensor:
    """Turn mass on steps `(B, K, K)` into mass on 0, 1, ... steps back; nothing lies before the first step."""
    steps = torch.arange(mass.shape[1])
    index = steps[:, None] - steps  # query step minus age
    return mass.gather(2, index.clamp(min=0).expand_as(mass)) * (index >= 0)


@contextmanager
def _watching(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, tuple[tuple[Any, ...], Any]]]:
    """Keep the inputs and the output of each module's last call, as long as the context is open."""
    seen: dict[nn.Module, tuple[tuple[Any, ...], Any]] = {}

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen[module] = inputs, output

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _floats(values: Tensor) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
