"""How far engines that were drawn at random are from FP32, and the bound that follows for a correct one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from calibration.analysis.sqnr import sqnr_db, without_equal_infinities
from calibration.arrays import AnyArray, Floats

PRIOR_DEVIATION_DB = 1.4
PRIOR_FREEDOM = 4
"""What is known of the deviation before the first draw: that of 27 kinds of engines of three networks is 0.7 to 2.8 dB,
1.4 dB in the root mean square (benchmarks/results/tolerances.md); it counts as much as four draws."""
ATOL_FACTOR = 4.0
"""The largest difference of all samples, against the largest of those that were drawn on, at least."""
CLIPPED_SHARE = 0.25
"""Where values may be clipped, one sample may be off by so much of the span of FP32's own values: how much is cut off
of a sample says nothing of another, and the SQNR bounds what is lost in all."""
NUM_LOG_DEVIATIONS = 4.0
"""The same where samples differ much, as probabilities do: the largest differences of samples are near lognormal, but
no larger than FP32's own values lie apart."""


@dataclass(frozen=True)
class Bound:
    """How far one output may be off."""

    atol: float
    """Largest absolute difference of an element."""
    min_sqnr_db: float
    """Smallest SQNR over the samples that it was derived on."""
    mean_db: float
    deviation_db: float
    """Of the SQNRs of the engines that were drawn, with what is known before the first draw."""
    floor_db: float
    """SQNR of one FP32 run against another."""
    error_db: float
    """Standard error of the bound, from the number of draws."""

    def record(self) -> dict[str, float | None]:
        """For JSON: a floor that does not exist is null."""
        return asdict(self) | {"floor_db": self.floor_db if math.isfinite(self.floor_db) else None}


class DrawnNoise:
    """Of one output: signal and FP32's own noise by sample; noise and largest difference by draw and sample."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.low, self.high = math.inf, -math.inf
        self.signal: dict[int, float] = {}
        self.floor: dict[int, float] = {}
        self.noise: dict[tuple[int, int], float] = {}
        self.largest: dict[tuple[int, int], float] = {}

    def add_reference(self, sample: int, expected: AnyArray, again: AnyArray) -> None:
        """What FP32 answered on a sample, and another FP32 run."""
        expected, again = without_equal_infinities(expected, again)
        self.signal[sample] = _squares(expected)
        if expected.size:
            self.low, self.high = min(self.low, float(expected.min())), max(self.high, float(expected.max()))
        self.floor[sample] = _squares(np.subtract(again, expected, dtype=np.float64))

    def add(self, draw: int, sample: int, expected: AnyArray, actual: AnyArray) -> None:
        """What a drawn engine answered on a sample."""
        if actual.shape != expected.shape:  # Such as another number of detections.
            self.noise[draw, sample] = self.largest[draw, sample] = math.inf
            return
        expected, actual = without_equal_infinities(expected, actual)
        with np.errstate(all="ignore"):
            difference = np.asarray(np.abs(np.subtract(actual, expected, dtype=np.float64)))
        difference[~np.isfinite(difference)] = math.inf
        self.noise[draw, sample] = _squares(difference)
        self.largest[draw, sample] = float(np.max(difference, initial=0.0))

    def bound(self, num_deviations: float, *, clips: bool = False) -> Bound | None:
        """The bound for engines of a format that does or does not clip.

        None where the draws answer no numbers, or exactly as FP32 does, so that nothing can be told.

        The deviation is the mean of the prior variance and that of the draws, by their degrees of freedom (Gelman et
        al., "Bayesian Data Analysis", 2013, section 2.6: scaled inverse chi-squared prior).
        """
        signal, floor = sum(self.signal.values()), sum(self.floor.values())
        ratios = np.array([sqnr_db(signal, noise) for noise in self._noise_by_draw()])
        if not np.isfinite(ratios).all() or not math.isfinite(floor):
            return None
        freedom = PRIOR_FREEDOM + len(ratios) - 1
        squares = PRIOR_FREEDOM * PRIOR_DEVIATION_DB**2 + float(np.square(ratios - ratios.mean()).sum())
        mean, deviation = float(ratios.mean()), math.sqrt(squares / freedom)
        noise = 10 ** (-(mean - num_deviations * deviation) / 10) + floor / signal
        error = deviation * math.sqrt(1 / len(ratios) + num_deviations**2 / (2 * freedom))
        return Bound(
            self._atol(CLIPPED_SHARE if clips else 0.0),
            -10 * math.log10(noise),
            mean,
            deviation,
            sqnr_db(signal, floor),
            error,
        )

    def _noise_by_draw(self) -> list[float]:
        sums: dict[int, float] = {}
        for (draw, _), noise in self.noise.items():
            sums[draw] = sums.get(draw, 0.0) + noise
        return list(sums.values())

    def _atol(self, least_share: float) -> float:
        largest, span = np.array(list(self.largest.values())), self.high - self.low
        logs = np.log(largest[largest > 0])
        beyond = math.exp(float(logs.mean() + NUM_LOG_DEVIATIONS * logs.std())) if len(logs) > 1 else 0.0
        return max(ATOL_FACTOR * float(largest.max()), min(beyond, span), least_share * span)


def _squares(array: Floats | AnyArray) -> float:
    with np.errstate(all="ignore"):
        return float(np.square(array, dtype=np.float64).sum())
