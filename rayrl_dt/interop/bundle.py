"""The policy bundle: `policy.safetensors` + `policy.json`, perhaps with a critic. No pickle, loadable without Ray."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from rayrl_dt.critics.calibration import Calibration
from rayrl_dt.critics.networks import IQLCritic
from rayrl_dt.data.scaling import warn_if_far
from rayrl_dt.data.staging import replacing
from rayrl_dt.errors import UserError, one_line
from rayrl_dt.interop.critic_file import read_critic
from rayrl_dt.interop.header import FORMAT, HEADER, read_header, read_spec
from rayrl_dt.interop.run_files import run_settings
from rayrl_dt.models.blueprint import shapes_of
from rayrl_dt.models.sequence_model import SequenceModel, check_architecture, check_finite, check_shapes
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.policy.action_gradient import ActionRefiner, check_continuous
from rayrl_dt.policy.double_check import DoubleCheck, DoubleCheckRefiner, check_asked
from rayrl_dt.policy.refinement import Refinement
from rayrl_dt.policy.refiner import Refiner
from rayrl_dt.policy.sampled_actions import SampledActions, SamplingRefiner
from rayrl_dt.settings import as_number, flag, optional, real
from rayrl_dt.versions import package_versions

__all__ = ["BUNDLE", "Bundle", "load_weights", "save_bundle"]

BUNDLE = "policy"
"""The bundle's folder in a run or a checkpoint."""
_WEIGHTS = "policy.safetensors"
# Of StARformer.
_RENAMED_IN_2 = (".summarise.", ".summarize.")
_DATA = "offline_data"
"""A section of a run's config, and what the header keeps of it for when the run is not at hand."""
_FILTERS = {
    "below_return": optional(real()),
    "top_percent": optional(real(above=0, most=100)),
    "delayed_reward": flag(),
}
_Value = TypeVar("_Value")


@dataclass(frozen=True, eq=False)
class Bundle:
    """A policy bundle: found and its header read once, its networks loaded when they are first asked for.

    Attributes:
        path: of the bundle, checkpoint or run as it was given.
        folder: where the bundle lies.
        header: its `policy.json`.
        spec: what the policy is made of.
    """

    path: Path
    folder: Path
    header: dict[str, Any]
    spec: PolicySpec

    @classmethod
    def open(cls, path: str | os.PathLike[str] | Bundle) -> Bundle:
        """Find the bundle of a run folder or checkpoint (or the bundle itself), and read its header.

        One that is open already is returned as it is.

        Raises:
            UserError: there is none, it is not whole, or its format is not read any more, or not yet.
        """
        if isinstance(path, Bundle):
            return path
        folder = _find(Path(path))
        header = read_header(folder)
        return cls(Path(path), folder, header, read_spec(header, folder / HEADER))

    def trusting(self) -> Bundle:
        """Return the same bundle, whose environment may run code of any package: the user says so."""
        env = self.spec.env
        return self if env is None else replace(self, spec=replace(self.spec, env=env.trusting()))

    @property
    def gradient_steps(self) -> int | None:
        """The gradient steps behind the weights, if recorded."""
        return self.header.get("gradient_steps")

    @cached_property
    def data_settings(self) -> dict[str, Any]:
        """What training chose of its data, as in `offline_data` of a config; empty if nothing says.

        The run says so where it is at hand, otherwise the header.

        Raises:
            UserError: a filter has a value that it cannot have.
        """
        kept = run_settings(self.path, _DATA) or self.header.get(_DATA)
        chosen = dict(kept) if isinstance(kept, dict) else {}
        for name in _FILTERS.keys() & chosen.keys():
            chosen[name] = _FILTERS[name](f"{self.path}: {_DATA}.{name}", as_number(chosen[name]))
        return chosen

    def copy_to(self, target: Path) -> Path:
        """Copy the bundle to a folder, which appears whole; a bundle that is there is replaced.

        The copy knows its training's choice of data, also without the run.

        Raises:
            UserError: the folder is there and neither empty nor a bundle.
        """
        with replacing(target, header=HEADER) as aside:
            shutil.copytree(self.folder, aside, dirs_exist_ok=True)
            if self.header.get(_DATA) is None and self.data_settings:  # of a version that left it to the run
                header = {**self.header, _DATA: _without_source(self.data_settings)}
                (aside / HEADER).write_text(json.dumps(header, indent=2))
        return target

    @cached_property
    def model(self) -> SequenceModel:
        """The policy network, in eval mode.

        Raises:
            UserError: the weights are missing, truncated, or of another architecture.
        """
        file = self.folder / _WEIGHTS
        try:
            with safe_open(str(file), "pt") as opened:
                names = opened.keys()
                shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in names}
            self._check_size(self._as_named_now(shapes))
            weights = load_file(str(file))
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file} is missing or truncated ({one_line(error)}); export the policy again"
            ) from error
        model = SequenceModel(self.spec)
        load_weights(model, self._as_named_now(weights), source=str(self.folder))
        return model.eval()

    def _check_size(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check that the header asks for the weights that there are, before it is given memory."""
        try:
            own = shapes_of(self.spec, tensors=len(shapes))
        except UserError as error:
            raise UserError(f"{self.folder / HEADER}: {error}") from error
        check_shapes(own, shapes, source=str(self.folder))

    def _as_named_now(self, weights: Mapping[str, _Value]) -> dict[str, _Value]:
        renamed = _RENAMED_IN_2 if self.header["format"] == 1 else ("", "")
        return {name.replace(*renamed): value for name, value in weights.items()}

    @cached_property
    def critic(self) -> IQLCritic:
        """The critic, for the policy's own actions; raises as `critic_for`."""
        return self.critic_for(self.spec)

    def critic_for(self, spec: PolicySpec) -> IQLCritic:
        """Load the critic for the actions of a policy.

        Raises:
            UserError: the policy's actions are discrete, there is no critic, it is damaged, or it was trained in other
                units than the policy's.
        """
        return read_critic(self.folder, spec, path=self.path)

    def check_scale(self, spec: PolicySpec) -> None:
        """Warn where the critic's values are of another size than the automatic scale of a policy's data gives.

        Critics of earlier versions learned from raw rewards.
        """
        if spec.reward_scale is not None:
            scale = float((self.header.get("critic") or {}).get("reward_scale", 1.0))
            warn_if_far(f"the reward scale of the critic in {self.folder}", scale, spec.reward_scale)

    def refiner(
        self,
        settings: Refinement,
        spec: PolicySpec | None = None,
        *,
        calibration: Calibration | None = None,
    ) -> Refiner | None:
        """Return what refines a policy's actions with the critic; None where the settings are idle.

        Args:
            settings: of the action gradient, the sampled actions or the double check.
            spec: of the policy that acts; None for the bundle's own.
            calibration: of the critic, where a double check needs one.

        Raises:
            UserError: as `critic_for`; discrete actions are refused even if the settings are idle.
        """
        acting = self.spec if spec is None else spec
        check_continuous(acting)
        if isinstance(settings, DoubleCheck):
            check_asked(acting)
        if settings.idle:
            return None
        critic = self.critic if spec is None else self.critic_for(spec)
        self.check_scale(acting)
        if isinstance(settings, DoubleCheck):
            return DoubleCheckRefiner(settings, critic, acting, calibration)
        if isinstance(settings, SampledActions):
            return SamplingRefiner(settings, critic, acting)
        return ActionRefiner(settings, critic, acting)


def save_bundle(
    spec: PolicySpec,
    weights: Mapping[str, torch.Tensor | np.ndarray[Any, Any]],
    folder: str | os.PathLike[str],
    *,
    command: str | None = None,
    gradient_steps: int | None = None,
    offline_data: Mapping[str, Any] | None = None,
) -> Path:
    """Write a bundle; the folder appears whole, or the one before stays.

    Args:
        spec: what the policy is made of.
        weights: `SequenceModel.state_dict()`, as tensors or arrays.
        folder: where to; a bundle that is there is replaced.
        command: the command line that made it, for the record.
        gradient_steps: behind the weights, for the record.
        offline_data: what training chose of its data, as that section of a config; None if it is not known.

    Raises:
        UserError: the folder is there and neither empty nor a bundle.
    """
    target = Path(folder)
    header = {
        "format": FORMAT,
        "spec": spec.to_json(),
        "command": command,
        "gradient_steps": gradient_steps,
        _DATA: None if offline_data is None else _without_source(offline_data),
        "versions": package_versions(),
    }
    with replacing(target, header=HEADER) as aside:
        tensors = {
            name: torch.as_tensor(value).detach().cpu().contiguous() for name, value in weights.items()
        }
        save_file(tensors, str(aside / _WEIGHTS))
        (aside / HEADER).write_text(json.dumps(header, indent=2))
    return target


def _without_source(offline_data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a choice of data without the data set, which the specification says."""
    return {name: value for name, value in offline_data.items() if name != "dataset"}


def load_weights(model: SequenceModel, weights: Mapping[str, torch.Tensor], *, source: str) -> None:
    """Load weights that must fit exactly.

    Raises:
        UserError: a tensor is missing, superfluous, of another shape, or not finite.
    """
    check_architecture(model.state_dict(), weights, source=source)
    check_finite(weights, source=source)
    model.load_state_dict(dict(weights))


def _find(path: Path) -> Path:
    for candidate in (path, path / BUNDLE):
        if (candidate / HEADER).exists():
            return candidate
    if not path.exists():
        raise UserError(f"{path} does not exist; name a run folder, a checkpoint or a policy bundle")
    raise UserError(
        f"{path} holds no policy ({HEADER} is missing); name a run folder whose training wrote a checkpoint, or a "
        "policy bundle"
    )
