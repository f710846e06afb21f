"""The ranges of a model's tensors: by which reading of its histogram each has its own, and what is known of it.

``amax`` is 127 times a float32, the scale, wherever that is a normal number. So scale = float32(amax / 127) is exact,
and amax survives TensorRT's calibration cache, which keeps the scale.

Their file is in ``calibration.ranges.ranges_file``; how ``auto`` chooses, in ``calibration.analysis.range_choice``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np

from calibration.errors import DataError
from calibration.graph.tensor_digests import differing
from calibration.histogram.histogram import Histogram
from calibration.histogram.methods import LARGEST_CODE, READINGS, Method, amax_percentile, clipped_share, sqnrs_db
from calibration.ranges.span import Span

METHODS: tuple[Method, ...] = ("entropy", "minmax", "percentile", "mse")
AUTO: Literal["auto"] = "auto"
"""Not one reading for all: each tensor has its own, by what the network's outputs show."""
IMPORTED: Literal["imported"] = "imported"
OVERRIDE: Literal["override"] = "override"
"""Set by the user, see ``calibration.ranges.override``."""
TUNED: Literal["tuned"] = "tuned"
"""Learned together with the weights, which are to be rounded to the nearest."""
SET = (OVERRIDE, TUNED)
"""Not read from the histogram."""
RangeMethod = Literal["auto", "entropy", "minmax", "percentile", "mse"]

MethodsFor: TypeAlias = Mapping[str, Mapping[str, Method]]
"""Placement -> tensor -> how its range is read."""

SMALLEST_FP16_NORMAL = 2.0**-14
"""6.1e-5: a scale below it loses bits when TensorRT keeps it as FP16."""
NOTABLE_LOSS_DB = 6.0
"""A chosen range that is so much worse than another method's is noted: 6 dB is one of the eight bits."""
NUM_NAMED = 5


@dataclass(frozen=True)
class Origin:
    """What ranges were found on."""

    model_digest: str
    data_digest: str
    """Of the samples and their preprocessing; of several runs, see ``calibration.ranges.merge``; "" if imported."""
    num_samples: int
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the tools that computed the values."""
    tensor_digests: Mapping[str, str] = field(default_factory=dict)
    """Of each tensor of the model (``calibration.graph.tensor_digests``): tells which of another model differ."""
    parts: tuple[str, ...] = ()
    """Of merged ranges, the data digests of the runs, sorted."""
    source: str = ""
    """Of imported ranges, what they were read from, such as ``TRT-8502-EntropyCalibration2``; of tuned ones, the
    placement that they were tuned for."""


@dataclass(frozen=True)
class TensorRange:
    """One tensor's range, -amax to amax, and what is known of its values."""

    method: Method | Literal["imported", "override", "tuned"]
    """How ``amax`` was read."""
    amax: float
    """0 for a tensor that is all zero."""
    amax_by_method: Mapping[str, float]
    sqnr_db: Mapping[str, float | None]
    """Signal to quantization noise ratio of symmetric int8 by method, dB; None where there is no signal."""
    clipped_share: Mapping[str, float]
    """Share of values beyond the range, by method."""
    min: float
    max: float
    num_values: int
    num_zeros: int
    exponent: int
    """The histogram spans |x| in [0, 2^exponent)."""
    notes: tuple[str, ...]
    """What a reader should know: no values, all zero, constant, one-sided, tiny scale, or that a method loses."""
    method_for: Mapping[str, Method] = field(default_factory=dict)
    """Placement -> how its range is read for that, where it is not ``method``."""
    num_infinite: int = 0
    """Infinite values, which are none of ``num_values``."""
    channel_means: tuple[float, ...] = ()
    """Of the data of a product, the mean of each channel that its sums go over, on a few samples; else none."""
    bounds: tuple[float, ...] = ()
    """Least and largest value that the user set, or that tuning learned; else none."""


@dataclass(frozen=True)
class RangesRecord:
    """The ranges of a model's tensors, sorted by name."""

    method: RangeMethod | Literal["imported", "tuned"]
    percentile: float
    origin: Origin
    tensors: Mapping[str, TensorRange]

    def check_model(self, model_digest: str, tensor_digests: Callable[[], Mapping[str, str]]) -> None:
        """Refuse to be used with another model than the one that was calibrated.

        ``tensor_digests`` gives the model's (see ``calibration.graph.tensor_digests``); it is called if the models
        differ.

        Raises:
            DataError: the digests differ; names up to five tensors that the calibrated model lacks, and up to five
                that it computes otherwise.
        """
        if model_digest == self.origin.model_digest:
            return
        ours, others = self.origin.tensor_digests, tensor_digests()
        missing = [name for name in others if name not in ours and name not in self.tensors]
        changed = differing(ours, others)
        which = f", which lacks {listed(missing)} of this one's tensors" if missing else ""
        if changed:
            which += f"; by weights or operators, {listed(changed)} differ, the first of them in order of computation"
        raise DataError(
            f"ranges: were found on model {self.origin.model_digest[:12]}, not on this one, {model_digest[:12]}"
            f"{which}; calibrate this model"
        )

    def check_measured(self, what_for: str) -> None:
        """Refuse imported ranges where more than scales is needed.

        Raises:
            DataError: they were imported.
        """
        if self.method == IMPORTED:
            raise DataError(
                f"ranges: were imported from {self.origin.source}, which has scales only, but {what_for} needs what "
                "`trtforge calibrate` sees of the values; calibrate the model"
            )

    def check_placement(self, target: str) -> None:
        """Refuse ranges that were tuned for another placement: in this one they are worse than none.

        Raises:
            DataError: they were.
        """
        if self.method == TUNED and self.origin.source != target:
            raise DataError(
                f"ranges: were tuned for {self.origin.source}, with the weights that belong to them, and are to be "
                f"placed for {target}; tune the network for {target}"
            )

    def read_by(
        self, method: RangeMethod, methods: Mapping[str, Method], methods_for: MethodsFor | None = None
    ) -> RangesRecord:
        """The same tensors with other readings of the same histograms: each by ``methods``, or else by entropy.

        ``methods_for``: by placement the readings for that, where they are not the same.

        Raises:
            DataError: they were imported.
        """
        self.check_measured("reading ranges by another method")
        tensors = {}
        for name, tensor in self.tensors.items():
            if tensor.bounds:
                tensors[name] = tensor
                continue
            first = methods.get(name, "entropy")
            others = {target: each.get(name, "entropy") for target, each in (methods_for or {}).items()}
            differing = {target: other for target, other in others.items() if other != first}
            tensors[name] = replace(read_by_method(tensor, first), method_for=differing)
        return replace(self, method=method, tensors=tensors)

    def unclipped(self) -> RangesRecord:
        """The same tensors with all values that were seen inside.

        Raises:
            DataError: they were imported.
        """
        return self.read_by("minmax", dict.fromkeys(self.tensors, "minmax"))

    def read_for(self, target: str) -> RangesRecord:
        """The same with each tensor's reading for that placement; bounds that the user set clip."""
        tensors = {}
        for name, tensor in self.tensors.items():
            if tensor.bounds:
                low, high = tensor.bounds
                tensors[name] = replace(tensor, min=low, max=high, num_infinite=0)
            elif target in tensor.method_for:
                tensors[name] = replace(read_by_method(tensor, tensor.method_for[target]), method_for=tensor.method_for)
            else:
                tensors[name] = tensor
        return replace(self, tensors=tensors)

    def with_means(self, means: Mapping[str, tuple[float, ...]]) -> RangesRecord:
        """The same, with the means of these tensors' channels."""
        tensors = {name: replace(each, channel_means=means.get(name, ())) for name, each in self.tensors.items()}
        return replace(self, tensors=tensors)


def methods_of_tensors(ranges: RangesRecord) -> dict[str, Method]:
    """Tensor name -> how its range was read, where that is not the same for all."""
    methods: dict[str, Method] = {
        name: tensor.method for name, tensor in ranges.tensors.items() if tensor.method not in (IMPORTED, *SET)
    }
    return {} if set(methods.values()) <= {ranges.method} else methods


def methods_in(tensor: TensorRange) -> list[Method]:
    """How its range was read from a histogram, for whatever placement."""
    methods = {tensor.method, *tensor.method_for.values()}
    return [method for method in METHODS if method in methods]


def ranges_from_histograms(
    histograms: Mapping[str, Histogram],
    method: RangeMethod,
    percentile: float,
    origin: Origin,
    methods: Mapping[str, Method] | None = None,
) -> RangesRecord:
    """Read every method's range from every tensor's histogram; ``method`` is the chosen one.

    Tensors in ``methods`` have that; for ``auto`` the others are read by entropy.

    Raises:
        DataError: the method is unknown, or ``percentile`` is not in (0, 100].
    """
    if method not in (*METHODS, AUTO):
        raise DataError(f"calibration method '{method}': is unknown; choose one of {', '.join((*METHODS, AUTO))}")
    first: Method = "entropy" if method == AUTO else method
    # Tensors that have their values from another, in another shape, share its histogram: it is read once.
    distinct = {id(histogram): histogram for histogram in histograms.values()}
    read = {key: _tensor_range(histogram, first, percentile) for key, histogram in distinct.items()}
    tensors = {name: read[id(histograms[name])] for name in sorted(histograms)}
    ranges = RangesRecord(method, percentile, origin, tensors)
    return ranges.read_by(method, {**dict.fromkeys(tensors, first), **methods}) if methods else ranges


def _tensor_range(histogram: Histogram, method: Method, percentile: float) -> TensorRange:
    amax: dict[str, float] = {name: read(histogram) for name, read in READINGS.items()}
    amax["percentile"] = amax_percentile(histogram, percentile)
    sqnr: dict[str, float | None] = dict(zip(METHODS, sqnrs_db(histogram, [amax[name] for name in METHODS])))
    tensor = TensorRange(
        method=method,
        amax=0.0,
        amax_by_method={name: _of_float32_scale(amax[name]) for name in METHODS},
        sqnr_db=sqnr,
        clipped_share={name: clipped_share(histogram, amax[name]) for name in METHODS},
        min=histogram.min,
        max=histogram.max,
        num_values=histogram.num_values,
        num_zeros=histogram.num_zeros,
        exponent=histogram.exponent,
        notes=(),
        num_infinite=histogram.num_infinite,
    )
    return read_by_method(tensor, method)


def read_by_method(tensor: TensorRange, method: Method | Literal["override", "tuned"]) -> TensorRange:
    """The same tensor by another reading of its histogram, for all placements."""
    bounds = tensor.bounds if method in SET else ()
    return replace(
        tensor,
        method=method,
        amax=tensor.amax_by_method[method],
        notes=_notes(tensor, method),
        method_for={},
        bounds=bounds,
    )


def with_bounds(
    tensor: TensorRange,
    bounds: tuple[float, ...],
    histogram: Histogram | None,
    method: Literal["override", "tuned"] = OVERRIDE,
) -> TensorRange:
    """The same tensor with a range that the user set, or that was learned; ``histogram`` is None of an imported one."""
    amax = _of_float32_scale(max(map(abs, bounds)))
    if histogram is None:
        return replace(tensor, amax=amax, min=bounds[0], max=bounds[1], bounds=bounds)
    rated = replace(
        tensor,
        bounds=bounds,
        amax_by_method={**tensor.amax_by_method, method: amax},
        sqnr_db={**tensor.sqnr_db, method: sqnrs_db(histogram, [amax])[0]},
        clipped_share={**tensor.clipped_share, method: clipped_share(histogram, amax)},
    )
    return read_by_method(rated, method)


def _of_float32_scale(amax: float) -> float:
    """127 times the float32 that is nearest to amax / 127; amax itself where that would not be a normal number."""
    scale = np.float32(amax / LARGEST_CODE)
    return LARGEST_CODE * float(scale) if scale >= np.finfo(np.float32).tiny else amax


def _notes(tensor: TensorRange, method: str) -> tuple[str, ...]:
    notes = [f"{tensor.num_infinite} infinite values, or NaN that the model replaces, left out of the range"] * bool(
        tensor.num_infinite
    )
    if not tensor.num_values:
        return (*notes, "no values on the calibration data")
    if tensor.min == tensor.max == 0:
        return (*notes, "all zero on the calibration data")
    is_constant = tensor.min == tensor.max
    if is_constant:
        notes.append("constant on the calibration data")
    elif tensor.min >= 0 or tensor.max <= 0:
        notes.append("one-sided: half of symmetric int8's codes are unused")
    scale = tensor.amax_by_method[method] / LARGEST_CODE
    if scale < SMALLEST_FP16_NORMAL:
        notes.append(f"tiny scale {scale:.3g}: below FP16's smallest normal, 6.1e-5")
    ratios = {name: ratio for name, ratio in tensor.sqnr_db.items() if ratio is not None}
    best = max(ratios, key=lambda name: ratios[name])
    if ratios[best] - ratios[method] > NOTABLE_LOSS_DB and not is_constant:
        notes.append(f"{method} gives {ratios[method]:.1f} dB, {best} would give {ratios[best]:.1f} dB")
    return tuple(notes)


def listed(names: Sequence[str]) -> str:
    """Their number, and the first of them."""
    shown = ", ".join(f"'{name}'" for name in names[:NUM_NAMED])
    return f"{len(names)} ({shown}{', …' * (len(names) > NUM_NAMED)})"


def spans_from_ranges(ranges: RangesRecord) -> dict[str, Span]:
    """Tensor name -> the chosen amax, the observed minimum and maximum, and the means of channels."""
    return {
        name: Span(t.amax, t.min, t.max, t.channel_means, is_finite=not t.num_infinite, is_set=bool(t.bounds))
        for name, t in ranges.tensors.items()
    }
