"""Numbers as people read them: each with its unit, to the digits that mean something."""

from __future__ import annotations

from pipeline.record import MetricInfo, VariantRecord

NONE = "–"
"""Stands where there is no number."""

MIB = 1 << 20


def ms_text(value: float) -> str:
    """Milliseconds, three digits: ``0.412 ms``, ``12.3 ms``, ``1,234 ms``."""
    return f"{three_digits(value)} ms"


def three_digits(value: float) -> str:
    """At least three digits, no exponent: ``0.00412``, ``1.23``, ``12.3``, ``1,234``."""
    if value == 0:
        return "0"
    decimals = 2
    while abs(value) < 10 ** (2 - decimals) and decimals < 6:
        decimals += 1
    while decimals > 0 and round(abs(value), decimals) >= 10 ** (3 - decimals):
        decimals -= 1
    return f"{value:,.{decimals}f}"


def size_text(size_bytes: int) -> str:
    """KiB below one MiB, else MiB, three digits: ``88.4 KiB``, ``13.2 MiB``."""
    unit = "KiB" if size_bytes < MIB else "MiB"
    return f"{three_digits(size_bytes / (1024 if unit == 'KiB' else MIB))} {unit}"


def times_text(ratio: float) -> str:
    """A ratio: ``1.82×``."""
    return f"{ratio:.2f}×"


def speedup_text(ratio: float, interval: tuple[float, float] | None) -> str:
    """Over FP32: ``1.82× as fast as FP32 (95 % interval 1.80 to 1.84)``; None: no interval is known."""
    within = f" (95 % interval {interval[0]:.2f} to {interval[1]:.2f})" if interval is not None else ""
    return f"{times_text(ratio)} as fast as FP32{within}"


def rate_text(per_second: float) -> str:
    """Samples per second: ``1,234/s``."""
    return f"{three_digits(per_second)}/s"


def metric_title(metric: MetricInfo) -> str:
    """The name for the head of a column, with the unit unless each number carries its own: ``mae, metres``."""
    return metric.name if metric.is_fraction() or not metric.unit else f"{metric.name}, {metric.unit}"


def metric_text(metric: MetricInfo, value: float | None) -> str:
    """A metric's value: ``91.25 %`` for a fraction, else four digits, whose unit ``metric_title`` gives."""
    if value is None:
        return NONE
    return f"{100 * value:.2f} %" if metric.is_fraction() else f"{value:.4g}".replace("-", "−")


def drop_text(metric: MetricInfo, drop: float | None) -> str:
    """A difference of the metric, positive for worse: ``0.12 points`` for a fraction, else four digits."""
    if drop is None:
        return NONE
    return f"{signed(100 * drop, 2)} points" if metric.is_fraction() else f"{drop:.4g}".replace("-", "−")


def signed(value: float, decimals: int) -> str:
    """A number with a true minus sign, and no sign on zero."""
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def change_text(metric: MetricInfo, drop: float) -> str:
    """The same in words: ``0.12 points below FP32``; above or below follows from which way is better."""
    if drop_text(metric, abs(drop)) == drop_text(metric, 0.0):
        return "equal to FP32"
    above = (drop < 0) == metric.higher_is_better
    return f"{drop_text(metric, abs(drop))} {'above' if above else 'below'} FP32"


def share_text(share: float | None) -> str:
    """A share of samples: ``99.1 %``."""
    return NONE if share is None else f"{100 * share:.1f} %"


def likeness(cosine: float | None, sqnr_db: float | None) -> str:
    """How near an output is to FP32's: ``cosine 0.918, SQNR 7.9 dB``; None: it is not finite."""
    words = [("cosine", cosine_text(cosine)), ("SQNR", db_text(sqnr_db))]
    return ", ".join(f"{name} {value}" for name, value in words if value != NONE) or "not finite"


def output_texts(variant: VariantRecord) -> tuple[str, str]:
    """Cosine and SQNR of the output that is farthest from FP32's."""
    if (output := variant.farthest_output()) is None:
        return ("1", "equal") if variant.comparison else (NONE, NONE)
    return cosine_text(output.cosine_min), db_text(output.sqnr_db)


def cosine_text(cosine: float | None) -> str:
    """Three digits, or more where it takes more to tell it from 1: ``0.918``, ``0.9998``."""
    if cosine is None:
        return NONE
    digits = 3
    while cosine < 1 and round(cosine, digits) >= 1 and digits < 6:
        digits += 1
    return f"{cosine:.{digits}f}"


def db_text(value: float | None) -> str:
    """A ratio in decibel: ``24.0 dB``."""
    return NONE if value is None else f"{signed(value, 1)} dB"
