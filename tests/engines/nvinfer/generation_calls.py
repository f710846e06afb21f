"""One generation of TensorRT, on its real bindings: what we find it can do, and our classes called as it calls them.

Usage: python generation_calls.py MODULE, with the bindings on PYTHONPATH; run by test_generations.py. Prints JSON. The
calls go through the objects' tables of virtual functions, as in builder_calls.py: a logger's is log (from TensorRT 11
on after the four of IVersionedInterface), a progress monitor's are phaseStart, stepComplete and phaseFinish after four,
a profiler's is reportLayerTime (from 11 on after four), an allocator's are allocate, free, two destructors, reallocate
and deallocate in TensorRT 8, from 10 on allocate, reallocate, deallocate, allocateAsync and deallocateAsync after four.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import onnx.parser

from engines.contract import BuildOptions, GivenScales
from engines.errors import EngineError, Unavailable
from engines.nvinfer import builder
from engines.nvinfer.allocator import counting_allocator
from engines.nvinfer.builder import logger
from engines.nvinfer.builder_config import network_flags
from engines.nvinfer.capability import capability_of, typing_for
from engines.nvinfer.inspection import Inspection
from engines.nvinfer.layer_profiler import layer_profiler
from engines.nvinfer.progress import progress_monitor
from engines.nvinfer.runner import NvinferRunner
from tests.engines.nvinfer.pretended import PretendedGpu

ROOM = ctypes.sizeof(ctypes.c_void_p)
NUM_BEFORE_LOG = {"11": 4}
NUM_BEFORE_REPORT = {"11": 4}
WORD, SIZE = ctypes.c_void_p, ctypes.c_uint64
HALF = """<ir_version: 9, opset_import: ["" : 19]> half (float16[2, 3] x) => (float16[2, 3] y)
<float16 s = {14336}, int8 z = {0}> { q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }"""
"""The scale is 0.5, which ONNX's syntax has as its bits."""
REDUCTIONS = {
    f"{operator} {opset}": f"""<ir_version: 8, opset_import: ["" : {opset}]> g (float[2, 3] x) => (float[2, 1] y)
    <int64[1] axes = {{1}}> {{ y = {operator}(x, axes) }}"""
    for operator, opset in (("ReduceMean", 18), ("ReduceMean", 17), ("ReduceSum", 17))
}
"""ReduceMean of opset 17 has no such input; who makes one passes the parser of 8 by."""


def virtual(made: Any, index: int, result: Any, *arguments: Any) -> Any:
    """The virtual function at ``index`` of a C++ object that pybind11 keeps behind Python's header."""
    this = ctypes.c_void_p.from_address(id(made) + 2 * ROOM).value or 0
    table = ctypes.c_void_p.from_address(this).value or 0
    address = ctypes.c_void_p.from_address(table + ROOM * index).value or 0
    function = ctypes.PYFUNCTYPE(result, ctypes.c_void_p, *arguments)(address)
    return lambda *given: function(this, *given)


def logged(trt: Any) -> dict[str, Any]:
    """An error, a warning and an information, as C++ logs them."""
    made, tail = logger(trt)
    tail.clear()
    log = virtual(made, NUM_BEFORE_LOG.get(major(trt), 0), None, ctypes.c_int32, ctypes.c_char_p)
    log(int(trt.ILogger.ERROR), b"it broke")
    log(int(trt.ILogger.WARNING), b"it may break")
    log(int(trt.ILogger.INFO), b"it is well")
    return {"real": isinstance(made, trt.ILogger), "error": tail.text(), "warnings": list(tail.warnings)}


def progressed(trt: Any) -> dict[str, Any]:
    """Two phases, one within the other, as C++ goes through them."""
    told: list[tuple[str, int, int]] = []
    made = progress_monitor(trt, lambda *what: told.append(what))
    start = virtual(made, 4, None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int32)
    step = virtual(made, 5, ctypes.c_bool, ctypes.c_char_p, ctypes.c_int32)
    finish = virtual(made, 6, None, ctypes.c_char_p)
    start(b"Building", None, 2)
    start(b"Timing", b"Building", 40)
    goes_on = [step(b"Timing", 0), step(b"Building", 0)]
    finish(b"Timing")
    finish(b"Building")
    deaf = progress_monitor(trt, deaf_ear)
    virtual(deaf, 4, None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int32)(b"Building", None, 2)
    goes_on.append(virtual(deaf, 5, ctypes.c_bool, ctypes.c_char_p, ctypes.c_int32)(b"Building", 0))
    return {"real": isinstance(made, trt.IProgressMonitor), "told": told, "goes_on": goes_on}


def profiled(trt: Any) -> dict[str, Any]:
    """Two runs of two layers, of which one is told twice in each run."""
    made = layer_profiler(trt)
    tell = virtual(made, NUM_BEFORE_REPORT.get(major(trt), 0), None, ctypes.c_char_p, ctypes.c_float)
    for run in (1, 2):
        made.begin_run()
        for name, time_ms in ((b"conv", 0.5 * run), (b"copy", 0.25), (b"copy", 0.25)):
            tell(name, time_ms)
    return {"real": isinstance(made, trt.IProfiler), "times_ms": made.times_ms}


class Memory:
    """Device memory in pretence: 256 bytes apart, and 1000 bytes in all."""

    given = 0
    freed: list[int] = []  # noqa: RUF012  of the whole process

    def __init__(self, num_bytes: int) -> None:
        if num_bytes > 1000:
            raise EngineError("full")
        Memory.given += 1
        self.address = 0x7F00_0000_0000 + 256 * Memory.given

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        Memory.freed.append(Memory.given)


def allocated(trt: Any) -> dict[str, Any]:
    """Taken, too much, nothing, resized, and given back; from TensorRT 10 on also on a stream."""
    made = counting_allocator(trt, Memory)
    first = 0 if major(trt) == "8" else 4
    take = virtual(made, first, WORD, SIZE, SIZE, ctypes.c_uint32)
    grow = virtual(made, first + (4 if major(trt) == "8" else 1), WORD, WORD, SIZE, SIZE)
    give = virtual(made, first + (5 if major(trt) == "8" else 2), ctypes.c_bool, WORD)
    one, two = take(600, 256, 0), take(300, 256, 0)
    said = {"real": isinstance(made, trt.IGpuAllocator), "apart": two - one, "in use": made.num_bytes}
    said["nothing"] = [take(2000, 256, 0), take(0, 256, 0), grow(one, 256, 700)]
    said["given back"] = [give(one), give(one), give(None)]
    if major(trt) == "8":
        virtual(made, first + 1, None, WORD)(two)
    else:
        on_stream = virtual(made, first + 3, WORD, SIZE, SIZE, ctypes.c_uint32, WORD)(50, 256, 0, 7)
        said["on a stream"] = [on_stream - two, virtual(made, first + 4, ctypes.c_bool, WORD, WORD)(two, 7)]
        give(on_stream)
    return {**said, "left": made.num_bytes, "peak": made.peak_bytes, "freed": len(Memory.freed)}


def major(trt: Any) -> str:
    return str(trt.__version__).split(".")[0] if trt.__name__ != "tensorrt_rtx" else "10"


def deaf_ear(*_what: object) -> None:
    raise OSError("nobody listens any more")


def flags(trt: Any, precision: str, *, native: bool) -> list[str]:
    """The names of the network's flags for an ordinary build."""
    found = capability_of(trt)
    options = BuildOptions(precision, native=GivenScales(b"") if native else None)
    bits = network_flags(trt, found, typing_for(found, options))
    kind = trt.NetworkDefinitionCreationFlag
    return sorted(name for name, value in kind.__members__.items() if bits & 1 << int(value))


def refusal(trt: Any, text: str, precision: str) -> str:
    """What a build says of a model; where it takes it, of the GPU that is not there."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        network = onnx.parser.parse_model(text)
        network.graph.node[0].name = "mean"  # Not in the text: the parser of onnx for Python 3.8 takes no names.
        onnx.save(network, model)
        family = builder.Family("tensorrt", trt, {}, lambda _config, _options: None, lambda *_seen: Inspection(0))
        try:
            builder.build(family, model, Path(folder) / "engine", BuildOptions(precision))
        except Unavailable as error:
            return str(error).replace(f"{folder}/", "")
    return ""


def runtime(trt: Any) -> str:
    """What a runner says where the runtime does not start, as under too old a driver: the stub gives a null pointer."""
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "engine.plan"
        plan.write_bytes(b"ftrt")
        try:
            with NvinferRunner(plan, lambda: trt, PretendedGpu):
                return ""
        except Unavailable as error:
            return str(error).replace(f"{folder}/", "")


def main() -> None:
    trt = importlib.import_module(sys.argv[1])
    found = capability_of(trt)
    said: dict[str, Any] = {"capability": asdict(found), "logged": logged(trt)}
    said["flags"] = {"int8": flags(trt, "int8", native=False), "native": flags(trt, "int8", native=True)}
    said.update({"profiled": profiled(trt), "allocated": allocated(trt)})
    if not found.ahead_of_time:
        said.update({"half scales": refusal(trt, HALF, "int8"), "runtime": runtime(trt)})
        said.update({name: refusal(trt, text, "fp32") for name, text in REDUCTIONS.items()})
    if found.progress:
        said["progressed"] = progressed(trt)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
