"""The config that all algorithms share: RLlib's sections plus the settings of ours."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, ClassVar

from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rayrl_dt.algorithms import environments
from rayrl_dt.algorithms import settings as groups
from rayrl_dt.algorithms.continued import as_begun
from rayrl_dt.algorithms.critic_module import COMPANIONS, CriticRLModule
from rayrl_dt.algorithms.environment_config import EnvironmentConfig
from rayrl_dt.algorithms.learner import SequenceLearner
from rayrl_dt.algorithms.module import INIT_SEED, POLICY_SPEC, SequenceRLModule
from rayrl_dt.algorithms.offline_data import SequenceOfflineData
from rayrl_dt.algorithms.rl_gradient_learner import RLGradientLearner
from rayrl_dt.algorithms.runners.env_runner import SequenceEnvRunner
from rayrl_dt.critics.companions import Companions
from rayrl_dt.data.scaling import warn_if_far
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.models.task import check_task
from rayrl_dt.objectives.gradient import RLGradient
from rayrl_dt.objectives.objective import Objective
from rayrl_dt.objectives.offline import OBJECTIVES
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.policy.refinement import Refinement, choose_refinement
from rayrl_dt.policy.sampled_actions import SampledActions
from rayrl_dt.settings import Settings, refuse_unread

__all__ = ["SequenceConfig"]

_LOG = logging.getLogger(__name__)


class SequenceConfig(EnvironmentConfig):
    """Configures a return-conditioned policy trained on logged data.

    The defaults are sized for a CPU (a few thousand gradient steps). `tune_configs/dt_paper.yaml` holds the
    paper's.

    Example:
        >>> from rayrl_dt import DTConfig  # doctest: +SKIP
        >>> config = (  # doctest: +SKIP
        ...     DTConfig()
        ...     .offline_data(dataset="recipe:pendulum-mixed")
        ...     .training(gradient_steps=3_000)
        ...     .evaluation(evaluation_interval=1, target_returns="dataset:7")
        ... )
        >>> algorithm = config.build_algo()  # doctest: +SKIP
    """

    parts: ClassVar[tuple[type[Settings], ...]] = (
        groups.EnvironmentSettings,
        groups.DataSettings,
        groups.TrainingSettings,
        groups.ObjectiveSettings,
        *OBJECTIVES.values(),
        groups.EnvRunnerSettings,
        groups.LearnerSettings,
        groups.EvaluationSettings,
        groups.DebuggingSettings,
    )

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        # Set when the critic is taken over, so that a checkpoint needs nothing but itself.
        self.critic_hidden: int | None = None
        # The algorithm's own choices, which rl_module(model_config=...) overlays.
        self.model_defaults: dict[str, Any] = {}
        self.largest_reward = 0.0
        # RLlib's own, as they suit us. It builds offline data exactly when it has an input path.
        self.input_ = "offline_data.dataset"
        self.offline_data_class = SequenceOfflineData
        self.env_runner_cls = SequenceEnvRunner
        self.batch_mode = "complete_episodes"
        # Our runners have no connectors: there is no state to merge, and asking for it would wait for every runner.
        self.merge_env_runner_states = False
        self.broadcast_env_runner_states = False
        # A runner that is there answers at once, and without one that is not, the others do its part.
        self.env_runner_health_probe_timeout_s = 1.0
        # Our learner checks the total gradient norm instead of each parameter.
        self.torch_skip_nan_gradients = True
        # Iterations are counted in gradient steps, never in seconds: time is not reproducible.
        self.min_time_s_per_iteration = None
        self.min_sample_timesteps_per_iteration = None

    @property
    def sequence_model(self) -> ModelConfig:
        """The model's choices: the algorithm's defaults overlaid by `rl_module(model_config=...)`."""
        chosen: Any = self.chosen_model or {}
        if dataclasses.is_dataclass(chosen):
            chosen = dataclasses.asdict(chosen)  # type: ignore[arg-type]
        if not isinstance(chosen, Mapping):
            raise UserError(
                f"rl_module.model_config is {chosen!r}; write a mapping, such as {{context_length: 20}}"
            )
        return ModelConfig.from_dict({**self.model_defaults, **chosen})

    def fixed_settings(self) -> dict[str, Any]:
        """Return what must stay while a run goes on, the model's included."""
        return super().fixed_settings() | self.sequence_model.fixed()

    def resolve(self, store: TrajectoryStore) -> None:
        """Fill in what the data decides: environment, spaces, normalizer, scales.

        Where the environment that the data name cannot be made here, nothing is evaluated.

        Args:
            store: the whole data set, before any filter.

        Raises:
            UserError: an environment that the user named cannot be made here, or not by the runners; or the run began
                with data of another task.
        """
        env = environments.chosen(self, store.info)
        self.observation_space = store.info.observation_space
        self.action_space = store.info.action_space
        begun = None if self.policy_spec is None else self.resolved_spec
        if begun is not None:
            check_task(begun, store.info, policy="the policy of this run")
        scale = begun.return_scale if begun is not None and self.return_scale is None else self.return_scale
        spec = PolicySpec.from_store(self.sequence_model, store, return_scale=scale, env=env)
        if begun is not None:
            spec = as_begun(spec, begun)
        spec = self._with_acting(spec)
        self.policy_spec = spec.to_json()
        self.why_no_env = environments.why_none(self, spec)
        if self.why_no_env is not None:
            _LOG.warning("Nothing is evaluated: %s", self.why_no_env)
            self.evaluation_interval = None
        self.largest_reward = max(float(store.rewards.max()), -float(store.rewards.min()))
        if not self.training_objective.asks_critic:
            return
        if not spec.head.continuous:
            raise UserError(
                f"training.objective {self.objective} needs continuous actions, and those of {store.info.source} are "
                f"{spec.action_space}; set training.objective: imitation"
            )
        if self.objective_critic is not None:
            bundle = Bundle.open(self.objective_critic)
            self.critic_hidden = bundle.critic_for(spec).hidden
            bundle.check_scale(spec)
        self.training_objective.check_policy(spec)

    def critic_scale(self, section: str, chosen: float | str) -> float:
        """Return what critics divide rewards by: the scale of a config, or the policy's for "auto".

        Args:
            section: that the scale stands in, for a warning.
            chosen: by the config.
        """
        automatic = self.resolved_spec.reward_scale or 1.0
        if isinstance(chosen, str):
            return automatic
        warn_if_far(f"{section}.reward_scale", chosen, automatic)
        return chosen

    def _with_acting(self, spec: PolicySpec) -> PolicySpec:
        """Add how the config has the policy act; what the config leaves open stays as it is in `spec`."""
        wanted, longest = self.evaluation_context_length, spec.model.context_length
        if wanted is not None and wanted > longest:
            raise UserError(
                f"evaluation.evaluation_context_length is {wanted}, and the policy has windows of {longest}; "
                "lower it, or raise model_config.context_length"
            )
        if self.action_selection != "auto" and not spec.head.drawn_in_evaluations:
            raise UserError(
                f"evaluation.action_selection is {self.action_selection!r}, and nothing reads it with continuous "
                f"actions, which those of {spec.dataset} are; remove it"
            )
        chosen = spec.action_selection if self.action_selection == "auto" else self.action_selection
        return spec.acting(
            context_length=wanted,
            action_selection=(chosen or "sample") if spec.head.drawn_in_evaluations else None,
            guidance=self.guidance,
        )

    @property
    def training_objective(self) -> Objective:
        """The loss of the policy's outputs."""
        return OBJECTIVES[self.objective].of(self)

    def rollout_target(self) -> float:
        """Return the target return of training rollouts (raw): the 95th percentile of the data."""
        return self.resolved_spec.data_returns["p95"]

    @property
    def gradient(self) -> RLGradient | None:
        """What pushes the policy beside its data, where a loss of its outputs is not all."""
        hidden = self.critic_hidden
        if hidden is None and self.objective_critic is not None:
            hidden = 1  # of one that is not read yet
        return self.training_objective.gradient(hidden)

    @property
    def samples_successors(self) -> bool:
        """Whether batches carry rewards and the window shifted by one step, for TD targets."""
        return self.gradient is not None and self.gradient.successors

    @property
    def samples_episode_returns(self) -> bool:
        """Whether batches carry the returns of their windows' episodes."""
        gradient = self.gradient
        if gradient is not None and gradient.reads_episode_returns:
            return True
        return self.training_objective.reads_episode_returns

    @property
    def samples_discount(self) -> float | None:
        """The discount of the returns that come with successors; None where nothing asks for them."""
        return None

    @property
    def refinement(self) -> Refinement | None:
        """How a critic improves the actions of evaluations, or None.

        Raises:
            UserError: a value cannot be read or is out of range, or there are two ways.
        """
        gradient, sampled = self.action_gradient, self.sampled_actions
        return choose_refinement(
            None if gradient is None else ActionGradient.read(gradient),
            None if sampled is None else SampledActions.from_value(sampled),
        )

    def get_default_learner_class(self) -> type[SequenceLearner]:
        """Return the supervised learner, or the one with a gradient beside it."""
        return SequenceLearner if self.gradient is None else RLGradientLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the spec of `SequenceRLModule`, or of one with company."""
        return RLModuleSpec(module_class=SequenceRLModule if self.companions is None else CriticRLModule)

    @property
    def companions(self) -> Companions | None:
        """What a learner keeps beside the policy: what its gradient needs, or a frozen critic."""
        if self.gradient is not None:
            return self.gradient.companions
        if not self.training_objective.asks_critic:
            return None
        return Companions(critic="iql", shape={"hidden": self.critic_hidden}, critic_trains=False)

    def module_settings(self) -> dict[str, Any]:
        """Return what the RLModule is made of."""
        return {
            POLICY_SPEC: self.policy_spec,
            INIT_SEED: self.seed,
            COMPANIONS: dataclasses.asdict(self.companions or Companions()),
        }

    def build_learner_connector(self, *args: Any, **kwargs: Any) -> Any:
        """Return an empty pipeline: windows leave the sampler ready for the model."""
        from ray.rllib.connectors.learner import LearnerConnectorPipeline

        return LearnerConnectorPipeline(
            input_observation_space=self.observation_space,
            input_action_space=self.action_space,
            connectors=[],
        )

    def validate(self) -> None:
        """Check every value of ours; the messages name the value, what is allowed and the remedy.

        Counts that came as 1e3 become 1000 here, so that they do wherever a config comes from: YAML, Python, Ray Tune.

        Raises:
            UserError: a value is out of range or unknown, or two do not go together.
        """
        _ = self.sequence_model  # checks itself
        self.check_settings()
        if self.sequence_model.padding_mask == "inverted" and self.precision != "fp32":
            # -1e4 on every score leaves bf16 no digit of it.
            raise UserError(
                f"model_config.padding_mask inverted with training.precision {self.precision!r} would round all "
                "attention scores away; set training.precision: fp32"
            )
        _check_objective(self)
        super().validate()


def _check_objective(config: SequenceConfig) -> None:
    """Check that nothing is set for other objectives, and that there is a critic where this one asks one."""
    for name, objective in OBJECTIVES.items():
        if name != config.objective:
            refuse_unread(
                objective,
                config,
                because=f"training.objective {config.objective}",
                remedy=f"set training.objective: {name}",
            )
    if config.gradient is not None:
        config.gradient.check_model(config.sequence_model)
    asks, trained = config.training_objective.asks_critic, config.training_objective.trained_critic
    has = (config.objective_critic, config.critic_hidden) != (None, None)
    if has and trained is not None:
        refuse_unread(
            trained,
            config,
            because="training.critic_from, whose critic stays as it is",
            remedy="remove training.critic_from",
        )
    if asks and not has and trained is None:
        raise UserError(
            f"training.objective {config.objective} asks a critic, and there is none; train one beside any policy of "
            "the same data with rayrl-dt critic RUN, and set training.critic_from: RUN"
        )
    if has and not asks:
        raise UserError(
            f"training.critic_from is given, and training.objective {config.objective} asks no critic; remove it, or "
            "set training.objective: pg, awac or q_align (evaluation.critic_from is for acting)"
        )
