"""The record of one run: everything that report.json, the terminal table and report.html say.

Documented key by key in ``docs/report-schema.md``. ``None`` (null in JSON) means that there is no such number; the
docstring of the field says why that can be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from calibration.analysis.range_choice import RangeChoice
from calibration.data.batches import Samples
from calibration.lint.finding import Finding
from calibration.ranges.convergence import Convergence
from calibration.ranges.stop import Stop
from engines.contract import DeviceTimes, Placement, TensorSpec
from engines.precision import PRECISIONS, precision_named
from engines.provider_share import ProviderShare
from pipeline.accuracy.mixture import MixtureInfo
from pipeline.latency.benchmark import Latency
from pipeline.latency.device_times import LayersRun
from pipeline.latency.largest_batch import LargestBatch
from pipeline.latency.power_modes import PowerModes
from pipeline.latency.protocol import Protocol
from pipeline.latency.together import Together
from pipeline.machine.identity import Machine
from pipeline.machine.monitor import MonitorSummary
from pipeline.techniques.record import Advice
from pipeline.training.curve import TrainingRecord

SCHEMA_VERSION = 15

MeasuredOn = Literal["engine", "float simulation (ONNX Runtime, Q/DQ as written)"]
ENGINE: MeasuredOn = "engine"
SIMULATION: MeasuredOn = "float simulation (ONNX Runtime, Q/DQ as written)"

Decision = Literal["ship", "stay", "undecided"]
"""``ship`` a reduced precision, ``stay`` with FP32, or ``undecided`` for want of numbers."""


@dataclass(frozen=True)
class PlanInfo:
    """The plan that the run obeyed, and the SHA-256 of its file."""

    path: str
    digest: str


@dataclass(frozen=True)
class ModelInfo:
    """The trained network."""

    source: str
    signature: str
    """Empty where the source has none (an ONNX file)."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class DataInfo:
    """One set of samples."""

    path: str
    num_samples: int
    preprocess: str
    """The sentence of ``Preprocess.describe()``."""
    digest: str


@dataclass(frozen=True)
class DataRecord:
    """The samples that ranges were found on, and those that judged."""

    calibration: DataInfo | None
    """None where no variant needs calibration."""
    evaluation: DataInfo


@dataclass(frozen=True)
class MetricInfo:
    """What right answers are counted with."""

    name: str
    unit: str
    """As the metric says. One that starts with ``fraction`` is printed in percent, and differences in points."""
    higher_is_better: bool
    source_value: float | None
    """The original model's own metric, in the framework it was trained with; None where that was not run."""

    def is_fraction(self) -> bool:
        """Whether the value is a share, from 0 to 1."""
        return self.unit.startswith("fraction")


@dataclass(frozen=True)
class ProtocolInfo:
    """What the latencies mean."""

    description: str
    """The sentence of ``Protocol.describe()``."""
    num_threads: int
    """Threads of a runtime on the CPU; 0: its own choice."""
    options: Protocol


@dataclass(frozen=True)
class ComparedOutput:
    """One output of an engine against the FP32 model's, over all evaluation samples.

    None stands for a number that is not finite: PSNR and SQNR of equal outputs, or anything about an output with NaN in
    it.
    """

    output: str
    max_abs: float | None
    mean_abs: float | None
    cosine_min: float | None
    cosine_mean: float | None
    psnr_db: float | None
    sqnr_db: float | None
    """Power of FP32's output to that of the difference, dB."""


@dataclass(frozen=True)
class BatchTiming:
    """One variant at one batch size."""

    batch_size: int
    latency_ms: Latency
    throughput_per_s: float
    """Samples per second of one stream: batch size / mean latency."""
    speedup: float | None
    """p50 of FP32 on the same backend / p50 of this; None where that FP32 was not timed."""
    speedup_interval: tuple[float, float] | None
    """95 % bootstrap interval of ``speedup``; None with it, and for FP32 itself."""
    device_ms: Latency | None
    """None where the backend does not tell."""
    split_ms: DeviceTimes | None
    """Medians of the parts of a query on the device; None likewise."""
    num_queries: int
    stable: bool
    note: str
    power_mw: float | None
    """Mean power of the whole module (or package) during its blocks; None where it was not measured."""
    energy_mj: float | None
    """Energy of one inference (one sample); None with ``power_mw``."""
    energy_missing: str
    """Why there is no energy; empty if there is."""
    queries_file: str
    """Every recorded query (``.npz``, see ``pipeline.latency.benchmark.Queries``), relative to report.json."""


@dataclass(frozen=True)
class Remedy:
    """What was tried where INT8 is out of bounds, each trial judged as the variant was."""

    holds: bool
    sentence: str
    """The first trial that holds, with its numbers and cost; or that none did."""
    toml: str
    """What to write into the plan; empty where nothing held."""
    tried: tuple[str, ...]
    """The trials that did not hold, with their numbers."""
    metric: float | None
    """Of the trial that holds; None where none does, or the plan names no metric."""


@dataclass(frozen=True)
class VariantRecord:
    """One precision on one backend."""

    name: str
    """``<precision>@<backend>``, of another network than the trained one ``<network>+<precision>@<backend>``."""
    precision: str
    backend: str
    placement: Placement
    size_bytes: int
    size_compressed_bytes: Mapping[str, int]
    """Of the engine's file by compressor: gzip, xz, zstd; empty where no network of the run has weights at zero."""
    metric: float | None
    """None where the plan names no metric, or where it came out as NaN."""
    metric_drop: float | None
    """Positive: worse than the FP32 ONNX model."""
    metric_measured_on: MeasuredOn
    agreement: float | None
    """Share of evaluation samples whose arg max is that of FP32; None where the model's output is not class scores."""
    comparison: tuple[ComparedOutput, ...]
    failures: tuple[str, ...]
    """What validation found out of tolerance; empty if all passed."""
    remedy: Remedy | None
    """Of INT8 out of bounds; None where there is nothing to mend, or nothing was tried."""
    latency_ms: Latency | None
    """This and the next two repeat the first batch size of ``by_batch``; None where nothing was timed."""
    throughput_per_s: float | None
    speedup: float | None
    by_batch: tuple[BatchTiming, ...]
    ram_change_mib: float | None
    """By how much the machine's available memory fell when the engine was loaded and ran once; negative if other
    programs gave some back. On a Jetson the GPU's memory is in it. None where nothing was timed."""
    device_memory_mib: float | None
    """By how much the GPU's free memory fell when the engine was loaded and ran once; None where the backend does not
    tell, or nothing was timed."""
    layers: LayersRun | None
    """The times of its layers; None where they were not asked for."""
    largest_batch: LargestBatch | None
    """The largest batch that keeps a bound of latency; None where it was not asked for."""
    latency_missing: str
    """Why there is no latency; empty if there is one."""
    artifact: str
    """The engine's path."""
    num_int8: int
    """Convolutions and matrix products that run in integer arithmetic; -1 where the backend cannot tell."""
    num_quantizable: int
    num_4_bits: int
    """Convolutions and matrix products whose weights have 4 bits in the file that the engine was built from."""
    providers: tuple[ProviderShare, ...]
    """Who runs which nodes, where several share the engine: first whom the backend is for. Else empty."""
    num_fallback_nodes: int | None
    """Nodes that the first of them does not run; None where nobody shares the engine."""
    num_fallback_predicted: int | None
    """How many `trtforge support` said it would not; None likewise, and where it was not asked."""
    build_seconds: float
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the precision; TypeError. A later release may know others."""
        if self.precision not in PRECISIONS:
            raise TypeError(f"precision is {self.precision!r}, expected one of {', '.join(PRECISIONS)}")

    def timed(self, by_batch: tuple[BatchTiming, ...]) -> VariantRecord:
        """The same with these timings (at least one); the fields that repeat the first are filled in."""
        first = by_batch[0]
        return replace(
            self,
            latency_ms=first.latency_ms,
            throughput_per_s=first.throughput_per_s,
            speedup=first.speedup,
            by_batch=by_batch,
            latency_missing="",
        )

    def farthest_output(self) -> ComparedOutput | None:
        """The output that is least like FP32's: the lowest SQNR, one that is not finite before all; None if equal."""
        different = [output for output in self.comparison if output.max_abs != 0]
        return min(different, key=lambda output: -math.inf if output.sqnr_db is None else output.sqnr_db, default=None)

    def is_trained(self) -> bool:
        """Whether it is of the trained network, neither pruned nor tuned."""
        return self.name.startswith(f"{self.precision}@")

    def is_simulated(self) -> bool:
        """Whether the accuracy is not the engine's own."""
        return self.metric_measured_on != ENGINE


@dataclass(frozen=True)
class MethodQuality:
    """What one calibration method makes of one tensor; the fields are those of ``TensorQuality``."""

    amax: float
    sqnr_db: float | None
    clipped_share: float


@dataclass(frozen=True)
class TensorQuality:
    """How well eight bits hold one tensor, read from its histogram on the calibration data."""

    name: str
    method: str
    """How the chosen range was read."""
    quantized: bool
    """Whether an INT8 model of the run has Q/DQ nodes on it; true where there is no such model."""
    amax: float
    """The chosen range is -amax to amax."""
    min: float
    max: float
    sqnr_db: float | None
    """Signal to quantization noise ratio, dB; None where there is no noise (infinite) or no signal (all zero)."""
    clipped_share: float
    """Share of values beyond ``amax``."""
    by_method: Mapping[str, MethodQuality]
    best_method: str
    """Of the highest SQNR in tenths of dB; among equals ``method``, else the first; empty where none has any."""
    notes: tuple[str, ...]


@dataclass(frozen=True)
class MethodSummary:
    """One calibration method over all tensors."""

    method: str
    num_chosen: int
    """Tensors whose range it gives."""
    num_best: int
    """Tensors whose ``best_method`` it is."""
    num_near_best: int
    """Tensors where it is at most 0.5 dB below the best; those where it is the best are among them."""
    mean_sqnr_db: float | None
    """Over the tensors that have an SQNR; None if there are none."""


@dataclass(frozen=True)
class TensorHistogram:
    """The histogram of |x| of a tensor, coarse enough to be drawn, without the zeros."""

    tensors: tuple[str, ...]
    """All that have this very histogram, such as both ends of a Reshape."""
    bin_width: float
    counts: tuple[int, ...]
    """From 0 on, up to the last bin that holds a value."""
    num_zeros: int


@dataclass(frozen=True)
class StageRun:
    """One stage of the run, and whether the store had its result already."""

    stage: str
    digest: str
    from_store: bool
    seconds: float


@dataclass(frozen=True)
class Recommendation:
    """What to do, in one sentence with the numbers."""

    outcome: Decision
    variant: str
    """The variant to deploy; empty if undecided."""
    sentence: str
    max_metric_drop: float
    """The bound that it was judged by, in the metric's unit."""


@dataclass(frozen=True)
class Record:
    """One run."""

    schema_version: int
    created: str
    """ISO 8601, with the offset from UTC."""
    plan: PlanInfo
    model: ModelInfo
    data: DataRecord
    metric: MetricInfo | None
    """None where the plan names no metric: then only agreement with FP32 was judged."""
    protocol: ProtocolInfo | None
    """None where nothing was timed."""
    machine: Machine
    monitor: MonitorSummary | None
    """None where nothing was timed, or the machine was not monitored."""
    load_from_others: float | None
    """The share of all cores' time that other programs took while engines were timed; None where nothing was timed, or
    the system does not tell."""
    power_modes: PowerModes | None
    """A Jetson's, and what others than its own brought; None elsewhere."""
    together: Together | None
    """What running engines at once did to each; None where it was not asked for."""
    versions: Mapping[str, str]
    variants: tuple[VariantRecord, ...]
    tensors: tuple[TensorQuality, ...]
    """Empty where nothing was calibrated; so are the next two."""
    methods: tuple[MethodSummary, ...]
    histograms: tuple[TensorHistogram, ...]
    """Of the tensors of the lowest SQNR, worst first."""
    lint: tuple[Finding, ...]
    """What was found of the calibration data, errors (which the plan allows) first."""
    range_choice: RangeChoice | None
    """How the reading of the ranges was chosen; None where a method was named."""
    stop: Stop | None
    """Where calibration ended and why; None where it was not to stop."""
    settling: Convergence | None
    """None where nothing was calibrated."""
    trainings: Mapping[str, TrainingRecord]
    """How networks were trained, by ``pruned`` or the name of the variant; empty where none was."""
    mixtures: Mapping[str, MixtureInfo]
    """By variant, where INT8 was to hold a bound by mixed precision."""
    served: tuple[StageRun, ...]
    notes: tuple[str, ...]
    recommendation: Recommendation
    advice: Advice | None
    """Which technique to use; None where `trtforge run` wrote the report."""


def size_ratio(variant: VariantRecord, variants: Sequence[VariantRecord]) -> float | None:
    """The size over that of FP32 on the same backend; None for FP32 itself, or where there is none."""
    full = next((v for v in variants if precision_named(v.precision).is_full and v.backend == variant.backend), None)
    return None if full is None or full is variant else variant.size_bytes / full.size_bytes


def data_info(samples: Samples) -> DataInfo:
    """What a report says of a set of samples."""
    return DataInfo(samples.source.path, samples.num_samples, samples.preprocess.describe(), samples.digest())
