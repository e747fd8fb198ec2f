"""The part of a config that knows the policy's environment: what was set, what the data say, what runners make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from rayrl_dt.algorithms.builders import SettingsConfig
from rayrl_dt.envs import RecordedEnv
from rayrl_dt.envs.atari import is_game
from rayrl_dt.errors import UserError
from rayrl_dt.models.spec import PolicySpec

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["EnvironmentConfig"]


class EnvironmentConfig(SettingsConfig):
    """Keeps the environment for processes that know nothing of it.

    Attributes:
        known_env: what Gymnasium knew by the name `env` where it was set.
        policy_spec: of the policy, with its environment, as JSON; resolved from the data when the algorithm is built.
        why_no_env: why runners have no environment, if they have none; resolved with it.
    """

    env: str | None
    trust_environment: bool

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        self.known_env: dict[str, Any] | None = None
        self.policy_spec: dict[str, Any] | None = None
        self.why_no_env: str | None = None

    @property
    def resolved_spec(self) -> PolicySpec:
        """The policy's specification; only after `resolve`."""
        if self.policy_spec is None:
            raise UserError("the config is not resolved yet; build the algorithm with build_algo() first")
        return PolicySpec.from_json(self.policy_spec)

    @property
    def rollout_env(self) -> RecordedEnv | None:
        """The environment that runners make, with the one for evaluations; None if there is none here."""
        env = self.resolved_spec.env if self.why_no_env is None else None
        return env.trusting() if env is not None and (self.env is not None or self.trust_environment) else env

    @property
    def inherited_env(self) -> RecordedEnv | None:
        """The environment of the policy to start from, which goes before that of its data."""
        return None

    def set_values(self, section: str, values: Mapping[str, Any]) -> Self:
        """Set keys of a section; what Gymnasium knows of an environment is kept for processes where it does not.

        Raises:
            UserError: nothing reads a key.
        """
        super().set_values(section, values)
        # Games are known in every process, and made with options that have to be read together.
        if isinstance(self.env, str) and self.env in gym.registry and not is_game(self.env):
            self.known_env = RecordedEnv.named(self.env).to_json()
        return self
