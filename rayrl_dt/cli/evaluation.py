"""`rayrl-dt eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from rayrl_dt.cli.console import console, finish, new_file, quoted
from rayrl_dt.cli.options import ContextLength, JsonFile, OtherEnv, Policy, TrustEnvironment, place
from rayrl_dt.cli.progress import progress_bar
from rayrl_dt.errors import whole

if TYPE_CHECKING:
    from rayrl_dt.evaluation.result import EvaluationResult
    from rayrl_dt.interop.bundle import Bundle

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("eval")(evaluate)


def evaluate(
    run: Policy,
    targets: Annotated[
        str, typer.Option(help='Returns to ask for: "dataset:7", "dataset:max" or raw ones, "R1,R2,...".')
    ] = "dataset:7",
    episodes: Annotated[int, typer.Option(help="Episodes to run for each target.")] = 20,
    env: OtherEnv = None,
    trust_environment: TrustEnvironment = False,
    seed: Annotated[int, typer.Option(help="Seed of the environments and of sampled actions.")] = 0,
    context_length: ContextLength = None,
    action_selection: Annotated[
        str | None,
        typer.Option(
            "--action-selection",
            "--actions",
            help="How discrete actions are chosen: sample (softmax) or mode (most likely); as in training by default.",
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="How strongly the return is followed, of policies trained with return_dropout: 1 as it was trained, "
            "more beyond, 0 as if nothing were asked for; as in training by default."
        ),
    ] = None,
    across_versions: Annotated[
        bool, typer.Option(help="Normalize with the reference scores of another version of the environment.")
    ] = False,
    action_gradient: Annotated[
        str | None,
        typer.Option(help="Also move actions up the bundle's critic, as in eta=0.0001,n=10,rule=plain."),
    ] = None,
    sampled_actions: Annotated[
        str | None,
        typer.Option(
            help="Also take the best of so many sampled actions by the bundle's critic, as in 50 or n=50,noise=0.1."
        ),
    ] = None,
    double_check: Annotated[
        str | None,
        typer.Option(
            help="Also ask for n returns around the target and take the action that the bundle's critic chooses, as in "
            "n=32,spread=0.25,mode=align (or max)."
        ),
    ] = None,
    frames: Annotated[
        bool,
        typer.Option(
            "--frames",
            help="Also play an episode at the lowest, middle and highest target of a policy of images, for the report.",
        ),
    ] = False,
    video: Annotated[
        Path | None,
        place(
            help="Also film an episode at the lowest, middle and highest target: FILE.gif, .png or .webp, or a folder."
        ),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Ask a policy for several returns and measure what it achieves. Needs no Ray.

    It acts as it was evaluated in training: on as many steps, with actions selected alike.
    With an action gradient, sampled actions, a double check or guidance, the same checkpoint is always evaluated
    without, too.

    Examples:
      rayrl-dt eval runs/hopper --targets dataset:7 --episodes 20 --json runs/hopper/result.json
      rayrl-dt eval runs/hopper --targets dataset:max --action-gradient eta=0.0001,n=10,rule=plain
      rayrl-dt eval runs/hopper --guidance 2
      rayrl-dt eval runs/hopper --targets dataset:3 --episodes 1 --video runs/hopper/hopper.gif
    """
    from rayrl_dt.interop.bundle import Bundle
    from rayrl_dt.policy.action_gradient import ActionGradient
    from rayrl_dt.policy.double_check import DoubleCheck
    from rayrl_dt.policy.refinement import choose_refinement
    from rayrl_dt.policy.sampled_actions import SampledActions

    gradient = None if action_gradient is None else ActionGradient.parse(action_gradient)
    sampled = None if sampled_actions is None else SampledActions.parse(sampled_actions)
    checked = None if double_check is None else DoubleCheck.parse(double_check)
    settings = choose_refinement(gradient, sampled, checked)
    whole("--episodes", episodes, least=1)
    bundle = Bundle.open(run)
    if trust_environment:
        bundle = bundle.trusting()
    options: dict[str, Any] = {
        "targets": targets,
        "episodes_per_target": episodes,
        "env": env,
        "seed": seed,
        "context_length": context_length,
        "action_selection": action_selection,
        "guidance": guidance,
        "across_versions": across_versions,
    }
    tried: tuple[str, str, EvaluationResult, dict[str, Any]] | None = None
    if settings is not None:
        # First what needs a critic: without one it fails at once.
        ways = {"action_gradient": gradient, "sampled_actions": sampled, "double_check": checked}
        how = next(name for name, way in ways.items() if way is not None)
        words = action_gradient or sampled_actions or double_check or ""
        tried = "n = 0", words, _evaluate(bundle, **ways, **options), {how: settings.to_json()}
    elif guidance is not None and guidance != 1:
        guided = _evaluate(bundle, **options)
        tried = "guidance 1", f"guidance {guidance:g}", guided, {"guidance": guidance}
        options["guidance"] = 1.0
    played = {key: options[key] for key in ("env", "seed", "context_length", "action_selection")}
    if frames:
        _record(bundle, targets, **played)
    if video is not None:
        _film(bundle, targets, video, guidance=guidance, **played)
    result = _evaluate(bundle, **options)
    values = result.to_json()
    if tried is not None:
        console.print(f"[bold]{tried[0]}[/bold]")
    show(result)
    if tried is not None:
        _, words, refined, how_json = tried
        console.print(f"[bold]{escape(words)}[/bold]")
        show(refined)
        values = {**refined.to_json(), **how_json, "unrefined": values}
    for warning in result.warnings:
        console.print(f"[yellow]![/yellow] {escape(warning)}", soft_wrap=True)
    if json_file is not None:
        new_file(json_file).write_text(json.dumps(values, indent=2))
        finish("result:", json_file)
        return
    finish("evaluated:", run, then=f"rayrl-dt diagnose {quoted(run)}")


def _evaluate(bundle: Bundle, **options: Any) -> EvaluationResult:
    """Evaluate with a progress bar; the options are those of `evaluate_bundle`."""
    from rayrl_dt.evaluation.evaluate import evaluate_bundle

    with progress_bar("episodes") as progress:
        return evaluate_bundle(bundle, progress=progress, **options)


def _record(bundle: Bundle, targets: str, **options: Any) -> None:
    """Keep what the policy sees at three targets in its run folder."""
    from rayrl_dt.errors import UserError
    from rayrl_dt.evaluation.frame_strip import record_strip
    from rayrl_dt.interop.run_files import FRAMES, find_run

    run = find_run(bundle.path)
    if run is None:
        raise UserError(
            f"--frames are kept for the report of a run, and {bundle.path} lies in none; evaluate the run's folder"
        )
    record_strip(bundle, targets, **options).save(run / FRAMES)
    finish("frames:", run / FRAMES, then=f"rayrl-dt report {quoted(run)}")


def _film(bundle: Bundle, targets: str, video: Path, **options: Any) -> None:
    """Write a video of the policy at three targets."""
    from rayrl_dt.evaluation.film import film
    from rayrl_dt.reports.film import video_file, write_film

    file = video_file(video)  # a name that does not do is told before anything is played
    with console.status("filming..."):
        write_film(film(bundle, targets, **options), file)
    finish("video:", file)


def show(result: EvaluationResult) -> None:
    """Print an evaluation as a table and a line."""
    table = Table("asked", "achieved", "± std", "length", "episodes", box=None, header_style="bold")
    for target in result.targets:
        table.add_row(
            "nothing" if result.targets_ignored else f"{target.target:,.1f}",
            f"{target.return_mean:,.1f}",
            f"{target.return_std:,.1f}",
            f"{target.length_mean:,.0f}",
            str(target.episodes),
        )
    console.print(table)
    relative = result.alignment_error_relative
    parts = []
    if result.alignment_error is not None:
        parts.append(f"alignment error {result.alignment_error:,.4g}")
    if relative is not None:
        parts.append(f"relative {relative:.3f}")
    if result.spearman is not None:
        parts.append(f"Spearman {result.spearman:.2f}")
    if result.normalized_score is not None:
        where = "" if result.targets_ignored else " at the highest target"
        parts.append(f"normalized score{where} {result.normalized_score:.1f}")
    if parts:
        console.print("; ".join(parts))
    if result.score_note:
        console.print(f"[dim]{escape(result.score_note)}[/dim]", soft_wrap=True)
