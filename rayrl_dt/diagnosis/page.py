"""The page about how trained policies use their return-to-go: attention, sensitivity, course of an episode, cost.

Policies of the same data share a section; those of different data share no axis and no table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from rayrl_dt.diagnosis import plots as diagnosis_plots
from rayrl_dt.diagnosis.examine import Examination, PolicyExamination
from rayrl_dt.reports.document import (
    MISSING,
    Block,
    Heading,
    Notice,
    Paragraph,
    Picture,
    Table,
    decimals,
    number,
)
from rayrl_dt.reports.page import write_page

__all__ = ["write_diagnosis"]


def write_diagnosis(examination: Examination, out: Path) -> Path:
    """Write `diagnosis.html`, `diagnosis.md` and the PNG files into `out`, and return the page's path.

    Raises:
        UserError: `out` cannot be a folder.
    """
    groups: dict[str, list[PolicyExamination]] = {}
    for policy in examination.policies:
        groups.setdefault(policy.dataset, []).append(policy)
    names = [policy.label for policy in examination.policies]
    subject = " and ".join(names) if len(names) < 3 else f"{len(names)} policies"
    blocks: list[Block] = [
        Paragraph(
            f"{examination.windows:,} windows of data \u00b7 {examination.episodes:,} episodes per target \u00b7 "
            f"seed {examination.seed}",
            "muted",
        )
    ]
    for index, (source, members) in enumerate(groups.items(), start=1):
        prefix = f"{index}-" if len(groups) > 1 else ""
        blocks += [Heading(f"Policies of {source}"), *_section(members, prefix)]
    return write_page(Path(out), "diagnosis", f"How {subject} use the return-to-go", blocks)


def _section(policies: Sequence[PolicyExamination], prefix: str) -> list[Block]:
    """Return the policies of one data set."""
    blocks: list[Block] = []
    remarks = [f"{policy.label}: {remark}" for policy in policies for remark in policy.remarks]
    if remarks:
        blocks.append(Notice("Keep in mind", remarks))
    felt = [(policy.sensitivity.at_data, policy.label) for policy in policies if policy.sensitivity]
    if felt:
        listed = ", ".join(f"{number(share, 2)} with {label}" for share, label in sorted(felt, reverse=True))
        blocks.append(
            Paragraph(
                "When the return that is asked for moves through the data's returns, the action moves through this "
                f"share of its range: {listed}."
            )
        )
    blocks += [
        Table(
            ["Policy", "Backbone", "Step", "Return share", "Sensitivity", "Left at the end", "Parameters"],
            [
                [
                    policy.label,
                    policy.backbone,
                    number(policy.gradient_steps),
                    number(policy.attention.return_share if policy.attention else None, 2),
                    number(policy.sensitivity.at_data if policy.sensitivity else None, 3),
                    number(policy.left, 3),
                    number(policy.cost.parameters),
                ]
                for policy in policies
            ],
        ),
        Paragraph(
            "Return share: attention on returns relative to an even spread over all tokens seen so far, so 1 is "
            "chance; between DT's one attention and RADT's two it is weighed by the size of what each adds. "
            "Sensitivity: how far the action moves with the target, in action ranges per range of the data's returns "
            "(5th to 95th percentile), at the data's own returns; a policy that ignores its target has 0. Left at the "
            "end: mean over the targets of |target - mean return|, in ranges of returns.",
            "muted",
        ),
    ]
    return [
        *blocks,
        *_attention(policies, prefix),
        *_sensitivity(policies, prefix),
        *_courses(policies, prefix),
        *_costs(policies),
    ]


def _attention(policies: Sequence[PolicyExamination], prefix: str) -> list[Block]:
    found = {policy.label: policy.attention for policy in policies if policy.attention is not None}
    if not found:
        return []
    rows = []
    for label, summary in found.items():
        for index, layer in enumerate(summary.layers, start=1):
            shares = [layer.shares.get(kind) for kind in ("return", "state", "action")]
            newest = layer.ages[0] / sum(layer.ages) if sum(layer.ages) > 0 else None
            gate = (
                [MISSING] * 3 if layer.seqra is None else [number(value, 3) for value in astuple(layer.seqra)]
            )
            rows.append(
                [
                    f"{label}, layer {index}",
                    *(number(share, 3) for share in shares),
                    number(newest, 3),
                    number(layer.mean_age, 2),
                    *gate,
                ]
            )
        even = [summary.uniform_shares.get(kind) for kind in ("return", "state", "action")]
        rows.append([f"{label}, even spread", *(number(share, 3) for share in even), *[MISSING] * 5])
    blocks: list[Block] = [
        Heading("What is attended to", 3),
        Picture(
            f"{prefix}attention.png",
            diagnosis_plots.attention_shares(found),
            "Share of each layer's attention on returns, states and actions; the numbers are in the table below",
            "Mean over heads and over the state tokens of real steps as queries, where the actions are read.",
        ),
        Table(
            ["", "Return", "State", "Action", "Newest return", "Mean age", "1 + \u03bb", "|\u03bb|", "Added"],
            rows,
        ),
        Paragraph(
            "Return, State, Action: shares of self-attention. Newest return: share of the attention to returns that "
            "the return of the same step gets; Mean age of the attended returns in steps. For RADT both are SeqRA's, "
            "the cross-attention to the returns; 1 + \u03bb is its mean gate, and Added the size of what it adds "
            "relative to the token that it is added to.",
            "muted",
        ),
    ]
    if any(summary.uniform_ages for summary in found.values()):
        figure = diagnosis_plots.return_ages(found)
        alt = "Share of the attention to returns against their age in steps, by layer"
        blocks.append(Picture(f"{prefix}return-ages.png", figure, alt))
    return blocks


def _sensitivity(policies: Sequence[PolicyExamination], prefix: str) -> list[Block]:
    found = {policy.label: policy.sensitivity for policy in policies if policy.sensitivity is not None}
    if not found:
        return []
    first = next(iter(found.values()))
    places = decimals(first.offsets)
    return [
        Heading("How far the action moves with the target", 3),
        Picture(
            f"{prefix}sensitivity.png",
            diagnosis_plots.sensitivity_curves(found),
            "Sensitivity of the action to the target; the numbers are in the table below",
            f"All returns-to-go of a window are moved together, by the offset and {number(first.delta)} to either "
            f"side; 1 means that a whole range of returns ({number(first.span)}) would move the action through its "
            "range.",
        ),
        Table(
            ["Offset of the target", *(number(offset, places) for offset in first.offsets)],
            [[label, *(number(value, 3) for value in curve.values)] for label, curve in found.items()],
        ),
    ]


def _courses(policies: Sequence[PolicyExamination], prefix: str) -> list[Block]:
    found = {policy.label: policy.courses for policy in policies if policy.courses}
    if not found:
        return []
    values = [value for items in found.values() for item in items for value in (item.target, item.left_mean)]
    places = decimals(values)
    rows = [
        [
            label,
            number(item.target, places),
            number(item.target - item.left_mean, places),
            number(item.left_mean, places),
            number(sum(abs(value) for value in item.left) / len(item.left), places),
            number(sum(item.lengths) / len(item.lengths), 1),
        ]
        for label, items in found.items()
        for item in sorted(items, key=lambda item: item.target)
    ]
    return [
        Heading("The return-to-go within an episode", 3),
        Picture(
            f"{prefix}return-to-go.png",
            diagnosis_plots.return_courses(found),
            "What is left of each target against the step; the ends are in the table below",
            "Mean over episodes; one that ended keeps its last value. A policy that obeys ends near zero: above, it "
            "stayed below its target, and below, it went past it.",
        ),
        Table(["Policy", "Target", "Achieved", "Left", "Mean |left|", "Mean length"], rows),
    ]


def _costs(policies: Sequence[PolicyExamination]) -> list[Block]:
    costs = [policy.cost for policy in policies]
    first = costs[0]
    header = [f"Acting, {slots} slot{'s' if slots > 1 else ''} (ms)" for slots in first.acting_ms]
    return [
        Heading("Cost", 3),
        Table(
            ["Policy", "Parameters", *header, "Training step (ms)"],
            [
                [
                    each.label,
                    number(each.parameters),
                    *(number(value, 2) for value in each.acting_ms.values()),
                    number(each.training_ms, 1),
                ]
                for each in costs
            ],
        ),
        Paragraph(
            f"Medians of repeats in turns; {first.device}, {first.precision}, torch threads: {first.threads}. Acting: "
            "the next actions with full windows, without the environments. Training step: forward, backward and AdamW "
            f"on {first.batch_size} windows.",
            "muted",
        ),
    ]
