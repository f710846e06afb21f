"""What of a model the ONNX parser of a generation does not read, or reads wrongly: said before anything is built.

By onnx-tensorrt's ``docs/operators.md``: 8.5 and 8.6 read operators up to opset 17, 10.0 up to 20. Of later ones, which
read more with each release, nothing is said here but by the parser itself. Weights of 4 bits came with 10.1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.errors import Unavailable
from engines.onnx_model import OnnxModelFacts


def release_of(trt: Any) -> str:
    """The name and version of the parser's module, as ``tensorrt 10.3.0``."""
    return f"{trt.__name__.replace('_bindings', '')} {trt.__version__}"


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


def limits(trt: Any, opset: int, reduction: str) -> tuple[str, ...]:
    """Half sentences on why the parser does not read a model although it may take each node; none if there is no why.

    Args:
        trt: the parser's module.
        opset: of the model.
        reduction: the name of a reduction other than ReduceSum whose axes are an input; empty if it has none.
    """
    largest, who = largest_opset(trt), release_of(trt)
    down = f"write it in opset {largest} (`trtforge export --opset {largest}`, or [export] opset), or update TensorRT"
    if largest and opset > largest:
        return (f"is in opset {opset}, {who} reads up to {largest}; {down}",)
    if reduction and not reads_axes(trt):
        return (f"node '{reduction}' reduces over axes that are an input, {who} takes no notice of them; {down}",)
    return ()


def refuse_model(trt: Any, model_facts: OnnxModelFacts, model: Path) -> None:
    """Compare a model with what the parser reads.

    Raises:
        Unavailable: it does not; the sentence says how the model is brought down.
    """
    if largest_opset(trt) and model_facts.num_4_bits:
        raise Unavailable(
            f"{model}: has weights of 4 bits, which {release_of(trt)} does not take; quantize it with weight_bits = 8, "
            "or update TensorRT to 10.1 or later"
        )
    for sentence in limits(trt, model_facts.opset, model_facts.reduces_by_input):
        raise Unavailable(f"{model}: {sentence}")
