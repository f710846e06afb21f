"""PyTorch: where models come from. Runs exported programs (``.pt2``) on the CPU; it builds no engine."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from engines import cpu
from engines.contract import (
    Array,
    BuildOptions,
    EngineRecord,
    LayerTimes,
    Placement,
    Runner,
    RunnerFacts,
    TensorSpec,
)
from engines.errors import EngineError, Unavailable
from engines.feed import FeedCheck
from engines.model_format import ModelFormat
from engines.torch_graph.library import DISTRIBUTION, INSTALL_EXPORTER, set_threads, why_not
from engines.torch_graph.program import ProgramCall, first_sentence, load_program

NAME = "pytorch"
TAKES: ModelFormat = "pt2"
PLACEMENT: Placement = "none"
CAN_BUILD = False
GPU = False
STREAMS = False
NEEDS_RANGES = False
OBEYS: frozenset[str] = frozenset()
SUFFIX = ".pt2"
INSTALL = INSTALL_EXPORTER


def why_not_build() -> str:
    """Never empty: torch is where models come from."""
    return "pytorch: runs trained networks only, it builds no engines; choose another backend to build"


def why_not_run() -> str:
    """Empty if torch is installed."""
    return f"pytorch: torch is not installed; {INSTALL}" if why_not() else ""


def versions() -> dict[str, str]:
    """The version of torch, and the CPU. Asks the installed package: loading torch takes seconds."""
    if reason := why_not_run():
        raise Unavailable(reason)
    return {DISTRIBUTION: importlib.metadata.version(DISTRIBUTION)} | cpu.versions()


def refuse(options: BuildOptions) -> None:
    """Raise Unavailable, always: it builds nothing."""
    raise Unavailable(why_not_build())


def build(model: Path, engine: Path, options: BuildOptions) -> EngineRecord:
    """Builds nothing.

    Raises:
        Unavailable: always.
    """
    raise Unavailable(why_not_build())


def load(engine: Path, *, num_threads: int) -> Runner:
    """A runner for the exported program in the file ``engine``."""
    return _ProgramRunner(engine, num_threads)


def layer_times(engine: Path, feed: Mapping[str, Array], num_runs: int) -> LayerTimes:
    """It does not tell."""
    return LayerTimes()


class _ProgramRunner:
    """Calls one program."""

    def __init__(self, engine: Path, num_threads: int) -> None:
        self._engine, self._num_threads = engine, num_threads
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()

    def __enter__(self) -> Runner:
        set_threads(self._num_threads)
        self._call = ProgramCall(load_program(self._engine))
        self.inputs = tuple(port.spec() for port in self._call.ports.inputs)
        self.outputs = tuple(port.spec() for port in self._call.ports.outputs)
        self._check = FeedCheck(self._engine, self.inputs)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._call

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        self._check(feed)
        try:
            return self._call(feed)
        except RuntimeError as error:
            raise EngineError(f"{self._engine}: torch failed ({first_sentence(error)})") from error

    def device_ms(self) -> float | None:
        return None

    def facts(self) -> RunnerFacts:
        return RunnerFacts()
