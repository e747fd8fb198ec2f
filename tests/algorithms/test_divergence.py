"""What a failed check does where the host would have to wait for a device to hear of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rayrl_dt import devices
from rayrl_dt.algorithms.divergence import DivergenceGuard
from rayrl_dt.algorithms.online.lamb import Lamb
from rayrl_dt.algorithms.policy_optimizer import adamw
from rayrl_dt.errors import TrainingDiverged

CPU = torch.device("cpu")


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> DivergenceGuard:
    """A guard that takes reads for dear."""
    monkeypatch.setattr(devices, "reads_are_free", lambda device: False)
    return DivergenceGuard(CPU)


def check(guard: DivergenceGuard, step: int, value: float) -> None:
    number = torch.tensor(value)
    guard.check(torch.isfinite(number), (number, number + 1), lambda a, b: f"step {step}: {a}, {b}")


def test_where_reads_are_free_it_raises_at_once() -> None:
    guard = DivergenceGuard(CPU)
    check(guard, 0, 1.0)
    with pytest.raises(TrainingDiverged, match=r"^step 1: nan, nan$"):
        check(guard, 1, float("nan"))


def test_elsewhere_the_first_one_is_told(waiting: DivergenceGuard) -> None:
    check(waiting, 0, 1.0)
    waiting.read()
    check(waiting, 1, 2.0)
    check(waiting, 2, float("inf"))
    check(waiting, 3, float("nan"))
    check(waiting, 4, 1.0)
    for _ in range(2):
        with pytest.raises(TrainingDiverged, match=r"^step 2: inf, inf$"):
            waiting.read()


def test_it_reads_after_100_steps(waiting: DivergenceGuard) -> None:
    check(waiting, 0, float("nan"))
    for _ in range(99):
        waiting.stepped()
    with pytest.raises(TrainingDiverged, match=r"^step 0"):
        waiting.stepped()


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["adamw", "lamb"])
def test_optimizers_stand_still_from_then_on(waiting: DivergenceGuard, kind: str, decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 4), (3,))]
    arguments: Any = {"params": weights, "lr": 0.1, "weight_decay": decay}
    optimizer = Lamb(**arguments) if kind == "lamb" else adamw(CPU, **arguments)

    def step(value: float | None = None) -> list[torch.Tensor]:
        for weight in weights:
            drawn = torch.randn(weight.shape, generator=generator)
            weight.grad = drawn if value is None else torch.full_like(weight, value)
        waiting.hold([optimizer])
        optimizer.step()
        return [weight.detach().clone() for weight in weights]

    start = [weight.detach().clone() for weight in weights]
    moved = step()
    assert not any(map(torch.equal, start, moved))
    check(waiting, 1, float("nan"))
    for held in (step(float("nan")), step()):
        assert all(map(torch.equal, moved, held))
