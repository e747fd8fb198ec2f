"""What a policy keeps that training goes on with, whatever the data are now."""

from __future__ import annotations

from dataclasses import replace

from rayrl_dt.data.store import DatasetInfo
from rayrl_dt.envs import check_spaces
from rayrl_dt.errors import UserError
from rayrl_dt.models.spec import PolicySpec

__all__ = ["as_begun", "check_task"]


def as_begun(spec: PolicySpec, begun: PolicySpec) -> PolicySpec:
    """Return the policy of a resumed run, in the units that its weights know, also where its data have grown since.

    Args:
        spec: as the data are now.
        begun: as the run began; it learned from raw rewards where it has no scale.
    """
    return replace(
        spec,
        model=replace(spec.model, max_episode_steps=begun.model.max_episode_steps),
        action_low=begun.action_low,
        action_high=begun.action_high,
        normalizer=begun.normalizer,
        reward_scale=begun.reward_scale,
    )


def check_task(policy: str, spec: PolicySpec, info: DatasetInfo) -> None:
    """Check that data are of the task that a policy learned.

    Args:
        policy: what to call it.
        spec: of the policy.
        info: on the data.

    Raises:
        UserError: they have other spaces.
    """
    spaces = spec.observation_space, spec.action_space
    try:
        check_spaces(*spaces, info.observation_space, info.action_space)
    except UserError as error:
        raise UserError(
            f"{policy} was trained in other spaces ({spaces[0]}, {spaces[1]}) than {info.source} "
            f"({info.observation_space}, {info.action_space}); name data of its own task"
        ) from error
