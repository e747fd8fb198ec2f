"""One trial of a sweep: every report holds an evaluation, and every checkpoint a policy bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from rayrl_dt.algorithms.algorithm import SequenceAlgorithm
from rayrl_dt.algorithms.config import SequenceConfig
from rayrl_dt.algorithms.learner import GRADIENT_STEPS, LOSS
from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import BUNDLE
from rayrl_dt.runs.config_files import build_config
from rayrl_dt.runs.iterations import end
from rayrl_dt.tuning.results import ENDED

__all__ = ["ALGORITHM", "KNOWN", "SweepTrial"]

ALGORITHM = "algorithm"
"""RLlib's checkpoint in a trial's checkpoint."""
KNOWN = "known_environments"
"""Beside the sections of a trial's config: what the sweep's own process knew of environments, by name."""
_FIGURES = ("return_mean", "alignment_error", "alignment_error_relative", "spearman")


class SweepTrial(tune.Trainable):
    """Trains the config that Ray Tune drew.

    RLlib's own trainable reports iterations without an evaluation, and repeats the figures of the one before; a
    scheduler would take them for new. Here a report is as many iterations as lie between two evaluations, and the last
    one always is an evaluation of the last weights.

    The trial's config is the content of a config file, and what the sweep's process knew of its environment. Each
    checkpoint holds the policy bundle, so `rayrl-dt eval` works on any of them.
    """

    algorithm: SequenceAlgorithm

    def setup(self, config: dict[str, Any]) -> None:
        """Build the algorithm."""
        self.algorithm = _built(config).build_algo()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Make room for the next trial in this process, which has imported everything already."""
        self.cleanup()
        self.setup(new_config)
        return True

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> Any:
        """Return what RLlib reserves for this config: CPUs and (fractions of) GPUs of runners and learners.

        Ray Tune asks in the sweep's own process, which an error would end: a config that cannot be built, as PBT may
        come to one, fails its trial.
        """
        try:
            built = _built(config)
        except UserError:
            return tune.PlacementGroupFactory([{"CPU": 1.0}])
        return built.algo_class.default_resource_request(built.to_dict())

    def step(self) -> dict[str, Any]:
        """Train to the next evaluation, or to the end of the run."""
        report: dict[str, Any] = {}
        evaluation: dict[str, Any] | None = None
        while evaluation is None and not self.algorithm.done:
            result = self.algorithm.train()
            evaluation = result.get("evaluation")
            report = {LOSS: float(result["learners"]["default_policy"][LOSS])}
        if evaluation is None:
            evaluation = self.algorithm.evaluate()
        return {
            **report,
            **self.algorithm.report(),
            GRADIENT_STEPS: self.algorithm.gradient_steps,
            "evaluation": {name: evaluation[name] for name in _FIGURES},
            "done": self.algorithm.done,
            ENDED: self.algorithm.done,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write RLlib's checkpoint, which holds the policy bundle."""
        folder = Path(checkpoint_dir)
        self.algorithm.save_to_path(folder / ALGORITHM)
        (folder / ALGORITHM / BUNDLE).rename(folder / BUNDLE)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Go on from a checkpoint, of this trial or (PBT) of a better one."""
        self.algorithm.restore_from_path(str(Path(checkpoint_dir) / ALGORITHM))

    def cleanup(self) -> None:
        """Stop runners and learners, if there are any."""
        if hasattr(self, "algorithm"):
            end(self.algorithm)
            del self.algorithm


def _built(config: Mapping[str, Any]) -> SequenceConfig:
    """Return the algorithm's config."""
    values = dict(config)
    known = values.pop(KNOWN, {})
    built = build_config(values)
    built.known_env = known.get(built.env, built.known_env)
    return built
