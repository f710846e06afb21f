"""Time what the ladder made, all in one measurement, and write it down as a run's report with the advice in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from engines.precision import INT8, Precision
from pipeline.accuracy.comparison import read_outputs
from pipeline.accuracy.metric_intervals import Sampling, metric_drop, metric_interval
from pipeline.artifact import PRUNED, Timings
from pipeline.flow import changed_key
from pipeline.gate.checks import compressed_bytes, size_bytes
from pipeline.gate.gather_inputs import metric_info
from pipeline.ladder.ascent import Ascent
from pipeline.ladder.claims import Measured, checked_claims, contradicted
from pipeline.ladder.decision import LadderNumbers, choose
from pipeline.ladder.row import Row
from pipeline.latency.benchmark import Timing, p50_interval_ms
from pipeline.machine.identity import Machine, this_machine
from pipeline.record import SIMULATION, MetricInfo, Record, VariantRecord
from pipeline.report.write import Reported, load_of, mixtures_of, trainings_of, variant_record, write_report
from pipeline.results import Results, Variant
from pipeline.stages.benchmark import timings_from
from pipeline.stats.intervals import Interval
from pipeline.store import Store
from pipeline.techniques.catalogue import INTEGER, NONE, Technique
from pipeline.techniques.record import Advice, CheckedBound, CheckedClaim, TechniqueRow
from pipeline.training.curve import TrainingRecord
from pipeline.variants import is_reference, judge_of

MOST_SECONDS = 20.0
"""For the resamples of one interval, of a metric that is slow."""


def timed(ascent: Ascent, store: Store) -> Timings | None:
    """Time all engines that run here against each other; None if none does."""
    plan = ascent.plan
    engines = {row.name: row.engine for row in ascent.rows if not row.why_not_run()}
    stage = replace(plan.benchmark, together=())  # What is chosen is not known yet.
    return store.measure(stage, engines, ascent.rows[0].results.evaluation) if engines else None


def write_advice(ascent: Ascent, timings: Timings | None, store: Store) -> Record:
    """Write the report's folder, and return the record in it.

    Raises:
        Unavailable, ConfigError: as ``write_report``.
    """
    plan, machine = ascent.plan, this_machine()
    measured = [] if timings is None else timings_from(timings)
    variants = {row.name: _variant(row, timings, measured) for row in ascent.rows}
    rows = {row.name: _technique_row(ascent, row, measured, machine) for row in ascent.rows}
    metric = metric_info(judge_of(plan))
    rows = {
        row.name: replace(rows[row.name], claims=_claims(ascent, row, rows[row.name], variants, metric))
        for row in ascent.rows
    }
    choice = choose(LadderNumbers(ascent, rows, variants, metric, load_of(plan, timings)))
    advice = Advice(
        bounds=tuple(bound.text for bound in ascent.bounds),
        hardware=plan.advise.hardware,
        outcome=choice.outcome,
        technique="" if choice.row is None else choice.row.technique.name,
        variant="" if choice.row is None else choice.row.name,
        toml=choice.toml(),
        contradicted=tuple(contradicted(list(rows.values()))),
        next_steps=choice.next_steps,
        rungs=tuple(ascent.rungs),
        rows=tuple(rows.values()),
    )
    results = _calibrated(ascent)
    results.timings, results.notes = timings, [*_notes(ascent), *ascent.notes]
    reported = Reported(
        variants=tuple(variants.values()),
        advice=advice,
        recommendation=choice.recommendation(plan.report.max_metric_drop),
        trainings=_trainings(ascent),
        mixtures={
            row.name: mixtures_of(row.results)[row.variant.name]
            for row in ascent.rows
            if row.variant in row.results.mixtures
        },
    )
    return write_report(plan, results, store.account, reported)


def _calibrated(ascent: Ascent) -> Results:
    """Those of the first rung that calibrated, which a report shows the ranges of; else those of FP32."""
    several = [row.results for row in ascent.rows]
    return replace(next((results for results in several if results.reported_ranges is not None), several[0]))


def _trainings(ascent: Ascent) -> dict[str, TrainingRecord]:
    """How networks were trained, by the rows' names; pruning once."""
    trainings: dict[str, TrainingRecord] = {}
    for row in ascent.rows:
        names = {row.variant.name: row.name, PRUNED: PRUNED}
        trainings |= {names[name]: record for name, record in trainings_of(row.results).items() if name in names}
    return trainings


def _claims(
    ascent: Ascent,
    row: Row,
    record: TechniqueRow,
    variants: Mapping[str, VariantRecord],
    metric: MetricInfo | None,
) -> tuple[CheckedClaim, ...]:
    """What is claimed of the row's technique, beside what was measured."""

    def of(technique: Technique, precision: Precision) -> VariantRecord | None:
        variant = Variant(precision, row.variant.backend)
        names = (other.name for other in ascent.rows if other.technique is technique and other.variant == variant)
        return next((variants[name] for name in names), None)

    dense = of(NONE if row.variant.precision.is_full else INTEGER, row.variant.precision)
    return checked_claims(Measured(record, variants[row.name], dense, of(INTEGER, INT8), metric))


def _intervals(ascent: Ascent, row: Row) -> tuple[Interval | None, Interval | None, float | None]:
    """Of the metric and of its drop against FP32's, and p of McNemar's test; None where there is no such number."""
    judge, results = judge_of(row.plan), row.results
    if not judge.name or results.reference is None:
        return None, None, None
    metric, gate = judge.metric(), ascent.plan.gate
    sampling = Sampling(gate.pairing.confidence, max_seconds=MOST_SECONDS)
    labels = results.evaluation.labels() if metric.needs_labels else None
    outputs = read_outputs(results.outputs[row.variant].path)
    interval = metric_interval(metric, outputs, labels, sampling)
    if is_reference(row.plan, row.variant):
        return interval, None, None
    drop = metric_drop(metric, outputs, read_outputs(results.reference.path), labels, sampling)
    return interval, drop.interval, drop.p_value


def _notes(ascent: Ascent) -> list[str]:
    """Those of all rungs, without the keys that a rung changed."""
    notes = dict.fromkeys(note for row in ascent.rows for note in row.results.notes)
    by_rung = {changed_key(text) for row in ascent.rows for text in row.plan.settings}
    by_user = {changed_key(text) for text in ascent.plan.settings}
    return [note for note in notes if note not in by_rung - by_user]


def _variant(row: Row, timings: Timings | None, measured: Sequence[Timing]) -> VariantRecord:
    """The row as every report has its variants, with the size that gzip makes of it."""
    results = replace(row.results, timings=timings)
    if reason := row.why_not_run():
        results.not_timed = {**results.not_timed, row.variant: reason}
    record = variant_record(results, row.variant, measured, row.name)
    sizes = record.size_compressed_bytes or {"gzip": compressed_bytes(row.engine.path)}
    return replace(record, size_compressed_bytes=sizes)


def _technique_row(ascent: Ascent, row: Row, measured: Sequence[Timing], machine: Machine) -> TechniqueRow:
    full = ascent.full_of(row)
    gzipped, full_gzipped = (compressed_bytes(each.engine.path) for each in (row, full))
    timing = next((timing for timing in measured if timing.name == row.name), None)
    metric, drop, p_value = _intervals(ascent, row)
    where = SIMULATION if row.why_not_run() else machine.processor(gpu=row.on_gpu())
    return TechniqueRow(
        technique=row.technique.name,
        variant=row.name,
        outcome=row.outcome,
        checks=tuple(CheckedBound(check.budget, check.outcome, check.sentence) for check in row.checks),
        size_ratio=size_bytes(row.engine.path) / size_bytes(full.engine.path),
        compressed_bytes=gzipped,
        compressed_ratio=gzipped / full_gzipped,
        metric_interval=_ends(metric),
        drop_interval=_ends(drop),
        confidence=ascent.plan.gate.pairing.confidence,
        p_value=p_value,
        p50_interval_ms=None if timing is None else p50_interval_ms(timing, seed=0),
        measured_on=where,
        seconds=row.seconds,
        claims=(),
    )


def _ends(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None or math.isnan(interval.low) else (interval.low, interval.high)
