"""Derive how far a correct engine's outputs may be from FP32's: by random draws of its format's rounding."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx

from calibration.analysis.rounding import FP16, FP32, TF32, Format, Placing, Rounded, placing_for, rounded_from_onnx
from calibration.analysis.sqnr import sqnr_db
from calibration.arrays import AnyArray, Floats
from calibration.data.batches import Samples
from calibration.graph.watched_outputs import watchable, write_watched
from calibration.histogram.collect import collect
from calibration.histogram.histogram import Histogram
from calibration.histogram.methods import Method
from calibration.precision.placement import PlacementOptions, PlacementTarget
from calibration.precision.scale import Arithmetic
from calibration.precision.watch import watched_tensors
from calibration.ranges.ranges import (
    AUTO,
    METHODS,
    Origin,
    RangeMethod,
    RangesRecord,
    ranges_from_histograms,
    spans_from_ranges,
)
from engines import backend, module_of
from engines.backends import onnxruntime
from engines.precision import precision_named
from pipeline.artifact import OnnxModel, Tolerances
from pipeline.engine_runner import ModelRunner, SampleRunner, few
from pipeline.machine.packages import distribution_versions
from pipeline.machine.progress import Bar
from pipeline.option import check_bounds, option
from pipeline.stage import Stage

BATCH_SIZE = 32
LEAST_SAMPLES = 64
"""Of fewer the halves tell too little of how wide ranges are; a plan derives nothing then, and says so."""
LEAST_DEVIATION_DB = 0.5
"""Draws that are all alike are no proof that every engine is."""
ATOL_FACTOR = 4.0
"""The largest difference of all samples, against the largest of those that were drawn on."""


@dataclass(frozen=True)
class Rounding:
    """What engines of one kind round, and by which ranges: all that is known of an engine before it is judged."""

    precision: str
    target: PlacementTarget | Literal["none"]
    """Where INT8 is placed; for FP32, ``tensorrt`` means that products may round their inputs to TF32."""
    exclude: tuple[str, ...] = ()
    arithmetic: Arithmetic = "u8s8"
    method: RangeMethod | Literal["any"] = "any"
    """How ranges are read; ``any``: whichever of the four makes most noise."""
    percentile: float = 99.99
    methods: Mapping[str, Method] = field(default_factory=dict)
    """For ``auto``: how the range of each tensor is read."""

    def form(self) -> Format:
        """The floating-point format of what is not INT8."""
        precision = precision_named(self.precision)
        if precision.is_full:
            return TF32 if self.target == "tensorrt" else FP32
        return FP32 if precision.is_integer and self.target == "onnxruntime" else FP16


@dataclass(frozen=True)
class Bound:
    """How far one output may be off."""

    atol: float
    """Largest absolute difference of an element."""
    min_sqnr_db: float
    """Smallest SQNR over the samples that it was derived on."""
    mean_db: float
    deviation_db: float
    """Of the SQNRs of the engines that were drawn."""
    floor_db: float
    """SQNR of one FP32 run against another."""


@dataclass
class NoiseSums:
    """Of one output over the samples: signal and, by draw, noise and the largest difference."""

    num_draws: int
    signal: float = 0.0
    floor: float = 0.0
    """Noise between two FP32 runs."""
    noise: Floats = field(init=False)
    most: Floats = field(init=False)

    def __post_init__(self) -> None:
        """Begin with nothing."""
        self.noise, self.most = np.zeros(self.num_draws), np.zeros(self.num_draws)

    def add(self, draw: int, expected: AnyArray, actual: AnyArray) -> None:
        """What a draw answered on a batch."""
        with np.errstate(all="ignore"):
            far = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
        far[~np.isfinite(far)] = math.inf
        self.noise[draw] += float(np.square(far).sum())
        self.most[draw] = max(self.most[draw], float(far.max(initial=0.0)))

    def bound(self, num_deviations: float) -> Bound | None:
        """None where the draws answer no numbers, or exactly as FP32 does, so that nothing can be told."""
        ratios = np.array([sqnr_db(self.signal, float(noise)) for noise in self.noise])
        if not np.isfinite(ratios).all() or not math.isfinite(self.floor):
            return None
        mean, deviation = float(ratios.mean()), max(float(ratios.std(ddof=1)), LEAST_DEVIATION_DB)
        noise = 10 ** (-(mean - num_deviations * deviation) / 10) + self.floor / self.signal
        atol = ATOL_FACTOR * float(self.most.max())
        return Bound(atol, -10 * math.log10(noise), mean, deviation, sqnr_db(self.signal, self.floor))


@dataclass(frozen=True)
class Tolerate(Stage):
    """Derive tolerances: round in FP32 what the format rounds, draw engines at random, and see how far outputs move.

    Nothing of the engine that is going to be judged is looked at, nor the ranges it was made with: INT8's are read from
    FP32's values on these very samples, so that a wrong calibration cannot loosen its own bound; and on one half of
    them or the other, as an engine is calibrated on other samples than it is judged on. See
    ``calibration.analysis.rounding`` and docs/validation.md.
    """

    NEEDS_TOLERANCES: ClassVar[bool] = True
    RESULT: ClassVar[str] = "tolerances"

    num_samples: int = option(128, "number of evaluation samples to use, evenly spread; 0: all")
    num_draws: int = option(16, "engines simulated by random draws of their rounding errors")
    num_deviations: float = option(4.0, "standard deviations below the mean SQNR of the draws that are still accepted")
    seed: int = option(0, "random seed of the draws")
    runner: ModelRunner = option("onnxruntime", "runtime for the FP32 model")
    num_threads: int = option(0, "threads of the runner; 0: the runner's default")

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(
            self,
            num_samples=(0, math.inf),
            num_draws=(3, math.inf),
            num_deviations=(1, math.inf),
            seed=(0, math.inf),
            num_threads=(0, math.inf),
        )

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        return distribution_versions("numpy", "onnx", "onnx-ir", "onnxruntime")

    def modules(self, *_inputs: object) -> tuple[str, ...]:
        """What is loaded by name."""
        return (module_of(self.runner),)

    def __call__(self, out: Path, model: OnnxModel, samples: Samples, rounding: Rounding) -> Tolerances:
        """Write ``out/tolerances.json``: the fields of ``Rounding``, ``num_samples`` of ``num_given``, ``num_draws``,
        ``amaxes`` (INT8: each tensor's range on these samples by the same method) and ``outputs``, a ``Bound`` for
        each output, null where nothing can be told.

        Raises:
            Unavailable: the runner is not installed.
            DataError: samples that do not fit the model.
            ModelError, EngineError: the model cannot be rounded, or not run.
        """  # fmt: skip
        proto = onnx.load(model.path)
        halves: list[tuple[RangesRecord, RangesRecord]] = []
        whole: dict[str, float] = {}
        if precision_named(rounding.precision).is_integer:
            halves, whole = self._ranges(model.path, proto, samples, rounding)
        options = PlacementOptions("tensorrt" if rounding.target == "none" else rounding.target, rounding.exclude,
                                   rounding.arithmetic)  # fmt: skip
        placings: list[list[Placing | None]] = [
            [placing_for(spans_from_ranges(half), options) for half in pair] for pair in halves
        ]
        lots = [[rounded_from_onnx(proto, rounding.form(), placing) for placing in lot] for lot in placings or [[None]]]
        sums_of_lots = self._sums(model.path, samples, lots)
        bounds = [
            {name: sums.bound(self.num_deviations) for name, sums in sums_by_output.items()}
            for sums_by_output in sums_of_lots
        ]
        record = asdict(rounding) | {
            "num_samples": min(self.num_samples or samples.num_samples, samples.num_samples),
            "num_given": samples.num_samples,
            "num_draws": self.num_draws,
            "amaxes": whole,
            "outputs": {name: _loosest([bound_by_output[name] for bound_by_output in bounds]) for name in bounds[0]},
        }
        (out / "tolerances.json").write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")
        return Tolerances(out / "tolerances.json")

    def _ranges(
        self, path: Path, proto: onnx.ModelProto, samples: Samples, rounding: Rounding
    ) -> tuple[list[tuple[RangesRecord, RangesRecord]], dict[str, float]]:
        """By the method, or by each of them, the ranges of one half of the samples and of the other.

        And, by the one method, each tensor's amax on all of them.
        """
        assert rounding.target != "none"
        watched = watched_tensors(proto, rounding.target, watchable(proto))
        with ExitStack() as stack:
            file = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trtforge-"))) / "watched.onnx"
            write_watched(path, proto, watched.names, file)
            run = SampleRunner(stack.enter_context(backend(self.runner).load(file, num_threads=self.num_threads)))
            first, second = (
                watched.completed(collect(run, islice(few(samples, self.num_samples), half, None, 2)))
                for half in ((0, 1) if samples.num_samples > 1 else (0, 0))
            )
        both = {name: histogram.merged(second[name]) for name, histogram in first.items()}
        origin = Origin("", "", samples.num_samples)

        def read(histograms: Mapping[str, Histogram], method: RangeMethod) -> RangesRecord:
            first = "entropy" if method == AUTO else method
            ranges = ranges_from_histograms(histograms, first, rounding.percentile, origin)
            return ranges.read_by(AUTO, rounding.methods) if method == AUTO else ranges

        methods: tuple[RangeMethod, ...] = METHODS if rounding.method == "any" else (rounding.method,)
        halves = [(read(first, method), read(second, method)) for method in methods]
        if len(methods) > 1:
            return halves, {}
        return halves, {name: tensor.amax for name, tensor in read(both, methods[0]).tensors.items()}

    def _sums(self, path: Path, samples: Samples, lots: list[list[Rounded]]) -> list[dict[str, NoiseSums]]:
        """By output, for each lot of rounding models; the draws take turns with the models of a lot."""
        random = np.random.default_rng(self.seed)
        bar = Bar("tolerate", min(self.num_samples or samples.num_samples, samples.num_samples))
        sums_of_lots: list[dict[str, NoiseSums]] = [{} for _ in lots]
        with ExitStack() as stack:
            stack.callback(bar.close)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trtforge-")))

            def opened(rounded: Rounded) -> SampleRunner:
                file = folder / f"{len(list(folder.iterdir()))}.onnx"
                onnx.save(rounded.model, file)
                return SampleRunner(stack.enter_context(backend(self.runner).load(file, num_threads=self.num_threads)))

            runs = [[(opened(rounded), rounded) for rounded in lot] for lot in lots]
            turns = [[lot[index % len(lot)] for index in range(self.num_draws)] for lot in runs]
            draws = [[(run, rounded.draw(random)) for run, rounded in lot] for lot in turns]
            reference = SampleRunner(stack.enter_context(backend(self.runner).load(path, num_threads=self.num_threads)))
            again = reference
            if self.runner == "onnxruntime":
                again = SampleRunner(stack.enter_context(onnxruntime.load_simulation(path, num_threads=1)))
            num = 0
            for batch in _batches(few(samples, self.num_samples), reference.fixed or BATCH_SIZE):
                expected, other = reference(batch), again(batch)
                for sums, lot in zip(sums_of_lots, draws, strict=True):
                    _add(sums, expected, other, [run({**batch, **draw}) for run, draw in lot])
                num += len(next(iter(batch.values())))
                bar.to(num)
        return sums_of_lots


def _add(
    sums: dict[str, NoiseSums],
    expected: Mapping[str, AnyArray],
    other: Mapping[str, AnyArray],
    outputs_of_draws: list[Mapping[str, AnyArray]],
) -> None:
    """One batch: FP32's outputs, those of another FP32 run, and those of each draw."""
    for name, want in expected.items():
        if want.dtype.kind != "f":
            continue
        noise = sums.setdefault(name, NoiseSums(len(outputs_of_draws)))
        noise.signal += float(np.square(want.astype(np.float64)).sum())
        noise.floor += float(np.square(other[name].astype(np.float64) - want.astype(np.float64)).sum())
        for draw, got in enumerate(outputs_of_draws):
            noise.add(draw, want, got[name])


def _batches(feeds: Iterator[dict[str, AnyArray]], size: int) -> Iterator[dict[str, AnyArray]]:
    """Single samples of one shape, put together."""
    waiting: list[dict[str, AnyArray]] = []
    for feed in feeds:
        if waiting and any(feed[name].shape != array.shape for name, array in waiting[0].items()):
            yield _joined(waiting)
            waiting = []
        waiting.append(feed)
        if len(waiting) == size:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(feeds: list[dict[str, AnyArray]]) -> dict[str, AnyArray]:
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def _loosest(bounds: list[Bound | None]) -> dict[str, float | None] | None:
    """The one with the smallest SQNR; None where one of them is."""
    known = [bound for bound in bounds if bound is not None]
    if len(known) < len(bounds):
        return None
    least = min(known, key=lambda bound: bound.min_sqnr_db)
    floor = least.floor_db if math.isfinite(least.floor_db) else None
    return asdict(least) | {"atol": max(bound.atol for bound in known), "floor_db": floor}
