"""Times of a `.tflite` file's operators by LiteRT's own profiler, which the C library of its wheel has, and Python not.

The calls and structures are those of `litert/c/*.h` in google-ai-edge/LiteRT, and change with its releases: only those
in ``KNOWN`` are called. The profiler counts whole microseconds and drops what is below, so that kernels of one or two
are told too short, and some not at all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.contract import Array, LayerFacts
from engines.errors import EngineError
from engines.litert.facts import PRODUCTS, TfliteFacts

KNOWN = ("2.3.",)
"""How the versions of ai-edge-litert begin whose library is called."""
LIBRARY = "libLiteRt.so"
OPTIONS = {b"runtime_options_string": b"enable_profiling = true\n", b"xnnpack": b"num_threads = 1\n"}
CPU, WRITING = 1, 1
"""LiteRtHwAccelerators, and LiteRtTensorBufferLockMode."""
OPERATOR, OPERATOR_OF_DELEGATE = 2, 8
"""LiteRtProfilerEventType: the runtime's own kernel, and one of XNNPACK's."""
NUM_UNTOLD = 2
"""Runs before those that are told."""
PRODUCT_WORDS = ("Convolution", "Fully Connected", "Deconvolution", "Batch Matrix Multiply")
"""How XNNPACK's kernels of convolutions and matrix products begin; one with a 1 x 1 kernel is `Fully Connected`."""


class _TensorType(ctypes.Structure):
    """LiteRtRankedTensorType, handed through as it is; 72 bytes there."""

    _fields_ = (("bytes", ctypes.c_uint8 * 128),)


class _Event(ctypes.Structure):
    """ProfiledEventData."""

    _fields_ = (
        ("tag", c_char_p),
        ("kind", c_int),
        ("start_us", c_uint64),
        ("elapsed_us", c_uint64),
        ("memory", c_size_t * 6),
        ("operator", c_uint64),
        ("subgraph", c_uint64),
        ("source", c_int),
    )


@dataclass(frozen=True)
class KernelTime:
    """One kernel that ran."""

    name: str
    """The runtime's word for it: ``Convolution (NHWC, QC8) IGEMM``, ``SOFTMAX``."""
    operator: int | None
    """The number of the file's operator; None where XNNPACK ran it, which numbers its own."""
    times_ms: tuple[float, ...]
    """Of each run."""


def is_known(version: str) -> bool:
    """Whether the library of this version of ai-edge-litert has the calls that are made here."""
    return version.startswith(KNOWN)


def kernel_times(library: Path, model: Path, feed: Sequence[Array], num_runs: int) -> tuple[KernelTime, ...]:
    """What each kernel of the file took in each of ``num_runs`` runs with one thread; the kernels in their order.

    Args:
        library: of the wheel.
        model: a `.tflite` file.
        feed: the inputs of its first signature, in that order, of the types of the file.
        num_runs: beside the first few, which are not told.

    Raises:
        EngineError: a call of the library fails.
    """
    with _Profiled(library, model) as profiled:
        profiled.write(feed)
        for _ in range(NUM_UNTOLD):
            profiled.run()
        runs = [profiled.run() for _ in range(num_runs)]
    if len({tuple(event[:2] for event in run) for run in runs}) != 1:
        raise EngineError(f"{model}: LiteRT ran other kernels from run to run, whose times cannot be told")
    return tuple(
        KernelTime(name, operator, tuple(run[place][2] / 1000 for run in runs))
        for place, (name, operator, _) in enumerate(runs[0])
    )


def layers_of(times: Sequence[KernelTime], facts: TfliteFacts) -> tuple[dict[str, list[float]], tuple[LayerFacts, ...]]:
    """By each layer's name the milliseconds of each run, and the layers.

    A kernel of the runtime's own is the file's operator. XNNPACK's convolutions and matrix products are those of the
    file in their order, if there are as many as it has beside the runtime's own; its other kernels stand by its words.
    """
    operators = facts.main_operators
    left = {time.operator for time in times}
    products = [each for n, each in enumerate(operators) if each.kind in PRODUCTS and n not in left]
    kernels = [time for time in times if time.operator is None and time.name.startswith(PRODUCT_WORDS)]
    waiting = list(reversed(products)) if len(products) == len(kernels) else []
    times_ms: dict[str, list[float]] = {}
    layers = []
    for time in times:
        if time.operator is not None and time.operator < len(operators):
            layer = operators[time.operator].layer()
        elif waiting and time in kernels:
            layer = waiting.pop().layer()
            layer = LayerFacts(layer.name, time.name, layer.precision, layer.nodes)
        else:
            layer = LayerFacts(time.name, time.name, "", ())
        name, number = layer.name, 1
        while name in times_ms:
            number += 1
            name = f"{layer.name} {number}"
        layers.append(LayerFacts(name, layer.kind, layer.precision, layer.nodes))
        times_ms[name] = list(time.times_ms)
    return times_ms, tuple(layers)


class _Profiled:
    """A file compiled with the profiler on, and buffers for its first signature."""

    def __init__(self, library: Path, model: Path) -> None:
        self._model_path, self._calls = model, ctypes.CDLL(str(library))
        self._libc = ctypes.CDLL(None)
        self._libc.strdup.restype, self._libc.strdup.argtypes = c_void_p, [c_char_p]
        self._closing: list[tuple[str, c_void_p]] = []

    def __enter__(self) -> _Profiled:
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        while self._closing:
            name, handle = self._closing.pop()
            function = getattr(self._calls, name)
            function.restype = None
            function(handle)

    def write(self, feed: Sequence[Array]) -> None:
        """Fill the inputs."""
        for buffer, array in zip(self._inputs, feed):
            address = c_void_p()
            self._call("LiteRtLockTensorBuffer", c_void_p(buffer), byref(address), c_int(WRITING))
            assert address.value is not None
            ctypes.memmove(address.value, array.tobytes(), array.nbytes)
            self._call("LiteRtUnlockTensorBuffer", c_void_p(buffer))

    def run(self) -> list[tuple[str, int | None, int]]:
        """Run once: of each kernel its name, the operator's number, and microseconds."""
        self._call("LiteRtResetProfiler", self._profiler)
        self._call("LiteRtStartProfiler", self._profiler)
        sides = (c_size_t(len(self._inputs)), self._inputs, c_size_t(len(self._outputs)), self._outputs)
        self._call("LiteRtRunCompiledModel", self._compiled, c_size_t(0), *sides)
        self._call("LiteRtStopProfiler", self._profiler)
        num = c_int()
        self._call("LiteRtGetNumProfilerEvents", self._profiler, byref(num))
        events = (_Event * num.value)()
        self._call("LiteRtGetProfilerEvents", self._profiler, num, events)
        kernels = [event for event in events if event.kind in (OPERATOR, OPERATOR_OF_DELEGATE) and event.tag]
        numbers = [int(event.operator) if event.kind == OPERATOR else None for event in kernels]
        return [(event.tag.decode(errors="replace"), n, event.elapsed_us) for event, n in zip(kernels, numbers)]

    def _open(self) -> None:
        self._environment = self._made("LiteRtCreateEnvironment", "LiteRtDestroyEnvironment", c_int(0), None)
        path = str(self._model_path).encode()
        model = self._made("LiteRtCreateModelFromFile", "LiteRtDestroyModel", self._environment, c_char_p(path))
        options = self._made("LiteRtCreateOptions", "LiteRtDestroyOptions")
        self._call("LiteRtSetOptionsHardwareAccelerators", options, c_int(CPU))
        for whose, text in OPTIONS.items():
            opaque, copy = c_void_p(), c_void_p(self._libc.strdup(text))
            free = ctypes.cast(self._libc.free, c_void_p)
            self._call("LiteRtCreateOpaqueOptions", c_char_p(whose), copy, free, byref(opaque))
            self._call("LiteRtAddOpaqueOptions", options, opaque)  # Which owns them from now on.
        compiled = ("LiteRtCreateCompiledModel", "LiteRtDestroyCompiledModel")
        self._compiled = self._made(*compiled, self._environment, model, options)
        self._profiler = c_void_p()
        self._call("LiteRtCompiledModelGetProfiler", self._compiled, byref(self._profiler))
        signature = c_void_p()
        self._call("LiteRtGetModelSignature", model, c_size_t(0), byref(signature))
        self._inputs, self._outputs = self._buffers("Input", signature), self._buffers("Output", signature)

    def _buffers(self, side: str, signature: c_void_p) -> Any:
        num = c_size_t()
        self._call(f"LiteRtGetNumSignature{side}s", signature, byref(num))
        buffers = (c_void_p * num.value)()
        for place in range(num.value):
            tensor, requirements, type_of = c_void_p(), c_void_p(), _TensorType()
            self._call(f"LiteRtGetSignature{side}TensorByIndex", signature, c_size_t(place), byref(tensor))
            self._call("LiteRtGetRankedTensorType", tensor, byref(type_of))
            get = f"LiteRtGetCompiledModel{side}BufferRequirements"
            self._call(get, self._compiled, c_size_t(0), c_size_t(place), byref(requirements))
            make = ("LiteRtCreateManagedTensorBufferFromRequirements", "LiteRtDestroyTensorBuffer")
            buffers[place] = self._made(*make, self._environment, byref(type_of), requirements).value
        return buffers

    def _made(self, create: str, destroy: str, *arguments: Any) -> c_void_p:
        """What a call makes; it is destroyed at the end."""
        handle = c_void_p()
        self._call(create, *arguments, byref(handle))
        self._closing.append((destroy, handle))
        return handle

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._calls, name)(*arguments)
        if status:
            raise EngineError(f"{self._model_path}: LiteRT's profiler failed ({name}: status {status})")
