"""`rayrl-dt serve`."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from rayrl_dt.cli.console import console, finish
from rayrl_dt.cli.options import ContextLength, Guidance, Policy

__all__ = ["serve"]


def serve(
    run: Policy,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; 0.0.0.0 for every network. Nobody is asked for a password."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for one that is free.")] = 8000,
    sessions: Annotated[int, typer.Option(help="Most sessions that may be open at once.")] = 1000,
    idle_seconds: Annotated[
        float, typer.Option(help="End a session that nobody has used for so many seconds.")
    ] = 600.0,
    batch: Annotated[int, typer.Option(help="Most steps that one forward answers.")] = 256,
    wait_ms: Annotated[
        float, typer.Option(help="Milliseconds that the first step of a batch waits for others.")
    ] = 2.0,
    context_length: ContextLength = None,
    action_selection: Annotated[
        str | None,
        typer.Option(help="How discrete actions are chosen: sample or mode; as in training by default."),
    ] = None,
    guidance: Guidance = None,
    cpus: Annotated[float, typer.Option(help="CPUs that the policy may use.")] = 1.0,
    address: Annotated[str | None, typer.Option(help="Address of a running Ray cluster to serve on.")] = None,
) -> None:
    """Serve a policy over HTTP with Ray Serve: sessions with a target each, answered in batches. Ctrl-C ends it.

    Examples:
      rayrl-dt serve runs/dt_pendulum-seed1   (needs the extra: pip install -e ".[serve]")
      rayrl-dt serve runs/dt_pendulum-seed1 --port 8080 --sessions 200 --idle-seconds 60
    """
    from rayrl_dt.deployment.start import serving
    from rayrl_dt.runs.interrupts import on_interrupt
    from rayrl_dt.serving.limits import Limits

    limits = Limits(sessions=sessions, idle_seconds=idle_seconds, batch=batch, wait_ms=wait_ms)
    stop = threading.Event()
    with (
        on_interrupt(stop.set),
        console.status("starting...") as status,
        serving(
            run,
            host=host,
            port=port,
            limits=limits,
            address=address,
            cpus=cpus,
            context_length=context_length,
            action_selection=action_selection,
            guidance=guidance,
        ) as url,
    ):
        status.stop()
        finish("serving:", url, then=f"curl {url}/health")
        stop.wait()
    finish("stopped:", url)
