"""Made-up things that several tests share: a machine, a run's record, the quickest benchmark, a model's weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from calibration.arrays import Floats
from calibration.lint.finding import Finding
from calibration.ranges.convergence import Convergence, Point
from calibration.ranges.stop import SectionsLook, Stop
from engines.contract import LayerFacts, LayerTime, LayerTimes, TensorSpec
from pipeline.advice.recommendation import recommend
from pipeline.latency.benchmark import Queries, latency_from_ms
from pipeline.latency.device_times import LayersRun
from pipeline.latency.protocol import Protocol
from pipeline.machine.identity import Gpu, Machine
from pipeline.machine.monitor import MonitorSummary, ReadingSummary
from pipeline.record import (
    ENGINE,
    SCHEMA_VERSION,
    SIMULATION,
    BatchTiming,
    ComparedOutput,
    DataInfo,
    DataRecord,
    MethodQuality,
    MethodSummary,
    MetricInfo,
    ModelInfo,
    PlanInfo,
    ProtocolInfo,
    Record,
    StageRun,
    TensorHistogram,
    TensorQuality,
    VariantRecord,
)

QUICK_PROTOCOL = """
[benchmark.protocol]
warmup_queries = 1
warmup_seconds = 0.0
min_queries = 8
min_seconds = 0.0
num_blocks = 4
"""
"""A part of a plan: timed in a moment."""

TOP1 = MetricInfo(name="top1", unit="fraction of samples", higher_is_better=True, source_value=0.9137)

MACHINE = Machine(
    system="Linux",
    kernel="6.1.0",
    architecture="x86_64",
    board="",
    cpu="Example CPU 4000",
    num_cores=2,
    cpu_quota_cores=1.5,
    isa=("avx2", "avx512_vnni"),
    memory_mib=16000,
    governor="performance",
    gpus=(Gpu("Example GPU", "999.1", 8192, 75.0),),
    jetson_release="",
    power_mode="",
)

WATCHED = MonitorSummary(
    period_ms=100,
    num_readings=60,
    power_mode="MAXN",
    clocks_mhz=(ReadingSummary("gpu 17000000.gpu", 306.0, 612.5, 624.75),),
    temperatures_c=(ReadingSummary("gpu-thermal", 51.0, 52.5, 54.0),),
    rails_mw=(ReadingSummary("VDD_IN", 4900.0, 5200.0, 5900.0), ReadingSummary("VDD_SOC", 1400.0, 1450.0, 1500.0)),
    total_rails=("VDD_IN",),
    num_throttles=0,
    notes=(),
)


def variant_named(name: str, drop: float | None, size_bytes: int) -> VariantRecord:
    """An untimed variant whose accuracy was measured on the engine; ``name``: as of a ``Variant``."""
    precision, backend = name.rpartition("+")[2].split("@")
    return VariantRecord(
        name=name,
        precision=precision,
        backend=backend,
        placement="onnxruntime" if backend == "onnxruntime" else "tensorrt",
        size_bytes=size_bytes,
        size_compressed_bytes={},
        metric=None if drop is None else 0.9137 - drop,
        metric_drop=drop,
        metric_measured_on=ENGINE,
        agreement=1.0 if drop == 0 else 0.991,
        comparison=(ComparedOutput("probabilities", 0.0123, 0.0004, 0.9987, 0.9999, 41.5, 32.5),),
        remedy=None,
        failures=(),
        latency_ms=None,
        throughput_per_s=None,
        speedup=None,
        by_batch=(),
        ram_change_mib=None if drop is None else 12.5,
        device_memory_mib=None,
        layers=None,
        largest_batch=None,
        latency_missing="no NVIDIA driver on this machine (libcuda.so.1 is missing)",
        artifact=f"/store/build/{name}/engine",
        num_int8=27 if precision == "int8" else 0,
        num_4_bits=0,
        providers=(),
        num_fallback_nodes=None,
        num_fallback_predicted=None,
        num_quantizable=29,
        build_seconds=1.25,
        notes=(),
    )


def layers_run(num_layers: int) -> LayersRun:
    """So many layers; the later one is, the longer it takes."""
    total = num_layers * (num_layers + 1) / 2
    layers = tuple(
        LayerTime(LayerFacts(f"conv_{n} + <relu>", "conv", "INT8", (f"Conv_{n}",)), n / 100, n / total)
        for n in range(1, num_layers + 1)
    )
    return LayersRun(1, 50, LayerTimes(layers, 17.6))


def made_up_ms(p50_ms: float) -> Floats:
    """4000 made-up latencies, skewed to the right."""
    noise = np.random.default_rng(7).lognormal(0.0, 0.5, 4000)
    return p50_ms * (0.93 + 0.07 * noise)


def timing_of(batch_size: int, p50_ms: float, speedup: float | None, file: str) -> BatchTiming:
    """A timing whose other numbers follow from its p50."""
    latency = latency_from_ms(made_up_ms(p50_ms))
    return BatchTiming(
        batch_size=batch_size,
        latency_ms=latency,
        throughput_per_s=batch_size / latency.mean * 1000,
        speedup=speedup,
        speedup_interval=None if speedup in (None, 1.0) else (speedup * 0.97, speedup * 1.03),
        device_ms=None,
        split_ms=None,
        num_queries=4000,
        stable=True,
        note="",
        power_mw=5200.0 if batch_size == 1 else None,
        energy_mj=5200.0 * latency.mean / 1000 if batch_size == 1 else None,
        energy_missing="" if batch_size == 1 else "only 2 readings of the power fell into its blocks",
        queries_file=file,
    )


def timed(variant: VariantRecord, p50_ms: float, speedup: float | None) -> VariantRecord:
    """The variant with timings at batch 1 and 32."""
    files = [f"samples/{variant.name}-batch{size}.npz" for size in (1, 32)]
    return variant.timed((timing_of(1, p50_ms, speedup, files[0]), timing_of(32, p50_ms * 21, speedup, files[1])))


def tensor_quality(name: str, sqnr_db: float | None, *notes: str) -> TensorQuality:
    """A tensor by entropy; the other methods are 1 dB worse or better. Without an SQNR, it is all zero."""
    if sqnr_db is None:
        by_method = dict.fromkeys(("entropy", "minmax", "percentile", "mse"), MethodQuality(0.0, None, 0.0))
        return TensorQuality(name, "entropy", True, 0.0, 0.0, 0.0, None, 0.0, by_method, "", notes)
    by_method = {
        "entropy": MethodQuality(4.0, sqnr_db, 1e-4),
        "minmax": MethodQuality(6.2, sqnr_db - 1, 0.0),
        "percentile": MethodQuality(4.2, sqnr_db - 0.5, 9e-5),
        "mse": MethodQuality(5.5, sqnr_db + 1, 2e-5),
    }
    return TensorQuality(name, "entropy", True, 4.0, 0.0, 6.2, sqnr_db, 1e-4, by_method, "mse", notes)


def sample_record() -> Record:
    """Three variants timed on one backend, two simulated on another, one of them out of tolerance."""
    int8 = timed(variant_named("int8@onnxruntime", 0.0012, 512_340), 0.228, 1.81)
    simulated = replace(variant_named("int8@tensorrt_rtx", 0.0021, 731_900), metric_measured_on=SIMULATION)
    variants = (
        timed(variant_named("fp32@onnxruntime", 0.0, 1_893_504), 0.412, 1.0),
        timed(variant_named("fp16@onnxruntime", 0.0001, 951_120), 0.447, 0.92),
        replace(int8, notes=("weights in 7 bits (u8s7): this CPU has no VNNI",), layers=layers_run(23)),
        replace(
            variant_named("fp16@tensorrt_rtx", 0.0, 1_034_000),
            metric_measured_on=SIMULATION,
            failures=("output 'probabilities' has cosine 0.998700, below min_cosine 0.999",),
        ),
        simulated,
    )
    names = [f"model/block_{index}/depthwise_conv2d/BiasAdd" for index in range(15)]
    tensors = [tensor_quality(name, 24.0 + 1.3 * i) for i, name in enumerate(names)]
    tensors.append(tensor_quality("model/<dropped> & zero", None, "all zero"))
    counts = tuple(int(9000 * 0.93**i) for i in range(120))
    shared = TensorHistogram((names[0], "model/flatten/Reshape"), 6.2 / 120, counts, 77)
    return Record(
        schema_version=SCHEMA_VERSION,
        created="2026-01-02T03:04:05+00:00",
        plan=PlanInfo("plan.toml", "0123456789abcdef" * 4),
        model=ModelInfo(
            "models/<kws> & co",
            "serving_default",
            (TensorSpec("input_1", "float32", (-1, 49, 10, 1)),),
            (TensorSpec("probabilities", "float32", (-1, 12)),),
        ),
        data=DataRecord(
            DataInfo("data/calib.npz", 200, "as it is", "aa" * 32),
            DataInfo("data/eval.npz", 4890, "as it is", "bb" * 32),
        ),
        metric=TOP1,
        protocol=ProtocolInfo(Protocol().describe(), 1, Protocol()),
        machine=MACHINE,
        monitor=WATCHED,
        load_from_others=0.02,
        power_modes=None,
        together=None,
        versions={"python": "3.11.7", "onnxruntime": "1.32.0"},
        variants=variants,
        tensors=tuple(tensors),
        methods=(
            MethodSummary("entropy", 16, 0, 4, 32.1),
            MethodSummary("minmax", 0, 0, 2, 31.1),
            MethodSummary("percentile", 0, 0, 3, 31.6),
            MethodSummary("mse", 0, 15, 15, 33.1),
        ),
        histograms=(shared, TensorHistogram((names[1],), 6.2 / 120, counts[:-1], 0)),
        lint=(Finding("warning", "overlap", "12 of 200 calibration samples are <evaluation> samples too"),),
        range_choice=None,
        stop=Stop(0.1, 0.95, 800, 200, (SectionsLook(104, "a", 0.13, 0.1), SectionsLook(200, "b", 0.08, 0.1))),
        settling=Convergence("minmax", ("a", "b"), (Point(1, 0.4, 0.8), Point(2, 0.1, 0.12), Point(3, 0.0, 0.0)), None),
        trainings={},
        mixtures={},
        served=(StageRun("export", "cc" * 32, True, 0.01), StageRun("build", "dd" * 32, False, 2.5)),
        notes=("12 of 200 calibration samples are evaluation samples too",),
        advice=None,
        recommendation=recommend(variants, TOP1, 0.005),
    )


def write_queries(record: Record, folder: Path) -> None:
    """Write made-up raw latencies where the record says they are."""
    for variant in record.variants:
        for timing in variant.by_batch:
            latency = made_up_ms(timing.latency_ms.p50)
            block = np.repeat(np.arange(10), 400)
            queries = Queries(latency, block, np.cumsum(latency), np.full(4000, np.nan))
            queries.write(folder / timing.queries_file)


def model_with_weights(text: str, seed: int, **shapes: tuple[int, ...]) -> onnx.ModelProto:
    """The ONNX text as a model, with normal weights of these shapes, drawn once and for all."""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(seed)
    for name, shape in shapes.items():
        values = random.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.checker.check_model(model, full_check=True)
    return model
