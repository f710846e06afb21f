"""Which technique? The table of what was tried, in words, for the terminal and for the page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.page.numbers import MIB, NONE, metric_text, signed, three_digits
from pipeline.record import SIMULATION, MetricInfo, Record, VariantRecord
from pipeline.spelling import with_and
from pipeline.techniques.record import Advice, Rung, TechniqueRow

if TYPE_CHECKING:
    from rich.console import Console

SECONDS_PER_MINUTE = 60.0
LEAST_P = 0.001
"""A smaller p is not told exactly."""
LONGEST_HEAD = 8
"""A metric with a longer name is called metric in the head of its column."""
WIDTH = 24
"""Of the first column, in characters; names of variants may be longer."""
SIMULATED = "*"
"""Behind a simulated accuracy."""
MARKS = {"pass": "holds", "fail": "misses", "not decided": "open"}
ANSWERS = {True: "yes", False: "no", None: "open"}
"""Whether a claim holds."""


@dataclass(frozen=True)
class AdviceCells:
    """What the table says of one variant, each a number with what belongs to it in smaller print."""

    rung: Rung
    row: TechniqueRow
    variant: VariantRecord
    size: tuple[str, ...]
    """Of the file, and by how much it is smaller than FP32's on the same backend; in the table's unit."""
    compressed: tuple[str, ...]
    """The same of the file that gzip makes of it."""
    metric: tuple[str, ...]
    """And the ends of its interval."""
    drop: tuple[str, ...]
    """Likewise."""
    p_value: str
    p50: tuple[str, ...]
    """Likewise; milliseconds."""
    made: str
    """What making it took."""


def advice_cells(record: Record, advice: Advice) -> Iterator[AdviceCells]:
    """The rows of the table, in the order of the ladder."""
    variants = {variant.name: variant for variant in record.variants}
    rungs = {rung.technique: rung for rung in advice.rungs}
    unit = size_unit(record)[1]
    for row in advice.rows:
        variant = variants[row.variant]
        latency = variant.latency_ms
        yield AdviceCells(
            rung=rungs[row.technique],
            row=row,
            variant=variant,
            size=(three_digits(variant.size_bytes / unit), _change(row.size_ratio)),
            compressed=(three_digits(row.compressed_bytes / unit), _change(row.compressed_ratio)),
            metric=_metric(record.metric, variant, row),
            drop=_drop(record.metric, variant, row),
            p_value=_p_text(row.p_value),
            p50=(
                NONE if latency is None else three_digits(latency.p50),
                *(() if row.p50_interval_ms is None else map(three_digits, row.p50_interval_ms)),
            ),
            made=NONE if row.seconds is None else duration(row.seconds),
        )


def size_unit(record: Record) -> tuple[str, int]:
    """The unit of all sizes of the table, and its bytes."""
    return ("MiB", MIB) if max(v.size_bytes for v in record.variants) >= 10 * MIB else ("KiB", 1024)


def duration(seconds: float) -> str:
    """Seconds, or from two minutes on minutes: ``4.2 s``, ``3.1 min``."""
    if seconds < 2 * SECONDS_PER_MINUTE:
        return f"{three_digits(seconds)} s"
    return f"{three_digits(seconds / SECONDS_PER_MINUTE)} min"


def _p_text(p_value: float | None) -> str:
    if p_value is None:
        return ""
    return f"{p_value:.2g}" if p_value >= LEAST_P else f"<{LEAST_P:g}"


def _change(ratio: float) -> str:
    """In percent: ``−66 %`` for what is a third, ``+3 %`` for what is larger; empty for what has the same size."""
    text = signed(100 * (ratio - 1), 0)
    return "" if text == "0" else f"{text if text.startswith('−') else '+' + text} %"


def _metric(metric: MetricInfo | None, variant: VariantRecord, row: TechniqueRow) -> tuple[str, ...]:
    if metric is None:
        return (NONE,)
    mark = SIMULATED if variant.is_simulated() else ""
    return (_value(metric, variant.metric) + mark, *(_value(metric, end) for end in row.metric_interval or ()))


def _value(metric: MetricInfo, value: float | None) -> str:
    return metric_text(metric, value).removesuffix(" %")


def _drop(metric: MetricInfo | None, variant: VariantRecord, row: TechniqueRow) -> tuple[str, ...]:
    if metric is None or variant.metric_drop is None:
        return (NONE,)
    return tuple(_difference(metric, value) for value in (variant.metric_drop, *(row.drop_interval or ())))


def _difference(metric: MetricInfo, drop: float) -> str:
    return signed(100 * drop, 2) if metric.is_fraction() else f"{drop:.3g}".replace("-", "−")


def left_out(advice: Advice) -> list[str]:
    """The techniques that were not tried, each with the reason."""
    rungs = [rung for rung in advice.rungs if rung.why]
    return [f"{rung.title}: {rung.outcome}: {rung.why}." for rung in rungs]


def print_advice(record: Record, advice: Advice, console: Console) -> None:
    """The table, and what was left out and why."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    unit, metric = size_unit(record)[0], record.metric
    table = Table(
        title=Text(f"{record.model.source}: {'; '.join(advice.bounds)}"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    name = "metric" if metric is None or len(metric.name) > LONGEST_HEAD else metric.name
    units = ("%", "points") if metric is not None and metric.is_fraction() else ("", "")
    share = "" if metric is None else f"{100 * advice.rows[0].confidence:.3g} %"
    table.add_column("variant\ntechnique\ndata that it needs", overflow="fold")
    heads = (unit, f"gzip\n{unit}", f"{name}\n{units[0]}\n{share}", f"drop\n{units[1]}\n{share}", "p", "p50\nms\n95 %")
    for head in (*heads, "made in\nbounds"):
        table.add_column(head, justify="right", no_wrap=True)
    for cells in advice_cells(record, advice):
        chosen = "bold green" if cells.variant.name == advice.variant else ""
        first = (cells.variant.name, *_folded(cells.rung.title), *_folded(cells.rung.data))
        numbers = (cells.size, cells.compressed, cells.metric, cells.drop, (cells.p_value,), cells.p50)
        columns = (first, *numbers, (cells.made, MARKS[cells.row.outcome]))
        table.add_row(*(Text("\n".join(lines)) for lines in columns), style=chosen)
    console.print(table)
    if places := dict.fromkeys(row.measured_on for row in advice.rows if row.measured_on != SIMULATION):
        console.print(Text(f"Measured on {with_and(list(places))}.", style="dim"))
    if any(cells.variant.is_simulated() for cells in advice_cells(record, advice)):
        console.print(Text(f"{SIMULATED} accuracy by {SIMULATION}, not by the engine itself.", style="dim"))
    for line in left_out(advice):
        console.print(Text(line, style="dim"))
    _print_claims(advice, console)


def _print_claims(advice: Advice, console: Console) -> None:
    """What is said of the techniques in general, beside what was measured here."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = Text("\nWhat is said of techniques in general, and what was measured here")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("said")
    table.add_column("variant", overflow="fold")
    table.add_column("measured")
    table.add_column("holds", justify="right")
    for row in advice.rows:
        for claim in row.claims:
            style = "bold" if claim.holds is False else ""
            cells = (claim.claim, row.variant, claim.measured, ANSWERS[claim.holds])
            table.add_row(*(Text(cell) for cell in cells), style=style)
    if table.row_count:
        console.print(table)


def _folded(text: str) -> list[str]:
    """In lines that leave room for the numbers, set in."""
    return textwrap.wrap(text, WIDTH, initial_indent=" ", subsequent_indent="  ")


def print_decision(advice: Advice, console: Console) -> None:
    """What to write into the plan, or what to try next."""
    from rich.text import Text

    if advice.toml:
        console.print(Text("Write into the plan:", style="bold"))
        console.print(Text(advice.toml.rstrip()))
    if advice.next_steps:
        console.print(Text("What to try next:", style="bold"))
        for step in advice.next_steps:
            console.print(Text(f"- {step[:1].upper()}{step[1:]}."))
