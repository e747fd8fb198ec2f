"""Dropout whose masks come from a derived generator, and which is cheap on a CPU.

torch's CPU Bernoulli generator costs about a fifth of a training step at this model size. Comparing 16-bit
lanes of NumPy's 64-bit random words with a threshold draws the same law (to 1/65536 in p) at a fraction of that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Dropout", "DropoutSource"]


class DropoutSource:
    """The random generator that all dropout layers of one model share.

    The learner reseeds it before each gradient step with a function of (seed, rank, gradient step), so that
    a resumed run draws the same masks. Copies of a model start with a source of their own.
    """

    def __init__(self) -> None:
        self._generators: dict[torch.device, torch.Generator] = {}
        self._seed = 0
        self._words = np.random.SFC64(0)

    def reseed(self, seed: int) -> None:
        """Make the next masks a pure function of `seed`."""
        self._seed = seed
        self._words = np.random.SFC64(seed)
        for generator in self._generators.values():
            generator.manual_seed(seed)

    def same_for_each(self, function: Callable[[Tensor], Tensor], values: Iterable[Tensor]) -> Tensor:
        """Return what a function makes of each of the values, stacked; all of them see the same masks."""
        start, found = self._position(), []
        for value in values:
            self._rewind(start)
            found.append(function(value))
        return torch.stack(found)

    def _position(self) -> Any:
        """Return where the masks are, for `_rewind`."""
        on_devices = {device: generator.get_state() for device, generator in self._generators.items()}
        return self._words.state, on_devices

    def _rewind(self, position: Any) -> None:
        """Draw the masks after a `position` once more."""
        self._words.state, on_devices = position
        for device, generator in self._generators.items():
            if device in on_devices:
                generator.set_state(on_devices[device])
            else:  # not there yet
                generator.manual_seed(self._seed)

    def lanes(self, count: int) -> Tensor:
        """Return `(count,)` random int16 in CPU memory, uniform over all their values."""
        words = self._words.random_raw((count + 3) // 4)
        return torch.from_numpy(words.view(np.int16))[:count]

    def on(self, device: torch.device) -> torch.Generator:
        """Return the generator for tensors on an accelerator."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device=device)
            self._generators[device].manual_seed(self._seed)
        return self._generators[device]

    def __deepcopy__(self, memo: dict[int, Any]) -> DropoutSource:
        copy = DropoutSource()
        copy.reseed(self._seed)
        memo[id(self)] = copy
        return copy

    def __reduce__(self) -> tuple[type[DropoutSource], tuple[()]]:
        return DropoutSource, ()


class Dropout(nn.Module):
    """Inverted dropout with probability `p`, drawing from a shared `DropoutSource`."""

    def __init__(self, p: float, source: DropoutSource) -> None:
        super().__init__()
        self.p = p
        self.source = source
        dropped = min(round(p * 65536), 65535)
        self._threshold = dropped - 32768
        self._scale = 65536.0 / (65536 - dropped)

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements in training mode; identity otherwise. Any shape."""
        if not self.training or self.p == 0.0:
            return x
        if x.device.type != "cpu":
            keep = torch.empty_like(x).bernoulli_(1.0 - self.p, generator=self.source.on(x.device))
            return x * keep.div_(1.0 - self.p)
        # Compared in place: turning bools into floats takes several times as long as turning int16 into them.
        kept = self.source.lanes(x.numel()).ge_(self._threshold)
        return x * kept.to(x.dtype).mul_(self._scale).view(x.shape)

    def extra_repr(self) -> str:
        """Show p in the module's repr."""
        return f"p={self.p}"


def activation(name: str) -> Any:
    """Return the elementwise function called `name`: "relu", which works in place, or "gelu"."""
    return {"relu": torch.relu_, "gelu": functional.gelu}[name]
