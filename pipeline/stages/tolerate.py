"""Derive how far a correct engine's outputs may be from FP32's: by random draws of its format's rounding."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx

from calibration.analysis.adjustable import AdjustableNetwork
from calibration.analysis.found_scales import with_found_scales
from calibration.analysis.rounding import FP16, FP16_WEIGHTS, FP32, TF32, Format, rounded_from_onnx, steps_feed
from calibration.analysis.whole_integer import WholeInteger, WholeIntegerNetwork, throughout
from calibration.data.batches import Samples
from calibration.data.source import spread
from calibration.graph.external_data import model_from_file
from calibration.graph.watched_outputs import watchable, write_watched
from calibration.histogram.collect import collect
from calibration.histogram.histogram import Histogram
from calibration.histogram.methods import Method
from calibration.precision.dynamic import found_scales
from calibration.precision.placement import (
    FULL_BITS,
    AttentionChoice,
    PlacementOptions,
    PlacementTarget,
    SmallProductChoice,
)
from calibration.precision.scale import Arithmetic
from calibration.precision.watch import Watch, watched_tensors
from calibration.precision.weights import mean_axes
from calibration.ranges.means import ChannelMeans, channel_means
from calibration.ranges.ranges import (
    AUTO,
    METHODS,
    Origin,
    RangeMethod,
    RangesRecord,
    ranges_from_histograms,
    spans_from_ranges,
)
from calibration.ranges.ranges_file import ranges_from_folder
from calibration.ranges.span import Span
from engines import backend, module_of
from engines.backends import onnxruntime
from engines.precision import precision_named
from pipeline.accuracy.drawing import Drawing, Drawn, Lot, Reference, Round, draw_lots
from pipeline.artifact import OnnxModel, Ranges, Tolerances
from pipeline.engine_runner import ModelRunner, SampleFeeds, SampleRunner, Sessions, few
from pipeline.machine.packages import distribution_versions
from pipeline.machine.progress import waiting
from pipeline.option import MOST_THREADS, check_bounds, option
from pipeline.stage import Stage

MEAN_SAMPLES = 8
"""Means of channels differ little with more."""
NUM_OF_WEIGHTS = 4
"""Models whose weights are rounded otherwise, where nothing else is."""
LEAST_SAMPLES = 64
"""Of fewer the halves tell too little of how wide ranges are; a plan derives nothing then, and says so."""


@dataclass(frozen=True)
class Rounding:
    """What engines of one kind round, and by which ranges: all that is known of an engine before it is judged."""

    precision: str
    target: PlacementTarget | Literal["tflite", "none"]
    """Where INT8 is placed; for FP32, ``tensorrt`` means that products may round their inputs to TF32. ``tflite``: as a
    `.tflite` file has it, every tensor in integers, in ``dynamic`` every product, and weights alone in FP16."""
    exclude: tuple[str, ...] = ()
    arithmetic: Arithmetic = "u8s8"
    method: RangeMethod | Literal["any"] = "any"
    """How ranges are read; ``any``: whichever of the four makes most noise."""
    percentile: float = 99.99
    methods: Mapping[str, Method] = field(default_factory=dict)
    """For ``auto``: how the range of each tensor is read."""
    corrects_biases: bool = False
    """Whether biases take back what rounded weights shift (``calibration.precision.weights``)."""
    attention: AttentionChoice = "rest"
    small_products: SmallProductChoice = "rest"
    weight_bits: int = FULL_BITS
    block_size: int = 0
    one_scale: tuple[str, ...] = ()
    """Of ``tflite``: operators of ONNX whose weights have one scale, and not one for each channel."""

    def range_methods(self) -> tuple[RangeMethod, ...]:
        """The method, or each of them where it may be any."""
        return METHODS if self.method == "any" else (self.method,)

    def form(self) -> Format:
        """The floating-point format of what is not INT8."""
        precision = precision_named(self.precision)
        if precision.is_full:
            return TF32 if self.target == "tensorrt" else FP32
        if self.target == "tflite":
            return FP16_WEIGHTS
        return FP32 if precision.is_integer and self.target == "onnxruntime" else FP16


def rounding_with_ranges(rounding: Rounding, ranges: Ranges) -> Rounding:
    """What a `.tflite` file of integers rounds, its ranges read as those of the float file were.

    By any method, where they were read by several. With many levels nothing that was seen is clipped.
    """
    record = ranges_from_folder(ranges.path)
    methods = {tensor.method for tensor in record.tensors.values()}
    single: RangeMethod | Literal["any"] = next((each for each in METHODS if methods == {each}), "any")
    method = "minmax" if precision_named(rounding.precision).has_many_levels else single
    return replace(rounding, method=method, percentile=record.percentile)


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

    num_samples: int = option(64, "number of evaluation samples to use at most, evenly spread; 0: all")
    num_draws: int = option(16, "engines simulated by random draws of their rounding errors, at most")
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
            num_threads=(0, MOST_THREADS),
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
        proto = model_from_file(model.path)
        with ExitStack() as stack:
            sessions = Sessions(stack, self.runner, self.num_threads)
            amaxes: dict[str, float] = {}
            precision = precision_named(rounding.precision)
            if precision.is_dynamic:
                lots = [self._lot_of_found_scales(proto, rounding, sessions)]
            elif precision.is_static and rounding.target == "tflite":
                lots = self._lots_of_whole_integers(model, proto, samples, rounding, sessions)
            elif precision.is_static:
                lots, amaxes = self._lots_of_int8(model, proto, samples, rounding, sessions)
            else:
                lots = [self._lot_of_floats(proto, rounding, sessions)]
            most = Round(self.num_draws, len(spread(samples.num_samples, self.num_samples)))
            drawing = Drawing(self._reference(model, samples), sessions, self.seed)
            draws = draw_lots(drawing, lots, most, self.num_deviations, clips=precision.is_static)
        record = asdict(rounding) | {
            "num_samples": len(draws.indices),
            "num_given": samples.num_samples,
            "num_draws": draws.num_draws,
            "indices": draws.indices,
            "amaxes": amaxes,
            "outputs": {name: bound and bound.record() for name, bound in draws.bounds.items()},
        }
        (out / "tolerances.json").write_text(json.dumps(record, indent=1, allow_nan=False), encoding="utf-8")
        return Tolerances(out / "tolerances.json")

    def _reference(self, model: OnnxModel, samples: Samples) -> Reference:
        """FP32's answers; kept for the next kind of engine of the model."""
        key = (model.digest(), samples.digest(), self.runner)
        if key not in _LAST_REFERENCE:
            _LAST_REFERENCE.clear()
            _LAST_REFERENCE[key] = Reference(model.path, samples)
        return _LAST_REFERENCE[key]

    def _lot_of_floats(self, proto: onnx.ModelProto, rounding: Rounding, sessions: Sessions) -> Lot:
        """One model, whose weights are rounded once: what their phases change is small beside what tensors' do.

        Several where weights alone are rounded.
        """
        form = rounding.form()
        models = [
            rounded_from_onnx(proto, form, None, np.random.default_rng([self.seed, number] if number else self.seed))
            for number in range(NUM_OF_WEIGHTS if form.weight_bits else 1)
        ]
        return [Drawn(sessions.opened(rounded.model), rounded.draw) for rounded in models]

    def _lot_of_found_scales(self, proto: onnx.ModelProto, rounding: Rounding, sessions: Sessions) -> Lot:
        """One model: scales of data are drawn about what each run finds."""
        if rounding.target == "tflite":
            what = throughout(proto, rounding.weight_bits, rounding.one_scale)
        else:
            what = found_scales(proto, rounding.exclude, rounding.arithmetic, rounding.block_size)
        rounded = with_found_scales(proto, what)
        return [Drawn(sessions.opened(rounded.model), rounded.draw)]

    def _lots_of_whole_integers(
        self, model: OnnxModel, proto: onnx.ModelProto, samples: Samples, rounding: Rounding, sessions: Sessions
    ) -> list[Lot]:
        """By the method, or by each of them, the ranges of one half of the samples and of the other, in one session."""
        halves = self._halves(model, proto, samples, "all")
        bits = precision_named(rounding.precision).activation_bits
        spans = [
            [spans_from_ranges(half) for half in halves.read(method, rounding.percentile, {})]
            for method in rounding.range_methods()
        ]
        network = WholeIntegerNetwork(proto, WholeInteger(bits, rounding.weight_bits, rounding.one_scale), spans[0][0])
        return _lots(network, spans, sessions)

    def _lots_of_int8(
        self, model: OnnxModel, proto: onnx.ModelProto, samples: Samples, rounding: Rounding, sessions: Sessions
    ) -> tuple[list[Lot], dict[str, float]]:
        """By the method, or by each of them, the ranges of one half of the samples and of the other, in one session.

        And, by the one method, each tensor's amax on all of them.
        """
        assert rounding.target != "none"
        assert rounding.target != "tflite"
        halves = self._halves(model, proto, samples, "placements")
        means = halves.means if rounding.corrects_biases else {}

        methods = rounding.range_methods()
        spans = [
            [
                spans_from_ranges(half.with_means(means))
                for half in halves.read(method, rounding.percentile, rounding.methods)
            ]
            for method in methods
        ]
        options = PlacementOptions(
            rounding.target,
            rounding.exclude,
            rounding.arithmetic,
            rounding.attention,
            rounding.small_products,
            weight_bits=rounding.weight_bits,
            block_size=rounding.block_size,
        )
        lots = _lots(AdjustableNetwork(proto, options, spans[0][0]), spans, sessions)
        if len(methods) > 1:
            return lots, {}
        both = halves.read_both(methods[0], rounding.percentile, rounding.methods)
        return lots, {name: tensor.amax for name, tensor in both.tensors.items()}

    def _halves(self, model: OnnxModel, proto: onnx.ModelProto, samples: Samples, watch: Watch) -> _Halves:
        """They are kept for the next kind of engine of the model."""
        key = (model.digest(), samples.digest(), f"{self.num_samples} {watch}", self.runner)
        if key not in _LAST_HALVES:
            watched = watched_tensors(proto, watch, watchable(proto))
            with waiting("ranges on each half of the samples"), ExitStack() as stack:
                file = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trtforge-"))) / "watched.onnx"
                write_watched(model.path, proto, watched.names, file)
                load = onnxruntime.load_values if self.runner == "onnxruntime" else backend(self.runner).load
                runner = stack.enter_context(SampleFeeds(load(file, num_threads=self.num_threads)))
                run, blocks = SampleRunner(runner), getattr(runner, "blocks", {})
                chosen = spread(samples.num_samples, self.num_samples)
                first, second = (
                    watched.completed(collect(run, samples.at(half))) for half in (chosen[::2], chosen[1::2] or chosen)
                )
                axes = mean_axes(watched.graph, set(watched.names))
                some = few(samples, min(self.num_samples or MEAN_SAMPLES, MEAN_SAMPLES))
                means = {} if blocks is None else channel_means(run, some, axes, blocks)
            _LAST_HALVES.clear()
            _LAST_HALVES[key] = _Halves((first, second), means)
        return _LAST_HALVES[key]


def _lots(
    network: AdjustableNetwork | WholeIntegerNetwork, spans: Sequence[Sequence[Mapping[str, Span]]], sessions: Sessions
) -> list[Lot]:
    """In one session, by method: the network with the ranges of one half of the samples and of the other."""
    run = sessions.opened(network.model)
    return [[Drawn(run, partial(steps_feed, network.steps(half))) for half in lot] for lot in spans]


class _Halves:
    """The values of tensors on one half of the samples and on the other, and means of channels on a few of them."""

    def __init__(self, halves: tuple[Mapping[str, Histogram], Mapping[str, Histogram]], means: ChannelMeans) -> None:
        self._halves, self.means = halves, means
        self._by_entropy: dict[tuple[int, float], RangesRecord] = {}

    def read(self, method: RangeMethod, percentile: float, methods: Mapping[str, Method]) -> list[RangesRecord]:
        """The ranges of either half; the tensors in ``methods`` by those."""
        return [self._ranges(number, percentile, (method, methods)) for number in range(2)]

    def read_both(self, method: RangeMethod, percentile: float, methods: Mapping[str, Method]) -> RangesRecord:
        """The same of both halves together."""
        return self._ranges(2, percentile, (method, methods))

    def _ranges(
        self, number: int, percentile: float, reading: tuple[RangeMethod, Mapping[str, Method]]
    ) -> RangesRecord:
        if (number, percentile) not in self._by_entropy:
            histograms = self._halves[number] if number < len(self._halves) else self._merged()
            ranges = ranges_from_histograms(histograms, "entropy", percentile, Origin("", "", 0))
            self._by_entropy[number, percentile] = ranges
        ranges, (method, methods) = self._by_entropy[number, percentile], reading
        first: Method = "entropy" if method == AUTO else method
        return ranges.read_by(method, {**dict.fromkeys(ranges.tensors, first), **methods})

    def _merged(self) -> dict[str, Histogram]:
        first, second = self._halves
        return {name: histogram.merged(second[name]) for name, histogram in first.items()}


_LAST_HALVES: dict[tuple[str, str, str, str], _Halves] = {}
_LAST_REFERENCE: dict[tuple[str, str, str], Reference] = {}
