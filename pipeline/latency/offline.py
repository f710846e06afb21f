"""The offline scenario: batch after batch through the samples, several in flight where the backend has streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle

from calibration.data.batches import Samples
from engines import streaming_backend
from engines.contract import Array, GpuUse, Runner, StreamingRunner
from engines.timed_queries import BatchesInFlight
from pipeline.artifact import Engine
from pipeline.engine_runner import as_model_takes, model_ranks, queries_elsewhere
from pipeline.latency.benchmark import Candidate
from pipeline.latency.scenarios import Load

ROOM_MIB = 512
"""So much of the samples is kept in memory, as they are when it begins."""


def streaming_runner(engine: Engine, load: Load, num_threads: int) -> StreamingRunner | None:
    """A runner with several batches in flight; None where that is not asked for, or the backend has no streams."""
    module = streaming_backend(engine.backend)
    if module is None or engine.simulated or load.scenario != "offline":
        return None
    return module.load(engine.path, num_threads=num_threads, use=GpuUse(num_streams=load.num_streams))


def batches_in_memory(samples: Samples, batch_size: int) -> list[Mapping[str, Array]]:
    """As many whole batches as fit ``ROOM_MIB``, at least one."""
    feeds: list[Mapping[str, Array]] = []
    room = ROOM_MIB * 2**20
    ranks = model_ranks(samples)
    for batch in samples.batches(batch_size):
        feed = as_model_takes(batch, ranks)
        room -= sum(array.nbytes for array in feed.values())
        if feeds and (room < 0 or len(next(iter(batch.values()))) < batch_size):
            break
        feeds.append(feed)
    return feeds


def offline(
    candidate: Candidate, runner: Runner, streaming: StreamingRunner | None, feeds: Sequence[Mapping[str, Array]]
) -> Candidate:
    """The candidate going through the batches, again and again."""
    if (timed := queries_elsewhere(streaming or runner, feeds, in_flight=streaming is not None)) is not None:
        return replace(candidate, call=timed.one, rest=timed.rest, elsewhere=timed)
    following = cycle(feeds)
    if streaming is None:
        return replace(candidate, call=lambda: runner.infer(next(following)))
    flow = BatchesInFlight(streaming, following)
    return replace(candidate, call=flow.next, rest=flow.end)
