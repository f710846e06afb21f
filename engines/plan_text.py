"""Reads out of a TensorRT-RTX plan which of its convolutions and matrix products multiply 8-bit integers.

A plan holds its compiled graph as text, one operation per line: found by reading plans of TensorRT-RTX 1.4 to 1.7, not
documented. ``EngineInspector`` would be the documented way, but it needs a GPU of the right kind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NAMES = rb'((?:[^"}\n]|"[^"\n]*")*)'
_TENSOR = re.compile(rb'tensor=\{[^\n]*? name="([^"\n]*)"[^\n]*? type=(\w+) \}')
_PRODUCT = re.compile(
    rb'(?:corrltn|fully_connected)=\{ name="([^"\n]*)" output=\{' + _NAMES + rb"\} input=\{" + _NAMES + rb"\}"
)
_NAME = re.compile(rb'"([^"\n]*)"')
_EIGHT_BIT = (b"int8", b"uint8")


@dataclass(frozen=True)
class PlanProducts:
    """Operations of a plan: names of its convolutions and matrix products, and of those with two 8-bit operands."""

    products: frozenset[str]
    integer: frozenset[str]


def plan_products(plan: bytes) -> PlanProducts:
    """The products that NVIDIA's ready-made kernels compute (``corrltn`` and ``fully_connected``) in ``plan``."""
    types: dict[bytes, bytes] = dict(_TENSOR.findall(plan))
    products, integer = set(), set()
    for name, _, operands in _PRODUCT.findall(plan):
        text = name.decode(errors="replace")
        products.add(text)
        if all(types.get(operand) in _EIGHT_BIT for operand in _NAME.findall(operands)[:2]):
            integer.add(text)
    return PlanProducts(frozenset(products), frozenset(integer))
