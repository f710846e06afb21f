"""A night in words: for the terminal, and as Markdown for a step summary. Who must act comes first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.nightly.record import LineRecord, NightRecord
from pipeline.page.markdown import cell

if TYPE_CHECKING:
    from rich.console import Console

ACTS = {
    1: "a bug of trtforge",
    4: "a tool failed on the model",
    2: "the plan or its data is wrong",
    3: "the machine lacks something",
    5: "must not ship",
    6: "not decided",
}
"""Exit status -> what the matter is, the most urgent first."""


def headline(night: NightRecord) -> str:
    """The night in a sentence."""
    lines = [line for line in night.lines if line.state != "left out"]
    bad = sum(line.status != 0 for line in lines)
    made, served = (sum(line.state == state for line in lines) for state in ("made", "served"))
    parts = [f"{len(lines)} {'line' if len(lines) == 1 else 'lines'}", f"{made} made", f"{served} unchanged"]
    return f"Night {night.night}: {', '.join(parts)}; {f'{bad} to look at' if bad else 'all good'}"


def to_act_on(night: NightRecord) -> list[tuple[str, list[LineRecord]]]:
    """The lines that somebody must look at, by what the matter is, the most urgent first."""
    groups = [(words, [line for line in _asked(night) if line.status == status]) for status, words in ACTS.items()]
    others = [line for line in _asked(night) if line.status not in ACTS and line.status != 0]
    return [(words, lines) for words, lines in [*groups, ("it ended otherwise", others)] if lines]


def changed(night: NightRecord) -> list[LineRecord]:
    """What was made and is in order."""
    return [line for line in _asked(night) if line.state == "made" and line.status == 0]


def by_device(night: NightRecord) -> list[tuple[str, dict[str, int], float]]:
    """Of each device: how many lines were made, served, failed or are not decided, and the minutes that it took."""
    devices = list(dict.fromkeys(line.device for line in _asked(night)))
    rows = []
    for device in devices:
        lines = [line for line in _asked(night) if line.device == device]
        counts = {
            "made": sum(line.state == "made" for line in lines),
            "unchanged": sum(line.state == "served" for line in lines),
            "failed": sum(line.status in (1, 2, 3, 4, 5) for line in lines),
            "not decided": sum(line.status == 6 for line in lines),
        }
        rows.append((device, counts, sum(line.seconds for line in lines if line.state != "served") / 60))
    return rows


def figures_text(line: LineRecord) -> str:
    """The candidate's size and latency."""
    if line.candidate is None:
        return ""
    parts = [line.candidate.engine, f"{line.candidate.size_bytes / 2**20:.2f} MiB"]
    parts += [] if line.candidate.p50_ms is None else [f"p50 {line.candidate.p50_ms:.3g} ms"]
    parts += [] if line.candidate.metric is None else [f"metric {line.candidate.metric:.4g}"]
    return ", ".join(parts)


def print_night(night: NightRecord, console: Console) -> None:
    """Who must act, and what changed; nothing changed is one line."""
    from rich.text import Text

    for words, lines in to_act_on(night):
        console.print(Text(f"{words}:", style="bold"))
        for line in lines:
            console.print(Text(f"  {line.name}: {line.sentence}"))
            console.print(Text(f"    again: {line.command}", style="dim"))
    for line in changed(night):
        console.print(Text(f"{line.name}: made ({'; '.join(line.why)}); {line.sentence}; {figures_text(line)}"))
    for note in night.notes:
        console.print(Text(note, style="dim"))
    console.print(Text(headline(night), style="bold"))


def markdown_from_night(night: NightRecord) -> str:
    """The text of nightly.md."""
    lines = [f"### {cell(headline(night))}", ""]
    for words, records in to_act_on(night):
        lines += [f"**{words}**", "", *(_bullets(records)), ""]
    if made := changed(night):
        lines += ["| made | why | outcome | engine |", "|---|---|---|---|"]
        lines += [
            f"| {cell(line.name)} | {cell('; '.join(line.why))} | {cell(line.sentence)} | {cell(figures_text(line))} |"
            for line in made
        ]
        lines.append("")
    lines += [f"- {cell(note)}" for note in night.notes]
    lines += [f"<sub>{cell(night.machine.describe())}. {night.began} to {night.ended}.</sub>", ""]
    return "\n".join(lines)


def _bullets(records: Sequence[LineRecord]) -> Iterator[str]:
    for line in records:
        yield f"- {cell(line.name)}: {cell(line.sentence)}"
        yield f"  `{line.command.replace('`', '')}`"


def _asked(night: NightRecord) -> list[LineRecord]:
    return [line for line in night.lines if line.state != "left out"]
