"""One execution context with its stream, memory, events and CUDA graph: what one query in flight needs.

Per query: copy into page-locked memory, copy to the device, compute, copy back, all queued on one stream; one wait at
the end. Memory is taken once, for the largest shapes of the engine's profiles. What can be prepared is prepared when
shapes change, so that a query of the same shapes as the one before is a walk through a list of calls.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engines.contract import DYNAMIC, Array, DeviceTimes, TensorSpec
from engines.cuda.graph import NotCaptured
from engines.errors import EngineError
from engines.nvinfer.tensor_io import EngineIo, Shapes
from engines.onnx_model import shape_text

NS_PER_MS = 1e6


class CudaDevice(Protocol):
    """The part of ``engines.cuda.device.Device`` that a runner uses."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def stream(self) -> Any: ...

    def event(self) -> Any: ...

    def free_mib(self) -> float: ...

    def allocate(self, num_bytes: int) -> Any: ...

    def pinned(self, num_bytes: int) -> npt.NDArray[np.uint8]: ...

    def copy_in(self, device: Any, host: Array, stream: Any) -> None: ...

    def copy_out(self, host: Array, device: Any, stream: Any) -> None: ...

    def wait(self, stream: Any) -> None: ...

    def capture(self, stream: Any, queue: Callable[[], bool]) -> Any: ...


def _nothing() -> bool:
    """What is queued before there are shapes."""
    return False


class _Port:
    """Memory of one input or output on both sides, and how much of it the present shape uses."""

    def __init__(self, gpu: CudaDevice, spec: TensorSpec, num_items: int) -> None:
        self.name, self.dtype = spec.name, np.dtype(spec.dtype)
        self.device = gpu.allocate(num_items * self.dtype.itemsize)
        try:
            self.host = gpu.pinned(num_items * self.dtype.itemsize)
        except BaseException:
            self.device.free()
            raise
        self.view: Array = np.empty(0, self.dtype)

    def set_shape(self, shape: tuple[int, ...]) -> None:
        """Let ``view`` be the host memory in ``shape``."""
        num_bytes = math.prod(shape) * self.dtype.itemsize
        self.view = self.host[:num_bytes].view(self.dtype).reshape(shape)


class ExecutionContext:
    """Runs one query at a time: ``start`` queues it, ``finish`` waits for it.

    Args:
        gpu: its context is current.
        io: of the engine.
        context: TensorRT's own, for this one alone.
        why: what the library last said of errors.
        with_graph: whether a CUDA graph is captured when shapes come for the second time.

    Raises:
        EngineError: an output's shape depends on the data, or the profile is taken.
        OutOfMemory: the GPU's memory is full.
    """

    def __init__(
        self, gpu: CudaDevice, io: EngineIo, context: Any, why: Callable[[], str], *, with_graph: bool
    ) -> None:
        self._gpu, self._io, self._context, self._why = gpu, io, context, why
        self.stream = gpu.stream()
        self._events: tuple[Any, ...] = tuple(gpu.event() for _ in range(4))
        self._queue: Callable[[], bool] = _nothing
        self._ports: dict[str, _Port] = {}
        self._with_graph, self._graph = with_graph, None
        self.notes: list[str] = []
        self.shapes: Shapes = ()
        self.num_runs, self._enqueue_ns = 0, 0  # Runs of the present shapes.
        self._profiler: Any = None
        self._profile = context.active_optimization_profile
        self._copies_in: tuple[Callable[[], None], ...] = ()
        self._copies_out: tuple[Callable[[], None], ...] = ()
        self._views_in: tuple[Array, ...] = ()
        self._views_out: tuple[tuple[str, Array], ...] = ()
        try:
            self._take_memory()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give everything back, once what is under way is done."""
        with contextlib.suppress(EngineError):  # It was raised before, by whoever waited.
            self._gpu.wait(self.stream)
        self._drop_graph()
        self._copies_in = self._copies_out = ()
        while self._ports:
            self._ports.popitem()[1].device.free()
        self._views_in, self._views_out = (), ()
        # In this order, and while the GPU's context is current: TensorRT's objects free memory of the GPU as they go.
        self._queue = _nothing
        self._context, self._events, self.stream = None, (), None
        self._profiler = None

    def start(self, arrays: Sequence[Array]) -> None:
        """Queue one query: of each input an array, contiguous or not, of the present ``shapes``.

        Raises:
            EngineError: the library or the driver refused.
        """
        if self.num_runs == 1 and self._with_graph:
            self._capture()
        stream = self.stream
        begin, copied, computed, end = self._events
        for view, array in zip(self._views_in, arrays):
            np.copyto(view, array)
        begin.record(stream)
        for copy in self._copies_in:
            copy()
        copied.record(stream)
        before_ns = time.perf_counter_ns()
        is_queued = self._queue()
        self._enqueue_ns = time.perf_counter_ns() - before_ns
        if not is_queued:
            raise EngineError(f"{self._io.path}: execution failed ({self._why()})")
        computed.record(stream)
        for copy in self._copies_out:
            copy()
        end.record(stream)
        self.num_runs += 1

    def finish(self) -> dict[str, Array]:
        """Wait for what was started; the outputs, in memory of their own."""
        self._gpu.wait(self.stream)
        return {name: view.copy() for name, view in self._views_out}

    def profile(self, profiler: Any) -> None:
        """Let an ``IProfiler`` hear of layers, whenever ``report`` is called after a query."""
        self._context.enqueue_emits_profile = False  # Else queueing would wait for every layer.
        self._context.profiler = self._profiler = profiler  # TensorRT holds its address alone.

    def report(self) -> None:
        """Tell the profiler the layers' times of the last query.

        Raises:
            EngineError: the library does not.
        """
        if not self._context.report_to_profiler():
            raise EngineError(f"{self._io.path}: layer times are not available ({self._why()})")

    def compute_ms(self) -> float:
        """Device time of the last query's computation alone."""
        return float(self._events[1].time_till(self._events[2]))

    def times(self) -> DeviceTimes:
        """Where the last query's time went."""
        begin, copied, computed, end = self._events
        return DeviceTimes(
            float(begin.time_till(copied)),
            float(copied.time_till(computed)),
            float(computed.time_till(end)),
            self._enqueue_ns / NS_PER_MS,
        )

    def set_shapes(self, shapes: Shapes) -> None:
        """Get ready for queries of these shapes, in the profile that holds them.

        Raises:
            EngineError: no profile holds them, or it cannot be used.
        """
        profile = self._io.profile_for(shapes)
        self.shapes = ()
        self._drop_graph()
        self._tell_shapes(profile, shapes)
        for spec, shape in zip(self._io.inputs, shapes):
            self._ports[spec.name].set_shape(shape)
        for spec in self._io.outputs:
            self._ports[spec.name].set_shape(self._output_shape(spec.name))
        inputs = [self._ports[spec.name] for spec in self._io.inputs]
        outputs = [self._ports[spec.name] for spec in self._io.outputs]
        gpu, stream = self._gpu, self.stream
        self._views_in = tuple(port.view for port in inputs)
        self._views_out = tuple((port.name, port.view) for port in outputs)
        self._copies_in = tuple(partial(gpu.copy_in, port.device, port.view, stream) for port in inputs)
        self._copies_out = tuple(partial(gpu.copy_out, port.view, port.device, stream) for port in outputs)
        self._queue = partial(self._context.execute_async_v3, stream.handle)
        self.num_runs, self.shapes = 0, shapes

    def _capture(self) -> None:
        """After one run in these shapes, as TensorRT asks for: the first may still set something up."""
        context, handle = self._context, self.stream.handle
        try:
            graph = self._gpu.capture(self.stream, lambda: bool(context.execute_async_v3(handle)))
        except NotCaptured as reason:
            self._with_graph = False
            self.notes.append(f"CUDA graph: not captured ({reason}; {self._why()}); queries are run kernel by kernel.")
            context.execute_async_v3(handle)  # CUDA tells the error to one caller: not to the next query.
            return
        self._graph = graph
        self._queue = graph.launch

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.free()

    def _take_memory(self) -> None:
        """For the largest shapes of any profile."""
        io = self._io
        num_items = dict.fromkeys((spec.name for spec in (*io.inputs, *io.outputs)), 0)
        for profile, ranges in enumerate(io.profiles):
            largest = tuple(shape_range.max for shape_range in ranges)
            self._tell_shapes(profile, largest)
            shapes = dict(zip((spec.name for spec in io.inputs), largest))
            shapes.update((spec.name, self._output_shape(spec.name)) for spec in io.outputs)
            num_items = {name: max(number, math.prod(shapes[name])) for name, number in num_items.items()}
        for spec in (*io.inputs, *io.outputs):
            self._ports[spec.name] = _Port(self._gpu, spec, num_items[spec.name])
        self._tell_addresses()

    def _tell_addresses(self) -> None:
        for name, port in self._ports.items():
            self._context.set_tensor_address(name, int(port.device))

    def _tell_shapes(self, profile: int, shapes: Shapes) -> None:
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, self.stream.handle):
                raise EngineError(
                    f"{self._io.path}: optimization profile {profile} cannot be used ({self._why()}); build it again"
                )
            self._gpu.wait(self.stream)
            self._profile = profile
            self._tell_addresses()
        for spec, shape in zip(self._io.inputs, shapes):
            if not self._context.set_input_shape(spec.name, shape):
                raise EngineError(
                    f"{self._io.path}: input '{spec.name}' is refused in shape {shape_text(shape)} ({self._why()}); "
                    "build with another shape range"
                )

    def _output_shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(name))
        if DYNAMIC in shape:
            raise EngineError(
                f"{self._io.path}: the shape of output '{name}', {shape_text(shape)}, depends on the data; this runner "
                "takes outputs whose shape follows from the inputs' shapes; cut the model before that node"
            )
        return shape
