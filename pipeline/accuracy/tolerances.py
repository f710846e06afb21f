"""Outputs and ranges held to what was derived for a correct engine (``pipeline.stages.tolerate``)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from calibration.analysis.sqnr import sqnr_db_of, without_equal_infinities
from calibration.ranges.ranges import RangesRecord
from engines.contract import Array
from pipeline.accuracy.comparison import Tolerance
from pipeline.errors import ConfigError

RATIO = math.sqrt(2)
"""Ranges of the calibration data, by the same method, are not so many times as wide or narrow in the median."""
LEAST_RANGES = 3
"""Of fewer there is no median to speak of."""


def derived_atols(record: Mapping[str, Any], tolerance: Tolerance) -> dict[str, float]:
    """Output -> the derived atol; none if the tolerance names one of its own."""
    if math.isfinite(tolerance.atol):
        return {}
    return {name: bound["atol"] for name, bound in record["outputs"].items() if bound is not None}


def too_noisy(
    record: Mapping[str, Any], candidate: Mapping[str, Array], reference: Mapping[str, Array], tolerance: Tolerance
) -> list[str]:
    """Outputs whose SQNR is below the derived one, on the samples that it was derived on, a sentence each.

    Raises:
        ConfigError: the tolerances are of another number of samples, or of a model with other outputs.
    """
    if math.isfinite(tolerance.min_sqnr_db):
        return []
    sentences = []
    for name, bound in record["outputs"].items():
        if name not in reference or len(reference[name]) != record["num_given"]:
            judged = f"{len(reference[name])} samples" if name in reference else f"no output '{name}'"
            raise ConfigError(
                f"tolerances: were derived on {record['num_given']} samples for output '{name}', {judged} are judged; "
                "derive them on the same samples"
            )
        if bound is None:
            continue
        indices = np.asarray(record["indices"])
        want, have = (_flat(arrays[name][indices]) for arrays in (reference, candidate))
        if want.shape != have.shape:
            continue  # Which is a failure already.
        ratio_db = sqnr_db_of(*without_equal_infinities(want, have))
        if not ratio_db >= bound["min_sqnr_db"]:
            sentences.append(
                f"output '{name}' has an SQNR of {ratio_db:.1f} dB on {record['num_samples']} samples, below the "
                f"{bound['min_sqnr_db']:.1f} dB that was derived: correct {record['precision']} engines have "
                f"{bound['mean_db']:.1f} ± {bound['deviation_db']:.1f} dB"
            )
    return sentences


def _flat(array: Array) -> Array:
    """All values; of an array of arrays too."""
    return np.concatenate([each.ravel() for each in array]) if array.dtype == object else array.ravel()


def unlike_ranges(record: Mapping[str, Any], ranges: RangesRecord) -> list[str]:
    """A sentence if ranges are in the median far from those that the same method reads of the evaluation samples."""
    if ranges.method != record["method"]:
        return []
    ratios = {
        name: ranges.tensors[name].amax / amax
        for name, amax in record["amaxes"].items()
        if amax and name in ranges.tensors and ranges.tensors[name].amax and not ranges.tensors[name].bounds
    }
    if len(ratios) < LEAST_RANGES:
        return []
    median = float(np.median(list(ratios.values())))
    if 1 / RATIO <= median <= RATIO:
        return []
    name = min(ratios, key=lambda tensor: abs(math.log(ratios[tensor] / median)))
    return [
        f"ranges are {median:.3g} times those of the evaluation samples by the same method, {ranges.method} (median of "
        f"{len(ratios)} tensors; '{name}' is ±{ranges.tensors[name].amax:.4g} and was ±{record['amaxes'][name]:.4g}): "
        "calibration saw other data, or its ranges were changed; calibrate again on samples like the evaluation samples"
    ]
