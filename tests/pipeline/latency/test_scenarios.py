"""LoadGen's scenarios, on a clock that only the queries and the waiting move."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engines.timed_queries import SPIN_NS, BlockLength, Raw, run_queries
from pipeline.errors import ConfigError
from pipeline.latency.benchmark import Candidate, measure
from pipeline.latency.protocol import Protocol
from pipeline.latency.scenarios import Arrivals, Load, QueryTimes

SINGLE = Load("single_stream", 0.0, "poisson")


class FakeMachine:
    """A clock in nanoseconds that queries, sleeping and each look at it move."""

    def __init__(self, look_ns: int = 1000) -> None:
        self.now_ns = 0
        self.look_ns = look_ns
        self.slept_s: list[float] = []

    def clock(self) -> int:
        self.now_ns += self.look_ns
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_ns += round(seconds * 1e9)

    def candidate(self, ms: Callable[[int], float], batch_size: int = 1) -> Candidate:
        count = 0

        def call() -> None:
            nonlocal count
            self.now_ns += round(ms(count) * 1e6)
            count += 1

        return Candidate("a", batch_size, call, lambda: None)


def run_of(raw: Raw) -> QueryTimes:
    starts, ends, _ = (np.array(values) for values in raw)
    return QueryTimes((ends - starts) / 1e6, starts / 1e6, np.zeros(len(starts), dtype=np.int64))


def served(rate: float, arrivals: Arrivals, ms: Callable[[int], float], num: int) -> tuple[QueryTimes, FakeMachine]:
    """So many queries of the server scenario, in one block."""
    machine = FakeMachine()
    load = Load("server", rate, arrivals)
    begin = load.query_arrivals((0, 0)).begin(machine.clock, machine.sleep)
    candidate = machine.candidate(ms)
    raw = run_queries(candidate.call, candidate.device_ms, BlockLength(num), machine.clock, begin)
    return run_of(raw), machine


def test_frames_of_a_camera_are_due_evenly_and_the_engine_idles_between() -> None:
    run, machine = served(10.0, "fixed", lambda _: 2.0, 20)
    assert np.diff(run.due_ms) == pytest.approx(np.full(19, 100.0))
    assert run.latency_ms == pytest.approx(np.full(20, 2.0), abs=0.01)
    assert sum(machine.slept_s) == pytest.approx(20 * 0.1 - 19 * 0.002 - 20 * SPIN_NS / 1e9, abs=0.001)


def test_a_slow_frame_delays_those_behind_it_and_each_counts_from_when_it_was_due() -> None:
    """No coordinated omission: one query of 250 ms makes the two frames behind it late as well."""
    run, _ = served(10.0, "fixed", lambda n: 250.0 if n == 3 else 20.0, 8)
    assert run.latency_ms == pytest.approx([20, 20, 20, 250, 170, 90, 20, 20], abs=0.1)
    assert run.service_ms() == pytest.approx([20, 20, 20, 250, 20, 20, 20, 20], abs=0.1)


def test_poisson_arrivals_have_the_rate_and_the_spread_of_an_exponential() -> None:
    run, _ = served(1000.0, "poisson", lambda _: 0.01, 4000)
    gaps_ms = np.diff(run.due_ms)
    assert gaps_ms.mean() == pytest.approx(1.0, rel=0.06)
    assert gaps_ms.std() == pytest.approx(1.0, rel=0.08)
    assert np.mean(gaps_ms > 1.0) == pytest.approx(math.exp(-1), abs=0.03)


def test_the_waiting_is_that_of_a_queue_with_random_arrivals_and_equal_service() -> None:
    """Pollaczek and Khinchine: the mean time in line is utilization / (2 (1 - utilization)) services."""
    run, _ = served(600.0, "poisson", lambda _: 1.0, 60_000)
    load = Load("server", 600.0, "poisson")
    assert load.utilization(run) == pytest.approx(0.6, abs=0.002)
    assert run.latency_ms.mean() == pytest.approx(1.0 + 0.6 / (2 * 0.4), rel=0.05)


def test_the_same_seed_gives_the_same_arrivals() -> None:
    def due(seed: tuple[int, ...]) -> list[int]:
        machine = FakeMachine()
        begin = Load("server", 100.0, "poisson").query_arrivals(seed).begin(machine.clock, machine.sleep)
        return [begin() for _ in range(5)]

    assert due((1, 2)) == due((1, 2))
    assert due((1, 2)) != due((1, 3))


def test_more_than_can_be_served_is_said() -> None:
    load = Load("server", 200.0, "fixed")
    run, _ = served(200.0, "fixed", lambda _: 10.0, 50)
    assert load.note(run).startswith("overloaded: 200 queries per second arrive, 99.98 can be served;")
    assert load.throughput_per_s(8, run) == pytest.approx(800, rel=0.01)
    assert run.latency_ms[-1] > 10 * run.latency_ms[0]
    busy, _ = served(95.0, "fixed", lambda _: 10.0, 50)
    assert "busy for 95% of the time" in Load("server", 95.0, "fixed").note(busy)
    calm, _ = served(10.0, "fixed", lambda _: 10.0, 50)
    assert Load("server", 10.0, "fixed").note(calm) == ""
    assert Load("server", 10.0, "fixed").throughput_per_s(8, calm) == 80


def test_single_stream_and_offline_issue_at_once() -> None:
    for load in (SINGLE, Load("offline", 0.0, "poisson")):
        machine = FakeMachine()
        assert load.query_arrivals((0,)).begin(machine.clock, machine.sleep) == machine.clock


def test_offline_counts_what_happens_between_batches() -> None:
    due_ms = np.array([0.0, 3.0, 6.0, 100.0, 103.0, 106.0])
    run = QueryTimes(np.full(6, 2.0), due_ms, np.repeat([0, 1], 3))
    assert run.block_ms() == 8.0 + 8.0
    assert Load("offline", 0.0, "poisson").throughput_per_s(4, run) == 4 * 6 / 16e-3
    assert SINGLE.throughput_per_s(4, run) == 4 / 2e-3


def test_a_new_block_begins_with_an_empty_line() -> None:
    run = QueryTimes(np.array([50.0, 45.0, 5.0]), np.array([0.0, 10.0, 20.0]), np.array([0, 0, 1]))
    assert run.service_ms().tolist() == [50.0, 5.0, 5.0]


QUICK = Protocol(
    warmup_queries=2, warmup_seconds=0.0, min_queries=80, min_seconds=0.0, num_blocks=4, settle_queries=1, seed=3
)


def test_a_benchmark_of_the_server_scenario() -> None:
    machine = FakeMachine()
    protocol = replace(QUICK, scenario="server", queries_per_s=2000.0, arrivals="fixed")
    candidates = [machine.candidate(lambda _: 0.1, batch_size=2), replace(machine.candidate(lambda _: 0.45), name="b")]
    fast, slow = measure(candidates, protocol, clock=machine.clock)
    assert fast.latency_ms.p50 == pytest.approx(0.1, abs=0.01)
    assert fast.throughput_per_s == 4000.0
    assert fast.num_queries == 80
    assert fast.note == "p99 is the slowest of only 80 queries"
    assert "busy for 9" in slow.note
    assert np.diff(fast.queries.started_ms[fast.queries.block == 0]) == pytest.approx(np.full(19, 0.5))


def test_all_candidates_of_a_round_meet_the_same_arrivals() -> None:
    machine = FakeMachine()
    protocol = replace(QUICK, scenario="server", queries_per_s=4000.0)
    candidates = [machine.candidate(lambda _: 0.01), replace(machine.candidate(lambda _: 0.02), name="b")]
    gaps = [
        np.diff(timing.queries.started_ms[timing.queries.block == 1])
        for timing in measure(candidates, protocol, clock=machine.clock)
    ]
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-5)


def test_the_real_clock_waits_until_a_query_is_due() -> None:
    load = Load("server", 50.0, "fixed")
    begin = load.query_arrivals((0,)).begin(time.perf_counter_ns)
    due_ns, now_ns = begin(), time.perf_counter_ns()
    assert now_ns >= due_ns
    assert begin() - due_ns == pytest.approx(20e6, abs=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scenario": "server"}, "scenario server: queries_per_s is 0, must be above 0; give the rate"),
        ({"scenario": "server", "queries_per_s": math.inf}, "queries_per_s is inf, must be above 0"),
        ({"scenario": "server", "queries_per_s": math.nan}, "queries_per_s is nan, must be above 0"),
        ({"queries_per_s": 5.0}, "scenario single_stream: queries_per_s is 5, but only server has a rate"),
        ({"arrivals": "fixed"}, "scenario single_stream: arrivals is fixed, but only server has arrivals;"),
        ({"scenario": "offline", "queries_per_s": 5.0}, "scenario offline: queries_per_s is 5, but only server"),
        (
            {"num_streams": 4},
            "scenario single_stream: num_streams is 4, but only offline has several batches",
        ),
        ({"scenario": "offline", "num_streams": 0}, "num_streams is 0, but must be at least 1"),
    ],
)
def test_a_rate_that_does_not_fit_the_scenario_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Protocol(**options)


def test_the_protocol_says_which_scenario_it_is() -> None:
    assert "one query at a time (single stream)" in QUICK.describe()
    poisson = replace(QUICK, scenario="server", queries_per_s=12.5)
    assert "LoadGen's Server scenario: 12.5 queries per second arrive by a Poisson process" in poisson.describe()
    assert "from when a query was due" in poisson.describe()
    assert "evenly spaced" in replace(poisson, arrivals="fixed").describe()
    offline = replace(QUICK, scenario="offline").describe()
    assert "LoadGen's Offline scenario" in offline
    assert "from arrays in to arrays out, 2 in flight at once on backends with streams; per" in offline
    assert "in flight" not in QUICK.describe()
    assert "throughput is samples divided by the time of the blocks" in offline
