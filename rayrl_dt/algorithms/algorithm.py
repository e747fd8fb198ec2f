"""The RLlib algorithm: offline gradient steps on shared windows, aligned evaluation, exact resume."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID
from torch import Tensor

from rayrl_dt.algorithms.config import SequenceConfig
from rayrl_dt.algorithms.evaluation import evaluate_alignment
from rayrl_dt.algorithms.fixed_settings import check_fixed, keep_fixed
from rayrl_dt.algorithms.learner import GRADIENT_STEPS
from rayrl_dt.algorithms.old_checkpoints import check_resumable
from rayrl_dt.algorithms.remote_learners import hearing_learners, naming_lost_learners
from rayrl_dt.algorithms.remote_paths import fetched, sent
from rayrl_dt.algorithms.rllib_internals import actors_of, local_learner
from rayrl_dt.algorithms.settings import DataSettings
from rayrl_dt.algorithms.updates import Updates
from rayrl_dt.interop.bundle import BUNDLE, Bundle, save_bundle
from rayrl_dt.interop.critics import save_critic
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec

__all__ = ["SequenceAlgorithm"]

_SECONDS_TO_END = 5.0
# Of the time that a runner is away for, which may be for good: the share in which it is asked whether it is back.
_SHARE_OF_PROBES = 0.1


class SequenceAlgorithm(Algorithm):
    """Trains a `SequenceModel` on logged data; works with `build_algo`, `from_checkpoint` and Ray Tune.

    Attributes:
        gradient_steps: gradient steps taken so far (saved).
        last_update_seconds: wall time of the last iteration's gradient steps.
        command: the command line that trains it, for the record of its bundles.
        stop_asked: whether somebody wants the iteration to end early; see `stop_when`.
        updates: the learners' gradient steps.
    """

    config: SequenceConfig

    @classmethod
    def get_default_config(cls) -> SequenceConfig:
        """Return the base config; the presets override it."""
        return SequenceConfig(algo_class=cls)

    @classmethod
    def from_checkpoint(cls, path: Any, *args: Any, **kwargs: Any) -> Any:
        """Build the algorithm of a checkpoint; see RLlib's method.

        Raises:
            UserError: another version wrote it, and its classes have moved since.
        """
        if isinstance(path, str | Path) and "://" not in str(path) and not (args or kwargs.get("filesystem")):
            path = str(Path(path).expanduser().absolute())  # RLlib would take a relative path for a URI
        check_resumable(getattr(path, "path", path))  # of Ray's own Checkpoint, too
        return super().from_checkpoint(path, *args, **kwargs)

    def setup(self, config: Any) -> None:
        """Load the data, which resolves the config, and build learners and runners."""
        self.gradient_steps = 0
        self.last_update_seconds = 0.0
        self.command: str | None = None
        self.stop_asked: Callable[[], bool] = lambda: False
        self._next_probe = 0.0
        self.config = self.config.copy(copy_frozen=False)
        with naming_lost_learners(self):
            super().setup(self.config)
            if self.config.objective_critic is not None:
                self._take_over_critic(self.config.objective_critic)
                # From here on a checkpoint needs nothing but itself.
                self.config.objective_critic = None
        self.updates = Updates(self)
        self.config.freeze()

    def _take_over_critic(self, path: str) -> None:
        """Put the critic of a bundle into the learners' module."""
        weights = Bundle.open(path).critic_for(self.policy_spec).state_dict()
        state = self.learner_group.get_weights(module_ids=[DEFAULT_MODULE_ID])
        state[DEFAULT_MODULE_ID].update({f"critic.{name}": value.numpy() for name, value in weights.items()})
        self.learner_group.set_weights(state)

    def training_step(self) -> None:
        """Take the gradient steps of an iteration, and log their means."""
        self.learn()
        self.updates.log_means()

    def learn(self) -> None:
        """Take `gradient_steps_per_iteration` gradient steps, or as many as are left."""
        left = self.config.gradient_steps - self.gradient_steps
        if left > 0:
            sources = self.offline_data.iterators(self.config.num_learners)
            self.updates.take(sources, min(self.config.gradient_steps_per_iteration, left))

    def observe_steps(self, observer: Callable[[int, Tensor], bool] | None) -> None:
        """Have a local learner call `observer(gradient_step, loss)` after each step; False ends the iteration.

        The loss is where it was computed, and who reads it waits for the device.

        Remote learners cannot be watched from here: their steps show when the iteration ends, and `stop_when` ends it.
        """
        if not self.learner_group.is_remote:
            local_learner(self.learner_group).observer = observer

    def stop_when(self, asked: Callable[[], bool]) -> None:
        """Have the algorithm call `asked()` while it collects, and while remote learners learn, about every second.

        True ends the iteration early.

        What `observe_steps` is to updates: a checkpoint of the algorithm as it then is goes on where it stopped.
        Evaluations are finished.
        """
        self.stop_asked = asked

    def report(self) -> dict[str, Any]:
        """Return what a run's log says beside the learner's figures."""
        return {}

    def num_parameters(self) -> int:
        """Return the number of trainable parameters."""
        with torch.device("meta"):
            return sum(p.numel() for p in SequenceModel(self.policy_spec).parameters())

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """Evaluate the current policy on the configured targets, with a fixed quota of episodes each.

        RLlib's own evaluation counts whichever episodes finish first, and drops what a custom evaluation
        function returns.
        """
        del parallel_train_future
        runners = self.eval_env_runner_group or self.env_runner_group
        with naming_lost_learners(self):
            runners.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)
            return evaluate_alignment(self, runners)

    @property
    def done(self) -> bool:
        """Whether all gradient steps have been taken."""
        return self.gradient_steps >= self.config.gradient_steps

    @property
    def expected_gradient_steps(self) -> int:
        """Gradient steps of the whole run, as far as they are known."""
        return self.config.gradient_steps

    @property
    def at_milestone(self) -> bool:
        """Whether the policy is to be evaluated, whatever the interval says: the final one is."""
        return self.done

    @property
    def policy_spec(self) -> PolicySpec:
        """What the policy is made of."""
        return self.config.resolved_spec

    def policy_state(self) -> dict[str, Any]:
        """Return the weights of the policy network, which collects where anything does, as NumPy arrays."""
        return _below("model.", self._networks())

    def _networks(self) -> dict[str, Any]:
        """Return the weights of the policy and its company as NumPy arrays, from the learner."""
        weights: dict[str, Any] = self.learner_group.get_weights(module_ids=[DEFAULT_MODULE_ID])
        return dict(weights[DEFAULT_MODULE_ID])

    def step(self) -> dict[str, Any]:
        """One training iteration with its evaluation, marked done at the last gradient step."""
        self.last_update_seconds = 0.0
        with naming_lost_learners(self):
            result: dict[str, Any] = super().step()
        result[GRADIENT_STEPS] = self.gradient_steps
        result["done"] = self.done
        return result

    def restore_env_runners(self, env_runner_group: Any) -> list[int]:
        """Take restarted runners back into service; where others are there, one that stays away is not waited for."""
        begin = time.monotonic()
        if begin < self._next_probe and env_runner_group.num_healthy_remote_workers() > 0:
            return []
        restored: list[int] = super().restore_env_runners(env_runner_group)
        end = time.monotonic()
        self._next_probe = end + (end - begin) * (1 / _SHARE_OF_PROBES - 1)
        return restored

    def cleanup(self) -> None:
        """End everything; a runner that does not answer, in an episode without end say, is not waited for."""
        for name in ("env_runner_group", "eval_env_runner_group"):
            group = getattr(self, name, None)  # none where the setup failed
            if group is not None:
                manager = actors_of(group)
                manager.foreach_actor(
                    lambda runner: runner.stop(), healthy_only=False, timeout_seconds=_SECONDS_TO_END
                )
                manager.clear()
        super().cleanup()

    def save_to_path(self, path: Any = None, *, filesystem: Any = None, **kwargs: Any) -> str:
        """Write RLlib's checkpoint, and beside it the policy's bundle and what RLlib leaves out.

        `SequencePolicy.load`, `rayrl-dt eval` and `online.start_from` read any such checkpoint.
        """
        path = tempfile.mkdtemp() if path is None else path
        learners = hearing_learners(self.learner_group)
        with naming_lost_learners(self), learners, sent(path, filesystem) as folder:
            super().save_to_path(str(folder.resolve()), **kwargs)
            self.save_beside(folder)
        return str(path)

    def save_beside(self, folder: Path) -> None:
        """Write what a checkpoint holds beside RLlib's files: the policy's bundle, with a critic trained beside it."""
        keep_fixed(self.config, folder)
        networks, companions = self._networks(), self.config.companions
        bundle = save_bundle(
            self.policy_spec,
            _below("model." if companions is None else f"{companions.evaluated}.", networks),
            folder / BUNDLE,
            command=self.command,
            gradient_steps=self.gradient_steps,
            offline_data=DataSettings.of(self.config).to_json(),
        )
        place = None if companions is None else companions.kept_under
        if place is not None:
            weights = {f"{place}{name}": value for name, value in _below("critic.", networks).items()}
            own = vars(self.config).get("reward_scale")
            scale = self.policy_spec.reward_scale or 1.0 if own is None else own
            record = {"trained": "with the policy", "reward_scale": scale}
            save_critic(Bundle.open(bundle), weights, record=record)

    def restore_from_path(
        self, path: Any, *, component: str | None = None, filesystem: Any = None, **kwargs: Any
    ) -> None:
        """Restore RLlib's checkpoint and what stands beside it, or a single component.

        Optimizers keep what this config sets (learning rates, weight decay), and take over their moments.

        Raises:
            UserError: its weights have other shapes or scales than this config's.
        """
        learners = hearing_learners(self.learner_group)
        with naming_lost_learners(self), learners, fetched(path, filesystem) as folder:
            if component is None:
                check_fixed(self.config, folder)
            super().restore_from_path(str(folder.resolve()), component=component, **kwargs)
            if component is None:
                self.restore_beside(folder)

    def restore_beside(self, folder: Path) -> None:
        """Restore what `save_beside` wrote; the policy is in RLlib's own files, too."""

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Add the gradient steps to RLlib's state."""
        return {**super().get_state(*args, **kwargs), GRADIENT_STEPS: self.gradient_steps}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore RLlib's state and the gradient steps."""
        super().set_state(state)
        self.gradient_steps = int(state.get(GRADIENT_STEPS, self.gradient_steps))


def _below(prefix: str, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights whose names begin with a prefix, without it."""
    return {name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)}
