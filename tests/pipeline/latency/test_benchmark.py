"""The latency protocol, on a clock that only the candidates move: every number can be worked out by hand."""

import gc
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.arrays import Floats
from pipeline.errors import ConfigError
from pipeline.latency.benchmark import Candidate, Queries, Timing, latency_from_ms, measure, queries_from_npz, speedup
from pipeline.latency.protocol import Protocol

QUICK = Protocol(
    warmup_queries=2, warmup_seconds=0.0, min_queries=40, min_seconds=0.0, num_blocks=4, settle_queries=1, seed=3
)


class FakeMachine:
    """A clock in nanoseconds, and candidates whose queries take as long as they are told."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.log: list[str] = []

    def clock(self) -> int:
        return self.now_ns

    def candidate(
        self, name: str, ms: Callable[[int], float], batch_size: int = 1, device_ms: float | None = None
    ) -> Candidate:
        """``ms``: number of the query, from 0, warm-up included -> its latency in milliseconds."""
        count = 0

        def call() -> None:
            nonlocal count
            self.now_ns += round(ms(count) * 1e6)
            count += 1
            self.log.append(name)

        return Candidate(name, batch_size, call, lambda: device_ms)


def test_the_numbers_of_a_steady_candidate_are_its_latency() -> None:
    machine = FakeMachine()
    timing = measure([machine.candidate("a", lambda _: 2.0, batch_size=8)], QUICK, clock=machine.clock)[0]
    assert (timing.latency_ms.mean, timing.latency_ms.p50, timing.latency_ms.p99) == (2.0, 2.0, 2.0)
    assert timing.throughput_per_s == 8 / 2e-3
    assert timing.num_queries == len(timing.queries.latency_ms) == 40
    assert timing.stable
    assert timing.device_ms is None


def test_throughput_is_of_the_mean_not_of_the_median() -> None:
    machine = FakeMachine()
    timing = measure([machine.candidate("a", lambda n: 9.0 if n % 4 == 0 else 1.0)], QUICK, clock=machine.clock)[0]
    assert timing.latency_ms.p50 == 1.0
    assert timing.throughput_per_s == pytest.approx(1000 / timing.queries.latency_ms.mean())


def test_warm_up_and_settling_queries_are_not_recorded() -> None:
    machine = FakeMachine()
    slow = {0, 1, *(2 + 11 * block for block in range(4))}  # Two of warm-up, then the first of every block of 1 + 10.
    timing = measure(
        [machine.candidate("a", lambda n: 50.0 if n in slow else 1.0)], QUICK, clock=machine.clock
    )[0]  # fmt: skip
    assert timing.queries.latency_ms.max() == 1.0
    assert len(machine.log) == 2 + 4 * 11


def test_warm_up_lasts_both_so_many_queries_and_so_long() -> None:
    machine = FakeMachine()
    measure([machine.candidate("a", lambda _: 10.0)], replace(QUICK, warmup_seconds=0.5), clock=machine.clock)
    assert len(machine.log) == 50 + 4 * 11


def test_a_candidate_gets_its_minimum_of_queries_and_of_seconds() -> None:
    machine = FakeMachine()
    protocol = replace(QUICK, min_queries=40, min_seconds=1.0)
    fast, slow = measure(
        [machine.candidate("fast", lambda _: 1.0), machine.candidate("slow", lambda _: 100.0)],
        protocol,
        clock=machine.clock,
    )
    assert fast.num_queries == 1000
    assert fast.queries.latency_ms.sum() >= 1000.0
    assert slow.num_queries == 40


def test_candidates_take_turns_block_by_block() -> None:
    machine = FakeMachine()
    names = ["a", "b", "c"]
    measure([machine.candidate(name, lambda _: 1.0) for name in names], QUICK, clock=machine.clock)
    after_warmup = machine.log[6:]
    blocks = [after_warmup[start : start + 11] for start in range(0, len(after_warmup), 11)]
    assert all(len(set(block)) == 1 for block in blocks)
    rounds = [[block[0] for block in blocks[start : start + 3]] for start in range(0, 12, 3)]
    assert all(sorted(round_) == names for round_ in rounds)
    assert len({tuple(round_) for round_ in rounds}) > 1, "the order is drawn anew for every round"


def test_the_order_follows_the_seed() -> None:
    def order(seed: int) -> list[str]:
        machine = FakeMachine()
        candidates = [machine.candidate(name, lambda _: 1.0) for name in "abcd"]
        measure(candidates, replace(QUICK, seed=seed), clock=machine.clock)
        return machine.log

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_a_drifting_machine_is_fair_to_both() -> None:
    machine = FakeMachine()

    def drifting(_: int) -> float:
        return 1.0 + machine.now_ns / 1e10  # 0.1 ms slower with every second: 40 % in all.

    first, second = measure(
        [machine.candidate("a", drifting), machine.candidate("b", drifting)],
        replace(QUICK, num_blocks=20, min_queries=2000),
        clock=machine.clock,
    )
    assert first.latency_ms.p50 == pytest.approx(second.latency_ms.p50, rel=0.05)
    assert not first.stable
    assert not second.stable


def test_drift_is_said_with_its_numbers() -> None:
    machine = FakeMachine()
    slower = machine.candidate("a", lambda n: 1.0 if n < 24 else 1.08)  # 2 + 2 * 11 queries: half of the blocks.
    timing = measure([slower], QUICK, clock=machine.clock)[0]
    assert not timing.stable
    assert "unstable: the later half is 8.0% slower than the earlier (bound 5.0%)" in timing.note


def test_spread_is_said_with_its_numbers() -> None:
    machine = FakeMachine()
    jumpy = machine.candidate("a", lambda n: 1.0 if ((n - 2) // 11) % 2 else 2.0)  # Every other block.
    timing = measure([jumpy], QUICK, clock=machine.clock)[0]
    assert not timing.stable
    assert f"block medians spread by {np.std([1, 2, 1, 2], ddof=1) / 1.5:.1%} (bound 10.0%)" in timing.note


def test_a_single_outlier_does_not_make_it_unstable() -> None:
    machine = FakeMachine()
    timing = measure([machine.candidate("a", lambda n: 500.0 if n == 20 else 1.0)], QUICK, clock=machine.clock)[0]
    assert timing.stable
    assert timing.queries.latency_ms.max() == 500.0, "but it stays in the raw samples"


def test_p99_of_few_queries_is_said_to_be_the_slowest() -> None:
    machine = FakeMachine()
    few, enough = (
        measure([machine.candidate("a", lambda _: 1.0)], replace(QUICK, min_queries=count), clock=machine.clock)[0]
        for count in (96, 100)
    )
    assert few.note == "p99 is the slowest of only 96 queries"
    assert enough.note == ""


def test_device_time_is_kept_beside_host_time() -> None:
    machine = FakeMachine()
    timing = measure([machine.candidate("a", lambda _: 2.0, device_ms=1.25)], QUICK, clock=machine.clock)[0]
    assert timing.device_ms is not None
    assert timing.device_ms.p50 == 1.25
    assert timing.latency_ms.p50 == 2.0


def test_device_time_known_for_some_queries_only_is_not_given() -> None:
    machine = FakeMachine()
    told = iter([1.0, *[None] * 1000])
    candidate = replace(machine.candidate("a", lambda _: 2.0), device_ms=lambda: next(told))
    timing = measure([candidate], QUICK, clock=machine.clock)[0]
    assert timing.device_ms is None
    assert "device time is known for 1 of 40 queries only" in timing.note


def test_raw_samples_know_their_round_and_their_order() -> None:
    machine = FakeMachine()
    timings = measure(
        [machine.candidate("a", lambda n: 1.0 + n), machine.candidate("b", lambda _: 3.0)], QUICK, clock=machine.clock
    )
    queries = timings[0].queries
    assert queries.block.tolist() == sorted([0, 1, 2, 3] * 10)
    assert np.all(np.diff(queries.started_ms) >= queries.latency_ms[:-1] - 1e-9)
    assert np.all(np.diff(queries.latency_ms) > 0)


def test_progress_counts_blocks() -> None:
    machine, seen = FakeMachine(), []
    measure(
        [machine.candidate(name, lambda _: 1.0) for name in "ab"],
        QUICK,
        on_block=lambda done, total: seen.append((done, total)),
        clock=machine.clock,
    )
    assert seen == [(done, 8) for done in range(1, 9)]


def test_garbage_collection_is_off_while_timed_and_on_again_after_a_failure() -> None:
    seen = []

    def call() -> None:
        seen.append(gc.isenabled())
        if len(seen) == 20:
            raise RuntimeError("the engine broke")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="the engine broke"):
        measure([Candidate("a", 1, call, lambda: None)], QUICK)
    assert gc.isenabled()
    assert seen[3:13] == [False] * 10  # Two of warm-up and one to settle come before.


def test_two_candidates_of_one_name_and_batch_size_are_refused() -> None:
    machine = FakeMachine()
    twice = [machine.candidate("a", lambda _: 1.0)] * 2
    with pytest.raises(ValueError, match="two candidates have the same name and batch size"):
        measure(twice, QUICK, clock=machine.clock)


def test_the_real_clock_measures_what_a_busy_loop_takes() -> None:
    def busy() -> None:
        end = time.perf_counter_ns() + 200_000
        while time.perf_counter_ns() < end:
            pass

    timing = measure([Candidate("busy", 1, busy, lambda: None)], replace(QUICK, min_queries=20))[0]
    assert 0.2 <= timing.queries.latency_ms.min() < 100, "milliseconds, whoever else wants the CPU"


@given(st.lists(st.floats(0.001, 1000.0), min_size=1, max_size=300))
def test_percentiles_are_nearest_rank(values: list[float]) -> None:
    latency = latency_from_ms(np.array(values))
    for percent, found in ((50, latency.p50), (90, latency.p90), (95, latency.p95), (99, latency.p99)):
        assert found in values
        below = sum(value <= found for value in values)
        assert below * 100 >= percent * len(values), "at least that share lies at or below it"
        strictly = sum(value < found for value in values)
        assert strictly * 100 < percent * len(values), "and no smaller value would do"


def test_percentiles_of_one_to_a_hundred_are_themselves() -> None:
    latency = latency_from_ms(np.arange(100, 0, -1, dtype=np.float64))
    assert (latency.p50, latency.p90, latency.p95, latency.p99, latency.mean) == (50, 90, 95, 99, 50.5)


def timing_from_blocks(name: str, *blocks: Floats) -> Timing:
    """A timing with these latencies, block by block."""
    values = np.concatenate(blocks)
    number = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    queries = Queries(values, number, np.cumsum(values), np.full(len(values), np.nan))
    latency = latency_from_ms(values)
    return Timing(name, 1, latency, 1000 / latency.mean, None, len(values), True, "", queries)


def noisy_blocks(center_ms: float, noise: float, seed: int) -> list[Floats]:
    random = np.random.default_rng(seed)
    levels = random.normal(1, noise, 10)
    return [center_ms * level * random.normal(1, 0.01, 50) for level in levels]


def test_speedup_is_the_ratio_of_medians_inside_its_interval() -> None:
    base = timing_from_blocks("fp32", *noisy_blocks(2.0, 0.01, 1))
    fast = timing_from_blocks("int8", *noisy_blocks(1.0, 0.01, 2))
    found = speedup(base, fast, seed=0)
    assert found.ratio == base.latency_ms.p50 / fast.latency_ms.p50
    assert found.low < found.ratio < found.high
    assert found.low == pytest.approx(2.0, rel=0.03)
    assert found.high == pytest.approx(2.0, rel=0.03)
    assert speedup(base, fast, seed=0) == found


def test_the_interval_is_wider_on_a_noisy_machine() -> None:
    widths = []
    for noise in (0.005, 0.1):
        base, fast = (timing_from_blocks("x", *noisy_blocks(1.0, noise, seed)) for seed in (1, 2))
        found = speedup(base, fast, seed=0)
        widths.append(found.high - found.low)
    assert widths[1] > 5 * widths[0]


def test_disturbances_of_whole_rounds_cancel_since_rounds_are_drawn_together() -> None:
    levels = np.random.default_rng(5).uniform(1.0, 2.0, 10)
    base = timing_from_blocks("fp32", *(np.full(20, 2.0 * level) for level in levels))
    fast = timing_from_blocks("int8", *(np.full(20, 1.0 * level) for level in levels))
    found = speedup(base, fast, seed=0)
    assert found.low == pytest.approx(2.0)
    assert found.high == pytest.approx(2.0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(60):
        base = timing_from_blocks("a", *noisy_blocks(1.5, 0.03, 2 * seed))
        fast = timing_from_blocks("b", *noisy_blocks(1.0, 0.03, 2 * seed + 1))
        found = speedup(base, fast, seed=seed)
        covered += found.low <= 1.5 <= found.high
    assert 48 <= covered <= 60


@pytest.mark.parametrize("num_blocks", [4, 10])
def test_the_interval_misses_the_true_speedup_as_seldom_as_it_says(num_blocks: int) -> None:
    """Blocks of one engine differ by 2 %, as by where its memory came to lie."""
    random, missed = np.random.default_rng(6), 0
    for _ in range(200):
        base, fast = (
            timing_from_blocks(
                "x", *(level * random.normal(1, 0.02, 20) for level in random.normal(1, 0.02, num_blocks))
            )
            for _ in range(2)
        )
        found = speedup(base, fast, seed=0)
        missed += not found.low <= 1.0 <= found.high
    assert missed <= 0.05 * 200 + 2 * np.sqrt(0.05 * 200)


def test_speedup_of_different_batch_sizes_is_refused() -> None:
    base = timing_from_blocks("a", *noisy_blocks(1.0, 0.01, 1))
    with pytest.raises(ValueError, match="differ in batch size or in number of blocks"):
        speedup(base, replace(base, batch_size=8), seed=0)


def test_raw_samples_come_back_from_their_file_exactly(tmp_path: Path) -> None:
    queries = timing_from_blocks("a", *noisy_blocks(1.0, 0.01, 1)).queries
    queries.write(tmp_path / "new" / "a.npz")
    back = queries_from_npz(tmp_path / "new" / "a.npz")
    for name in ("latency_ms", "block", "started_ms", "device_ms"):
        np.testing.assert_array_equal(getattr(back, name), getattr(queries, name))


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 truncated"])
def test_a_missing_or_broken_file_of_raw_samples_is_one_sentence(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.npz: holds no raw latencies .*; keep the report's folder whole"):
        queries_from_npz(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_blocks": 3}, "num_blocks is 3, but must be at least 4"),
        ({"min_queries": 0}, "min_queries is 0, but must be at least 1"),
        ({"warmup_queries": 0}, "warmup_queries is 0, but must be at least 1"),
        ({"min_seconds": -1.0}, "min_seconds is -1, but must be at least 0"),
        ({"max_drift": math.nan}, "max_drift is nan, but must be at least 0"),
    ],
)
def test_a_protocol_out_of_bounds_is_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Protocol(**options)  # type: ignore[arg-type]


def test_the_sentence_of_a_protocol_holds_each_of_its_numbers() -> None:
    protocol = Protocol(
        warmup_queries=11,
        warmup_seconds=0.75,
        min_queries=222,
        min_seconds=3.5,
        num_blocks=12,
        settle_queries=7,
        max_spread=0.21,
        max_drift=0.13,
        seed=99,
    )
    sentence = protocol.describe()
    for words in ("11 queries", "0.75 s", "222 queries", "3.5 s", "12 blocks", "7 queries", "21%", "13%", "seed 99"):
        assert words in sentence
    assert sentence.endswith(".")
