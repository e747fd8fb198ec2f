"""A model card as Hugging Face's hub reads it: what a policy is, what was measured, and how to act with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rayrl_dt.envs.resolve import TRUSTED
from rayrl_dt.errors import UserError
from rayrl_dt.evaluation.result import EvaluationResult
from rayrl_dt.interop.bundle import Bundle
from rayrl_dt.interop.run_files import BEST, CRITIC_COPY, LAST, START_COPY, find_run, step_of
from rayrl_dt.interop.run_files import METRICS as RECORDS
from rayrl_dt.models.spec import PolicySpec
from rayrl_dt.reports.document import Block, Heading, Paragraph, Table, number
from rayrl_dt.reports.evaluation_text import LEGEND, METRICS, describe, metrics, places_of
from rayrl_dt.reports.markdown import to_markdown
from rayrl_dt.reports.run_folder import RunFolder, load_runs

__all__ = ["CARD", "CARDS", "OTHER", "keep_evaluations", "write_card"]

CARD = "README.md"


class _Form(NamedTuple):
    """What a card says of an export's format: the hub's name of the library, our extra, how a policy is loaded."""

    library: str
    extra: str | None
    load: str


CARDS = {
    "bundle": _Form(
        "rayrl_dt", None, 'from rayrl_dt import SequencePolicy\n\npolicy = SequencePolicy.load(".")'
    ),
    "hf": _Form(
        "transformers",
        "hf",
        "from rayrl_dt import SequencePolicy\nfrom rayrl_dt.interop.huggingface import import_huggingface\n\n"
        'policy = SequencePolicy(import_huggingface("."))',
    ),
}
"""By format of the export."""
OTHER = "other"
"""A license that is not stated, as the hub calls it."""
_UNSTATED = "unstated"
_EXTRAS = {"ale_py": "atari", "gymnasium_robotics": "robotics"}
"""By package of an environment: our extra with what it needs."""
_FILTERS = {
    "below_return": "only episodes of returns below {:g}",
    "top_percent": "the best episodes, which make up {:g}% of the steps",
    "delayed_reward": "each return paid at its episode's end",
}
"""Of the choices of data (`Bundle.data_settings`), those that leave something out or change it."""
_ACT = """\
{make}
observation, _ = env.reset(seed=0)
{reset}
action, achieved, over = policy.act(observation), 0.0, False
while not over:
    observation, reward, terminated, truncated, _ = env.step(action)
    achieved, over = achieved + reward, terminated or truncated
    action = policy.act(observation, reward)
print(f"achieved {{achieved:.0f}}")"""


def write_card(bundle: Bundle, folder: Path, *, form: str = "bundle", license: str = OTHER) -> Path:
    """Write a policy's model card.

    Args:
        bundle: of the policy; the run that it lies in says what was measured, or what `keep_evaluations` left in it.
        folder: that the policy was exported to.
        form: of the export, from `CARDS`.
        license: of the weights, as the hub calls it.
    """
    run = _run_of(bundle)
    measured = None if run is None else _measured(run, bundle.gradient_steps)
    front = yaml.safe_dump(_front(bundle.spec, measured, form, license), sort_keys=False, allow_unicode=True)
    card = folder / CARD
    blocks = _blocks(bundle, run, measured)
    card.write_text(f"---\n{front}---\n\n{to_markdown(blocks)}\n{_acting(bundle.spec, form)}")
    return card


def keep_evaluations(bundle: Bundle, folder: Path) -> None:
    """Leave what a policy's run measured in an exported bundle, which can then be exported again without the run."""
    run = _run_of(bundle)
    if run is None:
        return
    (folder / LAST).parent.mkdir(exist_ok=True)
    for name, result in ((LAST, run.last), (BEST, run.best)):
        if result is not None:
            (folder / name).write_text(json.dumps(result.to_json(), indent=2))
    own = _measured(run, bundle.gradient_steps)
    if own not in (None, run.last, run.best):
        record = {"gradient_steps": own.gradient_steps, "evaluation": own.to_json()}
        (folder / RECORDS).write_text(json.dumps(record) + "\n")


def _run_of(bundle: Bundle) -> RunFolder | None:
    """Return the run that a policy is of, or what an export left of it; the one that it starts is another's."""
    folder = find_run(bundle.path)
    if folder is None:
        folder = bundle.folder
        return load_runs([folder])[0] if (folder / LAST).is_file() else None
    copies = {(folder / copy).resolve() for copy in (START_COPY, CRITIC_COPY)}
    return None if bundle.path.resolve() in copies else load_runs([folder])[0]


def _measured(run: RunFolder, gradient_steps: int | None) -> EvaluationResult | None:
    """Return the evaluation with the weights of a gradient step; what says no step is of the last ones."""
    for result in (run.last, run.best, *_recorded(run, gradient_steps)):
        if result is not None and result.gradient_steps in (None, gradient_steps):
            return result
    return None


def _recorded(run: RunFolder, gradient_steps: int | None) -> Iterator[EvaluationResult]:
    """Yield what the training log says of a gradient step."""
    for record in run.records:
        if step_of(record) == gradient_steps and "evaluation" in record:
            with suppress(UserError):
                yield replace(EvaluationResult.from_json(record["evaluation"]), gradient_steps=gradient_steps)


def _front(spec: PolicySpec, measured: EvaluationResult | None, form: str, license: str) -> dict[str, Any]:
    """Return the front matter; see https://huggingface.co/docs/hub/model-cards."""
    environment = None if spec.env is None else spec.env.id
    kind = ["decision-transformer"] if spec.backbone.reads_returns else []
    tags = ["reinforcement-learning", "offline-rl", *kind, "rayrl_dt", spec.model.backbone]
    front: dict[str, Any] = {
        "library_name": CARDS[form].library,
        "pipeline_tag": "reinforcement-learning",
        "license": license,
        **({"license_name": _UNSTATED} if license == OTHER else {}),
        "tags": list(dict.fromkeys([*tags, *([environment] if environment else [])])),
    }
    if measured is not None:
        front["model-index"] = [{"name": _title(spec), "results": [_result(spec, measured)]}]
    return front


def _result(spec: PolicySpec, measured: EvaluationResult) -> dict[str, Any]:
    top = measured.highest
    asked = _is_asked(spec) and not measured.targets_ignored
    figures = [
        (
            "mean_reward",
            f"{top.return_mean:.2f} +/- {top.return_std:.2f}",
            f"return asked for {top.target:.2f}" if asked else "return",
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


def _is_asked(spec: PolicySpec) -> bool:
    return spec.backbone.reads_returns and spec.model.target_rule != "predicted"


def _kind(spec: PolicySpec) -> str:
    if not spec.backbone.reads_returns:
        return "imitates its data, whatever return it is asked for"
    return "is asked for a return" if _is_asked(spec) else "predicts the returns that it acts on"


def _title(spec: PolicySpec) -> str:
    return f"{spec.model.backbone}-{'policy' if spec.env is None else spec.env.id.replace('/', '-')}"


def _blocks(bundle: Bundle, run: RunFolder | None, measured: EvaluationResult | None) -> list[Block]:
    spec = bundle.spec
    environment = "an environment that is not recorded" if spec.env is None else f"`{spec.env.id}`"
    blocks: list[Block] = [
        Heading(_title(spec), 1),
        Paragraph(
            f"A policy for {environment} that {_kind(spec)}: backbone `{spec.model.backbone}`, "
            f"{spec.model.num_layers} layers of width {spec.model.embed_dim}, which acts on the last {spec.acts_on} "
            f"steps. It learned from `{spec.dataset}`{_filtered(bundle)}"
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
                "No evaluation is recorded with these weights; of a bundle, `rayrl-dt eval FOLDER --targets R1,R2 "
                f"--json FOLDER/{LAST}` makes one, which another export reads."
            )
        )
    if run is None or run.last is None:
        return blocks
    if measured is None:
        blocks.append(Paragraph("What follows is of other gradient steps of the same run."))
    blocks += [Paragraph(sentence) for sentence in describe(run.last, run.best, data_max=run.data_max)]
    own = None if measured in (run.last, run.best) else measured
    named = {"last": run.last, "best": run.best, "exported": own}
    checkpoints = {name: result for name, result in named.items() if result is not None}
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


def _filtered(bundle: Bundle) -> str:
    """Return which of the data a policy learned from, where that is not all of them as they are."""
    chosen = bundle.data_settings
    said = [
        text.format(chosen[name])
        for name, text in _FILTERS.items()
        if chosen.get(name) is not None and chosen[name] is not False
    ]
    return f" ({', '.join(said)})" if said else ""


def _acting(spec: PolicySpec, form: str) -> str:
    """Return the part of the card that says how to act, as code to copy."""
    target = f"target_return={spec.data_returns.get('p95', 0.0):.6g}"
    reset = f"policy.reset({target})  # the raw return to ask for" if _is_asked(spec) else "policy.reset()"
    lines = [f'{CARDS[form].load}  # or huggingface_hub.snapshot_download("USER/NAME")']
    env = None if spec.env is None else spec.env.for_evaluation
    packages = () if env is None else env.packages
    if env is None:
        lines += [reset, "action = policy.act(observation)  # then policy.act(observation, reward)"]
    else:
        strange = ", ".join(name for name in packages if name not in TRUSTED)
        trust, note = (".trusting()", f"  # it runs the code of {strange}") if strange else ("", "")
        make = f"env = policy.spec.env.for_evaluation{trust}.make(policy.spec.flattening){note}"
        lines.append(_ACT.format(make=make, reset=reset))
    code = "\n".join(lines)
    needed = (CARDS[form].extra, *(_EXTRAS.get(name) for name in packages))
    extras = ",".join(dict.fromkeys(name for name in needed if name))
    install = f'pip install -e ".[{extras}]"' if extras else "pip install -e ."
    how = f"With rayrl_dt installed (`{install}` in a checkout of it) and this folder as the current one:"
    return f"## How to act with it\n\n{how}\n\n```python\n{code}\n```\n"
