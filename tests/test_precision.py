from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from rayrl_dt import precision
from rayrl_dt.errors import UserError
from rayrl_dt.precision import keep_freed_memory, resident_memory

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    precision.cpu_has_bf16.cache_clear()
    yield
    precision.cpu_has_bf16.cache_clear()


def cpu_flags(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    def read_text(path: Path) -> str:
        assert str(path) == "/proc/cpuinfo"
        if text is None:
            raise FileNotFoundError(path)
        return text

    monkeypatch.setattr(Path, "read_text", read_text)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu avx512f avx512_bf16 sse", "bf16"),
        ("flags : fpu amx_bf16 amx_tile", "bf16"),
        ("Features : fp asimd bf16 i8mm", "bf16"),
        ("flags : fpu avx2 avx512f", "fp32"),
        (None, "fp32"),
    ],
)
def test_auto_asks_the_cpu(monkeypatch: pytest.MonkeyPatch, flags: str | None, expected: str) -> None:
    cpu_flags(monkeypatch, flags)
    assert precision.resolve("auto", "cpu") == expected
    assert precision.resolve("auto", torch.device("cpu")) == expected


@pytest.mark.parametrize(("major", "expected"), [(7, "fp32"), (8, "bf16"), (9, "bf16")])
def test_auto_asks_the_gpu_for_more_than_emulation(
    monkeypatch: pytest.MonkeyPatch, major: int, expected: str
) -> None:
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return including_emulation or major >= 8

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    cpu_flags(monkeypatch, "flags : avx512_bf16" if expected == "fp32" else "flags :")
    assert precision.resolve("auto", "cuda:1") == expected


@pytest.mark.parametrize("chosen", ["bf16", "fp32"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_choice_stands(chosen: str, device: str) -> None:
    assert precision.resolve(chosen, device) == chosen


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(UserError, match="'fp16'; allowed: auto, bf16, fp32"):
        precision.resolve("fp16", "cpu")


@pytest.mark.parametrize(("chosen", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_autocast(chosen: str, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(4, 4)
    with precision.autocast("cpu", chosen):
        assert layer(torch.ones(2, 4)).dtype == dtype
    assert layer(torch.ones(2, 4)).dtype == torch.float32


def test_a_training_step_in_bf16_stays_close(make_store: Callable[..., object]) -> None:
    from builders import build_model, random_window

    from rayrl_dt import losses

    gradients = {}
    for chosen in ("fp32", "bf16"):
        model = build_model(make_store(), dropout=0.1).train()
        model.reseed(1)
        window = random_window(model, [6, 3, 1])
        with precision.autocast("cpu", chosen):
            predicted = model(window)
        losses.masked_mse(predicted, model.to_model_actions(window.actions), window.mask).backward()
        gradients[chosen] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    cosine = torch.nn.functional.cosine_similarity(gradients["fp32"], gradients["bf16"], dim=0)
    assert cosine > 0.99


@pytest.mark.parametrize("chosen", ["fp32", "bf16"])
def test_a_saturated_policy_learns_its_way_back(make_store: Callable[..., object], chosen: str) -> None:
    """Four units beyond the middle, where the tanh of bf16 is 1 and its gradient 0."""
    from builders import build_model, random_window

    from rayrl_dt import losses

    model = build_model(make_store()).train()
    layer = model.head
    with torch.no_grad():
        layer.weight.mul_(0.01)
        layer.bias.fill_(4.0)
    window = random_window(model, [6, 3, 1])
    with precision.autocast("cpu", chosen):
        predicted = model(window)
    losses.masked_mse(predicted, torch.zeros_like(predicted), window.mask).backward()
    assert predicted.dtype == torch.float32
    assert (layer.bias.grad > 1e-4).all()


@linux
def test_resident_memory_sees_what_is_allocated() -> None:
    # In a process of its own: in this one, blocks that other tests freed may be handed out again.
    script = """
import os
import numpy as np
from rayrl_dt.precision import resident_memory
before = resident_memory()
assert 0 < before["uss"] <= before["pss"] <= before["rss"]
size = 64 << 20
block = np.ones(size, np.uint8)
after = resident_memory(os.getpid())
for name in ("rss", "pss", "uss"):
    assert size * 0.9 < after[name] - before[name] < size * 1.5, (name, before, after)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@linux
def test_an_unknown_process_is_an_error() -> None:
    with pytest.raises(OSError, match="999999999"):
        resident_memory(999_999_999)


def test_the_allocator_is_told_to_keep_memory() -> None:
    # In a process of its own: the setting stays.
    code = "from rayrl_dt.precision import keep_freed_memory; print(keep_freed_memory())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() in ("True", "False")


def test_elsewhere_than_on_linux_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
