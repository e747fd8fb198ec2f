"""From returns to values: never falling, the best of its kind, refused where there is nothing to know."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from builders import build_model

from rayrl_dt import UserError
from rayrl_dt.critics.calibration import Calibration, fit_calibration, isotonic
from rayrl_dt.critics.training import CriticTraining, fit_critic, new_critic
from rayrl_dt.data.store import TrajectoryStore

MakeStore = Callable[..., TrajectoryStore]


@pytest.mark.parametrize("seed", range(5))
def test_pooling_is_the_formula_of_means(seed: int) -> None:
    """The i-th value is the largest, over beginnings up to i, of the least mean up to an end from i on."""
    rng = np.random.default_rng(seed)
    values, weights = rng.integers(0, 5, 25) + 0.1 * np.arange(25), rng.uniform(0.5, 2, 25)

    def mean(begin: int, end: int) -> float:
        return float(np.average(values[begin : end + 1], weights=weights[begin : end + 1]))

    expected = [
        max(min(mean(begin, end) for end in range(i, 25)) for begin in range(i + 1)) for i in range(25)
    ]
    np.testing.assert_allclose(isotonic(values, weights), expected)


def test_it_never_falls_and_follows_the_logged_actions(make_store: MakeStore) -> None:
    store = make_store()
    model = build_model(store)
    critic = fit_critic(model, store, CriticTraining(steps=300, batch_size=64, hidden=16, lr=3e-3))
    found = fit_calibration(critic, model, store)
    assert (np.diff(found.returns) > 0).all() and (np.diff(found.values) >= 0).all()
    assert 0.02 < found.explained < 1
    # Of the least squares: the mean of what is fitted is that of Q.
    values = critic.q(
        model.to_model_observations(torch.from_numpy(store.observations)),
        model.to_model_actions(torch.from_numpy(store.actions)),
    ).amin(dim=0)
    assert np.mean(found(store.returns_to_go)) == pytest.approx(values.mean().item(), abs=1e-4)
    assert np.array_equal(found(np.array([-1e9, 1e9])), found.values[[0, -1]])


def test_values_that_know_no_return_are_refused(make_store: MakeStore) -> None:
    store = make_store()
    model = build_model(store)
    critic = new_critic(model.spec, hidden=16, seed=0)
    for parameter in critic.q.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(UserError, match=r"explains 0.0%\).*--steps 100000; --gamma 0.999.*mode=max"):
        fit_calibration(critic, model, store)


def test_it_is_a_line_between_its_points() -> None:
    calibration = Calibration(np.array([0.0, 10.0]), np.array([1.0, 3.0]), 1.0)
    assert calibration(np.array([5.0, 20.0])).tolist() == [2.0, 3.0]
