"""What answers HTTP requests: JSON in, JSON out. It runs in an actor of Ray Serve, which starts it again if it dies."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from rayrl_dt.envs import spaces_json
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.serving.limits import Limits
from rayrl_dt.serving.requests import Refused, observation_of, optional_number, read_body, seed_of, step_of
from rayrl_dt.serving.sessions import Answer, Sessions, Step

__all__ = ["PolicyServer"]

_LOG = logging.getLogger(__name__)
_SMALLEST_LIMIT = 64 * 1024
# More digits than a number of an observation needs, with its comma and blanks.
_BYTES_A_NUMBER = 32


@dataclass(frozen=True)
class _Route:
    """What is answered where; `ID` in a path stands for a session's name."""

    method: str
    path: str
    handler: str
    keys: tuple[str, ...] = ()

    def name_in(self, path: str) -> str | None:
        """Return the session's name in a path that fits, "" if there is none in it; None if it does not fit."""
        wanted, found = self.path.split("/"), path.rstrip("/").split("/")
        if len(wanted) != len(found) or any(w not in (f, "ID") for w, f in zip(wanted, found, strict=True)):
            return None
        return found[wanted.index("ID")] if "ID" in wanted else ""


_ROUTES = (
    _Route("GET", "/health", "_health"),
    _Route("GET", "/policy", "_policy"),
    _Route("POST", "/sessions", "_open", ("target_return", "seed")),
    _Route("POST", "/sessions/ID/act", "_act", ("observation", "reward", "step")),
    _Route("DELETE", "/sessions/ID", "_close"),
)


class PolicyServer:
    """Serves one policy.

    Args:
        bundle: reference to the `Bundle`, its networks loaded: what lies in its folder may be another by now.
        spec: how the policy acts.
        limits: of sessions and batches.
    """

    def __init__(self, bundle: ray.ObjectRef, spec: PolicySpec, limits: Limits) -> None:
        found: Bundle = ray.get(bundle)
        self._spec = spec
        self._gradient_steps = found.gradient_steps
        self._sessions = Sessions(found.model, spec, limits=limits)
        size = int(np.prod(self._spec.observation_space.shape or (1,)))
        self._largest = max(_SMALLEST_LIMIT, 2 * _BYTES_A_NUMBER * size)
        self._act_together.set_max_batch_size(limits.batch)
        self._act_together.set_batch_wait_timeout_s(limits.wait_ms / 1000)

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer a request; what is wrong with it is told in one line, with a status from 400 to 499."""
        try:
            route, name = _route(request.method, request.url.path)
            body = read_body(await self._content(request), route.keys)
            status, values = await getattr(self, route.handler)(name, body)
            return JSONResponse(values, status)
        except Refused as refused:
            wait = (
                {"Retry-After": f"{self._sessions.seconds_to_wait():.0f}"} if refused.status == 429 else None
            )
            return JSONResponse({"error": str(refused)}, refused.status, wait)
        except (
            Exception
        ):  # whatever a policy or an environment's space raises: one request fails, the server goes on
            _LOG.exception("%s %s", request.method, request.url.path)
            return JSONResponse({"error": "the server failed; its log says how"}, 500)

    async def _content(self, request: Request) -> bytes:
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > self._largest:
                raise Refused(
                    413, f"the body has more than the {self._largest} bytes that a request may have"
                )
        return body

    async def _health(self, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        limits = self._sessions.limits
        return 200, {
            "status": "ok",
            "sessions": self._sessions.taken,
            "most_sessions": limits.sessions,
            "idle_seconds": limits.idle_seconds,
            "actions": self._sessions.actions,
        }

    async def _policy(self, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        spec = self._spec
        return 200, {
            "environment": None if spec.env is None else spec.env.id,
            "backbone": spec.model.backbone,
            "gradient_steps": self._gradient_steps,
            "context_length": spec.acts_on,
            "observation_space": spaces_json.to_json(spec.recorded_space or spec.observation_space),
            "action_space": spaces_json.to_json(spec.recorded_actions or spec.action_space),
            "data_returns": spec.data_returns,
        }

    async def _open(self, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        session = self._sessions.open(optional_number(body, "target_return"), seed_of(body))
        return 201, {
            "session": session.name,
            "target_return": session.target,
            "idle_seconds": self._sessions.limits.idle_seconds,
        }

    async def _act(self, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self._sessions.find(name)
        step = Step(name, observation_of(self._spec, body), optional_number(body, "reward"), step_of(body))
        answer: Answer | Refused = await self._act_together(step)
        if isinstance(answer, Refused):
            raise answer
        return 200, {
            "action": np.asarray(answer.action).tolist(),
            "return_to_go": answer.return_to_go,
            "step": answer.step,
        }

    async def _close(self, name: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        session = self._sessions.close(name)
        return 200, {"session": session.name, "steps": session.steps}

    @serve.batch
    async def _act_together(self, steps: list[Step]) -> list[Answer | Refused]:
        return self._sessions.act(steps)


def _route(method: str, path: str) -> tuple[_Route, str]:
    """Return what answers a request, and the session that its path names.

    Raises:
        Refused: nothing does.
    """
    there = [(route, name) for route in _ROUTES if (name := route.name_in(path)) is not None]
    for route, name in there:
        if route.method == method:
            return route, name
    if there:
        raise Refused(405, f"{method} is not answered there; use {there[0][0].method}")
    places = ", ".join(route.path for route in _ROUTES)
    raise Refused(404, f"there is nothing at {path[:80]!r}; there are {places}")
