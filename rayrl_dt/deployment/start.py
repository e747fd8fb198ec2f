"""Starting a policy's server with Ray Serve, and stopping it."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rayrl_dt.algorithms.placement import CPUS_REMEDY, check_room
from rayrl_dt.algorithms.session import address_of, start_ray
from rayrl_dt.errors import UserError, number, one_line, whole
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.serving.limits import Limits

__all__ = ["serving"]

APPLICATION = "rayrl_dt"
# What `ray[serve]` brings and `ray[rllib,tune]` does not.
_NEEDED = ("starlette", "fastapi", "uvicorn", "aiohttp")
_LOG = {"log_level": "WARNING", "enable_access_log": False}
# Steps wait for their batch in the server, which refuses what is too much itself.
_ONGOING = 100_000


@contextmanager
def serving(
    path: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    address: str | None = None,
    cpus: float = 1,
    context_length: int | None = None,
    action_selection: str | None = None,
    guidance: float | None = None,
) -> Iterator[str]:
    """Serve a policy over HTTP for as long as the block runs.

    Args:
        path: of a run, checkpoint or bundle, which is read once: a later one there is not served.
        host: address to listen on.
        port: to listen on; 0 for one that is free.
        limits: of sessions and batches.
        address: of a Ray cluster; None for a Ray of its own, or the one that this process has joined.
        cpus: that the server may use.
        context_length: as for `SequencePolicy`.
        action_selection: as for `SequencePolicy`.
        guidance: as for `SequencePolicy`.

    Yields:
        Where it answers, as in "http://127.0.0.1:8000".

    Raises:
        UserError: the extra is not installed, there is no policy at `path`, it cannot act so, the port is taken, or Ray
            does not start or has no room.
    """
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        raise UserError("serving needs the extra: pip install 'rayrl_dt[serve]'")
    bundle = Bundle.open(path)
    bundle.model  # noqa: B018 (weights that do not fit are told here, and not by an actor)
    spec = bundle.spec.acting(
        context_length=context_length, action_selection=action_selection, guidance=guidance
    )
    cpus = number("--cpus", cpus, above=0.0)
    port = _free_port(host, whole("--port", port, most=65_535))
    import ray

    begun = not ray.is_initialized()
    own = begun and address_of(address) == "local"
    start_ray(address=address)
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        _check_alone()
        check_room([{"CPU": cpus}], what="the server", remedy=CPUS_REMEDY)
        try:
            # A server that dies is started again with what was checked here, whatever lies at the path by then.
            held = ray.put(bundle)
            _start(held, spec, limits or Limits(), host=host, port=port, cpus=cpus)
            yield _url(host, port)
        finally:
            if not own:  # one of our own ends with all that runs in it
                serve.shutdown()
    finally:
        if begun:
            ray.shutdown()


def _start(held: Any, spec: PolicySpec, limits: Limits, *, host: str, port: int, cpus: float) -> None:
    """Start Ray Serve with one server in it, and wait until it answers."""
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions

    from rayrl_dt.deployment.server import PolicyServer

    deployment = serve.deployment(
        PolicyServer,
        logging_config=_LOG,
        max_ongoing_requests=_ONGOING,
        ray_actor_options={"num_cpus": cpus},
    )
    try:
        serve.start(http_options=HTTPOptions(host=host, port=port), logging_config=_LOG)
        serve.run(deployment.bind(held, spec, limits), name=APPLICATION, route_prefix="/")
    except (RuntimeError, TimeoutError, RayError) as error:
        cause = getattr(error, "cause", None) or error
        raise UserError(
            f"the server did not start ({one_line(cause)}); see that Ray has {cpus:g} CPUs free, that its nodes have "
            f"this package, and that port {port} is free on them"
        ) from error


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _check_alone() -> None:
    """Refuse a cluster whose Ray Serve is somebody else's: its port is not ours, and we would end it."""
    import ray

    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return
    raise UserError(
        "Ray Serve runs on that Ray already, and a server here would end with it; stop it (serve shutdown), or leave "
        "out --address and RAY_ADDRESS for a Ray of its own"
    )


def _free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0.

    Raises:
        UserError: somebody listens there already, or the host is none of this machine.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f"port {port} of {host} is taken; choose another --port, or 0 for any"
                ) from error
            raise UserError(
                f"cannot listen on {host}, port {port} ({one_line(error)}); 127.0.0.1 is this machine alone, 0.0.0.0 "
                "every network of it, and ports below 1024 are the administrator's"
            ) from error
        found: int = tried.getsockname()[1]
        return found
