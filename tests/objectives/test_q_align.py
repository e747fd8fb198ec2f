"""Q-aligned returns: what is shifted, what is penalized, what the critic learns (methods: section 10, 1 to 9)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders import build_model, random_window, scramble
from torch import Tensor

from rayrl_dt import UserError
from rayrl_dt.critics.companions import still_copy
from rayrl_dt.critics.networks import TwinCritic
from rayrl_dt.data import windows
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.losses import masked_mse
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.objectives.gradient import Batch
from rayrl_dt.objectives.imitation import imitation_loss
from rayrl_dt.objectives.q_align import CoTrainedQAlign, QAlign, QAligned
from rayrl_dt.objectives.return_order import ordering_loss, rise_of
from rayrl_dt.objectives.return_shift import ReturnShift, shifted
from rayrl_dt.types import Window

REAL = (6, 3, 1, 5)
K = 6
MakeStore = Callable[..., TrajectoryStore]


class Values(TwinCritic):
    """Q of each twin as a function of the actions alone."""

    def __init__(self, *functions: Callable[[Tensor], Tensor]) -> None:
        torch.nn.Module.__init__(self)
        self.functions = functions

    def forward(self, observations: Tensor, actions: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.stack([function(actions) for function in self.functions])


@pytest.fixture(params=["dt", "radt", "decoupled"])
def model(make_store: MakeStore, request: pytest.FixtureRequest) -> SequenceModel:
    return build_model(make_store(), backbone=request.param, dropout=0.3).train()


def critic_of(model: SequenceModel, seed: int = 5) -> TwinCritic:
    """Twins that mostly agree."""
    critic, other = (TwinCritic(model.spec, hidden=16) for _ in range(2))
    scramble(critic, seed)
    scramble(other, seed + 1)
    with torch.no_grad():
        for own, first, noise in zip(
            *(net.parameters() for net in (critic.q2, critic.q1, other.q2)), strict=True
        ):
            own.copy_(first + 0.2 * noise)
    return critic


def moved_by(window: Window[Tensor], shift: Tensor) -> Window[Tensor]:
    """The window with another course of returns; padding stays."""
    return replace(window, returns_to_go=window.returns_to_go + shift[:, None, None] * window.mask[..., None])


def networks_of(model: SequenceModel, critic: Any) -> Any:
    return SimpleNamespace(model=model, judge=critic, critic=critic, precision="fp32")


def step(
    align: QAligned, model: SequenceModel, critic: Any, window: Window[Tensor], shift: Tensor | None = None
) -> tuple[Batch, Tensor, Tensor]:
    """The policy's loss as a learner has it, with the shift that is drawn or given: batch, loss, supervised loss."""
    gradient, networks = QAlign(align, 16), networks_of(model, critic)
    batch = Batch(window, model, torch.Generator().manual_seed(1), progress=0.5)
    returns = gradient.asked_returns(networks, batch, online=True)
    assert returns is not None
    if shift is not None:
        returns = moved_by(window, shift).returns_to_go[None]
        batch.shift = shift
    model.reseed(3)
    outputs, batch.asked = model.outputs_for(
        window, torch.cat([window.returns_to_go[None], returns])
    ).tensor_split([1])
    fit = imitation_loss(model, outputs[0], window)
    return batch, gradient.policy_loss(fit, outputs[0], networks, batch, online=True), fit


def model_outputs(model: SequenceModel, window: Window[Tensor]) -> Tensor:
    """The outputs with the masks that `step` draws."""
    model.reseed(3)
    return model(window).detach()


def gradients(loss: Tensor, model: SequenceModel) -> Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    return torch.cat([each.flatten() for each in found if each is not None])


def test_the_loss_is_the_description(model: SequenceModel) -> None:
    """Written out step by step, twin by twin, with masks drawn anew for each forward."""
    critic, window = critic_of(model), random_window(model, REAL)
    batch, loss, fit = step(QAligned(align_weight=2.5, align_normalize=False), model, critic, window)
    assert batch.shift is not None
    model.reseed(3)
    plain = model(window)
    model.reseed(3)
    moved = model(moved_by(window, batch.shift))
    observations = (window.observations - model.observation_mean) / model.observation_std
    total, count = torch.zeros(()), 0
    for row, column in window.mask.nonzero().tolist():
        lacking = []
        for net in (critic.q1, critic.q2):
            after, before = (
                net(torch.cat([observations[row, column], action]))[0]
                for action in (moved[row, column], plain[row, column].detach())
            )
            rise = (after - before.detach()) * torch.sign(batch.shift[row])
            lacking.append(torch.relu(-rise))
        total, count = total + torch.minimum(*lacking), count + 1
    expected = masked_mse(plain, model.to_model_actions(window.actions), window.mask) + 2.5 * total / count
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, model), gradients(expected, model), rtol=1e-4, atol=1e-6)
    assert loss > fit


def test_no_shift_is_no_loss_and_no_weight_is_imitation(model: SequenceModel) -> None:
    critic, window = critic_of(model), random_window(model, REAL)
    batch, loss, fit = step(QAligned(), model, critic, window, torch.zeros(4))
    assert batch.asked is not None and loss == fit
    model.reseed(3)
    atol = 1e-6 if model.spec.model.backbone == "decoupled" else 0  # there all returns are one product
    torch.testing.assert_close(batch.asked[0], model(window), rtol=0, atol=atol)
    for silent in (QAlign(QAligned(align_weight=0.0), 16), QAlign(QAligned(align_start=0.6), 16)):
        other, networks = Batch(window, model, torch.Generator(), progress=0.5), networks_of(model, critic)
        assert silent.asked_returns(networks, other, online=True) is None
        assert silent.policy_loss(fit, batch.asked, networks, other, online=True) is fit


def test_only_a_wrong_order_in_both_twins_counts(model: SequenceModel) -> None:
    window = random_window(model, REAL)
    shift = torch.tensor([3.0, -3.0, 3.0, -3.0])
    with torch.no_grad():
        model.reseed(3)
        plain = model(window)
        model.reseed(3)
        moved = model(moved_by(window, shift))
    right = shift.sign()[:, None] * torch.where(window.mask, 1.0, 0.0)

    def orders(actions: Tensor) -> Tensor:
        """Rises with the shift: 1 more for the shifted actions than for the plain ones."""
        is_moved = (actions - moved).abs().sum(-1) < (actions - plain).abs().sum(-1)
        return right * is_moved + 0.0 * actions.sum(-1)

    def wrong(actions: Tensor) -> Tensor:
        return -orders(actions)

    pairs = (((orders, orders), 0.0, 0.0), ((orders, wrong), 0.0, 0.5), ((wrong, wrong), 1.0, 1.0))
    for functions, least, mean in pairs:
        for twins, expected in (("min", least), ("mean", mean)):
            batch, loss, fit = step(
                QAligned(align_twins=twins, align_normalize=False), model, Values(*functions), window, shift
            )
            assert (loss - fit).item() == pytest.approx(expected, abs=1e-6)
            if expected == 0:
                assert torch.equal(gradients(loss, model), gradients(fit, model))
    assert batch.logged["align_agreement"] == 0
    # 1 in Q for 3 of a return, whose scale is 10.
    assert batch.logged["align_slope"].item() == pytest.approx(-10 / 3, rel=1e-5)


def test_a_blind_policy_is_left_alone_and_the_log_says_so(make_store: MakeStore) -> None:
    model = build_model(make_store(), backbone="no-return", dropout=0.3).train()
    batch, loss, fit = step(QAligned(), model, critic_of(model), random_window(model, REAL))
    assert loss == fit and batch.logged["align_slope"] == 0 and batch.logged["align_agreement"] == 0
    batch, loss, fit = step(QAligned(align_margin=1.0), model, critic_of(model), random_window(model, REAL))
    assert loss > fit


def test_q_may_be_moved_and_scaled_and_the_shift_turned(model: SequenceModel) -> None:
    critic, window = critic_of(model), random_window(model, REAL)
    _, loss, fit = step(QAligned(align_normalize=False), model, critic, window)

    def changed(factor: float, offset: float) -> Values:
        seen = model.inputs(window).observations
        return Values(*(lambda a, i=i: factor * critic(seen, a)[i] + offset for i in (0, 1)))

    for factor, offset in ((1.0, 50.0), (4.0, 0.0)):
        _, other, same = step(QAligned(align_normalize=False), model, changed(factor, offset), window)
        torch.testing.assert_close(other - same, factor * (loss - fit), rtol=1e-3, atol=1e-5)
    # Normalized, the unit of Q changes nothing.
    normalized = [step(QAligned(), model, changed(factor, 0.0), window)[1] for factor in (1.0, 64.0)]
    torch.testing.assert_close(normalized[1], normalized[0])
    values = (
        critic(model.inputs(window).observations, model_outputs(model, window)).abs().mean(0)[window.mask]
    )
    torch.testing.assert_close(normalized[0] - fit, (loss - fit) / values.mean(), rtol=1e-3, atol=1e-6)
    # Of two orders one is wrong: what a shift violates, the turned order does not.
    gaps = torch.randn(2, 4, K)
    mask = window.mask
    up, down = ordering_loss(gaps, mask, twins="mean"), ordering_loss(-gaps, mask, twins="mean")
    assert (up - down).item() == pytest.approx(-gaps.mean(0)[mask].mean().item(), rel=1e-4)


def test_neither_anchor_nor_critic_has_a_gradient(model: SequenceModel) -> None:
    critic, window = critic_of(model), random_window(model, REAL)
    gradient, networks = QAlign(QAligned(), 16), networks_of(model, critic)
    batch = Batch(window, model, torch.Generator().manual_seed(1), progress=0.5)
    assert gradient.asked_returns(networks, batch, online=True) is not None
    outputs, other = (torch.rand(4, K, 2).sub(0.5).requires_grad_() for _ in range(2))
    batch.asked = other[None]
    loss = gradient.policy_loss(torch.zeros(()), outputs, networks, batch, online=True)
    anchored, moved = torch.autograd.grad(loss, [outputs, other], allow_unused=True)
    assert anchored is None and moved is not None and moved[window.mask].abs().sum() > 0
    assert not moved[~window.mask].any()
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_a_shift_moves_a_window_as_a_whole_and_stays_in_the_range(make_store: MakeStore) -> None:
    model = build_model(make_store())
    window = random_window(model, REAL)
    shift = torch.tensor([2.0, 1e3, -1e3, 0.0])
    returns, done = shifted(window, shift, -20.0, 30.0)
    first = window.mask.int().argmax(1)
    begin = window.returns_to_go[torch.arange(4), first, 0]
    wanted = torch.stack([begin[0] + 2, torch.tensor(30.0), torch.tensor(-20.0), begin[3]])
    torch.testing.assert_close(begin + done, wanted)
    moved = (returns - window.returns_to_go)[..., 0]
    assert torch.equal(moved[~window.mask], torch.zeros(int((~window.mask).sum())))
    torch.testing.assert_close(moved[window.mask], done[:, None].expand(-1, K)[window.mask])
    # What lies outside of the range is not drawn into it.
    returns, done = shifted(window, shift, 100.0, 200.0)
    assert done[3] == 0 and done[2] == 0 and torch.equal(returns[3], window.returns_to_go[3])


def test_shifts_have_both_signs_and_a_least_size_and_shrink() -> None:
    law = ReturnShift(start=6.0, end=1.0, low=-1, high=9, target=10)
    noise = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    for progress, sigma in ((0.0, 6.0), (0.5, 3.5), (1.0, 1.0)):
        drawn = law.draw(progress, noise)
        assert drawn.abs().min() == pytest.approx(0.2)
        assert abs((drawn > 0).float().mean().item() - 0.5) < 3 * 0.5 / 20_000**0.5
        assert drawn.std().item() == pytest.approx(sigma, rel=0.03)


def test_shift_and_range_follow_from_the_data(make_store: MakeStore) -> None:
    spec = build_model(make_store()).spec
    data = {"min": -900.0, "p5": -800.0, "p50": -500.0, "p95": -200.0, "max": -100.0, "mean": -500.0}
    law = QAligned().shift(replace(spec, data_returns=data))
    assert law == ReturnShift(start=600.0, end=200.0, low=-900.0, high=0.0, target=900.0)
    set_ = QAligned(align_shift=30, align_low=-1, align_high=9, align_target_shift=0, align_shift_end=3)
    assert set_.shift(replace(spec, data_returns=data)) == ReturnShift(30, 3, -1, 9, 0)
    alike = replace(spec, data_returns=dict.fromkeys(data, 5.0))
    with pytest.raises(UserError, match=r"they are all about 5; set training.align_shift, or objective"):
        QAligned().check_policy(alike)
    QAligned(align_shift=3.0).check_policy(alike)
    with pytest.raises(UserError, match="align_low is 9 and align_high 1"):
        QAligned(align_low=9.0, align_high=1.0).check_policy(spec)


class Bench:
    """Keeps the loss that a critic descends."""

    gradient_step = 0

    def __init__(self, networks: Any) -> None:
        self.networks, self.loss = networks, torch.zeros(())

    def descend(self, optimizer: str, loss: Tensor, what: str) -> Tensor:
        self.loss = loss
        return loss

    def log(self, key: str, value: Tensor) -> None: ...

    def check_values(self, *args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize("target", ["auto", 0.0])
def test_the_critic_learns_from_the_next_step_of_the_window(make_store: MakeStore, target: Any) -> None:
    """Step by step; the last real step teaches where it ends the episode, and is left out where it is cut off."""
    store = make_store(lengths=(1, 2, 7, 30, 30))
    model = build_model(store)
    critic, slow = critic_of(model), critic_of(model, 6)
    policy = still_copy(model)
    scramble(policy, 9)
    networks = networks_of(model, critic)
    networks.target_model, networks.target_critic = policy, slow
    episodes, offsets = np.array([0, 1, 2, 2, 3, 3]), np.array([0, 0, 4, 1, 28, 3])
    window = windows.gather(store, episodes, offsets, K, successors=True).to_torch()
    align = QAligned(align_target_shift=target, align_gamma=0.9)
    law, bench = align.shift(model.spec), Bench(networks)
    CoTrainedQAlign(align).critic_step(bench, Batch(window, model, torch.Generator()))
    assert window.rewards is not None and window.terminated is not None
    returns, shift = shifted(window, torch.full((6,), law.target), law.low, law.high)
    assert (target == 0) == bool((shift == 0).all())
    first = window.mask.int().argmax(1)
    if target == "auto":  # asked for the best of the data, but where a window's hindsight return is higher
        torch.testing.assert_close(
            returns[torch.arange(6), first, 0].clamp(min=law.high), torch.full((6,), law.high)
        )
    actions = policy(replace(window, returns_to_go=returns, next=None)).detach()
    inputs, scale = model.inputs(window), model.spec.reward_scale
    squares, count = torch.zeros(()), 0
    for row, column in window.mask.nonzero().tolist():
        wanted = window.rewards[row, column] / scale
        if column < K - 1:
            ahead = slow(inputs.observations[[row], column + 1], actions[[row], column + 1])
            wanted = wanted + 0.9 * ahead.min().detach()
        elif not window.terminated[row, column]:
            continue
        values = critic(inputs.observations[[row], column], inputs.actions[[row], column])
        squares, count = squares + (values - wanted).square().sum(), count + 1
    assert count < window.mask.sum() and bool(window.terminated.any())
    torch.testing.assert_close(bench.loss, squares / count)


def test_it_makes_a_wrong_order_right(make_store: MakeStore) -> None:
    """One state, Q = 1 - a^2, data on one side; a policy that goes the wrong way as its return rises, trained on."""
    model = build_model(make_store(action_dim=1), num_layers=1, context_length=1)
    returns = torch.linspace(-1.0, 1.0, 9)[:, None, None] * 10
    fixed = random_window(model, (1,) * 9)
    window = replace(fixed, observations=torch.zeros_like(fixed.observations), returns_to_go=returns)
    window = replace(window, timesteps=torch.zeros_like(fixed.timesteps))
    model.train()
    data = replace(window, actions=(0.55 + 0.035 * returns))  # the more is asked for, the worse
    critic = Values(*(lambda a: 1 - a[..., 0].square(),) * 2)

    def fitted(weight: float) -> Tensor:
        torch.manual_seed(0)
        trained = copy.deepcopy(model)
        optimizer = torch.optim.Adam(trained.parameters(), lr=3e-3)
        align = QAligned(align_weight=weight, align_shift=8.0, align_low=-10.0, align_high=10.0)
        gradient, networks = QAlign(align, 16), networks_of(trained, critic)
        for number in range(300):
            batch = Batch(data, trained, torch.Generator().manual_seed(number), progress=0.5)
            asked = gradient.asked_returns(networks, batch, online=True)
            if asked is None:
                outputs = trained(data)
            else:
                both = torch.cat([data.returns_to_go[None], asked])
                (outputs,), batch.asked = trained.outputs_for(data, both).tensor_split([1])
            fit = imitation_loss(trained, outputs, data)
            optimizer.zero_grad()
            torch.autograd.backward(gradient.policy_loss(fit, outputs, networks, batch, online=True))
            optimizer.step()
        with torch.no_grad():
            return 1 - trained(window)[:, 0, 0].square()

    assert (fitted(0.0).diff() < -0.01).all()
    assert (fitted(30.0).diff() > -1e-3).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"backbone": "mlp"}, "backbone 'mlp' reads no returns; choose dt, radt"),
        ({"backbone": "no-return"}, "backbone 'no-return' reads no returns"),
        ({"backbone": "reinformer"}, "'reinformer' acts on returns that it predicts itself"),
        ({"backbone": "dt", "context_length": 1}, "context_length is 1; set it to 2 or more"),
    ],
)
def test_policies_that_it_cannot_order_are_refused(
    make_store: MakeStore, config: dict[str, Any], message: str
) -> None:
    model = build_model(make_store(), **config)
    with pytest.raises(UserError, match=message):
        CoTrainedQAlign(QAligned()).check_model(model.spec.model)


def test_a_calibrated_margin_is_a_share_of_what_logged_values_rise(model: SequenceModel) -> None:
    """Against NumPy's line through the batch; beyond a full shift of it nothing is asked for."""
    critic, window = critic_of(model), random_window(model, REAL)
    dropped = window.returns_to_go.clone()
    dropped[1] = torch.nan  # return dropout: the window says nothing of returns
    inputs = model.inputs(window)
    values = critic(inputs.observations, inputs.actions).amin(dim=0).detach()
    kept = window.mask.clone()
    kept[1] = False
    for returns, mask in ((window.returns_to_go, window.mask), (dropped, kept)):
        scaled = returns[..., 0] / model.spec.return_scale
        slope = np.polyfit(scaled[mask].double(), values[mask].double(), 1)[0]
        found = rise_of(values, scaled, window.mask & scaled.isfinite())
        torch.testing.assert_close(float(found), max(slope, 0.0), rtol=1e-4, atol=1e-5)
        assert rise_of(values, -scaled, mask) == 0 or found == 0, "a falling line asks for nothing"
    slope = float(rise_of(values, window.returns_to_go[..., 0] / model.spec.return_scale, window.mask))
    if slope == 0:
        critic = Values(*(lambda a, i=i: -critic_of(model)(inputs.observations, a)[i] for i in (0, 1)))
        values = critic(inputs.observations, inputs.actions).amin(dim=0).detach()
        slope = float(rise_of(values, window.returns_to_go[..., 0] / model.spec.return_scale, window.mask))
    assert slope > 0
    shift = torch.tensor([2.0, -3.0, 1.0, 4.0])
    calibrated = QAligned(align_margin=0.5, align_margin_unit="calibrated", align_normalize=False)
    plain = QAligned(align_margin=0.5 * slope, align_normalize=False)
    losses = [step(align, model, critic, window, shift)[1] for align in (calibrated, plain)]
    torch.testing.assert_close(*losses)
    with pytest.raises(
        UserError, match=r"align_margin_unit is calibrated, and nothing reads it with align_margin 0"
    ):
        QAligned(align_margin_unit="calibrated")
