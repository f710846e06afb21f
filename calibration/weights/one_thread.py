"""Many small products in one thread: several would spin between them, at ten times the CPU time and more wall time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """As a decorator or a context: numpy's matrix products run in the caller's thread alone, and sum in one order."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield
