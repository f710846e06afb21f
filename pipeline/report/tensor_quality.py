"""How well each calibration method holds each tensor, and the histograms of those that are held worst."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from calibration.graph.weightless import skeleton_from_file
from calibration.histogram.histogram import NUM_BINS, Histogram
from calibration.precision.placement import fixed_span
from calibration.ranges.ranges import IMPORTED, METHODS, RangesRecord, TensorRange, with_bounds
from calibration.ranges.ranges_file import histograms_from_folder, ranges_from_folder
from pipeline.artifact import OnnxModel
from pipeline.record import MethodQuality, MethodSummary, TensorHistogram, TensorQuality

MAX_HISTOGRAMS = 6
NUM_DRAWN_BINS = 256
"""Of a histogram's 16,384 bins so many sums are kept; the largest |x| lies in the upper half of them."""
NEAR_DB = 0.5
"""SQNRs that are no further apart differ by less than a tenth of a bit."""


def quantized_tensors(models: Iterable[OnnxModel]) -> frozenset[str]:
    """The tensors that one of these models has QuantizeLinear nodes on, or has dequantized under their own names."""
    nodes = [node for model in models for node in skeleton_from_file(model.path).graph.node]
    quantized = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    return frozenset(quantized | {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"})


def ranges_in_models(folder: Path, models: Iterable[OnnxModel]) -> RangesRecord:
    """The ranges of a folder, but for tensors that have one by definition, which these models' scales are of.

    Raises:
        DataError: the ranges or their histograms are missing or damaged.
    """
    ranges = ranges_from_folder(folder)
    nodes = (node for model in models for node in skeleton_from_file(model.path).graph.node)
    spans = {name: span for node in nodes if (span := fixed_span(node)) is not None for name in node.output}
    fixed = {name: span for name, span in spans.items() if name in ranges.tensors and not ranges.tensors[name].bounds}
    histograms = histograms_from_folder(folder) if fixed and ranges.method != IMPORTED else {}
    tensors = {
        name: with_bounds(ranges.tensors[name], (span.min, span.max), histograms.get(name))
        for name, span in fixed.items()
    }
    return replace(ranges, tensors={**ranges.tensors, **tensors})


def tensors_from_ranges(ranges: RangesRecord, quantized: Collection[str] = ()) -> tuple[TensorQuality, ...]:
    """The quality of every tensor's range, worst first, then those without an SQNR; of measured ranges.

    ``quantized``: the tensors that are quantized; empty: not known, as if all were.
    """
    qualities = [_quality(name, tensor, not quantized or name in quantized) for name, tensor in ranges.tensors.items()]
    return tuple(sorted(qualities, key=lambda tensor: (tensor.sqnr_db is None, tensor.sqnr_db or 0.0)))


def methods_from_ranges(ranges: RangesRecord) -> tuple[MethodSummary, ...]:
    """Which method was best where, over all tensors that have an SQNR; of measured ranges."""
    chosen = [tensor.method for tensor in ranges.tensors.values()]
    rated = [ratios for tensor in ranges.tensors.values() if (ratios := _known(tensor.sqnr_db))]
    best = [_best(_known(tensor.sqnr_db), tensor.method) for tensor in ranges.tensors.values()]
    summaries = []
    for method in METHODS:
        sqnrs_db = [ratios[method] for ratios in rated if method in ratios]
        num_near = sum(ratios.get(method, -math.inf) >= max(ratios.values()) - NEAR_DB for ratios in rated)
        mean = sum(sqnrs_db) / len(sqnrs_db) if sqnrs_db else None
        summaries.append(MethodSummary(method, chosen.count(method), best.count(method), num_near, mean))
    return tuple(summaries)


def best_where(methods: Sequence[MethodSummary]) -> str:
    """How many tensors each method holds best, in a sentence; the methods that hold none are left out."""
    num_rated = sum(method.num_best for method in methods)
    ranked = sorted(methods, key=lambda method: -method.num_best)
    counts = [f"{summary.method} on {summary.num_best}" for summary in ranked if summary.num_best]
    return f"Highest SQNR of {num_rated} tensors: {', '.join(counts)}." if counts else "No tensor has an SQNR."


def worst_histograms(
    ranges: RangesRecord, folder: Path, quantized: Collection[str] = ()
) -> tuple[TensorHistogram, ...]:
    """The histograms of the tensors of the lowest SQNR, each once however many tensors have it.

    ``ranges`` and their ``folder``; ``quantized``: as of ``tensors_from_ranges``; the others are left out.

    Raises:
        DataError: the ranges or their histograms are missing or damaged, or were imported.
    """
    histograms = histograms_from_folder(folder)
    shared: dict[object, list[str]] = {}
    for tensor in tensors_from_ranges(ranges, quantized):
        if tensor.sqnr_db is None:
            break
        if not tensor.quantized:
            continue
        histogram = histograms[tensor.name]
        key = (histogram.exponent, histogram.min, histogram.max, histogram.num_zeros, histogram.counts.tobytes())
        if key in shared or len(shared) < MAX_HISTOGRAMS:
            shared.setdefault(key, []).append(tensor.name)
    return tuple(_drawable(histograms[names[0]], tuple(names)) for names in shared.values())


def _quality(name: str, tensor: TensorRange, quantized: bool) -> TensorQuality:
    return TensorQuality(
        name=name,
        method=tensor.method,
        quantized=quantized,
        amax=tensor.amax,
        min=tensor.min,
        max=tensor.max,
        sqnr_db=tensor.sqnr_db[tensor.method],
        clipped_share=tensor.clipped_share[tensor.method],
        by_method={
            method: MethodQuality(tensor.amax_by_method[method], tensor.sqnr_db[method], tensor.clipped_share[method])
            for method in METHODS
        },
        best_method=_best(_known(tensor.sqnr_db), tensor.method),
        notes=tuple(tensor.notes),
    )


def _known(ratios: Mapping[str, float | None]) -> dict[str, float]:
    return {method: ratio for method, ratio in ratios.items() if ratio is not None and method in METHODS}


def _best(ratios: Mapping[str, float], chosen: str) -> str:
    """The method of the highest ratio in tenths; of equals the chosen one, else the first; empty if there is none."""
    tenths = {method: round(ratio, 1) for method, ratio in ratios.items()}
    equals = [method for method in METHODS if method in tenths and tenths[method] == max(tenths.values())]
    return chosen if chosen in equals else next(iter(equals), "")


def _drawable(histogram: Histogram, names: tuple[str, ...]) -> TensorHistogram:
    counts = histogram.counts.copy()
    counts[0] -= histogram.num_zeros
    group = NUM_BINS // NUM_DRAWN_BINS
    sums = counts.reshape(-1, group).sum(axis=1)
    last = int(sums.nonzero()[0][-1])
    return TensorHistogram(names, group * histogram.bin_width, tuple(sums[: last + 1].tolist()), histogram.num_zeros)
