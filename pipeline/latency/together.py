"""Engines at once on one machine: the latency of each beside the load of the others, paired with that of it alone.

Definitions:

- A *round* has a block of each engine alone, while the others are loaded and idle, and one in which all run at once;
  their order is drawn again for each round. In the block of all a query counts if it ran while every engine was at
  work: from when the last of them had begun until the first of them ended.
- The *slowdown* of an engine is its p50 beside the others / its p50 alone. Its interval is a bootstrap over rounds, as
  that of a speedup: what disturbed a round disturbed both.
- The *gain* is the sum over the engines of queries per second beside the others / queries per second alone: of how many
  machines that each run one engine the one does the work. At 1 no more is done at once than in turns. Its interval is
  by Student's t over rounds.

Engines run in *processes* of their own, as several programs do (ROS nodes, containers), or in *threads* of one, as in
servers such as DeepStream and Triton. On a GPU these differ: threads share one CUDA context, each with a stream of its
own, and kernels of several streams may run side by side; processes have contexts of their own, between which the GPU
switches by slices of time unless NVIDIA's MPS joins them. On a CPU threads share Python's lock, processes nothing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count, zip_longest
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from calibration.arrays import Floats
from engines.timed_queries import BlockLength, Raw
from pipeline.errors import ConfigError
from pipeline.latency.benchmark import (
    Candidate,
    Latency,
    Speedup,
    Timing,
    joined,
    queries_from_raw,
    run_block,
    run_unrecorded,
    speedup,
    timing_of,
)  # fmt: skip
from pipeline.latency.protocol import CONFIDENCE, Protocol
from pipeline.machine import child_process
from pipeline.stats.intervals import student_quantile

RunIn: TypeAlias = Literal["processes", "threads"]
LoadCandidate: TypeAlias = Callable[[], AbstractContextManager[Candidate]]
"""Loads an engine in the thread that runs it; can be pickled."""
ALL = "all"
"""Stands for every engine that is timed."""
FEWEST = 2
LEAST_ROUNDS = 3
LEAST_BLOCK_NS = 200_000_000
"""Of shorter ones what is at the edges is too large a share, the more so where other programs run."""
ROUGH_QUERIES = 5
"""So many say how long a query takes, before blocks are planned."""
GAP_NS = 20_000_000
"""Between blocks, at least: threads of a CPU runtime spin for a while when they have nothing to do."""
LEAD_NS = 200_000_000
"""From the plan of blocks to the first, so that all have read it."""
POLL_SECONDS = 0.005
SCHEDULE = "schedule.json"


@dataclass(frozen=True)
class PlannedBlock:
    """When some of the engines run."""

    round: int
    members: tuple[int, ...]
    """Places of the engines."""
    start_ns: int
    """On the monotonic clock, which all processes share."""
    end_ns: int


@dataclass(frozen=True)
class BesideOthers:
    """One engine beside the others, and alone."""

    name: str
    """The engine's; of the same one a second time with ``#2`` behind it."""
    batch_size: int
    alone_ms: Latency
    beside_ms: Latency
    slowdown: Speedup
    """p50 beside the others / p50 alone; here a larger ratio is slower."""
    throughput_alone_per_s: float
    throughput_beside_per_s: float
    num_queries: int
    """Beside the others."""
    note: str
    """Empty, or why the numbers deserve less trust."""
    alone_file: str
    beside_file: str
    """Every recorded query (``.npz``, see ``pipeline.latency.benchmark.Queries``), beside the record."""


@dataclass(frozen=True)
class Together:
    """What running engines at once does to each."""

    run_in: RunIn
    engines: tuple[BesideOthers, ...]
    gain: float
    gain_low: float
    gain_high: float
    confidence: float
    num_rounds: int
    sentence: str


@dataclass(frozen=True, eq=False)
class TogetherTimings:
    """What was measured: of each engine alone and beside the others, in their order."""

    alone: tuple[Timing, ...]
    beside: tuple[Timing, ...]
    gains: Floats
    """Of each round, (num_rounds,)."""


def members_from(asked: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """What runs at once: by its name in the record, the engine that it is.

    Args:
        asked: names of engines, each as often as it runs; or ``all``; none: nothing runs at once.
        names: all engines.

    Raises:
        ConfigError: there is no such engine, or they are fewer than two.
    """
    if not asked:
        return {}
    wanted = [*names] if [*asked] == [ALL] else [*asked]
    for name in wanted:
        if name not in names:
            raise ConfigError(f"[benchmark] together names '{name}'; engines that are timed: {', '.join(names)}")
    if len(wanted) < FEWEST:
        raise ConfigError(
            f"[benchmark] together names {', '.join(wanted)} alone; name two or more, or one several times"
        )
    members: dict[str, str] = {}
    for name in wanted:
        numbered = (f"{name}#{number}" for number in count(2))
        members[name if name not in members else next(each for each in numbered if each not in members)] = name
    return members


def those_timed(asked: Sequence[str], timed: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """What can run at once on this machine: all that was asked for, or nothing; and a note where it is nothing.

    Args:
        asked: as ``members_from`` takes it.
        timed: the engines that run here.
    """
    missing = [name for name in dict.fromkeys(asked) if name not in (ALL, *timed)]
    if missing or ([*asked] == [ALL] and len(timed) < FEWEST):
        what = f"{', '.join(missing)}: not timed here" if missing else f"only {', '.join(timed)} is timed here"
        return (), f"No engines ran at once ([benchmark] together): {what}."
    return tuple(asked), ""


def measure_together(
    folder: Path, loaders: Mapping[str, LoadCandidate], run_in: RunIn, protocol: Protocol
) -> TogetherTimings:
    """Load all engines, and run them alone and at once, round by round.

    Args:
        folder: an empty one, for the plan of blocks and the log.
        loaders: by name.
        run_in: processes of their own, or threads of this one.
        protocol: how long, and how queries come.

    Raises:
        ConfigError: blocks are too short for the slowest engine.
        StageError: an engine crashed; or as its backend says.
    """
    names = list(loaders)
    with ThreadPoolExecutor(len(names)) as pool:
        workers: list[Future[list[Raw]]] = []
        for place, (name, load) in enumerate(loaders.items()):
            work = partial(run_member, folder, place, load, protocol)
            if run_in == "processes":
                work = partial(child_process.call, folder / f"{place}.log", f"{name} beside others", work)
            workers.append(pool.submit(work))
        schedule = _planned(folder, workers, protocol)
        _publish(folder / SCHEDULE, json.dumps([asdict(block) for block in schedule]))
        wait(workers, return_when=FIRST_EXCEPTION)
    raws = [worker.result() for worker in workers]
    candidates = [json.loads((folder / f"{place}.json").read_text()) for place in range(len(names))]
    return timings_from_blocks(list(zip(names, [each["batch_size"] for each in candidates])), schedule, raws, protocol)


def run_member(folder: Path, place: int, load: LoadCandidate, protocol: Protocol) -> list[Raw]:
    """One engine's part: say how long a query takes, wait for the plan of blocks, and run those that it is in."""
    clock = time.perf_counter_ns
    with load() as candidate:
        run_unrecorded(candidate, protocol.warmup_queries, protocol.warmup_seconds, clock)
        candidate.rest()
        begin = clock()
        num = run_unrecorded(candidate, ROUGH_QUERIES, 0.0, clock)
        candidate.rest()
        query_ns = (clock() - begin) / num
        _publish(folder / f"{place}.json", json.dumps({"query_ns": query_ns, "batch_size": candidate.batch_size}))
        while not (folder / SCHEDULE).exists():
            time.sleep(POLL_SECONDS)
        blocks = [_block_from(each) for each in json.loads((folder / SCHEDULE).read_text())]
        raws = []
        for block in blocks:
            if place not in block.members:
                continue
            time.sleep(max(block.start_ns - clock(), 0) / 1e9)
            run_unrecorded(candidate, protocol.settle_queries, 0.0, clock)
            length = BlockLength(1, max(block.end_ns - clock(), 0))
            seed = (protocol.seed, block.round, place)
            raws.append(run_block(candidate, length, clock, protocol.load.query_arrivals(seed)))
            candidate.rest()
        return raws


def planned_blocks(query_ns: Sequence[float], protocol: Protocol, begin_ns: int) -> list[PlannedBlock]:
    """When which engines run.

    Args:
        query_ns: how long a query of each takes alone.
        protocol: rounds, queries and seconds.
        begin_ns: when the first block may begin.
    """
    order, at_ns, blocks = np.random.default_rng(protocol.seed), begin_ns, []
    num, slowest = len(query_ns), max(query_ns)
    apart_ns = 1e9 / protocol.queries_per_s if protocol.queries_per_s else 0.0
    for round_ in range(protocol.num_blocks):
        for index in order.permutation(num + 1):
            members = tuple(range(num)) if index == num else (int(index),)
            # At once, each is expected to take as long as all of them in turns.
            each_ns = max(slowest * num if index == num else query_ns[index], apart_ns)
            length = max(protocol.min_seconds * 1e9, protocol.min_queries * each_ns) / protocol.num_blocks
            end_ns = at_ns + round(max(length, LEAST_BLOCK_NS) + protocol.settle_queries * each_ns)
            blocks.append(PlannedBlock(round_, members, at_ns, end_ns))
            at_ns = end_ns + GAP_NS + round(2 * each_ns)
    return blocks


def timings_from_blocks(
    engines: Sequence[tuple[str, int]],
    blocks: Sequence[PlannedBlock],
    raws: Sequence[Sequence[Raw]],
    protocol: Protocol,
) -> TogetherTimings:
    """What the blocks say, of the rounds in which each engine had queries alone and beside the others.

    Args:
        engines: name and batch size of each.
        blocks: in the order of time.
        raws: of each engine, the queries of the blocks that it was in.
        protocol: for what is called unstable.

    Raises:
        ConfigError: too few rounds are left.
    """
    alone, beside = _counted(blocks, raws)
    rounds = [
        round_
        for round_, queries in beside.items()
        if all(queries[place][0] and alone[round_, place][0] for place in range(len(engines)))
    ]
    if len(rounds) < LEAST_ROUNDS:
        raise ConfigError(
            f"[benchmark] together: in only {len(rounds)} of {len(beside)} rounds each engine had queries both alone "
            "and while all ran; reduce the load on this machine, or raise min_seconds in [benchmark.protocol]"
        )
    began_ns = blocks[0].start_ns
    sides: tuple[list[Timing], list[Timing]] = ([], [])
    gains = np.zeros(len(rounds))
    for place, (name, batch_size) in enumerate(engines):
        parts = [alone[round_, place] for round_ in rounds], [beside[round_][place] for round_ in rounds]
        for side, chosen in zip(sides, parts):
            queries = joined([queries_from_raw(raw, number, began_ns) for number, raw in enumerate(chosen)])
            side.append(timing_of(name, batch_size, queries, protocol))
        gains += [_per_s(b) / _per_s(a) for a, b in zip(*parts)]
    return TogetherTimings(tuple(sides[0]), tuple(sides[1]), gains)


def together_from(timings: TogetherTimings, run_in: RunIn, seed: int, out: Path) -> Together:
    """The record; raw latencies are written to the folder ``out``."""
    rows = []
    for number, (alone, beside) in enumerate(zip(timings.alone, timings.beside)):
        files = [f"together-{number}-{side}.npz" for side in ("alone", "beside")]
        for file, timing in zip(files, (alone, beside)):
            timing.queries.write(out / file)
        notes = [f"{words}: {timing.note}" for words, timing in (("alone", alone), ("beside", beside)) if timing.note]
        rows.append(
            BesideOthers(
                alone.name, alone.batch_size, alone.latency_ms, beside.latency_ms, speedup(beside, alone, seed=seed),
                alone.throughput_per_s, beside.throughput_per_s, beside.num_queries, "; ".join(notes), *files,
            )
        )  # fmt: skip
    num = len(timings.gains)
    gain = float(timings.gains.mean())
    half = student_quantile((1 - CONFIDENCE) / 2, num - 1) * float(timings.gains.std(ddof=1)) / math.sqrt(num)
    result = Together(run_in, tuple(rows), gain, gain - half, gain + half, CONFIDENCE, num, "")
    return replace(result, sentence=_sentence(result))


def _publish(path: Path, text: str) -> None:
    """Write a file that others wait for: it is there when it is whole."""
    work = path.with_suffix(".work")
    work.write_text(text)
    work.replace(path)


def _sentence(together: Together) -> str:
    parts = [
        f"{row.name} takes {row.slowdown.ratio:.2f} times as long ({row.slowdown.low:.2f} to {row.slowdown.high:.2f})"
        for row in together.engines
    ]
    return (
        f"At once, in {together.run_in}: {', '.join(parts)}; together they do {together.gain:.2f} times "
        f"({together.gain_low:.2f} to {together.gain_high:.2f}) what they do in turns."
    )


def _planned(folder: Path, workers: Sequence[Future[list[Raw]]], protocol: Protocol) -> list[PlannedBlock]:
    """The blocks, when all engines are loaded; none if one failed, so that the others end."""
    files = [folder / f"{place}.json" for place in range(len(workers))]
    while not all(file.exists() for file in files):
        if any(worker.done() for worker in workers):
            return []
        time.sleep(POLL_SECONDS)
    query_ns = [float(json.loads(file.read_text())["query_ns"]) for file in files]
    return planned_blocks(query_ns, protocol, time.perf_counter_ns() + LEAD_NS)


def _block_from(data: Mapping[str, object]) -> PlannedBlock:
    block = PlannedBlock(**data)  # type: ignore[arg-type]  # It is what ``asdict`` made.
    return replace(block, members=tuple(block.members))


def _counted(
    blocks: Sequence[PlannedBlock], raws: Sequence[Sequence[Raw]]
) -> tuple[dict[tuple[int, int], Raw], dict[int, dict[int, Raw]]]:
    """The queries that count: by round and engine those alone, and by round and then engine those beside the others.

    A busy machine may make a query end after its block; what met it there does not count, and neither does it.
    """
    turns = [iter(each) for each in raws]
    busy_until = dict.fromkeys(range(len(raws)), 0)
    alone: dict[tuple[int, int], Raw] = {}
    beside: dict[int, dict[int, Raw]] = {}
    for block, following in zip_longest(blocks, blocks[1:]):
        queries = {member: next(turns[member]) for member in block.members}
        begin = max([busy_until[other] for other in busy_until if other not in block.members], default=0)
        begin = max(begin, *(starts[0] for starts, _, _ in queries.values()))
        end = min(ends[-1] for _, ends, _ in queries.values())
        end = end if following is None else min(end, following.start_ns)
        counted = {member: _between(raw, begin, end) for member, raw in queries.items()}
        if len(counted) > 1:
            beside[block.round] = counted
        else:
            alone |= {(block.round, member): raw for member, raw in counted.items()}
        busy_until |= {member: ends[-1] for member, (_, ends, _) in queries.items()}
    return alone, beside


def _between(raw: Raw, begin_ns: int, end_ns: int) -> Raw:
    rows = [row for row in zip(*raw) if begin_ns <= row[0] and row[1] <= end_ns]
    starts, ends, device = (list(column) for column in zip(*rows)) if rows else ([], [], [])
    return starts, ends, device


def _per_s(raw: Raw) -> float:
    starts, ends, _ = raw
    return len(starts) / max(ends[-1] - starts[0], 1) * 1e9
