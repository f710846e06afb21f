"""How latency is measured: the options of a benchmark, and of an alternating comparison."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.latency.intervals import BURST_MS
from pipeline.latency.scenarios import NUM_STREAMS, Arrivals, Load, Scenario
from pipeline.option import FINITE, check_bounds, option

CONFIDENCE = 0.95
MOST_CONFIDENCE = 0.999999
LEAST_SECONDS = 1e-3


@dataclass(frozen=True)
class ScenarioOptions:
    """How queries come to an engine; see ``pipeline/latency/scenarios.py``."""

    scenario: Scenario = option(
        "single_stream", "MLPerf scenario: one query after another, queries at a given rate, or throughput of batches"
    )
    queries_per_s: float = option(0.0, "server: mean arrival rate, in queries per second")
    arrivals: Arrivals = option("poisson", "server: random (Poisson) arrivals, or evenly spaced ones, as from a camera")
    num_streams: int = option(NUM_STREAMS, "offline: batches in flight at once, on GPU backends, which have streams")

    def __post_init__(self) -> None:
        """Check that the options fit the scenario."""
        _ = self.load  # It checks itself.

    @property
    def load(self) -> Load:
        """How queries come."""
        return Load(self.scenario, self.queries_per_s, self.arrivals, self.num_streams)


@dataclass(frozen=True)
class Protocol(ScenarioOptions):
    """How latency is measured.

    Each candidate is warmed up; then come ``num_blocks`` rounds. In each round every candidate runs one block, in an
    order drawn again with ``seed``. A block lasts until it has its share of ``min_queries`` and of ``min_seconds``.

    Raises:
        ConfigError: a field is out of bounds.
    """

    warmup_queries: int = option(10, "minimum warm-up queries per engine, not recorded, before the first round")
    warmup_seconds: float = option(0.2, "minimum warm-up time per engine, in seconds")
    min_queries: int = option(200, "minimum recorded queries per engine and batch size")
    min_seconds: float = option(3.0, "minimum time in recorded queries per engine and batch size, in seconds")
    num_blocks: int = option(10, "rounds; in each, every engine runs one block of queries")
    settle_queries: int = option(
        2, "unrecorded queries at the start of each block, to refill the caches after a change of engine"
    )
    max_spread: float = option(
        0.10, "stable if the standard deviation of the block medians is at most this fraction of their mean"
    )
    max_drift: float = option(
        0.05, "stable if the later half is slower or faster than the earlier by at most this fraction"
    )
    seed: int = option(0, "random seed of the order in which engines alternate")

    def __post_init__(self) -> None:
        """Check the bounds."""
        super().__post_init__()
        check_bounds(self, warmup_queries=(1, FINITE), warmup_seconds=(0, FINITE), settle_queries=(0, FINITE))
        check_bounds(self, min_queries=(1, FINITE), min_seconds=(0, FINITE), num_blocks=(4, FINITE))
        check_bounds(self, max_spread=(0, FINITE), max_drift=(0, FINITE), seed=(0, FINITE))

    def describe(self) -> str:
        """The sentence that stands next to every number measured with this protocol."""
        return (
            f"{self.load.describe()}; per variant at least {self.warmup_queries} queries and "
            f"{self.warmup_seconds:g} s of warm-up, then at least {self.min_queries} queries and "
            f"{self.min_seconds:g} s in {self.num_blocks} blocks, the variants taking "
            f"turns in random order (seed {self.seed}), {self.settle_queries} queries of each block not counted; "
            f"percentiles are nearest-rank; throughput is {self.load.throughput_words()}; speedup is the ratio of "
            f"p50, its {CONFIDENCE:.0%} interval by bootstrap over blocks; called unstable if block medians spread by "
            f"more than {self.max_spread:.0%} or drift by more than {self.max_drift:.0%}."
        )


@dataclass(frozen=True)
class Pairing(ScenarioOptions):
    """How candidate and baseline are compared.

    Raises:
        ConfigError: a field is out of bounds.
    """

    max_seconds: float = option(
        60.0, "time limit, in seconds; budgets still undecided then are reported as not decided"
    )
    min_seconds: float = option(
        0.0, "soak test: minimum duration, in seconds; nothing is decided earlier, and a trace is kept"
    )
    confidence: float = option(
        0.99, "confidence of each interval, over all interim looks; at most (1 - confidence) / 2 false alarms"
    )
    reload: bool = option(
        True, "reload the engines for each session; no: load them once, and the result holds for that session only"
    )
    load_seconds: float = option(
        0.15, "minimum measuring time per session, in seconds; never less than loading itself took"
    )
    warmup_queries: int = option(10, "minimum unrecorded queries of each engine at the start of a session")
    warmup_seconds: float = option(0.2, "warm-up time of each engine before anything is recorded, in seconds")
    block_ms: float = option(5.0, "block length, in ms: as many queries as the slower engine runs in that time")
    min_block_queries: int = option(2, "minimum queries per block")
    settle_queries: int = option(
        1, "unrecorded queries at the start of each block, to refill the caches after a change of engine"
    )
    seed: int = option(0, "random seed of the order in which engines alternate")

    def __post_init__(self) -> None:
        """Check the bounds."""
        super().__post_init__()
        check_bounds(self, warmup_queries=(1, FINITE), warmup_seconds=(0, FINITE), settle_queries=(0, FINITE))
        check_bounds(self, max_seconds=(LEAST_SECONDS, FINITE), min_seconds=(0, FINITE), load_seconds=(0, FINITE))
        check_bounds(self, block_ms=(0, FINITE), min_block_queries=(1, FINITE), seed=(0, FINITE))
        check_bounds(self, confidence=(0.5, MOST_CONFIDENCE))
        if self.min_seconds > self.max_seconds:
            raise ConfigError(
                f"min_seconds is {self.min_seconds:g}, above max_seconds {self.max_seconds:g}, when it ends; raise "
                "max_seconds"
            )

    def describe(self) -> str:
        """The sentence that stands next to every answer found so."""
        sessions = (
            "both reloaded for each session, with intervals from the spread between sessions"
            if self.reload
            else "both loaded once, so that the result holds for this session only"
        )
        how = "arrive" if self.scenario == "server" else "the slower one runs"
        soak = f", not before {self.min_seconds:g} s," if self.min_seconds else ""
        return (
            f"{self.load.describe()}; candidate and baseline alternating, {sessions}; per session at least "
            f"{self.warmup_queries} queries of warm-up each, before the first one {self.warmup_seconds:g} s; rounds of "
            f"four blocks (ABBA or BAAB, drawn with seed {self.seed}), at least {self.load_seconds:g} s of them per "
            f"session; a block has as many queries as {how} in {self.block_ms:g} ms, at least "
            f"{self.min_block_queries}, and {self.settle_queries} before them not counted; until all is decided{soak} "
            f"or {self.max_seconds:g} s are over. Percentiles are nearest-rank; a ratio is taken within a session, and "
            "of these the geometric mean (for p90 and p99 the influence of one session is limited); intervals are by "
            "Student's t over sessions (percentiles in milliseconds: by Woodruff's method, and slow "
            f"queries taken to come in bursts of at most {BURST_MS:g} ms on average), each with "
            f"confidence {self.confidence:.4g} over all looks (Bonferroni)."
        )
