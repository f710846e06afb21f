"""A backend's verbs, and its runners, as calls of another process: they take, answer and raise what those here do."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from engines.contract import (
    Array,
    BuildOptions,
    DeviceTimes,
    EngineRecord,
    GivenBatches,
    GivenScales,
    GpuUse,
    LayerTimes,
    RunnerFacts,
    TensorSpec,
)  # fmt: skip
from engines.elsewhere.process import ElsewhereProcess, fetched, process_for
from engines.elsewhere.worker import PYTHON_FILE, PYTHON_VARIABLE
from engines.errors import EngineError, Unavailable
from engines.feed import FeedCheck
from engines.refitting import ChangedWeights, RefitOutcome
from engines.signing.trust import Signed, expected
from engines.support.answers import InputShapes, SupportAnswer
from engines.timed_queries import BlockLength, QueryArrivals

if TYPE_CHECKING:
    from engines.timed_queries import Raw


def python_elsewhere() -> str:
    """The interpreter that has TensorRT, where it is not this one: by the variable, or by the file that
    ``scripts/build_on_jetson`` writes into the environment; empty if neither names one."""
    file = Path(sys.prefix) / PYTHON_FILE
    return os.environ.get(PYTHON_VARIABLE, "") or (file.read_text().strip() if file.is_file() else "")


def backend_elsewhere(module: str, name: str) -> ElsewhereBackend | None:
    """That backend in the interpreter that has TensorRT; None where it is this one."""
    python = python_elsewhere()
    return ElsewhereBackend(process_for(python, module, name)) if python else None


@dataclass(frozen=True)
class LibraryPlace:
    """Where a library is found."""

    python: str
    """The interpreter; empty for the one that runs this."""
    python_version: str
    location: str
    """Where ``import`` leads; empty if nowhere."""
    versions: Mapping[str, str]
    """Of distributions that are installed there."""


class ElsewhereBackend:
    """What the functions of a backend's module do, there."""

    def __init__(self, process: ElsewhereProcess) -> None:
        self.process = process

    def why_not_build(self) -> str:
        return self._reason("why_not_build")

    def why_not_run(self) -> str:
        return self._reason("why_not_run")

    def why_not_ask(self) -> str:
        return self._reason("why_not_ask")

    def versions(self) -> dict[str, str]:
        return dict(self.process.call("versions"))

    def place(self, library: str, *distributions: str) -> LibraryPlace:
        """Where a library of that name lies, and versions of these distributions there."""
        location, versions = self.process.call("location", library, *distributions)
        return LibraryPlace(self.process.python, ".".join(map(str, self.process.version)), location, versions)

    def refuse(self, options: BuildOptions) -> None:
        self.process.call("refuse", _without_batches(options))

    def refuse_model(self, model: Path) -> None:
        self.process.call("refuse_model", model)

    def ask(self, model: Path, shapes: InputShapes) -> SupportAnswer:
        answer: SupportAnswer = self.process.call("ask", model, dict(shapes))
        return answer

    def build(self, model: Path, engine: Path, options: BuildOptions) -> EngineRecord:
        source, batches, fetch = options.native, None, {}
        if isinstance(source, GivenBatches):
            feeds = iter(source.batches())
            batches, fetch = (source.batch_size, source.cache), {"batch": lambda: next(feeds, None)}
        arguments = model, engine, _without_batches(options), batches
        record: EngineRecord = self.process.call("build", *arguments, on_progress=options.progress, **fetch)
        return record

    def refit(self, engine: Path, model: Path, target: Path, changed: ChangedWeights) -> RefitOutcome:
        """The signature is held to the keys here, and the bytes to it there."""
        outcome: RefitOutcome = self.process.call("refit", engine, expected(engine), (model, target), dict(changed))
        return outcome

    def load(self, engine: Path, num_threads: int, use: GpuUse | None = None) -> ElsewhereRunner:
        """Nothing is loaded before ``__enter__``. Signatures are held to the keys here, and the bytes to them there."""
        return ElsewhereRunner(self.process, engine, expected(engine), (num_threads, use))

    def layer_times(self, engine: Path, feed: Mapping[str, Array], num_runs: int) -> LayerTimes:
        times: LayerTimes = self.process.call("layer_times", engine, expected(engine), dict(feed), num_runs)
        return times

    def _reason(self, verb: str) -> str:
        try:
            return str(self.process.call(verb))
        except (Unavailable, EngineError) as error:
            return str(error)


def _without_batches(options: BuildOptions) -> BuildOptions:
    """Batches are asked for one by one; that there are some is said by a cache without scales."""
    return replace(options, native=GivenScales(b"")) if isinstance(options.native, GivenBatches) else options


class ElsewhereRunner:
    """A runner of another process. Feeds are checked here, by the same words; arrays go by shared memory."""

    def __init__(
        self, process: ElsewhereProcess, engine: Path, signed: Signed, settings: tuple[int, GpuUse | None]
    ) -> None:
        self._process, self._path = process, engine
        self._arguments = engine, signed, *settings
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._start = 0

    def __enter__(self) -> ElsewhereRunner:
        self._number, self.inputs, self.outputs = self._process.call("enter", *self._arguments)
        self._start = self._process.num_starts
        self._check = FeedCheck(self._path, self.inputs)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_there():
            self._call("exit")

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """As the contract says."""
        self._check(feed)
        return _copied(self._call("infer", dict(feed)))

    def infer_all(self, feeds: Iterable[Mapping[str, Array]]) -> Generator[dict[str, Array], None, None]:
        """As the contract says: feeds are sent when they are asked for, answers are fetched one by one."""
        following, process = iter(feeds), self._process
        failure: BaseException | None = None

        def checked() -> dict[str, Array] | None:
            if (feed := next(following, None)) is None:
                return None
            self._check(feed)
            return dict(feed)

        self._check_there()
        process.begin("infer_all", self._number)
        while "result" not in (message := process.receive("infer_all")):
            if "wanted" in message:  # An error is raised below, when what is in flight has come home.
                feed, failure = (None, failure) if failure else fetched(checked)
                process.send(fetched=feed)
                continue
            try:
                if failure is None:
                    yield _copied(message["answers"])
            except BaseException:  # Closed: what is in flight comes home.
                process.send(more=False)
                while "result" not in process.receive("infer_all"):
                    continue
                raise
            process.send(more=failure is None)
        if failure is not None:
            raise failure

    def device_ms(self) -> float | None:
        """As the contract says."""
        time_ms: float | None = self._call("device_ms")
        return time_ms

    def facts(self) -> RunnerFacts:
        """As the contract says."""
        facts: RunnerFacts = self._call("facts")
        return facts

    def device_memory_now_mib(self) -> float:
        """As the contract says of a ``MemoryRunner``; NaN of one that is none."""
        memory_mib: float = self._call("device_memory_now_mib")
        return memory_mib

    def batch_ranges(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, int], ...]:
        """As the contract says of a ``ProfiledRunner``; empty of one that is none."""
        ranges: tuple[tuple[int, int], ...] = self._call("batch_ranges", dict(shapes))
        return ranges

    def bind(self, feeds: Sequence[Mapping[str, Array]], *, in_flight: bool = False) -> BoundFeeds:
        """Queries on these feeds in turn, whose time is taken where the engine is; see ``QueriesElsewhere``."""
        for feed in feeds:
            self._check(feed)
        return BoundFeeds(self, self._call("bind", [dict(feed) for feed in feeds], in_flight))

    def is_there(self) -> bool:
        """Whether the process that holds the engine still runs."""
        return self._start == self._process.num_starts and self._process.is_running()

    def call_there(self, verb: str, *arguments: Any) -> Any:
        """What that very process answers: numbers of runners and feeds mean others in one that came after it."""
        self._check_there()
        return self._process.call(verb, *arguments)

    def _call(self, verb: str, *arguments: Any) -> Any:
        return self.call_there(verb, self._number, *arguments)

    def _check_there(self) -> None:
        if not self.is_there():
            raise EngineError(f"{self._path}: the process that held the engine has ended; load it again")


class BoundFeeds:
    """Feeds that a runner has with it: a ``QueriesElsewhere``."""

    def __init__(self, runner: ElsewhereRunner, number: int) -> None:
        self._runner, self._number = runner, number
        self.times: list[DeviceTimes] | None = None
        """Where somebody asks for it: where the time of each recorded query went."""

    def one(self) -> None:
        """One query; its answers stay there."""
        self.run_for(1, 0.0)

    def run_for(self, num_queries: int, seconds: float) -> int:
        """As ``timed_queries.run_for``."""
        return int(self._runner.call_there("unrecorded", self._number, num_queries, seconds))

    def run_queries(self, length: BlockLength, arrivals: QueryArrivals) -> Raw:
        """As ``timed_queries.run_queries``, on the clock that all processes of a machine share."""
        with_times = self.times is not None
        answer = self._runner.call_there("block", self._number, length, arrivals, with_times)
        starts, ends, device_ms, splits = answer
        if self.times is not None:
            self.times += [DeviceTimes(*split) for split in splits.tolist()]
        return starts.tolist(), ends.tolist(), device_ms.tolist()

    def rest(self) -> None:
        """Wait for what is in flight."""
        if self._runner.is_there():
            self._runner.call_there("rest", self._number)


def _copied(answers: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array.copy() for name, array in answers.items()}
