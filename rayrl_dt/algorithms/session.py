"""Starting or joining Ray, quietly, with room for what a config asks for."""

from __future__ import annotations

import math
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rayrl_dt.algorithms.placement import check_run, requested
from rayrl_dt.cores import usable_cores
from rayrl_dt.errors import UserError, one_line

__all__ = ["address_of", "join_ray", "start_ray"]

_ANSWER_S = 20.0
# What Ray says where its first processes take longer than the 30 s that it waits for them.
_LATE = "timed out during startup"
_LOCAL = ("local", "auto")
# What Ray adds to its folder for a socket, of which Unix takes 107 bytes.
_LONGEST_FOLDER = 107 - len("/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")


def start_ray(config: Any = None, *, address: str | None = None) -> None:
    """Start Ray if this process has not joined one yet, and make sure that it can hold a run.

    A local Ray gets at least as many logical CPUs as the config asks for, so that a single run on a small
    machine shares its cores instead of waiting for ones that will never come. A config whose runners and learners are
    all in this process needs none, and none is started.

    Args:
        config: a `SequenceConfig`, or None for whatever is to come.
        address: of a running cluster; None for `RAY_ADDRESS`, else a local Ray.

    Raises:
        UserError: Ray does not start, nobody answers at the address, or the run would not fit.
    """
    import ray

    if config is not None and not requested(config):
        return
    if not ray.is_initialized():
        address = address_of(address)
        if address != "local":
            join_ray(address)
        else:
            needed = 1 if config is None else 1 + math.ceil(sum(b.get("CPU", 0.0) for b in requested(config)))
            # Without "local" Ray would join whatever cluster happens to run on this machine, and refuse `num_cpus`.
            join_ray("local", num_cpus=max(usable_cores(), needed), include_dashboard=False)
    if config is not None:
        check_run(config)


def address_of(address: str | None) -> str:
    """Return where Ray is joined: at the address given, at `RAY_ADDRESS`, else "local", a Ray of this process's own."""
    return address or os.environ.get("RAY_ADDRESS") or "local"


def join_ray(address: str, **options: Any) -> None:
    """Start Ray ("local") or join one; what goes wrong is told in one line.

    Args:
        address: as Ray takes it.
        options: of `ray.init`.

    Raises:
        UserError: it does not start, or nobody answers within 20 seconds.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    _check_address(address)
    if address == "local":
        _check_folder(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    try:
        with _at_home(address):
            _init(address, logging_level="ERROR", log_to_driver=False, **options)
    except OSError as error:
        if address != "local" and error.filename is None:
            raise _nobody(address, error) from error
        raise UserError(
            f"Ray did not start ({one_line(error)}); it writes below HOME and TMPDIR: set them to folders that can be "
            "written"
        ) from error
    except Exception as error:
        if address != "local":
            raise _nobody(address, error) from error
        raise UserError(
            f"Ray did not start ({one_line(error)}); see memory and cores with rayrl-dt doctor, end other Rays with "
            "ray stop, on a slow machine set RAY_gcs_server_port_wait_time_s=120, and try again"
        ) from error


def _init(address: str, **options: Any) -> None:
    """Call `ray.init`, twice where a local Ray was late: on a busy machine a run of a suite would be lost for it.

    What the first call has started ends with this process.
    """
    import ray

    try:
        ray.init(address=address, **options)
    except Exception as error:
        if address != "local" or _LATE not in str(error):
            raise
        ray.init(address=address, **options)


@contextmanager
def _at_home(address: str) -> Iterator[None]:
    """Have a local Ray listen to this machine alone, as it does where it knows no clusters (macOS, Windows)."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = before and address != "local"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _nobody(address: str, error: Exception) -> UserError:
    return UserError(
        f"no Ray to join at {address} ({one_line(error)}); start one there (ray start --head), or correct --address or "
        "RAY_ADDRESS"
    )


def _check_address(address: str) -> None:
    """Refuse an address where nobody answers; Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if address in _LOCAL:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"nobody answers at the Ray address {address} ({one_line(error)}); write HOST:6379 of a head node that is "
            "up, or auto on one of its nodes"
        ) from error


def _check_folder(folder: str) -> None:
    """Refuse a temporary folder that is too long for Ray."""
    if len(os.fsencode(folder)) > _LONGEST_FOLDER:
        raise UserError(
            f"Ray keeps sockets below {folder}: that path has {len(os.fsencode(folder))} bytes, and theirs leave "
            f"{_LONGEST_FOLDER}; set RAY_TMPDIR to a shorter one, such as /tmp"
        )
