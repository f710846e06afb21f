"""Reads out of a TensorRT-RTX plan which of its convolutions and matrix products multiply 8-bit integers.

A plan holds its compiled graphs as text, one operation per line, each graph with its own tensors: found by reading
plans of TensorRT-RTX 1.4 to 1.7, not documented. ``EngineInspector`` would be the documented way, but it needs a GPU of
the right kind. Products that are fused with others, as in attention, stand in a kernel whose source tells how it
multiplies integers; where the plan has no source, nothing is told of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from engines.contract import LayerFacts

_GRAPH = re.compile(rb"header \{\n")
_NAMES = rb'((?:[^"}\n]|"[^"\n]*")*)'
_TENSOR = re.compile(rb'tensor=\{[^\n]*? name="([^"\n]*)"[^\n]*? type=(\w+) ')
_PRODUCT = re.compile(
    rb'(?:corrltn|deconvolution|fully_connected)=\{ name="([^"\n]*)" output=\{' + _NAMES + rb"\} input=\{" + _NAMES
    + rb'\}(?:[^\n]* layers="([^"\n]*)")?'
)  # fmt: skip
_KERNEL = re.compile(rb'function=\{ name=(\w+) fqn=(\w+) [^\n]* layers="([^"\n]*)"')
_ATTENTION = re.compile(
    rb"\bKernel_traits_v2<\s*fmha::(\w+),\s*fmha::(\w+),.{0,65536}?__global__ void (\w+)\(", re.DOTALL
)
"""In a kernel's source: how the two products of attention multiply, and the kernel's name."""
_NAME = re.compile(rb'"([^"\n]*)"')
_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_PROFILE = re.compile(rb" \[profile (\d+)\]")
_IS_INTEGER = b"_imma_int8_"
_PRECISIONS = {b"int8": "INT8", b"uint8": "INT8", b"half": "FP16", b"float": "FP32", b"bf16": "BF16"}


def plan_products(plan: bytes) -> tuple[LayerFacts, ...]:
    """The products that the plan's text tells of: those of ready-made kernels, and attention in integers.

    Of each, the ONNX nodes that it stands for, such as three where products of one tensor are fused, with their Q/DQ
    nodes; ``INT8`` if both operands have 8 bits, else the type of one that has more.
    """
    attention = {kernel for *types, kernel in _ATTENTION.findall(plan) if all(_IS_INTEGER in kind for kind in types)}
    begins = [match.start() for match in _GRAPH.finditer(plan)] or [0]
    ends = [*begins[1:], len(plan)]
    return tuple(layer for begin, end in zip(begins, ends) for layer in _of_graph(plan, begin, end, attention))


def _of_graph(plan: bytes, begin: int, end: int, attention: Collection[bytes]) -> Iterator[LayerFacts]:
    types: dict[bytes, bytes] = dict(_TENSOR.findall(plan, begin, end))
    for match in _PRODUCT.finditer(plan, begin, end):
        name, _, operands, metadata = match.groups()
        profile, text = _profile(plan, begin, match.end()), name.decode(errors="replace")
        nodes = _nodes(metadata or b"") or tuple(part.replace(f" [profile {profile}]", "") for part in text.split("+"))
        kinds = [_PRECISIONS.get(types.get(operand, b""), "") for operand in _NAME.findall(operands)[:2]]
        precision = next((kind for kind in kinds if kind != "INT8"), "INT8" if kinds else "")
        yield LayerFacts(text, "product", precision, nodes, profile)
    for match in _KERNEL.finditer(plan, begin, end):
        name, kernel, metadata = match.groups()
        if kernel in attention:
            profile = _profile(plan, begin, match.end())
            yield LayerFacts(name.decode(), "product", "INT8", _nodes(metadata), profile)


def _profile(plan: bytes, begin: int, end: int) -> int:
    """That of a graph, from its begin to one of its operations: from the second profile on names end in it."""
    match = _PROFILE.search(plan, begin, end)
    return int(match[1]) if match else 0


def _nodes(metadata: bytes) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_LAYER.findall(metadata.decode(errors="replace"))))
