"""Building an engine: everything that TensorRT and TensorRT-RTX have in common. ``trt`` is the module of either.

Only the name-based API is used (8.5 and later). What a generation can do is found out with ``hasattr``, never from its
version. One build leaves state behind in the library (a build after a failed one came out different), so that a build
wants a process of its own; its caller sees to that.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.contract import DYNAMIC, BuildOptions, EngineRecord
from engines.errors import EngineError, Unavailable
from engines.onnx_model import OnnxModelFacts, check_options, facts, shape_text

_LOG = logging.getLogger(__name__)

DEFAULT_OPTIMIZATION_LEVEL = BuildOptions.optimization_level


@dataclass(frozen=True)
class Family:
    """What differs between TensorRT and TensorRT-RTX."""

    name: str
    """The backend's name."""
    trt: Any
    """The module."""
    versions: Mapping[str, str]
    configure: Callable[[Any, BuildOptions], None]
    """Sets on an ``IBuilderConfig`` what only this member of the family has."""
    inspect: Callable[[bytes, OnnxModelFacts], tuple[int, tuple[str, ...]]]
    """From the plan and the model: number of products in integer arithmetic (-1: cannot tell), and notes."""


class ErrorTail:
    """The last error messages of the library: at most twelve."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=12)

    def add(self, line: str) -> None:
        """Keep one message."""
        self._lines.append(" ".join(line.split()))

    def clear(self) -> None:
        """Forget them all; at the start of a build."""
        self._lines.clear()

    def text(self) -> str:
        """The last two messages that say something of their own, in one line."""
        # Without a driver each failure is followed by CUDA error 35, which is not its cause.
        telling = [line for line in self._lines if "catchCudaError" not in line] or list(self._lines)
        return "; ".join(telling[-2:]) or "it gave no reason"


@functools.cache
def logger(trt: Any) -> tuple[Any, ErrorTail]:
    """The one logger of this process (TensorRT keeps the first it is given), and what it heard of errors."""
    tail = ErrorTail()
    levels = {"VERBOSE": logging.DEBUG, "INFO": logging.DEBUG}

    class Log(trt.ILogger):  # type: ignore[misc]
        """Errors are kept for the sentence that is raised; everything goes to Python's logging."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                tail.add(message)
            _LOG.log(levels.get(severity.name, logging.INFO), "%s: %s", trt.__name__, message)

    return Log(), tail


def build(family: Family, model: Path, engine: Path, options: BuildOptions) -> EngineRecord:
    """Build ``engine`` from the ONNX file ``model``.

    Raises:
        Unavailable: this generation or this machine cannot do what the options ask.
        EngineError: the parser or the builder refused the model, or an option does not fit it.
    """
    start = time.perf_counter()
    found = facts(model)
    check_options(found, options, model)
    trt = family.trt
    log, tail = logger(trt)
    tail.clear()
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # what pybind makes of a null pointer
        raise Unavailable(f"{family.name}: the builder does not start ({tail.text()}); look at nvidia-smi") from error
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        raise EngineError(f"{model}: {family.name} cannot take the model ({_parser_error(parser, tail)})")
    config = builder.create_builder_config()
    _configure(family, config, options)
    notes = _set_precision(trt, config, options)
    _add_profile(builder, config, network, options, (model, tail))
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{model}: {family.name} cannot build an engine ({tail.text()})")
    data = bytes(plan)
    engine.write_bytes(data)
    num_int8, more = family.inspect(data, found)
    return EngineRecord(
        backend=family.name,
        precision=options.precision,
        size_bytes=len(data),
        build_seconds=time.perf_counter() - start,
        versions=family.versions,
        inputs=found.inputs,
        outputs=found.outputs,
        num_quantizable=found.num_quantizable,
        num_int8=num_int8,
        notes=(*notes, *more),
    )


def _network_flags(trt: Any) -> int:
    """Explicit batch where that is a choice, strong typing where it exists: the ONNX file carries the precision."""
    known = trt.NetworkDefinitionCreationFlag
    names = [name for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED") if hasattr(known, name)]
    return sum(1 << int(getattr(known, name)) for name in names)


def _configure(family: Family, config: Any, options: BuildOptions) -> None:
    trt, level = family.trt, options.optimization_level
    if not 0 <= level <= 5:
        raise EngineError(f"{family.name}: optimization level {level} is asked for, it goes from 0 to 5; choose one")
    if options.workspace_mib < 1:
        raise EngineError(f"{family.name}: workspace is {options.workspace_mib} MiB; give at least 1")
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
    if hasattr(config, "builder_optimization_level"):
        config.builder_optimization_level = level
    elif level != DEFAULT_OPTIMIZATION_LEVEL:
        raise Unavailable(
            f"{family.name}: optimization level {level} is asked for, this version has none; leave it at "
            f"{DEFAULT_OPTIMIZATION_LEVEL}, or take TensorRT 8.6 or later"
        )
    family.configure(config, options)


def _set_precision(trt: Any, config: Any, options: BuildOptions) -> tuple[str, ...]:
    """Builder flags for the generations without strong typing. Returns notes for the record."""
    notes: tuple[str, ...] = ()
    if options.precision != "fp16" and config.get_flag(trt.BuilderFlag.TF32):
        notes = ("TF32 is on, as is the library's default: FP32 products may round their inputs to 10 bits.",)
    if hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") or options.precision == "fp32":
        return notes
    config.set_flag(trt.BuilderFlag.FP16)
    if options.precision == "fp16":
        return ("Weakly typed network with the FP16 flag: the builder may leave layers in FP32.",)
    config.set_flag(trt.BuilderFlag.INT8)
    return (*notes, "Weakly typed network with the INT8 and FP16 flags: what is not quantized may run in FP16.")


def _add_profile(builder: Any, config: Any, network: Any, options: BuildOptions, where: tuple[Path, ErrorTail]) -> None:
    """One optimization profile with a range for each dynamic input; none if all shapes are fixed."""
    model, tail = where
    values = [network.get_input(index) for index in range(network.num_inputs)]
    dynamic = {value.name: tuple(value.shape) for value in values if DYNAMIC in tuple(value.shape)}
    if not dynamic:
        return
    profile = builder.create_optimization_profile()
    for name, shape in dynamic.items():
        if name not in options.shapes:
            low, mid, high = (shape_text(tuple(size if n == DYNAMIC else n for n in shape)) for size in (1, 4, 16))
            raise EngineError(
                f"{model}: input '{name}' is {shape_text(shape)}, and no shape range is given for it; give its min, "
                f"opt and max shape, such as {low}, {mid} and {high}"
            )
        given = options.shapes[name]
        profile.set_shape(name, given.min, given.opt, given.max)
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"{model}: the shape ranges are refused ({tail.text()})")


def _parser_error(parser: Any, tail: ErrorTail) -> str:
    """The first error of the parser, with the ONNX node that it is about."""
    if not parser.num_errors:
        return tail.text()
    error = parser.get_error(0)
    words = " ".join(error.desc().split())
    if hasattr(error, "node_operator") and error.node_operator():
        return f"node '{error.node_name()}', {error.node_operator()}: {words}"
    return f"node {error.node()}: {words}" if error.node() >= 0 else words
