"""The builder of online finetuning: what `SequenceConfig` has, plus the section `online`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from rayrl_dt.algorithms.config import SequenceConfig
from rayrl_dt.algorithms.learner import SequenceLearner
from rayrl_dt.algorithms.offline_data import LoggedShare
from rayrl_dt.algorithms.online import unread
from rayrl_dt.algorithms.online.exploration import EXPLORATION, Exploration
from rayrl_dt.algorithms.online.settings import CallSettings, OnlineSettings
from rayrl_dt.critics.companions import Companions
from rayrl_dt.data.scaling import warn_if_far
from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.envs import RecordedEnv
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.targets import ReturnRange, parse_targets
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.models.backbones import BACKBONES
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.models.task import check_task
from rayrl_dt.objectives.gradient import RLGradient
from rayrl_dt.objectives.rl_gradients import RL_GRADIENTS, gradient_settings

__all__ = ["OnlineConfig", "slots_at_once"]


class OnlineConfig(SequenceConfig):
    """Configures offline pretraining followed by online finetuning on whole trajectories.

    The defaults are sized for a CPU; `OnlineDTConfig` says where they come from.
    """

    parts = (*SequenceConfig.parts, OnlineSettings, *gradient_settings(), CallSettings)
    derived: ClassVar[Mapping[str, str]] = {
        "training.gradient_steps": "finetuning is as long as online.pretrain_steps and online.env_steps say; remove it "
        "and set those"
    }

    reward_scale: float | str

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        self.lr = 1e-3
        self.gradient_steps_per_iteration = 250
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

    @property
    def total_gradient_steps(self) -> int:
        """Gradient steps of the whole run at most, if collected episodes are as long as the logged ones or longer."""
        steps = max(self.env_steps_per_iteration, self.logged_episode_steps)
        rounds = math.ceil(self.env_steps / steps) - math.floor(self.collect_before_update / steps)
        return self.pretrain_steps + max(0, rounds) * self.updates_per_iteration

    def expected_gradient_steps(self, env_steps: int, rounds: int, updates: int) -> int:
        """Return the gradient steps of a whole run, if its rounds stay as they were; those planned before the first.

        Args:
            env_steps: collected so far.
            rounds: that they were collected in.
            updates: that are due after them.
        """
        if rounds == 0 or (self.lr_decay == "constant" and not self.gradient.reads_progress):
            return self.gradient_steps
        learned_from = max(env_steps, self.collect_before_update)  # rounds before allow no updates
        left = math.ceil(max(0, self.env_steps - learned_from) * rounds / env_steps)
        return self.pretrain_steps + updates + left * self.updates_per_iteration

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

    @property
    def inherited_env(self) -> RecordedEnv | None:
        """The environment of the policy to start from, where the data are those that it learned from."""
        base = None if self.base_policy is None else PolicySpec.from_json(self.base_policy)
        return None if base is None or base.dataset != self.dataset else base.env

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
            check_task(base, store.info, policy="the policy to start from")
        super().resolve(store)
        head = self.resolved_spec.head
        if not self.gradient.fits(head):
            fitting = [name for name, gradient in RL_GRADIENTS.items() if gradient.fits(head)]
            raise UserError(
                f"online.rl_gradient {self.rl_gradient} does not take the actions of {store.info.source}, "
                f"{store.info.action_space}; set online.rl_gradient: {' or '.join(fitting)} "
                f"(--set online.rl_gradient={fitting[0]})"
            )
        self.gradient.check_policy(self.resolved_spec)
        unread.check_head(self)
        if self.action_regularization > 0 and not self.resolved_spec.head.continuous:
            raise UserError(
                f"online.action_regularization is {self.action_regularization}, a weight of distances between "
                f"continuous actions, and those of {store.info.source} are {store.info.action_space}; set it to 0"
            )
        self.logged_episode_steps = store.num_steps / store.num_episodes
        self.gradient_steps = self.total_gradient_steps
        if base is not None:
            for scale in ("return_scale", "reward_scale"):
                of_data = getattr(self.resolved_spec, scale)
                warn_if_far(
                    f"the {scale} of the policy to start from", getattr(base, scale) or of_data, of_data
                )
            # What enters the policy stays as it was; targets, environment and scores are those of the new data.
            taken = replace(
                self.resolved_spec,
                model=base.model,
                action_low=base.action_low,
                action_high=base.action_high,
                normalizer=base.normalizer,
                return_scale=base.return_scale,
                reward_scale=base.reward_scale or self.resolved_spec.reward_scale,
                acting_context_length=base.acting_context_length,
                action_selection=base.action_selection,
                guidance=base.guidance,
            )
            self.policy_spec = self._with_acting(taken).to_json()
        self.reward_scale = self.critic_scale("online", self.reward_scale)

    @property
    def gradient(self) -> RLGradient:
        """What pushes the policy beside its data."""
        return RL_GRADIENTS[self.rl_gradient].of(self)

    @property
    def samples_successors(self) -> bool:
        """Whether batches carry what a TD target needs."""
        return self.gradient.successors

    @property
    def logged_share(self) -> LoggedShare | None:
        """The share of logged data in batches online; None where the replay begins with them."""
        if self.offline_fraction is None:
            return None
        return LoggedShare(self.offline_fraction, self.pretrain_steps, self.offline_fraction_steps)

    @property
    def exploration(self) -> Exploration | None:
        """What the targets of collection follow; None for a constant one."""
        kind = EXPLORATION[self.exploration_targets]
        if kind is None:
            return None
        returns = self.resolved_spec.data_returns
        return kind(returns["max"] - returns["min"], self.exploration_margin, self.exploration_quantile)

    def rollout_target(self) -> float:
        """Return the target return of training rollouts (raw): the one given, or the highest evaluation target."""
        if self.exploration_target is not None:
            return self.exploration_target
        returns = self.resolved_spec.data_returns
        data = ReturnRange(returns["min"], returns["p5"], returns["p95"], returns["max"])
        return max(parse_targets(self.target_returns, data=data).targets)

    def get_default_learner_class(self) -> type[SequenceLearner]:
        """Return `OnlineLearner`."""
        from rayrl_dt.algorithms.online.learner import OnlineLearner

        return OnlineLearner

    @property
    def companions(self) -> Companions:
        """What a learner keeps beside the policy: what the gradient needs, and what holds actions and entropy."""
        holds_entropy = self.policy_spec is not None and self.resolved_spec.head.target_entropy is not None
        return replace(
            self.gradient.companions,
            averaged=self.averaged_share is not None,
            frozen_model=self.action_regularization > 0,
            initial_temperature=self.initial_temperature if holds_entropy else None,
        )

    def validate(self) -> None:
        """Check what the values of `online` ask of the others, too.

        Raises:
            UserError: a value is out of range or unknown, or parts do not go together.
        """
        if self.offline_fraction and self.dataset is None:
            raise UserError(
                f"online.offline_fraction is {self.offline_fraction}, and there are no logged data to draw that share "
                "of a batch from; set offline_data.dataset, or online.offline_fraction: 0"
            )
        self.check_settings()
        if self.mode == "async" and self.num_env_runners == 0 and not self.in_evaluation:
            raise UserError(
                "online.mode async collects on remote env runners, and there are none; set "
                "env_runners.num_env_runners to 1 or more, or online.mode: sync"
            )
        # Of an evaluation RLlib sets some values itself.
        if self.policy_spec is None and not self.in_evaluation:
            unread.check_settings(self)
        _check_gradient(self)
        if self.start_from is not None and self.chosen_model:
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
        self.gradient.check_model(model)
        self.gradient.check_batch(self.train_batch_size_per_learner)
        if not BACKBONES[model.backbone].every_step:
            raise UserError(
                f"model_config.backbone {model.backbone} has one output per window; finetune a sequence backbone"
            )
        if BACKBONES[model.backbone].predicts_returns:
            raise UserError(
                f"model_config.backbone {model.backbone} cannot be finetuned online: its return prediction would not "
                "be trained; finetune dt, radt, convformer or starformer, or train it offline (algorithm: Reinformer)"
            )


def slots_at_once(config: OnlineConfig, steps: int, env_steps: int, episodes: int) -> int:
    """Return how many slots play an episode each in rounds: all, or fewer where fewer make the steps that are left.

    Args:
        config: with its data known.
        steps: left to collect.
        env_steps: collected so far; episodes to come are taken to be as long on average.
        episodes: that they were collected in; before the first one they are taken to be as long as logged ones.
    """
    length = env_steps / episodes if episodes else config.logged_episode_steps
    slots = max(1, config.num_env_runners) * config.num_envs_per_env_runner
    return max(1, min(slots, math.ceil(steps / length)))


def _check_gradient(config: OnlineConfig) -> None:
    """Check that the gradient has what the settings beside it ask for."""
    if config.gradient.reads_episode_returns and config.exploration_targets != "constant":
        raise UserError(
            "online.gradient_returns target climbs at one return, and exploration_targets "
            f"{config.exploration_targets} asks for another in each round; "
            "set exploration_targets: constant, or gradient_returns: achieved"
        )
