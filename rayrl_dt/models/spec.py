"""What a policy is made of, as plain data: enough to rebuild it anywhere, with no pickle and no Ray."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from rayrl_dt.data import scaling
from rayrl_dt.data.store import DatasetInfo, TrajectoryStore
from rayrl_dt.envs import RecordedEnv, spaces_json
from rayrl_dt.envs.actions import ActionLayout
from rayrl_dt.envs.observations import Flattening
from rayrl_dt.envs.packed import Packed
from rayrl_dt.envs.spec_text import spec_text
from rayrl_dt.errors import UserError
from rayrl_dt.models.backbones import BACKBONES, Backbone
from rayrl_dt.models.encoders import encoder_of, stacked
from rayrl_dt.models.head import Head
from rayrl_dt.models.heads import HEADS
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.seen import seen_by
from rayrl_dt.models.spec_checks import ACTION_SELECTIONS, check_acting, check_numbers
from rayrl_dt.types import Normalizer

__all__ = ["ACTION_SELECTIONS", "PolicySpec", "evaluated_in"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PolicySpec:
    """A resolved policy: the model's choices plus what it learned about its data. JSON round-trips.

    Attributes:
        model: the model's choices, with no "auto" left.
        observation_space: of one step, flattened.
        action_space: of one step, flattened.
        action_low: `(A,)` action that a head output of -1 stands for; empty if discrete.
        action_high: `(A,)` action that a head output of +1 stands for; empty if discrete.
        normalizer: observation statistics.
        return_scale: raw returns are divided by it before they enter the model.
        env: the environment that it was made for, with the one to evaluate it in; None if unknown.
        dataset: source id of the training data.
        data_returns: `min, p5, p50, p95, max, mean` of the training returns (raw); empty if unknown.
        collected_in: specification of the environment that the data was collected in, as JSON, if known.
        metadata: of the data set (author, reference scores, library versions).
        acting_context_length: steps that it sees when it acts, as it was evaluated in training; None for all K.
        action_selection: how it takes discrete actions, as it was evaluated in training: the most likely ("mode"), or
            drawn from the softmax ("sample"). None for continuous actions, and in bundles that do not know: evaluations
            draw theirs, `SequencePolicy` takes the most likely.
        guidance: how strongly it follows its return when it acts, as it was evaluated in training: 1 as it was trained,
            0 as if nothing were asked for, more beyond.
        recorded_space: of one observation as the environment gives it; None for `observation_space`.
        recorded_actions: space of one action as the environment takes it; None for `action_space`.
        reward_scale: what critics beside it divide rewards by, unless they are told otherwise; None in bundles that do
            not know.
    """

    model: ModelConfig
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    normalizer: Normalizer
    return_scale: float
    env: RecordedEnv | None
    dataset: str
    data_returns: dict[str, float]
    collected_in: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    acting_context_length: int | None = None
    action_selection: str | None = None
    recorded_space: gym.Space[Any] | None = None
    recorded_actions: gym.Space[Any] | None = None
    reward_scale: float | None = None
    guidance: float = 1.0

    @property
    def flattening(self) -> Flattening:
        """How observations become what the model reads."""
        if self.recorded_space is None:
            return Flattening(self.observation_space, kept=True)
        return Flattening(self.recorded_space, packs=isinstance(self.observation_space, Packed))

    @property
    def action_layout(self) -> ActionLayout:
        """How actions become what its environment takes."""
        return ActionLayout(self.action_space if self.recorded_actions is None else self.recorded_actions)

    @property
    def dataset_info(self) -> DatasetInfo:
        """Where the training data came from."""
        return DatasetInfo(
            source=self.dataset,
            observation_space=self.observation_space,
            action_space=self.action_space,
            env_spec=None if self.collected_in is None else EnvSpec.from_json(self.collected_in),
            metadata=self.metadata,
            recorded_space=self.recorded_space,
            recorded_actions=self.recorded_actions,
        )

    @cached_property
    def seen_space(self) -> gym.Space[Any]:
        """Of what the model sees at a step: `observation_space`, or a stack of single images."""
        return stacked(self.observation_space, self.model.frame_stack)

    @property
    def backbone(self) -> Backbone:
        """What there is to know of its backbone."""
        return BACKBONES[self.model.backbone]

    @cached_property
    def head(self) -> Head:
        """What its outputs mean, and how actions are taken from them."""
        return HEADS[self.model.head](self.action_space, self.action_low, self.action_high)

    @property
    def acts_on(self) -> int:
        """Steps that the policy sees when it acts, at most K."""
        return self.acting_context_length or self.model.context_length

    @property
    def samples_actions(self) -> bool:
        """Whether evaluations draw actions; continuous ones are always deterministic."""
        return self.head.drawn_in_evaluations and self.action_selection != "mode"

    @property
    def action_size(self) -> int:
        """A, or the number of discrete actions."""
        return self.head.size

    def acting(
        self, *, context_length: int | None, action_selection: str | None, guidance: float | None = None
    ) -> PolicySpec:
        """Return the same policy with other ways to act.

        Args:
            context_length: steps that it sees, at most K; None for the policy's own choice.
            action_selection: "mode" or "sample"; None for the policy's own choice.
            guidance: how strongly it follows its return; None for the policy's own choice.

        Raises:
            UserError: the policy cannot act so.
        """
        changed = replace(
            self,
            acting_context_length=self.acting_context_length if context_length is None else context_length,
            action_selection=action_selection or self.action_selection,
            guidance=self.guidance if guidance is None else guidance,
        )
        changed.validate()
        return changed

    def validate(self) -> None:
        """Raise UserError for a value that cannot work, naming the allowed ones."""
        check_numbers(self)
        check_acting(self)

    @classmethod
    def from_store(
        cls,
        model: ModelConfig,
        store: TrajectoryStore,
        *,
        return_scale: float | None,
        env: RecordedEnv | None = None,
    ) -> PolicySpec:
        """Resolve every "auto" from the data.

        Args:
            model: the user's choices.
            store: training data, before any filter (statistics come from all of it).
            return_scale: None for a quarter of the largest absolute return.
            env: overrides the data set's own environment.

        Raises:
            UserError: the head does not fit the action space, or a value is out of range.
        """
        space = store.info.action_space
        head = _head(model, store.info)
        seen, choices = seen_by(model, store.info)
        rule = "constant" if store.delayed_reward else "decrement"
        if BACKBONES[model.backbone].predicts_returns:
            rule = "predicted"
        spec = store.info.env_spec
        env = env or store.info.environment
        limit = max(int(store.lengths.max()), 0 if env is None else env.limit)
        low, high = scaling.action_range(store) if HEADS[head].continuous else ((), ())
        for note in scaling.scale_notes(store):
            _LOG.warning("%s: %s", store.info.source, note)
        returns = store.episode_returns
        automatic = scaling.return_scale(store)
        scale = automatic if return_scale is None else return_scale
        if not np.isfinite(scale) or scale <= 0:
            raise UserError(f"training.return_scale is {scale}; it must be a positive number")
        scaling.warn_if_far("training.return_scale", scale, automatic)
        return cls(
            model=replace(
                model.resolved(),
                head=head,
                target_rule=rule if model.target_rule == "auto" else model.target_rule,
                max_episode_steps=model.max_episode_steps or limit,
                **choices,
            ),
            observation_space=store.info.observation_space,
            action_space=space,
            action_low=tuple(map(float, low)),
            action_high=tuple(map(float, high)),
            normalizer=encoder_of(seen, model.encoder).normalizer(store),
            return_scale=float(scale),
            env=env,
            dataset=store.info.source,
            data_returns=_described(returns),
            collected_in=None if spec is None else spec_text(spec),
            metadata=dict(store.info.metadata),
            recorded_space=store.info.recorded_space,
            recorded_actions=store.info.recorded_actions,
            reward_scale=scaling.reward_scale(store),
        )

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return {
            "model": asdict(self.model),
            "observation_space": spaces_json.to_json(self.observation_space),
            "action_space": spaces_json.to_json(self.action_space),
            "action_low": list(self.action_low),
            "action_high": list(self.action_high),
            "normalizer": {"mean": self.normalizer.mean.tolist(), "std": self.normalizer.std.tolist()},
            "return_scale": self.return_scale,
            "env": None if self.env is None else self.env.to_json(),
            "dataset": self.dataset,
            "data_returns": self.data_returns,
            "collected_in": self.collected_in,
            "metadata": self.metadata,
            "acting_context_length": self.acting_context_length,
            "action_selection": self.action_selection,
            "recorded_space": spaces_json.optional_to_json(self.recorded_space),
            "recorded_actions": spaces_json.optional_to_json(self.recorded_actions),
            "reward_scale": self.reward_scale,
            "guidance": self.guidance,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PolicySpec:
        """Inverse of `to_json`."""
        # Bundles written before the American spelling have the British one.
        normalizer = values["normaliser"] if "normaliser" in values else values["normalizer"]
        return cls(
            model=ModelConfig.from_dict(values["model"]).resolved(),
            observation_space=spaces_json.from_json(values["observation_space"]),
            action_space=spaces_json.from_json(values["action_space"]),
            action_low=tuple(values["action_low"]),
            action_high=tuple(values["action_high"]),
            normalizer=Normalizer(
                np.array(normalizer["mean"], np.float32), np.array(normalizer["std"], np.float32)
            ),
            return_scale=float(values["return_scale"]),
            env=None if values["env"] is None else RecordedEnv.from_json(values["env"]),
            dataset=values["dataset"],
            data_returns=dict(values["data_returns"]),
            collected_in=values["collected_in"],
            metadata=dict(values["metadata"]),
            # Bundles written before these were recorded lack them.
            acting_context_length=values.get("acting_context_length"),
            action_selection=values.get("action_selection"),
            recorded_space=spaces_json.optional_from_json(values.get("recorded_space")),
            recorded_actions=spaces_json.optional_from_json(values.get("recorded_actions")),
            reward_scale=values.get("reward_scale"),
            guidance=values.get("guidance", 1.0),
        )


def _described(returns: np.ndarray[Any, Any]) -> dict[str, float]:
    p5, p50, p95 = np.percentile(returns, [5, 50, 95])
    ends = {"min": returns.min(), "p5": p5, "p50": p50, "p95": p95, "max": returns.max()}
    return {name: float(value) for name, value in {**ends, "mean": returns.mean()}.items()}


def _head(model: ModelConfig, info: DatasetInfo) -> str:
    """Return the name of the head that a policy of some data has.

    Raises:
        UserError: the chosen one does not fit the actions, or none does.
    """
    space = info.action_space
    heads = [name for name, head in HEADS.items() if head.fits(space)]
    if not heads:
        raise UserError(
            f"no policy here can take the actions of {info.source}, {space}; wrap the environment so that "
            "they are one vector or one number"
        )
    if model.head not in ("auto", *heads):
        raise UserError(
            f"model_config.head is {model.head!r}, but the actions of {info.source} are {space}; "
            f"use {', '.join(map(repr, heads))} or 'auto'"
        )
    return heads[0] if model.head == "auto" else model.head


def evaluated_in(spec: PolicySpec, env: str | RecordedEnv | None = None) -> RecordedEnv:
    """Return the environment to evaluate a policy in.

    Args:
        spec: of the policy.
        env: overrides its own; as a name, it is the user's.

    Raises:
        UserError: none is known.
    """
    where = RecordedEnv.named(env) if isinstance(env, str) else env or spec.env
    if where is None:
        raise UserError(
            f"the environment of {spec.dataset} is not recorded; name one with --env (environment.env in a file)"
        )
    return where.for_evaluation
