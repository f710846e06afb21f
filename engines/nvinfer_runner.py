"""Running an engine on the GPU: everything that TensorRT and TensorRT-RTX have in common.

Per run: copy into page-locked memory, copy to the device, ``execute_async_v3``, copy back, one stream, one wait at the
end. Memory is taken once, for the largest shapes of the engine's profile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engines.contract import DYNAMIC, Array, Runner, TensorSpec
from engines.errors import EngineError
from engines.feed import FeedCheck
from engines.nvinfer import ErrorTail, logger
from engines.onnx_model import shape_text

_DTYPES = {
    "BOOL": "bool",
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "INT8": "int8",
    "UINT8": "uint8",
}
"""Names of ``trt.DataType`` that numpy has too."""


class Gpu(Protocol):
    """The part of ``engines.cuda.Device`` that a runner uses."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def stream(self) -> Any: ...

    def event(self) -> Any: ...

    def allocate(self, num_bytes: int) -> Any: ...

    def pinned(self, num_bytes: int) -> npt.NDArray[np.uint8]: ...

    def copy_in(self, device: Any, host: Array, stream: Any) -> None: ...

    def copy_out(self, host: Array, device: Any, stream: Any) -> None: ...


class _Port:
    """One input or output: its spec, its memory on both sides, and how much of it the present shape uses."""

    def __init__(self, gpu: Gpu, spec: TensorSpec, largest: tuple[int, ...]) -> None:
        self.spec, self.dtype, self.largest = spec, np.dtype(spec.dtype), largest
        self.device = gpu.allocate(math.prod(largest) * self.dtype.itemsize)
        self.host = gpu.pinned(math.prod(largest) * self.dtype.itemsize)
        self.view: Array = np.empty(0, self.dtype)

    def set_shape(self, shape: tuple[int, ...]) -> None:
        """Let ``view`` be the host memory in ``shape``."""
        num_bytes = math.prod(shape) * self.dtype.itemsize
        self.view = self.host[:num_bytes].view(self.dtype).reshape(shape)


Preflight = Callable[[Path], Mapping[str, Any]]
"""Raises if the engine cannot run here, before anything of the library; gives the record beside the engine."""


def _trusting(_engine: Path) -> Mapping[str, Any]:
    """Lets the library itself say what it cannot run."""
    return {}


class NvinferRunner:
    """A deserialized engine with its execution context, on the GPU that ``open_gpu`` gives.

    Raises:
        Unavailable: on ``__enter__``, no driver, no GPU or no pycuda; or what ``preflight`` raises.
        EngineError: on ``__enter__``, the engine is of another version or for another GPU, or the GPU's memory is full.
    """

    def __init__(
        self, engine: Path, import_trt: Callable[[], Any], open_gpu: Callable[[], Gpu], preflight: Preflight = _trusting
    ) -> None:
        self._path, self._import_trt, self._open_gpu, self._preflight = engine, import_trt, open_gpu, preflight
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._device_ms: float | None = None
        self._ports: dict[str, _Port] = {}
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._stream: Any = None
        self._start: Any = None
        self._end: Any = None

    def __enter__(self) -> Runner:
        self._record = self._preflight(self._path)
        self._gpu = self._open_gpu()
        self._gpu.__enter__()  # before anything of TensorRT: without a driver its runtime crashes instead of raising
        try:
            self._load(self._import_trt())
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for port in self._ports.values():
            port.device.free()
        self._ports = {}
        # In this order, and while the context is current: TensorRT's objects free memory of the GPU as they go.
        self._context = self._engine = self._runtime = self._stream = self._start = self._end = None
        self._gpu.__exit__(kind, error, trace)

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        self._check(feed)
        shapes = tuple(feed[spec.name].shape for spec in self.inputs)
        if shapes != self._shapes:
            self._set_shapes(shapes)
        gpu, stream, ports = self._gpu, self._stream, self._ports
        for spec in self.inputs:
            port = ports[spec.name]
            np.copyto(port.view, feed[spec.name])
            gpu.copy_in(port.device, port.view, stream)
        self._start.record(stream)
        if not self._context.execute_async_v3(stream.handle):
            raise EngineError(f"{self._path}: execution failed ({self._tail.text()})")
        self._end.record(stream)
        for spec in self.outputs:
            port = ports[spec.name]
            gpu.copy_out(port.view, port.device, stream)
        stream.synchronize()
        self._device_ms = float(self._start.time_till(self._end))
        return {spec.name: ports[spec.name].view.copy() for spec in self.outputs}

    def device_ms(self) -> float | None:
        """Milliseconds between the start and the end of execution on the GPU, copies not included."""
        return self._device_ms

    def _load(self, trt: Any) -> None:
        log, self._tail = logger(trt)
        self._tail.clear()
        runtime = self._runtime = trt.Runtime(log)
        if self._record.get("options", {}).get("version_compatible"):
            runtime.engine_host_code_allowed = True  # The lean runtime inside; the record says that we put it there.
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise EngineError(f"{self._path}: cannot be read ({error}); build it again") from error
        engine = self._engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EngineError(_refused(self._path, self._tail))
        context = self._context = engine.create_execution_context()
        if context is None:
            raise EngineError(f"{self._path}: no execution context ({self._tail.text()}); is the GPU's memory full?")
        self._stream, self._start, self._end = self._gpu.stream(), self._gpu.event(), self._gpu.event()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        specs = {name: _spec(trt, engine, name, self._path) for name in names}
        is_input = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = tuple(specs[name] for name in names if is_input[name])
        self.outputs = tuple(specs[name] for name in names if not is_input[name])
        self._smallest: dict[str, tuple[int, ...]] = {}
        for spec in self.inputs:
            low, _, high = engine.get_tensor_profile_shape(spec.name, 0)
            self._smallest[spec.name] = tuple(low)
            self._ports[spec.name] = _Port(self._gpu, spec, tuple(high))
            context.set_input_shape(spec.name, tuple(high))
        for spec in self.outputs:
            self._ports[spec.name] = _Port(self._gpu, spec, self._output_shape(spec.name))
        for name, port in self._ports.items():
            context.set_tensor_address(name, int(port.device))
        self._check = FeedCheck(self._path, self.inputs)
        self._shapes: tuple[tuple[int, ...], ...] = ()

    def _set_shapes(self, shapes: tuple[tuple[int, ...], ...]) -> None:
        self._shapes = ()
        for spec, shape in zip(self.inputs, shapes, strict=True):
            low, high = self._smallest[spec.name], self._ports[spec.name].largest
            inside = all(small <= n <= large for small, n, large in zip(low, shape, high, strict=True))
            if not inside or not self._context.set_input_shape(spec.name, shape):
                raise EngineError(
                    f"{self._path}: input '{spec.name}' has shape {shape_text(shape)}, the engine's profile goes from "
                    f"{shape_text(low)} to {shape_text(high)}; change the batch, or build with another shape range"
                )
            self._ports[spec.name].set_shape(shape)
        for spec in self.outputs:
            self._ports[spec.name].set_shape(self._output_shape(spec.name))
        self._shapes = shapes

    def _output_shape(self, name: str) -> tuple[int, ...]:
        shape = tuple(self._context.get_tensor_shape(name))
        if DYNAMIC in shape:
            raise EngineError(
                f"{self._path}: the shape of output '{name}', {shape_text(shape)}, depends on the data; this runner "
                "takes outputs whose shape follows from the inputs' shapes; cut the model before that node"
            )
        return shape


def _spec(trt: Any, engine: Any, name: str, path: Path) -> TensorSpec:
    kind = engine.get_tensor_dtype(name).name
    if kind not in _DTYPES:
        raise EngineError(f"{path}: '{name}' is {kind}, numpy has no such type; cast it to FP32 inside the model")
    if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
        raise EngineError(f"{path}: '{name}' is a shape tensor in host memory; make it a constant of the model")
    return TensorSpec(name, _DTYPES[kind], tuple(engine.get_tensor_shape(name)))


def _refused(path: Path, tail: ErrorTail) -> str:
    return (
        f"{path}: the engine cannot be loaded ({tail.text()}); an engine runs on the version and the kind of GPU that "
        "it was built for: build it again here"
    )
