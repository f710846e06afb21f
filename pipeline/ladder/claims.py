"""What is claimed of techniques in general, beside what was measured on this network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pipeline.page.numbers import change_text, times_text
from pipeline.record import MetricInfo, VariantRecord
from pipeline.techniques import catalogue
from pipeline.techniques.record import CheckedClaim, TechniqueRow

SAME_SIZE = 0.01
"""Files that differ by at most this share have the same size."""
SAME_LATENCY = 0.05
"""Medians that differ by at most this share are the same for whoever plans by them."""


@dataclass(frozen=True)
class Measured:
    """A row of the table, and what it is compared with."""

    row: TechniqueRow
    variant: VariantRecord
    unpruned: VariantRecord | None
    """Of a pruned network: the same precision on the same backend of the trained one; None where there is none."""
    post_training: VariantRecord | None
    """INT8 of the trained network on the same backend; None where it was not made."""
    metric: MetricInfo | None


Claims: TypeAlias = Callable[[Measured], Iterator[CheckedClaim]]


def checked_claims(measured: Measured) -> tuple[CheckedClaim, ...]:
    """The claims of the row's technique, each with what was measured."""
    claims = CLAIMS.get(measured.row.technique)
    return () if claims is None else tuple(claims(measured))


def _smaller(claim: str, ratio: float, at_most: float) -> CheckedClaim:
    share = abs(1 - ratio)
    return CheckedClaim(claim, f"{100 * share:.1f} % {'smaller' if ratio <= 1 else 'larger'}", ratio <= at_most)


def _faster(claim: str, measured: Measured, at_least: float) -> Iterator[CheckedClaim]:
    """By the interval of the speed-up over FP32; nothing where it was not timed."""
    timing = measured.variant.by_batch[0] if measured.variant.by_batch else None
    if timing is None or timing.speedup is None or timing.speedup_interval is None:
        return
    low, high = timing.speedup_interval
    holds = None if low < at_least <= high else low >= at_least
    yield CheckedClaim(claim, f"{times_text(timing.speedup)} as fast", holds)


def _loss(claim: str, measured: Measured) -> Iterator[CheckedClaim]:
    """A loss that the samples do not show is small; one that breaks a bound is not."""
    row, drop = measured.row, measured.variant.metric_drop
    if row.drop_interval is None or drop is None or measured.metric is None:
        return
    bounded = [check.outcome for check in row.checks if check.bound.startswith("metric_drop")]
    holds = True if row.drop_interval[0] <= 0 else None
    if "fail" in bounded:
        holds = False
    elif bounded and set(bounded) == {"pass"}:
        holds = True
    yield CheckedClaim(claim, change_text(measured.metric, drop), holds)


def _float16(measured: Measured) -> Iterator[CheckedClaim]:
    yield _smaller("more than 50 % smaller", measured.row.size_ratio, 0.5)
    yield from _loss("negligible loss", measured)


def _dynamic_range(measured: Measured) -> Iterator[CheckedClaim]:
    yield _smaller("4 times smaller", measured.row.size_ratio, 0.25)
    yield from _faster("2 to 3 times as fast", measured, 2.0)


def _integer(measured: Measured) -> Iterator[CheckedClaim]:
    yield _smaller("more than 75 % smaller", measured.row.size_ratio, 0.25)
    yield from _faster("3 times as fast", measured, 3.0)
    yield from _loss("small loss", measured)


def _trained(measured: Measured) -> Iterator[CheckedClaim]:
    drop, before = measured.variant.metric_drop, measured.post_training
    if drop is None or before is None or before.metric_drop is None or measured.metric is None:
        return
    text = f"{change_text(measured.metric, drop)}; without training {change_text(measured.metric, before.metric_drop)}"
    yield CheckedClaim("least loss", text, drop <= before.metric_drop)


def _pruned(measured: Measured) -> Iterator[CheckedClaim]:
    variant, dense = measured.variant, measured.unpruned
    if dense is None:
        return
    ratio = variant.size_bytes / dense.size_bytes
    yield CheckedClaim("same size on disk", f"{times_text(ratio)} the size", abs(ratio - 1) <= SAME_SIZE)
    if variant.latency_ms is not None and dense.latency_ms is not None:
        slower = variant.latency_ms.p50 / dense.latency_ms.p50
        yield CheckedClaim("same latency", f"{times_text(slower)} the latency", abs(slower - 1) <= SAME_LATENCY)
    gzipped = variant.size_compressed_bytes.get("gzip"), dense.size_compressed_bytes.get("gzip")
    if gzipped[0] and gzipped[1]:
        yield _smaller("compresses better", gzipped[0] / gzipped[1], 1 - SAME_SIZE)


CLAIMS: Mapping[str, Claims] = {
    catalogue.FLOAT16.name: _float16,
    catalogue.DYNAMIC_RANGE.name: _dynamic_range,
    catalogue.INTEGER.name: _integer,
    catalogue.QUANTIZATION_AWARE_TRAINING.name: _trained,
    catalogue.PRUNING.name: _pruned,
}
"""By technique; of the others nothing is claimed."""


def contradicted(rows: Sequence[TechniqueRow]) -> list[str]:
    """The claims that this network does not bear out, one phrase each."""
    return [
        f"{row.variant} is {claim.measured}, not {claim.claim}"
        for row in rows
        for claim in row.claims
        if claim.holds is False
    ]
