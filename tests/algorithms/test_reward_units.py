"""The unit of the reward changes nothing that is trained or refined: by default a run of dollars is one of cents.

Powers of two give the same bits, other factors the same numbers but for rounding. RLlib's learners need no Ray.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import build_model
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from torch import Tensor

from rayrl_dt import (
    ActionGradient,
    CQLConfig,
    DTConfig,
    IQLConfig,
    OnlineDTConfig,
    ReinformerConfig,
    TD3BCConfig,
)
from rayrl_dt.algorithms.critic_module import CriticRLModule
from rayrl_dt.algorithms.offline_data import SequenceOfflineData
from rayrl_dt.critics.training import CriticTraining, fit_critic, new_critic
from rayrl_dt.data.scaling import return_scale, reward_scale, warn_if_far
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.interop.critics import add_critic, save_critic
from rayrl_dt.policy.action_gradient import ActionRefiner

UPDATES, BATCH = 50, 16
FACTORS = (1024.0, 1000.0, 0.001)
FITTED = CriticTraining(steps=200, batch_size=32, hidden=16, lr=3e-3, precision="fp32")
SMALL = {"context_length": 4, "embed_dim": 16, "num_layers": 1, "num_heads": 2, "dropout": 0.1}
FINETUNED = {"pretrain_steps": 20, "critic_width": 16}
RUNS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "DT": (DTConfig, {}, {}),
    "Reinformer": (ReinformerConfig, {}, {}),
    "PG": (DTConfig, {"objective": "pg"}, {}),
    "AWAC": (DTConfig, {"objective": "awac"}, {}),
    "TD3+ODT": (OnlineDTConfig, {}, {"alpha": 0.3, **FINETUNED}),
    "TD3": (OnlineDTConfig, {}, {"bc_weight": 0.0, "alpha": 1.0, **FINETUNED}),
    "SAC online": (OnlineDTConfig, {}, {"rl_gradient": "sac", **FINETUNED}),
    "PG online": (OnlineDTConfig, {}, {"rl_gradient": "pg", **FINETUNED}),
    "AWAC online": (OnlineDTConfig, {}, {"rl_gradient": "awac", **FINETUNED}),
    "Q-Align": (DTConfig, {"objective": "q_align"}, {}),
    "Q-Align online": (OnlineDTConfig, {}, {"rl_gradient": "q_align", **FINETUNED}),
    "IQL": (IQLConfig, {"critic_width": 16}, {}),
    "CQL": (CQLConfig, {"critic_width": 16}, {}),
    "TD3+BC": (TD3BCConfig, {"critic_width": 16}, {}),
}
"""Config class, settings of `training` and of `online`."""

MakeStore = Callable[..., TrajectoryStore]


@pytest.fixture
def priced(make_store: MakeStore) -> Callable[[float], TrajectoryStore]:
    """Returns a function that makes the same data with rewards in another unit."""
    store = make_store(lengths=(3, 20, 30, 30))
    rng = np.random.default_rng(1)
    episodes = []
    for episode in map(store.trajectory, range(store.num_episodes)):
        paid = rng.normal(1.0, 2.0, len(episode.rewards)) - (episode.actions**2).sum(axis=1)
        episodes.append(replace(episode, rewards=paid.astype(np.float32)))

    def make(factor: float) -> TrajectoryStore:
        return TrajectoryStore.from_trajectories(
            [replace(episode, rewards=episode.rewards * np.float32(factor)) for episode in episodes],
            store.info,
        )

    return make


class _Source:
    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def batches(self, *, rank: int, first_step: int, count: int) -> Iterator[Any]:
        return iter(self._batches)


def trained(run: str, store: TrajectoryStore, folder: Path) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Weights after `UPDATES` steps of the run, and what its networks make of the first batch."""
    preset, training, online = RUNS[run]
    dataset = f"store:{store.save(folder / 'data')}"
    config = preset().offline_data(dataset=dataset)
    judged = training.get("objective") in ("pg", "awac")
    head = "gaussian" if online.get("rl_gradient") in ("sac", "pg") else "auto"
    memoryless = preset in (IQLConfig, CQLConfig, TD3BCConfig)
    config.rl_module(model_config={"embed_dim": 16} if memoryless else {**SMALL, "head": head})
    options = {"train_batch_size_per_learner": BATCH, "warmup_steps": 5, "lr": 1e-3, "precision": "fp32"}
    config.training(gradient_steps_per_iteration=UPDATES, **options, **training)
    if online:
        config.online(**online)
    else:
        config.training(gradient_steps=UPDATES)
    if judged:
        model = build_model(store, **SMALL)
        bundle = save_bundle(model.spec, model.state_dict(), folder / "judge")
        add_critic(bundle, training=FITTED, dataset=dataset)
        config.training(critic_from=str(bundle))
    data = SequenceOfflineData(config)
    spec = config.resolved_spec
    learner = config.build_learner(spaces={DEFAULT_MODULE_ID: (spec.observation_space, spec.action_space)})
    learner.build()
    module = learner.sequence_module
    if judged:
        module.critic.load_state_dict(Bundle.open(bundle).critic_for(spec).state_dict())
    (source,) = data.iterators(0)
    windows = list(source.batches(rank=0, first_step=0, count=UPDATES))
    learner.update(
        training_data=TrainingData(data_iterators=[_Source([each.to_torch() for each in windows])]),
        num_iters=UPDATES,
    )
    assert learner.gradient_step == UPDATES
    module.eval()
    window = windows[0].to_torch()
    with torch.no_grad():
        seen = [module.model(window)[window.mask]]
        if isinstance(module, CriticRLModule):
            inputs = module.model.inputs(window)
            seen.append(module.judge(inputs.observations, inputs.actions)[:, window.mask])
    return {name: value.clone() for name, value in module.state_dict().items()}, seen


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_the_same_in_any_unit(
    priced: Callable[[float], TrajectoryStore], tmp_path: Path, run: str
) -> None:
    weights, seen = trained(run, priced(1.0), tmp_path / "one")
    for factor in FACTORS:
        others, found = trained(run, priced(factor), tmp_path / str(factor))
        if factor == 1024.0:
            assert all(torch.equal(weights[name], others[name]) for name in weights)
        for one, other in zip(seen, found, strict=True):
            # What rounding moves over the edge of an order is pushed, or not, by whole steps of Adam.
            tolerance = 1e-2 if run.startswith("Q-Align") else 1e-5
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rule", ["plain", "adam"])
def test_a_critic_refines_alike_in_any_unit(priced: Callable[[float], TrajectoryStore], rule: str) -> None:
    def refined(factor: float) -> tuple[Tensor, Tensor]:
        store = priced(factor)
        model = build_model(store)
        critic = fit_critic(model, store, FITTED)
        rng = np.random.default_rng(2)
        observations = rng.normal(size=(40, 3)).astype(np.float32)
        actions = torch.from_numpy(rng.uniform(-1, 1, (40, 2)).astype(np.float32))
        settings = ActionGradient(eta=0.1, n=5, rule=rule)
        return actions, ActionRefiner(settings, critic, model.spec)(observations, actions)

    actions, wanted = refined(1.0)
    assert (wanted != actions).any(dim=1).float().mean() > 0.5
    for factor in FACTORS:
        found = refined(factor)[1]
        if factor == 1024.0:
            assert torch.equal(found, wanted)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_the_scale_is_recorded_with_run_and_critic(
    priced: Callable[[float], TrajectoryStore], tmp_path: Path
) -> None:
    """A resumed run keeps its scales, and what continues a policy takes over the policy's."""
    store = priced(100.0)
    dataset = f"store:{store.save(tmp_path / 'data')}"
    config = OnlineDTConfig().offline_data(dataset=dataset).rl_module(model_config=SMALL)
    SequenceOfflineData(config)
    spec = config.resolved_spec
    assert config.reward_scale == spec.reward_scale == pytest.approx(reward_scale(store))
    assert spec.return_scale == pytest.approx(return_scale(store))
    # The scales of this version, and those of one that knew none of rewards.
    for scales in ({"return_scale": 90.0, "reward_scale": 3.0}, {"return_scale": 90.0, "reward_scale": None}):
        resumed = config.copy(copy_frozen=False).online(reward_scale="auto")
        resumed.policy_spec = replace(spec, **scales).to_json()
        SequenceOfflineData(resumed)
        assert resumed.resolved_spec.return_scale == 90.0
        assert resumed.reward_scale == (scales["reward_scale"] or 1.0)
    model = build_model(store, **{**SMALL, "timestep_embedding": "none"})
    model.spec = replace(model.spec, reward_scale=7.0, return_scale=300.0)
    bundle = save_bundle(model.spec, model.state_dict(), tmp_path / "policy")
    add_critic(bundle, training=FITTED, dataset=dataset)
    assert Bundle.open(bundle).header["critic"]["reward_scale"] == 7.0
    finetuned = OnlineDTConfig().offline_data(dataset=dataset).online(start_from=str(bundle))
    SequenceOfflineData(finetuned)
    found = finetuned.resolved_spec
    assert (finetuned.reward_scale, found.reward_scale, found.return_scale) == (7.0, 7.0, 300.0)


def test_scales_of_another_unit_are_named(
    priced: Callable[[float], TrajectoryStore], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = priced(1000.0)
    dataset = f"store:{store.save(tmp_path / 'data')}"
    # Another test of this process may have said the same: a line is said once in a process.
    warn_if_far.cache_clear()

    def said(config: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "rayrl_dt"):
            SequenceOfflineData(config.offline_data(dataset=dataset))
        return [line for line in caplog.messages if not line.startswith("Nothing is evaluated")]

    small = OnlineDTConfig().rl_module(model_config=SMALL)
    assert said(small.copy().online(reward_scale=40)) == []
    (line,) = said(small.copy().online(reward_scale=1.5))
    assert line.startswith(f"online.reward_scale is 1.5, and the data ask for {reward_scale(store):.3g}")
    (line,) = said(IQLConfig().training(reward_scale=1.25))
    assert line.startswith("training.reward_scale is 1.25")
    (line,) = said(small.copy().training(return_scale=10))
    assert line.startswith("training.return_scale is 10, and the data ask for")
    # A critic of before learned from raw rewards.
    model = build_model(store, **SMALL)
    bundle = save_bundle(model.spec, model.state_dict(), tmp_path / "policy")
    save_critic(
        Bundle.open(bundle), new_critic(model.spec, hidden=8, seed=0).state_dict(), record={"steps": 1}
    )
    (line,) = said(
        DTConfig().rl_module(model_config=SMALL).training(objective="awac", critic_from=str(bundle))
    )
    assert line.startswith(f"the reward scale of the critic in {bundle} is 1, and the data ask for")
