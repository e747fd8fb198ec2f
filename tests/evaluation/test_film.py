"""`rayrl-dt eval --video`: what is filmed, as it was played, and what cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import contract
import gymnasium as gym
import numpy as np
import pytest
from builders import build_model, store_for
from image_data import image_store
from PIL import Image
from typer.testing import CliRunner

from rayrl_dt import load_dataset
from rayrl_dt.cli.main import app
from rayrl_dt.envs import RecordedEnv
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.evaluate import evaluate_model
from rayrl_dt.evaluation.film import film
from rayrl_dt.evaluation.targets import TargetReturns
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.models.model_config import ModelConfig
from rayrl_dt.models.sequence_model import SequenceModel
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.reports.film import video_file, write_film

LENGTH = 700


class Bar(gym.Env[Any, Any]):
    """Renders a gray that says which step it is; an episode ends when the actions add up."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 50}
    observation_space = gym.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode: str | None = None, broken: str = "") -> None:
        self.render_mode, self._broken, self._step = render_mode, broken, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self._step, self._sum = 0, 0.0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self._step += 1
        self._sum += float(action[0])
        over = self._step == LENGTH or abs(self._sum) > 60
        return np.array([self._sum / 10, 1], np.float32), float(action[0]), over, False, {}

    def render(self) -> Any:
        if self._broken == "raises":
            raise RuntimeError("no display\nat all")
        if self._broken == "nothing":
            return None
        return np.full((40, 50, 3), self._step % 256, np.uint8)


@pytest.fixture(autouse=True)
def bar() -> Any:
    gym.register("rayrl_dt_test/Bar-v0", entry_point=Bar)
    yield
    del gym.registry["rayrl_dt_test/Bar-v0"]


def policy_in(folder: Path, env: gym.Env[Any, Any]) -> Bundle:
    model = build_model(store_for(env), return_scale=50.0)
    return Bundle.open(save_bundle(model.spec, model.state_dict(), folder))


def test_what_is_filmed_is_what_eval_plays(tmp_path: Path) -> None:
    bundle = policy_in(tmp_path / "policy", Bar())
    found = film(bundle, "90,-60,0,1,-1", env="rayrl_dt_test/Bar-v0", seed=3)
    targets = (-60.0, 0.0, 90.0)
    assert tuple(take.target for take in found.takes) == targets
    played = evaluate_model(
        bundle.model, TargetReturns(targets), env="rayrl_dt_test/Bar-v0", episodes_per_target=1, seed=3
    )
    assert len({take.stride for take in found.takes}) == 1
    for take, episode in zip(found.takes, played.episodes, strict=True):
        assert take.length == episode.length
        assert take.so_far[-1] == pytest.approx(episode.episode_return) and take.so_far[0] == 0
        assert len(take.frames) == len(take.so_far) <= 242
        steps = [*range(0, take.length, take.stride), take.length]
        assert [int(frame[0, 0, 0]) for frame in take.frames] == [step % 256 for step in steps]
        assert {frame.shape for frame in take.frames} == {(40, 50, 3)}
    assert found.seconds_per_frame == pytest.approx(found.takes[0].stride / 50)


@pytest.mark.parametrize("ending", [".gif", ".png", ".webp"])
def test_the_file_moves_and_shows_three_episodes(tmp_path: Path, ending: str) -> None:
    bundle = policy_in(tmp_path / "policy", Bar())
    found = film(bundle, "90,-60,0", env="rayrl_dt_test/Bar-v0")
    file = write_film(found, video_file(tmp_path / "made" / f"film{ending}"))
    with Image.open(file) as image:
        count = max(len(take.frames) for take in found.takes)
        # A GIF joins pages that look alike.
        assert count - 3 <= image.n_frames <= count and image.width > 3 * 50 and image.info["loop"] == 0
        first = np.asarray(image.convert("L")).astype(int)
        image.seek(image.n_frames - 1)
        last = np.asarray(image.convert("L")).astype(int)
    assert (first != last).mean() > 0.1


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("raises", r"cannot be filmed \(no display\); .*MUJOCO_GL=egl"),
        ("nothing", "it renders nothing, and no picture"),
    ],
)
def test_an_environment_that_fails_to_render_is_one_line(tmp_path: Path, broken: str, message: str) -> None:
    bundle = policy_in(tmp_path, Bar())
    with pytest.raises(UserError, match=message) as error:
        film(bundle, "1", env=RecordedEnv.named("rayrl_dt_test/Bar-v0", broken=broken))
    assert len(str(error.value).splitlines()) == 1


def test_a_policy_of_images_shows_what_it_sees_where_nothing_is_rendered(tmp_path: Path) -> None:
    store = load_dataset(contract.make_data(tmp_path / "data", "frame", "discrete"))
    model = build_model(store, backbone="dt", context_length=2)
    bundle = Bundle.open(save_bundle(model.spec, model.state_dict(), tmp_path / "policy"))
    found = film(bundle, "1,3,5")
    assert [take.target for take in found.takes] == [1, 3, 5]
    for take in found.takes:
        assert take.length in (contract.STEPS, contract.STEPS - 1) and len(take.frames) == take.length + 1
        assert {frame.shape for frame in take.frames} == {(40, 40, 3)}
        assert len({int(frame[0, 0, 0]) for frame in take.frames}) > 4


def test_a_game_is_rendered_in_color(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    config = ModelConfig(context_length=2, embed_dim=16, num_layers=1, num_heads=1, frame_stack=2)
    env = RecordedEnv.named("ALE/Breakout-v5", max_episode_steps=8)
    spec = PolicySpec.from_store(config, image_store((84, 84), actions=4), return_scale=1.0, env=env)
    bundle = Bundle.open(save_bundle(spec, SequenceModel(spec).state_dict(), tmp_path))
    found = film(bundle, "1,2,3")
    assert all(take.length == 8 and len(take.frames) == 9 for take in found.takes)
    frame = found.takes[0].frames[0]
    assert frame.shape[2] == 3 and np.ptp(frame.astype(int), axis=2).max() > 50, "there is no color"


def test_the_command_writes_a_file_or_into_a_folder(tmp_path: Path) -> None:
    store = load_dataset(contract.make_data(tmp_path / "data", "frame", "discrete"))
    model = build_model(store, backbone="dt", context_length=2)
    policy = str(save_bundle(model.spec, model.state_dict(), tmp_path / "policy"))
    words = ["eval", policy, "--targets", "1,2", "--episodes", "1", "--video"]
    for given, file in (("films", "films/policy.gif"), ("other.webp", "other.webp")):
        found = CliRunner().invoke(app, [*words, str(tmp_path / given)], catch_exceptions=False)
        assert found.exit_code == 0 and "video:" in found.output
        with Image.open(tmp_path / file) as image:
            assert image.n_frames > 4


def test_what_cannot_be_filmed_is_told_before_anything_is_played(tmp_path: Path) -> None:
    bundle = policy_in(tmp_path / "policy", gym.make("CartPole-v1"))
    with pytest.raises(
        UserError, match=r"cannot be filmed: it renders ansi, and not rgb_array; leave out --video"
    ):
        film(bundle, "1", env="rayrl_dt/KeyToDoor-v0")
    with pytest.raises(UserError, match=r"--video is '.*film.mp4'.*Allowed: .gif, .png, .webp"):
        video_file(tmp_path / "film.mp4")
