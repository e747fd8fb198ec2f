"""Whether data are of the task that a policy was made for."""

from __future__ import annotations

from rayrl_dt.data.store import DatasetInfo
from rayrl_dt.envs import check_spaces
from rayrl_dt.errors import UserError
from rayrl_dt.models.spec import PolicySpec

__all__ = ["check_task"]


def check_task(spec: PolicySpec, info: DatasetInfo, *, policy: str | None = None) -> None:
    """Check that data are of a policy's task.

    Args:
        spec: of the policy.
        info: on the data.
        policy: what to call it where data are chosen in a config; None where a command has --dataset.

    Raises:
        UserError: observations or actions are others.
    """
    spaces = spec.observation_space, spec.action_space
    try:
        check_spaces(*spaces, info.observation_space, info.action_space)
    except UserError as error:
        raise UserError(
            f"{info.source} is of another task than the policy from {spec.dataset}; name data of the policy's own task "
            "with --dataset"
            if policy is None
            else f"{policy} was trained in other spaces ({spaces[0]}, {spaces[1]}) than {info.source} "
            f"({info.observation_space}, {info.action_space}); name data of its own task"
        ) from error
