"""Run representative samples through the FP32 model and find each tensor's range."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx

from calibration.analysis.range_choice import LEAST_SAMPLES, most_samples, write_choice
from calibration.data.batches import Samples
from calibration.data.source import spread
from calibration.errors import ModelError
from calibration.graph.editing import nodes_of
from calibration.graph.external_data import model_from_file
from calibration.graph.tensor_digests import tensor_digests
from calibration.graph.watched_outputs import watchable, write_watched
from calibration.graph.weightless import skeleton_from_file
from calibration.histogram.collect import OnPart, collect, num_in
from calibration.histogram.histogram import Histogram
from calibration.precision.watch import TARGETS, Watch, watched_tensors
from calibration.precision.weights import mean_axes
from calibration.ranges.convergence import ConvergenceTracker, write_convergence
from calibration.ranges.means import ChannelMeans, channel_means
from calibration.ranges.ranges import AUTO, Origin, RangeMethod, RangesRecord, ranges_from_histograms
from calibration.ranges.ranges_file import write_ranges
from engines import backend, module_of
from engines.backends import onnxruntime
from engines.contract import Array, Runner
from engines.errors import EngineError
from engines.onnx_model import INTEGER_PRODUCTS, PRODUCTS
from pipeline.accuracy.range_choice import chosen_ranges
from pipeline.artifact import OnnxModel, Ranges
from pipeline.engine_runner import ModelRunner, SampleFeeds, Sessions, fixed_batch
from pipeline.machine.packages import distribution_versions
from pipeline.machine.progress import counting
from pipeline.option import check_bounds, option
from pipeline.stage import Stage

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

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(
            self, percentile=(1e-9, 100), batch_size=(1, math.inf), num_threads=(0, math.inf), num_workers=(1, math.inf)
        )

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        return distribution_versions("numpy", "onnx", "onnxruntime")

    def modules(self, *_inputs: object) -> tuple[str, ...]:
        """What is loaded by name."""
        return (module_of(self.runner),)

    def __call__(self, out: Path, model: OnnxModel, samples: Samples) -> Ranges:
        """Write ``out/ranges`` (``calibration.ranges``: ``ranges`` and ``convergence``) and ``out/notes.json``.

        Raises:
            DataError: no samples, or samples that do not fit the model.
            ModelError: the model cannot be read, or has no FP32 tensor that depends on its inputs.
            Unavailable: the runner is not installed.
        """
        proto = model_from_file(model.path)
        possible = watchable(proto)
        notes = _told_of_half_precision(model, proto, possible)
        watched = watched_tensors(proto, self.watch, possible)
        watched_model = out / "watched.onnx"
        write_watched(model.path, proto, watched.names, watched_model)
        tracker = ConvergenceTracker(self.method, self.percentile)
        recorder = SampleRecorder(spread(samples.num_samples, most_samples(samples.num_samples)))
        histograms = self._pass(model, watched_model, samples, tracker.on_part, recorder)
        convergence = tracker.convergence(samples.num_samples, histograms)
        histograms = watched.completed(histograms)
        unclear = [name for name in watched.unclear(histograms) if name in possible]
        if unclear:
            log.info("second pass, for %d tensors whose fit into FP16 does not follow from the others", len(unclear))
            write_watched(model.path, proto, unclear, watched_model)
            histograms |= self._pass(model, watched_model, samples)
        axes = mean_axes(watched.graph, set(possible))
        write_watched(model.path, proto, axes, watched_model)
        means = self._means(watched_model, recorder, axes)
        watched_model.unlink()
        origin = Origin(model.digest(), samples.digest(), samples.num_samples, self.versions(), tensor_digests(proto))
        ranges = ranges_from_histograms(histograms, self.method, self.percentile, origin).with_means(means)
        folder = out / "ranges"
        folder.mkdir()
        if self.method == AUTO:
            ranges = self._chosen(ranges, proto, recorder, folder)
        write_ranges(ranges, histograms, folder)
        write_convergence(convergence, folder)
        if convergence.settled_at is None:
            notes.append(convergence.sentence())
        (out / "notes.json").write_text(json.dumps(notes))
        return Ranges(folder)

    def _means(self, watched_model: Path, recorder: SampleRecorder, axes: Mapping[str, int]) -> ChannelMeans:
        """The means of the channels that products sum over, on the samples that were kept."""
        with ExitStack() as stack:
            run = Sessions(stack, self.runner, self.num_threads).of_file(watched_model)
            few = [recorder.rows[index] for index in spread(len(recorder.rows), LEAST_SAMPLES)]
            return channel_means(run, few, axes)

    def _chosen(
        self, ranges: RangesRecord, proto: onnx.ModelProto, recorder: SampleRecorder, folder: Path
    ) -> RangesRecord:
        """The ranges by the readings that the outputs ask for; why stands in the folder."""
        targets = TARGETS.get(self.watch, TARGETS["placements"])
        with ExitStack() as stack:
            sessions = Sessions(stack, self.runner, self.num_threads)
            chosen, choice = chosen_ranges(ranges, proto, recorder.rows, targets, sessions)
        if choice is not None:
            write_choice(choice, folder)
        return chosen

    def _pass(
        self,
        model: OnnxModel,
        watched_model: Path,
        samples: Samples,
        on_part: OnPart | None = None,
        recorder: SampleRecorder | None = None,
    ) -> dict[str, Histogram]:
        """Run all samples, each by itself: the last bits of what a runner computes may depend on the batch."""
        load = onnxruntime.load_values if self.runner == "onnxruntime" else backend(self.runner).load
        try:
            with (
                counting("calibrate", samples.num_samples) as on_batch,
                SampleFeeds(load(watched_model, num_threads=self.num_threads)) as runner,
            ):
                fixed = samples.fixed_batch or fixed_batch(runner)

                def run(feed: Mapping[str, Array]) -> Mapping[str, Array]:
                    return runner.infer(feed) if num_in(feed) == (fixed or 1) else alone(runner, feed, fixed)

                batches = samples.batches(fixed or self.batch_size)
                ready = runnable(recorder.seen(batches) if recorder else batches, fixed or 1)
                return collect(run, ready, on_batch=on_batch, on_part=on_part, num_workers=self.num_workers)
        except EngineError as error:  # Names the file that ran, which is gone by the time someone looks for it.
            raise type(error)(str(error).replace(str(watched_model), str(model.path))) from error


class SampleRecorder:
    """Samples of a pass that are kept, as a batch of one each."""

    def __init__(self, indices: Collection[int]) -> None:
        """``indices``: which, counted from the first sample of the pass."""
        self._indices = frozenset(indices)
        self.rows: list[dict[str, Array]] = []

    def seen(self, batches: Iterable[Mapping[str, Array]]) -> Iterator[Mapping[str, Array]]:
        """The batches, while they are read."""
        begin = 0
        for batch in batches:
            size = num_in(batch)
            for row in range(size):
                if begin + row in self._indices:
                    self.rows.append({name: array[row : row + 1].copy() for name, array in batch.items()})
            begin += size
            yield batch


def check_float(model: OnnxModel) -> None:
    """That a model is not INT8 already, of which no INT8 can be made; only its graph is read.

    Raises:
        ModelError: it has Q/DQ nodes, or integer operators alone.
    """
    operators = {node.op_type for node in nodes_of(skeleton_from_file(model.path).graph)}
    has_qdq = not operators.isdisjoint(("QuantizeLinear", "DequantizeLinear"))
    if has_qdq or (not operators.isdisjoint(INTEGER_PRODUCTS) and operators.isdisjoint(PRODUCTS)):
        what = "has Q/DQ nodes already" if has_qdq else "multiplies integers already"
        raise ModelError(
            f"{model.path}: {what}, so that there is no INT8 to make of it; give the FP32 model, or build this one as "
            "it is with `trtforge build --precision int8`"
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


def runnable(batches: Iterable[Mapping[str, Array]], batch_size: int) -> Iterator[Mapping[str, Array]]:
    """Each batch of that size as it is, and each sample of the others as a batch of one."""
    for batch in batches:
        if num_in(batch) == batch_size:
            yield batch
            continue
        for row in range(num_in(batch)):
            yield {name: array[row : row + 1] for name, array in batch.items()}


def alone(runner: Runner, feed: Mapping[str, Array], batch_size: int) -> dict[str, Array]:
    """A sample's values from a model that takes whole batches, sorted: it is run on copies.

    Of values that are there once for each copy, every so many-th is taken; so none has to know which axis is the batch,
    if any still is.
    """
    outputs = runner.infer({name: np.repeat(array, batch_size, axis=0) for name, array in feed.items()})
    return {name: np.sort(array, axis=None)[::batch_size] for name, array in outputs.items()}
