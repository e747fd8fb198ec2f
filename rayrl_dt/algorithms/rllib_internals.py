"""What we use of RLlib beyond its documented surface, in one place: the next Ray release breaks this file alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError
from ray.rllib.algorithms.algorithm_config import DEPRECATED_VALUE, AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env import env_runner_group
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.tune.registry import ENV_CREATOR, _global_registry
from torch import Tensor

from rayrl_dt.errors import UserError
from rayrl_dt.types import Window

__all__ = [
    "RLlibConfig",
    "RLlibEnvRunner",
    "RLlibLearner",
    "SeveralLosses",
    "actors_of",
    "autoscaled_groups",
    "learners_lost",
    "local_learner",
    "refused",
    "registered_with_ray",
    "take_gradient_steps",
    "uncount_iteration",
]

_PING_S = 5.0


class _RayIfStarted:
    """The module `ray`, whose `put` starts none.

    RLlib's groups of runners put config and weights into the object store for their remote runners, also where they
    have none: that alone would start a Ray, which takes seconds.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(ray, name)

    def put(self, value: Any) -> Any:
        """Return a reference, or the value itself where no Ray has been started: remote calls take either."""
        return ray.put(value) if ray.is_initialized() else value


env_runner_group.ray = _RayIfStarted()


def autoscaled_groups() -> Sequence[Any]:
    """Return the groups of nodes that the autoscaler of the Ray at hand may start; none where it has not said so."""
    groups: Sequence[Any] = getattr(ray._private.state.state.get_cluster_config(), "node_group_configs", ())
    return groups


def local_learner(learner_group: Any) -> Any:
    """Return the learner in this process; None where learners are remote."""
    return learner_group._learner


def actors_of(group: Any) -> Any:
    """Return what manages the actors of an `EnvRunnerGroup`, or of a `LearnerGroup` with remote learners."""
    return group._worker_manager


def learners_lost(learner_group: Any) -> int:
    """Return how many remote learners have died; RLlib counts those too that miss them in what they do together."""
    lost = 0
    for worker in () if learner_group.is_local else learner_group._workers:
        try:
            ray.get(worker.apply.remote(_alive), timeout=_PING_S)
        except RayActorError:
            lost += 1
        except GetTimeoutError:
            pass  # it waits for the dead
    return lost


def _alive(learner: Any) -> bool:
    """Answer."""
    return True


def take_gradient_steps(learner_group: Any, sources: Sequence[Any], count: int) -> Any:
    """Take gradient steps on what the sources give, one per learner; return their metrics."""
    return learner_group.update(training_data=TrainingData(data_iterators=list(sources)), num_iters=count)


def uncount_iteration(algorithm: Any) -> None:
    """Forget that an algorithm's newest iteration was one; evaluations are due after so and so many."""
    algorithm._iteration -= 1


def refused(error: Exception) -> UserError:
    """Return in one line why RLlib refuses a setting; its own messages go on with ways around its checks."""
    return UserError(f"RLlib refuses the config: {str(error).strip().splitlines()[0]}")


def registered_with_ray(name: Any) -> Callable[[Any], Any] | None:
    """Return what makes the environment that `ray.tune.register_env` knows by a name, or None."""
    known = isinstance(name, str) and _global_registry.contains(ENV_CREATOR, name)
    return _global_registry.get(ENV_CREATOR, name) if known else None


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
    def is_atari(self) -> bool:
        """Nothing here reads it, and RLlib makes the environment to find it out."""
        return False

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


class RLlibLearner(TorchLearner):
    """A `TorchLearner` that draws its own batches and may take steps of its own."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _leave_fresh_memory_alone()

    def _create_iterator_if_necessary(
        self, *, training_data: Any, num_iters: int = 0, **kwargs: Any
    ) -> Iterator[MultiAgentBatch]:
        # RLlib caches its own iterator, with the batch size and count of the first call; ours is made afresh.
        for window in self.batches(training_data.data_iterators[0], num_iters):
            samples = {DEFAULT_MODULE_ID: SampleBatch(window.to_dict())}
            yield MultiAgentBatch(samples, env_steps=window.batch_size)

    @abstractmethod
    def batches(self, source: Any, count: int) -> Iterator[Window[Tensor]]:
        """Yield the batches of the next gradient steps, on the learner's device.

        Args:
            source: of this learner, as it was given to `take_gradient_steps`.
            count: gradient steps.
        """

    def _update(self, batch: dict[str, Any], **kwargs: Any) -> Any:
        return self.gradient_step_on(batch)

    def gradient_step_on(self, batch: dict[str, Any]) -> Any:
        """Take one gradient step: RLlib's, with one loss and one backward pass."""
        return super()._update(batch)

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the state, also one older than the weights at hand (RLlib would keep the newer ones).

        Optimizers take over the moments, and keep the learning rate, the weight decay and all else that is set.
        """
        self._weights_seq_no = 0
        optimizers = list(self._named_optimizers.values())
        chosen = [[_less_weights(group) for group in each.param_groups] for each in optimizers]
        super().set_state(state)
        for optimizer, groups in zip(optimizers, chosen, strict=True):
            for group, values in zip(optimizer.param_groups, groups, strict=True):
                group.update(values)


def _leave_fresh_memory_alone() -> None:
    """Undo what torch's deterministic mode, which RLlib's seeding turns on, adds: filling each new tensor with NaN.

    That takes a tenth of a step, and nothing here reads what it has not written.
    """
    # Its stubs leave out that the module has this property.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def _no_compiler() -> Iterator[None]:
    """Have RLlib's seeding tell torch alone to be deterministic.

    The call that it uses also loads torch's compiler, to tell that: 70 MB and a second of each runner.
    """
    both = torch.use_deterministic_algorithms
    torch.use_deterministic_algorithms = _be_deterministic
    try:
        yield
    finally:
        torch.use_deterministic_algorithms = both


def _be_deterministic(mode: bool, *, warn_only: bool = False) -> None:
    torch.set_deterministic_debug_mode(("warn" if warn_only else "error") if mode else "default")


def _less_weights(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


class SeveralLosses:
    """A mixin for learners whose losses flow through more than the one forward that RLlib has averaged by DDP."""

    config: Any
    module: Any

    def _make_modules_ddp_if_necessary(self) -> None:
        # They average gradients themselves, and only begin with the same weights.
        if self.config.num_learners > 1:
            for value in self.module[DEFAULT_MODULE_ID].unwrapped().state_dict().values():
                torch.distributed.broadcast(value, src=0)


class RLlibEnvRunner(SingleAgentEnvRunner):
    """A `SingleAgentEnvRunner` whose episodes come from `run_episodes`."""

    def __init__(self, **kwargs: Any) -> None:
        _leave_fresh_memory_alone()
        with _no_compiler():
            super().__init__(**kwargs)

    @property
    def device(self) -> Any:
        """Where the module is."""
        return self._device

    def begin_anew(self) -> None:
        """Have the next sample begin with new episodes."""
        self._needs_initial_reset = True

    def _sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[SingleAgentEpisode]:
        if random_actions:
            raise UserError(
                "random actions are not collected here; `rayrl-dt data make` makes random behavior"
            )
        reset = force_reset or num_episodes is not None or self._needs_initial_reset
        self._needs_initial_reset = False
        episodes, steps = self.run_episodes(num_timesteps, num_episodes, explore=explore, reset=reset)
        self._done_episodes_for_metrics.extend(episodes)
        self._increase_sampled_metrics(steps, len(episodes))
        return episodes

    @abstractmethod
    def run_episodes(
        self, num_timesteps: int | None, num_episodes: int | None, *, explore: bool, reset: bool
    ) -> tuple[list[SingleAgentEpisode], int]:
        """Collect whole episodes.

        Args:
            num_timesteps: environment steps to take, or None.
            num_episodes: episodes to finish, or None.
            explore: sample actions.
            reset: begin with new episodes; otherwise those of the last call go on.

        Returns:
            Those that ended, and the environment steps taken.
        """

    def set_state(self, state: dict[str, Any]) -> None:
        """Take over weights also when they are older than the ones at hand (a restored checkpoint)."""
        self._weights_seq_no = 0
        super().set_state(state)
