"""The largest batch within a bound: on a machine made up, whose latencies are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.latency import largest_batch
from pipeline.latency.benchmark import Candidate, Queries
from pipeline.latency.largest_batch import (
    LargestBatch,
    LatencyBound,
    LoadBatch,
    TriedBatch,
    bound_from_text,
    find_largest_batch,
)
from pipeline.latency.paired import LatencyLimit, LimitResult, PairedResult
from pipeline.latency.protocol import Pairing
from pipeline.stats.intervals import Interval, Outcome, outcome

NUM_SESSIONS = 8
Ms = Callable[[int], float]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """In place of the clock and of sessions, for a test may not depend on how fast this machine is."""
    made_up = Machine()
    monkeypatch.setattr(largest_batch, "compare_paired", made_up.compare)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: made_up.now_ns)
    return made_up


class Machine:
    """A query of so many samples takes so many milliseconds, of which sessions know five in a hundred."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.latency_ms: Ms = lambda size: 1.0 + 0.5 * size
        self.uncertain = 0.05
        self.rough: list[int] = []
        self.confidences: set[float] = set()

    def load(self) -> LoadBatch:
        @contextmanager
        def loaded(size: int) -> Iterator[Candidate]:
            def call() -> None:
                self.now_ns += int(self.latency_ms(size) * 1e6)

            self.rough.append(size)
            yield Candidate("engine", size, call, lambda: None)

        return loaded

    def compare(
        self, load: Callable[[], object], _baseline: None, limits: list[LatencyLimit], pairing: Pairing
    ) -> PairedResult:
        (limit,) = limits
        self.confidences.add(pairing.confidence)
        ms = self.latency_ms(limit.batch_size)
        interval = Interval(ms, ms * (1 - self.uncertain), ms * (1 + self.uncertain), pairing.confidence)
        result = LimitResult(limit, outcome(interval, limit.limit), interval, 0.0, 0.0)
        values = np.full(80, ms)
        queries = Queries(values, np.zeros(80, dtype=np.int64), np.arange(80.0), values)
        return PairedResult((result,), queries, None, NUM_SESSIONS, 8, 1.0, 0, pairing.confidence, 0.001, ())


def searched(machine: Machine, sizes: range | list[int], ms: float) -> LargestBatch:
    return find_largest_batch("net", list(sizes), machine.load(), LatencyBound("p99_ms", ms), Pairing(confidence=0.95))


def test_it_lies_between_a_batch_that_keeps_the_bound_and_one_that_does_not(machine: Machine) -> None:
    largest = searched(machine, range(1, 257), 20)
    assert largest.batch_size == 38, "1 + 0.5 * 38 = 20"
    assert largest.low <= 36 <= largest.high, "1.05 * 19 = 19.95"
    assert largest.low >= 36 - 3
    assert 40 <= largest.high <= 44, "0.95 * 21.5 > 20"
    assert largest.throughput_per_s == pytest.approx(38 / 20 * 1000)
    assert largest.sentence == (
        f"net: batches of up to 38 keep p99_ms <= 20 (95% interval {largest.low} to {largest.high}), at 1,900 samples "
        "per second"
    )
    assert [each.batch_size for each in largest.tried] == sorted(each.batch_size for each in largest.tried)
    assert (largest.tried[0].outcome, largest.tried[-1].outcome) == ("pass", "fail")
    assert max(machine.rough) <= 80, "a batch of several times the bound is never run"


def test_a_certain_machine_tells_it_to_the_batch(machine: Machine) -> None:
    machine.uncertain = 0.001
    for bound_ms in (1.6, 5.2, 9.9, 11.1):
        largest = searched(machine, range(1, 257), bound_ms)
        true = int((bound_ms - 1) / 0.5)
        assert (largest.low, largest.batch_size, largest.high) == (true, true, true)


def test_the_error_is_shared_out_among_all_batches(machine: Machine) -> None:
    largest = searched(machine, range(1, 4097), 400)
    (each,) = machine.confidences
    assert len(largest.tried) * (1 - each) <= 0.05


def test_all_batches_keep_it(machine: Machine) -> None:
    largest = searched(machine, range(1, 17), 1000)
    assert (largest.low, largest.batch_size, largest.high, largest.engine_max) == (16, 16, 16, 16)
    assert largest.sentence.startswith("net: even the largest batch, 16, keeps p99_ms <= 1000")


def test_no_batch_keeps_it(machine: Machine) -> None:
    largest = searched(machine, range(4, 17), 2)
    assert (largest.low, largest.batch_size, largest.high, largest.throughput_per_s) == (0, 0, 0, None)
    assert largest.sentence == "net: no batch keeps p99_ms <= 2 (95% interval 0 to 0)"


def test_a_machine_that_says_nothing(machine: Machine) -> None:
    machine.uncertain = 0.99
    largest = searched(machine, range(1, 33), 9)
    assert (largest.low, largest.high) == (1, 32), "1.99 * 1.5 < 9 < 17"
    assert largest.batch_size == 16


@pytest.mark.parametrize("sizes", [[8], [1, 2, 4, 8, 16, 32, 64]])
def test_only_what_the_engine_takes_is_tried(machine: Machine, sizes: list[int]) -> None:
    machine.uncertain = 0.001
    largest = searched(machine, sizes, 20)
    assert set(machine.rough) <= set(sizes)
    assert largest.low == largest.high == (8 if sizes == [8] else 32)


def test_where_a_batch_is_faster_than_a_smaller_one(machine: Machine) -> None:
    """As where a kernel wants multiples of eight: what was tried is right, and 32 was not."""
    machine.uncertain = 0.001
    machine.latency_ms = lambda size: 1.0 + 0.5 * size + (0 if size % 8 == 0 else 2.0)
    largest = searched(machine, range(1, 65), 17.6)
    assert (largest.low, largest.batch_size, largest.high) == (29, 29, 29)


def test_a_batch_that_breaks_it_below_one_that_keeps_it_widens_the_interval() -> None:
    """As on a machine that others use now and then."""
    rows: list[tuple[int, Outcome, float]] = [
        (78, "pass", 12.4), (90, "not decided", 17.5), (96, "fail", 24.0), (102, "pass", 17.7),
        (108, "not decided", 18.2), (120, "fail", 34.8),
    ]  # fmt: skip
    tried = [TriedBatch(size, kept, ms, ms, ms, size / ms * 1e3, 80, 8) for size, kept, ms in rows]
    largest = largest_batch._answer("net", range(1, 257), LatencyBound("p50_ms", 20.0), 0.95, tried)
    assert (largest.low, largest.batch_size, largest.high) == (78, 108, 119)
    assert largest.sentence.endswith("; a smaller batch than one that keeps it does not: see the table")


@pytest.mark.parametrize(
    "text",
    ["p99_ms", "p99_ms <= 0", "p99_ms >= 3", "p99_ms <= 3 ms", "size_mib <= 3", "p98_ms <= 2", "20"],
)
def test_what_is_no_bound_is_said(text: str) -> None:
    with pytest.raises(ConfigError, match=r"which is no bound of latency; write p50_ms, p90_ms, p99_ms, mean_ms and"):
        bound_from_text(text)


def test_a_bound_in_its_one_spelling() -> None:
    assert str(bound_from_text(" p99_ms<=20.50 ")) == "p99_ms <= 20.5"
