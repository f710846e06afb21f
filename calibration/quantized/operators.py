"""Operators that compute on integers of fixed scales: ONNX's QLinear ones, and those of ONNX Runtime's quantizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from calibration.graph.editing import attribute_int

MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's."""

Triple: TypeAlias = tuple[ir.Value | None, ir.Value | None, ir.Value | None]
"""Integers, scale and zero point."""


@dataclass(frozen=True)
class IntegerOperator:
    """Where an operator has what it reads; its inputs are (tensor, scale, zero point), those of its output a pair."""

    floating: str
    """The operator that computes the same on floating-point numbers."""
    data: tuple[int, ...]
    """Where each triple begins."""
    output: int
    """Where the pair begins."""
    bias: int | None = None
    """An int32 tensor, whose scale is the product of those of the first two."""
    plain: tuple[int, ...] = ()
    """Inputs that are not quantized, which come first."""
    repeats: bool = False
    """Whether there are as many triples as there are inputs."""

    def axis(self, node: ir.Node, start: int) -> int:
        """Along which a triple that begins there has its scales, if it has several."""
        if self.floating == "Conv":
            return 0
        if self.floating == "Gemm" and start == self.data[1]:
            return 0 if attribute_int(node, "transB", 0) else 1
        return -2 if self.floating == "MatMul" and start == self.data[0] else -1

    def starts(self, node: ir.Node) -> tuple[int, ...]:
        """Where the triples of a node begin."""
        return tuple(range(self.data[0], len(node.inputs), 3)) if self.repeats else self.data

    def triples(self, node: ir.Node) -> list[Triple]:
        """What it reads and gives, but for the bias; an output in floating point is not among them."""
        triples: list[Triple] = [(_at(node, i), _at(node, i + 1), _at(node, i + 2)) for i in self.starts(node)]
        if _at(node, self.output) is not None:
            triples.append((node.outputs[0], _at(node, self.output), _at(node, self.output + 1)))
        return triples


def _at(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


INTEGER_OPERATORS = {
    "QLinearConv": IntegerOperator("Conv", (0, 3), 6, bias=8),
    "QLinearMatMul": IntegerOperator("MatMul", (0, 3), 6),
    "QGemm": IntegerOperator("Gemm", (0, 3), 7, bias=6),
    "QLinearAdd": IntegerOperator("Add", (0, 3), 6),
    "QLinearMul": IntegerOperator("Mul", (0, 3), 6),
    "QLinearConcat": IntegerOperator("Concat", (2,), 0, repeats=True),
    "QLinearWhere": IntegerOperator("Where", (1, 4), 7, plain=(0,)),
    "QLinearAveragePool": IntegerOperator("AveragePool", (0,), 3),
    "QLinearGlobalAveragePool": IntegerOperator("GlobalAveragePool", (0,), 3),
    "QLinearLeakyRelu": IntegerOperator("LeakyRelu", (0,), 3),
    "QLinearSigmoid": IntegerOperator("Sigmoid", (0,), 3),
    "QLinearSoftmax": IntegerOperator("Softmax", (0,), 3),
}
"""ONNX Runtime's by its ``docs/ContribOperators.md``."""
