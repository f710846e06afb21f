"""Sums of channels: the same bits whatever the layout in memory, in compiled code and with numpy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

from calibration.arrays import AnyArray, Floats
from calibration.histogram import channel_sums as sums_module
from calibration.histogram.accumulate import compiled_module
from calibration.histogram.channel_sums import channel_sums, in_order

MODULE = compiled_module()
HAS_SUMS = hasattr(MODULE, "channel_sums")
HOW = ("numpy", "plain", "avx2", "avx512")


@pytest.fixture(params=HOW)
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Computed in one way or the other."""
    module: ModuleType | None = None if request.param == "numpy" else MODULE
    if module is None:
        monkeypatch.setattr(sums_module, "compiled_module", lambda: None)
    else:
        module.use(request.param)
    yield request.param
    if MODULE is not None:
        MODULE.use("avx512")


def in_blocks(values: AnyArray, block: int) -> AnyArray:
    """(N, C, …) as ONNX Runtime's convolutions keep it, under the same shape."""
    num, channels, *others = values.shape
    blocked = np.moveaxis(values.reshape(num, channels // block, block, *others), 2, -1)
    return np.ascontiguousarray(blocked).reshape(values.shape)


def slowly(values: AnyArray, axis: int) -> Floats:
    """By the definition: eight sums of each channel, added up in order."""
    rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64).tolist()
    sums = []
    for row in rows:
        parts = [0.0] * 8
        for position, value in enumerate(row):
            parts[position % 8] += value
        total = 0.0
        for part in parts:
            total += part
        sums.append(total)
    return np.array(sums)


def values_of(*shape: int) -> AnyArray:
    random = np.random.default_rng(math.prod(shape))
    return (random.standard_normal(shape) * 10.0 ** random.integers(-6, 6, shape)).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((1, 48, 7, 5), 1),
        ((1, 5, 3, 3), 1),
        ((3, 4, 5), 1),
        ((2, 9, 35), -1),
        ((1, 7), -1),
        ((6, 1, 3), 0),
        ((1, 3, 0), 1),
    ],
)
def test_sums_are_those_of_the_definition_to_the_bit(how: str, shape: tuple[int, ...], axis: int) -> None:
    values = values_of(*shape)
    if values.size:
        assert channel_sums(values, axis).tobytes() == slowly(values, axis).tobytes(), how
        assert channel_sums(values.astype(np.float64), axis).tobytes() == slowly(values, axis).tobytes()


@pytest.mark.parametrize("block", [4, 8, 16])
@pytest.mark.parametrize("num", [1, 2])
def test_channels_that_lie_side_by_side_have_the_same_sums(how: str, block: int, num: int) -> None:
    values = values_of(num, 48, 11, 3)
    blocked = in_blocks(values, block)
    assert np.array_equal(in_order(blocked, block), values)
    assert not np.array_equal(blocked, values)
    for axis in range(4):
        assert channel_sums(blocked, axis, block).tobytes() == slowly(values, axis).tobytes(), how


@pytest.mark.skipif(not HAS_SUMS, reason="histogram.c was not built: no C compiler at installation, or an old one")
def test_what_does_not_fit_is_refused() -> None:
    assert MODULE is not None
    with pytest.raises(ValueError, match="takes \\(groups, positions, lanes\\) float32"):
        MODULE.channel_sums(np.zeros(6, np.float32), np.zeros(2), 2, 2, 1)
    with pytest.raises(ValueError, match="takes \\(groups, positions, lanes\\) float32"):
        MODULE.channel_sums(np.zeros(4, np.float32), np.zeros(1), 2, 2, 1)
