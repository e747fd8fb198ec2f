"""The server as clients see it: real HTTP, on one port, through Ray Serve."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
import requests
from builders import build_model, store_for

from rayrl_dt.cli import main
from rayrl_dt.deployment import start
from rayrl_dt.deployment.start import serving
from rayrl_dt.errors import UserError
from rayrl_dt.interop.bundle import Bundle, save_bundle
from rayrl_dt.serving.limits import Limits
from rayrl_dt.serving.policy import SequencePolicy

pytest.importorskip("fastapi", reason="needs the extra serve")
from ray import serve
from starlette.requests import Request

from rayrl_dt.deployment.server import PolicyServer

MOST = 210


def policy_in(folder: Path) -> Path:
    """An untrained policy for Pendulum-v1."""
    model = build_model(store_for(gym.make("Pendulum-v1")), return_scale=1000.0)
    return save_bundle(model.spec, model.state_dict(), folder, gradient_steps=7)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policy_in(tmp_path_factory.mktemp("served") / "policy")


@pytest.fixture(scope="module")
def url(ray_session: None, policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose bundle is gone when it starts: it acts with what was checked, whatever lies there by then."""
    folder = shutil.copytree(policy, tmp_path_factory.mktemp("checked") / "policy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "start_ray", lambda **_: shutil.rmtree(folder, ignore_errors=True))
        with serving(folder, port=0, limits=Limits(sessions=MOST)) as found:
            yield found


def opened(url: str, **body: Any) -> dict[str, Any]:
    reply = requests.post(f"{url}/sessions", json=body, timeout=60)
    assert reply.status_code == 201, reply.text
    found: dict[str, Any] = reply.json()
    return found


@pytest.mark.ray
def test_a_session_acts_as_the_policy_does(url: str, policy: Path) -> None:
    begun = opened(url, target_return=-300)
    assert begun["target_return"] == -300 and begun["idle_seconds"] == 600
    alone, env = SequencePolicy.load(policy), gym.make("Pendulum-v1")
    alone.reset(-300)
    observation, _ = env.reset(seed=0)
    reward: float | None = None
    with requests.Session() as client:
        for step in range(12):
            body = {"observation": observation.tolist()} | ({} if reward is None else {"reward": reward})
            found = client.post(f"{url}/sessions/{begun['session']}/act", json=body, timeout=60).json()
            np.testing.assert_allclose(found["action"], alone.act(observation, reward), rtol=1e-5, atol=1e-5)
            assert found["step"] == step
            observation, given, *_ = env.step(np.array(found["action"], np.float32))
            reward = float(given)
    ended = requests.delete(f"{url}/sessions/{begun['session']}", timeout=60)
    assert ended.json() == {"session": begun["session"], "steps": 12}


@pytest.mark.ray
def test_200_sessions_at_once_get_their_own_actions(url: str, policy: Path) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    count, steps, rng = 200, 4, np.random.default_rng(0)
    observations = rng.normal(size=(count, steps, 3)).astype(np.float32)
    rewards = rng.normal(size=(count, steps))

    async def episode(client: Any, number: int) -> list[list[float]]:
        async with client.post(f"{url}/sessions", json={"target_return": -10.0 * number}) as reply:
            assert reply.status == 201
            name = (await reply.json())["session"]
        actions = []
        for step in range(steps):
            body = {"observation": observations[number, step].tolist(), "reward": rewards[number, step]}
            async with client.post(f"{url}/sessions/{name}/act", json=body) as reply:
                assert reply.status == 200, await reply.text()
                actions.append((await reply.json())["action"])
        async with client.delete(f"{url}/sessions/{name}") as reply:
            assert reply.status == 200
        return actions

    async def everybody() -> list[list[list[float]]]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
            return await asyncio.gather(*(episode(client, number) for number in range(count)))

    found = asyncio.run(everybody())
    alone = SequencePolicy.load(policy)
    for number in range(count):
        alone.reset(-10.0 * number)
        wanted = [alone.act(observations[number, step], rewards[number, step]) for step in range(steps)]
        np.testing.assert_allclose(found[number], wanted, rtol=1e-5, atol=1e-5)
    assert requests.get(f"{url}/health", timeout=60).json()["sessions"] == 0


@pytest.mark.ray
@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        ("GET", "/", b"", 404, "there is nothing at '/'"),
        ("GET", "/sessions", b"", 405, "use POST"),
        ("POST", "/health", b"", 405, "use GET"),
        ("POST", "/sessions", b"{", 400, "not JSON"),
        ("POST", "/sessions", b'{"target": 3}', 400, "Did you mean 'target_return'"),
        ("POST", "/sessions", b'{"target_return": "all"}', 400, "must be a finite number"),
        ("POST", "/sessions", b'{"target_return": 1e999}', 400, "must be a finite number"),
        ("POST", "/sessions", b'{"target_return": 1e300}', 400, "target_return is 1e+300"),
        ("POST", "/sessions", b'{"seed": -1}', 400, "seed is -1"),
        ("POST", "/sessions", b" " * 100_000, 413, "65536 bytes"),
        ("POST", "/sessions/nobody/act", b'{"observation": [0, 0, 0]}', 404, "no such session"),
        ("DELETE", "/sessions/nobody", b"", 404, "no such session"),
        ("POST", "/sessions/ID/act", b"", 400, "no observation"),
        ("POST", "/sessions/ID/act", b'{"observation": [0, 0]}', 400, "shape (2,)"),
        ("POST", "/sessions/ID/act", b'{"observation": [0, 0, "__import__(\'os\')"]}', 400, "not numbers"),
        ("POST", "/sessions/ID/act", b'{"observation": [0, 0, NaN]}', 400, "no number of JSON"),
        ("POST", "/sessions/ID/act", b'{"observation": [0, 0, 1e39]}', 400, "beyond float32"),
        (
            "POST",
            "/sessions/ID/act",
            b'{"observation": [0, 0, 0], "reward": -1e308}',
            400,
            "reward is -1e+308",
        ),
        ("POST", "/sessions/ID/act", b'{"observation": [0, 0, 0], "step": -1}', 400, "step is -1"),
        ("POST", "/sessions/ID/act", b'{"observation": [0, 0, 0], "step": 2}', 409, "the session is at 0"),
        ("POST", "/sessions/ID/act", b"\x80\x04\x95pickle", 400, "not JSON"),
    ],
)
def test_wrong_input_is_answered_with_the_reason(
    url: str, method: str, path: str, body: bytes, status: int, reason: str
) -> None:
    name = opened(url)["session"]
    reply = requests.request(method, url + path.replace("ID", name), data=body, timeout=60)
    assert reply.status_code == status and reason in reply.json()["error"]
    assert len(reply.json()["error"].splitlines()) == 1
    act = requests.post(f"{url}/sessions/{name}/act", json={"observation": [0, 0, 0]}, timeout=60)
    assert act.status_code == 200 and act.json()["step"] == 0  # nothing came of it
    assert requests.delete(f"{url}/sessions/{name}", timeout=60).status_code == 200


@pytest.mark.ray
def test_one_session_asking_twice_at_once_goes_one_step(url: str) -> None:
    name = opened(url)["session"]

    def ask(_: int) -> str:
        body = {"observation": [0, 0, 0], "step": 0}
        return requests.post(f"{url}/sessions/{name}/act", json=body, timeout=60).text

    with ThreadPoolExecutor(8) as pool:
        (reply,) = set(pool.map(ask, range(24)))
    assert '"step":0' in reply
    assert requests.delete(f"{url}/sessions/{name}", timeout=60).json()["steps"] == 1


@pytest.mark.ray
def test_a_full_server_says_so_and_when_to_come_again(url: str) -> None:
    names = [opened(url)["session"] for _ in range(MOST)]
    full = requests.post(f"{url}/sessions", timeout=60)
    assert full.status_code == 429 and f"all {MOST} sessions are taken" in full.json()["error"]
    assert 0 < int(full.headers["Retry-After"]) <= 600
    for name in names:
        requests.delete(f"{url}/sessions/{name}", timeout=60)
    assert opened(url)["session"]


@pytest.mark.ray
def test_health_and_policy_say_what_is_served(url: str) -> None:
    health = requests.get(f"{url}/health", timeout=60).json()
    assert health["status"] == "ok" and health["most_sessions"] == MOST and health["actions"] >= 0
    found = requests.get(f"{url}/policy", timeout=60).json()
    assert found["backbone"] == "dt" and found["context_length"] == 6 and found["gradient_steps"] == 7
    assert found["observation_space"]["shape"] == [3] and found["data_returns"].keys() >= {"p95", "max"}


@pytest.mark.ray
def test_a_second_server_on_the_same_ray_is_refused(url: str, policy: Path) -> None:
    with pytest.raises(UserError, match="Ray Serve runs on that Ray already"), serving(policy, port=0):
        pass
    assert requests.get(f"{url}/health", timeout=60).status_code == 200


@pytest.mark.ray
def test_what_ray_has_no_room_for_is_refused(url: str, policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_check_alone", lambda: None)
    refused = pytest.raises(UserError, match=r"the server needs 99 CPU on one node.*; lower --cpus, or join")
    with refused, serving(policy, port=0, cpus=99):
        pass
    assert requests.get(f"{url}/health", timeout=60).status_code == 200  # what runs there is somebody else's


@pytest.mark.ray
def test_a_start_that_fails_is_one_line_and_leaves_nothing_running(
    ray_session: None, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(**_: Any) -> None:
        raise RuntimeError("Failed to bind to address '127.0.0.1:1'.\nand more")

    ended = []
    monkeypatch.setattr(start, "_check_alone", lambda: None)
    monkeypatch.setattr(serve, "start", failing)
    monkeypatch.setattr(serve, "shutdown", lambda: ended.append(True))
    refused = pytest.raises(
        UserError, match=r"^the server did not start \(Failed to bind.*'\.\); see that Ray"
    )
    with refused, serving(policy, port=0):
        pass
    assert ended


@pytest.mark.ray
def test_an_answer_that_is_no_json_is_answered_in_json(
    ray_session: None, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def infinite(*_: Any) -> tuple[int, dict[str, float]]:
        return 200, {"actions": float("inf")}

    async def nothing() -> dict[str, Any]:
        return {"type": "http.request"}

    bundle = Bundle.open(policy)
    bundle.model  # noqa: B018 (what is put holds its weights)
    server = PolicyServer(ray.put(bundle), bundle.spec, Limits(sessions=1))
    monkeypatch.setattr(server, "_health", infinite)
    scope = {"type": "http", "method": "GET", "path": "/health", "headers": [], "query_string": b""}
    reply = asyncio.run(server(Request(scope, nothing)))
    assert reply.status_code == 500 and b"the server failed; its log says how" in reply.body


def test_a_url_has_ipv6_in_brackets_and_a_misspelled_setting_is_refused(policy: Path) -> None:
    assert (start._url("::1", 80), start._url("127.0.0.1", 80)) == ("http://[::1]:80", "http://127.0.0.1:80")
    with pytest.raises(TypeError, match="guidence"):
        serving(policy, guidence=2.0)  # type: ignore[call-arg]  # the misspelling is what is tried


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nowhere"], "does not exist"),
        (["{policy}", "--port", "70000"], "--port is 70000"),
        (["{policy}", "--host", "203.0.113.9"], "cannot listen on 203.0.113.9"),
        (["{policy}", "--sessions", "0"], "serve.sessions is 0"),
        (["{policy}", "--context-length", "9"], "from 1 to 6"),
        (["{policy}", "--cpus", "-1"], "--cpus is -1.0; it must be a finite number above 0"),
        (["{policy}", "--cpus", "nan"], "--cpus is nan; it must be a finite number above 0"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    policy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    given = [option.format(policy=policy) for option in options]
    monkeypatch.setattr(sys, "argv", ["rayrl-dt", "serve", *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and len(error.strip().splitlines()) == 1


def test_without_the_extra_the_remedy_is_named(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "starlette" else there(name, *more)
    )
    with pytest.raises(UserError, match=r"needs the extra: pip install 'rayrl_dt\[serve\]'"), serving(policy):
        pass


@pytest.mark.ray
def test_the_command_serves_until_it_is_interrupted(policy: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    said = tmp_path / "said"
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "rayrl_dt", "serve", str(policy), "--port", "0", "--idle-seconds", "1"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            # A shell that starts the tests in the background has Ctrl-C ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            while "serving:" not in said.read_text():
                assert process.poll() is None, said.read_text()
                time.sleep(0.1)
            url = said.read_text().split("serving: ")[1].split()[0]
            name = opened(url)["session"]
            time.sleep(1.1)
            late = requests.post(f"{url}/sessions/{name}/act", json={"observation": [0, 0, 0]}, timeout=60)
            assert late.status_code == 410 and "nobody used it for 1 s" in late.json()["error"]
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
    lines = said.read_text().splitlines()
    assert lines == [f"✓ serving: {url}", f"  next: curl {url}/health", f"✓ stopped: {url}"]
