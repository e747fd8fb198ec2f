"""The squashed Gaussian head of stochastic Online DT (methods: online finetuning, sections 1.1 and 9)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import build_model, pad, random_window, taken
from scipy import stats

from rayrl_dt import losses
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.diagnosis import cost
from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.interop.huggingface import to_huggingface
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.serving.policy import SequencePolicy
from rayrl_dt.types import ACTION_LIMIT

MakeStore = Callable[..., TrajectoryStore]
LIMIT = np.float32(ACTION_LIMIT)


@pytest.fixture
def model(make_store: MakeStore) -> SequenceModel:
    return build_model(make_store(), head="gaussian")


def widened(model: SequenceModel, low: tuple[float, ...], high: tuple[float, ...]) -> SequenceModel:
    return SequenceModel(replace(model.spec, action_low=low, action_high=high))


def test_the_head_must_be_asked_for_and_fit_the_actions(make_store: MakeStore) -> None:
    for asked, given in (("auto", "deterministic"), ("gaussian", "gaussian")):
        spec = PolicySpec.from_store(ModelConfig(head=asked), make_store(), return_scale=None)
        assert spec.model.head == given
        assert spec.head.stochastic == (given == "gaussian")
    with pytest.raises(UserError, match=r"head is 'gaussian'.*'categorical' or 'auto'"):
        PolicySpec.from_store(ModelConfig(head="gaussian"), make_store(actions=3), return_scale=None)
    with pytest.raises(UserError, match=r"head is 'categorical'.*'deterministic', 'gaussian' or 'auto'"):
        PolicySpec.from_store(ModelConfig(head="categorical"), make_store(), return_scale=None)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_outputs_are_raw_means_and_spreads_in_the_range(make_store: MakeStore, backbone: str) -> None:
    model = build_model(make_store(), head="gaussian", backbone=backbone)
    window = random_window(model, [6, 2])
    with torch.no_grad():
        outputs = model(window)
        last = model(window, last_only=True)
    assert outputs.shape == (2, 1 if backbone == "mlp" else 6, 4)
    torch.testing.assert_close(last, outputs[:, -1:], rtol=1e-5, atol=1e-5)
    features = model.trunk(model.inputs(window), last_only=False)
    torch.testing.assert_close(outputs, features @ model.head.weight.T + model.head.bias)
    mean, log_std = model.spec.head.law(outputs)
    assert torch.equal(mean, outputs[..., :2])
    torch.testing.assert_close(log_std, -5 + 3.5 * (outputs[..., 2:].tanh() + 1))


def test_log_std_ends_at_minus_five_and_two(model: SequenceModel) -> None:
    raw = torch.tensor([-1e9, -100.0, 0.0, 100.0, 1e9])
    outputs = torch.stack([torch.zeros(5), torch.ones(5), raw, raw], dim=-1)
    mean, log_std = model.spec.head.law(outputs)
    assert log_std[:, 0].tolist() == [-5.0, -5.0, -1.5, 2.0, 2.0]
    assert torch.equal(log_std[:, 0], log_std[:, 1])
    assert mean.unique().tolist() == [0.0, 1.0]
    assert model.spec.head.law(outputs.bfloat16())[1].dtype == torch.float32


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_head_starts_orthogonal_and_without_bias(make_store: MakeStore, backbone: str) -> None:
    spec = build_model(make_store(action_dim=5), head="gaussian", backbone=backbone).spec
    head = SequenceModel(spec).head
    for part in head.weight.detach().chunk(2):
        torch.testing.assert_close(part @ part.T, torch.eye(5), rtol=0, atol=1e-5)
    assert (head.bias == 0).all()
    assert head.weight.requires_grad


def test_the_deterministic_head_starts_and_acts_as_before(make_store: MakeStore) -> None:
    model = build_model(make_store())
    torch.manual_seed(0)
    fresh = SequenceModel(model.spec)
    bound = 1 / np.sqrt(16)
    assert fresh.head.weight.shape == (2, 16)
    assert 0 < fresh.head.weight.abs().max() <= bound and (fresh.head.bias != 0).all()
    window = random_window(model, [6, 2])
    with torch.no_grad():
        outputs = model(window)
        assert torch.equal(outputs, torch.tanh(model.head(model.trunk(model.inputs(window)))))
    assert model.spec.head.mode(outputs) is outputs
    sampled = taken(model, outputs[:, -1], torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(sampled, taken(model, outputs[:, -1]))


def test_actions_are_the_squashed_mean_or_drawn_from_the_law(model: SequenceModel) -> None:
    model = widened(model, (-1.0, -2.0), (1.0, 6.0))
    mean, raw = np.array([0.4, -0.7]), np.array([0.1, 0.6])
    std = np.exp(-5 + 3.5 * (np.tanh(raw) + 1))
    count = 20_000
    outputs = torch.tensor([*mean, *raw], dtype=torch.float32).expand(count, 4)
    chosen = taken(model, outputs)
    np.testing.assert_allclose(chosen[0], [np.tanh(0.4), 2 + 4 * np.tanh(-0.7)], rtol=1e-6)
    assert (chosen == chosen[0]).all()
    generator = torch.Generator().manual_seed(0)
    drawn = taken(model, outputs, generator)
    assert drawn.shape == (count, 2) and drawn.dtype == np.float32
    again = taken(model, outputs, torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(drawn, again)
    assert (taken(model, outputs, generator) != drawn).mean() > 0.99
    inside = np.arctanh((drawn.astype(np.float64) - [0, 2]) / [1, 4])
    for dimension in range(2):
        law = stats.norm(mean[dimension], std[dimension])
        assert stats.kstest(inside[:, dimension], law.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(inside.T)[0, 1]) < 0.04


def test_actions_keep_off_the_bounds(model: SequenceModel) -> None:
    wide = torch.tensor([[90.0, -90.0, 0.0, 0.0], [0.0, 0.0, 90.0, 90.0]]).repeat_interleave(500, dim=0)
    head = model.spec.head
    for actions in (head.mode(wide), *head.sample(wide, 3, torch.Generator().manual_seed(0))):
        assert actions.abs().max().item() == LIMIT
    assert np.abs(taken(model, wide)).max() == LIMIT
    assert np.abs(taken(model, wide, torch.Generator().manual_seed(0))).max() == LIMIT
    low, high = (-0.4, 0.1), (0.7, 5.0)
    scaled = taken(widened(model, low, high), wide)
    half = (np.array(high) - low) / 2
    np.testing.assert_allclose(scaled[0] - low, [2 * half[0], half[1] * 1e-6], rtol=1e-3, atol=3e-7)


@pytest.mark.parametrize("sampling", [False, True])
def test_the_density_of_drawn_actions_is_the_one_in_the_loss(model: SequenceModel, sampling: bool) -> None:
    """What is executed, recorded and converted back has the density that `noise` says."""
    outputs = torch.randn(200, 4, generator=torch.Generator().manual_seed(1)) / 2
    mean, log_std = model.spec.head.law(outputs)
    noise = torch.randn(200, 2, generator=torch.Generator().manual_seed(2)) * sampling
    sample = torch.Generator().manual_seed(2) if sampling else None
    executed = torch.from_numpy(taken(model, outputs, sample))
    log_prob = losses.squashed_gaussian_log_prob(mean, log_std, model.to_model_actions(executed))
    normal = torch.distributions.Normal(mean, log_std.exp())
    drawn = (mean + log_std.exp() * noise).double()
    expected = normal.log_prob(drawn.float()).double() - torch.log1p(-(drawn.tanh() ** 2))
    inside = (drawn.abs() < 5).all(dim=-1)  # beyond, actions are clamped
    assert inside.sum() > 180
    torch.testing.assert_close(log_prob[inside].double(), expected.sum(dim=-1)[inside], rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("garbage", [-10.0, 1e6, float("nan"), float("inf")])
def test_padding_has_no_gradient(model: SequenceModel, garbage: float) -> None:
    clean = random_window(model, [1, 3, 6, 5])
    noise = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0))
    gradients = []
    for window in (clean, pad(clean, garbage)):
        model.zero_grad()
        mean, log_std = model.spec.head.law(model(window))
        target = model.to_model_actions(window.actions)
        loss = losses.squashed_gaussian_nll(mean, log_std, target, window.mask)
        (loss - 0.1 * losses.squashed_gaussian_entropy(mean, log_std, window.mask, noise)).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert one.isfinite().all()
        assert torch.equal(one, other)
    assert (model.head.weight.grad != 0).all()


def feed(actor: VectorActor, steps: int) -> np.ndarray[Any, Any]:
    rng, slots = np.random.default_rng(0), actor.slots
    return np.array(
        [
            actor.act(
                rng.normal(size=(slots, 3)).astype(np.float32),
                np.zeros(slots),
                np.full(slots, step == 0),
                np.full(slots, 10.0),
            )
            for step in range(steps)
        ]
    )


def test_an_actor_draws_only_with_a_generator(model: SequenceModel) -> None:
    steady = feed(VectorActor(model, 3), 8)
    np.testing.assert_array_equal(steady, feed(VectorActor(model, 3), 8))
    first, again, other = (
        feed(VectorActor(model, 3, sample=torch.Generator().manual_seed(seed)), 8) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first[0] != other[0]).all() and (first[0] != steady[0]).all()
    assert steady.shape == (8, 3, 2)


def test_a_policy_draws_only_with_a_seed(model: SequenceModel) -> None:
    actions = []
    for seed in (None, None, 0, 0, 1):
        policy = SequencePolicy(model, sample_seed=seed)
        policy.reset(5.0)
        actions.append(policy.act(np.ones(3, np.float32)).tolist())
    assert actions[0] == actions[1] and actions[2] == actions[3]
    assert len({tuple(action) for action in actions}) == 3


def test_a_bundle_keeps_the_head(model: SequenceModel, tmp_path: Path) -> None:
    again = Bundle.open(save_bundle(model.spec, model.state_dict(), tmp_path / "bundle")).model
    assert again.spec.model.head == "gaussian"
    window = random_window(model, [6, 2])
    with torch.no_grad():
        outputs = model(window)
        assert torch.equal(again(window), outputs)
    drawn = [taken(m, outputs[:, -1], torch.Generator().manual_seed(3)) for m in (model, again)]
    np.testing.assert_array_equal(*drawn)


def test_hugging_face_has_no_such_head(model: SequenceModel) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match=r"gaussian head.*--format bundle"):
        to_huggingface(model)


@pytest.mark.parametrize("backbone", ["dt", "mlp"])
def test_the_cost_of_training_is_that_of_the_likelihood(
    make_store: MakeStore, backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    model = build_model(store, head="gaussian", backbone=backbone)
    monkeypatch.delattr(losses, "masked_mse")
    (found,) = cost.measure([("it", model)], store, batch_size=5, repeats=1, seconds=0.0, precision="fp32")
    assert found.training_ms > 0
