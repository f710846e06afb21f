"""What a run found, written three ways: report.json, a table on the terminal, and report.html."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.json_record import record_from_json
from pipeline.page.notes import notes_of_variants
from pipeline.page.numbers import (
    MIB,
    NONE,
    drop_text,
    metric_text,
    metric_title,
    output_texts,
    rate_text,
    share_text,
    three_digits,
    times_text,
)
from pipeline.record import SCHEMA_VERSION, SIMULATION, BatchTiming, MetricInfo, Record, VariantRecord
from pipeline.report.advice_table import print_advice, print_decision

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


MARK = "*"
"""Stands behind a simulated accuracy; the line below the table says what it means."""


def report_from_json(path: Path) -> Record:
    """Read report.json back; as ``record_from_json``."""
    return record_from_json(path, Record, SCHEMA_VERSION, "write it again with `trtforge run`")


def print_table(record: Record, console: Console) -> None:
    """The recommendation and one row per variant, in 80 columns; a row per further batch size below."""
    from rich.text import Text

    if record.advice is None:
        console.print(_variant_table(record))
    else:
        print_advice(record, record.advice, console)
    further = [(v, timing) for v in record.variants for timing in v.by_batch[1:]]
    if further:
        console.print(_batch_table(further))
    for line in _footnotes(record):
        console.print(Text(line, style="dim"))
    console.print(Text(record.recommendation.sentence, style="bold"))
    if record.advice is not None:
        print_decision(record.advice, console)
    for remedy in (variant.remedy for variant in record.variants if variant.remedy is not None):
        console.print(Text(remedy.sentence, style="bold"))
        if remedy.toml:
            console.print(Text(remedy.toml.rstrip()))


def _variant_table(record: Record) -> Table:
    sizes = {v.by_batch[0].batch_size for v in record.variants if v.by_batch}
    batch = f"batch {', '.join(map(str, sorted(sizes)))}" if sizes else "not timed"
    in_mib = max(variant.size_bytes for variant in record.variants) >= 10 * MIB
    table = _table(f"{record.model.source} ({batch})")
    table.add_column("variant", no_wrap=True)
    table.add_column("size\nMiB" if in_mib else "size\nKiB", justify="right")
    for head in (*_accuracy_heads(record.metric), "p50\nms", "p99\nms", "speed-\nup", "agrees\n%"):
        table.add_column(head, justify="right", overflow="fold")
    for variant in record.variants:
        best = variant.name == record.recommendation.variant
        size = three_digits(variant.size_bytes / (MIB if in_mib else 1024))
        cells = (variant.name, size, *_cells(variant, record.metric))
        table.add_row(*cells, style="bold green" if best else "")
    return table


def _accuracy_heads(metric: MetricInfo | None) -> tuple[str, str]:
    """Of the metric and its drop, or without a metric of what says how near the farthest output is to FP32's."""
    if metric is None:
        return "cosine", "SQNR\ndB"
    return (f"{metric.name}\n%", "drop\npoints") if metric.is_fraction() else (metric_title(metric), "drop")


def _accuracy(variant: VariantRecord, metric: MetricInfo | None) -> tuple[str, str]:
    """What stands below ``_accuracy_heads``."""
    if metric is not None:
        value, drop = metric_text(metric, variant.metric), drop_text(metric, variant.metric_drop)
        mark = MARK if variant.is_simulated() and variant.metric is not None else ""
        return value.removesuffix(" %") + mark, drop.removesuffix(" points")
    cosine, sqnr = output_texts(variant)
    return cosine + (MARK if variant.is_simulated() else ""), sqnr.removesuffix(" dB")


def _cells(variant: VariantRecord, metric: MetricInfo | None) -> list[str]:
    """Accuracy, p50, p99, speed-up and agreement, their units left to the heads of the columns."""
    latency = variant.latency_ms
    return [
        *_accuracy(variant, metric),
        NONE if latency is None else three_digits(latency.p50),
        NONE if latency is None else three_digits(latency.p99),
        NONE if variant.speedup is None else times_text(variant.speedup),
        share_text(variant.agreement).removesuffix(" %"),
    ]


def _batch_table(rows: list[tuple[VariantRecord, BatchTiming]]) -> Table:
    table = _table("further batch sizes")
    table.add_column("variant", no_wrap=True)
    for head in ("batch", "p50\nms", "p99\nms", "samples\nper s", "speed-\nup"):
        table.add_column(head, justify="right", overflow="fold")
    for variant, timing in rows:
        table.add_row(
            variant.name,
            str(timing.batch_size),
            three_digits(timing.latency_ms.p50),
            three_digits(timing.latency_ms.p99),
            rate_text(timing.throughput_per_s).removesuffix("/s"),
            NONE if timing.speedup is None else times_text(timing.speedup),
        )
    return table


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    return Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))


def _compressed(record: Record) -> list[str]:
    """The compressed sizes, where there are some."""
    rows = [(v.name, v.size_compressed_bytes) for v in record.variants if v.size_compressed_bytes]
    texts = [
        f"{name} {', '.join(f'{way} {three_digits(size / 1024)}' for way, size in row.items())}" for name, row in rows
    ]
    return [f"Compressed, KiB: {'; '.join(texts)}."] if rows else []


def _footnotes(record: Record) -> list[str]:
    """What a reader must know to read the numbers right."""
    lines = []
    if any(variant.is_simulated() for variant in record.variants):
        lines.append(f"{MARK} accuracy by {SIMULATION}, not by the engine itself.")
    for reason in dict.fromkeys(v.latency_missing for v in record.variants if v.latency_missing):
        names = ", ".join(v.name for v in record.variants if v.latency_missing == reason)
        lines.append(f"{names}: not timed: {reason}")
    if record.metric is None:
        lines.append("Cosine and SQNR: of the output that is farthest from FP32's, over the evaluation samples.")
    lines += [f"{v.name}: validation failed: {failure}" for v in record.variants for failure in v.failures]
    lines += [
        f"{v.name}, batch {timing.batch_size}: {timing.note}"
        for v in record.variants
        for timing in v.by_batch
        if timing.note
    ]
    lines += notes_of_variants(record.variants)
    if energies := [(v.name, t) for v in record.variants for t in v.by_batch if t.energy_mj is not None]:
        texts = [f"{name} {three_digits(t.energy_mj or 0)} (batch {t.batch_size})" for name, t in energies]
        lines.append(f"Energy per inference, mJ: {', '.join(texts)}.")
    lines += () if record.power_modes is None else record.power_modes.sentences
    if record.together is not None:
        lines.append(record.together.sentence)
    lines += [f"calibration data, {finding.code}: {finding.sentence}" for finding in record.lint]
    if record.stop is not None:
        lines.append(record.stop.sentence())
    if record.settling is not None:
        lines.append(record.settling.sentence())
    lines += _compressed(record) if record.advice is None else []
    lines += record.notes
    if record.protocol is not None:
        lines.append(f"Latency on {record.machine.describe()}. {record.protocol.description}")
    return lines
