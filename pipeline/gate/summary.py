"""A gate in words: the summary for a pull request (Markdown), and what the terminal shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.gate.checks import UNITS, UNQUIET, number_beside, quantity_text
from pipeline.gate.record import Check, GateRecord
from pipeline.page.markdown import cell
from pipeline.page.numbers import NONE

if TYPE_CHECKING:
    from rich.console import Console

HEADLINES = {"pass": "may ship", "fail": "must not ship", "not decided": "is not decided"}
MARKS = {"pass": "✅ pass", "fail": "❌ fail", "not decided": "⚠️ not decided"}
STYLES = {"pass": "green", "fail": "bold red", "not decided": "bold yellow"}


def headline(gate: GateRecord) -> str:
    """The decision in a few words: ``int8@onnxruntime may ship``."""
    return f"{gate.candidate} {HEADLINES[gate.outcome]}"


def summary_from_gate(gate: GateRecord) -> str:
    """The text of gate.md."""
    lines = [f"### {MARKS[gate.outcome].split()[0]} {cell(headline(gate))}", ""]
    lines += ["| budget | measured | interval | outcome |", "|---|---:|---:|---|"]
    for check in gate.checks:
        value, interval = numbers_of(check)
        cells = (cell(budget_of(check, gate)), value, interval, MARKS[check.outcome])
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    lines += [f"- {cell(reason)}" for reason in reasons(gate)]
    lines += [f"- {cell(step.sentence)}" for step in gate.steps]
    lines += [f"- {cell(note)}" for note in gate.notes]
    lines += ["", f"{cell(gate.advice)}", ""] if gate.advice else [""]
    against = f" Baseline: {cell(gate.baseline)}{_since(gate)}." if gate.baseline else ""
    lines += [f"<sub>{cell(gate.machine.describe())}.{against} {cell(gate.protocol)}</sub>", ""]
    return "\n".join(lines)


def reasons(gate: GateRecord) -> list[str]:
    """A sentence for each budget that did not pass; one for all that are not decided for the same want of quiet."""
    heads_by_tail: dict[str, list[str]] = {}
    for check in gate.checks:
        if check.outcome != "pass":
            head, mark, why = check.sentence.partition(UNQUIET)
            tail = why + (f"; {check.advice}" if check.advice else "")
            heads_by_tail.setdefault(tail if mark else f"{head}{tail}", []).append(head if mark else "")
    return [_reason(tail, heads) for tail, heads in heads_by_tail.items()]


def _reason(tail: str, heads: Sequence[str]) -> str:
    """What kept one budget or several from being decided, before the numbers of several."""
    if not any(heads):
        return tail
    if len(heads) == 1:
        return f"{heads[0]}{UNQUIET}{tail}"
    measured = "; ".join(heads)
    return f"this machine was too noisy to decide {len(heads)} budgets: {tail}. Measured nevertheless: {measured}"


def budget_of(check: Check, gate: GateRecord) -> str:
    """The budget, with the engine's name where it is not the candidate's and not in it."""
    named = check.variant in check.budget or check.variant == gate.candidate
    return check.budget if named else f"{check.budget} ({check.variant})"


def numbers_of(check: Check) -> tuple[str, str]:
    """The estimate with its unit, and the interval."""
    if check.estimate is None or check.bound is None:
        return NONE, NONE
    unit = " x" if check.relative else f" {UNITS[check.quantity]}" if check.quantity in UNITS else ""
    value = f"{quantity_text(check.quantity, check.estimate, check.bound)}{unit}"
    if check.low == check.high and check.low is not None:
        return value, "exact"
    low, high = (NONE if end is None else number_beside(end, check.bound) for end in (check.low, check.high))
    return value, f"{low} to {high}"


def print_gate(gate: GateRecord, console: Console) -> None:
    """The decision, and a row per budget, in 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("budget", overflow="fold")
    table.add_column("measured", justify="right")
    table.add_column("interval", justify="right")
    table.add_column("", no_wrap=True)
    for check in gate.checks:
        value, interval = numbers_of(check)
        style = STYLES[check.outcome]
        table.add_row(Text(budget_of(check, gate)), value, interval, Text(check.outcome, style=style))
    console.print(table)
    for line in [*(step.sentence for step in gate.steps), *gate.notes, gate.advice]:
        if line:
            console.print(Text(line, style="dim"))
    console.print(Text(headline(gate), style=STYLES[gate.outcome]))


def _since(gate: GateRecord) -> str:
    return f", set {gate.baseline_set[:10]}" if gate.baseline_set else ""
