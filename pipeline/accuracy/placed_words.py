"""What is said of a model in which nothing became INT8, and of dynamic ranges."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from calibration.graph.editing import nodes_of
from calibration.precision.dynamic import DynamicallyQuantized
from calibration.precision.placement import PRODUCTS, RoundingMethod


def dynamic_notes(written: DynamicallyQuantized, rounding: RoundingMethod) -> list[str]:
    """Sentences on what computes in what; ``rounding``: as the user has it for INT8."""
    notes = []
    if rounding == "gptq":
        notes.append("rounding gptq is for INT8 with fixed ranges: here weights are rounded as by squant")
    if written.in_integers:
        notes.append(f"{len(written.in_integers)} matrix products round their data to UINT8 at each run")
    if written.stored:
        notes.append(
            f"{len(written.stored)} convolutions have INT8 weights in the file alone and compute in FP32: ONNX "
            "Runtime's integer convolutions of data that is rounded at each run are slower than those in FP32"
        )
    return notes


NUM_NAMED = 5
"""Reasons in a sentence."""


def nothing_quantized(model: onnx.ModelProto, notes: Sequence[str]) -> str:
    """The sentence about a model in which nothing became INT8: what products it has, where, and why they stay.

    Args:
        model: FP32.
        notes: the reasons of a placement.
    """
    products = [node.op_type for node in nodes_of(model.graph) if node.op_type in (*PRODUCTS, "Einsum")]
    inside = len(products) - sum(node.op_type in (*PRODUCTS, "Einsum") for node in model.graph.node)
    einsums = products.count("Einsum")
    where = [f"{inside} in the body of a Loop, Scan or If"] * bool(inside) + [f"{einsums} Einsum"] * bool(einsums)
    sentence = f"{len(products)} convolutions and matrix products" + (f" ({', '.join(where)})" if where else "")
    reasons = "".join(f"; {note}" for note in notes[:NUM_NAMED])
    more = f"; and {len(notes) - NUM_NAMED} more" if len(notes) > NUM_NAMED else ""
    return (
        f"{model.graph.name}: nothing can be INT8: it has {sentence}{reasons}{more}; stay with FP32 or FP16, or export "
        "the products as Conv, MatMul or Gemm with constant weights"
    )
