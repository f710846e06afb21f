"""The embedded executor is one as any other: what it ran has a result or an error."""

from __future__ import annotations

from concurrent.futures import Executor, wait

import pytest

from pipeline.errors import StageError
from pipeline.nightly.executors import SerialExecutor


def test_it_runs_at_once_and_in_turn() -> None:
    order: list[int] = []
    with SerialExecutor() as executor:
        assert isinstance(executor, Executor)
        futures = [executor.submit(order.append, number) for number in range(3)]
        assert order == [0, 1, 2]
        assert len(wait(futures).done) == 3
        assert list(executor.map(abs, (-1, -2))) == [1, 2]


def test_an_error_is_the_futures() -> None:
    def fail() -> None:
        raise StageError("the tool failed")

    future = SerialExecutor().submit(fail)
    with pytest.raises(StageError, match="the tool failed"):
        future.result()


def test_ctrl_c_is_no_result() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SerialExecutor().submit(stop)
