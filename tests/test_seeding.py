from __future__ import annotations

import numpy as np
import pytest
import torch

from rayrl_dt.seeding import derive_seed, numpy_generator, torch_generator


def test_a_seed_is_a_function_of_its_position_for_ever() -> None:
    # These numbers are part of what a run is: changing them breaks resuming, and published results.
    assert derive_seed(0, "batches") == 598306082256072567
    assert derive_seed(7, "dropout", 1, 1234) == 6436947603668556605
    assert numpy_generator(7, "batches", 1, 2).integers(2**63) == numpy_generator(
        7, "batches", 1, 2
    ).integers(2**63)


@pytest.mark.parametrize("counters", [((), (0,), (0, 0)), ((0,), (1,), (2**31,)), ((0, 0), (0, 1), (1, 0))])
def test_positions_have_seeds_of_their_own(counters: tuple[tuple[int, ...], ...]) -> None:
    seeds = [
        derive_seed(seed, stream, *position)
        for seed in (0, 1, 2**40, 2**64 - 1)
        for stream in ("batches", "dropout", "actions")
        for position in counters
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_neighboring_positions_are_unrelated() -> None:
    draws = np.array([numpy_generator(3, "batches", 0, step).random() for step in range(4000)])
    assert abs(draws.mean() - 0.5) < 4 / np.sqrt(12 * 4000)
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 4 / np.sqrt(4000)


@pytest.mark.parametrize("make", [numpy_generator, torch_generator])
def test_generators_repeat_and_leave_the_global_ones_alone(make: object) -> None:
    def draw(*position: object) -> float:
        generator = make(*position)
        if isinstance(generator, torch.Generator):
            return torch.rand((), generator=generator).item()
        return generator.random()

    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    assert draw(1, "a", 2, 3) == draw(1, "a", 2, 3)
    assert len({draw(1, "a", 2, 3), draw(2, "a", 2, 3), draw(1, "b", 2, 3), draw(1, "a", 3, 2)}) == 4
    assert (np.random.get_state()[1] == numpy_state).all()
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_negative_seeds_are_seeds_too() -> None:
    assert derive_seed(-1, "a") == derive_seed(2**64 - 1, "a") != derive_seed(1, "a")
