"""The check of a feed: any fitting array passes, and any that differs in one property does not."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.contract import DYNAMIC, Array, TensorSpec
from engines.errors import EngineError
from engines.feed import FeedCheck

shapes = st.lists(st.integers(1, 4), max_size=4).map(tuple)
dtypes = st.sampled_from(["float32", "float16", "int64", "uint8"])


@given(shape=shapes, dtype=dtypes, data=st.data())
def test_fitting_arrays_pass(shape: tuple[int, ...], dtype: str, data: st.DataObject) -> None:
    free = [data.draw(st.booleans()) for _ in shape]
    spec = TensorSpec("x", dtype, tuple(DYNAMIC if f else n for f, n in zip(free, shape)))
    FeedCheck(Path("engine"), (spec,))({"x": np.zeros(shape, dtype)})


@given(shape=shapes, wanted=shapes, dtype=dtypes)
def test_another_fixed_shape_is_refused(shape: tuple[int, ...], wanted: tuple[int, ...], dtype: str) -> None:
    check = FeedCheck(Path("engine"), (TensorSpec("x", dtype, wanted),))
    if shape == wanted:
        check({"x": np.zeros(shape, dtype)})
    else:
        with pytest.raises(EngineError, match="engine: input 'x' has shape"):
            check({"x": np.zeros(shape, dtype)})


def test_missing_and_unknown_are_named_together() -> None:
    check = FeedCheck(Path("engine"), (TensorSpec("image", "float32", (1,)), TensorSpec("mask", "bool", (1,))))
    with pytest.raises(EngineError, match=r"\(missing 'mask'; unknown 'masks'\), the engine takes 'image', 'mask'"):
        check({"image": np.zeros(1, np.float32), "masks": np.zeros(1, bool)})


def test_it_is_cheap_and_does_not_depend_on_size() -> None:
    check = FeedCheck(Path("engine"), (TensorSpec("x", "float32", (DYNAMIC, 224, 224, 3)),))
    feed = {"x": np.zeros((32, 224, 224, 3), np.float32)}
    start = time.thread_time()
    for _ in range(1000):
        check(feed)
    assert (time.thread_time() - start) / 1000 < 100e-6  # measured: 2 microseconds


def test_what_is_certainly_alike_comes_in_the_order_of_the_inputs() -> None:
    check = FeedCheck(Path("engine"), (TensorSpec("a", "float32", (DYNAMIC, 2)), TensorSpec("b", "int64", (1,))))
    feed: dict[str, Array] = {"b": np.zeros(1, np.int64), "a": np.zeros((3, 2), np.float32)}
    found = check.alike(feed, ((3, 2), (1,)))
    assert found is not None
    assert [array.dtype.name for array in found] == ["float32", "int64"]


@given(shape=shapes, other=shapes, dtype=dtypes, wanted=dtypes)
def test_what_is_said_to_be_alike_passes_the_check(
    shape: tuple[int, ...], other: tuple[int, ...], dtype: str, wanted: str
) -> None:
    check = FeedCheck(Path("engine"), (TensorSpec("x", wanted, shape),))
    feed = {"x": np.zeros(other, dtype)}
    if check.alike(feed, (shape,)) is not None:
        check(feed)
    else:
        assert (other, dtype) != (shape, wanted)


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"k": np.zeros(2)},
        {"x": [0.0, 0.0]},
        {"x": np.zeros(2, ">f4")},
        {"x": np.zeros(2, np.float32), "k": np.zeros(2)},
        {"x": np.ma.masked_array([1.0, 2.0], dtype=np.float32)},
    ],
)
def test_what_is_not_certainly_alike(feed: dict[str, np.ndarray]) -> None:
    assert FeedCheck(Path("engine"), (TensorSpec("x", "float32", (2,)),)).alike(feed, ((2,),)) is None
    assert FeedCheck(Path("engine"), (TensorSpec("x", "float32", (2,)),)).alike({}, ()) is None
