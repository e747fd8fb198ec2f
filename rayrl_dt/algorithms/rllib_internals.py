"""What we use of RLlib beyond its documented surface, in one place: the next Ray release breaks this file alone."""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.algorithm_config import DEPRECATED_VALUE, AlgorithmConfig

from rayrl_dt.errors import UserError

__all__ = ["RLlibConfig", "refused"]


def refused(error: Exception) -> UserError:
    """Return in one line why RLlib refuses a setting; its own messages go on with ways around its checks."""
    return UserError(f"RLlib refuses the config: {str(error).strip().splitlines()[0]}")


class RLlibConfig(AlgorithmConfig):
    """An `AlgorithmConfig` that keeps what it is told."""

    def get_state(self) -> dict[str, Any]:
        """Return all attributes, those too that are -1: RLlib takes that for its mark of a key it has given up."""
        marked = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, (int, float)) and value == DEPRECATED_VALUE
        }
        return {**super().get_state(), **marked}

    def validate(self) -> None:
        """Check RLlib's own settings.

        Raises:
            UserError: RLlib refuses one.
        """
        try:
            super().validate()
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise refused(error) from error

    @property
    def chosen_model(self) -> Any:
        """What `rl_module(model_config=...)` was given: a mapping, a dataclass, or nothing."""
        return self._model_config

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return self.module_settings()

    def module_settings(self) -> dict[str, Any]:
        """Return what the RLModule is told beside the user's `model_config`."""
        return {}
