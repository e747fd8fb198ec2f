"""Whether data are of the task that a policy was made for."""

from __future__ import annotations

from rayrl_dt.data.store import DatasetInfo
from rayrl_dt.envs import check_spaces
from rayrl_dt.errors import UserError
from rayrl_dt.models.spec import PolicySpec

__all__ = ["check_task"]


def check_task(spec: PolicySpec, info: DatasetInfo) -> None:
    """Check that data are of a policy's task.

    Raises:
        UserError: observations or actions are others.
    """
    try:
        check_spaces(spec.observation_space, spec.action_space, info.observation_space, info.action_space)
    except UserError as error:
        raise UserError(
            f"{info.source} is of another task than the policy from {spec.dataset}; name data of the policy's own task "
            "with --dataset"
        ) from error
