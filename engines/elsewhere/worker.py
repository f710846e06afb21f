"""The other side: the loop that does what is asked of a backend, in the interpreter that has its library.

It is started by ``process``, with the backend's module as an argument. What it prints goes to stderr: the socket is
another file. It ends when the socket is closed, and is killed when its parent dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from engines.contract import Array, BuildOptions, EngineRecord, GivenBatches, GpuUse, LayerTimes, RunnerFacts
from engines.elsewhere.channel import Channel
from engines.elsewhere.wire import Arena
from engines.errors import EngineError, NotTrusted, OutOfMemory, Unavailable
from engines.plugin_library import NAMED
from engines.refitting import ChangedWeights, RefitOutcome
from engines.signing.trust import Signed, promised
from engines.timed_queries import BatchesInFlight, BlockLength, DeviceTimeRecorder, QueryArrivals, run_for, run_queries

PYTHON_VARIABLE = "TRTFORGE_TENSORRT_PYTHON"
"""Names the interpreter that has TensorRT, where it is not the one that runs this project."""
PYTHON_FILE = "tensorrt-python"
"""Names it in the environment that ``scripts/build_on_jetson`` makes."""
ERRORS = (OutOfMemory, EngineError, Unavailable, NotTrusted)
"""Those that are raised again as they are; a kind before what it is a kind of."""


class Worker:
    """A backend whose verbs are called by name; runners and bound feeds have numbers."""

    def __init__(self, module: Any, channel: Channel) -> None:
        self._module, self._channel = module, channel
        self._runners: dict[int, Any] = {}
        self._bound: dict[int, _Bound] = {}
        self._last = 0

    def serve(self) -> None:
        """Until the other end is gone."""
        while True:
            try:
                request = self._channel.receive()
            except EOFError:
                return
            self._answer(request)

    def _answer(self, request: Mapping[str, Any]) -> None:
        try:
            os.chdir(request["folder"])
            os.environ[NAMED] = request["plugins"]
            answer = getattr(self, f"do_{request['verb']}")(*request["arguments"])
        except Exception as error:  # noqa: BLE001  # All of it is handed over, and raised there.
            self._channel.send(error=_as_words(error))
        else:
            self._channel.send(result=answer)

    # What a backend's module has.

    def do_why_not_build(self) -> str:
        return str(self._module.why_not_build())

    def do_why_not_run(self) -> str:
        return str(self._module.why_not_run())

    def do_why_not_ask(self) -> str:
        return str(self._module.why_not_ask())

    def do_versions(self) -> dict[str, str]:
        return dict(self._module.versions())

    def do_location(self, library: str, *distributions: str) -> tuple[str, dict[str, str]]:
        """See ``LibraryPlace``."""
        return where_is(library, distributions)

    def do_refuse(self, options: BuildOptions) -> None:
        self._module.refuse(options)

    def do_refuse_model(self, model: Path) -> None:
        self._module.refuse_model(model)

    def do_ask(self, model: Path, shapes: Mapping[str, tuple[int, ...]]) -> Any:
        return self._module.ask(model, shapes)

    def do_build(self, model: Path, engine: Path, options: BuildOptions, batches: tuple[int, Path] | None) -> Any:
        if batches is not None:
            options = replace(options, native=GivenBatches(self._batches, *batches))
        record: EngineRecord = self._module.build(model, engine, replace(options, progress=self._progress))
        return record

    def do_refit(self, engine: Path, signed: Signed, files: tuple[Path, Path], changed: ChangedWeights) -> RefitOutcome:
        with promised(engine, signed):
            outcome: RefitOutcome = self._module.refit(engine, *files, changed)
        return outcome

    def do_layer_times(self, engine: Path, signed: Signed, feed: Mapping[str, Array], num_runs: int) -> LayerTimes:
        with promised(engine, signed):
            times: LayerTimes = self._module.layer_times(engine, _copied(feed), num_runs)
        return times

    # What a runner has.

    def do_enter(self, engine: Path, signed: Signed, num_threads: int, use: GpuUse | None) -> tuple[Any, ...]:
        settings = {} if use is None else {"use": use}
        with promised(engine, signed):  # Who asks has held the signature to the keys, which are not read here.
            runner = self._module.load(engine, num_threads=num_threads, **settings).__enter__()
        self._last += 1
        self._runners[self._last] = runner
        return self._last, runner.inputs, runner.outputs

    def do_exit(self, number: int) -> None:
        runner = self._runners.pop(number)
        for bound in [key for key, value in self._bound.items() if value.runner is runner]:
            self._bound.pop(bound).end()
        runner.__exit__(None, None, None)

    def do_infer(self, number: int, feed: Mapping[str, Array]) -> dict[str, Array]:
        answers: dict[str, Array] = self._runners[number].infer(feed)
        return answers

    def do_infer_all(self, number: int) -> None:
        """Asks for feeds, and hands out answers, each when it is asked for."""
        answers = self._runners[number].infer_all(self._feeds())
        try:
            for answer in answers:
                self._channel.send(answers=answer)
                while "more" not in (request := self._channel.receive()):
                    self._answer(request)
                if not request["more"]:
                    break
        finally:
            answers.close()

    def do_device_ms(self, number: int) -> float | None:
        time_ms: float | None = self._runners[number].device_ms()
        return time_ms

    def do_facts(self, number: int) -> RunnerFacts:
        facts: RunnerFacts = self._runners[number].facts()
        return facts

    def do_device_memory_now_mib(self, number: int) -> float:
        tell = getattr(self._runners[number], "device_memory_now_mib", None)
        return float("nan") if tell is None else float(tell())

    def do_batch_ranges(self, number: int, shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, int], ...]:
        ranges = getattr(self._runners[number], "batch_ranges", None)
        return tuple(ranges(shapes)) if ranges is not None else ()

    # Queries whose time is taken here.

    def do_bind(self, number: int, feeds: Sequence[Mapping[str, Array]], in_flight: bool) -> int:
        self._last += 1
        self._bound[self._last] = _Bound(self._runners[number], [_copied(feed) for feed in feeds], in_flight)
        return self._last

    def do_block(self, bound: int, length: BlockLength, arrivals: QueryArrivals, with_times: bool) -> tuple[Any, ...]:
        return self._bound[bound].block(length, arrivals, with_times=with_times)

    def do_unrecorded(self, bound: int, num_queries: int, seconds: float) -> int:
        return run_for(self._bound[bound].call, num_queries, seconds, time.perf_counter_ns)

    def do_rest(self, bound: int) -> None:
        if bound in self._bound:  # It rested when its runner went.
            self._bound[bound].end()

    # What is asked back.

    def _progress(self, phase: str, done: int, total: int) -> None:
        self._channel.send(progress=(phase, done, total))

    def _batches(self) -> Iterator[dict[str, Array]]:
        return self._fetched("batch")

    def _feeds(self) -> Iterator[dict[str, Array]]:
        return self._fetched("feed")

    def _fetched(self, what: str) -> Iterator[dict[str, Array]]:
        while True:
            self._channel.send(wanted=what)
            received = self._channel.receive()["fetched"]
            if received is None:
                return
            yield _copied(received)


class _Bound:
    """A runner and the feeds that it is timed on, in turn, in memory of their own."""

    def __init__(self, runner: Any, feeds: Sequence[Mapping[str, Array]], in_flight: bool) -> None:
        self.runner = runner
        self.end: Callable[[], object] = _nothing
        following = cycle(feeds)
        if in_flight:
            flow = BatchesInFlight(runner, following)
            self.call, self.end = flow.next, flow.end
        elif len(feeds) == 1:
            self.call = partial(runner.infer, feeds[0])
        else:
            self.call = lambda: runner.infer(next(following))

    def block(self, length: BlockLength, arrivals: QueryArrivals, *, with_times: bool) -> tuple[Any, ...]:
        """Starts and ends (num_queries,) in nanoseconds, device times in milliseconds; and where the time went."""
        recorder, clock = DeviceTimeRecorder(self.runner), time.perf_counter_ns
        device_ms = recorder.device_ms if with_times else self.runner.device_ms
        starts, ends, device = run_queries(self.call, device_ms, length, clock, arrivals.begin(clock))
        return (
            np.array(starts, np.int64),
            np.array(ends, np.int64),
            np.array(device, np.float64),
            np.array([astuple(times) for times in recorder.times], np.float64).reshape(-1, 4),
        )


def where_is(library: str, distributions: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Where a library of that name lies, empty where there is none; and the versions of those that are installed."""
    spec = importlib.util.find_spec(library)
    versions = {}
    for name in distributions:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return (spec.origin or "") if spec else "", versions


def _nothing() -> None:
    """There is nothing in flight."""


def _copied(feed: Mapping[str, Array]) -> dict[str, Array]:
    """In memory of this side: what was received lasts until the next message."""
    return {name: np.array(array) for name, array in feed.items()}


def _as_words(error: Exception) -> dict[str, Any]:
    kind = next((kind.__name__ for kind in ERRORS if isinstance(error, kind)), "")
    if isinstance(error, OSError):
        return {"kind": "OSError", "parts": (error.errno, error.strerror, error.filename and str(error.filename))}
    return {"kind": kind, "text": str(error), "name": type(error).__name__, "trace": traceback.format_exc()}


class _Handed(logging.Handler):
    """Log records go to the other side's logging."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send(log=(record.levelno, record.name, record.getMessage()))


def _die_with(connection: socket.socket) -> None:
    """Let nothing work on for nobody: end when the other end is gone, whatever this process is doing."""
    poll = select.poll()
    poll.register(connection, select.POLLHUP | select.POLLERR)

    def watch() -> None:
        poll.poll()
        time.sleep(10)  # Who waits for the next message ends by itself.
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(module: str, log_level: int, is_main: int, *descriptors: int) -> None:
    """Serve until the other end is gone.

    Args:
        module: of the backend.
        log_level: of what is logged there.
        is_main: whether the parent's main thread started it; Linux tells of the death of that thread alone.
        descriptors: of the socket, and of the memory of this side's arrays and of the other's.
    """
    if is_main:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal; the parent ends this one.
    os.dup2(2, 1)  # What a library prints is no message.
    connection = socket.socket(fileno=descriptors[0])
    _die_with(connection)
    channel = Channel(connection, Arena(descriptors[1]), Arena(descriptors[2]))
    logging.basicConfig(level=log_level, handlers=[_Handed(channel)])
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001  # Such as a numpy that is missing there.
        channel.send(error=_as_words(error))
        sys.exit(1)
    channel.send(result=tuple(sys.version_info[:3]))
    Worker(loaded, channel).serve()
