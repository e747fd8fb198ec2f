"""What a policy keeps that training goes on with, whatever the data are now."""

from __future__ import annotations

from dataclasses import replace

from rayrl_dt.models.spec import PolicySpec

__all__ = ["as_begun"]


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
