"""How often a gate passes an engine whose percentile lies on its limit, and how long one far from its limit takes.

    python benchmarks/gate_bursts.py --gates 2000 --output benchmarks/results/gate_bursts.md

Nothing is measured: latencies are drawn, from tails whose percentile is known exactly, and cut into sessions as
``pipeline/latency/paired.py`` makes them in the time that it is given; looks, confidence, intervals and decision are
its own. So thousands of gates are shown, of which it is known what is right. Beside it stands what the ranks alone
would have said (``rank_bounds``), which ask for no time in which bursts could have come.

Slow queries come in bursts: a chain of two states, whose bursts have 1 / (1 - exp(-latency / burst)) queries on
average, which is how many fit into a stretch of time that ends at random after ``burst`` milliseconds on average.
Where it matters how often the gate errs they take hardly more than the limit, so that as many as can be fit in.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from calibration.arrays import Floats
from pipeline.latency.intervals import BURST_MS, LEAST_GROUPS, SHARES, Statistic, rank_bounds, statistic_bounds
from pipeline.latency.protocol import Pairing
from pipeline.stats.intervals import Interval, Limit, Outcome, outcome, planned_looks

MEDIAN_MS = 4.0
SPREAD = 0.0783
"""Of the logarithms of latencies, so that p99 is 1.2 times the median."""
NUM_RECORDED, NUM_UNRECORDED = 112, 38
"""Queries of a session: those that count, and those that warm up or settle."""
LOADING_MS = 200.0
WIDTH = 0.05
"""Slow queries differ by so much."""


@dataclass(frozen=True)
class Tail:
    """How the latencies of an engine lie."""

    name: str
    slow_share: float = 0.0
    slow_ms: float = 0.0
    burst_ms: float = 0.0
    """Mean length of a burst of slow queries; 0: each comes by itself."""
    uneven: bool = False
    """Nine bursts of ten are one query, and the tenth is as much longer."""
    luck: float = 0.0
    """By how much sessions differ: the standard deviation of the logarithm."""
    speed: float = 1.0
    """What latencies are multiplied by, with so many more of them in each session."""


@dataclass(frozen=True)
class Case:
    """An engine and the limit that it is held to."""

    tail: Tail
    bound_ms: float
    statistic: Statistic = "p99"
    pairing: Pairing = field(default_factory=Pairing)


@dataclass(frozen=True)
class Decisions:
    """What gates said, and after how many seconds each."""

    outcomes: tuple[Outcome, ...]
    seconds: Floats

    def percent(self, which: Outcome) -> str:
        return f"{100 * self.outcomes.count(which) / len(self.outcomes):.2f}"


def quantile_ms(share: float, tail: Tail) -> float:
    """The latency that this share of the queries that are not slow does not exceed."""
    return tail.speed * MEDIAN_MS * math.exp(math.hypot(SPREAD, tail.luck) * NormalDist().inv_cdf(share))


def on_the_limit() -> list[Case]:
    """Engines of which as many queries exceed the limit as it allows, or a few more by rounding: none may pass."""
    alone = Tail("one by one, lognormal")
    cases = [Case(alone, quantile_ms(SHARES[one], alone), one) for one in ("p50", "p90", "p99")]
    lucky = Tail("one by one, sessions differ by 3 %", luck=0.03)
    cases.append(Case(lucky, quantile_ms(0.99, lucky)))
    bursts = [Tail(f"bursts of {ms:g} ms" if ms else "one by one, bimodal", 0.01, 0.0, ms) for ms in (0, 10, 20)]
    cases += [Case(tail, 4 * 4.8) for tail in bursts] + [Case(bursts[-1], factor * 4.8) for factor in (2, 1.25)]
    cases.append(Case(replace(bursts[-1], name="bursts of 20 ms, most much shorter", uneven=True), 4 * 4.8))
    half = Tail("half lognormal, half bursts of 20 ms", 0.005, 0.0, 20.0)
    cases.append(Case(half, quantile_ms(1 - 0.005 / 0.995, half)))
    cases += [Case(replace(bursts[-1], slow_share=1 - SHARES[one]), 2 * 4.8, one) for one in ("p50", "p90")]
    quick = Tail("a query of 0.7 ms, bursts of 20 ms", 0.01, 0.0, 20.0, speed=0.175)
    cases += [Case(quick, factor * 0.84) for factor in (4, 1.25)]
    longer = [Tail(f"bursts of {ms:g} ms", 0.01, 0.0, ms) for ms in (50, 100, 200, 600)]
    cases += [Case(tail, 4 * 4.8) for tail in longer]
    soak = Pairing(min_seconds=200.0, max_seconds=260.0)
    cases.append(Case(replace(longer[2], name="bursts of 200 ms, min_seconds = 200"), 4 * 4.8, pairing=soak))
    return [replace(case, tail=replace(case.tail, slow_ms=case.bound_ms)) for case in cases]


def far_away() -> list[Case]:
    """Engines that keep their limit, nearly or by far, and those that do not."""
    alone = Tail("one by one, lognormal")
    cases = [Case(alone, factor * 4.8) for factor in (1.03, 1.05, 1.1, 1.25, 1.5, 2, 4)]
    cases += [Case(alone, factor * quantile_ms(SHARES[one], alone), one) for one in ("p50", "p90") for factor in (2, 4)]
    bursty = Tail("1.2 % of 6 ms, in bursts of 60 ms", 0.012, 6.0, 60.0)
    cases += [Case(bursty, 20.0), Case(replace(bursty, name="the same, in bursts of 300 ms", burst_ms=300.0), 20.0)]
    cases += [Case(Tail("0.1 % of 30 ms", 0.001, 30.0), 20.0), Case(Tail("0.3 % of 30 ms", 0.003, 30.0), 20.0)]
    quick = Tail("a query of 0.7 ms, lognormal", speed=0.175)
    cases += [Case(quick, factor * 0.84) for factor in (1.1, 1.25, 2, 4)]
    cases += [Case(alone, 4.8 / 4), Case(alone, 4.8 / 2), Case(Tail("2 % of 30 ms", 0.02, 30.0), 20.0)]
    cases.append(Case(Tail("2 % of 30 ms, in bursts of 60 ms", 0.02, 30.0, 60.0), 20.0))
    return cases


def slow_queries(tail: Tail, num: int, random: np.random.Generator) -> np.typing.NDArray[np.bool_]:
    """Which of ``num`` queries in a row are slow."""
    share = tail.slow_share
    if not share or not tail.burst_ms:
        return np.asarray(random.random(num) < share)
    mean = -1 / math.expm1(-tail.slow_ms / tail.burst_ms)
    mean_gap = mean * (1 - share) / share
    bursts = random.geometric(1 / mean, 2 * math.ceil(num / (mean + mean_gap)) + 30)
    if tail.uneven:
        bursts = np.where(random.random(len(bursts)) < 0.9, 1, random.geometric(1 / (10 * mean - 9), len(bursts)))
    gaps = random.geometric(1 / max(mean_gap, 1.0), len(bursts)) if mean_gap > 1 else np.ones_like(bursts)
    row = np.repeat(np.tile([False, True], len(bursts)), np.stack([gaps, bursts], axis=1).reshape(-1))
    start = int(random.integers(max(len(row) - num, 1)))
    return np.asarray(row[start : start + num])


def sessions(case: Case, random: np.random.Generator) -> tuple[Floats, Floats]:
    """The latencies of more sessions than the time holds, and when each is over, in seconds."""
    tail, num_recorded = case.tail, math.ceil(NUM_RECORDED / min(2 * case.tail.speed, 1.0))
    each = num_recorded + NUM_UNRECORDED
    num_sessions = math.ceil(1.2e3 * case.pairing.max_seconds / (0.8 * tail.speed * MEDIAN_MS * each))
    shape = num_sessions, each
    latency_ms = tail.speed * MEDIAN_MS * np.exp(SPREAD * random.standard_normal(shape))
    slow = slow_queries(tail, math.prod(shape), random).reshape(shape)
    slow_ms = tail.slow_ms * (1 + WIDTH * random.random(shape))
    latency_ms = np.where(slow, slow_ms, latency_ms) * np.exp(tail.luck * random.standard_normal((num_sessions, 1)))
    ends_s = np.cumsum(latency_ms.sum(axis=1) + LOADING_MS * tail.speed) / 1e3
    return latency_ms[:, NUM_UNRECORDED:], ends_s


def gated(case: Case, random: np.random.Generator) -> tuple[tuple[Outcome, float], ...]:
    """One gate: what it says and after how many seconds, as the gate decides and by ranks alone."""
    latency_ms, ends_s = sessions(case, random)
    limit, pairing, statistic = Limit(case.bound_ms, at_most=True), case.pairing, case.statistic
    least = 1 + math.ceil((pairing.min_seconds - ends_s[0]) / ends_s[0])
    looks = planned_looks(max(LEAST_GROUPS, least), 1 + math.floor((pairing.max_seconds - ends_s[0]) / ends_s[0]))
    tail, last = (1 - pairing.confidence) / 2 / len(looks), int(np.searchsorted(ends_s, pairing.max_seconds))
    said: list[tuple[Outcome, float]] = [("not decided", float(ends_s[last - 1]))] * 2
    for num in [look for look in looks[:-1] if look < last] + [last]:
        ranks = rank_bounds(latency_ms[:num], statistic, tail)
        undecided = [way for way, (decision, _) in enumerate(said) if decision == "not decided"]
        for way in undecided:
            by_ranks = way or ranks[0] > limit.bound  # Which cannot pass: the lower bounds are the same.
            bounds = ranks if by_ranks else statistic_bounds(latency_ms[:num], statistic, tail)
            said[way] = outcome(Interval(*bounds, pairing.confidence), limit), float(ends_s[num - 1])
        if not undecided:
            break
    return tuple(said)


def decisions(case: Case, num_gates: int) -> tuple[Decisions, ...]:
    """Of gates that differ by chance alone: as the gate decides, and by ranks alone."""
    gates = [gated(case, np.random.default_rng([number, 1])) for number in range(num_gates)]
    return tuple(
        Decisions(tuple(decision for decision, _ in ended), np.array([seconds for _, seconds in ended]))
        for ended in zip(*gates)
    )


def row(case: Case, num_gates: int) -> str:
    """One line of either table."""
    by_gate, by_ranks = decisions(case, num_gates)
    cells = [case.tail.name, case.statistic, f"{case.bound_ms:.3g}"]
    cells += [by_gate.percent(which) for which in ("pass", "fail", "not decided")]
    cells += [f"{np.median(by_gate.seconds):.1f}", f"{np.quantile(by_gate.seconds, 0.95):.1f}"]
    cells += [by_ranks.percent("pass"), by_ranks.percent("fail"), f"{np.median(by_ranks.seconds):.1f}"]
    print(" | ".join(cells), file=sys.stderr, flush=True)
    return f"| {' | '.join(cells)} |"


def table(cases: Sequence[Case], num_gates: int) -> list[str]:
    """Its lines."""
    heads = ["slow queries", "", "limit ms", "pass", "fail", "not decided", "median s", "95 % s"]
    heads += ["ranks alone: pass", "fail", "median s"]
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(row(case, num_gates) for case in cases)]


def main() -> None:
    """Draw all, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gates", type=int, default=2000)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    num_far = max(given.gates // 10, 1)
    confidence = Pairing().confidence
    lines = [
        "# Limits in milliseconds where slow queries come in bursts",
        "",
        f"`python benchmarks/gate_bursts.py --gates {given.gates} --output {given.output}`",
        "",
        f"Simulated. An engine of {MEDIAN_MS:g} ms whose p99 is 4.8 ms; a session has {NUM_RECORDED} queries that "
        f"count and {NUM_UNRECORDED} that do not, and {LOADING_MS:g} ms of loading. Percent of the gates, "
        f"{given.gates} of each line in the first table and {num_far} in the second; 60 s at most, unless it is said.",
        "",
        f"On the limit: each *pass* is an error, of which the confidence of {confidence:.0%} allows "
        f"{50 * (1 - confidence):.2g} %, where bursts last {BURST_MS:g} ms on average or less. Longer ones come too "
        "seldom to be seen in so short a time.",
        "",
        *table(on_the_limit(), given.gates),
        "",
        "Off the limit: how long it takes.",
        "",
        *table(far_away(), num_far),
    ]
    page = "\n".join([*lines, ""])
    if given.output:
        given.output.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
