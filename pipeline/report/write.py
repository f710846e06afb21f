"""Gathers the record of a run and writes the report folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibration.analysis.range_choice import choice_from_folder
from calibration.ranges.convergence import convergence_from_folder
from calibration.ranges.stop import stop_from_folder
from engines import backend
from engines.contract import TensorSpec
from engines.precision import FP32
from engines.provider_share import ProviderShare, num_fallback_nodes
from pipeline.accuracy.mixture import MixtureInfo
from pipeline.advice.recommendation import OtherLoad, recommend
from pipeline.advice.slow_integers import slower_than_fp32
from pipeline.artifact import PRUNED, Timings
from pipeline.json_record import finite, now_text, record_from_data, write_json
from pipeline.latency.benchmark import Speedup, Timing, speedup
from pipeline.latency.device_times import layers_from_json, split_from_row
from pipeline.latency.energy import Energy
from pipeline.latency.together import Together
from pipeline.machine.identity import installed_versions, this_machine
from pipeline.output import put, work_folder
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
    Recommendation,
    Record,
    StageRun,
    VariantRecord,
    data_info,
)
from pipeline.report.compressed_size import compressed_sizes
from pipeline.report.page import write_html
from pipeline.report.tensor_quality import (
    methods_from_ranges,
    quantized_tensors,
    ranges_in_models,
    tensors_from_ranges,
    worst_histograms,
)
from pipeline.results import Results, Variant
from pipeline.stages.benchmark import (
    energies_from,
    largest_batches_from,
    power_modes_from,
    timings_from,
    together_from_record,
    watched_from,
)
from pipeline.stages.report import Report
from pipeline.stages.support import answer_from
from pipeline.stages.validate import Judge
from pipeline.store import Entry
from pipeline.techniques.record import Advice
from pipeline.training.curve import TrainingRecord, training_from_folder


@dataclass(frozen=True)
class Reported:
    """What a report says of its variants: those of one run, or of several techniques."""

    variants: tuple[VariantRecord, ...]
    recommendation: Recommendation
    trainings: Mapping[str, TrainingRecord]
    mixtures: Mapping[str, MixtureInfo]
    advice: Advice | None = None


def write_report(plan: Plan, results: Results, account: Sequence[Entry], reported: Reported | None = None) -> Record:
    """Write the report's folder, whole or not at all, and return the record in it.

    The folder holds ``report.json``, ``report.html`` and the raw latency samples, ``samples/*.npz``. Without
    ``reported`` it is about the results' own variants; with it, ``results`` has the model, the data and the ranges.

    Raises:
        Unavailable: ``[report] html`` is requested and the extra `report` is not installed.
        ConfigError: the folder holds something else.
    """
    reported = reported or _of_run(plan, results)
    watched = None if results.timings is None else watched_from(results.timings)
    ranges = (
        ranges_in_models(results.reported_ranges.path, results.onnx_models().values())
        if results.reported_ranges
        else None
    )
    quantized = quantized_tensors(results.onnx_models().values())
    record = Record(
        schema_version=SCHEMA_VERSION,
        created=now_text(),
        plan=PlanInfo(str(plan.path), plan.digest()),
        model=_model_info(plan, results),
        data=_data(results),
        metric=_metric_info(plan, results),
        protocol=_protocol_info(plan) if any(variant.by_batch for variant in reported.variants) else None,
        machine=this_machine(),
        monitor=watched,
        load_from_others=load_of(plan, results.timings).share,
        power_modes=None if results.timings is None else power_modes_from(results.timings),
        together=_together(results.timings),
        versions=installed_versions(),
        variants=reported.variants,
        tensors=tensors_from_ranges(ranges, quantized) if ranges else (),
        methods=methods_from_ranges(ranges) if ranges else (),
        histograms=worst_histograms(ranges, results.reported_ranges.path, quantized)
        if ranges and results.reported_ranges
        else (),
        lint=results.findings.read() if results.findings else (),
        range_choice=choice_from_folder(results.reported_ranges.path) if results.reported_ranges else None,
        stop=stop_from_folder(results.reported_ranges.path) if results.reported_ranges else None,
        settling=convergence_from_folder(results.reported_ranges.path) if results.reported_ranges else None,
        trainings=reported.trainings,
        mixtures=reported.mixtures,
        served=tuple(StageRun(e.stage, e.digest, e.served, e.seconds) for e in account),
        notes=(
            *results.export_notes(),
            *results.training_notes(),
            *results.notes,
            *(() if watched is None else watched.notes),
            *(() if plan.quantize.is_timed() else slower_than_fp32(reported.variants)),
        ),
        recommendation=reported.recommendation,
        advice=reported.advice,
    )
    folder = plan.output_folder(plan.report if reported.advice is None else plan.advise)
    _publish(plan.report, folder, record, results)
    return record


def _together(timings: Timings | None) -> Together | None:
    """What running engines at once did to each, its files as they lie beside report.json."""
    if timings is None or (together := together_from_record(timings)) is None:
        return None
    rows = (
        replace(row, alone_file=f"samples/{row.alone_file}", beside_file=f"samples/{row.beside_file}")
        for row in together.engines
    )
    return replace(together, engines=tuple(rows))


def _of_run(plan: Plan, results: Results) -> Reported:
    """What a run says of its own variants."""
    timings = [] if results.timings is None else timings_from(results.timings)
    variants = tuple(variant_record(results, built, timings) for built in results.engines)
    load, bound = load_of(plan, results.timings), plan.report.max_metric_drop
    recommendation = recommend(variants, _metric_info(plan, results), bound, load)
    return Reported(variants, recommendation, trainings_of(results), mixtures_of(results))


def load_of(plan: Plan, timings: Timings | None) -> OtherLoad:
    """What other programs took while engines were timed, and what the plan's gate allows."""
    share = None if timings is None else timings.read()["load_from_others"]
    return OtherLoad(share, plan.gate.max_other_load, plan.gate.max_other_load_relative)


def trainings_of(results: Results) -> dict[str, TrainingRecord]:
    """How networks were trained, by the network's or the variant's name."""
    folders = {} if results.pruned is None else {PRUNED: results.pruned.path.parent}
    folders |= {variant.name: tuned.path for variant, tuned in results.tuned.items()}
    records = {name: training_from_folder(folder) for name, folder in folders.items()}
    return {name: record for name, record in records.items() if record is not None}


def mixtures_of(results: Results) -> dict[str, MixtureInfo]:
    """What mixed precision left in float, by variant."""
    return {variant.name: _mixture_of(results, variant) for variant in results.mixtures}


def _mixture_of(results: Results, variant: Variant) -> MixtureInfo:
    """With the times of its points, where they were measured."""
    mixture = results.mixtures[variant]
    record = {key: value for key, value in mixture.read().items() if key != "sets"}
    if variant in results.frontiers:
        times = results.frontiers[variant].read()
        record["points"] = [row | {"cpu_ms": ms} for row, ms in zip(record["points"], times["ms"], strict=True)]
        record["fp32_ms"] = times["fp32_ms"]
    return record_from_data(record, MixtureInfo, str(mixture.path), "run again")


def _publish(options: Report, folder: Path, record: Record, results: Results) -> None:
    options.check_folder(folder)
    with work_folder(folder) as work:
        new = work / "new"
        (new / "samples").mkdir(parents=True)
        if results.timings is not None:
            for file in results.timings.path.parent.glob("*.npz"):
                shutil.copy(file, new / "samples" / file.name)
        write_json(record, new / "report.json")
        if options.html:
            write_html(record, new / "report.html")
        put(new, folder, work)


def variant_record(results: Results, variant: Variant, timings: Sequence[Timing], called: str = "") -> VariantRecord:
    """All that the run found out about one variant; ``called`` where it was timed under another name."""
    name = called or variant.name
    engine = results.engines[variant]
    verdict = results.verdicts[variant].read()
    engine_record = json.loads(engine.beside("record.json").read_text())
    model_notes = results.models[variant].notes() if not variant.precision.is_full else []
    measured = {} if results.timings is None else results.timings.read()
    runner = measured.get("runners", {}).get(name, {"device_memory_mib": None, "notes": []})
    searched = {} if results.timings is None else largest_batches_from(results.timings)
    providers, predicted = _providers(engine_record), _prediction(results, variant)
    record = VariantRecord(
        name=name,
        precision=variant.precision.name,
        backend=variant.backend,
        placement=backend(variant.backend).PLACEMENT,
        size_bytes=engine_record["size_bytes"],
        size_compressed_bytes={} if results.pruned is None else compressed_sizes(engine.path),
        metric=finite(verdict["metric"]),
        metric_drop=finite(verdict["metric_drop"]),
        metric_measured_on=SIMULATION if variant in results.not_timed else ENGINE,
        agreement=verdict["agreement"],
        comparison=tuple(_compared(name, row) for name, row in verdict["comparison"].items()),
        failures=tuple(verdict["failures"]),
        remedy=results.remedies.get(variant),
        latency_ms=None,
        throughput_per_s=None,
        speedup=None,
        by_batch=(),
        ram_change_mib=measured.get("ram_change_mib", {}).get(name),
        device_memory_mib=runner["device_memory_mib"],
        layers=layers_from_json(measured.get("layers", {}).get(name)),
        largest_batch=searched.get(name),
        latency_missing=results.not_timed.get(variant, "it was not timed"),
        artifact=str(engine.path),
        num_int8=engine_record["num_int8"],
        num_quantizable=engine_record["num_quantizable"],
        num_4_bits=engine_record["num_4_bits"],
        providers=providers,
        num_fallback_nodes=num_fallback_nodes(providers) if providers else None,
        num_fallback_predicted=predicted[0] if providers and predicted else None,
        build_seconds=engine_record["build_seconds"],
        notes=(
            *verdict.get("notes", ()),
            *model_notes,
            *engine.notes(),
            *([predicted[1]] if providers and predicted else []),
            *runner["notes"],
            *([searched[name].sentence] if name in searched else []),
        ),
    )
    full_name = Variant(FP32, variant.backend).name
    variant_timings = [timing for timing in timings if timing.name == name]
    fp32_timings = {timing.batch_size: timing for timing in timings if timing.name == full_name}
    if results.timings is None or not variant_timings:
        return record
    energies = energies_from(results.timings)
    splits = {(row["name"], row["batch_size"]): split_from_row(row) for row in measured["timings"]}
    by_batch = ((t, fp32_timings.get(t.batch_size), energies[t.name, t.batch_size]) for t in variant_timings)
    timed = (replace(_batch_timing(*row), split_ms=splits[row[0].name, row[0].batch_size]) for row in by_batch)
    return record.timed(tuple(timed))


def _providers(engine_record: Mapping[str, Any]) -> tuple[ProviderShare, ...]:
    """Who runs which nodes, as the build's record has it."""
    rows = engine_record.get("providers", ())
    return tuple(ProviderShare(**(row | {key: tuple(row[key]) for key in ("nodes", "segments")})) for row in rows)


def _prediction(results: Results, variant: Variant) -> tuple[int, str] | None:
    """How many nodes were said to run elsewhere before it was built, and the sentence; None where nobody was asked."""
    if (table := results.support.get(variant.backend)) is None:
        return None
    answer = answer_from(table)
    number, segments = len(answer.partition.outside), len(answer.partition.segments)
    which = ", ".join(dict.fromkeys(node.operator for node in answer.unsupported))
    nodes = f"{number} to run elsewhere ({which})" if number else "none to run elsewhere"
    return number, f"{answer.source} let expect {nodes}, in {segments} segment{'s' if segments != 1 else ''}."


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
    keys = ("max_abs", "mean_abs", "cosine_min", "cosine_mean", "psnr_db", "sqnr_db")
    return ComparedOutput(output=name, **{key: finite(row[key]) for key in keys})


def _model_info(plan: Plan, results: Results) -> ModelInfo:
    engine = next(iter(results.engines.values()))
    record = json.loads(engine.beside("record.json").read_text())
    inputs, outputs = (
        tuple(TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in record[side])
        for side in ("inputs", "outputs")
    )
    if results.packed is not None:
        return ModelInfo(results.packed.manifest.source, results.packed.manifest.signature, inputs, outputs)
    return ModelInfo(plan.model.source, results.source.signature_name(), inputs, outputs)


def _data(results: Results) -> DataRecord:
    if results.packed is not None:
        return DataRecord(results.packed.manifest.calibration, results.packed.manifest.evaluation)
    calibration = None if results.calibration is None else data_info(results.calibration)
    return DataRecord(calibration, data_info(results.evaluation))


def _metric_info(plan: Plan, results: Results) -> MetricInfo | None:
    judge = Judge(plan.data.metric, plan.data.output, plan.folder, plan.data.detector)
    if not judge.name:
        return None
    metric = judge.metric()
    value = None if results.source_verdict is None else finite(results.source_verdict.read()["reference_metric"])
    return MetricInfo(metric.name, metric.unit, metric.higher_is_better, value)


def _protocol_info(plan: Plan) -> ProtocolInfo:
    stage = plan.benchmark
    return ProtocolInfo(stage.protocol.describe(), stage.num_threads, stage.protocol)
