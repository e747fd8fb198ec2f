"""Where trajectories come from: source, spaces, environment, metadata."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from rayrl_dt.envs import spaces_json
from rayrl_dt.envs.recorded import RecordedEnv
from rayrl_dt.envs.spec_text import spec_text

__all__ = ["NOTES", "DatasetInfo"]

NOTES = "notes"
"""The key of `DatasetInfo.metadata` under which sentences about the reading stand."""


@dataclass(frozen=True)
class DatasetInfo:
    """Where trajectories come from.

    Attributes:
        source: the source id as the user wrote it, for instance `minari:mujoco/hopper/medium-v0`.
        observation_space: of one step, flattened.
        action_space: of one step, flattened; the bounds scale continuous actions.
        env_spec: Gymnasium's specification of the environment that the data was collected in, if known.
        metadata: anything else worth reporting (author, library versions, reference scores); `notes` says in sentences
            what was left out or clipped when the data was read.
        recorded_space: of one observation as the environment gave it; None if it is not known.
        evaluation_spec: specification of the environment that policies are to be evaluated in, if it is another.
        recorded_actions: space of one action as the environment takes it; None where it is `action_space`.
    """

    source: str
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    env_spec: EnvSpec | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    recorded_space: gym.Space[Any] | None = None
    evaluation_spec: EnvSpec | None = None
    recorded_actions: gym.Space[Any] | None = None

    @property
    def environment(self) -> RecordedEnv | None:
        """The environment that the data was collected in, with the one to evaluate in; None if it is unknown."""
        return None if self.env_spec is None else RecordedEnv.of(self.env_spec, self.evaluation_spec)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready dict."""
        return {
            "source": self.source,
            "observation_space": spaces_json.to_json(self.observation_space),
            "action_space": spaces_json.to_json(self.action_space),
            "env_spec": None if self.env_spec is None else spec_text(self.env_spec),
            "metadata": self.metadata,
            "recorded_space": spaces_json.optional_to_json(self.recorded_space),
            "evaluation_spec": None if self.evaluation_spec is None else spec_text(self.evaluation_spec),
            "recorded_actions": spaces_json.optional_to_json(self.recorded_actions),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DatasetInfo:
        """Inverse of `to_json`.

        Raises:
            ValueError, TypeError, KeyError or AttributeError: the values are none that `to_json` returns.
        """
        spec, evaluation = values["env_spec"], values.get("evaluation_spec")
        metadata = values["metadata"]
        if not isinstance(metadata, dict) or not isinstance(metadata.get(NOTES, []), list):
            raise ValueError(f"the metadata are {metadata!r}")
        return cls(
            source=values["source"],
            observation_space=spaces_json.from_json(values["observation_space"]),
            action_space=spaces_json.from_json(values["action_space"]),
            env_spec=None if spec is None else EnvSpec.from_json(spec),
            metadata=metadata,
            recorded_space=spaces_json.optional_from_json(values.get("recorded_space")),
            evaluation_spec=None if evaluation is None else EnvSpec.from_json(evaluation),
            recorded_actions=spaces_json.optional_from_json(values.get("recorded_actions")),
        )
