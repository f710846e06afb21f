"""Run representative samples through the FP32 model and find each tensor's range."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import onnx

from calibration.analysis.range_choice import LEAST_SAMPLES, RangeChoice, most_samples, write_choice
from calibration.data.batches import Samples
from calibration.data.content_order import first_of, in_content_order
from calibration.data.recorded import RecordedSample, SampleRecorder, runnable
from calibration.data.source import spread
from calibration.errors import ModelError
from calibration.graph.answers import answer_tensors
from calibration.graph.editing import nodes_of
from calibration.graph.external_data import model_from_file
from calibration.graph.tensor_digests import tensor_digests
from calibration.graph.watched_outputs import replaced_where_nan, watchable, write_watched
from calibration.graph.weightless import skeleton_from_file
from calibration.histogram.collect import collect, num_in
from calibration.histogram.histogram import Histogram
from calibration.histogram.methods import Method
from calibration.precision.watch import TARGETS, Watch, WatchedTensors, watched_tensors
from calibration.precision.weights import mean_axes
from calibration.ranges.checkpoint import CalibrationObserver, Checkpoint
from calibration.ranges.convergence import Convergence, ConvergenceTracker, write_convergence
from calibration.ranges.means import ChannelMeans, SampleMeans, channel_means
from calibration.ranges.ranges import AUTO, Origin, RangeMethod, RangesRecord, methods_in, ranges_from_histograms
from calibration.ranges.ranges_file import write_ranges
from calibration.ranges.stop import StopRule, write_stop
from engines import backend, module_of
from engines.backends import litert, onnxruntime
from engines.contract import Array, Runner
from engines.errors import EngineError
from engines.litert import quantizer
from engines.model_format import ModelFormat
from engines.onnx_model import INTEGER_PRODUCTS, PRODUCTS
from pipeline.accuracy.range_choice import AnsweredSamples, chosen_ranges
from pipeline.accuracy.tflite_ranges import TfliteReader
from pipeline.artifact import ModelFile, OnnxModel, Ranges, TfliteModel
from pipeline.engine_runner import ModelRunner, ReplacedNan, SampleFeeds, Sessions, fixed_batch
from pipeline.machine.packages import distribution_versions
from pipeline.machine.progress import counting
from pipeline.option import MOST_THREADS, check_bounds, option
from pipeline.source_digest import source_digest
from pipeline.stage import Stage

TOOLS: dict[ModelFormat, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxruntime"),
    "tflite": (litert.DISTRIBUTION, quantizer.DISTRIBUTION),
}
"""What computes the values of a model in each format, and judges their ranges."""
HALF = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Calibrate(Stage):
    """Find the range of every tensor by running representative samples through the FP32 model.

    Streams the samples: memory does not grow with their number. One exact histogram of |x| per tensor, from which
    all methods are read; entropy is Migacz, "8-bit Inference with TensorRT" (GTC 2017), with TensorRT's threshold.
    ``auto`` is ``calibration.analysis.range_choice``: up to 16 of the samples are run with each candidate's INT8. The
    means of channels, for ``calibration.precision.weights``, are of as many.
    """

    RESULT: ClassVar[str] = "ranges"

    method: RangeMethod = option(
        "auto",
        "how ranges are read from the histograms; auto: by entropy unless the outputs are nearer to FP32 by another",
    )
    percentile: float = option(99.99, "for percentile: share of |x| within the range, in percent")
    watch: Watch = option(
        "placements", "tensors that get a range: those INT8 needs on either backend, on one of the two, or all"
    )
    batch_size: int = option(8, "samples read at a time; each is run separately, so the result does not depend on it")
    runner: ModelRunner = option("onnxruntime", "runtime for the FP32 model")
    num_threads: int = option(0, "threads of the runner per sample; 0: the runner's default")
    num_workers: int = option(1, "samples run in parallel; combine more than 1 with --num-threads 1")
    stop: float = option(
        0.0, "share of a range within which those of all samples are enough: samples are run until then; 0: all are run"
    )

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(self, num_threads=(0, MOST_THREADS), num_workers=(1, MOST_THREADS))
        check_bounds(self, percentile=(1e-9, 100), batch_size=(1, math.inf), stop=(0, 1))

    def versions(self, model: ModelFile, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        return distribution_versions("numpy", *TOOLS[model.FORMAT])

    def modules(self, model: ModelFile, *_inputs: object) -> tuple[str, ...]:
        """What is loaded by name."""
        return (module_of(litert.NAME if isinstance(model, TfliteModel) else self.runner),)

    def __call__(self, out: Path, model: ModelFile, samples: Samples) -> Ranges:
        """Write ``out/ranges`` (``calibration.ranges``: ``ranges`` and ``convergence``) and ``out/notes.json``.

        Of a `.tflite` file every tensor gets a range: all that it computes is INT8 then.

        Raises:
            DataError: no samples, or samples that do not fit the model.
            ModelError: the model cannot be read, or has no FP32 tensor that depends on its inputs.
            EngineError: the `.tflite` file is no float one, or cannot be run.
            Unavailable: the runner is not installed.
        """
        if self.stop:
            samples = in_content_order(samples)
        num_kept = most_samples(samples.num_samples)
        recorder = SampleRecorder(range(num_kept) if self.stop else spread(samples.num_samples, num_kept))
        if isinstance(model, TfliteModel):
            return self._of_tflite(out, model, samples, recorder)
        return self._of_onnx(out, model, samples, recorder)

    def _of_tflite(self, out: Path, model: TfliteModel, samples: Samples, recorder: SampleRecorder) -> Ranges:
        origin = Origin(model.digest(), samples.digest(), samples.num_samples, self.versions(model))
        reader = TfliteReader((self.method, self.percentile), model.path, recorder.rows, self.num_threads)
        observer = self._observer(out, model, origin, self._rule(samples, reader))
        loaded = litert.load_values(model.path, num_threads=self.num_threads)
        histograms = self._observed(loaded, samples, observer, recorder)
        samples, origin = _used(samples, origin, observer)
        convergence = observer.tracker.convergence(samples.num_samples, histograms)
        return _written(out, (*reader.read(histograms, origin), histograms), convergence, observer, [])

    def _of_onnx(self, out: Path, model: OnnxModel, samples: Samples, recorder: SampleRecorder) -> Ranges:
        proto = model_from_file(model.path)
        possible, replaced = watchable(proto), replaced_where_nan(proto)
        notes = _told_of_half_precision(model, proto, possible)
        watched = watched_tensors(proto, self.watch, possible)
        watched_model = out / "watched.onnx"
        write_watched(model.path, proto, watched.names, watched_model)
        versions, digests = self.versions(model), tensor_digests(proto)
        origin = Origin(model.digest(), samples.digest(), samples.num_samples, versions, digests)
        axes = mean_axes(watched.graph, set(possible))
        sources = watched.channel_sources(axes)
        can_be_met = sources.keys() == axes.keys() and not any(spec.is_whole for spec in samples.specs)
        met = SampleMeans(sources) if can_be_met and self.method != AUTO else None
        reader = _Reader(self, model.path, proto, watched, axes, recorder, out, met)
        observer = self._observer(out, model, origin, self._rule(samples, reader))
        with _named(watched_model, model.path):
            histograms = self._observed(self._load(watched_model, replaced), samples, observer, recorder, met)
        samples, origin = _used(samples, origin, observer)
        convergence = observer.tracker.convergence(samples.num_samples, histograms)
        histograms = watched.completed(histograms)
        unclear = [name for name in watched.unclear(histograms) if name in possible]
        if unclear:
            log.info("second pass, for %d tensors whose fit into FP16 does not follow from the others", len(unclear))
            write_watched(model.path, proto, unclear, watched_model)
            with _named(watched_model, model.path):
                histograms |= self._pass(self._load(watched_model, replaced), samples)
        watched_model.unlink()
        return _written(out, (*reader.read(histograms, origin), histograms), convergence, observer, notes)

    def _observer(self, out: Path, model: ModelFile, origin: Origin, rule: StopRule | None) -> CalibrationObserver:
        checkpoint = Checkpoint(out.parent, lambda: self._key(model, origin), origin)
        return CalibrationObserver(ConvergenceTracker(self.method, self.percentile), rule, checkpoint)

    def _observed(
        self,
        loaded: Runner,
        samples: Samples,
        observer: CalibrationObserver,
        recorder: SampleRecorder,
        met: SampleMeans | None = None,
    ) -> dict[str, Histogram]:
        try:
            return self._pass(loaded, samples, observer, recorder, met)
        except BaseException:
            observer.close(is_done=False)
            raise

    def _load(self, watched_model: Path, replaced: Collection[str]) -> Runner:
        load = onnxruntime.load_values if self.runner == "onnxruntime" else backend(self.runner).load
        return cast(Runner, ReplacedNan(load(watched_model, num_threads=self.num_threads), replaced))

    def _rule(self, samples: Samples, reader: _Reader | TfliteReader) -> StopRule | None:
        """When it may stop, if it may."""
        sizes = (samples.num_samples, samples.fixed_batch or 1)
        return StopRule(self.stop, sizes, self.percentile, reader.methods_of) if self.stop else None

    def _key(self, model: ModelFile, origin: Origin) -> str:
        """A word for all that the ranges depend on."""
        source = source_digest(type(self).__module__, *self.modules(model))
        return hashlib.sha256(repr((self, origin, source)).encode()).hexdigest()[:32]

    def _pass(
        self,
        loaded: Runner,
        samples: Samples,
        observer: CalibrationObserver | None = None,
        recorder: SampleRecorder | None = None,
        met: SampleMeans | None = None,
    ) -> dict[str, Histogram]:
        """Run all samples, each by itself: the last bits of what a runner computes may depend on the batch.

        ``met``: gets the samples that are kept, if each is run by itself.
        """
        with counting("calibrate", samples.num_samples) as on_batch, SampleFeeds(loaded) as runner:
            fixed = samples.fixed_batch or fixed_batch(runner)
            blocks = getattr(runner, "blocks", {}) if met is not None and fixed in (0, 1) else None
            wanted = spread(recorder.num_kept, LEAST_SAMPLES) if recorder and blocks is not None else ()

            def run(feed: Mapping[str, Array]) -> Mapping[str, Array]:
                if num_in(feed) != (fixed or 1):
                    return alone(runner, feed, fixed)
                values = runner.infer(feed)
                if met is not None and isinstance(feed, RecordedSample) and feed.number in wanted:
                    met.add(feed.number, {**feed, **values}, blocks)
                return values

            ready = runnable(samples.batches(fixed or self.batch_size), fixed or 1)
            ready = recorder.seen(ready) if recorder else ready
            histograms = collect(run, ready, on_batch=on_batch, observer=observer, num_workers=self.num_workers)
            if recorder and met is not None and blocks is not None:
                for number in spread(len(recorder.rows), LEAST_SAMPLES):
                    if number not in met:  # It was counted before an interruption, or calibration stopped early.
                        row = recorder.rows[number]
                        met.add(number, {**row, **runner.infer(row)}, blocks)
            return histograms


@contextmanager
def _named(watched_model: Path, model: Path) -> Iterator[None]:
    """Errors name the model, not the file that ran, which is gone by the time someone looks for it."""
    try:
        yield
    except EngineError as error:
        raise type(error)(str(error).replace(str(watched_model), str(model))) from error


def _used(samples: Samples, origin: Origin, observer: CalibrationObserver) -> tuple[Samples, Origin]:
    """The samples that were run, and the origin that they are of."""
    if observer.rule is None:
        return samples, origin
    used = first_of(samples, observer.rule.stop().num_used)
    return used, replace(origin, data_digest=used.digest(), num_samples=used.num_samples)


def _written(
    out: Path,
    read: tuple[RangesRecord, RangeChoice | None, Mapping[str, Histogram]],
    convergence: Convergence,
    observer: CalibrationObserver,
    notes: list[str],
) -> Ranges:
    """The folder of the ranges, and of what they were read from; the notes lie beside it."""
    folder = out / "ranges"
    folder.mkdir()
    ranges, choice, histograms = read
    write_ranges(ranges, histograms, folder)
    write_convergence(convergence, folder)
    if choice is not None:
        write_choice(choice, folder)
    if observer.rule is not None:
        stop = observer.rule.stop()
        write_stop(stop, folder)
        notes.append(stop.sentence())
    elif convergence.settled_at is None:
        notes.append(convergence.sentence())
    (out / "notes.json").write_text(json.dumps(notes))
    observer.close(is_done=True)
    return Ranges(folder)


@dataclass(frozen=True)
class _ExactPass:
    """What a pass of FP32 over a few samples tells."""

    means: ChannelMeans
    """Of the channels that products sum over."""
    samples: AnsweredSamples
    """All that were kept."""


@dataclass(eq=False)
class _Reader:
    """Reads ranges from histograms, and where no reading was named chooses among them."""

    stage: Calibrate
    path: Path
    """Of the model."""
    proto: onnx.ModelProto
    watched: WatchedTensors
    axes: Mapping[str, int]
    """Tensor -> the axis whose means are needed."""
    recorder: SampleRecorder
    work: Path
    """A folder to work in."""
    met: SampleMeans | None = None
    """Means of samples that were met on the way."""
    _last: tuple[dict[str, int], RangesRecord, RangeChoice | None] | None = None

    def methods_of(self, histograms: Mapping[str, Histogram]) -> dict[str, list[Method]]:
        """Of each tensor whose range becomes a scale of INT8, how it is read, for whatever placement."""
        names = [name for name in histograms if name in self.watched.scaled]
        if self.stage.method != AUTO:
            return {name: [self.stage.method] for name in names}
        ranges, _ = self.read(self.watched.completed(histograms), Origin("", "", 0))
        return {name: methods_in(ranges.tensors[name]) for name in names}

    def read(self, histograms: Mapping[str, Histogram], origin: Origin) -> tuple[RangesRecord, RangeChoice | None]:
        """The ranges, and how they were chosen; of the histograms that it had last, without doing it again."""
        sizes = {name: histogram.num_values for name, histogram in histograms.items()}
        if self._last is None or self._last[0] != sizes:
            stage, choice = self.stage, None
            ranges = ranges_from_histograms(histograms, stage.method, stage.percentile, origin)
            ranges = ranges.with_means(self._means())
            if stage.method == AUTO:
                ranges, choice = self._by_outputs(ranges)
            self._last = sizes, ranges, choice
        _, ranges, choice = self._last
        return replace(ranges, origin=origin), choice

    def _means(self) -> ChannelMeans:
        few = spread(len(self.recorder.rows), LEAST_SAMPLES)
        met = self.met
        return met.means(few) if met is not None and all(index in met for index in few) else self._exact_pass.means

    @cached_property
    def _exact_pass(self) -> _ExactPass:
        """One pass of FP32 over a few of the samples that were kept."""
        watched_model, rows = self.work / "means.onnx", self.recorder.rows
        names = answer_tensors(self.proto) if self.stage.method == AUTO else []
        write_watched(self.path, self.proto, [*self.axes, *names], watched_model)
        few, answers = spread(len(rows), LEAST_SAMPLES), []
        with ExitStack() as stack:
            run = Sessions(stack, self.stage.runner, self.stage.num_threads).of_file(watched_model)

            def run_and_keep(feed: Mapping[str, Array]) -> dict[str, Array]:
                outputs = run(feed)
                answers.append({name: outputs[name] for name in names})
                return outputs

            means = channel_means(run_and_keep, [rows[index] for index in few], self.axes)
        watched_model.unlink()
        return _ExactPass(means, AnsweredSamples(rows, dict(zip(few, answers, strict=True))))

    def _by_outputs(self, ranges: RangesRecord) -> tuple[RangesRecord, RangeChoice | None]:
        """The ranges by the readings that the outputs ask for, and why."""
        stage = self.stage
        targets = TARGETS.get(stage.watch, TARGETS["placements"])
        with ExitStack() as stack:
            sessions = Sessions(stack, stage.runner, stage.num_threads)
            return chosen_ranges(ranges, self.proto, self._exact_pass.samples, targets, sessions)


def check_float(model: OnnxModel, source: Path | None = None) -> None:
    """That a model is not INT8 already, of which no INT8 can be made; only its graph is read.

    ``source``: what it was exported from, for the sentence.

    Raises:
        ModelError: it has Q/DQ nodes, or integer operators alone.
    """
    operators = {node.op_type for node in nodes_of(skeleton_from_file(model.path).graph)}
    has_qdq = not operators.isdisjoint(("QuantizeLinear", "DequantizeLinear"))
    if has_qdq or (not operators.isdisjoint(INTEGER_PRODUCTS) and operators.isdisjoint(PRODUCTS)):
        what = "has Q/DQ nodes already" if has_qdq else "multiplies integers already"
        how = "" if source is None else f"`trtforge export {source} -o model.onnx` and "
        raise ModelError(
            f"{source or model.path}: {what}, so that there is no INT8 to make of it; give the FP32 model, or build "
            f"this one as it is with {how}`trtforge build {'model.onnx ' if how else ''}--precision int8`"
        )


def _told_of_half_precision(model: OnnxModel, proto: onnx.ModelProto, watchable_names: list[str]) -> list[str]:
    """A sentence if some weights are narrower than FP32, whose products are neither watched nor quantized."""
    if not watchable_names:
        raise ModelError(
            f"{model.path}: no FP32 tensor depends on its inputs, and INT8 is made of those; give the FP32 model"
        )
    half = [tensor.name for tensor in proto.graph.initializer if tensor.data_type in HALF]
    why = "are in half precision; INT8 is made of FP32: give the FP32 model"
    return [f"{len(half)} weights, the first '{half[0]}', {why}"] if half else []


def alone(runner: Runner, feed: Mapping[str, Array], batch_size: int) -> dict[str, Array]:
    """A sample's values from a model that takes whole batches, sorted: it is run on copies.

    Of values that are there once for each copy, every so many-th is taken; so none has to know which axis is the batch,
    if any still is.
    """
    outputs = runner.infer({name: np.repeat(array, batch_size, axis=0) for name, array in feed.items()})
    return {name: np.sort(array, axis=None)[::batch_size] for name, array in outputs.items()}
