"""Running an engine on the GPU: everything that TensorRT and TensorRT-RTX have in common."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from engines.contract import Array, GpuUse, LayerTimes, RunnerFacts, TensorSpec
from engines.errors import EngineError, OutOfMemory, Unavailable
from engines.feed import FeedCheck
from engines.layers import layer_times_from, layers_from_record
from engines.nvinfer.allocator import counting_allocator
from engines.nvinfer.builder import logger, register_plugins
from engines.nvinfer.capability import has_own_graphs
from engines.nvinfer.error_hints import is_old_driver, is_out_of_memory
from engines.nvinfer.execution import CudaDevice, ExecutionContext
from engines.nvinfer.layer_profiler import layer_profiler
from engines.nvinfer.plugins import load_plugins
from engines.nvinfer.tensor_io import io_of
from engines.plugin_library import PluginLibrary, libraries_for

if TYPE_CHECKING:
    from typing import TypeAlias

CheckPlan: TypeAlias = "Callable[[Path], Mapping[str, Any]]"
"""Raises if the engine cannot run here, before anything of the library; gives the record beside the engine."""


NUM_SETTING_UP = 2
"""Runs of new shapes after which nothing more is set up: the second has captured a graph."""
NUM_UNTOLD = 3
"""Runs before times of layers are told."""
AS_USUAL = GpuUse()
TO_PROFILE = GpuUse(cuda_graph=False, count_memory=True)
"""Layers have times outside of graphs alone."""


def _trusting(_engine: Path) -> Mapping[str, Any]:
    """Lets the library itself say what it cannot run."""
    return {}


def _any_bytes(_data: bytes) -> None:
    """Takes whatever lies there."""


@dataclass(frozen=True)
class PlanChecks:
    """What is asked of an engine before the library sees it; both raise where it is not to be loaded."""

    preflight: CheckPlan = _trusting
    of_data: Callable[[bytes], None] = _any_bytes
    """Of the very bytes that are deserialized."""

    def bytes_of(self, engine: Path) -> bytes:
        """Those of an engine, once they were asked about.

        Raises:
            EngineError: it cannot be read; or as ``of_data``.
        """
        try:
            data = engine.read_bytes()
        except OSError as error:
            raise EngineError(f"{engine}: cannot be read ({error}); build it again") from error
        self.of_data(data)
        return data


UNCHECKED = PlanChecks()


class NvinferRunner:
    """A deserialized engine with its execution contexts, on the GPU that ``open_gpu`` gives.

    Raises:
        Unavailable: on ``__enter__``, no driver, too old a one, no GPU or no pycuda; or what ``checks`` raise.
        EngineError: on ``__enter__``, the engine is of another version or for another GPU, the GPU's memory is full, or
            a library of its plugins is not named, another one, or does not load.
    """

    def __init__(
        self,
        engine: Path,
        import_trt: Callable[[], Any],
        open_gpu: Callable[[], CudaDevice],
        checks: PlanChecks = UNCHECKED,
        use: GpuUse = AS_USUAL,
    ) -> None:
        self._path, self._import_trt, self._open_gpu, self._checks = engine, import_trt, open_gpu, checks
        self._use = use
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._executions: list[ExecutionContext] = []
        self._last: ExecutionContext | None = None
        self._free_before_mib: float = 0
        self._memory_mib: float | None = None
        self._runtime: Any = None
        self._engines: list[Any] = []
        self._allocator: Any = None

    def __enter__(self) -> NvinferRunner:
        self._record = self._checks.preflight(self._path)
        self._plugins: tuple[PluginLibrary, ...] = libraries_for(self._path, self._record)
        self._gpu = self._open_gpu()
        self._gpu.__enter__()  # before anything of TensorRT: without a driver its runtime crashes instead of raising
        try:
            self._free_before_mib = self._gpu.free_mib()
            self._load(self._import_trt())
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # They hold objects of TensorRT, which free memory of the GPU.
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._last = None
        while self._executions:
            self._executions.pop().close()
        self._engines.clear()
        self._runtime = self._allocator = None
        self._gpu.__exit__(kind, error, trace)

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        execution = self._executions[0]
        self._start(execution, feed)
        return self._finished(execution)

    def infer_all(self, feeds: Iterable[Mapping[str, Array]]) -> Generator[dict[str, Array], None, None]:
        """As the contract says."""
        idle = deque(self._executions)
        flying: deque[ExecutionContext] = deque()
        try:
            for feed in feeds:
                if not idle:
                    idle.append(flying.popleft())
                    yield self._finished(idle[0])
                self._start(idle[0], feed)
                flying.append(idle.popleft())
            while flying:
                yield self._finished(flying.popleft())
        finally:
            for execution in flying:  # Left over where it ended early: their memory is in use until then.
                execution.finish()

    def batch_ranges(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, int], ...]:
        """As the contract says."""
        return self._io.batch_ranges(shapes)

    def device_ms(self) -> float | None:
        """Milliseconds between the start and the end of execution on the GPU, copies not included."""
        return None if self._last is None else self._last.compute_ms()

    def facts(self) -> RunnerFacts:
        """As the contract says."""
        times = None if self._last is None else self._last.times()
        notes = dict.fromkeys(note for execution in self._executions for note in execution.notes)
        if (number := len(self._engines)) > 1:
            notes[f"The engine is loaded {number} times, for its {number} streams cannot share a profile."] = None
        return RunnerFacts(times, self._memory_mib, tuple(notes))

    def device_memory_now_mib(self) -> float:
        """As the contract says."""
        return self._free_before_mib - self._gpu.free_mib()

    def layer_times(self, feed: Mapping[str, Array], num_runs: int) -> LayerTimes:
        """The median time of each layer over ``num_runs`` runs of one feed, after ``NUM_UNTOLD`` that are not told.

        From then on the runner is slower: the profiler stays.
        """
        for _ in range(NUM_UNTOLD):
            self.infer(feed)
        execution, profiler = self._executions[0], layer_profiler(self._trt)
        execution.profile(profiler)
        for _ in range(num_runs):
            self.infer(feed)
            profiler.begin_run()
            execution.report()
        allocated = None if self._allocator is None else self._allocator.peak_bytes / 2**20
        return LayerTimes(layer_times_from(profiler.times_ms, layers_from_record(self._record)), allocated)

    def _finished(self, execution: ExecutionContext) -> dict[str, Array]:
        outputs = execution.finish()
        self._last = execution
        if execution.num_runs <= NUM_SETTING_UP:
            self._memory_mib = self.device_memory_now_mib()
        return outputs

    def _start(self, execution: ExecutionContext, feed: Mapping[str, Array]) -> None:
        """Check the feed, unless it is alike the last one, and queue it."""
        arrays = self._check.alike(feed, execution.shapes)
        if arrays is None:
            self._check(feed)
            arrays = [feed[spec.name] for spec in self.inputs]
            shapes = tuple(array.shape for array in arrays)
            if shapes != execution.shapes:
                execution.set_shapes(shapes)
        execution.start(arrays)

    def _load(self, trt: Any) -> None:
        self._trt = trt
        self._tail = logger(trt)[1]
        runtime = self._runtime = runtime_for(trt, self._path, self._record, self._plugins)
        options = self._record.get("options", {})
        if self._use.count_memory:
            self._allocator = runtime.gpu_allocator = counting_allocator(trt, self._gpu.allocate)
        data = self._checks.bytes_of(self._path)
        engine = self._deserialized(data)
        io = self._io = io_of(trt, engine, self._path)
        self.inputs, self.outputs = io.inputs, io.outputs
        self._check = FeedCheck(self._path, self.inputs)
        wants_graph = self._use.cuda_graph and options.get("cuda_graph", True)
        for _ in range(self._use.num_streams):
            context = self._context(data, with_graph=wants_graph)
            with_graph = wants_graph and not has_own_graphs(trt)
            self._executions.append(ExecutionContext(self._gpu, io, context, self._tail.text, with_graph=with_graph))

    def _deserialized(self, data: bytes) -> Any:
        engine = self._runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise refused_by(self._path, self._tail.text())
        self._engines.append(engine)
        return engine

    def _context(self, data: bytes, *, with_graph: bool) -> Any:
        """An execution context with a profile; of a further engine where the profiles of those before are taken."""
        context = _context_of(self._trt, self._engines[-1], with_graph=with_graph)
        if context is not None and context.active_optimization_profile < 0:  # 8.5; 8.6, unless told to share.
            context = _context_of(self._trt, self._deserialized(data), with_graph=with_graph)
        if context is None:
            raise OutOfMemory(f"{self._path}: no execution context ({self._tail.text()}); is the GPU's memory full?")
        return context


def runtime_for(trt: Any, path: Path, record: Mapping[str, Any], plugins: Sequence[PluginLibrary]) -> Any:
    """A runtime that may load an engine as its record says: with its plugins, its lean runtime, its DLA core.

    Raises:
        Unavailable: it does not start, or there is no such core.
        EngineError: a plugin does not load.
    """
    log, tail = logger(trt)
    tail.clear()
    load_plugins(trt, plugins, tail.text)
    register_plugins(trt)
    try:
        runtime = trt.Runtime(log)
    except TypeError as error:  # what pybind makes of a null pointer
        raise Unavailable(
            f"{path}: {trt.__name__} {trt.__version__} does not start ({tail.text()}); its CUDA may be newer than the "
            "driver: check nvidia-smi, update the driver or take an older version"
        ) from error
    options = record.get("options", {})
    if options.get("version_compatible"):
        runtime.engine_host_code_allowed = True  # The lean runtime inside; the record says that we put it there.
    if (core := options.get("dla_core", -1)) >= 0:
        _take_dla_core(runtime, core, path)
    return runtime


def _take_dla_core(runtime: Any, core: int, path: Path) -> None:
    """An engine does not know its core; as trtexec does, the runtime is told before it loads one."""
    if core >= (number := runtime.num_DLA_cores):
        raise Unavailable(
            f"{path}: was built for DLA core {core}, this machine has {number} of them, counted from 0; build it for "
            "one that is there, or for the GPU"
        )
    runtime.DLA_core = core


def _context_of(trt: Any, engine: Any, *, with_graph: bool) -> Any:
    """An execution context. TensorRT-RTX captures graphs by itself, for it knows when its kernels are settled."""
    if not has_own_graphs(trt):
        return engine.create_execution_context()
    strategy = trt.CudaGraphStrategy
    runtime_config = engine.create_runtime_config()
    runtime_config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if with_graph else strategy.DISABLED
    return engine.create_execution_context(runtime_config)


def refused_by(path: Path, text: str) -> EngineError | Unavailable:
    """What is to be raised of an engine that the library does not load."""
    if is_old_driver(text):
        return Unavailable(f"{path}: the driver is older than the library's CUDA ({text}); update the driver")
    if is_out_of_memory(text):
        return OutOfMemory(
            f"{path}: the GPU's memory does not hold the engine ({text}); stop other programs on the GPU"
        )
    return EngineError(
        f"{path}: the engine cannot be loaded ({text}); an engine runs on the version and the kind of GPU that it was "
        "built for: build it again here"
    )
