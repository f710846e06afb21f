"""Several builds of one engine, timed in turns on this machine: the quickest is kept.

A builder of TensorRT chooses kernels by their times, so that engines of one model differ from build to build. They are
timed in sessions: in each, every engine is loaded again, in random order, since two loads of one file differ too
(Mytkowicz et al., ASPLOS 2009), warmed up, and asked for a median of its queries. What counts is the geometric mean
over sessions of its time over the session's quickest, so that a machine that grows slower treats all alike.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines import backend
from engines.contract import DYNAMIC, Array, EngineRecord, ShapeRange
from engines.signing.trust import UNSIGNED, promised

NUM_SESSIONS = 7
"""Beside the first, which is not counted."""
NUM_UNTOLD = 10
BLOCK_SECONDS = 0.25
FEWEST, MOST = 10, 400
"""Queries of an engine in a session."""
LARGE_SPREAD = 0.05
"""A gate's budget below it would be passed, or not, by which build it was."""


@dataclass(frozen=True)
class BuildTimes:
    """One of the builds, as its engine's record tells of it."""

    sha256: str
    """Of the engine's file."""
    size_bytes: int
    build_seconds: float
    p50_ms: float
    """Median over the sessions of the medians of its queries."""
    ratio: float
    """Its time over the quickest's: geometric mean over the sessions."""
    is_chosen: bool = False


def example_feed(record: EngineRecord, shapes: Mapping[str, ShapeRange]) -> dict[str, Array]:
    """Random values for a query, of the shapes that the engine is tuned for."""
    generator, feed = np.random.default_rng(0), {}
    for spec in record.inputs:
        usual = shapes[spec.name].opt if spec.name in shapes else spec.shape
        shape = [1 if size == DYNAMIC else size for size in usual]
        kind = np.dtype(spec.dtype)
        values = generator.standard_normal(shape) if kind.kind == "f" else np.zeros(shape)
        feed[spec.name] = np.asarray(values, kind)
    return feed


def times_in_turns(engines: Sequence[Path], name: str, feed: Mapping[str, Array]) -> list[list[float]]:
    """For each session the median time of each engine's queries, ms; called in a process of its own."""
    draw, sessions = random.Random(0), []
    for _ in range(NUM_SESSIONS + 1):
        medians = [0.0] * len(engines)
        for place in draw.sample(range(len(engines)), len(engines)):
            medians[place] = _median_ms(engines[place], name, feed)
        sessions.append(medians)
    return sessions[1:]


def _median_ms(engine: Path, name: str, feed: Mapping[str, Array]) -> float:
    """Of the device's own time where it tells, or of the whole query."""
    made_just_now = promised(engine, UNSIGNED)  # What is chosen is signed afterwards, where that is asked for.
    with made_just_now, backend(name).load(engine, num_threads=0) as runner:
        began = time.perf_counter()
        for _ in range(NUM_UNTOLD):
            runner.infer(feed)
        usual_seconds = (time.perf_counter() - began) / NUM_UNTOLD
        times_ms = []
        for _ in range(min(max(int(BLOCK_SECONDS / usual_seconds), FEWEST), MOST)):
            began = time.perf_counter()
            runner.infer(feed)
            whole_ms = 1e3 * (time.perf_counter() - began)
            device_ms = runner.device_ms()
            times_ms.append(whole_ms if device_ms is None else device_ms)
    return float(np.median(times_ms))


def compared(sessions: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Of each engine its median time, ms, and its ratio to the quickest of all."""
    times = np.asarray(sessions, np.float64)
    logs = np.log(times / times.min(axis=1, keepdims=True)).mean(axis=0)
    ratios = np.exp(logs - logs.min())
    return [float(each) for each in np.median(times, axis=0)], [float(each) for each in ratios]


def sentence(builds: Sequence[BuildTimes]) -> str:
    """Which was kept, and how far they lie apart."""
    chosen = next(build for build in builds if build.is_chosen)
    spread = max(build.ratio for build in builds) - 1.0
    words = f"The quickest of {len(builds)} builds was kept, p50 {chosen.p50_ms:.3g} ms; the slowest takes "
    words += f"{100 * spread:.1f} % more."
    if spread > LARGE_SPREAD:
        words += (
            " A gate's bound against an earlier engine that is below this is passed, or not, by chance of the build."
        )
    return words
