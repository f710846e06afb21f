"""onnx's own evaluator, in numpy: slow, on every machine, the definition of right."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

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
from engines.errors import EngineError
from engines.feed import FeedCheck
from engines.model_format import ModelFormat
from engines.onnx_model import (
    check_options,
    copy_model,
    facts_from_model,
    plugin_words,
    read_model,
    refuse_tensorrt,
)

if TYPE_CHECKING:
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

NAME = "reference"
TAKES: ModelFormat = "onnx"
PLACEMENT: Placement = "tensorrt"
CAN_BUILD = True
GPU = False
STREAMS = False
NEEDS_RANGES = False
OBEYS: frozenset[str] = frozenset()
SUFFIX = ".onnx"
INSTALL = "pip install onnx"


def why_not_build() -> str:
    """Empty: it comes with onnx."""
    return ""


def why_not_run() -> str:
    """Empty: it comes with onnx."""
    return ""


def versions() -> dict[str, str]:
    """Versions of onnx and numpy."""
    return {"onnx": onnx.__version__, "numpy": np.__version__}


def refuse(options: BuildOptions) -> None:
    """Raise Unavailable if something of TensorRT's is requested."""
    refuse_tensorrt(options, NAME)


def build(model: Path, engine: Path, options: BuildOptions) -> EngineRecord:
    """The engine is the ONNX file itself, once the evaluator has accepted it.

    Raises:
        Unavailable: compute capabilities are requested.
        EngineError: the model is no valid ONNX, or has an operator that the evaluator does not know.
    """
    refuse(options)
    start = time.perf_counter()
    proto = read_model(model)
    model_facts = facts_from_model(proto, model)
    check_options(model_facts, options, model)
    _evaluator(proto, model)
    size_bytes = copy_model(model, engine)
    return EngineRecord(
        backend=NAME,
        precision=options.precision,
        size_bytes=size_bytes,
        build_seconds=time.perf_counter() - start,
        versions=versions(),
        inputs=model_facts.inputs,
        outputs=model_facts.outputs,
        num_quantizable=model_facts.num_quantizable,
        num_int8=0,
        num_4_bits=model_facts.num_4_bits,
        notes=("Q/DQ nodes are computed in floating point, as the ONNX standard writes them.",)
        if model_facts.has_quantize
        else (),
    )


def load(engine: Path, *, num_threads: int) -> Runner:
    """A runner for the ONNX file ``engine``; ``num_threads`` is numpy's affair."""
    return _ReferenceRunner(engine)


def layer_times(engine: Path, feed: Mapping[str, Array], num_runs: int) -> LayerTimes:
    """It does not tell."""
    return LayerTimes()


class _ReferenceRunner:
    """Runs node after node in numpy."""

    def __init__(self, engine: Path) -> None:
        self._engine = engine
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()

    def __enter__(self) -> Runner:
        proto = read_model(self._engine)
        model_facts = facts_from_model(proto, self._engine)
        self.inputs, self.outputs = model_facts.inputs, model_facts.outputs
        self._check = FeedCheck(self._engine, model_facts.inputs)
        self._evaluator = _evaluator(proto, self._engine)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._evaluator

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        self._check(feed)
        try:
            values = self._evaluator.run(None, dict(feed))
        except Exception as error:  # numpy code of two hundred operators: anything may come
            raise EngineError(f"{self._engine}: onnx's evaluator failed ({type(error).__name__}: {error})") from error
        return {spec.name: np.asarray(value) for spec, value in zip(self.outputs, values)}

    def device_ms(self) -> float | None:
        return None

    def facts(self) -> RunnerFacts:
        return RunnerFacts()


def _evaluator(proto: onnx.ModelProto, path: Path) -> ReferenceEvaluator:
    from onnx.reference import ReferenceEvaluator

    opset = max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    try:
        onnx.load_external_data_for_model(proto, str(path.parent))
        onnx.checker.check_model(str(path))
        return ReferenceEvaluator(proto, new_ops=[_dequantize_linear()] if opset < 19 else [])
    except (onnx.checker.ValidationError, NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        words = (
            plugin_words(proto)
            or f"onnx's evaluator refuses the model ({' '.join(str(error).split())}); export it again"
        )
        raise EngineError(f"{path}: {words}") from error


def _dequantize_linear() -> type[OpRun]:
    """onnx's evaluator has DequantizeLinear from opset 19 on; those of 10 and 13 compute the same on int8 and uint8."""
    from onnx.reference.ops.op_dequantize_linear import DequantizeLinear_19

    class DequantizeLinear(DequantizeLinear_19):
        """Takes, and needs not, the attributes that later opsets added."""

        op_domain = ""

        def _run(self, *inputs: Any, axis: int = 1, **_later: object) -> Any:
            x, scale, zero_point = (*inputs, None)[:3]
            return super()._run(x, scale, zero_point, axis)

    return DequantizeLinear
