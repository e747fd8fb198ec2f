"""The commands, and how errors leave the program: one line and exit status 2 for bad input."""

from __future__ import annotations

import errno
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from rayrl_dt.cli import (
    acting,
    align,
    config,
    configs,
    critic,
    data,
    diagnosis,
    evaluation,
    experiments,
    serving,
    train,
    tuning,
    watch,
)
from rayrl_dt.cli.console import (
    command_line,
    console,
    errors,
    finish,
    new_file,
    quiet_libraries,
    quoted,
    show_table,
)
from rayrl_dt.cli.options import JsonFile, Policy, place
from rayrl_dt.errors import TrainingDiverged, UserError
from rayrl_dt.versions import package_versions

__all__ = ["app", "main"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

app = typer.Typer(
    name="rayrl-dt",
    help="Offline-to-online RL with return-conditioned transformers on Ray.\n\n"
    "Start here: [bold]rayrl-dt quickstart[/bold]",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data.app, name="data")
app.add_typer(configs.app, name="configs")
train.register(app)
evaluation.register(app)
experiments.register(app)
diagnosis.register(app)
critic.register(app)
app.command()(config.config)
app.command()(align.align)
app.command()(tuning.tune)
app.command()(acting.act)
app.command()(serving.serve)
app.command()(watch.watch)


def _print_versions(asked: bool) -> None:
    if not asked:
        return
    versions = package_versions()
    named = (name for name in ("rayrl_dt", "python", "torch", "ray") if name in versions)
    console.print(", ".join(f"{name} {versions[name]}" for name in named), soft_wrap=True)
    raise typer.Exit


@app.callback()
def _prepare(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_versions, is_eager=True, help="Print versions and exit."),
    ] = False,
) -> None:
    quiet_libraries()


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders that the page is about.")],
    out: Annotated[Path | None, place(help="Folder to write the page to; RUN/report by default.")] = None,
) -> None:
    """Write one HTML page (plus PNG and markdown) about one or several runs.

    Example: rayrl-dt report runs/dt-0 runs/dt-1 --out runs/comparison
    """
    from rayrl_dt.reports.run_report import write_report

    page = write_report(runs, out or runs[0] / "report")
    finish("report written:", page, then=f"rayrl-dt diagnose {quoted(*runs)}")


def _check_empty(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} exists and is not empty; choose another --out")


@app.command()
def export(
    run: Policy,
    out: Annotated[Path, place(help="Folder to write, new or empty.")],
    format: Annotated[
        str,
        typer.Option(
            help="Format to write: bundle (safetensors and JSON), hf (Hugging Face) or onnx (a graph)."
        ),
    ] = "bundle",
    license: Annotated[
        str | None,
        typer.Option(help="License of the weights for the model card: an identifier of the hub, as in mit."),
    ] = None,
) -> None:
    """Copy a trained policy out of its run, in our format, Hugging Face's or as an ONNX graph.

    A bundle and a Hugging Face checkpoint get a model card, README.md, with what the run measured.

    Examples:
      rayrl-dt export runs/hopper --out runs/hopper-policy
      rayrl-dt export runs/hopper --format hf --out runs/hopper-hf   (needs the extra: pip install -e ".[hf]")
      rayrl-dt export runs/hopper --format onnx --out runs/hopper-onnx   (needs the extra: pip install -e ".[onnx]")
    """
    from rayrl_dt.errors import suggest
    from rayrl_dt.interop import huggingface, onnx
    from rayrl_dt.interop.bundle import Bundle
    from rayrl_dt.reports.model_card import CARDS, OTHER, keep_evaluations, write_card

    ways = {
        "hf": (huggingface.export_huggingface, "Hugging Face checkpoint:"),
        "onnx": (onnx.export_onnx, "ONNX graph:"),
    }
    if format not in ("bundle", *ways):
        raise UserError(f"--format is {format!r}.{suggest(format, ('bundle', *ways))}")
    if license is not None and format not in CARDS:
        raise UserError(
            f"--license is {license!r}, and --format {format} has no model card to say so; leave it out, or choose "
            f"--format {' or '.join(CARDS)}"
        )
    _check_empty(out)
    bundle = Bundle.open(run)
    model = bundle.model  # a broken bundle is not worth copying
    if format in ways:
        write, name = ways[format]
        written = write(model, out)
        if format in CARDS:
            write_card(bundle, out, form=format, license=license or OTHER)
        finish(name, written)
        return
    bundle.copy_to(out)
    keep_evaluations(bundle, out)
    write_card(bundle, out, form=format, license=license or OTHER)
    finish(
        "policy bundle:",
        out,
        then=f"python -c {shlex.quote(f'import rayrl_dt; rayrl_dt.SequencePolicy.load({str(out)!r})')}",
    )


@app.command(name="import")
def import_policy(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a Hugging Face Decision Transformer.")],
    out: Annotated[Path, place(help="Folder to write the policy bundle to.")],
    dataset: Annotated[
        str | None, typer.Option(help="Data source that it was trained on; our own exports know theirs.")
    ] = None,
    return_scale: Annotated[
        float | None, typer.Option(help="What returns were divided by in its training; often 1000.")
    ] = None,
    context_length: Annotated[int | None, typer.Option(help="Context length K of its training; 20.")] = None,
    actions: Annotated[
        str | None,
        typer.Option(
            help="What its actions in [-1, 1] are: raw (the environment's own, the default) or scaled to its bounds."
        ),
    ] = None,
) -> None:
    """Read a Decision Transformer of Hugging Face as a policy, to be evaluated, refined and finetuned.

    Example: rayrl-dt import dt-hopper-medium --dataset d4rl:hopper_medium-v2.hdf5 --return-scale 1000 --out runs/theirs
    """
    from rayrl_dt.interop.bundle import save_bundle
    from rayrl_dt.interop.huggingface import ACTIONS, import_huggingface
    from rayrl_dt.settings import choice, count, real

    for name, value, check in (
        ("--return-scale", return_scale, real(above=0)),
        ("--context-length", context_length, count(1)),
        ("--actions", actions, choice(*ACTIONS)),
    ):
        if value is not None:
            check(name, value)
    _check_empty(out)
    model = import_huggingface(
        checkpoint, context_length=context_length, store=dataset, return_scale=return_scale, actions=actions
    )
    save_bundle(model.spec, model.state_dict(), out, command=command_line())
    finish("policy bundle:", out, then=f"rayrl-dt eval {quoted(out)}")


@app.command()
def bench(
    what: Annotated[
        str, typer.Argument(help="What to measure: train, rollout, sampler, learner, online, beyond or all.")
    ] = "all",
    backbone: Annotated[str, typer.Option(help="Backbone of the model: dt, radt, ...")] = "dt",
    seconds: Annotated[float, typer.Option(help="Seconds that each measurement takes.")] = 8.0,
    threads: Annotated[int, typer.Option(help="Number of torch's threads.")] = 1,
    json_file: JsonFile = None,
) -> None:
    """Measure training, rollout and sampling speed on this machine.

    Examples:
      rayrl-dt bench all --json runs/bench.json
      rayrl-dt bench train --backbone radt
      rayrl-dt bench online
      rayrl-dt bench beyond
    """
    import json

    from rayrl_dt import benchmarks

    with console.status("measuring...") as status:
        results = benchmarks.run(
            what,
            backbone=backbone,
            seconds=seconds,
            threads=threads,
            progress=lambda name: status.update(f"measuring {name}..."),
        )
    rows = [(result.name, f"{result.value:,.4g}", result.unit, result.detail) for result in results]
    show_table(("what", "value", "unit", "detail"), rows)
    if json_file is not None:
        new_file(json_file).write_text(json.dumps([result.to_json() for result in results], indent=2))
        finish("measurements:", json_file)


@app.command()
def doctor(
    storage: Annotated[
        str | None,
        typer.Option(help="Folder, or URI as in s3://bucket/runs, that runs are to be written to."),
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Data source that runs are to read.")] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster to check node by node; auto for the one of this node."),
    ] = None,
    ray: Annotated[bool, typer.Option(help="Start or join Ray, and check it too.")] = True,
) -> None:
    """Check versions, devices, Ray and storage; say what to do about each fault.

    With an address every node of the cluster is asked: versions, storage, data, GPUs.

    Examples:
      rayrl-dt doctor --storage runs
      rayrl-dt doctor --address auto --storage /shared/runs --dataset recipe:pendulum-mixed
    """
    from rayrl_dt.doctor import diagnose

    with console.status("checking..."):
        checks = diagnose(storage=storage, dataset=dataset, address=address, start_ray=ray)
    marks = {"ok": "[green]✓[/green]", "warning": "[yellow]![/yellow]", "error": "[red]✗[/red]"}
    rows = []
    for check in checks:
        remedy = f"\n[bold]→ {escape(check.remedy)}[/bold]" if check.remedy else ""
        rows.append((marks[check.status], check.name, escape(check.found) + remedy))
    show_table(("", "check", "found"), rows)
    failed = sum(check.status == "error" for check in checks)
    if failed:
        raise UserError(f"{failed} checks failed; the remedies stand beside them")
    tune = f"rayrl-dt tune CONFIG.yaml --address {address} --out {(storage or 'runs').rstrip('/')}/CONFIG"
    finish("all that is needed is here", then="rayrl-dt quickstart" if address is None else tune)


def main() -> None:
    """Run the command line; the console script's entry point."""
    try:
        status = app(standalone_mode=False)
    except UserError as error:
        # Brackets are not markup in "pip install 'rayrl_dt[hf]'".
        errors.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:  # not about a file that somebody named
            raise
        reason = escape(f"{error.filename or 'the disk'}: {error.strerror}")
        remedy = "make room, or name another place" if error.errno in _FULL else "name another place"
        errors.print(f"[red]error:[/red] {reason}; {remedy}", soft_wrap=True)
        sys.exit(2)
    except TrainingDiverged as error:
        errors.print(f"[red]diverged:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        errors.print("interrupted")
        sys.exit(130)
    except Exception as error:  # Click's usage errors know how to show themselves
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            sys.exit(error.exit_code)
        raise
    # Click returns the status of typer.Exit, and otherwise what the command returned.
    sys.exit(status if isinstance(status, int) else 0)
