"""TensorRT 8.5 to 11, on the GPU it builds for: Jetson modules, and any GPU with the full library.

Where another interpreter has it (JetPack 5's Python 3.8), that one is asked: see ``engines/elsewhere``.
"""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.contract import Array, BuildOptions, EngineRecord, GpuUse, LayerTimes, Placement, StreamingRunner
from engines.cuda import device, libraries
from engines.elsewhere.backend import ElsewhereBackend, LibraryPlace, backend_elsewhere
from engines.elsewhere.worker import where_is
from engines.errors import Unavailable
from engines.model_format import ModelFormat
from engines.nvinfer import builder as nvinfer_builder
from engines.nvinfer import capability
from engines.nvinfer.builder_config import NVINFER_OPTIONS
from engines.nvinfer.inspection import Inspection, inspected
from engines.nvinfer.loading import EngineLoader
from engines.nvinfer.parser_answers import answer_by_parser
from engines.nvinfer.runner import AS_USUAL
from engines.onnx_model import OnnxModelFacts, facts, refuse_targets
from engines.refit.refitter import PlanRefitter
from engines.refitting import ChangedWeights, RefitOutcome
from engines.support import parser_limits
from engines.support.answers import InputShapes, SupportAnswer

NAME = "tensorrt"
TAKES: ModelFormat = "onnx"
PLACEMENT: Placement = "tensorrt"
CAN_BUILD = True
GPU = True
STREAMS = True
NEEDS_RANGES = True
REFUSES_NODES = True
HAS_LISTS = True
OBEYS: frozenset[str] = NVINFER_OPTIONS | {"external_kernels", "timing_cache"}
SUFFIX = ".plan"
INSTALL = (
    "on a Jetson: apt install python3-libnvinfer, and a venv made with --system-site-packages by the system's Python; "
    "elsewhere: pip install tensorrt 'trtforge[gpu]'"
)

_FIRST_NAMES = ("ICudaEngine", "num_io_tensors")  # what the name-based API of 8.5 brought


def why_not_build() -> str:
    """Empty if there are tensorrt and a driver with a GPU: kernels are chosen by timing them."""
    if (other := _elsewhere()) is not None:
        return other.why_not_build()
    if importlib.util.find_spec("tensorrt") is None:
        return f"tensorrt: is not installed; {INSTALL}"
    reason = device.why_no_gpu()
    return f"tensorrt: {reason}" if reason else ""


def why_not_run() -> str:
    """Empty if there are tensorrt, a driver with a GPU, and pycuda."""
    if (other := _elsewhere()) is not None:
        return other.why_not_run()
    if reason := why_not_build():
        return reason
    reason = device.why_no_pycuda()
    return f"tensorrt: {reason}" if reason else ""


def versions() -> dict[str, str]:
    """Version of TensorRT; driver, GPU and compute capability where there is one; cuDNN and cuBLAS if it takes kernels
    of theirs."""
    if (other := _elsewhere()) is not None:
        return other.versions()
    trt = _import()
    gpu = device.versions()
    external = gpu and capability.capability_of(trt).external_kernels
    return {"tensorrt": trt.__version__, **gpu, **(libraries.kernel_libraries() if external else {})}


def refuse(options: BuildOptions) -> None:
    """Raise Unavailable or EngineError if this version cannot do what is requested, as far as the options tell."""
    if (other := _elsewhere()) is not None:
        other.refuse(options)
        return
    refuse_targets(options, NAME)
    capability.refuse(capability.capability_of(_import()), options)


def refuse_model(model: Path) -> None:
    """Raise Unavailable if this version's parser does not read the model's opset or reductions."""
    if (other := _elsewhere()) is not None:
        other.refuse_model(model)
        return
    parser_limits.refuse_model(_import(), facts(model), model)


def why_not_ask() -> str:
    """Empty if its parser can be asked: with tensorrt, and a GPU, without which no builder starts."""
    return why_not_build()


def ask(model: Path, shapes: InputShapes) -> SupportAnswer:
    """What this version's parser says of each node."""
    if (other := _elsewhere()) is not None:
        return other.ask(model, shapes)
    if reason := why_not_ask():
        raise Unavailable(f"{reason}; the list of a version is asked with --generation, or [support] generation")
    return answer_by_parser(_import(), model, shapes)


def build(model: Path, engine: Path, options: BuildOptions) -> EngineRecord:
    """Build for the GPU of this machine.

    Raises:
        Unavailable: no tensorrt, no GPU, too old a version, or an option that this version does not have.
        EngineError: it refused the model, or an option does not fit the model.
    """
    if (other := _elsewhere()) is not None:
        return other.build(model, engine, options)
    refuse_targets(options, NAME)
    if reason := why_not_build():  # before anything of the library: without a driver some generations crash
        raise Unavailable(reason)
    family = nvinfer_builder.Family(NAME, _import(), versions(), _no_more, _inspect)
    return nvinfer_builder.build(family, model, engine, options)


def _import() -> Any:
    try:
        import tensorrt as trt
    except ImportError as error:
        raise Unavailable(f"tensorrt: cannot be imported ({error}); {INSTALL}") from error
    kind, name = _FIRST_NAMES
    if not hasattr(getattr(trt, kind), name):
        raise Unavailable(f"tensorrt: version {trt.__version__} is installed, 8.5 is the oldest that works; update it")
    return trt


def _no_more(config: Any, options: BuildOptions) -> None:
    """All that TensorRT has alone is decided by its names."""


def _inspect(plan: bytes, model_facts: OnnxModelFacts, options: BuildOptions) -> Inspection:
    trt = _import()
    return inspected(trt, nvinfer_builder.logger(trt)[0], plan, model_facts, options)


_LOADING = EngineLoader(NAME, _import, lambda: versions())


def refit(engine: Path, model: Path, target: Path, changed: ChangedWeights) -> RefitOutcome:
    """The weights of a model go into an engine of the same graph, on the GPU of this machine."""
    if (other := _elsewhere()) is not None:
        return other.refit(engine, model, target, changed)
    if reason := why_not_build():  # as for a build
        raise Unavailable(reason)
    return PlanRefitter(_LOADING, _inspect)(engine, model, target, changed)


def load(engine: Path, *, num_threads: int, use: GpuUse = AS_USUAL) -> StreamingRunner:
    """A runner on GPU 0. ``num_threads`` is for runtimes on the CPU."""
    if (other := _elsewhere()) is not None:
        return other.load(engine, num_threads, use)
    return _LOADING.load(engine, num_threads=num_threads, use=use)


def layer_times(engine: Path, feed: Mapping[str, Array], num_runs: int) -> LayerTimes:
    """By TensorRT's profiler, without CUDA graphs; memory by an allocator that counts."""
    if (other := _elsewhere()) is not None:
        return other.layer_times(engine, feed, num_runs)
    return _LOADING.layer_times(engine, feed, num_runs)


def process_id() -> int:
    """The process that engines run in; it is started where it is not this one."""
    return os.getpid() if (other := _elsewhere()) is None else other.process.process_id()


def place() -> LibraryPlace:
    """Where ``import tensorrt`` leads, in the interpreter that is asked for it.

    Raises:
        Unavailable: another one is named, and does not start.
    """
    distributions = (NAME, "pycuda")
    if (other := _elsewhere()) is not None:
        return other.place(NAME, *distributions)
    return LibraryPlace("", platform.python_version(), *where_is(NAME, distributions))


def _elsewhere() -> ElsewhereBackend | None:
    return backend_elsewhere(__name__, NAME)
