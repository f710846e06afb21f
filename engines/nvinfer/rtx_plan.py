"""Reads out of a TensorRT-RTX plan which of its convolutions and matrix products multiply 8-bit integers.

A plan holds its compiled graph as text, one operation per line: found by reading plans of TensorRT-RTX 1.4 to 1.7, not
documented. ``EngineInspector`` would be the documented way, but it needs a GPU of the right kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_NAMES = rb'((?:[^"}\n]|"[^"\n]*")*)'
_TENSOR = re.compile(rb'tensor=\{[^\n]*? name="([^"\n]*)"[^\n]*? type=(\w+) \}')
_PRODUCT = re.compile(
    rb'(?:corrltn|fully_connected)=\{ name="([^"\n]*)" output=\{' + _NAMES + rb"\} input=\{" + _NAMES + rb"\}"
)
_NAME = re.compile(rb'"([^"\n]*)"')
_EIGHT_BIT = (b"int8", b"uint8")
_PRECISIONS = {b"int8": "INT8", b"uint8": "INT8", b"half": "FP16", b"float": "FP32", b"bf16": "BF16"}


@dataclass(frozen=True)
class PlanProducts:
    """Operations of a plan: names of its convolutions and matrix products, and of those with two 8-bit operands."""

    products: frozenset[str]
    integer: frozenset[str]
    precisions: Mapping[str, str]
    """Product -> the type of its first operand, such as ``FP16``; empty where it is not told."""


def plan_products(plan: bytes) -> PlanProducts:
    """The products that NVIDIA's ready-made kernels compute (``corrltn`` and ``fully_connected``) in ``plan``."""
    types: dict[bytes, bytes] = dict(_TENSOR.findall(plan))
    precisions: dict[str, str] = {}
    integer = set()
    for name, _, operands in _PRODUCT.findall(plan):
        text = name.decode(errors="replace")
        kinds = [types.get(operand, b"") for operand in _NAME.findall(operands)[:2]]
        precisions[text] = _PRECISIONS.get(kinds[0], "") if kinds else ""
        if kinds and all(kind in _EIGHT_BIT for kind in kinds):
            integer.add(text)
    return PlanProducts(frozenset(precisions), frozenset(integer), precisions)
