"""Filming a policy: an episode each at a low, a middle and a high return, all from the same start.

Shape legend: H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

from rayrl_dt.envs import RecordedEnv
from rayrl_dt.envs.vector import vectorize
from rayrl_dt.errors import UserError, one_line
from rayrl_dt.evaluation.frame_strip import low_middle_high, pictures_of, sees_pictures
from rayrl_dt.evaluation.rollout import action_draws, assign_slots, run_slots
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.models.spec import PolicySpec, evaluated_in
from rayrl_dt.policy.actor import VectorActor
from rayrl_dt.policy.collector import Collector
from rayrl_dt.seeding import derive_seed

__all__ = ["Film", "Take", "film"]

Array = np.ndarray[Any, Any]
_SIDE = 240
_MOST_FRAMES = 240
_FPS = 30.0
# Of a frame: what renders more often than this shows no more.
_SHORTEST_S = 0.03
_MODE = "rgb_array"


@dataclass(frozen=True, eq=False)
class Take:
    """A filmed episode.

    Attributes:
        target: raw return that was asked for.
        frames: `(H, W, 3)` uint8 each, all of one size: at step 0, and at every `stride`-th.
        so_far: the raw return at each frame.
        stride: steps from frame to frame; the last frame is the episode's end.
        length: in steps.
    """

    target: float
    frames: tuple[Array, ...]
    so_far: tuple[float, ...]
    stride: int
    length: int


@dataclass(frozen=True, eq=False)
class Film:
    """Episodes at several targets, to be shown side by side.

    Attributes:
        takes: by rising target, with the same stride.
        seconds_per_frame: at the environment's own pace.
    """

    takes: tuple[Take, ...]
    seconds_per_frame: float


def film(
    bundle: Bundle,
    targets: str,
    *,
    env: str | RecordedEnv | None = None,
    seed: int = 0,
    context_length: int | None = None,
    action_selection: str | None = None,
    guidance: float | None = None,
) -> Film:
    """Play and film an episode at the lowest, the middle and the highest of some targets.

    What is filmed is what the environment renders; of one that renders nothing, the pictures that the policy sees.

    Args:
        bundle: of the policy.
        targets: as for `parse_targets`.
        env: overrides the policy's environment.
        seed: as for `evaluate_model`, of which these are the first episodes where the policy draws nothing; draws
            depend on how many episodes are played at once.
        context_length: as for `evaluate_model`.
        action_selection: likewise.
        guidance: likewise.

    Raises:
        UserError: the environment cannot be rendered and the policy sees no pictures, or it cannot be evaluated.
    """
    spec = bundle.spec.acting(
        context_length=context_length, action_selection=action_selection, guidance=guidance
    )
    where = evaluated_in(spec, env)
    asked = low_middle_high(bundle, targets)
    slots = assign_slots(asked.targets, 1, max_slots=1, seed=derive_seed(seed, "evaluation"))
    cameras: list[_Camera] = []

    def filmed(maker: Callable[[], gym.Env[Any, Any]], space: gym.Space[Any] | None) -> _Camera:
        cameras.append(_Camera(maker(), where.id, space))
        return cameras[-1]

    maker, space = _maker(where, spec)
    vector = vectorize(
        partial(filmed, maker, space), len(slots), spaces=(spec.observation_space, spec.action_space)
    )
    try:
        sample = action_draws(spec, slots)
        actor = VectorActor(
            bundle.model, len(slots), sample=sample, context_length=spec.acts_on, guidance=spec.guidance
        )
        run_slots(Collector(vector, actor, record=False), slots)
    finally:
        vector.close()
    fps = float(cameras[0].metadata.get("render_fps") or _FPS)
    stride = max(camera.stride for camera in cameras)
    while stride / fps < _SHORTEST_S:
        stride *= 2
    takes = (camera.take(slot.target, stride) for camera, slot in zip(cameras, slots, strict=True))
    return Film(tuple(takes), stride / fps)


def _maker(
    where: RecordedEnv, spec: PolicySpec
) -> tuple[Callable[[], gym.Env[Any, Any]], gym.Space[Any] | None]:
    """Return what makes the environment, and the space of what is filmed where it does not render."""
    plain = partial(where.make, spec.flattening)
    with_pictures = sees_pictures(spec.observation_space)
    env = plain()
    modes = list(env.metadata.get("render_modes") or [])
    env.close()
    if _MODE in modes:
        try:
            partial(where.make, spec.flattening, render_mode=_MODE)().close()
        except UserError as error:  # what draws is missing
            if not with_pictures:
                raise _unfilmed(where.id, error) from error
        else:
            return partial(where.make, spec.flattening, render_mode=_MODE), None
    if with_pictures:
        return plain, spec.observation_space
    raise UserError(
        f"the environment {where.id} cannot be filmed: it renders {', '.join(modes) or 'nothing'}, and not {_MODE}; "
        "leave out --video, or name one that does with --env"
    )


class _Camera(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps the frames of an environment's first episode: all at first, and every second one each time they are many.

    Args:
        env: the environment.
        name: of it.
        space: of observations, of which the pictures are filmed; None to have it render.
    """

    def __init__(self, env: gym.Env[Any, Any], name: str, space: gym.Space[Any] | None) -> None:
        super().__init__(env)
        self.stride = 1
        self._name, self._space = name, space
        self._frames: list[Array] = []
        self._so_far: list[float] = []
        self._steps, self._return, self._over = 0, 0.0, False
        self._end: tuple[Array, float] | None = None

    def reset(self, **options: Any) -> Any:
        """Reset, and film the start of the first episode."""
        observation, info = self.env.reset(**options)
        self._over = self._steps > 0
        if not self._over:
            self._keep(observation)
        return observation, info

    def step(self, action: Any) -> Any:
        """Step, and film."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if not self._over:
            self._steps, self._return = self._steps + 1, self._return + float(reward)
            self._over = bool(terminated or truncated)
            if self._over:
                self._end = self._frame(observation), self._return
            elif self._steps % self.stride == 0:
                self._keep(observation)
        return observation, reward, terminated, truncated, info

    def take(self, target: float, stride: int) -> Take:
        """Return what was filmed, with a frame every `stride` steps, a multiple of the camera's own."""
        every = stride // self.stride
        frames, so_far = self._frames[::every], self._so_far[::every]
        if self._end is not None:
            frames, so_far = [*frames, self._end[0]], [*so_far, self._end[1]]
        return Take(target, tuple(frames), tuple(so_far), stride, self._steps)

    def _keep(self, observation: Any) -> None:
        self._frames.append(self._frame(observation))
        self._so_far.append(self._return)
        if len(self._frames) > _MOST_FRAMES:
            self._frames, self._so_far = self._frames[::2], self._so_far[::2]
            self.stride *= 2

    def _frame(self, observation: Any) -> Array:
        """Return a small picture `(H, W, 3)` of now."""
        if self._space is not None:
            picture: Any = pictures_of(self._space, np.asarray(observation)[None])[0]
        else:
            try:
                picture = self.env.render()
            except Exception as error:  # drivers and libraries of graphics are anybody's
                raise _unfilmed(self._name, error) from error
        array = np.asarray(picture)
        if array.dtype != np.uint8 or array.ndim not in (2, 3):
            found = "nothing" if picture is None else f"{array.dtype} of shape {array.shape}"
            raise UserError(
                f"the environment {self._name} cannot be filmed: it renders {found}, and no picture (H, W, 3) of "
                "uint8; leave out --video"
            )
        small = Image.fromarray(array).convert("RGB")
        small.thumbnail((_SIDE, _SIDE))
        return np.asarray(small)


def _unfilmed(name: str, error: Exception) -> UserError:
    return UserError(
        f"the environment {name} cannot be filmed ({one_line(error)}); without a screen MuJoCo needs MUJOCO_GL=egl or "
        "MUJOCO_GL=osmesa and their libraries, others what the message names"
    )
