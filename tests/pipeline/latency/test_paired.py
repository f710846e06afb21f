"""Candidate and baseline in turns, on a clock that only they move."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.latency.benchmark import Candidate
from pipeline.latency.intervals import Statistic, ratio_bounds
from pipeline.latency.paired import LatencyLimit, LoadEngine, PairedResult, compare_paired
from pipeline.latency.protocol import Pairing
from pipeline.stats.intervals import Limit, planned_looks

QUICK = Pairing(
    max_seconds=20.0, warmup_queries=2, warmup_seconds=0.02, load_seconds=0.1, block_ms=4.0, settle_queries=1, seed=1
)


class FakeMachine:
    """A clock in nanoseconds, and engines whose queries take as long as they are told."""

    def __init__(self, loading_ms: float = 1.0, look_ns: int = 0) -> None:
        self.now_ns = 0
        self.look_ns = look_ns
        """How far a look at the clock moves it: waiting needs some."""
        self.log: list[str] = []
        """``+a`` for a loaded, ``a`` for a query of it, ``-a`` for unloaded."""
        self.loading_ms = loading_ms

    def clock(self) -> int:
        self.now_ns += self.look_ns
        return self.now_ns

    def loading(self, name: str, ms: Callable[[], float], batch_size: int = 1) -> LoadEngine:
        def call() -> None:
            self.now_ns += round(ms() * 1e6)
            self.log.append(name)

        @contextmanager
        def opened() -> Iterator[Candidate]:
            self.now_ns += round(self.loading_ms * 1e6)
            self.log.append(f"+{name}")
            yield Candidate(name, batch_size, call, lambda: None)
            self.log.append(f"-{name}")

        return opened


def limit(
    statistic: Statistic = "p50", at_most: float = 1.03, *, relative: bool = True, batch_size: int = 1
) -> LatencyLimit:
    return LatencyLimit(f"{statistic} at most {at_most}", batch_size, statistic, Limit(at_most, at_most=True), relative)


def noisy(seed: int, center_ms: float, spread: float = 0.02) -> Callable[[], float]:
    """Latencies around the center, 3 % of them in a heavy tail."""
    random = np.random.default_rng(seed)
    return lambda: center_ms * (random.normal(1, spread) + (random.random() < 0.03) * random.pareto(2.0))


def compared(slower: float, seed: int = 0, spread: float = 0.02, pairing: Pairing = QUICK) -> PairedResult:
    machine = FakeMachine()
    candidate = machine.loading("c", noisy(2 * seed, slower, spread))
    baseline = machine.loading("b", noisy(2 * seed + 1, 1.0, spread))
    return compare_paired(candidate, baseline, [limit()], replace(pairing, seed=seed), clock=machine.clock)


def test_equal_engines_pass_and_a_slower_one_fails() -> None:
    assert compared(1.0).limit_results[0].outcome == "pass"
    slow = compared(1.06)
    assert slow.limit_results[0].outcome == "fail"
    assert slow.limit_results[0].interval.low > 1.03
    assert slow.limit_results[0].interval.estimate == pytest.approx(1.06, abs=0.01)
    assert (slow.limit_results[0].more_rounds, slow.limit_results[0].more_seconds) == (0.0, 0.0)


def test_over_all_looks_the_limit_itself_is_called_broken_as_seldom_as_the_confidence_says() -> None:
    random, looks = np.random.default_rng(0), planned_looks(8, 100)
    tail = (1 - 0.9) / 2 / len(looks)
    false_alarms = wrong_passes = 0
    for _ in range(400):
        luck = random.normal(0, 0.01, (2, 100, 1)) + (random.random((2, 100, 1)) < 0.05) * 0.05
        ours, theirs = np.exp(luck) * random.normal(1, 0.02, (2, 100, 20))
        intervals = [ratio_bounds(1.03 * ours[:num], theirs[:num], "p50", tail) for num in looks]
        false_alarms += any(low > 1.03 for _, low, _ in intervals)
        wrong_passes += any(high < 1.03 for _, _, high in intervals)
    assert max(false_alarms, wrong_passes) <= 20 + 3 * np.sqrt(20), "at most 5 % of 400, each"
    assert min(false_alarms, wrong_passes) >= 2, "and looking costs no more than it must"


def test_a_clear_difference_is_decided_at_the_first_look() -> None:
    found = compared(1.3)
    assert found.num_sessions == 8
    assert found.seconds < 3


def test_noise_takes_longer_and_still_decides() -> None:
    noisy_run = compared(1.10, spread=0.3)
    assert noisy_run.num_sessions > compared(1.10).num_sessions
    assert noisy_run.limit_results[0].outcome == "fail"


def test_what_lies_on_the_limit_is_not_decided_and_says_what_would_decide() -> None:
    found = compared(1.028, spread=0.1, pairing=replace(QUICK, max_seconds=5.0))
    answer = found.limit_results[0]
    assert answer.outcome == "not decided"
    assert answer.interval.low < 1.03 < answer.interval.high
    assert answer.more_rounds > 0
    assert answer.more_seconds == pytest.approx(answer.more_rounds * found.seconds / found.num_rounds, rel=0.1)
    assert found.seconds <= 5.0


def test_the_time_that_is_asked_for_then_decides() -> None:
    short = compared(1.015, spread=0.15, pairing=replace(QUICK, max_seconds=2.0))
    assert short.limit_results[0].outcome == "not decided"
    longer = replace(QUICK, max_seconds=2 * (short.seconds + short.limit_results[0].more_seconds))
    assert compared(1.015, spread=0.15, pairing=longer).limit_results[0].outcome == "pass"


def test_the_loads_needed_fall_with_the_square_of_the_distance() -> None:
    near, far = (
        compared(slower, spread=0.2, pairing=replace(QUICK, max_seconds=3.0, seed=5)).limit_results[0].more_seconds
        for slower in (1.02, 0.98)
    )
    assert near > 4 * far


def test_rounds_are_abba_or_baab_and_loads_are_whole() -> None:
    machine = FakeMachine()
    compare_paired(
        machine.loading("c", lambda: 1.0), machine.loading("b", lambda: 1.0), [limit()], QUICK, clock=machine.clock
    )  # fmt: skip
    loads = " ".join(machine.log).replace("-b -c", "|").replace("-c -b", "|").split("|")[1:-1]
    assert len(loads) == 8
    openings = {tuple(load.split()[:2]) for load in loads}
    assert openings == {("+c", "+b"), ("+b", "+c")}, "loaded in random order"
    letters = set()
    for load in loads:
        queries = load.split()[2 + 2 * QUICK.warmup_queries :]
        assert len(queries) % 20 == 0, "four blocks of one query to settle and four that count"
        for start in range(0, len(queries), 20):
            blocks = [queries[start + 5 * block : start + 5 * block + 5] for block in range(4)]
            assert all(len(set(block)) == 1 for block in blocks)
            letters.add("".join(block[0] for block in blocks))
    assert letters == {"cbbc", "bccb"}


def test_the_order_follows_the_seed() -> None:
    def order(seed: int) -> list[str]:
        machine = FakeMachine()
        sides = machine.loading("c", lambda: 1.0), machine.loading("b", lambda: 1.0)
        compare_paired(*sides, [limit()], replace(QUICK, seed=seed), clock=machine.clock)
        return machine.log

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_all_blocks_have_as_many_queries_as_the_slower_runs_in_a_block() -> None:
    machine = FakeMachine()
    found = compare_paired(
        machine.loading("c", lambda: 2.0), machine.loading("b", lambda: 1.0), [limit()], QUICK, clock=machine.clock
    )
    assert found.baseline is not None
    assert np.bincount(found.candidate.block).tolist() == [2 * 4] * found.num_rounds
    assert np.bincount(found.baseline.block).tolist() == [2 * 4] * found.num_rounds
    assert set(found.candidate.latency_ms) == {2.0}
    assert found.num_rounds % found.num_sessions == 0


def test_a_load_is_measured_for_as_long_as_loading_takes() -> None:
    rounds = []
    for loading_ms in (1.0, 500.0):
        machine = FakeMachine(loading_ms)
        sides = machine.loading("c", lambda: 1.0), machine.loading("b", lambda: 1.0)
        found = compare_paired(*sides, [limit()], replace(QUICK, max_seconds=60), clock=machine.clock)
        rounds.append(found.num_rounds / found.num_sessions)
    assert rounds[0] == 5, "0.1 s in rounds of 20 ms"
    assert rounds[1] >= 1000 / 20


def test_a_load_has_enough_queries_for_the_percentile_that_is_asked() -> None:
    machine = FakeMachine()
    sides = machine.loading("c", lambda: 1.0), machine.loading("b", lambda: 1.0)
    found = compare_paired(*sides, [limit("p99")], replace(QUICK, load_seconds=0.0), clock=machine.clock)
    assert len(found.candidate.latency_ms) / found.num_sessions >= 100


@pytest.mark.parametrize(
    ("asked", "num_loads", "num_queries"),
    [
        (limit("p99", 100.0, relative=False), 12, 68),
        (limit("p90", 1.0), 11, 28),
        (limit("p99", 1.0), 4, 100),
    ],
)
def test_slow_queries_have_as_many_loads_as_the_time_allows(
    asked: LatencyLimit, num_loads: int, num_queries: int
) -> None:
    """40 ms each, 60 s: but for a ratio of p99 a load has 100 of each side, as of fewer it would be the slowest."""
    machine = FakeMachine(loading_ms=300)
    candidate, baseline = machine.loading("c", noisy(0, 40.0)), machine.loading("b", noisy(1, 40.0))
    found = compare_paired(candidate, baseline if asked.relative else None, [asked], Pairing(), clock=machine.clock)
    assert found.limit_results[0].outcome == "not decided"
    assert found.num_sessions == num_loads
    assert len(found.candidate.latency_ms) / found.num_sessions == num_queries


def test_how_much_longer_slow_queries_take_is_told_by_the_loads_that_there_are() -> None:
    def gated(seconds: float) -> PairedResult:
        machine = FakeMachine(loading_ms=300)
        sides = (machine.loading("c", noisy(0, 40.0, 0.1)), machine.loading("b", noisy(1, 40.0, 0.1)))
        return compare_paired(*sides, [limit("p99", 1.5)], replace(Pairing(), max_seconds=seconds), clock=machine.clock)

    short = gated(60.0)
    (answer,) = short.limit_results
    assert (answer.outcome, short.num_sessions) == ("not decided", 4)
    assert answer.more_seconds > 3 * 60, "eight loads would take two minutes, and would not decide"
    assert gated(short.seconds + answer.more_seconds).limit_results[0].outcome == "pass"


def test_without_reloading_the_engines_are_loaded_once_and_it_is_said() -> None:
    machine = FakeMachine()
    once = replace(QUICK, reload=False)
    sides = machine.loading("c", lambda: 1.0), machine.loading("b", lambda: 1.0)
    assert compare_paired(*sides, [limit()], once, clock=machine.clock).limit_results[0].outcome == "pass"
    assert machine.log.count("+c") == machine.log.count("-c") == 1
    assert "this session only" in once.describe()


def test_an_unlucky_load_of_the_candidate_is_no_false_alarm() -> None:
    """Each load draws its own speed: 1 % either way, and 5 % slower once in ten."""
    alarms = 0
    for seed in range(40):
        machine, random = FakeMachine(), np.random.default_rng(seed)

        def lucky(name: str, machine: FakeMachine = machine, random: np.random.Generator = random) -> LoadEngine:
            level = [1.0]

            @contextmanager
            def opened() -> Iterator[Candidate]:
                level[0] = random.normal(1.0, 0.01) + 0.05 * (random.random() < 0.1)
                with machine.loading(name, lambda: level[0] * random.normal(1, 0.005))() as candidate:
                    yield candidate

            return opened

        found = compare_paired(
            lucky("c"), lucky("b"), [limit()], replace(QUICK, load_seconds=0.04), clock=machine.clock
        )
        alarms += found.limit_results[0].outcome == "fail"
    assert alarms == 0


def test_a_drifting_machine_is_fair_to_both() -> None:
    machine = FakeMachine()

    def drifting() -> float:
        return 1.0 + machine.now_ns / 1e10  # 10 % slower with every second.

    found = compare_paired(
        machine.loading("c", drifting), machine.loading("b", drifting), [limit()], QUICK, clock=machine.clock
    )
    assert found.limit_results[0].outcome == "pass"
    assert found.limit_results[0].interval.estimate == pytest.approx(1.0, abs=0.002)


def test_a_slow_tail_fails_p99_and_passes_p50() -> None:
    machine, count = FakeMachine(), [0]

    def tailed() -> float:
        count[0] += 1
        return 1.5 if count[0] % 33 == 0 else 1.0

    found = compare_paired(
        machine.loading("c", tailed),
        machine.loading("b", lambda: 1.0),
        [limit("p50"), limit("p99")],
        QUICK,
        clock=machine.clock,
    )
    assert [answer.outcome for answer in found.limit_results] == ["pass", "fail"]
    assert [answer.latency_limit.statistic for answer in found.limit_results] == ["p50", "p99"]


def test_an_answer_stands_while_the_others_go_on() -> None:
    machine = FakeMachine()
    found = compare_paired(
        machine.loading("c", noisy(0, 1.0)),
        machine.loading("b", noisy(1, 1.0)),
        [limit("p50"), limit("mean", 1.01)],
        replace(QUICK, max_seconds=5.0),
        clock=machine.clock,
    )
    assert found.limit_results[0].outcome == "pass"
    assert found.limit_results[1].outcome == "not decided"
    assert found.num_sessions > 8


def test_milliseconds_are_judged_without_a_baseline() -> None:
    machine = FakeMachine()
    found = compare_paired(
        machine.loading("c", noisy(0, 2.0), batch_size=8),
        None,
        [limit("p50", 2.1, relative=False, batch_size=8), limit("mean", 1.9, relative=False, batch_size=8)],
        QUICK,
        clock=machine.clock,
    )
    assert [answer.outcome for answer in found.limit_results] == ["pass", "fail"]
    assert found.baseline is None
    assert found.limit_results[0].interval.estimate == pytest.approx(2.0, abs=0.02)
    with pytest.raises(ValueError, match="a ratio needs a baseline"):
        found.interval("p50", relative=True)


def test_any_other_statistic_of_the_run_has_its_interval() -> None:
    found = compared(1.0)
    asked, p90 = found.limit_results[0].interval, found.interval("p90", relative=True)
    assert found.interval("p50", relative=True) == asked
    assert p90.confidence == 0.99
    assert p90.low < 1.0 < p90.high
    assert found.interval("p50", relative=False).estimate == pytest.approx(1.0, abs=0.02)


def test_the_table_has_the_interval_that_was_asked_for() -> None:
    machine = FakeMachine()
    sides = machine.loading("c", noisy(0, 3.0)), machine.loading("b", noisy(1, 1.0))
    found = compare_paired(*sides, [limit("p99", 9.0)], QUICK, clock=machine.clock)
    assert found.limit_results[0].outcome == "pass"
    assert found.interval("p99", relative=True) == found.limit_results[0].interval, "loads count as far as 9 allows"


def test_engines_too_slow_for_eight_loads_are_not_decided() -> None:
    machine = FakeMachine(loading_ms=4000.0)
    sides = machine.loading("c", lambda: 300.0), machine.loading("b", lambda: 100.0)
    found = compare_paired(*sides, [limit()], QUICK, clock=machine.clock)
    answer = found.limit_results[0]
    assert answer.outcome == "not decided"
    assert found.num_sessions < 8
    assert answer.interval.high == math.inf
    assert answer.more_rounds >= (8 - found.num_sessions) * found.num_rounds / found.num_sessions


def test_an_engine_that_breaks_midway_says_so_and_all_is_unloaded() -> None:
    machine, count = FakeMachine(), [0]

    def breaking() -> float:
        count[0] += 1
        if count[0] == 200:
            raise RuntimeError("the engine broke")
        return 1.0

    sides: list[AbstractContextManager[Candidate]] = []

    @contextmanager
    def watched(name: str, ms: Callable[[], float]) -> Iterator[Candidate]:
        sides.append(machine.loading(name, ms)())
        try:
            with sides[-1] as candidate:
                yield candidate
        finally:
            machine.log.append(f"!{name}")

    with pytest.raises(RuntimeError, match="the engine broke"):
        compare_paired(
            lambda: watched("c", breaking), lambda: watched("b", lambda: 1.0), [limit()], QUICK, clock=machine.clock
        )
    assert machine.log.count("!c") == machine.log.count("+c")
    assert machine.log.count("!b") == machine.log.count("+b")
    assert gc.isenabled()


def test_questions_that_cannot_be_asked_are_refused() -> None:
    machine = FakeMachine()
    one, eight = (machine.loading("c", lambda: 1.0, batch_size=size) for size in (1, 8))
    with pytest.raises(ValueError, match="at least one limit"):
        compare_paired(one, one, [], QUICK, clock=machine.clock)
    with pytest.raises(ValueError, match="a baseline where one is relative"):
        compare_paired(one, None, [limit()], QUICK, clock=machine.clock)
    with pytest.raises(ValueError, match=r"different batch sizes: \[1, 8\]"):
        compare_paired(one, eight, [limit()], QUICK, clock=machine.clock)
    with pytest.raises(ValueError, match=r"different batch sizes: \[1, 8\]"):
        compare_paired(one, one, [limit(batch_size=8)], QUICK, clock=machine.clock)


def test_at_a_rate_both_meet_the_same_arrivals_and_latency_counts_from_when_a_query_was_due() -> None:
    machine = FakeMachine(look_ns=1000)
    offered = replace(QUICK, scenario="server", queries_per_s=2500.0, warmup_queries=2)
    found = compare_paired(
        machine.loading("c", lambda: 0.3), machine.loading("b", lambda: 0.2), [limit()], offered, clock=machine.clock
    )
    assert found.baseline is not None
    gaps = [np.diff(side.started_ms[side.block == 0][:30]) for side in (found.candidate, found.baseline)]
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-5)
    assert found.candidate.latency_ms.max() > 0.6, "some wait in line"
    assert found.limit_results[0].outcome == "fail"
    assert found.notes == ()


def test_a_camera_that_is_too_fast_for_the_candidate_is_said() -> None:
    machine = FakeMachine(look_ns=1000)
    offered = replace(QUICK, scenario="server", queries_per_s=2000.0, arrivals="fixed")
    sides = machine.loading("c", lambda: 0.6), machine.loading("b", lambda: 0.2)
    found = compare_paired(*sides, [limit()], offered, clock=machine.clock)
    assert found.limit_results[0].outcome == "fail"
    assert len(found.notes) == 1
    assert found.notes[0].startswith("candidate: overloaded: 2000 queries per second arrive, 16")
    assert "2000 queries per second arrive evenly spaced" in offered.describe()


def test_a_soak_goes_on_though_all_could_be_decided() -> None:
    machine = FakeMachine(look_ns=1000)
    sides = machine.loading("c", lambda: 0.3), machine.loading("b", lambda: 0.2)
    short = compare_paired(*sides, [limit()], QUICK, clock=machine.clock)
    least = 3 * short.seconds
    soaked = compare_paired(
        *sides, [limit()], replace(QUICK, min_seconds=least, max_seconds=2 * least), clock=machine.clock
    )
    assert short.limit_results[0].outcome == soaked.limit_results[0].outcome == "fail"
    assert least <= soaked.seconds < 1.5 * least
    assert (
        "until all is decided, not before 600 s, or 900 s are over"
        in Pairing(max_seconds=900.0, min_seconds=600.0).describe()
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scenario": "server"}, "scenario server: queries_per_s is 0, must be above 0"),
        ({"max_seconds": 0.0}, "max_seconds is 0, but must be at least 0.001 and finite"),
        ({"max_seconds": math.inf}, "max_seconds is inf, but must be at least 0.001 and finite"),
        ({"min_seconds": 61.0}, "min_seconds is 61, above max_seconds 60, when it ends; raise max_seconds"),
        ({"confidence": 1.0}, "confidence is 1, but must be at least 0.5 and at most 0.999999"),
        ({"confidence": 0.3}, "confidence is 0.3, but must be at least 0.5"),
        ({"block_ms": math.nan}, "block_ms is nan, but must be at least 0 and finite"),
        ({"warmup_queries": 0}, "warmup_queries is 0, but must be at least 1"),
    ],
)
def test_a_pairing_out_of_bounds_is_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Pairing(**options)  # type: ignore[arg-type]


def test_the_sentence_of_a_pairing_holds_each_of_its_numbers() -> None:
    sentence = Pairing(
        max_seconds=77.0,
        confidence=0.987,
        load_seconds=0.35,
        warmup_queries=11,
        warmup_seconds=0.75,
        block_ms=6.5,
        min_block_queries=3,
        settle_queries=7,
        seed=99,
    ).describe()
    for words in ("77 s", "0.987", "0.35 s", "11 queries", "0.75 s", "6.5 ms", "at least 3", "and 7 before", "seed 99"):
        assert words in sentence
    assert sentence.endswith(".")
