"""TensorRT for RTX: real ahead-of-time engines with no GPU, for GeForce and RTX GPUs from Turing on.

Networks are strongly typed. Not for Jetson, nor for data-centre GPUs of compute capability 9.0 and 10.0.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.contract import BuildOptions, EngineRecord, Placement
from engines.cuda import device
from engines.errors import EngineError, Unavailable
from engines.model_format import ModelFormat
from engines.nvinfer import builder as nvinfer_builder
from engines.nvinfer import capability
from engines.nvinfer.builder_config import NVINFER_OPTIONS
from engines.nvinfer.inspection import Inspection, integer_products
from engines.nvinfer.loading import EngineLoader
from engines.nvinfer.parser_answers import answer_by_parser
from engines.nvinfer.rtx_plan import plan_products
from engines.onnx_model import OnnxModelFacts
from engines.support.answers import InputShapes, SupportAnswer

NAME = "tensorrt_rtx"
TAKES: ModelFormat = "onnx"
PLACEMENT: Placement = "tensorrt"
CAN_BUILD = True
GPU = True
STREAMS = True
NEEDS_RANGES = True
REFUSES_NODES = True
HAS_LISTS = False
OBEYS: frozenset[str] = NVINFER_OPTIONS | {"compute_capabilities"}
SUFFIX = ".rtx.plan"
INSTALL = "pip install 'trtforge[rtx]'"
NOT_BUILT = {
    "NonMaxSuppression": "its parser reads it, and its builder has nothing that runs it; cut the model in front of it"
}
"""Of 1.7.1, by a build of each operator in onnx's node tests: this one alone is read and not built."""


def why_not_build() -> str:
    """Empty if tensorrt_rtx is installed: it builds without a GPU."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return f"tensorrt_rtx: is not installed; {INSTALL}"
    return ""


def why_not_run() -> str:
    """Empty if there are tensorrt_rtx, a driver with a GPU, and pycuda."""
    reason = why_not_build() or device.why_no_gpu() or device.why_no_pycuda()
    return f"tensorrt_rtx: {reason}" if reason and not reason.startswith(NAME) else reason


def versions() -> dict[str, str]:
    """Version of TensorRT-RTX; driver, GPU and compute capability where there is one."""
    return {"tensorrt_rtx": _import().__version__, **device.versions()}


def refuse(options: BuildOptions) -> None:
    """Raise Unavailable or EngineError if this version cannot do what is requested, as far as the options tell."""
    trt = _import()
    _targets(trt, options)
    capability.refuse(capability.capability_of(trt), options)


def why_not_ask() -> str:
    """Empty if tensorrt_rtx is installed: its parser needs no GPU."""
    return why_not_build()


def ask(model: Path, shapes: InputShapes) -> SupportAnswer:
    """What this version's parser says of each node."""
    return answer_by_parser(_import(), model, shapes, NOT_BUILT)


def build(model: Path, engine: Path, options: BuildOptions) -> EngineRecord:
    """Build ahead of time for ``options.compute_capabilities``; none: for all from 8.0 on.

    Raises:
        Unavailable: tensorrt_rtx is not installed, or does not know a compute capability.
        EngineError: it refused the model, or an option does not fit the model.
    """
    trt = _import()
    targets = _targets(trt, options)

    def configure(config: Any, _: BuildOptions) -> None:
        if not targets:
            return
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            if not config.set_compute_capability(target, index):
                raise Unavailable(f"tensorrt_rtx: refuses {target.name} ({nvinfer_builder.logger(trt)[1].text()})")

    family = nvinfer_builder.Family(NAME, trt, versions(), configure, _inspect)
    return nvinfer_builder.build(family, model, engine, options)


def _import() -> Any:
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise Unavailable(f"tensorrt_rtx: cannot be imported ({error}); {INSTALL}") from error
    return tensorrt_rtx


def _targets(trt: Any, options: BuildOptions) -> list[Any]:
    targets = [_target(trt, text) for text in options.compute_capabilities]
    if len(set(options.compute_capabilities)) != len(targets):
        raise EngineError(
            f"tensorrt_rtx: compute capabilities {', '.join(options.compute_capabilities)} name one twice; name it once"
        )
    return targets


def _target(trt: Any, text: str) -> Any:
    """``8.6`` to ``trt.ComputeCapability.SM86``."""
    known = trt.ComputeCapability
    digits = text.replace(".", "", 1)
    if not (digits.isdigit() and hasattr(known, f"SM{digits}") and "." in text):
        numbers = [name[2:] for name in dir(known) if name.startswith("SM")]
        supported = ", ".join(f"{n[:-1]}.{n[-1]}" for n in sorted(numbers, key=int))
        raise Unavailable(
            f"tensorrt_rtx: compute capability '{text}' is requested, version {trt.__version__} builds for "
            f"{supported}; choose one of these, or the tensorrt backend on the device itself"
        )
    return getattr(known, f"SM{digits}")


def _inspect(plan: bytes, model_facts: OnnxModelFacts, _options: BuildOptions) -> Inspection:
    """Counted in the plan's own text; cannot tell if that does not tell of each quantized product."""
    names = frozenset(model_facts.product_names)
    layers = tuple(
        replace(product, nodes=tuple(node for node in product.nodes if node in names))
        for product in sorted(plan_products(plan), key=lambda product: (product.profile, product.name))
    )
    notes: tuple[str, ...] = ()
    if model_facts.depthwise_quantized:
        notes = (
            f"{len(model_facts.depthwise_quantized)} quantized depthwise or grouped convolutions, such as "
            f"'{model_facts.depthwise_quantized[0]}': TensorRT-RTX repeats their channels to use its INT8 kernels, "
            "which costs size and time; consider leaving them in floating point.",
        )
    if model_facts.num_quantized and not layers:
        return Inspection(-1, (*notes, "The plan's text does not say which operations run in INT8."))
    num_int8, counts = integer_products(layers, model_facts, model_facts.quantized_names, "the plan's text")
    return Inspection(num_int8, (*notes, *counts), layers, "the plan's text, products alone" if layers else "")


_LOADING = EngineLoader(NAME, _import, lambda: versions())
load, layer_times = _LOADING.load, _LOADING.layer_times
