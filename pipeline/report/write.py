"""Gathers the record of a run and writes the report folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from calibration.ranges.convergence import convergence_from_folder
from calibration.ranges.ranges import ranges_from_folder
from engines import backend
from engines.contract import TensorSpec
from engines.precision import FP32
from pipeline.advice.recommendation import recommend
from pipeline.json_record import finite, write_json
from pipeline.latency.benchmark import Speedup, Timing, speedup
from pipeline.latency.device_times import layers_from_json, split_from_row
from pipeline.latency.energy import Energy
from pipeline.machine.identity import installed_versions, this_machine
from pipeline.output import work_folder
from pipeline.plan import Plan
from pipeline.record import (
    ENGINE,
    SCHEMA_VERSION,
    SIMULATION,
    BatchTiming,
    ComparedOutput,
    DataRecord,
    MetricInfo,
    ModelInfo,
    PlanInfo,
    ProtocolInfo,
    Record,
    StageRun,
    VariantRecord,
    data_info,
)
from pipeline.report.page import write_html
from pipeline.report.tensor_quality import methods_from_ranges, tensors_from_ranges, worst_histograms
from pipeline.results import Results, Variant
from pipeline.stages.benchmark import energies_from, timings_from, watched_from
from pipeline.stages.report import Report
from pipeline.stages.validate import Judge
from pipeline.store import Entry


def write_report(plan: Plan, made: Results, account: Sequence[Entry]) -> Record:
    """Write the report's folder, whole or not at all, and return the record in it.

    The folder holds ``report.json``, ``report.html`` and the raw latency samples, ``samples/*.npz``.

    Raises:
        Unavailable: ``[report] html`` is asked for and the extra `report` is not installed.
        ConfigError: the folder holds something else.
    """
    timings = [] if made.timings is None else timings_from(made.timings)
    watched = None if made.timings is None else watched_from(made.timings)
    variants = tuple(variant_record(made, built, timings) for built in made.engines)
    metric = _metric_info(plan, made)
    ranges = ranges_from_folder(made.ranges.path) if made.ranges else None
    record = Record(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        plan=PlanInfo(str(plan.path), plan.digest()),
        model=_model_info(plan, made),
        data=_data(made),
        metric=metric,
        protocol=_protocol_info(plan) if timings else None,
        machine=this_machine(),
        monitor=watched,
        versions=installed_versions(),
        variants=variants,
        tensors=tensors_from_ranges(ranges) if ranges else (),
        methods=methods_from_ranges(ranges) if ranges else (),
        histograms=worst_histograms(made.ranges.path) if made.ranges else (),
        lint=made.findings.read() if made.findings else (),
        settling=convergence_from_folder(made.ranges.path) if made.ranges else None,
        served=tuple(StageRun(e.stage, e.digest, e.served, e.seconds) for e in account),
        notes=(*made.fp32.notes(), *made.notes, *(() if watched is None else watched.notes)),
        recommendation=recommend(variants, metric, plan.report.max_metric_drop),
    )
    _publish(plan.report, plan.resolved(plan.report.folder), record, made)
    return record


def _publish(options: Report, folder: Path, record: Record, made: Results) -> None:
    options.check_folder(folder)
    with work_folder(folder) as work:
        new = work / "new"
        (new / "samples").mkdir(parents=True)
        if made.timings is not None:
            for file in made.timings.path.parent.glob("*.npz"):
                shutil.copy(file, new / "samples" / file.name)
        write_json(record, new / "report.json")
        if options.html:
            write_html(record, new / "report.html")
        if folder.exists():
            folder.rename(work / "old")
        new.replace(folder)


def variant_record(made: Results, built: Variant, timings: Sequence[Timing]) -> VariantRecord:
    """All that the run found out about one variant."""
    engine = made.engines[built]
    verdict = made.verdicts[built].read()
    built_as = json.loads(engine.beside("record.json").read_text())
    written = made.models[built].notes() if not built.precision.is_full else []
    measured = {} if made.timings is None else made.timings.read()
    runner = measured.get("runners", {}).get(built.name, {"device_memory_mib": None, "notes": []})
    variant = VariantRecord(
        name=built.name,
        precision=built.precision.name,
        backend=built.backend,
        placement=backend(built.backend).PLACEMENT,
        size_bytes=built_as["size_bytes"],
        metric=finite(verdict["metric"]),
        metric_drop=finite(verdict["metric_drop"]),
        metric_measured_on=SIMULATION if built in made.not_timed else ENGINE,
        agreement=verdict["agreement"],
        comparison=tuple(_compared(name, row) for name, row in verdict["comparison"].items()),
        failures=tuple(verdict["failures"]),
        latency_ms=None,
        throughput_per_s=None,
        speedup=None,
        by_batch=(),
        ram_change_mib=measured.get("ram_change_mib", {}).get(built.name),
        device_memory_mib=runner["device_memory_mib"],
        layers=layers_from_json(measured.get("layers", {}).get(built.name)),
        latency_missing=made.not_timed.get(built, "it was not timed"),
        artifact=str(engine.path),
        num_int8=built_as["num_int8"],
        num_quantizable=built_as["num_quantizable"],
        build_seconds=built_as["build_seconds"],
        notes=(*written, *engine.notes(), *runner["notes"]),
    )
    full_name = Variant(FP32, built.backend).name
    own = [timing for timing in timings if timing.name == built.name]
    full = {timing.batch_size: timing for timing in timings if timing.name == full_name}
    if made.timings is None or not own:
        return variant
    energies = energies_from(made.timings)
    splits = {(row["name"], row["batch_size"]): split_from_row(row) for row in measured["timings"]}
    by_batch = ((t, full.get(t.batch_size), energies[t.name, t.batch_size]) for t in own)
    timed = (replace(_batch_timing(*one), split_ms=splits[one[0].name, one[0].batch_size]) for one in by_batch)
    return variant.timed(tuple(timed))


def _batch_timing(timing: Timing, full: Timing | None, energy: Energy) -> BatchTiming:
    ratio: Speedup | None = None
    if full is not None:
        ratio = speedup(full, timing, seed=0) if full is not timing else Speedup(1.0, 1.0, 1.0)
    return BatchTiming(
        batch_size=timing.batch_size,
        latency_ms=timing.latency_ms,
        throughput_per_s=timing.throughput_per_s,
        speedup=None if ratio is None else ratio.ratio,
        speedup_interval=None if ratio is None or full is timing else (ratio.low, ratio.high),
        device_ms=timing.device_ms,
        split_ms=None,
        num_queries=timing.num_queries,
        stable=timing.stable,
        note=timing.note,
        power_mw=energy.power_mw,
        energy_mj=energy.energy_mj,
        energy_missing=energy.missing,
        queries_file=f"samples/{timing.name}-batch{timing.batch_size}.npz",
    )


def _compared(name: str, row: dict[str, Any]) -> ComparedOutput:
    keys = ("max_abs", "mean_abs", "cosine_min", "cosine_mean", "psnr_db")
    return ComparedOutput(output=name, **{key: finite(row[key]) for key in keys})


def _model_info(plan: Plan, made: Results) -> ModelInfo:
    engine = next(iter(made.engines.values()))
    record = json.loads(engine.beside("record.json").read_text())
    inputs, outputs = (
        tuple(TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in record[side])
        for side in ("inputs", "outputs")
    )
    if made.packed is not None:
        return ModelInfo(made.packed.manifest.source, made.packed.manifest.signature, inputs, outputs)
    return ModelInfo(plan.model.source, made.source.signature_name(), inputs, outputs)


def _data(made: Results) -> DataRecord:
    if made.packed is not None:
        return DataRecord(made.packed.manifest.calibration, made.packed.manifest.evaluation)
    assert made.calibration is not None
    return DataRecord(data_info(made.calibration), data_info(made.evaluation))


def _metric_info(plan: Plan, made: Results) -> MetricInfo | None:
    judge = Judge(plan.data.metric, plan.data.output, plan.folder)
    if not judge.name:
        return None
    metric = judge.metric()
    value = None if made.source_verdict is None else finite(made.source_verdict.read()["reference_metric"])
    return MetricInfo(metric.name, metric.unit, metric.higher_is_better, value)


def _protocol_info(plan: Plan) -> ProtocolInfo:
    stage = plan.benchmark
    return ProtocolInfo(stage.protocol.describe(), stage.num_threads, stage.protocol)
