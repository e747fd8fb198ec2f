"""The environment of a run: which one it is, whether it can be made here, and copies of it for a runner."""

from __future__ import annotations

from functools import partial
from typing import Any

from ray.rllib.env.env_context import EnvContext

from rayrl_dt.algorithms.rllib_internals import registered_with_ray
from rayrl_dt.data.info import DatasetInfo
from rayrl_dt.envs import RecordedEnv, vectorize
from rayrl_dt.envs.atari import frames_per_step
from rayrl_dt.envs.plain import PlainEnv
from rayrl_dt.envs.resolve import refused
from rayrl_dt.errors import UserError
from rayrl_dt.models.spec import PolicySpec

__all__ = ["chosen", "copies", "why_none"]


def chosen(config: Any, info: DatasetInfo) -> RecordedEnv | None:
    """Return the environment of a run: the one named, else that of the policy to start from, else of the data.

    Args:
        config: a `SequenceConfig`.
        info: of the data.

    Raises:
        UserError: the name is unknown.
    """
    if config.env is None:
        env = config.inherited_env or info.environment
        env = None if env is None else env.changed(**config.env_config)
        return None if env is None else env.trusting() if config.trust_environment else env
    if registered_with_ray(config.env) is not None:
        return RecordedEnv(config.env)
    if config.known_env is not None and config.known_env["id"] == config.env:
        return RecordedEnv.from_json(config.known_env).changed(**config.env_config).trusting()
    named = RecordedEnv.named(config.env, **config.env_config)
    recorded = info.environment
    theirs, ours = None if recorded is None else frames_per_step(recorded), frames_per_step(named)
    if theirs != ours and None not in (theirs, ours):
        raise UserError(
            f"an action of {info.source} lasts {theirs} frames, and one of {config.env} here {ours}; set "
            "environment.env_config.frame_skip to the data's, or leave environment.env out to play as recorded"
        )
    return named


def why_none(config: Any, spec: PolicySpec) -> str | None:
    """Return why runners of this machine have no environment; None if they can make theirs.

    Args:
        config: a `SequenceConfig`.
        spec: of its policy.

    Raises:
        UserError: they cannot make the one that the user named, or changed.
    """
    env = spec.env
    if env is None:
        return f"no environment is recorded with {spec.dataset}; name one: environment.env"
    try:
        remote = config.num_env_runners + config.evaluation_num_env_runners > 0
        if remote and env.needs_this_process and registered_with_ray(config.env) is None:
            raise UserError(
                f"the environment {env.id} is made by code of this script, which remote env runners cannot import; put "
                "it into a module of its own and name it: environment.env: module:Class"
            )
        for each in (env,) if env.evaluation is None else (env, env.evaluation):
            copies(config, each, spec, 1, mode="sync").close()
    except UserError as error:
        if config.env is not None or config.env_config:
            raise
        return str(error)
    return None


def copies(config: Any, env: RecordedEnv, spec: PolicySpec, count: int, *, mode: Any) -> Any:
    """Make the vector environment of a runner.

    Args:
        config: a `SequenceConfig`.
        env: of the run; not used where the config's is registered with Ray.
        spec: of the policy, which the environment must fit.
        count: of the copies.
        mode: as for `vectorize`.

    Raises:
        UserError: it cannot be made, or does not fit.
    """
    spaces = (spec.observation_space, spec.action_space)
    creator = registered_with_ray(config.env)
    if creator is None:
        return env.make_vector(count, flattening=spec.flattening, mode=mode, spaces=spaces)
    make = partial(_from_ray, creator, dict(config.env_config), spec.flattening)
    return vectorize(make, count, mode=mode, spaces=spaces)


def _from_ray(creator: Any, arguments: dict[str, Any], flattening: Any) -> PlainEnv:
    try:
        return PlainEnv(creator(EnvContext(arguments, worker_index=0)), flattening)
    except Exception as error:  # a creator is anybody's code
        raise refused("registered with Ray", error) from error
