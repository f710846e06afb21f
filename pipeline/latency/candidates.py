"""Engines that are loaded and bound to a batch, so that they can be timed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from engines.contract import Array, Runner
from pipeline.artifact import Engine
from pipeline.engine_runner import batch_sizes, fixed_batch, queries_elsewhere
from pipeline.errors import ConfigError
from pipeline.latency.benchmark import Candidate


def sizes_for(runner: Runner, asked: tuple[int, ...]) -> tuple[int, ...]:
    """The batches that an engine is timed in: its own where that is fixed and among those asked for, or else all."""
    return (fixed,) if (fixed := fixed_batch(runner)) in asked else asked


def notes_of_sizes(runner: Runner, asked: tuple[int, ...]) -> list[str]:
    """A sentence on the batches that an engine was not timed in."""
    if not (left := [str(size) for size in asked if size not in sizes_for(runner, asked)]):
        return []
    return [f"It takes batches of {fixed_batch(runner)} alone, and was not timed in batches of {', '.join(left)}."]


def candidate_of(engine: Engine, runner: Runner, name: str, feed: Mapping[str, Array]) -> Candidate:
    """A loaded engine bound to one batch; ConfigError if it does not take a batch of that size."""
    size = len(next(iter(feed.values())))
    sizes = batch_sizes(engine, runner, feed)
    if size not in sizes:
        raise ConfigError(
            f"{name}: takes batches {sizes}, but [benchmark] batch_sizes has {size}; "
            "change it, or the input's shapes in [model.inputs]"
        )
    if (timed := queries_elsewhere(runner, [feed])) is not None:
        return Candidate(name, size, timed.one, runner.device_ms, elsewhere=timed)
    return Candidate(name, size, partial(runner.infer, feed), runner.device_ms)
