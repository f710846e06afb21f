"""The least work out of INT8 with which it holds a bound, on calibration samples.

Layers are ranked by the noise that each brings alone (``pipeline.accuracy.layer_noise``) for the work that it is: a
convolution with a sixth of the network's multiply-adds is worth leaving out of INT8 if it brings as much noise as many
small layers. They are left out in that order: the shortest beginning of the ranking that holds the bound is found by
bisection, and then each layer of it goes back that the bound does not need, the last ones first. Every set is judged as
a whole, by the model that would be deployed: noises of single layers do not add up exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx

from calibration.analysis.sqnr import sqnr_db_of
from calibration.data.batches import Samples
from calibration.data.source import spread
from calibration.data.user_function import source_code
from calibration.errors import DataError
from calibration.graph.answers import answer_tensors
from calibration.graph.editing import named
from calibration.graph.external_data import model_from_file
from calibration.graph.watched_outputs import watch_tensors
from calibration.precision.place import NothingIn4Bits
from calibration.precision.qdq import qdq_from_onnx
from calibration.ranges.ranges import spans_from_ranges
from calibration.ranges.ranges_file import ranges_from_folder
from engines.contract import Array
from engines.support.work import dims_of, flops_of, with_shapes
from pipeline.accuracy.comparison import joined_samples
from pipeline.accuracy.layer_noise import InputNoise, PlacedWork, noises_from_file
from pipeline.accuracy.metrics import Metric, metric
from pipeline.accuracy.mixture import MixtureBound, MixturePoint
from pipeline.accuracy.weight_codes import codes_from_folder
from pipeline.artifact import LayerNoises, Mixture, OnnxModel, Ranges, WeightCodes
from pipeline.engine_runner import SIMULATOR, Sessions, few
from pipeline.errors import ConfigError
from pipeline.json_record import finite
from pipeline.machine.progress import waiting
from pipeline.tasks.coco import version_behind

FILE = "mixture.json"
MOST_SAMPLES = 256
"""Evenly spread, on which sets of layers are judged."""
LEAST_WORK = 0.01
"""Of the network's, that each group counts for at least: between INT8 and float there is work too, whatever it does."""
MOST_RETURNS = 32
"""Layers that are tried to be put back into INT8, at most."""


@dataclass(frozen=True)
class HeldBound:
    """A bound, and the calibration samples that it is held on."""

    bound: MixtureBound
    samples: Samples
    codes: WeightCodes | None = None
    """What weights are rounded to; None: as the placement does it by itself."""

    def digest(self) -> str:
        """SHA-256 (hex) of all of it, and of the source of a user's metric."""
        bound = self.bound
        source = source_code(bound.metric, bound.folder)
        behind = version_behind(bound.metric)
        parts = [bound.words(), bound.metric, bound.output, repr(bound.detector), behind, self.samples.digest()]
        parts += [] if self.codes is None else [self.codes.digest()]
        return hashlib.sha256("\0".join(parts).encode() + source).hexdigest()


@dataclass(frozen=True)
class MixPrecision(PlacedWork):
    """Find those layers."""

    def __call__(self, out: Path, model: OnnxModel, ranges: Ranges, noises: LayerNoises, held: HeldBound) -> Mixture:
        """Write ``out/mixture.json``: a ``MixtureInfo``, and ``sets``, the nodes in float of each of its points.

        Raises:
            ConfigError: the metric is bounded, and the plan names none.
            DataError: the metric is bounded, and the calibration samples have no labels; or nothing holds the bound.
            ModelError, EngineError: the model cannot be quantized, or not run.
        """
        record = ranges_from_folder(ranges.path).read_for(self.options.target)
        judge = MixtureJudge(self, model_from_file(model.path), spans_from_ranges(record), held)
        bound = held.bound
        by_layer = noises_from_file(noises.path)
        ranking = by_work(ranked(by_layer), by_layer, judge.work_of)
        with waiting("mixed precision"):
            chosen = fewest(ranking, judge.holds)
        if chosen is None or judge.is_all_in_float(chosen):
            raise DataError(
                f"[quantize]: no mixture holds {bound.words()}: with {judge.most_in_float.num_in_float} nodes in float "
                f"and others in INT8 it is {_result(judge.most_in_float, bound)}; loosen the bound, or stay with a "
                "higher precision"
            )
        judged = sorted(judge.judged.values(), key=lambda each: each.point.num_in_float)
        rows, sets = [asdict(each.point) for each in judged], [each.in_float for each in judged]
        written = {"in_float": list(chosen), "num_layers": len(ranking), "points": rows, "bound": bound.words()}
        (out / FILE).write_text(json.dumps(written | {"sets": sets}, indent=1, allow_nan=False), encoding="utf-8")
        return Mixture(out / FILE)


def ranked(noises: Sequence[InputNoise]) -> list[tuple[str, ...]]:
    """Groups of nodes, those with the noisiest input first; each node once."""
    seen: set[str] = set()
    groups: list[tuple[str, ...]] = []
    for noise in noises:
        if nodes := tuple(node for node in noise.nodes if node not in seen):
            groups.append(nodes)
            seen.update(nodes)
    return groups


def by_work(
    ranking: Sequence[tuple[str, ...]], noises: Sequence[InputNoise], work_of: Callable[[str], float]
) -> list[tuple[str, ...]]:
    """The groups with the most noise for their share of the work first.

    Args:
        ranking: as of ``ranked``.
        noises: those that it was made of.
        work_of: of a node, as a share of the network's: 0 to 1.
    """
    shares = dict.fromkeys(ranking, 0.0)
    for noise in noises:
        if (group := next((each for each in ranking if set(each) <= set(noise.nodes)), None)) is not None:
            shares[group] += noise.share
    return sorted(ranking, key=lambda group: -shares[group] / (LEAST_WORK + sum(map(work_of, group))))


def fewest(ranking: Sequence[tuple[str, ...]], holds: Callable[[tuple[str, ...]], bool]) -> tuple[str, ...] | None:
    """The fewest groups of nodes, of a beginning of the ranking, with which it holds; None if not even all do."""

    def nodes_of(groups: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
        return tuple(node for group in groups for node in group)

    if holds(()):
        return ()
    low, high = 0, 1  # ``low`` groups do not hold.
    while not holds(nodes_of(ranking[:high])):
        if high >= len(ranking):
            return None
        low, high = high, min(2 * high, len(ranking))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(nodes_of(ranking[:middle])) else (middle, high)
    left = list(ranking[:high])
    for group in list(reversed(left[:-1]))[:MOST_RETURNS]:
        others = [each for each in left if each is not group]
        if holds(nodes_of(others)):
            left = others
    return nodes_of(left)


@dataclass(frozen=True)
class JudgedSet:
    """A set of nodes that were left in float."""

    in_float: tuple[str, ...]
    point: MixturePoint
    """What INT8 gives without them."""
    num_int8: int
    """Nodes that are INT8 then."""


class MixtureJudge:
    """Judges sets of nodes that are left in float, each once."""

    def __init__(self, stage: MixPrecision, model: onnx.ModelProto, spans: Mapping[str, Any], held: HeldBound) -> None:
        """Opens nothing for longer than a set is judged.

        Raises:
            ConfigError: the metric is bounded, and the plan names none.
            DataError: the metric is bounded, and the samples have no labels.
        """
        self._stage, self._model, self._spans = stage, model, spans
        chosen = None if held.codes is None else codes_from_folder(held.codes)
        self._options = replace(stage.options, chosen=chosen)
        self._bound, samples = held.bound, held.samples
        self._feeds = list(few(samples, min(samples.num_samples, MOST_SAMPLES)))
        self._answers = answer_tensors(model)
        self._outputs = [value.name for value in model.graph.output]
        self._metric, self._labels = self._labelled(samples)
        self._exact = self._run(model)
        self.judged: dict[tuple[str, ...], JudgedSet] = {}
        """By their nodes in order."""

    def _labelled(self, samples: Samples) -> tuple[Metric | None, Array | None]:
        bound = self._bound
        if not bound.has_metric:
            return None, None
        if not bound.metric:
            raise ConfigError("[quantize] max_metric_drop: the plan names no metric; set metric in [data]")
        chosen = metric(bound.metric, bound.output, bound.folder, bound.detector)
        if samples.reader.labels() is None and chosen.needs_labels:
            raise DataError(
                f"{samples.source.path}: [quantize] max_metric_drop is measured on calibration samples, which have no "
                "labels; set labels in [data.calibration], or take min_sqnr_db, which needs none"
            )
        labels = None if samples.reader.labels() is None else samples.labels()
        rows = spread(samples.num_samples, min(samples.num_samples, MOST_SAMPLES))
        return chosen, None if labels is None else labels[list(rows)]

    def work_of(self, node: str) -> float:
        """A node's share of the network's multiply-adds, as of the first sample; 0 of one that is not known."""
        return self._work.get(node, 0.0)

    @cached_property
    def _work(self) -> dict[str, float]:
        shapes = {name: array.shape for name, array in self._feeds[0].items()}
        shaped = with_shapes(named(self._model), shapes)
        dims = dims_of(shaped.graph)
        flops = {each.name: float(flops_of(each, dims)) for each in shaped.graph.node}
        total = sum(flops.values()) or 1.0
        return {name: each / total for name, each in flops.items()}

    def holds(self, in_float: tuple[str, ...]) -> bool:
        """Whether INT8 holds the bound with these nodes in float."""
        return self.point(in_float).holds

    def point(self, in_float: tuple[str, ...]) -> MixturePoint:
        """What INT8 gives with these nodes in float."""
        key = tuple(sorted(in_float))
        if key not in self.judged:
            self.judged[key] = self._judged(in_float)
        return self.judged[key].point

    def is_all_in_float(self, in_float: tuple[str, ...]) -> bool:
        """Whether nothing would be INT8 with these nodes in float, which were judged."""
        return self.judged[tuple(sorted(in_float))].num_int8 == 0

    @property
    def most_in_float(self) -> MixturePoint:
        """Of the sets that were judged, that with the most nodes in float, but not all."""
        mixed = (each.point for each in self.judged.values() if each.num_int8)
        return max(mixed, key=lambda point: point.num_in_float)

    def _judged(self, in_float: tuple[str, ...]) -> JudgedSet:
        options = self._options
        equal = MixturePoint(len(in_float), None, 0.0 if self._metric else None, holds=True)
        try:
            quantized = qdq_from_onnx(self._model, self._spans, replace(options, exclude=(*options.exclude, *in_float)))
        except NothingIn4Bits:
            if not in_float:
                raise
            return JudgedSet(in_float, equal, 0)  # All that weights of 4 bits were asked for is in float.
        num_int8 = len(quantized.placement.nodes)
        if not num_int8:
            return JudgedSet(in_float, equal, num_int8)
        answers = self._run(quantized.model)
        bound = self._bound
        worst = min(sqnr_db_of(self._exact[name], answers[name]) for name in self._answers)
        drop = None
        if self._metric is not None:
            before, after = (
                self._metric({n: a[n] for n in self._outputs}, self._labels) for a in (self._exact, answers)
            )
            drop = before - after if self._metric.higher_is_better else after - before
        holds = worst >= bound.min_sqnr_db and (drop is None or drop <= bound.max_metric_drop)
        return JudgedSet(in_float, MixturePoint(len(in_float), finite(worst), finite(drop), holds), num_int8)

    def _run(self, model: onnx.ModelProto) -> dict[str, Array]:
        names = list(dict.fromkeys((*self._answers, *(self._outputs if self._metric is not None else ()))))
        with ExitStack() as stack:
            run = Sessions(stack, SIMULATOR, self._stage.num_threads).opened(watch_tensors(model, self._answers))
            rows = [run(feed) for feed in self._feeds]
        return {name: joined_samples([row[name] for row in rows]) for name in names}


def _result(point: MixturePoint, bound: MixtureBound) -> str:
    parts = [f"an SQNR of {point.sqnr_db:.1f} dB"] if point.sqnr_db is not None else []
    if point.metric_drop is not None:
        parts.append(f"a drop of {bound.metric} of {point.metric_drop:.4f}")
    return " and ".join(parts) or "equal"
