"""Batches of logged and collected windows in an exact proportion (RLPD, WSRL), whatever the replay holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rayrl_dt.algorithms.offline_data import BatchSource, SequenceOfflineData
from rayrl_dt.algorithms.online.config import OnlineConfig
from rayrl_dt.algorithms.online.shared_replay import SharedReplay, sources
from rayrl_dt.data.replay import TrajectoryReplay
from rayrl_dt.types import Window

__all__ = ["Mixture", "batch_sources", "interleaved"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Mixture:
    """Draws each batch in two parts.

    Attributes:
        logged: gives the part from logged data; a part may be empty.
        collected: gives the rest.
    """

    logged: BatchSource
    collected: BatchSource

    def batches(self, *, rank: int, first_step: int, count: int) -> Iterator[Window[Array]]:
        """Yield the batches of gradient steps `first_step` to `first_step + count - 1`."""
        both = (
            source.batches(rank=rank, first_step=first_step, count=count)
            for source in (self.logged, self.collected)
        )
        for logged, collected in zip(*both, strict=True):
            yield interleaved(logged, collected)


def batch_sources(
    config: OnlineConfig, data: SequenceOfflineData, replay: TrajectoryReplay | SharedReplay
) -> list[BatchSource]:
    """Return what learners draw from online, one source for each: the replay, or a mixture of it and logged data."""
    ahead, learners, share = config.mode == "async", config.num_learners, config.logged_share
    if share is None:
        return sources(replay, data.sampling, learners, ahead=ahead)
    collected = sources(replay, replace(data.sampling, share=share), learners, ahead=ahead)
    logged = data.iterators(learners, replace(data.sampling, share=share, logged=True))
    return [Mixture(*both) for both in zip(logged, collected, strict=True)]


def interleaved(one: Window[Array], other: Window[Array]) -> Window[Array]:
    """Join two batches so that every stretch of the result holds its share of both, up to one window.

    What cuts a batch into parts (`critic_updates_per_actor`) then finds the proportion in each.
    """
    places = [(np.arange(part.batch_size) + 0.5) / max(1, part.batch_size) for part in (one, other)]
    order = np.argsort(np.concatenate(places), kind="stable")
    return Window.from_dict(_joined(one.to_dict(), other.to_dict(), order))


def _joined(one: dict[str, Any], other: dict[str, Any], order: Array) -> dict[str, Any]:
    return {
        name: _joined(value, other[name], order)
        if isinstance(value, dict)
        else np.concatenate([value, other[name]])[order]
        for name, value in one.items()
    }
