"""A build that dies or runs out of memory is tried again with less: said aloud, and written into the engine's record.

Only death by a signal and memory that ran out are tried again. What a builder says of the model is raised at once:
with less memory it would say the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

from engines.contract import BuildOptions, EngineRecord
from pipeline.errors import OutOfMemory, ProcessDied, StageError, Unavailable

log = logging.getLogger(__name__)

LEAST_WORKSPACE_MIB = 64
STEPS = ((1, 5), (4, 5), (4, 1), (16, 0))
"""For each attempt, what the workspace is divided by, and the highest optimization level."""


def attempts(options: BuildOptions, refuse: Callable[[BuildOptions], None]) -> Iterator[BuildOptions]:
    """The options as they are, then with less and less; a generation without optimization levels keeps its own."""
    efforts: list[tuple[int, int]] = []
    for divisor, level in STEPS:
        least = min(LEAST_WORKSPACE_MIB, options.workspace_mib)
        workspace_mib = max(options.workspace_mib // divisor, least)
        lowered = min(options.optimization_level, level)
        reduced = replace(options, workspace_mib=workspace_mib, optimization_level=lowered)
        if efforts and _is_refused(reduced, refuse):
            reduced = replace(options, workspace_mib=workspace_mib)
        effort = reduced.workspace_mib, reduced.optimization_level
        if effort not in efforts:
            efforts.append(effort)
            yield reduced


def build_with_retries(
    what: str, attempt: Callable[[BuildOptions], EngineRecord], options: Iterator[BuildOptions]
) -> EngineRecord:
    """The record of the first attempt that lives; its notes say what went before.

    Raises:
        ProcessDied, OutOfMemory: the only attempt failed so.
        StageError: all of several did; the message has each of them.
        EngineError, Unavailable: as raised by an attempt; nothing further is tried.
    """
    failures: list[str] = []
    error: ProcessDied | OutOfMemory | None = None
    for current in options:
        effort = f"a workspace of {current.workspace_mib} MiB and optimization level {current.optimization_level}"
        if error is not None:
            log.warning("%s: trying again with %s", failures[-1], effort)
        try:
            record = attempt(current)
        except (ProcessDied, OutOfMemory) as failed:
            if isinstance(failed, ProcessDied) and not failed.may_be_memory:
                raise
            error = failed
            failures.append(f"{_first_line(failed).removeprefix(f'{what}: ')}, with {effort}")
            continue
        if not failures:
            return record
        note = f"Built with {effort} instead of the requested settings: before that, {'; '.join(failures)}."
        return replace(record, notes=(note, *record.notes))
    assert error is not None
    if len(failures) == 1:
        raise error
    raise StageError(
        f"{what}: failed {len(failures)} times, each with fewer resources: {'; '.join(failures)}; free memory (close "
        "what else runs, add swap), or build on a larger machine of the same kind"
    ) from error


def _is_refused(options: BuildOptions, refuse: Callable[[BuildOptions], None]) -> bool:
    try:
        refuse(options)
    except Unavailable:
        return True
    return False


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
