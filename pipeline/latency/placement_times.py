"""What of an INT8 model is quicker in float on this CPU: measured on the whole network, group by group."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from calibration.graph.external_data import model_from_file, save_model
from calibration.precision.float_groups import FloatGroup, IntegerNode, first_choices, float_groups, integer_nodes
from calibration.precision.placement import PlacementOptions
from calibration.precision.qdq import qdq_from_onnx
from calibration.ranges.ranges import spans_from_ranges
from calibration.ranges.ranges_file import ranges_from_folder
from calibration.ranges.span import Span
from engines import module_of
from engines.contract import DYNAMIC, Array, Runner, TensorSpec
from pipeline.artifact import OnnxModel, PlacementTimes, Ranges
from pipeline.engine_runner import SIMULATOR, load_model
from pipeline.machine.packages import cpu_versions, distribution_versions
from pipeline.machine.progress import Bar

FILE = "placement.json"
NUM_BLOCKS = 15
"""Of runs of each model, in turns with the others'."""
BLOCK_MS = 4.0
"""A block is no shorter."""
CLEAR_RATIO, CLEAR_SHARE = 0.985, 0.75
"""A model is quicker than another if it takes no more than that share of its time, and is so in so many blocks."""

Times: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GroupTime:
    """One thing that was tried: a group in float beside what was in float already."""

    group: str
    num_nodes: int
    ratio: float
    """Of the CPU time to that without it; the median of blocks of runs in turns."""
    is_float: bool
    """Whether it stays in float."""


@dataclass(frozen=True)
class MeasuredPlacement:
    """What stays in float, and for which machine that holds."""

    made_on: dict[str, str]
    """The CPU with its instructions, and ONNX Runtime's version."""
    in_float: tuple[str, ...] = ()
    """Names of nodes."""
    why_not: str = ""
    """Why nothing was measured."""
    fp32_ms: float = 0.0
    static_ms: float = 0.0
    """With all in integers that can be."""
    ms: float = 0.0
    tried: tuple[GroupTime, ...] = field(default=())


@dataclass(frozen=True)
class TimePlacement:
    """Which nodes of the INT8 model are quicker in float on this CPU; the store can keep it.

    By CPU time, one thread, one sample. It begins with the quickest of some placements; then each group of nodes, the
    large ones first, goes to float where the whole network is clearly quicker so. Where FP32 is as quick as what comes
    of that, it begins with FP32, and groups go to INT8 instead.
    """

    options: PlacementOptions
    """Where INT8 is placed if it pays."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of one sample of each input, the batch counted: the sizes that the model leaves open."""

    def versions(self, *_inputs: object) -> dict[str, str]:
        """What the result depends on: also the CPU."""
        return {**distribution_versions("numpy", "onnx", "onnx-ir"), **cpu_versions()}

    def modules(self, *_inputs: object) -> tuple[str, ...]:
        """What is loaded by name."""
        return (module_of(SIMULATOR),)

    def __call__(self, out: Path, model: OnnxModel, ranges: Ranges) -> PlacementTimes:
        """Write ``out/placement.json``, a ``MeasuredPlacement``.

        Raises:
            DataError: a tensor that is placed has no range.
            ModelError, EngineError: the model cannot be quantized, or not run.
            Unavailable: ONNX Runtime is not installed.
        """
        record = ranges_from_folder(ranges.path).read_for(self.options.target)
        measured = measured_placement(model_from_file(model.path), spans_from_ranges(record), self.options, self.shapes)
        (out / FILE).write_text(json.dumps(asdict(measured), indent=1))
        return PlacementTimes(out / FILE)


def measured_placement(
    model: onnx.ModelProto,
    spans: Mapping[str, Span],
    options: PlacementOptions,
    shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> MeasuredPlacement:
    """Measure what is quicker in float; see ``TimePlacement``."""
    with tempfile.TemporaryDirectory(prefix="trtforge-") as folder, ExitStack() as stack:
        models = TimedModels(Path(folder), model, spans, options)
        nodes = models.nodes
        fp32 = models.fp32(stack)
        feed = feed_for(fp32.inputs, spans, shapes)
        if feed is None or not any(node.is_product for node in nodes):
            why = (
                "no product is in INT8"
                if feed is not None
                else "an input has a size that neither the model nor samples tell"
            )
            return MeasuredPlacement(cpu_versions(), why_not=why)
        first, tried = _first_choice(models, fp32, feed, first_choices(nodes))
        groups = float_groups(nodes)
        in_float, more = _with_groups(models, feed, first, groups)
        tried += more
        runners = [fp32, models.placed(frozenset(), stack), models.placed(in_float, stack)]
        times = race(runners, feed)
        if not is_quicker(times[0], times[2]):
            everything = frozenset(node.name for node in nodes)
            few, more = _from_float(models, (fp32, everything), feed, groups)
            if few is not None:
                in_float, tried = few, [*tried, *more]
                times = race([*runners[:2], models.placed(in_float, stack)], feed)
        if np.median(times[2] / times[1]) >= 1.0:  # What seemed quicker step by step is not.
            in_float, times = frozenset(), times[[0, 1, 1]]
        ms = float(np.median(times[2])) * 1e3
        fp32_ms, static_ms, ms = (round(ms * float(np.median(row / times[2])), 4) for row in times)
        order = tuple(node.name for node in nodes if node.name in in_float)
        return MeasuredPlacement(cpu_versions(), order, "", fp32_ms, static_ms, ms, tuple(tried))


def _first_choice(
    models: TimedModels, fp32: Runner, feed: Mapping[str, Array], choices: Sequence[FloatGroup]
) -> tuple[frozenset[str], list[GroupTime]]:
    """The quickest of some placements; the first of them unless another is clearly quicker."""
    with ExitStack() as stack:
        times = race([fp32, *(models.placed(choice.nodes, stack) for choice in choices)], feed)[1:]
    best = int(np.argmin(np.median(times, axis=1)))
    best = best if is_quicker(times[0], times[best]) else 0
    tried = [
        GroupTime(choice.name, len(choice.nodes), round(float(np.median(row / times[0])), 4), number == best)
        for number, (choice, row) in enumerate(zip(choices, times, strict=True))
    ]
    return choices[best].nodes, tried


def _with_groups(
    models: TimedModels, feed: Mapping[str, Array], in_float: frozenset[str], groups: Sequence[FloatGroup]
) -> tuple[frozenset[str], list[GroupTime]]:
    """What is in float once each group was tried."""
    tried: list[GroupTime] = []
    bar = Bar("placement by time", len(groups))
    with ExitStack() as stack:
        stack.callback(bar.close)
        holder = ExitStack()
        stack.callback(lambda: holder.close())
        best = models.placed(in_float, holder)
        for number, group in enumerate(groups, start=1):
            candidate = in_float | group.nodes
            if candidate != in_float and models.has_products(candidate):
                with ExitStack() as attempt:
                    runner = models.placed(candidate, attempt)
                    old, new = race([best, runner], feed)
                    stays = is_quicker(old, new)
                    if stays:
                        holder.close()
                        in_float, best, holder = candidate, runner, attempt.pop_all()
                ratio = round(float(np.median(new / old)), 4)
                tried.append(GroupTime(group.name, len(group.nodes), ratio, stays))
            bar.to(number)
    return in_float, tried


def _from_float(
    models: TimedModels, start: tuple[Runner, frozenset[str]], feed: Mapping[str, Array], groups: Sequence[FloatGroup]
) -> tuple[frozenset[str] | None, list[GroupTime]]:
    """What is in float where only groups are in INT8 that make FP32 quicker; None if none does.

    ``start``: FP32, and all that could be in INT8.
    """
    tried: list[GroupTime] = []
    best, in_float = start
    with ExitStack() as stack:
        for group in groups:
            candidate = in_float - group.nodes
            if candidate == in_float or not models.has_products(candidate):
                continue
            with ExitStack() as attempt:
                runner = models.placed(candidate, attempt)
                old, new = race([best, runner], feed)
                if stays := is_quicker(old, new):
                    stack.enter_context(attempt.pop_all())
                    best, in_float = runner, candidate
            ratio = round(float(np.median(new / old)), 4)
            tried.append(GroupTime(f"in INT8: {group.name}", len(group.nodes), ratio, is_float=not stays))
    return (None if in_float == start[1] else in_float), tried


def is_quicker(old: Times, new: Times) -> bool:
    """Whether the blocks of a model are clearly quicker than those of another that ran in turns with it."""
    ratios = new / old
    return bool(np.median(ratios) <= CLEAR_RATIO and (ratios < 1).mean() >= CLEAR_SHARE)


class TimedModels:
    """Opens the models that are compared, on one thread."""

    def __init__(
        self, folder: Path, model: onnx.ModelProto, spans: Mapping[str, Span], options: PlacementOptions
    ) -> None:
        """``folder``: for their files, one after the other."""
        self._folder, self._model, self._spans, self._options = folder, model, spans, options

    @cached_property
    def nodes(self) -> list[IntegerNode]:
        """Those that the placement makes integers; DataError where a tensor has no range."""
        return integer_nodes(self._model, self._spans, self._options)

    def fp32(self, stack: ExitStack) -> Runner:
        """The model as it is."""
        return self._opened(self._model, stack)

    def placed(self, in_float: frozenset[str], stack: ExitStack) -> Runner:
        """INT8 without these nodes."""
        options = replace(self._options, exclude=(*self._options.exclude, *sorted(in_float)))
        return self._opened(qdq_from_onnx(self._model, self._spans, options).model, stack)

    def has_products(self, in_float: frozenset[str]) -> bool:
        """Whether anything would be left in INT8."""
        return any(node.is_product and node.name not in in_float for node in self.nodes)

    def _opened(self, model: onnx.ModelProto, stack: ExitStack) -> Runner:
        file = self._folder / "model.onnx"
        save_model(model, file)
        return stack.enter_context(load_model(file, SIMULATOR, 1))


def feed_for(
    inputs: Sequence[TensorSpec], spans: Mapping[str, Span], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Array] | None:
    """A sample of numbers in the range of each input; None where a size other than the batch is not known.

    ``shapes``: of those inputs whose sizes the model leaves open.
    """
    random = np.random.default_rng(0)
    feed: dict[str, Array] = {}
    for spec in inputs:
        sizes = shapes.get(spec.name, spec.shape)
        shape = [1 if index == 0 and size == DYNAMIC else size for index, size in enumerate(sizes)]
        if DYNAMIC in shape:
            return None
        span = spans.get(spec.name, Span(1.0, 0.0, 1.0))
        is_float = np.dtype(spec.dtype).kind == "f"
        numbers = random.uniform(span.min, span.max, shape) if is_float else np.zeros(shape)
        feed[spec.name] = numbers.astype(spec.dtype)
    return feed


def race(runners: Sequence[Runner], feed: Mapping[str, Array]) -> Times:
    """CPU seconds of one run: a row for each runner, a column for each block, in turns that begin with another each."""
    sizes = []
    for runner in runners:
        runner.infer(feed)
        sizes.append(max(1, round(BLOCK_MS / 1e3 / max(_cpu_seconds(runner, feed, 1), 1e-6))))
    times = np.empty((len(runners), NUM_BLOCKS))
    for block in range(NUM_BLOCKS):
        for turn in range(len(runners)):
            index = (turn + block) % len(runners)
            times[index, block] = _cpu_seconds(runners[index], feed, sizes[index])
    return times


def _cpu_seconds(runner: Runner, feed: Mapping[str, Array], num_runs: int) -> float:
    begin = time.process_time()
    for _ in range(num_runs):
        runner.infer(feed)
    return (time.process_time() - begin) / num_runs
