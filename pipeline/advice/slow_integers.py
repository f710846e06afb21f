"""INT8 that is slower than FP32 on a CPU, and what keeps such layers in float."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from calibration.precision.placement import PlacementTarget
from engines.precision import precision_named
from pipeline.page.numbers import speedup_text
from pipeline.record import VariantRecord

TIMED_FOR: PlacementTarget = "onnxruntime"
"""Whose placement can be chosen by measured time."""


def slower_than_fp32(variants: Sequence[VariantRecord]) -> Iterator[str]:
    """A sentence for each INT8 variant that is slower beyond doubt, at the first batch size, and was placed by rule."""
    for variant in variants:
        if not variant.by_batch or not precision_named(variant.precision).has_scales:
            continue
        ratio, interval = variant.by_batch[0].speedup, variant.by_batch[0].speedup_interval
        if variant.placement == TIMED_FOR and ratio is not None and interval is not None and interval[1] < 1:
            yield (
                f'{variant.name}: is only {speedup_text(ratio, interval)} on this CPU; [quantize] placement = "timed" '
                "leaves in float what is quicker so"
            )
