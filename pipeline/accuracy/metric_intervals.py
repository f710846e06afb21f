"""A metric, its drop, and agreement, as what they say of samples that are still to come: each with its interval.

The evaluation samples are taken as drawn at random from those that the network will meet, one by one; frames of one
video are not. Both engines are judged on the same samples, so what counts is where they differ.

- *top1, top5*: Clopper and Pearson's interval; of the drop Tango's for paired samples, which has a width also where no
  sample differs, and beside it p of McNemar's exact test (``pipeline/stats/proportions.py``).
- *Any other metric*: bootstrap over samples, the same for both engines (``pipeline/stats/bootstrap.py``). A mean over
  samples (mae, cosine) is drawn from its samples' values; the metrics of ``pipeline/tasks`` compare each sample with
  its label once and add up anew on each draw; anything else is computed anew on each draw. A share between 0 and 1
  that hangs on few samples, or on none, is at least as uncertain as Tango's interval of none that differs says: draws
  of the same few samples know nothing of those that were not seen.
- *Agreement*: Clopper and Pearson's interval.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.arrays import Bools, Floats, Ints
from engines.contract import Array
from pipeline.accuracy.metrics import Metric
from pipeline.errors import ConfigError
from pipeline.stats.bootstrap import expanded_percentiles
from pipeline.stats.intervals import Interval, Limit, outcome
from pipeline.stats.proportions import clopper_pearson, mcnemar, tango, two_sided

LEAST_RESAMPLES = 50
MOST_SAMPLES = 1_000_000
CLOSE = 0.01
"""The number of samples that would decide is told to within this share."""
CHUNK = 1 << 22
"""So many values are drawn at a time."""
EQUAL = 1e-9
"""Sums of the same numbers in another order differ by less."""
NUM_BLOCKS = 64


@dataclass(frozen=True)
class Sampling:
    """How sure a number about answers must be."""

    confidence: float = 0.99
    num_resamples: int = 2000
    max_seconds: float = 60.0
    """A metric that is so slow that its resamples take longer is given fewer of them."""
    seed: int = 0


@dataclass(frozen=True)
class Drop:
    """How much worse the candidate is than the reference, in the metric's unit; below 0 where it is better."""

    interval: Interval
    """NaN throughout where the metric is NaN for one of the two."""
    p_value: float | None
    """Of McNemar's exact test that both are right equally often; None where samples are not right or wrong."""
    num_only_reference: int
    """Samples on which only the reference is right."""
    num_only_candidate: int
    """Samples on which only the candidate is right; 0, like the other, where samples are not right or wrong."""
    method: str
    """How the interval was made."""


def metric_interval(metric: Metric, outputs: Mapping[str, Array], labels: Array | None, sampling: Sampling) -> Interval:
    """The metric of one engine; ``outputs`` by name, each (num_samples, ...), and labels (num_samples, ...).

    Raises:
        ConfigError: as the metric does; or it cannot be computed on most resamples.
    """
    if metric.per_sample and labels is not None:
        correct = metric.correct(outputs, labels)
        return _share(int(correct.sum()), len(correct), sampling.confidence)
    if metric.is_mean and labels is not None:
        return _mean_interval(metric.values(outputs, labels), sampling)
    interval, drawn = _resampled(metric.of_samples(outputs, labels), _num_samples(outputs), sampling)
    if metric.is_share and not math.isnan(interval.low) and _often(drawn, (0.0, 1.0), sampling.confidence):
        return _with_unseen(interval, _num_samples(outputs), least=0.0)
    return interval


def metric_drop(
    metric: Metric,
    candidate: Mapping[str, Array],
    reference: Mapping[str, Array],
    labels: Array | None,
    sampling: Sampling,
) -> Drop:
    """How much worse the candidate is than the reference on the same samples.

    Raises:
        ConfigError: as the metric does; or it cannot be computed on most resamples.
    """
    if metric.per_sample and labels is not None:
        return _drop_of_shares(metric.correct(candidate, labels), metric.correct(reference, labels), sampling)
    sign = 1.0 if metric.higher_is_better else -1.0
    if metric.is_mean and labels is not None:
        differences = sign * (metric.values(reference, labels) - metric.values(candidate, labels))
        interval, num_draws = _mean_interval(differences, sampling), sampling.num_resamples
    else:
        of_candidate, of_reference = (metric.of_samples(outputs, labels) for outputs in (candidate, reference))

        def value(picks: Ints) -> float:
            return sign * (of_reference(picks) - of_candidate(picks))

        interval, drawn = _resampled(value, _num_samples(candidate), sampling)
        num_draws = len(drawn)
        fewest = math.floor(two_sided(sampling.confidence) ** 2)
        if (
            metric.is_share
            and not math.isnan(interval.low)
            and _often(drawn, (0.0,), sampling.confidence)
            and _few_differ(metric, candidate, reference, labels, fewest)
        ):
            interval = _with_unseen(interval, _num_samples(candidate), least=-1.0)
    return Drop(interval, None, 0, 0, f"paired bootstrap over samples, {num_draws:,} resamples")


def samples_needed(grown: Callable[[int], Interval], num: int, limit: Limit) -> float:
    """How many samples would decide; infinity if ``MOST_SAMPLES`` would not.

    Args:
        grown: the interval from so many samples, were they answered as these were.
        num: of these, which do not decide.
        limit: what is to be decided.
    """

    def decides(of: int) -> bool:
        return outcome(grown(of), limit) != "not decided"

    few, enough = num, 2 * num
    while not decides(enough):
        few, enough = enough, 2 * enough
        if few > MOST_SAMPLES:
            return math.inf
    while enough - few > max(few * CLOSE, 1):
        middle = (few + enough) // 2
        few, enough = (few, middle) if decides(middle) else (middle, enough)
    return enough


def grown_metric(metric: Metric, interval: Interval, num: int) -> Callable[[int], Interval]:
    """For ``samples_needed``: of ``metric_interval``, which was made from ``num`` samples."""
    return grown_share(interval) if metric.per_sample else _grown(interval, num)


def grown_drop(drop: Drop, num: int) -> Callable[[int], Interval]:
    """For ``samples_needed``: of ``metric_drop``."""
    if drop.p_value is None:
        return _grown(drop.interval, num)
    counts, confidence = (drop.num_only_reference, drop.num_only_candidate), drop.interval.confidence

    def at(of: int) -> Interval:
        first, second = (round(count * of / num) for count in counts)
        return Interval((first - second) / of, *tango(first, second, of, confidence), confidence)

    return at


def grown_share(interval: Interval) -> Callable[[int], Interval]:
    """For ``samples_needed``: of ``agreement_interval``."""
    return lambda of: _share(round(interval.estimate * of), of, interval.confidence)


def _grown(interval: Interval, num: int) -> Callable[[int], Interval]:
    """An interval narrows with the root of the number of samples, and what was not seen with that number."""
    estimate, confidence = interval.estimate, interval.confidence
    unseen = _unseen_share(num, confidence)

    def half(end: float, of: int) -> float:
        if math.isclose(abs(end - estimate), unseen):
            return math.copysign(_unseen_share(of, confidence), end - estimate)
        return (end - estimate) * math.sqrt(num / of)

    def at(of: int) -> Interval:
        return Interval(estimate, estimate + half(interval.low, of), estimate + half(interval.high, of), confidence)

    return at


def agreement_interval(same: Bools, sampling: Sampling) -> Interval:
    """The share of samples on which two engines agree: ``same`` (num_samples,)."""
    return _share(int(same.sum()), len(same), sampling.confidence)


def _share(num_hits: int, num: int, confidence: float) -> Interval:
    return Interval(num_hits / num, *clopper_pearson(num_hits, num, confidence), confidence)


def _drop_of_shares(candidate: Bools, reference: Bools, sampling: Sampling) -> Drop:
    num_reference, num_candidate = int((reference & ~candidate).sum()), int((candidate & ~reference).sum())
    num = len(reference)
    return Drop(
        Interval(
            (num_reference - num_candidate) / num,
            *tango(num_reference, num_candidate, num, sampling.confidence),
            sampling.confidence,
        ),
        mcnemar(num_reference, num_candidate),
        num_reference,
        num_candidate,
        "Tango's score interval for paired samples; p of McNemar's exact test",
    )


def _num_samples(outputs: Mapping[str, Array]) -> int:
    return len(next(iter(outputs.values())))


def _mean_interval(values: Floats, sampling: Sampling) -> Interval:
    random, num = np.random.default_rng(sampling.seed), len(values)
    at_once = max(CHUNK // num, 1)
    drawn = [
        values[random.integers(num, size=(min(at_once, sampling.num_resamples - start), num))].mean(axis=1)
        for start in range(0, sampling.num_resamples, at_once)
    ]
    return _interval(float(values.mean()), np.concatenate(drawn), num, sampling.confidence)


def _with_unseen(interval: Interval, num: int, least: float) -> Interval:
    """The interval of a share or its drop, from ``least`` to 1, with what ``num`` samples of which few differ leave
    open: z^2 / (num + z^2) to either side, Tango's interval where none differs, and the wider one below z^2 of them.
    """  # fmt: skip
    unseen = _unseen_share(num, interval.confidence)
    low, high = min(interval.low, interval.estimate - unseen), max(interval.high, interval.estimate + unseen)
    return Interval(interval.estimate, max(low, least), min(high, 1.0), interval.confidence)


def _often(drawn: Floats, values: Sequence[float], confidence: float) -> bool:
    """Whether so many draws gave one of these values, as if fewer than z^2 samples stood against it.

    Where k do, a draw leaves all of them out with a probability of exp(-k).
    """
    num_equal = max(np.count_nonzero(np.abs(drawn - value) < EQUAL) for value in values)
    return bool(num_equal > 1 and num_equal / len(drawn) > math.exp(-(two_sided(confidence) ** 2)))


def _few_differ(
    metric: Metric, candidate: Mapping[str, Array], reference: Mapping[str, Array], labels: Array | None, most: int
) -> bool:
    """Whether the candidate's answers on at most ``most`` samples make its value another than the reference's.

    In blocks, and within those that matter in smaller ones, its answers are exchanged for the reference's.
    """
    num = _num_samples(candidate)
    if any(array.shape[1:] != reference[name].shape[1:] for name, array in candidate.items()):
        return True  # Lists of another length; what was drawn is all that is known.
    both = {name: np.concatenate([array, reference[name]]) for name, array in candidate.items()}
    value = metric.of_samples(both, None if labels is None else np.concatenate([labels, labels]))
    whole, num_differing = value(np.arange(num)), 0
    blocks = [block for block in np.array_split(np.arange(num), min(num, NUM_BLOCKS)) if block.size]
    while blocks and num_differing <= most:
        block = blocks.pop()
        picks = np.arange(num)
        picks[block] += num
        if abs(value(picks) - whole) < EQUAL:
            continue
        if block.size == 1:
            num_differing += 1
        else:
            blocks.extend(np.array_split(block, 2))
    return num_differing <= most


def _unseen_share(num: int, confidence: float) -> float:
    """How large a share of all samples may differ when none of ``num`` does: Tango's interval of it."""
    squared = two_sided(confidence) ** 2
    return squared / (num + squared)


def _resampled(value: Callable[[Ints], float], num: int, sampling: Sampling) -> tuple[Interval, Floats]:
    """The interval, and the value on each resample; on all samples first."""
    start = time.monotonic()
    estimate = value(np.arange(num))
    random = np.random.default_rng(sampling.seed)
    drawn: list[float] = []
    num_failed = 0
    while len(drawn) < sampling.num_resamples and not math.isnan(estimate):
        if len(drawn) >= LEAST_RESAMPLES and time.monotonic() - start > sampling.max_seconds:
            break
        try:
            drawn.append(value(random.integers(num, size=num)))
        except ConfigError as error:  # Such as a class of which none was drawn.
            num_failed += 1
            if num_failed > max(len(drawn), LEAST_RESAMPLES):
                raise ConfigError(
                    f"the metric cannot be computed on most resamples of the {num} samples ({error}), so there is no "
                    "interval; give more evaluation samples"
                ) from error
    values = np.array(drawn)
    return _interval(estimate, values, num, sampling.confidence), values


def _interval(estimate: float, drawn: Floats, num: int, confidence: float) -> Interval:
    """From what was drawn; ``num`` samples."""
    tail = (1 - confidence) / 2
    if num < 2 or math.isnan(estimate) or np.isnan(drawn).any():
        return Interval(estimate, math.nan, math.nan, confidence)
    return Interval(estimate, *expanded_percentiles(drawn, estimate, num, tail), confidence)
