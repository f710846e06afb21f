"""The least and largest value of a tensor that a format keeps."""

from __future__ import annotations

from dataclasses import dataclass

CONVERGENCE_FILE = "settling.json"


@dataclass(frozen=True)
class Span:
    """What calibration found of one tensor."""

    amax: float
    """Magnitude at which values are clipped, as entropy, min-max, percentile or mse chose it."""
    min: float
    """Smallest value seen."""
    max: float
    """Largest value seen."""
    channel_means: tuple[float, ...] = ()
    """Mean of each channel that a product sums over; none if no product reads the tensor, or they are not known."""
    is_finite: bool = True
    """False where infinite values were seen too, which no scale holds."""
    is_set: bool = False
    """The user set it."""
