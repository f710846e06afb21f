"""report.html: one self-contained page from the record of a run, its pictures and ``report.html.j2``."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import Unavailable
from pipeline.latency.benchmark import Floats, queries_from_npz
from pipeline.latency.device_times import MOST_LAYERS
from pipeline.machine.identity import Machine
from pipeline.page import numbers
from pipeline.record import MetricInfo, Recommendation, Record, Variant
from pipeline.report.convergence_picture import settling_pictures
from pipeline.report.histogram_pictures import histogram_pictures
from pipeline.report.pictures import Picture, pictures
from pipeline.report.tensor_quality import best_where

if TYPE_CHECKING:
    from jinja2 import Template

NEEDED = ("jinja2", "matplotlib")

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
        metric_title="metric" if record.metric is None else numbers.metric_title(record.metric),
        metric_text=lambda value: _metric(record, value),
        drop_text=lambda value: _drop(record, value),
        machine_rows=machine_rows(record.machine),
        dash=numbers.NONE,
        reasons=_reasons(record),
        most_layers=MOST_LAYERS,
    )


def check_drawable(what: str) -> None:
    """Raise Unavailable unless a page can be drawn here."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise Unavailable(f"{what}: needs {' and '.join(missing)}; pip install 'trtforge[report]'")


def template_named(file: str) -> Template:
    """A page's template, with the filters that print numbers."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "ms": numbers.three_digits,
        "size": numbers.size_text,
        "times": numbers.times_text,
        "rate": numbers.rate_text,
        "share": numbers.share_text,
        "db": numbers.db_text,
        "finite": lambda value, form: "not finite" if value is None else form % value,
        "trusted": Markup,  # For the style and the pictures alone: matplotlib has escaped the texts in them.
    }
    return environment.from_string((files("pipeline") / file).read_text(encoding="utf-8"))


def style() -> str:
    """The style sheet that all pages share."""
    return (files("pipeline") / "page/page.css").read_text(encoding="utf-8")


def headline(recommendation: Recommendation) -> str:
    """The decision in a few words."""
    start = _HEADLINES.get(recommendation.outcome)
    return "Not decided yet" if start is None else f"{start} {recommendation.variant}"


def _metric(record: Record, value: float | None) -> str:
    return numbers.NONE if record.metric is None else numbers.metric_text(record.metric, value)


def _drop(record: Record, value: float | None) -> str:
    return numbers.NONE if record.metric is None else numbers.drop_text(record.metric, value)


def _pictures(record: Record, folder: Path) -> list[Picture]:
    latencies: dict[str, Floats] = {
        variant.name: queries_from_npz(folder / variant.by_batch[0].queries_file).latency_ms
        for variant in record.variants
        if variant.by_batch
    }
    return [*pictures(record, latencies), *settling_pictures(record)]


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


def _against_fp32(chosen: Variant, metric: MetricInfo) -> str:
    if chosen.precision == "fp32" or chosen.metric_drop is None:
        return f"drop {numbers.drop_text(metric, chosen.metric_drop)}"
    return numbers.change_text(metric, chosen.metric_drop)


def _smaller(chosen: Variant, record: Record) -> str:
    full = next((v for v in record.variants if v.precision == "fp32" and v.backend == chosen.backend), None)
    if full is None or full is chosen:
        return "as built"
    return f"FP32: {numbers.size_text(full.size_bytes)}"


def _reasons(record: Record) -> list[str]:
    """Why variants were not timed, one sentence per reason."""
    reasons = dict.fromkeys(v.latency_missing for v in record.variants if v.latency_missing)
    names = {why: ", ".join(v.name for v in record.variants if v.latency_missing == why) for why in reasons}
    return [f"Not timed: {names[why]}: {why.rstrip('.')}." for why in reasons]


def machine_rows(machine: Machine) -> list[tuple[str, str]]:
    """What the machine tells of itself, without what it does not tell."""
    rows = [
        ("Board", machine.board),
        ("CPU", f"{machine.cpu}; cores usable: {machine.num_cores}"),
        ("CPU quota", f"{machine.cpu_quota_cores:g} cores" if machine.cpu_quota_cores else ""),
        ("Instruction sets", " ".join(machine.isa)),
        ("Memory", f"{machine.memory_mib:,} MiB" if machine.memory_mib else ""),
        ("Frequency governor", machine.governor),
        *(("GPU", f"{gpu.name}, driver {gpu.driver}, {gpu.memory_mib:,} MiB") for gpu in machine.gpus),
        ("Jetson release", machine.jetson_release),
        ("Power mode", machine.power_mode),
        ("System", f"{machine.system} {machine.kernel}, {machine.architecture}"),
    ]
    return [(name, value) for name, value in rows if value]
