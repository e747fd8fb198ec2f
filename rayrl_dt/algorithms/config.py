"""The builder that all algorithms share: RLlib's sections plus the few values of ours."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rayrl_dt.algorithms.checks import check_values
from rayrl_dt.algorithms.critic_module import CRITIC_HIDDEN, FrozenCriticRLModule
from rayrl_dt.algorithms.learner import SequenceLearner
from rayrl_dt.algorithms.module import INIT_SEED, POLICY_SPEC, SequenceRLModule
from rayrl_dt.algorithms.offline_data import SequenceOfflineData
from rayrl_dt.algorithms.runners.env_runner import SequenceEnvRunner
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.objectives.offline import AdvantageWeighted, Imitation, Objective, PolicyGradient
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.policy.sampled_actions import SampledActions, choose_refinement

__all__ = ["SequenceConfig"]


class SequenceConfig(AlgorithmConfig):
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

    Attributes:
        derived: keyword arguments of the setters that other settings decide, and that are refused.
    """

    derived: ClassVar[frozenset[str]] = frozenset()

    env: Any

    def __init__(self, algo_class: type | None = None) -> None:
        if algo_class is None:
            from rayrl_dt.algorithms.algorithm import SequenceAlgorithm

            algo_class = SequenceAlgorithm
        super().__init__(algo_class=algo_class)
        # Our runners have no connectors: there is no state to merge, and asking for it would wait for every runner.
        self.merge_env_runner_states = False
        self.broadcast_env_runner_states = False
        # training()
        self.gradient_steps = 6_000
        self.gradient_steps_per_iteration = 500
        self.train_batch_size_per_learner = 64
        self.lr = 3e-4
        self.warmup_steps = 500
        self.lr_decay = "constant"
        self.weight_decay = 1e-4
        self.grad_clip: float | None = 0.25
        self.grad_clip_by = "global_norm"
        self.return_scale: float | None = None
        self.precision = "auto"
        self.objective = "imitation"
        self.pg_weight = 1.0
        self.awac_temperature = 1.0
        self.awac_cap = 100.0
        self.objective_critic: str | None = None
        # Set when the critic is taken over, so that a checkpoint needs nothing but itself.
        self.critic_hidden: int | None = None
        # offline_data()
        self.dataset: str | None = None
        self.top_percent: float | None = None
        self.below_return: float | None = None
        self.delayed_reward = False
        self.window_starts = "any"
        self.return_balance = 0.0
        self.offline_data_class = SequenceOfflineData
        # evaluation()
        self.target_returns: str | Sequence[float] = "dataset:7"
        self.episodes_per_target = 10
        self.action_selection = "auto"
        self.max_evaluation_slots = 32
        self.evaluation_context_length: int | None = None
        self.action_gradient: dict[str, Any] | None = None
        self.sampled_actions: int | dict[str, Any] | None = None
        self.critic_from: str | None = None
        # rl_module()
        self.model_defaults: dict[str, Any] = {}
        # Resolved from the data when the algorithm is built.
        self.policy_spec: dict[str, Any] | None = None
        # RLlib's own, as they suit us.
        self.env_runner_cls = SequenceEnvRunner
        self.num_env_runners = 0
        self.batch_mode = "complete_episodes"
        # Our learner checks the total gradient norm instead of each parameter.
        self.torch_skip_nan_gradients = True
        self.seed = 0
        # Iterations are counted in gradient steps, never in seconds: time is not reproducible.
        self.min_time_s_per_iteration = None
        self.min_sample_timesteps_per_iteration = None

    def training(
        self,
        *,
        gradient_steps: int = NotProvided,
        gradient_steps_per_iteration: int = NotProvided,
        warmup_steps: int = NotProvided,
        lr_decay: str = NotProvided,
        weight_decay: float = NotProvided,
        return_scale: float | None = NotProvided,
        precision: str = NotProvided,
        objective: str = NotProvided,
        pg_weight: float = NotProvided,
        awac_temperature: float = NotProvided,
        awac_cap: float = NotProvided,
        critic_from: str | None = NotProvided,
        **kwargs: Any,
    ) -> SequenceConfig:
        """Set the optimization, and what is optimized.

        Args:
            gradient_steps: total; training is done after them.
            gradient_steps_per_iteration: per call of `algo.train()`.
            warmup_steps: linear warm-up of the learning rate.
            lr_decay: after the warm-up: "constant", or "cosine" to zero at the last gradient step.
            weight_decay: AdamW's, on every parameter.
            return_scale: raw returns are divided by it; None for the power of ten below the largest one.
            precision: "auto" (bf16 where the hardware multiplies it natively), "bf16" or "fp32".
            objective: "imitation" fits the data's actions; "pg" also climbs a critic, "awac" weighs the data's actions
                by their advantage (`rayrl_dt.objectives.offline`). Both need continuous actions.
            pg_weight: alpha of "pg", the critic's share; the values are normalized. QT, which the papers take it from,
                uses 0.4 to 5.
            awac_temperature: lambda of "awac", in units of Q, which are raw rewards.
            awac_cap: largest weight of an action in "awac".
            critic_from: run or bundle with the critic that "pg" or "awac" asks (`rayrl-dt critic` trains it); it stays
                as it is. Its policy must have learned from the same data: critics are for one normalizer. Evaluations
                have a critic of their own.
            **kwargs: RLlib's own (`lr`, `grad_clip`, `train_batch_size_per_learner`, ...).
        """
        super().training(**kwargs)
        return self._set(
            gradient_steps=gradient_steps,
            gradient_steps_per_iteration=gradient_steps_per_iteration,
            warmup_steps=warmup_steps,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            return_scale=return_scale,
            precision=precision,
            objective=objective,
            pg_weight=pg_weight,
            awac_temperature=awac_temperature,
            awac_cap=awac_cap,
            objective_critic=critic_from,
        )

    def offline_data(
        self,
        *,
        dataset: str = NotProvided,
        top_percent: float | None = NotProvided,
        below_return: float | None = NotProvided,
        delayed_reward: bool = NotProvided,
        window_starts: str = NotProvided,
        return_balance: float = NotProvided,
        **kwargs: Any,
    ) -> SequenceConfig:
        """Set the logged data.

        Args:
            dataset: source id: "minari:ID", "d4rl:FILE.hdf5", "recipe:NAME" or "store:DIR".
            top_percent: train on the best episodes that make up this share of the steps; None for all.
            below_return: know only the episodes whose raw return lies below it; None for all.
            delayed_reward: pay each episode's return at its end, and hold targets constant in rollouts.
            window_starts: "any" step of an episode (Decision Transformer), or only where the window is "full"
                (`rayrl_dt.data.windows`).
            return_balance: from 0, where every step is drawn alike, to 1, where steps of rare returns are drawn as
                often as those of common ones (`rayrl_dt.data.balance`).
            **kwargs: RLlib's own.
        """
        super().offline_data(**kwargs)
        if dataset is not NotProvided:
            # RLlib builds offline data exactly when it has an input path.
            self.input_ = dataset
        return self._set(
            dataset=dataset,
            top_percent=top_percent,
            below_return=below_return,
            delayed_reward=delayed_reward,
            window_starts=window_starts,
            return_balance=return_balance,
        )

    def evaluation(
        self,
        *,
        target_returns: str | Sequence[float] = NotProvided,
        episodes_per_target: int = NotProvided,
        action_selection: str = NotProvided,
        max_evaluation_slots: int = NotProvided,
        evaluation_context_length: int | None = NotProvided,
        action_gradient: dict[str, Any] | None = NotProvided,
        sampled_actions: int | dict[str, Any] | None = NotProvided,
        critic_from: str | None = NotProvided,
        **kwargs: Any,
    ) -> SequenceConfig:
        """Set the evaluation on many targets.

        Args:
            target_returns: "dataset:7" (from the 5th to the 95th percentile of the data's returns),
                "R1,R2,..." or a list of raw returns. A policy that predicts its own returns is asked for none.
            episodes_per_target: fixed quota, divided among the slots of a target.
            action_selection: of discrete actions: "mode" the most likely, "sample" from the softmax, "auto"
                to sample (as Decision Transformer does on Atari), or to do as the policy that finetuning starts from.
                Continuous actions are deterministic.
            max_evaluation_slots: environments per evaluation runner.
            evaluation_context_length: steps that the policy sees when it acts (while collecting, too); None for all
                that it was trained with. This and `action_selection` travel with the policy, as its defaults.
            action_gradient: refine actions in evaluations with a critic, for instance `{eta: 0.03, n: 10, rule:
                plain}` (`rayrl_dt.policy.action_gradient`); None leaves them.
            sampled_actions: instead, take the one that a critic values most of the policy's action and so many sampled
                ones: a number, or for instance `{n: 50, noise: 0.1}` (`rayrl_dt.policy.sampled_actions`).
            critic_from: the run or bundle whose critic does either, where the evaluation runs. Its policy must have
                learned from the same data: critics are for one normalizer.
            **kwargs: RLlib's own (`evaluation_interval` in iterations, `evaluation_num_env_runners`, ...).
        """
        super().evaluation(**kwargs)
        return self._set(
            target_returns=target_returns,
            episodes_per_target=episodes_per_target,
            action_selection=action_selection,
            max_evaluation_slots=max_evaluation_slots,
            evaluation_context_length=evaluation_context_length,
            action_gradient=action_gradient,
            sampled_actions=sampled_actions,
            critic_from=critic_from,
        )

    def _set(self, **values: Any) -> SequenceConfig:
        for name, value in values.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    @property
    def sequence_model(self) -> ModelConfig:
        """The model's choices: the algorithm's defaults overlaid by `rl_module(model_config=...)`."""
        chosen: Any = self._model_config or {}
        if dataclasses.is_dataclass(chosen):
            chosen = dataclasses.asdict(chosen)  # type: ignore[arg-type]
        return ModelConfig.from_dict({**self.model_defaults, **chosen})

    @property
    def resolved_spec(self) -> PolicySpec:
        """The policy's specification; only after `resolve`."""
        if self.policy_spec is None:
            raise UserError("the config is not resolved yet; build the algorithm with build_algo() first")
        return PolicySpec.from_json(self.policy_spec)

    def resolve(self, store: TrajectoryStore) -> None:
        """Fill in what the data decides: environment, spaces, normalizer, scales.

        Args:
            store: the whole data set, before any filter.
        """
        recovered = store.info.env_spec
        if self.env is None and recovered is not None:
            self.env = recovered.id
            self.env_config = dict(recovered.kwargs)
            env: str | None = recovered.to_json()
        else:
            env = _env_json(self.env, self.env_config)
        self.observation_space = store.info.observation_space
        self.action_space = store.info.action_space
        spec = PolicySpec.from_store(self.sequence_model, store, return_scale=self.return_scale, env=env)
        spec = self._with_acting(spec)
        self.policy_spec = spec.to_json()
        if self.objective == "imitation":
            return
        if not spec.head.continuous:
            raise UserError(
                f"training.objective {self.objective} needs continuous actions, and those of {store.info.source} are "
                f"{spec.action_space}; set training.objective: imitation"
            )
        if self.objective_critic is not None:
            self.critic_hidden = Bundle.open(self.objective_critic).critic_for(spec).hidden

    def _with_acting(self, spec: PolicySpec) -> PolicySpec:
        """Add how the config has the policy act; what the config leaves open stays as it is in `spec`."""
        wanted = self.evaluation_context_length
        chosen = spec.action_selection if self.action_selection == "auto" else self.action_selection
        return spec.acting(
            context_length=None if wanted is None else min(wanted, spec.model.context_length),
            action_selection=(chosen or "sample") if spec.head.drawn_in_evaluations else None,
        )

    @property
    def training_objective(self) -> Objective:
        """The loss of the policy's outputs."""
        if self.objective == "pg":
            return PolicyGradient(self.pg_weight)
        if self.objective == "awac":
            return AdvantageWeighted(self.awac_temperature, self.awac_cap)
        return Imitation()

    def rollout_target(self) -> float:
        """Return the target return of training rollouts (raw): the 95th percentile of the data."""
        return self.resolved_spec.data_returns["p95"]

    @property
    def samples_successors(self) -> bool:
        """Whether batches carry rewards and the window shifted by one step, for TD targets."""
        return False

    @property
    def refinement(self) -> ActionGradient | SampledActions | None:
        """How a critic improves the actions of evaluations, or None.

        Raises:
            UserError: a value cannot be read or is out of range, or there are two ways.
        """
        gradient, sampled = self.action_gradient, self.sampled_actions
        return choose_refinement(
            None if gradient is None else ActionGradient.from_dict(gradient),
            None if sampled is None else SampledActions.from_value(sampled),
        )

    def get_default_learner_class(self) -> type[SequenceLearner]:
        """Return the supervised learner."""
        return SequenceLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the spec of `SequenceRLModule`, with a frozen critic if the objective asks one."""
        asks = self.objective != "imitation"
        return RLModuleSpec(module_class=FrozenCriticRLModule if asks else SequenceRLModule)

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return {
            POLICY_SPEC: self.policy_spec,
            INIT_SEED: self.seed,
            CRITIC_HIDDEN: self.critic_hidden,
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

        Raises:
            UserError: a value is out of range or unknown.
        """
        check_values(self)
        super().validate()


def _env_json(env: str | None, env_config: dict[str, Any]) -> str | None:
    """Return an environment as a policy bundle stores it: a spec as JSON where there are arguments, else its id."""
    if env is None or not env_config:
        return env
    spec = gym.spec(env)
    spec.kwargs = {**spec.kwargs, **env_config}
    return spec.to_json()
