"""LiteRT, once TensorFlow Lite: `.tflite` files on CPUs, such as a Raspberry Pi's. An engine is the file itself."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

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
from engines.layers import layer_times_from, num_layers_by_precision
from engines.litert.checks import check_operators, check_precision, check_specs, listed
from engines.litert.delegated import operators_left
from engines.litert.edgetpu import first_on_cpu
from engines.litert.edgetpu import notes as edgetpu_notes
from engines.litert.edgetpu_compiler import compiled, compiler
from engines.litert.facts import FLOATS, TfliteFacts, facts_from_file
from engines.litert.io_rounding import quantizer, restorer
from engines.litert.node_answers import answer_of
from engines.litert.probe import relu_model
from engines.litert.profiler import LIBRARY, is_known, kernel_times, layers_of
from engines.model_format import ModelFormat
from engines.onnx_model import refuse_tensorrt
from engines.precision import FP32, precision_named
from engines.quiet import quiet
from engines.support.answers import InputShapes, SupportAnswer

NAME = "litert"
TAKES: ModelFormat = "tflite"
PLACEMENT: Placement = "none"
CAN_BUILD = True
GPU = False
STREAMS = False
NEEDS_RANGES = False
REFUSES_NODES = False
HAS_LISTS = False
OBEYS: frozenset[str] = frozenset({"edgetpu"})
SUFFIX = ".tflite"
INSTALL = "pip install 'trtforge[litert]'"

DISTRIBUTION = "ai-edge-litert"
XNNPACK, BUILT_IN = "XNNPACK", "built-in"
"""Whose kernels run. Their answers differ: a verdict on the one says nothing of the other."""
EDGETPU_BITS = 8


def why_not_build() -> str:
    """Empty if ai-edge-litert is installed."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        return f"litert: is not installed; {INSTALL}"
    return ""


def why_not_run() -> str:
    """Empty if ai-edge-litert is installed."""
    return why_not_build()


def versions() -> dict[str, str]:
    """The version of LiteRT, whose kernels it runs, and the CPU with the instructions that they choose by."""
    _import()
    return {DISTRIBUTION: importlib.metadata.version(DISTRIBUTION), "kernels": _kernels(), **cpu.versions()}


def refuse(options: BuildOptions) -> None:
    """Raise Unavailable if something of TensorRT's is requested."""
    refuse_tensorrt(options, NAME)


def why_not_ask() -> str:
    """Empty if ai-edge-litert is installed."""
    return why_not_build()


def ask(model: Path, _shapes: InputShapes) -> SupportAnswer:
    """Whose kernels each operator runs in; of the shapes that the file has."""
    facts = tflite_facts(model)
    operators = facts.main_operators
    is_whole = not any(operator.is_custom for operator in facts.operators)
    details = _opened(model, 1)._get_ops_details() if is_whole else ()
    left = operators_left(details, len(operators)) if is_whole else range(len(operators))
    source = f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"
    return answer_of(facts, source, set(left), (XNNPACK, BUILT_IN))


def build(model: Path, engine: Path, options: BuildOptions) -> EngineRecord:
    """Check that LiteRT takes the file and that it is of the precision throughout, and keep it as the engine.

    Raises:
        Unavailable: ai-edge-litert is not installed, or something of TensorRT's is requested.
        EngineError: LiteRT refuses the file, it has a dynamic shape, or what is to be integers is in floating point.
    """
    _import()
    refuse(options)
    start = time.perf_counter()
    facts = facts_from_file(_schema(), model)
    inputs, outputs = facts.specs(facts.inputs), facts.specs(facts.outputs)
    check_operators(facts, model)
    check_specs(inputs, options, model)
    check_precision(facts, options.precision, model)
    for_edgetpu = _edgetpu_notes(facts, model) if _is_for_edgetpu(options) else []
    interpreter = _opened(model, 1)
    shutil.copyfile(model, engine)
    layers = tuple(operator.layer() for operator in facts.operators)
    return EngineRecord(
        backend=NAME,
        precision=options.precision,
        size_bytes=engine.stat().st_size,
        build_seconds=time.perf_counter() - start,
        versions=versions(),
        inputs=inputs,
        outputs=outputs,
        num_quantizable=len(facts.products),
        num_int8=len(facts.in_integers()) + len(facts.with_integer_weights()),
        num_4_bits=facts.num_4_bits(),
        notes=(*_notes(facts, interpreter), *for_edgetpu),
        options={"edgetpu": True} if for_edgetpu else {},
        layers=layers,
        layers_from="the .tflite file",
        num_layers_by_precision=num_layers_by_precision(layers),
    )


def load(engine: Path, *, num_threads: int) -> Runner:
    """LiteRT as a user would run it: with its default delegate, XNNPACK. ``num_threads`` 0 is LiteRT's default, 1."""
    return _LiteRtRunner(engine, num_threads)


def load_values(engine: Path, *, num_threads: int) -> Runner:
    """As ``load``, by the built-in kernels, with every tensor that is computed in floating point among the outputs.

    Tensors in integers that stand for such are among them too, restored. By the tensors' own names, so they must be
    unique. May be called by several threads, one after the other.
    """
    return _ValuesRunner(engine, num_threads)


def layer_times(engine: Path, feed: Mapping[str, Array], num_runs: int) -> LayerTimes:
    """By LiteRT's own profiler, with one thread; none where this version's library is not known.

    Nor of a runtime without XNNPACK, which the library would run all the same.
    """
    library = Path(_import().__file__).with_name(LIBRARY)
    is_here = is_known(importlib.metadata.version(DISTRIBUTION)) and library.is_file()
    if not is_here or _kernels() == BUILT_IN:
        return LayerTimes()
    facts = tflite_facts(engine)
    FeedCheck(engine, facts.specs(facts.inputs))(feed)
    arrays = [
        np.ascontiguousarray(feed[name] if (quantize := quantizer(tensor)) is None else quantize(feed[name]))
        for name, tensor in facts.inputs
    ]
    with quiet():
        times = kernel_times(library, engine, arrays, num_runs)
    return LayerTimes(layer_times_from(*layers_of(times, facts)))


def tflite_facts(path: Path, *, unsigned: bool = False) -> TfliteFacts:
    """What a `.tflite` file says of itself; with ``unsigned`` also one without a signature, by the tensors' names.

    Raises:
        Unavailable: ai-edge-litert is not installed.
        EngineError: the file cannot be read.
    """
    _import()
    return facts_from_file(_schema(), path, unsigned=unsigned)


def check_float(path: Path) -> None:
    """That precisions can be written into a file: it is float, has operators that are known, and fixed shapes.

    Raises:
        Unavailable: ai-edge-litert is not installed.
        EngineError: it is not so, or cannot be read.
    """
    facts = tflite_facts(path)
    check_operators(facts, path)
    check_specs(facts.specs(facts.inputs), BuildOptions(), path)
    if (written := facts.precision()) != FP32.name:
        raise EngineError(
            f"{path}: is in {written} already, so that there is nothing to calibrate or to write; give the float file"
        )


def schema() -> Any:
    """The module that the format's schema was compiled to.

    Raises:
        Unavailable: ai-edge-litert is not installed.
    """
    _import()
    return _schema()


class _LiteRtRunner:
    """One interpreter; the file's batch is fixed."""

    def __init__(self, engine: Path, num_threads: int) -> None:
        self._engine, self._num_threads = engine, num_threads
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()

    def __enter__(self) -> Runner:
        _import()
        facts = facts_from_file(_schema(), self._engine)
        self.inputs, self.outputs = facts.specs(facts.inputs), facts.specs(facts.outputs)
        check_operators(facts, self._engine)
        check_specs(self.inputs, BuildOptions(), self._engine)
        self._open(facts)
        self._feeds = tuple((name, tensor.index, quantizer(tensor)) for name, tensor in facts.inputs)
        self._answers = tuple((name, tensor.index, restorer(tensor)) for name, tensor in facts.outputs)
        self._check = FeedCheck(self._engine, self.inputs)
        return self

    def _open(self, _facts: TfliteFacts) -> None:
        self._interpreter = _opened(self._engine, self._num_threads)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._interpreter

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        self._check(feed)
        interpreter = self._interpreter
        try:
            for name, index, quantize in self._feeds:
                interpreter.set_tensor(index, feed[name] if quantize is None else quantize(feed[name]))
            interpreter.invoke()
            return {
                name: interpreter.get_tensor(index) if restore is None else restore(interpreter.get_tensor(index))
                for name, index, restore in self._answers
            }
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"{self._engine}: LiteRT failed ({_words(error)})") from error

    def device_ms(self) -> float | None:
        return None

    def facts(self) -> RunnerFacts:
        return RunnerFacts()


class _ValuesRunner(_LiteRtRunner):
    """Keeps what every operator computes."""

    def _open(self, facts: TfliteFacts) -> None:
        if not facts.names_are_unique():
            raise EngineError(
                f"{self._engine}: two of its tensors have one name, and ranges go by names; convert the network with "
                "`trtforge convert`"
            )
        self._interpreter = _opened(self._engine, self._num_threads, values=True)
        tensors = [tensor for each in facts.main_operators for tensor in each.outputs]
        tensors += [tensor for _, tensor in facts.inputs]
        self._watched = {
            tensor.name: (tensor.index, restorer(tensor))
            for tensor in tensors
            if tensor.type in FLOATS or len(tensor.scales) == 1
        }
        self._lock = threading.Lock()

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock:
            super().infer(feed)
            values = self._interpreter.get_tensor
            return {
                name: values(index) if restore is None else restore(values(index))
                for name, (index, restore) in self._watched.items()
            }


def _import() -> Any:
    try:
        from ai_edge_litert import interpreter
    except ImportError as error:
        raise Unavailable(f"litert: cannot be imported ({_words(error)}); {INSTALL}") from error
    return interpreter


def _schema() -> Any:
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


@functools.cache
def _kernels() -> str:
    """Whose kernels the runtime has: those of the delegate that it takes by itself, if it takes one."""
    import flatbuffers

    with quiet():
        interpreter = _import().Interpreter(model_content=relu_model(_schema(), flatbuffers), num_threads=1)
        interpreter.allocate_tensors()
    return XNNPACK if len(interpreter._get_ops_details()) > 1 else BUILT_IN


def _opened(path: Path, num_threads: int, *, values: bool = False) -> Any:
    """An interpreter that is ready; with ``values``, one that keeps all of them, by the built-in kernels."""
    lite = _import()
    how = {}
    if values:
        kind = lite.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        how = {"experimental_preserve_all_tensors": True, "experimental_op_resolver_type": kind}
    try:
        with quiet():
            interpreter = lite.Interpreter(model_path=str(path), num_threads=num_threads or None, **how)
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise EngineError(f"{path}: LiteRT refuses the file ({_words(error)}); convert it again") from error
    return interpreter


def _is_for_edgetpu(options: BuildOptions) -> bool:
    """Other precisions than its own are built as they are, for the CPU."""
    precision = precision_named(options.precision)
    return options.edgetpu and precision.has_scales and precision.weight_bits == EDGETPU_BITS


def _edgetpu_notes(facts: TfliteFacts, path: Path) -> list[str]:
    """What the rules of its compiler say of the file, and where that is installed, what it says itself.

    Raises:
        EngineError: an operator would stay on the CPU, or the compiler refuses the file.
    """
    if (left := first_on_cpu(facts)) is not None:
        raise EngineError(
            f"{path}: is not ready for the Edge TPU: {left.sentence(facts.num_main)}; write the file by "
            "`trtforge ptq --edgetpu`, replace the operator in the network, or leave out edgetpu"
        )
    sentences = edgetpu_notes(facts, path.stat().st_size / 2**20)
    if compiler():
        return [compiled(path).sentence(), *sentences]
    return [
        "It is ready for the Edge TPU by the published rules, not compiled: `edgetpu_compiler -s ENGINE.tflite` "
        "compiles it on a machine that has that.",
        *sentences,
    ]


def _notes(facts: TfliteFacts, interpreter: Any) -> list[str]:
    """What computes in what, and by whose kernels."""
    notes = []
    if hybrid := facts.with_integer_weights():
        notes.append(
            f"{len(hybrid)} of {len(facts.products)} convolutions and matrix products round their data to INT8 at "
            "each run, and answer in FP32; everything else computes in FP32."
        )
    if stored := facts.with_stored_weights():
        which = " and ".join(sorted({each.kind for each in stored}))
        notes.append(
            f"{len(stored)} of {len(facts.products)} convolutions and matrix products ({which}) have INT8 weights "
            "in the file alone and compute in FP32: where data is rounded at each run they run in slow kernels."
        )
    if facts.in_integers() and (floats := facts.in_floats()):
        notes.append(
            f"{len(floats)} of {facts.num_main} operators compute in FP32, as [ptq] exclude has it: {listed(floats)}."
        )
    if halves := facts.halves():
        notes.append(f"{len(halves)} weights are kept in FP16 and computed with in FP32, so that the file is smaller.")
    left = operators_left(interpreter._get_ops_details(), facts.num_main)
    kinds = sorted({facts.operators[index].kind for index in left})
    if _kernels() == BUILT_IN:
        return [*notes, f"This runtime has no {XNNPACK}: all {facts.num_main} operators run in LiteRT's own kernels."]
    kernels = f"{facts.num_main - len(left)} of {facts.num_main} operators run in kernels of {XNNPACK}"
    return [*notes, f"{kernels}, {', '.join(kinds)} in LiteRT's own." if kinds else f"{kernels}."]


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else text[:400] + " …"
