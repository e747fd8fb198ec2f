"""The critic of a policy bundle as a file: `critic.safetensors`, with a fingerprint of its units.

A critic that strayed to a policy with another normalizer is refused and does not mislead. One that was trained with its
policy (TD3, CQL) has no V, which only training asks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rayrl_dt.critics.networks import IQLCritic, units_of
from rayrl_dt.errors import UserError, one_line
from rayrl_dt.models.sequence_model import check_architecture, check_finite
from rayrl_dt.models.spec import PolicySpec

__all__ = ["CRITIC", "UNITS", "read_critic", "write_critic"]

CRITIC = "critic.safetensors"
UNITS = "units"
_UNSAVED, _VALUE = "target.", "value."


def write_critic(weights: Mapping[str, Any], spec: PolicySpec, folder: Path) -> None:
    """Write the weights of a critic without its slow copy of Q, in the units of a policy."""
    kept = {
        name: torch.as_tensor(value).detach().cpu().contiguous().clone()
        for name, value in weights.items()
        if not name.startswith(_UNSAVED)
    }
    save_file(kept, str(folder / CRITIC), metadata={UNITS: units_of(spec)})


def read_critic(folder: Path, spec: PolicySpec, *, path: str | os.PathLike[str]) -> IQLCritic:
    """Load the critic of a bundle's folder.

    Args:
        folder: of the bundle.
        spec: of the policy whose actions it is to judge.
        path: of the run, checkpoint or bundle as the user wrote it, for messages.

    Raises:
        UserError: the policy's actions are discrete, there is no critic, it is damaged, or it was trained in other
            units than the policy's.
    """
    IQLCritic(spec, hidden=1)
    file = folder / CRITIC
    if not file.exists():
        raise UserError(f"{folder} has no critic ({CRITIC} is missing); train one: rayrl-dt critic {path}")
    try:
        with safe_open(str(file), "pt") as opened:
            units = (opened.metadata() or {}).get(UNITS)
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{file} is truncated ({one_line(error)}); train it again: rayrl-dt critic {path}"
        ) from error
    if units != units_of(spec):
        raise UserError(
            f"the critic in {folder} has units {units}, the policy has {units_of(spec)}: it was trained with another "
            f"normalizer or other action bounds; train one for this policy: rayrl-dt critic {path}"
        )
    first = weights.get("q.q1.0.weight", torch.empty(1))
    critic = IQLCritic(spec, hidden=len(first))
    unsaved = (_UNSAVED,) if any(name.startswith(_VALUE) for name in weights) else (_UNSAVED, _VALUE)
    own = {name: value for name, value in critic.state_dict().items() if not name.startswith(unsaved)}
    check_architecture(own, weights, source=str(file))
    check_finite(weights, source=str(file))
    critic.load_state_dict(weights, strict=False)
    critic.target.load_state_dict(critic.q.state_dict())
    return critic.requires_grad_(False).eval()
