"""What is timed, in which order, and that nothing is left changed; not how fast this machine is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from builders import build_model
from torch import Tensor

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.diagnosis import cost
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.types import Window

MakeStore = Callable[..., TrajectoryStore]


@pytest.mark.slow
@pytest.mark.parametrize("actions", [None, 4])
@pytest.mark.parametrize("backbone", ["dt", "radt", "no-return", "mlp"])
def test_every_backbone_is_measured(make_store: MakeStore, backbone: str, actions: int | None) -> None:
    store = make_store(actions=actions)
    model = build_model(store, backbone=backbone)
    (found,) = cost.measure([("it", model)], store, batch_size=5, repeats=1, seconds=0.0, precision="fp32")
    assert found.label == "it" and found.context_length == 6 and found.batch_size == 5
    assert found.parameters == sum(value.numel() for value in model.state_dict().values()) - sum(
        buffer.numel() for name, buffer in model.named_buffers() if name in model.state_dict()
    )
    assert list(found.acting_ms) == [1, 32]
    assert min(found.training_ms, *found.acting_ms.values()) > 0
    assert (found.precision, found.device, found.threads) == ("fp32", "cpu", torch.get_num_threads())
    assert json.loads(json.dumps(found.to_json()))["acting_ms"]["32"] == found.acting_ms[32]


def test_a_larger_network_costs_more(make_store: MakeStore) -> None:
    store = make_store()
    small, large = build_model(store, num_layers=1), build_model(store, embed_dim=256, num_layers=6)
    one, other = cost.measure([("small", small), ("large", large)], store, repeats=3, seconds=0.0)
    assert (one.label, other.label) == ("small", "large")
    assert other.parameters > 100 * one.parameters
    assert other.training_ms > 2 * one.training_ms and other.acting_ms[32] > 2 * one.acting_ms[32]


def test_the_models_are_left_as_they_are(make_store: MakeStore) -> None:
    store = make_store()
    model = build_model(store, dropout=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cost.measure([("it", model)], store, repeats=2, seconds=0.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())


def test_acting_goes_on_in_full_windows_and_training_learns(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayrl_dt.models.sequence_model import SequenceModel

    store = make_store(lengths=(30, 30))
    model = build_model(store)
    acted: list[tuple[int, bool]] = []
    trained: list[tuple[int, bool, bool]] = []
    stepped: list[int] = []
    act, forward, step = VectorActor.act, SequenceModel.forward, torch.optim.AdamW.step

    def spy_act(self: VectorActor, observations: Any, rewards: Any, starting: Any, targets: Any) -> Any:
        acted.append((self.slots, bool(starting.any())))
        return act(self, observations, rewards, starting, targets)

    def spy_forward(self: SequenceModel, window: Window[Tensor], **options: Any) -> Tensor:
        if self.training:
            trained.append((window.batch_size, self is model, torch.is_grad_enabled()))
        return forward(self, window, **options)

    monkeypatch.setattr(VectorActor, "act", spy_act)
    monkeypatch.setattr(SequenceModel, "forward", spy_forward)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args: (stepped.append(1), step(*args)))
    cost.measure([("it", model)], store, batch_size=7, repeats=1, seconds=0.0)
    context_length = model.spec.model.context_length
    for slots in (1, 32):
        calls = [starting for who, starting in acted if who == slots]
        # One that is not counted, and one that is, after the windows have filled.
        assert calls == [True] + [False] * (context_length + 1)
    assert trained == [(7, False, True)] * 2 and len(stepped) == 2


def test_repeats_take_turns_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []
    # Call by call in seconds; the first is not counted, and one of three is an outlier.
    times = {(0, "a"): iter([9.0, 0.002, 5.0, 0.003]), (1, "b"): iter([9.0, 0.02, 0.01, 7.0])}

    def job(name: tuple[int, str]) -> Callable[[], object]:
        def call() -> None:
            calls.append(name[1])
            clock[0] += next(times[name])

        return call

    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    found = cost._take_turns({name: job(name) for name in times}, repeats=3, seconds=0.001)
    assert calls == ["a", "b"] * 4
    assert found == {(0, "a"): pytest.approx(3.0), (1, "b"): pytest.approx(20.0)}


def test_short_calls_are_repeated_for_the_time_given(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []

    def call() -> None:
        calls.append(1)
        clock[0] += 0.25

    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    assert cost._take_turns({(0, "a"): call}, repeats=2, seconds=1.0) == {(0, "a"): 250.0}
    assert len(calls) == 1 + 2 * 4
