"""Random generators derived from a seed and a named position in the run, never global.

A generator is a pure function of (seed, stream, counters). Nothing has to be stored to resume a run
bit-exactly: the batch of gradient step 1234 on learner rank 1 is always the same batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

__all__ = ["derive_seed", "numpy_generator", "seeded_weights", "torch_generator"]


def derive_seed(seed: int, stream: str, *counters: int) -> int:
    """Return a 63-bit seed for position `counters` (for instance rank and gradient step) of `stream`."""
    state = np.random.SeedSequence(_entropy(seed, stream, counters)).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))


def numpy_generator(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """Return a NumPy generator for position `counters` of `stream`."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(_entropy(seed, stream, counters))))


def _entropy(seed: int, stream: str, counters: tuple[int, ...]) -> tuple[int, ...]:
    # SeedSequence pads with zeros, so without their number (), (0,) and (0, 0) would be one position.
    return (seed & 0xFFFFFFFFFFFFFFFF, zlib.crc32(stream.encode()), len(counters), *counters)


def torch_generator(
    seed: int, stream: str, *counters: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a torch generator on `device` for position `counters` of `stream`."""
    generator = torch.Generator(device=device)
    generator.manual_seed(derive_seed(seed, stream, *counters))
    return generator


@contextmanager
def seeded_weights(seed: int, stream: str) -> Iterator[None]:
    """Layers built inside start from weights that are a function of (seed, stream); torch's own state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, stream))
        yield
