"""What LiteRT says of each operator of a `.tflite` file."""

from __future__ import annotations

from collections.abc import Collection
from math import prod

from engines.litert.edgetpu import num_products
from engines.litert.facts import TfliteFacts, TfliteOperator
from engines.support.answers import NodeAnswer, SupportAnswer
from engines.support.partition import GraphStep, partition

MOVES_DATA = frozenset({
    "BROADCAST_TO", "CAST", "CONCATENATION", "DEPTH_TO_SPACE", "EXPAND_DIMS", "GATHER", "GATHER_ND", "PACK", "PAD",
    "PADV2", "RESHAPE", "SHAPE", "SLICE", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TILE",
    "TRANSPOSE", "UNPACK",
})  # fmt: skip


def answer_of(facts: TfliteFacts, source: str, left: Collection[int], kernels: tuple[str, str]) -> SupportAnswer:
    """All operators of the main graph.

    Args:
        facts: of the file.
        source: who is asked.
        left: the numbers of those that the delegate leaves to the runtime.
        kernels: the names of the delegate's kernels and of the runtime's.
    """
    operators = facts.main_operators
    nodes = tuple(
        NodeAnswer(
            operator.name,
            operator.kind,
            "unsupported" if operator.is_custom else "runs",
            "it is no operator of TensorFlow Lite's own, which alone run here; replace it in the network"
            if operator.is_custom
            else "",
            "" if operator.is_custom else kernels[number in left],
            _flops(operator),
        )
        for number, operator in enumerate(operators)
    )
    steps = [
        GraphStep(
            tuple(str(tensor.index) for tensor in operator.inputs if tensor is not None and not tensor.constant),
            tuple(str(tensor.index) for tensor in operator.outputs),
        )
        for operator in operators
    ]
    inner = [operator for operator in facts.operators[facts.num_main :] if operator.is_custom]
    refusals = tuple(
        f"has {operator.kind} '{operator.name}' in the body of a loop or branch, which is no operator of TensorFlow "
        "Lite's own; replace it in the network"
        for operator in inner[:1]
    )
    return SupportAnswer(source, nodes, partition(steps, nodes), refusals)


def _flops(operator: TfliteOperator) -> int:
    if operator.kind in MOVES_DATA:
        return 0
    return 2 * num_products(operator) or sum(prod(map(abs, tensor.shape)) for tensor in operator.outputs)
