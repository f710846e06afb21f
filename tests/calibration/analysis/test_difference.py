"""How far the numbers of one output are from the reference's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from calibration.analysis.difference import BLOCK, Difference, Element
from engines.contract import Array
from pipeline.accuracy.comparison import _quiet

RNG = np.random.default_rng(0)


def difference(pairs: list[tuple[Array, Array]], atol: float = math.inf, rtol: float = 0.0) -> Difference:
    of = Difference(atol, rtol)
    for want, have in pairs:
        of.add(want, have)
    return of


def polygraphys(want: Array, have: Array, atol: float, rtol: float) -> tuple[bool, float, float]:
    """Its verdict, largest and mean absolute difference."""
    with _quiet():
        from polygraphy.comparator import IterationResult
        from polygraphy.comparator import compare as comparators

        function = comparators.SimpleCompareFunc(check_error_stat="elemwise", atol=atol, rtol=rtol)
        result = function(IterationResult({"x": have}), IterationResult({"x": want}))["x"]
    return bool(result), float(result.max_absdiff), float(result.mean_absdiff)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.uint8])
@pytest.mark.parametrize(("atol", "rtol"), [(0.0, 0.0), (1.0, 0.0), (0.0, 0.5), (1.0, 0.5), (0.25, 2.0), (math.inf, 0)])
def test_the_verdict_is_polygraphys(dtype: type, atol: float, rtol: float) -> None:
    for noise in (0.0, 0.3, 3.0):
        want: Array = (RNG.normal(size=(7, 11)) * 10 + 20).astype(dtype)
        have: Array = (want.astype(np.float64) + noise * RNG.normal(size=want.shape)).astype(dtype)
        of = difference([(want, have)], atol, rtol)
        passed, most, mean = polygraphys(want, have, atol, rtol)
        assert of.is_within == passed
        assert of.max_abs == pytest.approx(most, rel=1e-6)
        assert of.mean_abs() == pytest.approx(mean, rel=1e-3)


def test_an_element_passes_within_either() -> None:
    want: Array = np.array([[100.0, 0.5]])
    have: Array = np.array([[103.0, 0.9]])
    assert difference([(want, have)], atol=0.4, rtol=0.03).is_within, "3 of 100 is 3 %, and 0.4 is within atol"
    assert not difference([(want, have)], atol=0.4, rtol=0.02).is_within
    assert not difference([(want, have)], atol=0.3, rtol=0.03).is_within


def test_blocks_leave_no_trace() -> None:
    size = BLOCK // 3  # Samples end in the middle of blocks.
    want = RNG.normal(size=(8, size)).astype(np.float32)
    have = want + RNG.normal(size=want.shape).astype(np.float32) / 8
    have[6, 5] += 9
    of = difference([(want[:5], have[:5]), (want[5:], have[5:])])
    distance = np.abs(have.astype(np.float64) - want.astype(np.float64))
    assert of.worst == Element((6, 5), float(want[6, 5]), float(have[6, 5]))
    assert of.max_abs == distance.max()
    assert of.mean_abs() == pytest.approx(distance.mean())
    assert of.num_samples == [5, 3]
    assert of.noises == pytest.approx([np.square(distance[:5]).sum(), np.square(distance[5:]).sum()])
    assert of.signals == pytest.approx([np.square(part.astype(np.float64)).sum() for part in (want[:5], want[5:])])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_infinitely_far(value: float) -> None:
    want = np.ones((2, 3), np.float32)
    have = want.copy()
    have[1, 1] = value
    of = difference([(want, have)])
    assert of.max_abs == of.mean_abs() == math.inf
    assert of.worst.index == (1, 1)
    assert difference([(have, want)]).max_abs == math.inf, "on either side"


def test_samples_without_elements() -> None:
    of = difference([(np.zeros((2, 0)), np.zeros((2, 0)))])
    assert of.is_within
    assert of.mean_abs() == 0.0
