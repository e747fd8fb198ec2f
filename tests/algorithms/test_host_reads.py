"""A gradient step leaves its numbers on the device: whoever reads one waits there for all that was asked before.

There is no GPU in most places that run this. Where reads are said not to be free, a CPU does what a GPU would.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rayrl_dt import (
    BCConfig,
    CQLConfig,
    DTConfig,
    IQLConfig,
    OnlineDTConfig,
    RADTConfig,
    ReinformerConfig,
    TD3BCConfig,
    devices,
)
from rayrl_dt.errors import TrainingDiverged

# What gives the host a number, or a shape that depends on one.
READS = {"_local_scalar_dense", "_unique2", "equal", "is_nonzero", "masked_select", "nonzero", "unique_dim"}
MODEL = {"context_length": 4, "embed_dim": 16, "num_layers": 1, "num_heads": 2}
OFFLINE: dict[str, tuple[Any, dict[str, Any]]] = {
    "DT": (DTConfig, MODEL),
    "DT with dropped returns": (DTConfig, {**MODEL, "return_dropout": 0.2}),
    "RADT": (RADTConfig, MODEL),
    "Reinformer": (ReinformerConfig, MODEL),
    "BC": (BCConfig, {}),
    "CQL": (CQLConfig, {}),
    "IQL": (IQLConfig, {}),
    "TD3BC": (TD3BCConfig, {}),
    "DT of CartPole": (DTConfig, MODEL),
}
ONLINE: dict[str, dict[str, Any]] = {
    "none": {},
    "td3": {"critic_ensemble": 3, "critic_updates_per_actor": 2},
    "td3 with AdamW": {"rl_gradient": "td3", "optimizer": "adamw"},
    "td3 at the target": {"rl_gradient": "td3", "gradient_returns": "target", "averaged_share": 0.5},
    "sac": {"head": "gaussian"},
    "pg": {"head": "gaussian"},
    "awac": {},
    "q_align": {},
    "expected_q of CartPole": {"rl_gradient": "expected_q"},
}
Build = Callable[[str], Any]


class HostReads(TorchDispatchMode):
    """Counts reads, by the line of the package that asks for them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        chosen = args[1] if name.startswith("index") and isinstance(args[1], list | tuple) else ()
        if name in READS or any(index is not None and index.dtype == torch.bool for index in chosen):
            lines = [frame for frame in traceback.extract_stack() if "/rayrl_dt/" in frame.filename]
            self.found[f"{name} at {lines[-1].filename.split('/rayrl_dt/')[-1]}:{lines[-1].lineno}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def reads_cost() -> Iterator[None]:
    """Has the package take this CPU for a device whose numbers the host has to wait for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "reads_are_free", lambda device: False)
        yield


def counted(learner: Any) -> HostReads:
    """The reads of a learner's gradient steps from now on."""
    reads, step = HostReads(), learner.gradient_step_on

    def counting(batch: Any) -> Any:
        with reads:
            return step(batch)

    learner.gradient_step_on = counting
    return reads


@pytest.fixture
def build(ray_session: None, pendulum_data: str, cartpole_data: str) -> Build:
    """Returns a function that builds a method of `OFFLINE` or `ONLINE`."""

    def make(method: str) -> Any:
        if method in OFFLINE:
            kind, model = OFFLINE[method]
            config = kind().rl_module(model_config=model).training(gradient_steps=6)
        else:
            settings = {"rl_gradient": method, **ONLINE[method]}
            config = OnlineDTConfig()
            config.rl_module(model_config={**MODEL, "head": settings.pop("head", "auto")})
            sizes = {"pretrain_steps": 3, "env_steps": 200, "env_steps_per_iteration": 200, "critic_width": 8}
            config.online(**sizes, **settings, updates_per_iteration=3)
        data = cartpole_data if "CartPole" in method else pendulum_data
        config.offline_data(dataset=data).evaluation(target_returns="dataset:2", evaluation_interval=0)
        config.training(train_batch_size_per_learner=8, warmup_steps=3, precision="fp32")
        return config.training(gradient_steps_per_iteration=3).build_algo()

    return make


def trained(algorithm: Any) -> dict[str, np.ndarray[Any, Any]]:
    while not algorithm.done:
        algorithm.train()
    return state(algorithm)


def state(algorithm: Any) -> dict[str, np.ndarray[Any, Any]]:
    module = algorithm.learner_group._learner.sequence_module
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


@pytest.mark.ray
@pytest.mark.parametrize("method", [*OFFLINE, *ONLINE])
def test_a_gradient_step_reads_no_number(build: Build, method: str) -> None:
    plain = build(method)
    wanted = trained(plain)
    plain.stop()
    with reads_cost():
        algorithm = build(method)
        reads = counted(algorithm.learner_group._learner)
        found = trained(algorithm)
    assert algorithm.gradient_steps == 6
    assert not reads.found
    for name, value in wanted.items():
        # With a mask that leaves nothing out instead of none, attention rounds otherwise.
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    algorithm.stop()


@pytest.mark.ray
def test_reads_are_found(build: Build) -> None:
    algorithm = build("td3")
    reads = counted(algorithm.learner_group._learner)
    algorithm.train()
    assert any("divergence.py" in line for line in reads.found), reads.found
    assert any("sequence_model.py" in line for line in reads.found), reads.found
    algorithm.stop()


def diverging(algorithm: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """What a learner says whose policy has a NaN from its second step on; its weights before and after."""
    learner = algorithm.learner_group._learner
    step, before = learner.gradient_step_on, {}

    def spoiling(batch: Any) -> Any:
        if learner.gradient_step == 1:
            with torch.no_grad():
                learner.sequence_module.model.head.bias.fill_(torch.nan)
            before.update(state(algorithm))
        return step(batch)

    learner.gradient_step_on = spoiling
    with pytest.raises(TrainingDiverged) as raised:
        algorithm.train()
    learner.gradient_step_on = step
    return str(raised.value), before, state(algorithm)


@pytest.mark.ray
@pytest.mark.parametrize("method", ["DT", "RADT", "none", "td3 with AdamW", "td3", "CQL", "TD3BC"])
def test_what_diverges_is_found_as_where_reads_are_free(build: Build, method: str, tmp_path: Path) -> None:
    """A running algorithm that goes back to its checkpoint goes on."""
    algorithm = build(method)
    plain, _, _ = diverging(algorithm)
    algorithm.stop()
    with reads_cost():
        algorithm = build(method)
        algorithm.save_to_path(str(tmp_path / "begun"))
        message, before, after = diverging(algorithm)
        algorithm.restore_from_path(str(tmp_path / "begun"))
        algorithm.train()
        algorithm.stop()
    assert message == plain
    assert f"at gradient step {2 if method == 'TD3BC' else 1}" in message, (
        "its policy takes every second step"
    )
    policy = [name for name in before if name.startswith("model.")]
    assert policy
    for name in policy:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
