"""What a config file may set of online finetuning: the section `online`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rayrl_dt.algorithms.online.exploration import EXPLORATION
from rayrl_dt.errors import UserError, one_of
from rayrl_dt.objectives.rl_gradients import RL_GRADIENTS
from rayrl_dt.settings import (
    Settings,
    choice,
    count,
    flag,
    optional,
    real,
    refuse_unread,
    setting,
    text,
    whole_value,
)

__all__ = ["CallSettings", "OnlineSettings"]


@dataclass(frozen=True)
class OnlineSettings(Settings):
    """The finetuning.

    Attributes:
        start_from: run, checkpoint or bundle whose policy weights, normalizer and scales to start from.
        mode: "sync" takes turns, as the papers do: collect whole episodes, then update; a run is a function of its
            seed. "async" has remote runners collect while the learner updates; a resumed run goes on with the same
            weights, replay and counters, and with new episodes. The same episodes in the same order ask for the
            same updates in both, however many slots there are: `updates_per_iteration` for each round.
        max_policy_lag: in async mode, gradient steps that the weights behind a collected step may be old when it
            arrives; the learner waits otherwise. None for two iterations' updates.
        max_rounds_ahead: in async mode, iterations that runners may be ahead of the updates; a learner that keeps
            up never has them wait.
        rl_gradient: "td3" adds the critic's gradient to a deterministic policy, "sac" to a Gaussian one through its
            draws, "pg" normalized to either; "awac" weighs the actions of the data by their advantage; "q_align"
            orders the actions by the return that is asked for; "expected_q" is for discrete actions; "none" leaves
            critics out, whatever is set of them.
        bc_weight: weight of the supervised loss online; 0 is TD3 alone.
        action_regularization: weight of the mean squared distance between the policy's actions and those of the
            policy that finetuning began with, online (TD3+ODT, appendix G.7: 0.05, summed over action dimensions,
            while this is their mean). Against forgetting on expert data; it may slow the way up from poor data.
            Head "gaussian" is held by its tanh(mean).
        optimizer: of the policy, "lamb" as the papers, or "adamw".
        temperature_lr: learning rate of the entropy's temperature (head "gaussian").
        initial_temperature: its first value.
        pretrain_steps: gradient steps on the logged data first.
        env_steps: environment steps to collect in total.
        env_steps_per_iteration: of a round, which is the fewest whole episodes that have so many steps: 1 for one
            episode, as the papers have it. The last round may go beyond `env_steps`.
        updates_per_iteration: gradient steps that each round allows, once it is complete.
        exploration_noise: standard deviation of the noise on collected actions, in units of [-1, 1];
            head "gaussian" samples instead.
        averaged_share: evaluate and export an average of the policy's weights over about this share of its steps
            online so far, the last ones, which shakes less (Shamir and Zhang 2013, polynomial decay). None for the
            policy as its last step left it, as the papers have it. The policy itself collects: that it shakes is part
            of how it explores.
        exploration_target: raw return asked for while collecting; None for the highest evaluation target.
        exploration_targets: "constant" as above, as the papers have it; "best" asks for the best return in the replay
            and a margin; "quantiles" for a quantile of its returns that each episode draws anew, and the margin. The
            last two in sync mode.
        exploration_margin: in spans between the worst and the best logged return.
        exploration_quantile: the lowest that "quantiles" draws.
        collect_before_update: environment steps that the policy collects as pretraining left it, before the first
            update online (WSRL: 5000).
        offline_fraction: exact share of each batch that is drawn from the logged data, the replay then holding nothing
            but what was collected (RLPD: 0.5, WSRL: 0); None for a replay that begins with the best logged episodes,
            as the papers of ODT and TD3+ODT have it.
        offline_fraction_steps: gradient steps online in which it falls linearly to 0; None for one that stays.
        replay_capacity_trajectories: episodes in the replay, the best logged ones first.
        replay_capacity_steps: bound on its steps; None for none.
        replay_memory_gib: a larger replay is mapped from temporary files (TMPDIR); None keeps all of it in memory.
        timeout_is_terminal: treat collected episodes that ran out of time as ended for good, as the released
            code of TD3+ODT does; logged ones always bootstrap.
    """

    section: ClassVar[str] = "online"

    start_from: str | None = setting(
        None, optional(text("the path of a run, a checkpoint or a bundle")), fixed=whole_value
    )
    mode: str = setting("sync", choice("sync", "async"))
    max_policy_lag: int | None = setting(None, optional(count(1)))
    max_rounds_ahead: float = setting(4.0, real(above=0))
    rl_gradient: str = setting(
        "td3", lambda name, value: one_of(name, value, RL_GRADIENTS), fixed=whole_value
    )
    bc_weight: float = setting(1.0, real(least=0))
    action_regularization: float = setting(0.0, real(least=0), fixed=lambda value: value > 0)
    optimizer: str = setting("lamb", choice("lamb", "adamw"), fixed=whole_value)
    temperature_lr: float = setting(1e-4, real(least=0))
    initial_temperature: float = setting(0.1, real(above=0))
    pretrain_steps: int = setting(1_000, count(), fixed=whole_value)
    env_steps: int = setting(24_000, count())
    env_steps_per_iteration: int = setting(400, count(1))
    updates_per_iteration: int = setting(150, count(1))
    exploration_noise: float = setting(0.1, real(least=0))
    averaged_share: float | None = setting(
        None, optional(real(above=0, most=1)), fixed=lambda value: value is not None
    )
    exploration_target: float | None = setting(None, optional(real()))
    exploration_targets: str = setting("constant", lambda name, value: one_of(name, value, EXPLORATION))
    exploration_margin: float = setting(0.1, real(least=0))
    exploration_quantile: float = setting(0.8, real(least=0, most=1))
    collect_before_update: int = setting(0, count())
    offline_fraction: float | None = setting(None, optional(real(least=0, most=1)))
    offline_fraction_steps: int | None = setting(None, optional(count(1)))
    replay_capacity_trajectories: int = setting(500, count(1))
    replay_capacity_steps: int | None = setting(None, optional(count(1)))
    replay_memory_gib: float | None = setting(4.0, optional(real(least=0)))
    timeout_is_terminal: bool = setting(False, flag())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.collect_before_update >= self.env_steps > 0:
            raise UserError(
                f"online.collect_before_update is {self.collect_before_update}, and nothing would be learned from the "
                f"{self.env_steps} of online.env_steps; set it lower, or env_steps higher"
            )
        if self.offline_fraction is None and self.offline_fraction_steps is not None:
            raise UserError(
                f"online.offline_fraction_steps is {self.offline_fraction_steps}, and there is no offline_fraction to "
                "fall; set online.offline_fraction, such as 0.5"
            )
        law = EXPLORATION[self.exploration_targets]
        refuse_unread(
            type(self),
            self,
            because=f"exploration_targets: {self.exploration_targets}",
            remedy="set exploration_targets: quantiles",
            names={"exploration_margin", "exploration_quantile"} - (law.reads if law else frozenset()),
        )
        if law is None:
            return
        if self.exploration_target is not None:
            raise UserError(
                f"online.exploration_target is {self.exploration_target:g}, and nothing reads it with "
                f"exploration_targets: {self.exploration_targets}; remove it, or set exploration_targets: constant"
            )
        if self.mode == "async":
            raise UserError(
                f"online.exploration_targets {self.exploration_targets} follows the replay from round to round, and "
                "runners of mode async keep their target; set online.mode: sync, or exploration_targets: constant"
            )


@dataclass(frozen=True)
class CallSettings(Settings):
    """The calls of env runners that never stop collecting.

    Attributes:
        rollout_fragment_length: in async mode, steps of a runner's environments in one call, which also ends where an
            episode does, or after a second; but it takes 2.5 ms for each of the runners at least, up to that second. A
            lost runner loses its unfinished episodes.
        lag_timeout_s: in async mode, seconds that a runner may be silent for until the learner and the others go on
            without it. What it then brings with weights older than `max_policy_lag` is left out, with a note.
        call_timeout_s: in async mode, seconds of silence after which a runner is taken for one that hangs, and is
            restarted.
    """

    section: ClassVar[str] = "env_runners"

    rollout_fragment_length: int = setting(200, count(1))
    lag_timeout_s: float = setting(10.0, real(above=0))
    call_timeout_s: float = setting(600.0, real(above=0))
