"""What it takes to add a head, an encoder or a backbone: one class and one row of a table, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from builders import TINY
from torch import Tensor, nn

from rayrl_dt import losses
from rayrl_dt.data import windows
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.diagnosis.attention import summarize
from rayrl_dt.diagnosis.conditioning import sensitivity
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.targets import ReturnRange
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.models.backbones import BACKBONES, Backbone
from rayrl_dt.models.encoders import ENCODERS, Encoder, ObservationEmbedding
from rayrl_dt.models.head import ContinuousHead
from rayrl_dt.models.heads import HEADS
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.models.trunk import Trunk, TrunkInputs
from rayrl_dt.objectives.imitation import imitation_loss
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.serving.policy import SequencePolicy
from rayrl_dt.types import Normalizer, Trajectory

MakeStore = Callable[..., TrajectoryStore]
BINS = 5


@pytest.fixture(autouse=True)
def same_order() -> Iterator[None]:
    """Leaves the table of encoders as it was: the first that fits is taken, and what returns comes last."""
    rows = dict(ENCODERS)
    yield
    ENCODERS.clear()
    ENCODERS.update(rows)


class BinnedHead(ContinuousHead):
    """Throw-away head: a softmax over bins for each action dimension."""

    stochastic = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.outputs = BINS * self.size

    def imitation_loss(
        self, outputs: Tensor, wanted: Tensor, mask: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        index = ((wanted + 1) / 2 * (BINS - 1)).round().long()  # (B, P, A)
        return losses.cross_entropy(
            self._logits(outputs).flatten(1, 2), index.flatten(1), mask.repeat_interleave(self.size, 1)
        )

    def mode(self, outputs: Tensor) -> Tensor:
        return self._logits(outputs).argmax(dim=-1) * (2 / (BINS - 1)) - 1

    def sample(self, outputs: Tensor, count: int, generator: torch.Generator) -> Tensor:
        law = self._logits(outputs).softmax(dim=-1).flatten(0, -2)
        index = torch.multinomial(law, count, replacement=True, generator=generator)  # (B A, M)
        return index.T.unflatten(1, (-1, self.size)) * (2 / (BINS - 1)) - 1

    def _logits(self, outputs: Tensor) -> Tensor:
        return outputs.unflatten(-1, (self.size, BINS))


class PictureEncoder(Encoder):
    """Throw-away encoder: a convolution over small images."""

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__(space)
        height, width, channels = space.shape or ()
        self.convolution = nn.Conv2d(channels, 3, 3, stride=2)
        self.features = 3 * ((height - 1) // 2) * ((width - 1) // 2)

    @classmethod
    def fits(cls, space: gym.Space[Any]) -> bool:
        return len(space.shape or ()) == 3 and space.dtype == np.uint8

    @classmethod
    def normalizer(cls, store: TrajectoryStore) -> Normalizer:
        return Normalizer(np.zeros((), np.float32), np.full((), 255.0, np.float32))

    def forward(self, observations: Tensor) -> Tensor:
        pixels = observations.flatten(0, -4).movedim(-1, 1)  # (B K, C, H, W)
        features: Tensor = self.convolution(pixels).relu().flatten(1).unflatten(0, observations.shape[:-3])
        return features


class NumberEncoder(Encoder):
    """Throw-away encoder: discrete observations as one-hot vectors."""

    def __init__(self, space: gym.Space[Any]) -> None:
        super().__init__(space)
        assert isinstance(space, gym.spaces.Discrete)
        self.features = int(space.n)

    @classmethod
    def fits(cls, space: gym.Space[Any]) -> bool:
        return isinstance(space, gym.spaces.Discrete)

    @classmethod
    def normalizer(cls, store: TrajectoryStore) -> Normalizer:
        return Normalizer.identity(())

    def forward(self, observations: Tensor) -> Tensor:
        return nn.functional.one_hot(observations.long(), self.features).to(observations.dtype)


class RecurrentTrunk(Trunk):
    """Throw-away backbone: a GRU over returns and observations."""

    def __init__(self, spec: PolicySpec, *, source: Any) -> None:
        super().__init__()
        width = spec.model.embed_dim
        self.embed_return = nn.Linear(1, width)
        self.embed_observation = ObservationEmbedding(spec.observation_space, width)
        self.recurrence = nn.GRU(width, width, batch_first=True)

    def forward(self, inputs: TrunkInputs, *, last_only: bool = False) -> Tensor:
        tokens = self.embed_return(inputs.returns_to_go) + self.embed_observation(inputs.observations)
        features: Tensor = self.recurrence(tokens)[0]
        return features[:, -1:] if last_only else features


def store_of(space: gym.Space[Any]) -> TrajectoryStore:
    """Random episodes with observations of a space."""
    rng = np.random.default_rng(0)
    space.seed(0)
    trajectories = [
        Trajectory(
            np.stack([space.sample() for _ in range(13)]),
            rng.uniform(-2, 2, (12, 2)).astype(np.float32),
            rng.normal(size=12).astype(np.float32),
            terminated=True,
        )
        for _ in range(4)
    ]
    info = DatasetInfo("test", space, gym.spaces.Box(-2, 2, (2,), np.float32))
    return TrajectoryStore.from_trajectories(trajectories, info)


def use(store: TrajectoryStore, folder: Path, **config: Any) -> SequenceModel:
    """Trains a step, acts, saves and loads, measures; returns the model."""
    spec = PolicySpec.from_store(ModelConfig.from_dict({**TINY, **config}), store, return_scale=None)
    torch.manual_seed(0)
    model = SequenceModel(spec)
    window = windows.sample(store, np.random.default_rng(0), 8, spec.model.context_length).to_torch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    fits = []
    for _ in range(30):
        loss = imitation_loss(model, model(window), window)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        fits.append(loss.item())
    assert fits[-1] < 0.8 * fits[0]
    model.eval()
    save_bundle(spec, model.state_dict(), folder)
    again = Bundle.open(folder).model
    with torch.no_grad():
        torch.testing.assert_close(again(window), model(window), rtol=0, atol=0)
    policy = SequencePolicy.load(folder)
    policy.reset(None if spec.backbone.predicts_returns else 1.0)
    actor = VectorActor(again, 3, sample=torch.Generator().manual_seed(0))
    for step in range(9):
        observation = store.observations[step]
        action = policy.act(observation, None if step == 0 else 0.5)
        assert spec.action_space.contains(action)
        seen = np.stack([observation] * 3)
        actions = actor.act(seen, np.zeros(3), np.full(3, step == 0), np.ones(3))
        assert all(spec.action_space.contains(each) for each in actions)
    assert sensitivity(model, [window], ReturnRange(-1.0, -1.0, 1.0, 1.0)).windows == 8
    return model


def test_a_head_is_one_class_and_one_row(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="head is 'binned'"):
        ModelConfig(head="binned")
    monkeypatch.setitem(HEADS, "binned", BinnedHead)
    assert PolicySpec.from_store(ModelConfig(), make_store(), return_scale=None).model.head == "deterministic"
    model = use(make_store(), tmp_path / "policy", head="binned")
    assert model.head.out_features == 2 * BINS
    with pytest.raises(UserError, match=r"use 'categorical' or 'auto'"):
        PolicySpec.from_store(ModelConfig(head="binned"), make_store(actions=3), return_scale=None)


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name != "starformer"])
@pytest.mark.parametrize(
    ("encoder", "space"),
    [
        (PictureEncoder, gym.spaces.Box(0, 255, (7, 9, 2), np.uint8)),
        (NumberEncoder, gym.spaces.Discrete(6)),
    ],
)
def test_an_encoder_is_one_class_and_one_row(
    encoder: type[Encoder],
    space: gym.Space[Any],
    backbone: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("image", "impala"):  # the first that fits is taken
        monkeypatch.delitem(ENCODERS, name)
    monkeypatch.setitem(ENCODERS, "new", encoder)
    model = use(store_of(space), tmp_path / "policy", backbone=backbone)
    assert any(isinstance(module, encoder) for module in model.modules())


def test_starformer_reads_vectors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "new", PictureEncoder)
    store = store_of(gym.spaces.Box(0, 255, (7, 9, 2), np.uint8))
    spec = PolicySpec.from_store(
        ModelConfig.from_dict({**TINY, "backbone": "starformer"}), store, return_scale=None
    )
    with pytest.raises(UserError, match=r"starformer reads .* \(7, 9, 2\).*choose dt, radt"):
        SequenceModel(spec)


def test_a_backbone_is_one_class_and_one_row(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="backbone is 'recurrent'"):
        ModelConfig(backbone="recurrent")
    monkeypatch.setitem(BACKBONES, "recurrent", Backbone(RecurrentTrunk, activation="gelu"))
    model = use(make_store(), tmp_path / "policy", backbone="recurrent")
    assert model.spec.model.activation == "gelu"
    for options in ({"use_stepra": False}, {"timestep_embedding": "none"}, {"target_rule": "predicted"}):
        with pytest.raises(UserError, match="recurrent"):
            ModelConfig.from_dict({"backbone": "recurrent", **options})
    with pytest.raises(UserError, match="no attention that can be read"):
        summarize(model, [])
