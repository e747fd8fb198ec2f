from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from builders import build_model, random_window
from torch import nn

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.models.dropout import Dropout, DropoutSource
from rayrl_dt.models.sequence_model import SequenceModel

MakeStore = Callable[..., TrajectoryStore]
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.fixture
def model(make_store: MakeStore) -> SequenceModel:
    return build_model(make_store(), dropout=0.3)


def training_output(model: SequenceModel, seed: int | None = None) -> torch.Tensor:
    window = random_window(model, [6, 6, 3])
    model.train()
    if seed is not None:
        model.reseed(seed)
    with torch.no_grad():
        return model(window)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_law(p: float, device: str) -> None:
    layer, count = Dropout(p, DropoutSource()), 400_003
    out = layer(torch.ones(count, device=device)).cpu()
    kept = out != 0
    sigma = np.sqrt(p * (1 - p) / count)
    assert abs(kept.double().mean().item() - (1 - p)) < 4 * sigma + 1 / 65536
    assert out[kept].unique().numel() == 1
    assert out[kept][0].item() == pytest.approx(1 / (1 - p), rel=2e-4 if p < 0.9 else 1e-3)
    # Unbiased: the kept ones make up for the dropped ones.
    assert abs(out.double().mean().item() - 1) < 4 * sigma / (1 - p) + 1e-4
    for lane in range(4):  # four elements share one random word
        rate = kept[lane::4].double().mean().item()
        assert abs(rate - (1 - p)) < 4 * 2 * sigma + 1 / 65536
    for distance in (1, 2, 3, 4):
        both = (kept[distance:] & kept[:-distance]).double().mean().item()
        assert abs(both - (1 - p) ** 2) < 5 * np.sqrt((1 - p) ** 2 / count)


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 3, 4, 5), (0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shape_and_dtype_stay(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    layer = Dropout(0.5, DropoutSource())
    out = layer(torch.ones(shape, dtype=dtype))
    assert (out.shape, out.dtype) == (torch.Size(shape), dtype)


@pytest.mark.parametrize("p", [0.999999, 1 - 1e-12])
def test_a_probability_just_below_one_stays_finite(p: float) -> None:
    assert Dropout(p, DropoutSource())(torch.ones(1000)).isfinite().all()


def test_gradient_goes_where_the_values_went() -> None:
    x = torch.ones(1000, requires_grad=True)
    out = Dropout(0.4, DropoutSource())(x)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_identity_in_evaluation_and_at_zero() -> None:
    x = torch.randn(50)
    assert Dropout(0.4, DropoutSource()).eval()(x) is x
    assert Dropout(0.0, DropoutSource()).train()(x) is x


def test_an_evaluation_does_not_draw(model: SequenceModel) -> None:
    window = random_window(model, [6])
    model.reseed(3)
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(window), model(window))
    drawn = training_output(model)
    assert torch.equal(drawn, training_output(model, seed=3))


def test_masks_follow_the_seed_and_nothing_else(model: SequenceModel) -> None:
    before = torch.get_rng_state()
    first = training_output(model, seed=1)
    torch.manual_seed(99)
    assert torch.equal(first, training_output(model, seed=1))
    assert not torch.equal(first, training_output(model)), "the stream must go on"
    assert not torch.equal(first, training_output(model, seed=2))
    torch.set_rng_state(before)
    training_output(model)
    assert torch.equal(before, torch.get_rng_state()), "dropout drew from the global generator"


def test_every_layer_drops(model: SequenceModel) -> None:
    layers = [layer for layer in model.modules() if isinstance(layer, Dropout)]
    assert len(layers) == 1 + 3 * model.spec.model.num_layers
    assert all(layer.p == 0.3 for layer in layers)
    assert not any(isinstance(layer, nn.Dropout) for layer in model.modules())
    drops: list[float] = []
    for layer in layers:
        layer.register_forward_hook(lambda _, args, out: drops.append((out == 0).double().mean().item()))
    training_output(model)
    assert len(drops) == 1 + 3 * model.spec.model.num_layers
    assert min(drops) > 0.15


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_work_on_their_own(model: SequenceModel, way: Callable[..., SequenceModel]) -> None:
    original = training_output(model, seed=7)
    twin = way(model)
    sources = {id(layer.source) for layer in twin.modules() if isinstance(layer, Dropout)}
    assert sources == {id(twin._dropout_source)} != {id(model._dropout_source)}
    assert torch.equal(training_output(twin, seed=7), original)
    model.reseed(7)
    twin.reseed(8)
    training_output(twin)
    assert torch.equal(training_output(model), original), "the copy drew from the original's generator"
    window = random_window(model, [6, 2])
    with torch.no_grad():
        assert torch.equal(model.eval()(window), twin.eval()(window))
