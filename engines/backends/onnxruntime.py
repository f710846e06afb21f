"""ONNX Runtime on the CPU: the embedded default, runs on any machine. An engine is the ONNX file, once accepted."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx

from engines import cpu
from engines.contract import (
    Array,
    BuildOptions,
    EngineRecord,
    LayerTimes,
    Placement,
    Runner,
)
from engines.errors import EngineError
from engines.layers import layer_times_from
from engines.model_format import ModelFormat
from engines.onnx_model import (
    INTEGER_PRODUCTS,
    check_options,
    copy_model,
    facts,
    has_float16,
    is_qdq_in_fp32,
    read_model,
    refuse_tensorrt,
)
from engines.ort import session as ort_session
from engines.ort.blocked_layout import block_size, probe, unordered
from engines.ort.half_rounding import with_rounding_written
from engines.ort.node_answers import answer_by_loading
from engines.ort.profile import kernels_from_profile
from engines.ort.session import (
    CPU,
    OrtRunner,
    library_errors,
    load_library,
    open_session,
    session_settings,
    words_of,
)
from engines.support.answers import InputShapes, SupportAnswer

NAME = "onnxruntime"
TAKES: ModelFormat = "onnx"
PLACEMENT: Placement = "onnxruntime"
CAN_BUILD = True
GPU = False
STREAMS = False
NEEDS_RANGES = False
REFUSES_NODES = False
HAS_LISTS = False
OBEYS: frozenset[str] = frozenset()
SUFFIX = ".onnx"
INSTALL = ort_session.INSTALL

NUM_UNTOLD = 3
"""Runs before a profile counts."""

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""Where weights in files are, of a model that is given in memory."""

LEAST_EXTERNAL_BYTES = 1024
"""Weights of so many bytes are written beside the optimized graph, from where they are mapped and not copied."""


def why_not_build() -> str:
    """Empty if onnxruntime is installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return f"onnxruntime: is not installed; {INSTALL}"
    return ""


def why_not_run() -> str:
    """Empty if onnxruntime is installed."""
    return why_not_build()


def versions() -> dict[str, str]:
    """Versions of ONNX Runtime and its providers, and the CPU with the instructions that its kernels choose by."""
    ort = load_library()
    return {"onnxruntime": ort.__version__, "providers": " ".join(ort.get_available_providers()), **cpu.versions()}


def refuse(options: BuildOptions) -> None:
    """Raise Unavailable if something of TensorRT's is requested."""
    refuse_tensorrt(options, NAME)


def why_not_ask() -> str:
    """Empty if onnxruntime is installed."""
    return why_not_build()


def ask(model: Path, shapes: InputShapes) -> SupportAnswer:
    """Whether it makes a session of the model, and if not, of which of its nodes it makes none."""
    ort = load_library()

    def why_not(source: Path | bytes) -> str:
        try:
            ort.InferenceSession(
                source if isinstance(source, bytes) else str(source),
                session_settings(ort, num_threads=1),
                providers=[CPU],
            )
        except library_errors() as error:
            return words_of(error)
        return ""

    return answer_by_loading(model, shapes, f"{NAME} {ort.__version__}", why_not)


def build(model: Path, engine: Path, options: BuildOptions) -> EngineRecord:
    """Check that ONNX Runtime takes the model, count its integer kernels, keep the file as the engine.

    Raises:
        Unavailable: onnxruntime is not installed, or compute capabilities are requested.
        EngineError: ONNX Runtime refused the model.
    """
    ort = load_library()
    refuse(options)
    start = time.perf_counter()
    model_facts = facts(model)
    check_options(model_facts, options, model)
    with tempfile.TemporaryDirectory() as folder:
        settings = session_settings(ort, num_threads=1)
        _save_optimized(settings, Path(folder))
        try:
            open_session(model, settings)
        except EngineError:
            _check_room(Path(folder), model.stat().st_size)
            raise
        optimized = onnx.load(settings.optimized_model_filepath, load_external_data=False)
        operators = Counter(node.op_type for node in optimized.graph.node)
    size_bytes = copy_model(model, engine)
    num_int8 = sum(number for name, number in operators.items() if name in INTEGER_PRODUCTS)
    notes: tuple[str, ...] = ()
    if num_int8 < model_facts.num_quantized:
        notes = (
            f"{num_int8} of {model_facts.num_quantized} quantized convolutions and matrix products run in integer "
            "arithmetic, the others in FP32 between quantize and dequantize.",
        )
    return EngineRecord(
        backend=NAME,
        precision=options.precision,
        size_bytes=size_bytes,
        build_seconds=time.perf_counter() - start,
        versions=versions(),
        inputs=model_facts.inputs,
        outputs=model_facts.outputs,
        num_quantizable=model_facts.num_quantizable,
        num_int8=num_int8,
        num_4_bits=model_facts.num_4_bits,
        notes=notes,
    )


def load(engine: Path, *, num_threads: int) -> Runner:
    """ONNX Runtime as a user would run it: all graph optimizations, the CPU's own kernels."""
    return _OrtRunner(engine, num_threads, simulate=False)


def load_simulation(engine: Path, *, num_threads: int) -> Runner:
    """Q/DQ nodes are computed as written, every product in floating point.

    The graph is optimized around them, which is two to four times as fast: what is fused sums in another order, as
    engines do. FP16 is rounded to where the file has it (``engines.ort.half_rounding``), which ONNX Runtime's own way
    of running it on a CPU leaves out. Where there is neither, graph optimizations are off: this is the other FP32 run
    that a noise floor is measured by; and where types cannot be told, in models with branches and loops.

    This is the judge of a model whose Q/DQ nodes stand where TensorRT wants them: the CPU's integer kernels would fuse
    them otherwise than TensorRT does, and may saturate.
    """
    return _OrtRunner(engine, num_threads, simulate=True)


def layer_times(engine: Path, feed: Mapping[str, Array], num_runs: int) -> LayerTimes:
    """By ONNX Runtime's own profile, kernel by kernel, after ``NUM_UNTOLD`` runs that are not told."""
    with tempfile.TemporaryDirectory() as folder, _OrtRunner(engine, 0, simulate=False, profile=folder) as runner:
        for _ in range(NUM_UNTOLD + num_runs):
            runner.infer(feed)
        trace = runner.end_profile().read_text()
    makers = {tensor: node.name for node in read_model(engine).graph.node for tensor in node.output if node.name}
    kernels, times_ms = kernels_from_profile(trace, makers, NUM_UNTOLD)
    return LayerTimes(layer_times_from(times_ms, kernels))


def load_values(engine: Path, *, num_threads: int) -> Runner:
    """As ``load``, but an output may have its values in another order, the first dimension excepted: for histograms.

    Each value is that of ``load``, to the bit: the same graph runs, without the copies that bring tensors into order
    (see ``engines.ort.blocked_layout``); which outputs these are the runner's ``blocks`` tell. Needs disk space for the
    weights, beside the engine, until it is left; entering raises OSError where there is none.
    """
    return _ValuesRunner(engine, num_threads, simulate=False)


class _OrtRunner(OrtRunner):
    """One session on the CPU provider, as it is or as a simulation."""

    def __init__(self, engine: Path, num_threads: int, *, simulate: bool, profile: str = "") -> None:
        super().__init__(engine, num_threads, profile=profile)
        self._simulate, self._written = simulate, b""

    def _settings(self, ort: Any) -> Any:
        settings = super()._settings(ort)
        if not self._simulate:
            return settings
        model = read_model(self._engine)
        rounded = with_rounding_written(model) if has_float16(model.graph) else None
        if rounded is not None:
            self._written = rounded.SerializeToString()
            settings.add_session_config_entry(WEIGHTS_FOLDER, str(self._engine.resolve().parent))
        if rounded is not None or is_qdq_in_fp32(model):
            settings.add_session_config_entry("session.disable_quant_qdq", "1")
        else:
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return settings

    def _opened(self, path: Path, settings: Any) -> Any:
        written, self._written = self._written, b""
        return open_session(path, settings, written=written)


class _ValuesRunner(_OrtRunner):
    """Optimizes the model in one session, and runs the optimized graph, without the reordering, in another."""

    def __enter__(self) -> _ValuesRunner:
        self._folder = tempfile.TemporaryDirectory(dir=self._engine.parent, prefix="optimized-")
        try:
            super().__enter__()
            self._leave_unordered()
        except BaseException as error:
            try:
                if isinstance(error, EngineError):
                    _check_room(Path(self._folder.name), self._engine.stat().st_size)
            finally:
                self._folder.cleanup()
            raise
        return self

    def _settings(self, ort: Any) -> Any:
        settings = super()._settings(ort)
        _save_optimized(settings, Path(self._folder.name))
        settings.add_session_config_entry("session.disable_prepacking", "1")  # It only optimizes and saves.
        return settings

    def _leave_unordered(self) -> None:
        """Change to a session of the optimized graph without its reordering; of the model, where it has none."""
        folder = Path(self._folder.name)
        rewritten = unordered(onnx.load(folder / "optimized.onnx", load_external_data=False))
        self._source = {name: rewritten.source[name] for name in self._names}
        del self._session  # Before the next one is made, so that the weights are not in memory twice.
        ort = load_library()
        settings = super()._settings(ort)
        if not rewritten.num_reordered:
            self._open(self._engine, settings)
            return
        onnx.save(rewritten.model, folder / "unordered.onnx")
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # They are in the graph.
        self._open(folder / "unordered.onnx", settings)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._folder.cleanup()

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        outputs = super().infer(feed)
        return {name: outputs[source] for name, source in self._source.items()}

    @property
    def blocks(self) -> Mapping[str, int] | None:
        """Output -> how many channels lie side by side, of those that are not in order; None where nobody knows."""
        reordered = [name for name, source in self._source.items() if name != source]
        block = _block_size() if reordered else 1
        return None if block is None else dict.fromkeys(reordered, block)


@lru_cache(maxsize=None)
def _block_size() -> int | None:
    """Of this CPU's kernels: it is in no file, so a convolution is run that shows it."""
    model, x = probe()
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, f"{folder}/probe.onnx")
        with load_values(Path(folder, "probe.onnx"), num_threads=1) as runner:
            return block_size(runner.infer({"x": x})["y"], x)


def _save_optimized(settings: Any, folder: Path) -> None:
    """The optimized graph goes to ``optimized.onnx`` in the folder, and its weights to a file beside it."""
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    for name, value in (("file_name", "weights"), ("min_size_in_bytes", str(LEAST_EXTERNAL_BYTES))):
        settings.add_session_config_entry(f"session.optimized_model_external_initializers_{name}", value)


def _check_room(folder: Path, num_bytes: int) -> None:
    """Raise the OSError that writing so many bytes meets: ONNX Runtime only says that it failed to write."""
    with tempfile.TemporaryFile(dir=folder) as stream:
        os.posix_fallocate(stream.fileno(), 0, max(num_bytes, 1))
