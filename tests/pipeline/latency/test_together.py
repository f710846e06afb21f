"""Engines at once: which queries count, what comes of made-up blocks, and engines that really run at once."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from engines.timed_queries import Raw
from pipeline.errors import ConfigError, StageError
from pipeline.latency.benchmark import Candidate, queries_from_npz
from pipeline.latency.protocol import Protocol
from pipeline.latency.together import (
    GAP_NS,
    PlannedBlock,
    RunIn,
    measure_together,
    members_from,
    planned_blocks,
    those_timed,
    timings_from_blocks,
    together_from,
)

MS = 1_000_000
PROTOCOL = Protocol(num_blocks=4, min_queries=20, min_seconds=1.0)


def raw(first_ms: float, each_ms: float, num: int) -> Raw:
    """Queries one after the other."""
    starts = [round((first_ms + n * each_ms) * MS) for n in range(num)]
    return starts, [start + round(each_ms * MS) for start in starts], [float("nan")] * num


def test_blocks_are_alone_and_at_once_and_never_meet() -> None:
    blocks = planned_blocks([2 * MS, 5 * MS], PROTOCOL, 1000)
    assert [sorted(block.members for block in blocks if block.round == number) for number in range(4)] == [
        [(0,), (0, 1), (1,)]
    ] * 4
    assert [block.members for block in blocks[:3]] != [block.members for block in blocks[3:6]]
    assert blocks[0].start_ns == 1000
    for before, after in pairwise(blocks):
        assert after.start_ns - before.end_ns >= GAP_NS
    lengths = {block.members: (block.end_ns - block.start_ns) / MS for block in blocks}
    # A fourth of a second or of 20 queries, whichever is longer, and two queries that are not counted.
    assert lengths == {(0,): 250 + 4, (1,): 250 + 10, (0, 1): 250 + 20}
    short = planned_blocks([2 * MS, 5 * MS], replace(PROTOCOL, min_seconds=0.1), 0)
    assert min(block.end_ns - block.start_ns for block in short) == 204 * MS


def test_slow_engines_and_rare_queries_make_long_blocks() -> None:
    slow = planned_blocks([100 * MS, 1 * MS], PROTOCOL, 0)
    assert {b.members: (b.end_ns - b.start_ns) / MS for b in slow}[0, 1] == 20 * 200 / 4 + 2 * 200
    camera = replace(PROTOCOL, scenario="server", queries_per_s=10.0)
    rare = planned_blocks([1 * MS, 1 * MS], camera, 0)
    assert {b.members: (b.end_ns - b.start_ns) / MS for b in rare}[0,] == 20 * 100 / 4 + 2 * 100


def made_up_rounds(num: int, first_beside: float = 0.0) -> tuple[list[PlannedBlock], list[list[Raw]]]:
    """Of two engines of 1 and 2 ms, at once 2 and 3 ms; the second begins later by so much."""
    blocks, raws = [], [[], []]  # type: ignore[var-annotated]
    for number in range(num):
        at = 1000.0 * number
        for members, start in (((0,), at), ((1,), at + 200), ((0, 1), at + 400)):
            blocks.append(PlannedBlock(number, members, round(start * MS), round((start + 100) * MS)))
        raws[0] += [raw(at, 1, 100), raw(at + 400, 2, 50)]
        raws[1] += [raw(at + 200, 2, 50), raw(at + 400 + first_beside, 3, 40)]
    return blocks, raws


def test_each_is_compared_with_itself_alone() -> None:
    timings = timings_from_blocks([("a", 1), ("b", 4)], *made_up_rounds(4), PROTOCOL)
    assert [each.latency_ms.p50 for each in timings.alone] == [1.0, 2.0]
    assert [each.latency_ms.p50 for each in timings.beside] == [2.0, 3.0]
    assert timings.beside[1].batch_size == 4
    # Half as many queries per second, and two thirds as many.
    assert timings.gains == pytest.approx([1 / 2 + 2 / 3] * 4)


def test_beside_others_count_only_those_queries_while_all_were_at_work() -> None:
    timings = timings_from_blocks([("a", 1), ("b", 1)], *made_up_rounds(4, first_beside=30.5), PROTOCOL)
    # The second begins 30.5 ms later, and works on after 100 ms, when the first ends.
    assert timings.beside[0].num_queries == 4 * (50 - 16)
    assert timings.beside[1].num_queries == 4 * 23
    assert timings.alone[0].num_queries == 4 * 100


def test_what_runs_into_the_next_block_does_not_count_and_neither_does_what_meets_it() -> None:
    blocks, raws = made_up_rounds(4)
    late = raw(0, 10, 25)  # Of the first engine alone, until 250 ms: 50 ms into the block of the second.
    raws[0][0] = late
    timings = timings_from_blocks([("a", 1), ("b", 1)], blocks, raws, PROTOCOL)
    assert timings.alone[0].num_queries == 3 * 100 + 20
    assert timings.alone[1].num_queries == 3 * 50 + 25


def test_rounds_without_queries_of_one_are_left_out_and_too_few_are_refused() -> None:
    blocks, raws = made_up_rounds(5)
    raws[1][1] = raw(600, 3, 2)  # Begins when the first has ended.
    timings = timings_from_blocks([("a", 1), ("b", 1)], blocks, raws, PROTOCOL)
    assert len(timings.gains) == 4
    raws[1][3] = raws[1][5] = raw(1600, 3, 2)
    with pytest.raises(ConfigError, match=r"in only 2 of 5 rounds each engine had queries .* reduce the load"):
        timings_from_blocks([("a", 1), ("b", 1)], blocks, raws, PROTOCOL)


def test_the_record_says_it_in_a_sentence_and_keeps_every_query(tmp_path: Path) -> None:
    timings = timings_from_blocks([("a", 1), ("b", 1)], *made_up_rounds(6), PROTOCOL)
    together = together_from(timings, "threads", 0, tmp_path)
    assert together.sentence == (
        "At once, in threads: a takes 2.00 times as long (2.00 to 2.00), b takes 1.50 times as long (1.50 to 1.50); "
        "together they do 1.17 times (1.17 to 1.17) what they do in turns."
    )
    assert (together.num_rounds, together.confidence) == (6, 0.95)
    beside = queries_from_npz(tmp_path / together.engines[1].beside_file)
    assert len(beside.latency_ms) == together.engines[1].num_queries
    assert beside.block.tolist() == sorted(beside.block.tolist())


def test_who_runs_is_named_or_all_and_one_may_be_named_twice() -> None:
    assert members_from(["all"], ["a", "b"]) == {"a": "a", "b": "b"}
    assert members_from(["b", "a", "b", "b"], ["a", "b"]) == {"b": "b", "a": "a", "b#2": "b", "b#3": "b"}
    with pytest.raises(ConfigError, match=r"together names 'c'; engines that are timed: a, b"):
        members_from(["a", "c"], ["a", "b"])
    with pytest.raises(ConfigError, match=r"together names a alone; name two or more"):
        members_from(["a"], ["a", "b"])


def test_what_does_not_run_here_is_said_and_nothing_runs_at_once() -> None:
    assert those_timed(["a", "b"], ["a", "b", "c"]) == (("a", "b"), "")
    assert those_timed([], ["a"]) == ((), "")
    note = "No engines ran at once ([benchmark] together): int8@tensorrt: not timed here."
    assert those_timed(["a", "int8@tensorrt"], ["a", "b"]) == ((), note)
    alone = "No engines ran at once ([benchmark] together): only a is timed here."
    assert those_timed(["all"], ["a"]) == ((), alone)


@contextmanager
def sleeper(name: str, seconds: float, trail: Path) -> Iterator[Candidate]:
    """An engine that waits; who runs it is noted."""
    trail.write_text(f"{threading.current_thread().name}\n")
    yield Candidate(name, 1, partial(time.sleep, seconds), lambda: None)


@contextmanager
def broken(name: str) -> Iterator[Candidate]:
    """An engine that does not load."""
    raise StageError(f"{name}: does not load")
    yield Candidate(name, 1, lambda: None, lambda: None)


QUICK = Protocol(warmup_queries=1, warmup_seconds=0, min_queries=12, min_seconds=0.0, num_blocks=6)
"""Of six rounds three have to be whole, however busy the machine is."""


@pytest.mark.parametrize("run_in", ["processes", "threads"])
def test_engines_that_wait_do_not_hinder_each_other(run_in: RunIn, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    loaders = {name: partial(sleeper, name, 0.004, tmp_path / name) for name in ("a", "b")}
    timings = measure_together(work, loaders, run_in, QUICK)
    assert all(timing.num_queries > 0 and timing.latency_ms.p50 >= 4 for timing in (*timings.alone, *timings.beside))
    assert [timing.name for timing in timings.beside] == ["a", "b"]
    blocks = json.loads((work / "schedule.json").read_text())
    assert len(blocks) == 3 * QUICK.num_blocks
    assert ((tmp_path / "a").read_text() == "MainThread\n") == (run_in == "processes")


@pytest.mark.parametrize("run_in", ["processes", "threads"])
def test_one_that_does_not_load_ends_the_others(run_in: RunIn, tmp_path: Path) -> None:
    loaders = {"a": partial(sleeper, "a", 0.001, tmp_path / "a"), "b": partial(broken, "b")}
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(StageError, match="b: does not load"):
        measure_together(work, loaders, run_in, QUICK)
