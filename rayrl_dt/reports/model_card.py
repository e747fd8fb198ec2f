"""A model card as Hugging Face's hub reads it: what a policy is, what was measured, and how to act with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rayrl_dt.evaluation.result import EvaluationResult
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.interop.run_files import CRITIC_COPY, START_COPY, find_run
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.reports.document import Block, Heading, Paragraph, Table, number
from rayrl_dt.reports.evaluation_text import LEGEND, METRICS, describe, metrics, places_of
from rayrl_dt.reports.markdown import to_markdown
from rayrl_dt.reports.run_folder import RunFolder, load_runs

__all__ = ["CARD", "CARDS", "write_card"]

CARD = "README.md"
CARDS: dict[str, tuple[str, str]] = {
    "bundle": (
        "rayrl_dt",
        "from rayrl_dt import SequencePolicy\n\npolicy = SequencePolicy.load({folder})",
    ),
    "hf": (
        "transformers",
        "from rayrl_dt import SequencePolicy\nfrom rayrl_dt.interop.huggingface import import_huggingface\n\n"
        "policy = SequencePolicy(import_huggingface({folder}))",
    ),
}
"""By format of the export: the hub's name of the library, and how a policy is loaded."""
_UNSTATED = "unstated"
_ACT = """\
env = policy.spec.env.make(policy.spec.flattening)
observation, _ = env.reset(seed=0)
policy.reset({target})  # the raw return to ask for
action, achieved, over = policy.act(observation), 0.0, False
while not over:
    observation, reward, terminated, truncated, _ = env.step(action)
    achieved, over = achieved + reward, terminated or truncated
    action = policy.act(observation, reward)
print(f"achieved {{achieved:.0f}}")"""


def write_card(bundle: Bundle, folder: Path, *, form: str = "bundle", license: str = "other") -> Path:
    """Write a policy's model card.

    Args:
        bundle: of the policy; the run that it lies in says what was measured.
        folder: that the policy was exported to.
        form: of the export, from `CARDS`.
        license: of the weights, as the hub calls it; "other" for one that is not stated.
    """
    run = _run_of(bundle.path)
    measured = None if run is None else _measured(run, bundle.gradient_steps)
    front = yaml.safe_dump(_front(bundle.spec, measured, form, license), sort_keys=False, allow_unicode=True)
    card = folder / CARD
    blocks = _blocks(bundle, run, measured)
    card.write_text(f"---\n{front}---\n\n{to_markdown(blocks)}\n{_acting(bundle.spec, form)}")
    return card


def _run_of(policy: Path) -> RunFolder | None:
    """Return the run that a policy is of; the one that it was finetuned in is another's."""
    folder = find_run(policy)
    if folder is None or policy.resolve() in {
        (folder / copy).resolve() for copy in (START_COPY, CRITIC_COPY)
    }:
        return None
    return load_runs([folder])[0]


def _measured(run: RunFolder, gradient_steps: int | None) -> EvaluationResult | None:
    """Return the evaluation with the weights of a gradient step; what says no step is of the last ones."""
    for result in (run.last, run.best):
        if result is not None and result.gradient_steps in (None, gradient_steps):
            return result
    return None


def _front(spec: PolicySpec, measured: EvaluationResult | None, form: str, license: str) -> dict[str, Any]:
    """Return the front matter; see https://huggingface.co/docs/hub/model-cards."""
    environment = None if spec.env is None else spec.env.id
    tags = ["reinforcement-learning", "offline-rl", "decision-transformer", "rayrl_dt", spec.model.backbone]
    front: dict[str, Any] = {
        "library_name": CARDS[form][0],
        "pipeline_tag": "reinforcement-learning",
        "license": license,
        **({"license_name": _UNSTATED} if license == "other" else {}),
        "tags": list(dict.fromkeys([*tags, *([environment] if environment else [])])),
    }
    if measured is not None:
        front["model-index"] = [{"name": _title(spec), "results": [_result(measured)]}]
    return front


def _result(measured: EvaluationResult) -> dict[str, Any]:
    top = measured.highest
    figures = [
        (
            "mean_reward",
            f"{top.return_mean:.2f} +/- {top.return_std:.2f}",
            f"return asked for {top.target:.2f}",
        ),
        ("alignment_error", measured.alignment_error, "alignment error, raw return"),
        ("spearman", measured.spearman, "rank correlation of asked and achieved returns"),
    ]
    where = {"name": measured.env or "unknown", "type": measured.env or "unknown"}
    return {
        "task": {"type": "reinforcement-learning", "name": "reinforcement-learning"},
        "dataset": where,
        "metrics": [
            {"type": kind, "value": value, "name": name} for kind, value, name in figures if value is not None
        ],
    }


def _title(spec: PolicySpec) -> str:
    return f"{spec.model.backbone}-{'policy' if spec.env is None else spec.env.id.replace('/', '-')}"


def _blocks(bundle: Bundle, run: RunFolder | None, measured: EvaluationResult | None) -> list[Block]:
    spec = bundle.spec
    environment = "an environment that is not recorded" if spec.env is None else f"`{spec.env.id}`"
    blocks: list[Block] = [
        Heading(_title(spec), 1),
        Paragraph(
            f"A policy for {environment} that is asked for a return: backbone `{spec.model.backbone}`, "
            f"{spec.model.num_layers} layers of width {spec.model.embed_dim}, which acts on the last {spec.acts_on} "
            f"steps. It learned from `{spec.dataset}`"
            + (f" in {bundle.gradient_steps:,} gradient steps." if bundle.gradient_steps else ".")
        ),
    ]
    if spec.data_returns:
        returns = {name: number(float(value)) for name, value in spec.data_returns.items()}
        blocks.append(Table(["Raw returns of the data", *returns], [["", *returns.values()]]))
    blocks.append(Heading("What was measured"))
    if measured is None:
        blocks.append(
            Paragraph(
                "No evaluation is recorded with these weights; `rayrl-dt eval FOLDER --targets R1,R2` makes one."
            )
        )
    if run is None or run.last is None:
        return blocks
    if measured is None:
        blocks.append(Paragraph("What follows is of other gradient steps of the same run."))
    blocks += [Paragraph(sentence) for sentence in describe(run.last, run.best, data_max=run.data_max)]
    checkpoints = {"last": run.last, **({} if run.best is None else {"best": run.best})}
    rows = [[f"{name}{_step(result)}", *metrics(result)] for name, result in checkpoints.items()]
    blocks += [Table(["Checkpoint", *METRICS], rows), Paragraph(LEGEND)]
    for name, result in checkpoints.items():
        blocks += [Heading(f"The {name} checkpoint{_step(result)}", 3), _returns(result)]
    return blocks


def _step(result: EvaluationResult) -> str:
    return "" if result.gradient_steps is None else f", gradient step {result.gradient_steps:,}"


def _returns(result: EvaluationResult) -> Table:
    places = places_of(result)
    rows = [
        [
            "nothing" if result.targets_ignored else number(item.target, places),
            number(item.return_mean, places),
            number(item.return_std, places),
            str(item.episodes),
        ]
        for item in result.targets
    ]
    return Table(["Asked for", "Achieved", "Std", "Episodes"], rows)


def _acting(spec: PolicySpec, form: str) -> str:
    """Return the part of the card that says how to act, as code to copy."""
    asks = spec.model.target_rule != "predicted"
    target = f"target_return={spec.data_returns.get('p95', 0.0):.6g}" if asks else ""
    lines = [CARDS[form][1].format(folder='"."') + '  # or huggingface_hub.snapshot_download("USER/NAME")']
    if spec.env is None:
        lines += [
            f"policy.reset({target})",
            "action = policy.act(observation)  # then policy.act(observation, reward)",
        ]
    else:
        lines.append(_ACT.format(target=target))
    code = "\n".join(lines)
    how = "`pip install rayrl_dt`, then, with this folder as the current one:"
    return f"## How to act with it\n\n{how}\n\n```python\n{code}\n```\n"
