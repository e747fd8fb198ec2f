"""`rayrl-dt critic`, and `eval` with an action gradient."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from builders import EVALUATION_KEYS, build_model, store_for

from rayrl_dt.data.store import TrajectoryStore
from rayrl_dt.interop.bundle import save_bundle

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """An untrained policy for Pendulum-v1, on data that are there."""
    env = gym.make("Pendulum-v1")
    store = store_for(env)
    store.info = store.info.__class__(
        f"store:{tmp_path / 'data'}", env.observation_space, env.action_space, env.spec
    )
    store.save(tmp_path / "data")
    model = build_model(store)
    return save_bundle(model.spec, model.state_dict(), tmp_path / "policy", gradient_steps=0)


@pytest.fixture
def with_critic(run: Run, bundle: Path) -> Path:
    assert run("critic", str(bundle), "--steps", "20")[0] == 0
    return bundle


@pytest.mark.slow
def test_a_critic_is_trained_into_the_bundle(run: Run, bundle: Path) -> None:
    status, out, err = run(
        "critic", str(bundle), "--steps", "20", "--seed", "3", "--lr", "0.001", "--gamma", "0.9"
    )
    assert status == 0, err
    assert str(bundle / "critic.safetensors") in out
    assert f"next: rayrl-dt refine {bundle} --eta 1e-4,1e-3,1e-2 --n 1,10" in out
    record = json.loads((bundle / "policy.json").read_text())["critic"]
    assert (record["steps"], record["seed"], record["lr"], record["gamma"]) == (20, 3, 1e-3, 0.9)
    assert record["command"].startswith("rayrl-dt critic")


def test_eval_shows_the_same_checkpoint_without_it(run: Run, with_critic: Path, tmp_path: Path) -> None:
    file, plain = tmp_path / "refined.json", tmp_path / "plain.json"
    shared = ("eval", str(with_critic), "--targets=-1200,-300", "--episodes", "1")
    status, out, err = run(*shared, "--action-gradient", "eta=0.2,n=4,rule=adam", "--json", str(file))
    assert status == 0, err
    assert out.index("n = 0") < out.index("eta=0.2,n=4,rule=adam")
    assert run(*shared, "--json", str(plain))[0] == 0
    result, control = json.loads(file.read_text()), json.loads(plain.read_text())
    assert result.keys() >= EVALUATION_KEYS
    assert (result["action_gradient"]["eta"], result["action_gradient"]["n"]) == (0.2, 4)
    assert result["unrefined"]["targets"] == control["targets"] != result["targets"]


def test_eval_takes_the_best_of_sampled_actions(run: Run, with_critic: Path, tmp_path: Path) -> None:
    file = tmp_path / "sampled.json"
    shared = (
        "eval",
        str(with_critic),
        "--targets=-300",
        "--episodes",
        "1",
        "--sampled-actions",
        "n=9,noise=0.3",
    )
    assert run(*shared, "--json", str(file))[0] == 0
    result = json.loads(file.read_text())
    assert result["sampled_actions"] == {"n": 9, "noise": 0.3, "seed": 0}
    assert result["unrefined"]["targets"] != result["targets"]
    status, _, err = run(*shared, "--action-gradient", "n=3")
    assert status == 2 and "choose one" in err


def test_eval_checks_the_target_twice(run: Run, with_critic: Path, tmp_path: Path) -> None:
    file = tmp_path / "checked.json"
    shared = ("eval", str(with_critic), "--targets=-300", "--episodes", "1", "--json", str(file))
    assert run(*shared, "--double-check", "n=5,spread=0.5")[0] == 0
    result = json.loads(file.read_text())
    assert result["double_check"] == {"n": 5, "spread": 0.5, "mode": "align"}
    assert result["unrefined"]["targets"] != result["targets"]
    status, _, err = run(*shared, "--double-check", "n=5", "--sampled-actions", "3")
    assert status == 2 and "choose one" in err


def test_no_steps_change_nothing(run: Run, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    arguments = ("eval", str(bundle), "--targets=-300", "--episodes", "1", "--action-gradient", "n=0")
    assert run(*arguments, "--json", str(file))[0] == 0
    result = json.loads(file.read_text())
    assert result["targets"] == result["unrefined"]["targets"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "{bundle}", "--action-gradient", "n=3"), "has no critic"),
        (("eval", "{bundle}", "--action-gradient", "n=-3"), "n is -3"),
        (("eval", "{bundle}", "--sampled-actions", "n=3"), "has no critic"),
        (("eval", "{bundle}", "--sampled-actions", "n=-3"), "n is -3"),
        (("eval", "{bundle}", "--double-check", "n=3"), "has no critic"),
        (("eval", "{bundle}", "--double-check", "n=0"), "n is 0"),
        (("eval", "{bundle}", "--double-check", "mode=min"), "Allowed: align, max"),
        (("eval", "{bundle}", "--action-gradient", "eta=nan"), "eta is nan"),
        (("eval", "{bundle}", "--action-gradient", "rule=plane"), "Did you mean 'plain'"),
        (("eval", "{bundle}", "--action-gradient", "fast"), "cannot be read"),
        (("critic", "nowhere"), "does not exist"),
        (("critic", "{bundle}", "--steps", "0"), "steps is 0"),
        (("critic", "{bundle}", "--expectile", "1"), "expectile is 1.0"),
        (("critic", "{bundle}", "--lr", "0"), "critic.lr is 0.0"),
        (("critic", "{bundle}", "--gamma", "1.5"), "critic.gamma is 1.5"),
        (
            ("critic", "{bundle}", "--reward-scale", "0"),
            "reward_scale is 0; it must be a finite number above 0, or auto",
        ),
        (("critic", "{bundle}", "--dataset", "store:gone"), "gone"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    run: Run, bundle: Path, arguments: tuple[str, ...], message: str
) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    status, _, err = run(*(argument.format(bundle=bundle) for argument in arguments))
    assert status == 2
    assert err.startswith("error: ") and message in err and len(err.strip().splitlines()) == 1
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


@pytest.mark.slow
def test_a_discrete_policy_is_refused(
    run: Run, make_store: Callable[..., TrajectoryStore], tmp_path: Path
) -> None:
    model = build_model(make_store(actions=4))
    path: Any = save_bundle(model.spec, model.state_dict(), tmp_path / "discrete")
    for arguments in (("critic", path), ("eval", path, "--targets=1", "--action-gradient", "n=0")):
        status, _, err = run(*map(str, arguments))
        assert status == 2 and "continuous actions" in err


def test_refine_draws_a_grid(run: Run, with_critic: Path, tmp_path: Path) -> None:
    folder = tmp_path / "grid"
    arguments = ("--eta", "1e-4,1", "--n", "0,2", "--rule", "plain", "--target=-500", "--episodes", "1")
    status, out, err = run("refine", str(with_critic), *arguments, "--out", str(folder))
    assert status == 0, err
    assert "n = 0" in out and "of 2 cells are above n = 0" in out and str(folder / "report.html") in out
    result = json.loads((folder / "result.json").read_text())
    assert len(result["cells"]) == 2
    best = max(result["cells"], key=lambda cell: cell["return_mean"])
    following = f"--targets=-500 --action-gradient eta={best['eta']:g},n=2,rule=plain --seed 1"
    if best["return_mean"] <= result["control"]["return_mean"]:
        following = f"rayrl-dt critic {with_critic} --steps 100000"
    assert out.rstrip().endswith(following)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--n", "many"), "--n is 'many'; give whole numbers"),
        (("--n", "1.5"), "--n is '1.5'"),
        (("--n=-2",), "n is -2"),
        (("--eta", "nan"), "eta is nan"),
        (("--rule", "plane"), "Did you mean 'plain'"),
        (("--out", "{bundle}/policy.json"), "choose another --out"),
    ],
)
def test_refine_refuses_bad_input(
    run: Run, with_critic: Path, arguments: tuple[str, ...], message: str
) -> None:
    status, _, err = run("refine", str(with_critic), *(text.format(bundle=with_critic) for text in arguments))
    assert status == 2
    assert err.startswith("error: ") and message in err and len(err.strip().splitlines()) == 1


def test_refine_needs_a_critic(run: Run, bundle: Path) -> None:
    status, _, err = run("refine", str(bundle), "--n", "1")
    assert status == 2 and "has no critic" in err


@pytest.fixture
def guided(tmp_path: Path) -> Path:
    """An untrained policy that knows what it does when nothing is asked for, without a critic."""
    env = gym.make("Pendulum-v1")
    model = build_model(store_for(env), return_dropout=0.2)
    return save_bundle(model.spec, model.state_dict(), tmp_path / "guided", gradient_steps=0)


def test_guidance_is_evaluated_beside_the_policy_as_it_was_trained(
    run: Run, guided: Path, bundle: Path, tmp_path: Path
) -> None:
    shared = ("--targets=-300", "--episodes", "1", "--env", "Pendulum-v1")
    files = [tmp_path / "guided.json", tmp_path / "plain.json"]
    status, out, err = run("eval", str(guided), *shared, "--guidance", "2.5", "--json", str(files[0]))
    assert status == 0, err
    assert out.index("guidance 1") < out.index("guidance 2.5")
    assert run("eval", str(guided), *shared, "--json", str(files[1]))[0] == 0
    result, control = (json.loads(file.read_text()) for file in files)
    assert result["guidance"] == 2.5 and "guidance" not in control
    assert result["unrefined"]["targets"] == control["targets"] != result["targets"]
    status, _, err = run("eval", str(bundle), *shared, "--guidance", "2.5")
    assert status == 2 and "return_dropout" in err and len(err.strip().splitlines()) == 1


def test_refine_sweeps_guidance_without_a_critic(run: Run, guided: Path, tmp_path: Path) -> None:
    folder = tmp_path / "grid"
    shared = ("--target=-300", "--episodes", "1", "--env", "Pendulum-v1", "--out", str(folder))
    status, out, err = run("refine", str(guided), "--guidance", "0,3", *shared)
    assert status == 0, err
    assert "weight = 0" in out and "weight = 1" in out and "weight = 3" in out and "of 2 cells" in out
    result = json.loads((folder / "result.json").read_text())
    best = max(result["cells"], key=lambda cell: cell["return_mean"])
    following = f"--targets=-300 --guidance {best['weight']:g} --env Pendulum-v1 --seed 1"
    if best["return_mean"] <= result["control"]["return_mean"]:
        following = f"rayrl-dt diagnose {guided}"
    assert out.rstrip().endswith(following)


def test_refine_sweeps_double_checks(run: Run, with_critic: Path, tmp_path: Path) -> None:
    shared = ("--target=-300", "--episodes", "1", "--out", str(tmp_path / "grid"))
    status, out, err = run("refine", str(with_critic), "--check-n", "4,8", "--check-mode", "max", *shared)
    assert status == 0, err
    cells = json.loads((tmp_path / "grid" / "result.json").read_text())["cells"]
    assert [(cell["n"], cell["spread"]) for cell in cells] == [
        (n, s) for s in (0.1, 0.25, 0.5) for n in (4, 8)
    ]
    assert "n = 1" in out and "of 6 cells" in out
