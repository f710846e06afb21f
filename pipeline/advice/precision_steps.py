"""Does a lower precision pay? Each against the next higher one on its backend: speed with an interval, size, energy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engines.precision import rank
from pipeline.latency.benchmark import Speedup, Timing, speedup
from pipeline.page.numbers import times_text
from pipeline.record import VariantRecord

MOST_RATIO = 0.95
"""A size or an energy that is less than 5 % smaller is no reason for another precision."""


def steps_from(variants: Sequence[VariantRecord], timings: Sequence[Timing]) -> tuple[Step, ...]:
    """Every step down of every backend whose two ends were timed together, at the first batch size."""
    steps = []
    for lower, higher in _neighbours(variants):
        size = lower.by_batch[0].batch_size
        pair = [next(t for t in timings if (t.name, t.batch_size) == (v.name, size)) for v in (higher, lower)]
        steps.append(_step(lower, higher, speedup(*pair, seed=0)))
    return tuple(steps)


def _neighbours(variants: Sequence[VariantRecord]) -> Iterator[tuple[VariantRecord, VariantRecord]]:
    timed = [variant for variant in variants if variant.by_batch]
    for backend in dict.fromkeys(variant.backend for variant in timed):
        ordered = sorted((v for v in timed if v.backend == backend), key=lambda v: rank(v.precision))
        yield from zip(ordered[1:], ordered)


def _step(lower: VariantRecord, higher: VariantRecord, speed: Speedup) -> Step:
    lower_mj, higher_mj = lower.by_batch[0].energy_mj, higher.by_batch[0].energy_mj
    size_ratio = lower.size_bytes / higher.size_bytes
    energy_ratio = lower_mj / higher_mj if lower_mj and higher_mj else None
    ways = {
        "speed": speed.low > 1,
        "size": size_ratio <= MOST_RATIO,
        "energy": energy_ratio is not None and energy_ratio <= MOST_RATIO,
    }
    pays_in = tuple(way for way, pays in ways.items() if pays)
    against = [way for way in ways if way not in pays_in and (way != "energy" or energy_ratio is not None)]
    verdict = f"pays in {' and '.join(pays_in)}" if pays_in else "does not pay"
    verdict += f", not in {' or '.join(against)}" if pays_in and against else ""
    energy = "energy not measured" if energy_ratio is None else f"{times_text(energy_ratio)} the energy"
    return Step(
        lower=lower.name,
        higher=higher.name,
        batch_size=lower.by_batch[0].batch_size,
        speedup=speed.ratio,
        low=speed.low,
        high=speed.high,
        size_ratio=size_ratio,
        energy_ratio=energy_ratio,
        pays_in=pays_in,
        sentence=(
            f"{lower.name} {verdict} against {higher.name}: {times_text(speed.ratio)} as fast (95 % interval "
            f"{speed.low:.2f} to {speed.high:.2f}), {times_text(size_ratio)} the size, {energy}."
        ),
    )


@dataclass(frozen=True)
class Step:
    """One precision against the next higher one on the same backend: does it pay?"""

    lower: str
    higher: str
    batch_size: int
    speedup: float
    """p50 of ``higher`` / p50 of ``lower``, measured together."""
    low: float
    high: float
    """Bounds of the 95 % interval of ``speedup``."""
    size_ratio: float
    """Bytes of ``lower`` / bytes of ``higher``."""
    energy_ratio: float | None
    """Millijoules of ``lower`` / of ``higher``; None where they were not measured."""
    pays_in: tuple[str, ...]
    """Of ``speed`` (the whole interval above 1), ``size`` and ``energy`` (a ratio of at most 0.95)."""
    sentence: str
