"""What a config file may set of every algorithm: a dataclass for each group of keys, with defaults, checks and docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rayrl_dt.data.windows import WINDOW_STARTS
from rayrl_dt.envs.recorded import name_of
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.targets import ReturnRange, parse_targets
from rayrl_dt.objectives.offline import OBJECTIVES
from rayrl_dt.policy.action_gradient import ActionGradient
from rayrl_dt.policy.sampled_actions import SampledActions
from rayrl_dt.precision import PRECISIONS
from rayrl_dt.settings import Settings, choice, count, flag, optional, real, setting, text, whole_value

__all__ = [
    "DataSettings",
    "DebuggingSettings",
    "EnvRunnerSettings",
    "EnvironmentSettings",
    "EvaluationSettings",
    "LearnerSettings",
    "ObjectiveSettings",
    "TrainingSettings",
]

_RUN = text("the path of a run or a bundle")


def _dataset(name: str, value: Any) -> str:
    if value is None:
        raise UserError(f'no data set is given; set {name}, for instance "recipe:pendulum-mixed"')
    return str(text('the id of a data set, for instance "recipe:pendulum-mixed"')(name, value))


def _environment(name: str, value: Any) -> str:
    if callable(value):
        return name_of(value)
    what = 'the id of an environment, such as "Hopper-v5", "package:Id-v0" or "module:Class"'
    return str(text(what)(name, value))


def _targets(name: str, value: Any) -> Any:
    # Whatever the data's returns are.
    parse_targets(value, data=ReturnRange(0.0, 1.0, 2.0, 3.0))
    return value


def _action_gradient(name: str, value: Any) -> Any:
    ActionGradient.read(value)
    return value


def _sampled_actions(name: str, value: Any) -> Any:
    SampledActions.from_value(value)
    return value


@dataclass(frozen=True)
class EnvironmentSettings(Settings):
    """Where the policy is evaluated and finetuned.

    Attributes:
        env: a Gymnasium id, as `package:Id-v0` where only importing the package registers it, or `module:Class`; None
            for the one that the data were recorded in, with its limit, arguments and wrappers.
        trust_environment: run code of any package that the data, or the policy to start from, name as their
            environment. Without it only that of well-known packages (`rayrl_dt.envs.recorded`) is; an environment that
            you name yourself is yours.
    """

    section: ClassVar[str] = "environment"

    env: str | None = setting(None, optional(_environment))
    trust_environment: bool = setting(False, flag())


@dataclass(frozen=True)
class DataSettings(Settings):
    """The logged data.

    Attributes:
        dataset: source id: "minari:ID", "d4rl:FILE.hdf5", "recipe:NAME", "dqn-replay:DIR" or "store:DIR".
        top_percent: train on the best episodes that make up this share of the steps; None for all.
        below_return: know only the episodes whose raw return lies below it; None for all.
        delayed_reward: pay each episode's return at its end, and hold targets constant in rollouts.
        window_starts: "any" step of an episode (Decision Transformer), or only where the window is "full"
            (`rayrl_dt.data.windows`).
        return_balance: from 0, where every step is drawn alike, to 1, where steps of rare returns are drawn as
            often as those of common ones (`rayrl_dt.data.balance`).
    """

    section: ClassVar[str] = "offline_data"

    dataset: str | None = setting(None, _dataset)
    top_percent: float | None = setting(None, optional(real(above=0, most=100)))
    below_return: float | None = setting(None, optional(real()))
    delayed_reward: bool = setting(False, flag())
    window_starts: str = setting("any", choice(*WINDOW_STARTS))
    return_balance: float = setting(0.0, real(least=0, most=1))


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """The optimization.

    Attributes:
        gradient_steps: total; training is done after them.
        gradient_steps_per_iteration: per call of `algo.train()`.
        train_batch_size_per_learner: windows of a gradient step, for each learner.
        lr: learning rate of the policy, after the warm-up.
        warmup_steps: linear warm-up of the learning rate, in steps of the policy.
        lr_decay: after the warm-up: "constant", or "cosine" to zero at the last gradient step.
        lr_decay_steps: gradient steps after which the cosine is at zero instead, where a run is a part of its authors'
            schedule, or goes on at the floor; None for the last gradient step. Only with "cosine".
        lr_floor: share of `lr` that the cosine does not fall below.
        weight_decay: AdamW's.
        decayed: "all" parameters, as in Decision Transformer's code for Gym, or the "weights" of linear maps and
            convolutions alone, as in that for Atari.
        adam_beta2: how slowly AdamW forgets the size of gradients.
        grad_clip: largest norm of the policy's whole gradient; None for any.
        return_scale: raw returns are divided by it; None for a quarter of the largest absolute one of the data, so that
            the rewards' unit changes nothing.
        precision: "auto" (bf16 where the hardware multiplies it natively), "bf16" or "fp32".
    """

    section: ClassVar[str] = "training"

    gradient_steps: int = setting(6_000, count(1))
    gradient_steps_per_iteration: int = setting(500, count(1))
    train_batch_size_per_learner: int = setting(64, count(1))
    lr: float = setting(3e-4, real(above=0))
    warmup_steps: int = setting(500, count())
    lr_decay: str = setting("constant", choice("constant", "cosine"))
    lr_decay_steps: int | None = setting(None, optional(count(1)))
    lr_floor: float = setting(0.0, real(least=0, below=1))
    weight_decay: float = setting(1e-4, real(least=0))
    decayed: str = setting("all", choice("all", "weights"), fixed=whole_value)
    adam_beta2: float = setting(0.999, real(least=0, below=1))
    grad_clip: float | None = setting(0.25, optional(real(above=0)))
    return_scale: float | None = setting(None, optional(real(above=0)), fixed=whole_value)
    precision: str = setting("auto", choice(*PRECISIONS))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_decay_steps is not None and self.lr_decay == "constant":
            raise UserError(
                f"training.lr_decay_steps is {self.lr_decay_steps}, and nothing reads it with training.lr_decay "
                "'constant'; set lr_decay to cosine, or leave it out"
            )


@dataclass(frozen=True)
class ObjectiveSettings(Settings):
    """What is optimized; each objective has settings of its own.

    Attributes:
        objective: "imitation" fits the data's actions; "pg" also climbs a critic, "awac" weighs the data's actions
            by their advantage (`rayrl_dt.objectives.offline`); "q_align" has actions rise in the critic's values with
            the return that is asked for (`rayrl_dt.objectives.q_align`). All three need continuous actions.
        critic_from: run or bundle with the critic that these ask (`rayrl-dt critic` trains it); it stays as it is. Its
            policy must have learned from the same data: critics are for one normalizer. Without it, "q_align" trains a
            critic beside the policy. Evaluations have a critic of their own.
    """

    section: ClassVar[str] = "training"

    objective: str = setting("imitation", choice(*OBJECTIVES), fixed=whole_value)
    critic_from: str | None = setting(None, optional(_RUN), attribute="objective_critic", fixed=whole_value)


@dataclass(frozen=True)
class EvaluationSettings(Settings):
    """The evaluation on many targets.

    Attributes:
        evaluation_interval: evaluate after so many iterations; None for the last weights only.
        evaluation_num_env_runners: remote env runners of evaluations; 0 for the one in this process.
        target_returns: "dataset:7" (from the 5th to the 95th percentile of the data's returns),
            "R1,R2,..." or a list of raw returns. A policy that predicts its own returns is asked for none.
        episodes_per_target: fixed quota, divided among the slots of a target.
        action_selection: of discrete actions: "mode" the most likely, "sample" from the softmax, "auto"
            to sample (as Decision Transformer does on Atari), or to do as the policy that finetuning starts from.
            Continuous actions are deterministic.
        max_evaluation_slots: environments per evaluation runner.
        evaluation_context_length: steps that the policy sees when it acts (while collecting, too); None for all
            that it was trained with, or as many as the policy that finetuning starts from sees. This and
            `action_selection` travel with the policy, as its defaults, and so does `guidance`.
        guidance: how strongly the policy follows its return when it acts: 1 as it was trained, more beyond, 0 as if
            nothing were asked for; only with `model_config.return_dropout`. None for 1, or for that of the policy that
            finetuning starts from.
        action_gradient: refine actions in evaluations with a critic, for instance `{eta: 0.03, n: 10, rule:
            plain}` (`rayrl_dt.policy.action_gradient`); None leaves them.
        sampled_actions: instead, take the one that a critic values most of the policy's action and so many sampled
            ones: a number, or for instance `{n: 50, noise: 0.1}` (`rayrl_dt.policy.sampled_actions`).
        critic_from: the run or bundle whose critic does either, where the evaluation runs. Its policy must have
            learned from the same data: critics are for one normalizer.
    """

    section: ClassVar[str] = "evaluation"

    evaluation_interval: int | None = setting(None, optional(count()))
    evaluation_num_env_runners: int = setting(0, count())
    target_returns: str | Sequence[float] = setting("dataset:7", _targets)
    episodes_per_target: int = setting(10, count(1))
    action_selection: str = setting("auto", choice("auto", "mode", "sample"))
    max_evaluation_slots: int = setting(32, count(1))
    evaluation_context_length: int | None = setting(None, optional(count(1)))
    guidance: float | None = setting(None, optional(real(least=0)))
    action_gradient: Mapping[str, Any] | None = setting(None, optional(_action_gradient))
    sampled_actions: int | Mapping[str, Any] | None = setting(None, optional(_sampled_actions))
    critic_from: str | None = setting(None, optional(_RUN))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.action_gradient is not None and self.sampled_actions is not None:
            raise UserError("there are both evaluation.action_gradient and sampled_actions; choose one")
        how = "action_gradient" if self.sampled_actions is None else "sampled_actions"
        if (getattr(self, how) is None) != (self.critic_from is None):
            raise UserError(
                f"evaluation.{how} is {getattr(self, how)!r} and evaluation.critic_from {self.critic_from!r}; set "
                "both or neither (rayrl-dt critic RUN trains a critic)"
            )


@dataclass(frozen=True)
class EnvRunnerSettings(Settings):
    """The processes that step environments.

    Attributes:
        num_env_runners: remote env runners that collect; 0 for the one in this process.
        num_envs_per_env_runner: environments that each of them steps at once.
        episode_timeout_s: seconds that a remote runner may take for an episode of an evaluation or a round; one that
            takes longer is taken for one that hangs, and is restarted.
        restart_timeout_s: seconds that the process of a lost runner may take to come back, where there is no other.
    """

    section: ClassVar[str] = "env_runners"

    num_env_runners: int = setting(0, count())
    num_envs_per_env_runner: int = setting(1, count(1))
    episode_timeout_s: float = setting(1800.0, real(above=0))
    restart_timeout_s: float = setting(120.0, real(above=0))


@dataclass(frozen=True)
class LearnerSettings(Settings):
    """The processes that take gradient steps.

    Attributes:
        num_learners: remote learners, each with batches of its own; 0 for the one in this process.
    """

    section: ClassVar[str] = "learners"

    num_learners: int = setting(0, count())


@dataclass(frozen=True)
class DebuggingSettings(Settings):
    """What makes runs comparable.

    Attributes:
        seed: of weights, batches, dropout, environments and exploration: everything that is drawn.
    """

    section: ClassVar[str] = "debugging"

    seed: int | None = setting(0, optional(count()))
