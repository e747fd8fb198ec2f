"""The builder of online finetuning: what `SequenceConfig` has, plus the section `online`."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ray.rllib.algorithms.algorithm_config import NotProvided
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rayrl_dt.algorithms.checks import at_least, whole, whole_or_null
from rayrl_dt.algorithms.config import SequenceConfig
from rayrl_dt.algorithms.learner import SequenceLearner
from rayrl_dt.algorithms.online.module import CRITIC, FROZEN_MODEL, INITIAL_TEMPERATURE, OnlineRLModule
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.envs import check_spaces
from rayrl_dt.errors import UserError, suggest
from rayrl_dt.evaluation.targets import ReturnRange, parse_targets
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.spec import PolicySpec

__all__ = ["MODES", "OPTIMIZERS", "RL_GRADIENTS", "OnlineConfig"]

MODES = ("sync", "async")
RL_GRADIENTS = ("td3", "none")
OPTIMIZERS = ("lamb", "adamw")


class OnlineConfig(SequenceConfig):
    """Configures offline pretraining followed by online finetuning on whole trajectories.

    The defaults are sized for a CPU; `OnlineDTConfig` says where they come from.
    """

    derived = frozenset({"gradient_steps"})

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        self.train_batch_size_per_learner = 64
        self.lr = 1e-3
        self.warmup_steps = 500
        self.gradient_steps_per_iteration = 250
        self.return_scale = 1000.0
        self.model_defaults = {
            "backbone": "dt",
            "context_length": 5,
            "embed_dim": 64,
            "num_layers": 2,
            "num_heads": 1,
        }
        # Mean length of the logged episodes, once there is data: what one more episode is expected to take.
        self.logged_episode_steps = 1.0
        # Set when a policy is taken over, so that a checkpoint needs nothing but itself.
        self.base_policy: dict[str, Any] | None = None
        # online()
        self.start_from: str | None = None
        self.mode = "sync"
        self.max_policy_lag: int | None = None
        self.max_rounds_ahead = 4.0
        self.rl_gradient = "td3"
        self.alpha = 0.1
        self.alpha_pretrain = 0.0
        self.bc_weight = 1.0
        self.action_regularization = 0.0
        self.actor_interval = 1
        self.normalize_q = False
        self.gamma = 0.99
        self.polyak = 0.005
        self.reward_scale = 1.0
        self.critic_lr = 1e-3
        self.critic_width = 256
        self.critic_layer_norm = False
        self.optimizer = "lamb"
        self.temperature_lr = 1e-4
        self.initial_temperature = 0.1
        self.pretrain_steps = 1_000
        self.env_steps = 24_000
        self.env_steps_per_iteration = 400
        self.updates_per_iteration = 150
        self.exploration_noise = 0.1
        self.exploration_target: float | None = None
        self.replay_capacity_trajectories = 500
        self.replay_capacity_steps: int | None = None
        self.replay_memory_gib: float | None = 4.0
        self.timeout_is_terminal = False

    def training(self, **kwargs: Any) -> OnlineConfig:
        """Set the optimization; see `SequenceConfig.training`.

        Args:
            **kwargs: all of them but the number of gradient steps, which `online` decides.

        Raises:
            UserError: `gradient_steps` is among them.
        """
        if kwargs.get("gradient_steps", NotProvided) is not NotProvided:
            raise UserError(
                f"training.gradient_steps is {kwargs['gradient_steps']}, but finetuning is as long as "
                "online.pretrain_steps and online.env_steps say; remove it and set those"
            )
        super().training(**kwargs)
        return self

    def online(
        self,
        *,
        start_from: str | None = NotProvided,
        mode: str = NotProvided,
        max_policy_lag: int | None = NotProvided,
        max_rounds_ahead: float = NotProvided,
        rl_gradient: str = NotProvided,
        alpha: float = NotProvided,
        alpha_pretrain: float = NotProvided,
        bc_weight: float = NotProvided,
        action_regularization: float = NotProvided,
        actor_interval: int = NotProvided,
        normalize_q: bool = NotProvided,
        gamma: float = NotProvided,
        polyak: float = NotProvided,
        reward_scale: float = NotProvided,
        critic_lr: float = NotProvided,
        critic_width: int = NotProvided,
        critic_layer_norm: bool = NotProvided,
        optimizer: str = NotProvided,
        temperature_lr: float = NotProvided,
        initial_temperature: float = NotProvided,
        pretrain_steps: int = NotProvided,
        env_steps: int = NotProvided,
        env_steps_per_iteration: int = NotProvided,
        updates_per_iteration: int = NotProvided,
        exploration_noise: float = NotProvided,
        exploration_target: float | None = NotProvided,
        evaluation_context_length: int | None = NotProvided,
        replay_capacity_trajectories: int = NotProvided,
        replay_capacity_steps: int | None = NotProvided,
        replay_memory_gib: float | None = NotProvided,
        timeout_is_terminal: bool = NotProvided,
    ) -> OnlineConfig:
        """Set the finetuning.

        Args:
            start_from: run, checkpoint or bundle whose policy weights, normalizer and scales to start from.
            mode: "sync" takes turns, as the papers do: collect whole episodes, then update; a run is a function of its
                seed. "async" has remote runners collect while the learner updates; a resumed run goes on with the same
                weights, replay and counters, and with new episodes. The same episodes in the same order ask for the
                same updates in both, however many slots there are: `updates_per_iteration` for each round.
            max_policy_lag: in async mode, gradient steps that the weights behind a collected step may be old when it
                arrives; the learner waits otherwise. None for two iterations' updates.
            max_rounds_ahead: in async mode, iterations that runners may be ahead of the updates; a learner that keeps
                up never has them wait.
            rl_gradient: "td3" adds the critic's gradient to a deterministic policy; "none" leaves it out.
            alpha: weight of the critic's gradient online.
            alpha_pretrain: its weight before; the critic is trained in both phases.
            bc_weight: weight of the supervised loss online; 0 is TD3 alone.
            action_regularization: weight of the mean squared distance between the policy's actions and those of the
                policy that finetuning began with, online (TD3+ODT, appendix G.7: 0.05, summed over action dimensions,
                while this is their mean). Against forgetting on expert data; it may slow the way up from poor data.
                Head "gaussian" is held by its tanh(mean).
            actor_interval: gradient steps of the critic for one of the actor and the targets.
            normalize_q: divide alpha by the mean of |Q|, so that it does not hang on the rewards' scale.
            gamma: the critic's discount.
            polyak: share of the new weights in the targets at each of their steps.
            reward_scale: the critic learns from rewards divided by it; targets and returns stay raw. The authors use
                100 and 1000 on Adroit; alpha weighs the scaled values.
            critic_lr: learning rate of the critic (AdamW, weight decay 0.01).
            critic_width: units of its two hidden layers.
            critic_layer_norm: layer norm without parameters in them; what the authors use outside MuJoCo.
            optimizer: of the policy, "lamb" as the papers, or "adamw".
            temperature_lr: learning rate of the entropy's temperature (head "gaussian").
            initial_temperature: its first value.
            pretrain_steps: gradient steps on the logged data first.
            env_steps: environment steps to collect in total.
            env_steps_per_iteration: of a round, which is the fewest whole episodes that have so many steps: 1 for one
                episode, as the papers have it. The last round may go beyond `env_steps`.
            updates_per_iteration: gradient steps that each round allows, once it is complete.
            exploration_noise: standard deviation of the noise on collected actions, in units of [-1, 1];
                head "gaussian" samples instead and ignores it.
            exploration_target: raw return asked for while collecting; None for the highest evaluation target.
            evaluation_context_length: steps that the policy sees when it acts; None for all it was trained with, or
                as many as the policy to start from does.
            replay_capacity_trajectories: episodes in the replay, the best logged ones first.
            replay_capacity_steps: bound on its steps; None for none.
            replay_memory_gib: a larger replay is mapped from temporary files (TMPDIR); None keeps all of it in memory.
            timeout_is_terminal: treat collected episodes that ran out of time as ended for good, as the released
                code of TD3+ODT does; logged ones always bootstrap.
        """
        self._set(**{name: value for name, value in locals().items() if name not in ("self", "__class__")})
        return self

    @property
    def total_gradient_steps(self) -> int:
        """Gradient steps of the whole run at most, if collected episodes are as long as the logged ones or longer."""
        rounds = math.ceil(self.env_steps / max(self.env_steps_per_iteration, self.logged_episode_steps))
        return self.pretrain_steps + rounds * self.updates_per_iteration

    @property
    def policy_lag_bound(self) -> int:
        """The largest policy lag in async mode, in gradient steps."""
        return 2 * self.updates_per_iteration if self.max_policy_lag is None else self.max_policy_lag

    @property
    def sequence_model(self) -> ModelConfig:
        """The model's choices: those of the policy started from, or the config's own, without timesteps as in ODT."""
        if self.base_policy is not None:
            return PolicySpec.from_json(self.base_policy).model
        model = super().sequence_model
        if model.timestep_embedding == "auto" and BACKBONES[model.backbone].timestep_table:
            return replace(model, timestep_embedding="none")
        return model

    def resolve(self, store: TrajectoryStore) -> None:
        """Fill in what the data, or the policy to start from, decides.

        Raises:
            UserError: the policy to start from has other spaces, learned from delayed rewards, or cannot be finetuned.
        """
        if self.start_from is not None:
            taken = Bundle.open(self.start_from).spec
            if taken.model.target_rule == "constant":
                raise UserError(
                    f"online.start_from {self.start_from} holds its target constant, as policies of delayed rewards "
                    "do, and online the returns fall with every reward; start from a policy that was trained without "
                    "offline_data.delayed_reward"
                )
            self.base_policy = taken.to_json()
            self._check_model()
        base = None if self.base_policy is None else PolicySpec.from_json(self.base_policy)
        if base is not None:
            info = store.info
            try:
                check_spaces(
                    base.observation_space, base.action_space, info.observation_space, info.action_space
                )
            except UserError as error:
                raise UserError(
                    f"the policy to start from was trained in other spaces ({base.observation_space}, "
                    f"{base.action_space}) than {info.source} ({info.observation_space}, {info.action_space}); "
                    "name data of its own task"
                ) from error
        super().resolve(store)
        if self.action_regularization > 0 and not self.resolved_spec.head.continuous:
            raise UserError(
                f"online.action_regularization is {self.action_regularization}, a weight of distances between "
                f"continuous actions, and those of {store.info.source} are {store.info.action_space}; set it to 0"
            )
        self.logged_episode_steps = store.num_steps / store.num_episodes
        self.gradient_steps = self.total_gradient_steps
        if base is None:
            return
        # The policy's inputs stay what they were; targets, environment and scores are those of the new data.
        taken = replace(
            self.resolved_spec,
            model=base.model,
            action_low=base.action_low,
            action_high=base.action_high,
            normalizer=base.normalizer,
            return_scale=base.return_scale,
            acting_context_length=base.acting_context_length,
            action_selection=base.action_selection,
        )
        self.policy_spec = self._with_acting(taken).to_json()

    @property
    def samples_successors(self) -> bool:
        """Whether batches carry what a TD target needs: wherever a critic is trained."""
        return self.rl_gradient == "td3"

    def rollout_target(self) -> float:
        """Return the target return of training rollouts (raw): the one given, or the highest evaluation target."""
        if self.exploration_target is not None:
            return self.exploration_target
        returns = self.resolved_spec.data_returns
        data = ReturnRange(returns["min"], returns["p5"], returns["p95"], returns["max"])
        return max(parse_targets(self.target_returns, data=data).targets)

    def get_default_learner_class(self) -> type[SequenceLearner]:
        """Return the learner with a critic."""
        from rayrl_dt.algorithms.online.learner import OnlineLearner

        return OnlineLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the spec of `OnlineRLModule`."""
        return RLModuleSpec(module_class=OnlineRLModule)

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        critic = {"hidden": self.critic_width, "layer_norm": self.critic_layer_norm}
        return {
            **super()._model_config_auto_includes,
            CRITIC: critic if self.rl_gradient == "td3" else None,
            FROZEN_MODEL: self.action_regularization > 0,
            INITIAL_TEMPERATURE: self.initial_temperature,
        }

    def validate(self) -> None:
        """Check the values of `online` too.

        Raises:
            UserError: a value is out of range or unknown, or parts do not go together.
        """
        for name, allowed in (
            ("mode", MODES),
            ("rl_gradient", RL_GRADIENTS),
            ("optimizer", OPTIMIZERS),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise UserError(f"online.{name} is {value!r}.{suggest(value, allowed)}")
        at_least(self, "online", 0, "alpha", "alpha_pretrain", "bc_weight")
        at_least(self, "online", 0, "action_regularization", "temperature_lr", "exploration_noise")
        whole(self, "online", 0, "pretrain_steps", "env_steps")
        whole(self, "online", 1, "actor_interval", "critic_width", "env_steps_per_iteration")
        whole(self, "online", 1, "updates_per_iteration", "replay_capacity_trajectories")
        whole_or_null(self, "online", 1, "replay_capacity_steps", "max_policy_lag")
        for name in ("gamma", "polyak"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 < value <= 1:
                raise UserError(f"online.{name} is {value!r}; it must lie in (0, 1]")
        for name in ("reward_scale", "critic_lr", "initial_temperature"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not value > 0:
                raise UserError(f"online.{name} is {value!r}; it must be a positive number")
        memory = self.replay_memory_gib
        if memory is not None and (not isinstance(memory, (int, float)) or memory < 0):
            raise UserError(f"online.replay_memory_gib is {memory!r}; it must be at least 0, or null")
        if not isinstance(self.max_rounds_ahead, (int, float)) or not self.max_rounds_ahead > 0:
            raise UserError(
                f"online.max_rounds_ahead is {self.max_rounds_ahead!r}; it must be a positive number"
            )
        if self.mode == "async" and self.num_env_runners == 0 and not self.in_evaluation:
            raise UserError(
                "online.mode async collects on remote env runners, and there are none; set "
                "env_runners.num_env_runners to 1 or more, or online.mode: sync"
            )
        if self.start_from is not None and self._model_config:
            raise UserError(
                "rl_module.model_config and online.start_from exclude each other: the model is that of the policy "
                "started from; remove model_config"
            )
        if self.objective != "imitation":
            raise UserError(
                f"training.objective {self.objective} is for training on logged data alone; finetuning trains a critic "
                "of its own: remove it, and see online.rl_gradient"
            )
        if self.delayed_reward:
            raise UserError(
                "offline_data.delayed_reward cannot be finetuned online: the environment pays its rewards at once; "
                "remove it"
            )
        self._check_model()
        super().validate()

    def _check_model(self) -> None:
        """Refuse models that cannot be finetuned: the config's own, or that of the policy to start from."""
        model = self.sequence_model
        if self.rl_gradient == "td3" and model.head == "gaussian":
            raise UserError(
                "online.rl_gradient td3 needs a deterministic policy, model_config.head is 'gaussian'; set head: "
                "deterministic, or rl_gradient: none (ODT)"
            )
        if not BACKBONES[model.backbone].every_step:
            raise UserError(
                f"model_config.backbone {model.backbone} has one output per window; finetune a sequence backbone"
            )
        if BACKBONES[model.backbone].predicts_returns:
            raise UserError(
                f"model_config.backbone {model.backbone} cannot be finetuned online: its return prediction would not "
                "be trained; finetune dt, radt, convformer or starformer, or train it offline (algorithm: Reinformer)"
            )
