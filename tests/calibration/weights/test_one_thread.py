"""Products in one thread."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

from calibration.weights.one_thread import one_blas_thread


def num_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@one_blas_thread()
def num_within() -> set[int]:
    return num_threads()


def test_products_run_in_one_thread_and_then_as_before() -> None:
    np.ones((4, 4)) @ np.ones((4, 4))  # The library is loaded.
    with threadpool_limits(limits=2, user_api="blas"):
        before = num_threads()
        assert [num_within(), num_within()] == [{1}, {1}], "each call anew"
        assert num_threads() == before
