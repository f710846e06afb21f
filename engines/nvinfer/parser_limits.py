"""What of a model the ONNX parser of a generation does not read, or reads wrongly: said before anything is built.

By onnx-tensorrt's ``docs/operators.md``: 8.5 and 8.6 read operators up to opset 17, 10.0 up to 20. Of later ones, which
read more with each release, nothing is said here but by the parser itself. Weights of 4 bits came with 10.1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.errors import Unavailable
from engines.onnx_model import OnnxModelFacts


def largest_opset(trt: Any) -> int:
    """The largest that the parser reads; 0 where that is not known."""
    if not hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        return 17
    return 0 if hasattr(trt.OnnxParser, "supports_model_v2") else 20


def reads_axes(trt: Any) -> bool:
    """Whether reductions may have their axes as an input: up to 8.6 the parser takes no notice of them.

    ReduceSum, which has them so since opset 13, is read in every generation.
    """
    return hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")


def refuse_model(trt: Any, model_facts: OnnxModelFacts, model: Path) -> None:
    """Compare a model with what the parser reads.

    Raises:
        Unavailable: it does not; the sentence says how the model is brought down.
    """
    largest, who = largest_opset(trt), f"{trt.__name__.removesuffix('_bindings')} {trt.__version__}"
    down = f"write it in opset {largest} (`trtforge export --opset {largest}`, or [export] opset), or update TensorRT"
    if largest and model_facts.num_4_bits:
        raise Unavailable(
            f"{model}: has weights of 4 bits, which {who} does not take; quantize it with weight_bits = 8, or update "
            "TensorRT to 10.1 or later"
        )
    if largest and model_facts.opset > largest:
        raise Unavailable(f"{model}: is in opset {model_facts.opset}, {who} reads up to {largest}; {down}")
    if model_facts.reduces_by_input and not reads_axes(trt):
        raise Unavailable(
            f"{model}: node '{model_facts.reduces_by_input}' reduces over axes that are an input, {who} takes no "
            f"notice of them; {down}"
        )
