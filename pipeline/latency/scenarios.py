"""How queries come to an engine: the scenarios of MLPerf's LoadGen, as far as one engine on one device knows them.

Definitions, after MLPerf Inference LoadGen (``loadgen/test_settings.h``); a query here is one batch:

- *single_stream* (SingleStream): the next query is issued when the one before it is done. Latency is from issuing to
  the answer; what happens between queries does not count.
- *server* (Server): queries arrive by themselves, whether the one before is done or not, and wait in one line (an open
  loop). Latency counts from when a query was due, so one slow query also delays those behind it, as it does in the
  field; measuring from when it was at last issued would leave that out ("coordinated omission": Tene, "How not to
  measure latency", 2013). Arrivals are *poisson*, as LoadGen's are, at ``queries_per_s`` on average; or *fixed*, evenly
  spaced, as from a camera, with the engine idle in between. Each block begins with an empty line, and in one round all
  candidates meet the same arrivals.
- *offline* (Offline): as many samples per second as can be had, all of them being there from the start. LoadGen hands
  them over in one query; here one batch follows the other, and what happens between them counts. Where the backend has
  streams several are in flight at once, and a batch's time is from the end of the one before it to its own.

*Throughput* is in samples per second: of single_stream, batch size / mean latency; of server, batch size times the
queries per second that arrive, or that are served if that is less; of offline, all samples / time from the first
batch's begin to the last one's end, block by block. *Utilization* of server is the share of the time in which a query
is being run; where it reaches 1 the line grows for as long as it lasts, and so do the latencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from calibration.arrays import Floats, Ints
from engines.timed_queries import QueryArrivals
from pipeline.errors import ConfigError
from pipeline.option import FINITE, check_bounds

Scenario = Literal["single_stream", "server", "offline"]
Arrivals = Literal["poisson", "fixed"]

NUM_STREAMS = 2
"""So many hide the copies of one batch behind the computation of another."""
BUSY = 0.9
"""From this utilization on it is said."""


@dataclass(frozen=True)
class Load:
    """How queries come.

    Raises:
        ConfigError: a rate is missing; or it, or how queries arrive, has no meaning for the scenario.
    """

    scenario: Scenario
    queries_per_s: float
    """Of server, on average; else 0."""
    arrivals: Arrivals
    num_streams: int = NUM_STREAMS
    """Of offline: batches in flight at once, where the backend has streams."""

    def __post_init__(self) -> None:
        """Check that the rate fits the scenario."""
        rate = self.queries_per_s
        if self.scenario == "server" and not 0 < rate < math.inf:
            raise ConfigError(
                f"scenario server: queries_per_s is {rate:g}, must be above 0; give the rate at which queries arrive, "
                "such as 10"
            )
        if self.scenario != "server" and rate != 0:
            raise ConfigError(
                f"scenario {self.scenario}: queries_per_s is {rate:g}, but only server has a rate; leave it out, or "
                "write scenario = server"
            )
        check_bounds(self, num_streams=(1, FINITE))
        if self.scenario != "offline" and self.num_streams != NUM_STREAMS:
            raise ConfigError(
                f"scenario {self.scenario}: num_streams is {self.num_streams}, but only offline has several batches in "
                "flight; leave it out, or write scenario = offline"
            )
        if self.scenario != "server" and self.arrivals != "poisson":
            raise ConfigError(
                f"scenario {self.scenario}: arrivals is {self.arrivals}, but only server has arrivals; "
                "leave it out, or write scenario = server"
            )

    @property
    def apart_ms(self) -> float:
        """How far apart queries come, on average, if they come by themselves; else infinite."""
        return 1e3 / self.queries_per_s if self.scenario == "server" else math.inf

    def describe(self) -> str:
        """The half sentence that says what is measured."""
        if self.scenario == "server":
            how = "by a Poisson process" if self.arrivals == "poisson" else "evenly spaced"
            return (
                f"Host wall-clock time from when a query was due to arrays out, queueing included (LoadGen's "
                f"Server scenario: {self.queries_per_s:g} queries per second arrive {how}, whether the one before is "
                "done or not)"
            )
        if self.scenario == "offline":
            return (
                "Host wall-clock time of one batch after the other through the samples (LoadGen's Offline scenario: "
                f"throughput is what counts), from arrays in to arrays out, {self.num_streams} in flight at once on "
                "backends with streams"
            )
        return "Host wall-clock time of one query at a time (single stream), from arrays in to arrays out"

    def throughput_words(self) -> str:
        """What throughput is."""
        return {
            "single_stream": "batch size divided by mean latency",
            "server": "batch size times the queries per second that arrive and are served",
            "offline": "samples divided by the time of the blocks",
        }[self.scenario]

    def query_arrivals(self, seed: tuple[int, ...]) -> QueryArrivals:
        """When the queries of one block are due."""
        return QueryArrivals(self.queries_per_s, self.arrivals == "fixed", seed)

    def throughput_per_s(self, batch_size: int, query_times: QueryTimes) -> float:
        """Samples per second."""
        if self.scenario == "single_stream":
            return batch_size / float(query_times.latency_ms.mean()) * 1e3
        if self.scenario == "offline":
            return batch_size * len(query_times.latency_ms) / query_times.block_ms() * 1e3
        return batch_size * self.queries_per_s / max(self.utilization(query_times), 1.0)

    def utilization(self, query_times: QueryTimes) -> float:
        """The share of the time in which a query is being run; above 1 if that many cannot be served."""
        return self.queries_per_s * float(query_times.service_ms().mean()) / 1e3

    def note(self, query_times: QueryTimes) -> str:
        """Why the latencies say more of the line than of the engine; else empty."""
        if self.scenario != "server" or (busy := self.utilization(query_times)) < BUSY:
            return ""
        if busy < 1:
            return f"the engine is busy for {busy:.0%} of the time, so latency is mostly queueing"
        return (
            f"overloaded: {self.queries_per_s:g} queries per second arrive, {self.queries_per_s / busy:.4g} can be "
            "served; latencies keep growing"
        )


@dataclass(frozen=True, eq=False)
class QueryTimes:
    """The recorded queries of one candidate, (num_queries,) each: latency, when each was due, and its block."""

    latency_ms: Floats
    due_ms: Floats
    block: Ints

    def service_ms(self) -> Floats:
        """(num_queries,): the time from when each was begun, which is when it was due or when the one before ended."""
        end_ms = self.due_ms + self.latency_ms
        free_ms = np.concatenate([[-math.inf], end_ms[:-1]])
        free_ms[1:][np.diff(self.block) != 0] = -math.inf
        return np.asarray(end_ms - np.maximum(self.due_ms, free_ms))

    def block_ms(self) -> float:
        """The time from the first begin to the last end of each block, all blocks together."""
        last = np.flatnonzero(np.diff(self.block, append=self.block[-1] + 1))
        first = np.concatenate([[0], last[:-1] + 1])
        return float((self.due_ms[last] + self.latency_ms[last] - self.due_ms[first]).sum())
