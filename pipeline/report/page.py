"""report.html: one self-contained page from the record of a run, its pictures and ``report.html.j2``."""

from __future__ import annotations

from pathlib import Path

from calibration.arrays import Floats
from engines.precision import precision_named
from pipeline.latency.benchmark import queries_from_npz
from pipeline.latency.device_times import MOST_LAYERS
from pipeline.page import numbers
from pipeline.page.notes import notes_of_variants
from pipeline.page.svg import Picture
from pipeline.page.template import check_drawable, machine_rows, style, template_named
from pipeline.record import MetricInfo, Recommendation, Record, VariantRecord, size_ratio
from pipeline.report.advice_pictures import advice_pictures
from pipeline.report.advice_table import advice_cells, left_out, size_unit
from pipeline.report.convergence_picture import convergence_pictures
from pipeline.report.histogram_pictures import histogram_pictures
from pipeline.report.mixture_picture import mixture_pictures
from pipeline.report.pictures import pictures
from pipeline.report.tensor_quality import best_where
from pipeline.report.training_picture import training_pictures

_HEADLINES = {"ship": "Ship", "stay": "Stay with"}


def html_from_record(record: Record, folder: Path) -> str:
    """The whole page.

    Args:
        record: the run.
        folder: where report.json lies; the record's ``queries_file`` are relative to it.

    Raises:
        Unavailable: jinja2 or matplotlib is not installed.
        ConfigError: a file of raw latencies is missing.
    """
    check_drawable("report.html")
    return template_named("report/report.html.j2").render(
        style=style(),
        record=record,
        headline=headline(record.recommendation),
        chosen=next((v for v in record.variants if v.name == record.recommendation.variant), None),
        figures=_key_figures(record),
        pictures=_pictures(record, folder),
        histograms=histogram_pictures(record),
        best_where=best_where(record.methods),
        metric_text=lambda value: _metric(record, value),
        accuracy_heads=_accuracy_heads(record),
        accuracy=lambda variant: _accuracy(record, variant),
        size_ratio=lambda variant: size_ratio(variant, record.variants),
        notes=notes_of_variants(record.variants),
        machine_rows=machine_rows(record.machine),
        dash=numbers.NONE,
        reasons=_reasons(record),
        advice=record.advice,
        advice_unit=size_unit(record)[0],
        advice_rows=list(advice_cells(record, record.advice)) if record.advice else [],
        advice_left_out=left_out(record.advice) if record.advice else [],
        most_layers=MOST_LAYERS,
    )


def headline(recommendation: Recommendation) -> str:
    """The decision in a few words."""
    start = _HEADLINES.get(recommendation.outcome)
    return "Not decided yet" if start is None else f"{start} {recommendation.variant}"


def _metric(record: Record, value: float | None) -> str:
    return numbers.NONE if record.metric is None else numbers.metric_text(record.metric, value)


def _accuracy_heads(record: Record) -> tuple[str, str]:
    """Of the metric and its drop; without a metric, of how near the farthest output is to FP32's."""
    return ("cosine", "SQNR") if record.metric is None else (numbers.metric_title(record.metric), "drop")


def _accuracy(record: Record, variant: VariantRecord) -> tuple[str, str]:
    """What stands below them."""
    if record.metric is None:
        return numbers.output_texts(variant)
    drop = numbers.drop_text(record.metric, variant.metric_drop)
    return numbers.metric_text(record.metric, variant.metric), drop


def _pictures(record: Record, folder: Path) -> list[Picture]:
    latencies: dict[str, Floats] = {
        variant.name: queries_from_npz(folder / variant.by_batch[0].queries_file).latency_ms
        for variant in record.variants
        if variant.by_batch
    }
    return [
        *advice_pictures(record),
        *pictures(record, latencies),
        *convergence_pictures(record),
        *training_pictures(record),
        *mixture_pictures(record),
    ]


def _key_figures(record: Record) -> list[tuple[str, str, str]]:
    """Value, what it is, and what to compare it with: of the recommended variant; none if undecided."""
    chosen = next((v for v in record.variants if v.name == record.recommendation.variant), None)
    if chosen is None or record.metric is None:
        return []
    first = chosen.by_batch[0]
    figures = [
        (
            numbers.ms_text(first.latency_ms.p50),
            f"p50 latency, batch {first.batch_size}",
            f"p99 {numbers.ms_text(first.latency_ms.p99)}",
        ),
        (
            numbers.metric_text(record.metric, chosen.metric),
            numbers.metric_title(record.metric),
            _against_fp32(chosen, record.metric),
        ),
        (numbers.size_text(chosen.size_bytes), "engine size", _smaller(chosen, record)),
    ]
    if first.speedup is not None and first.speedup_interval is not None:
        low, high = first.speedup_interval
        against = f"over FP32 on {chosen.backend}, p50; 95 % interval {low:.2f} to {high:.2f}"
        figures.insert(1, (numbers.times_text(first.speedup), "speed-up", against))
    return figures


def _against_fp32(chosen: VariantRecord, metric: MetricInfo) -> str:
    if precision_named(chosen.precision).is_full or chosen.metric_drop is None:
        return f"drop {numbers.drop_text(metric, chosen.metric_drop)}"
    return numbers.change_text(metric, chosen.metric_drop)


def _smaller(chosen: VariantRecord, record: Record) -> str:
    full = next(
        (v for v in record.variants if precision_named(v.precision).is_full and v.backend == chosen.backend), None
    )
    if full is None or full is chosen:
        return "as built"
    return f"FP32: {numbers.size_text(full.size_bytes)}"


def _reasons(record: Record) -> list[str]:
    """Why variants were not timed, one sentence per reason."""
    reasons = dict.fromkeys(v.latency_missing for v in record.variants if v.latency_missing)
    names = {why: ", ".join(v.name for v in record.variants if v.latency_missing == why) for why in reasons}
    return [f"Not timed: {names[why]}: {why.rstrip('.')}." for why in reasons]


def write_html(record: Record, path: Path) -> None:
    """Write report.html; the raw latencies that it draws lie where the record says, relative to the file's folder.

    Raises:
        Unavailable: jinja2 or matplotlib is not installed.
        ConfigError: a file of raw latencies is missing.
    """
    html = html_from_record(record, path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
