"""Ranges of several runs, made on several machines, into one: equal to one run over all their samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from calibration.errors import DataError
from calibration.graph.tensor_digests import differing
from calibration.histogram.histogram import Histogram
from calibration.histogram.methods import Method
from calibration.ranges.means import ChannelMeans
from calibration.ranges.ranges import METHODS, Origin, RangesRecord, ranges_from_histograms
from calibration.ranges.ranges_file import histograms_from_folder, ranges_from_folder


def merged_ranges(folders: Sequence[Path], method: Method | None = None) -> tuple[RangesRecord, dict[str, Histogram]]:
    """Merge the histograms of runs over different samples, and read the ranges again: by ``method``, or as they were.

    The result has every byte of one run over all samples, but for ``data_digest``, ``parts`` and ``channel_means``:
    ``parts`` are the data digests of the runs, sorted, and ``data_digest`` is the SHA-256 of them, a line each; so they
    depend neither on the order of the folders nor on whether some had been merged before. The means are those of the
    runs, each of a few samples, weighted by the samples of the run.

    Raises:
        DataError: fewer than two folders, a damaged one, imported ranges, the same data twice, or runs that differ in
            model, method, percentile or tool versions; names what differs. Or no method was named, and they were
            chosen by auto, which needs samples.
    """
    if len(folders) < 2:
        raise DataError(f"ranges: {len(folders)} folder is given, at least two are expected to merge; give more")
    first = ranges_from_folder(folders[0])
    first.check_measured("merging")
    histograms = histograms_from_folder(folders[0])
    parts, num_samples = list(_parts(first.origin)), first.origin.num_samples
    means = [(first.origin.num_samples, _means(first))]
    for folder in folders[1:]:
        other = ranges_from_folder(folder)
        other.check_measured("merging")
        _check_alike(first, other, f"{folder} and {folders[0]}", is_method_named=method is not None)
        if twice := sorted(set(parts) & set(_parts(other.origin))):
            raise DataError(
                f"{folder}: was found on data {twice[0][:12]}, as were ranges before it, and samples must not count "
                "twice; leave one of them out"
            )
        parts += _parts(other.origin)
        num_samples += other.origin.num_samples
        means.append((other.origin.num_samples, _means(other)))
        other_histograms = histograms_from_folder(folder)
        histograms = {name: histogram.merged(other_histograms[name]) for name, histogram in histograms.items()}
    parts.sort()
    digest = hashlib.sha256("".join(f"{part}\n" for part in parts).encode()).hexdigest()
    origin = replace(first.origin, data_digest=digest, num_samples=num_samples, parts=tuple(parts))
    ranges = ranges_from_histograms(histograms, method or _method_of(first, folders[0]), first.percentile, origin)
    return ranges.with_means(_weighted(means)), histograms


def _means(ranges: RangesRecord) -> ChannelMeans:
    return {name: tensor.channel_means for name, tensor in ranges.tensors.items() if tensor.channel_means}


def _weighted(runs: Sequence[tuple[int, ChannelMeans]]) -> ChannelMeans:
    """Means over the runs, of the tensors that all of them have, weighted by their samples; as exact as float64 is."""
    num_samples = sum(num for num, _ in runs)
    weighted: ChannelMeans = {}
    for name, first in runs[0][1].items():
        rows = [(num, means.get(name, ())) for num, means in runs]
        if all(len(row) == len(first) for _, row in rows):
            columns = zip(*(row for _, row in rows))
            weighted[name] = tuple(
                math.fsum(num * mean for (num, _), mean in zip(rows, column)) / num_samples for column in columns
            )
    return weighted


def _method_of(ranges: RangesRecord, folder: Path) -> Method:
    if ranges.method not in METHODS:
        raise DataError(
            f"{folder}: ranges were chosen by auto, for which merging has no samples; name the method that the merged "
            f"histograms are read by: --method, one of {', '.join(METHODS)}"
        )
    return ranges.method


def _parts(origin: Origin) -> tuple[str, ...]:
    return origin.parts or (origin.data_digest,)


def _check_alike(first: RangesRecord, other: RangesRecord, where: str, *, is_method_named: bool) -> None:
    if first.origin.model_digest != other.origin.model_digest:
        changed = differing(first.origin.tensor_digests, other.origin.tensor_digests)
        which = f", they first differ at tensor '{changed[0]}'" if changed else ""
        raise DataError(f"{where}: are of different models{which}; merge ranges of one model")
    if first.tensors.keys() != other.tensors.keys():
        name = min(first.tensors.keys() ^ other.tensors.keys())
        raise DataError(
            f"{where}: only one of them has tensor '{name}'; calibrate both in the same way, with --watch all"
        )
    for what, first_value, other_value in (
        *(() if is_method_named else (("method", first.method, other.method),)),
        ("percentile", first.percentile, other.percentile),
        *((f"version of {tool}", first.origin.versions.get(tool, "none"), other.origin.versions.get(tool, "none"))
          for tool in sorted({*first.origin.versions, *other.origin.versions})),
    ):  # fmt: skip
        if first_value != other_value:
            raise DataError(
                f"{where}: differ in {what}, {other_value} and {first_value}; calibrate both in the same way"
            )
