"""Values as C++ writes them: text, shapes, types, steps of preprocessing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from calibration.data.preprocess import Preprocess
from engines.contract import TensorSpec
from pipeline.errors import ConfigError

TYPES = (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
)  # fmt: skip
"""Names of numpy's types that the program has too; its own are these behind a ``k``."""
ENUMS = {
    "interpolation": "Interpolation",
    "channels": "Channels",
}
"""Option of preprocessing -> its enumeration."""


def literal(text: str) -> str:
    """A string, whatever is in it: what is not plain ASCII by the octal numbers of its bytes in UTF-8."""
    return '"' + "".join(map(_letter, text.encode("utf-8"))) + '"'


def _letter(byte: int) -> str:
    if chr(byte) in '"\\?' or not 0x20 <= byte < 0x7F:
        return f"\\{byte:03o}"
    return chr(byte)


def shape_literal(shape: Sequence[int]) -> str:
    """A shape, with -1 for what may vary."""
    return "{" + ", ".join(map(str, shape)) + "}"


def type_literal(spec: TensorSpec) -> str:
    """The type of a tensor.

    Raises:
        ConfigError: the program has none such.
    """
    if spec.dtype not in TYPES:
        raise ConfigError(f"'{spec.name}': is of type {spec.dtype}, which the C++ program does not have; cast it")
    return f"Type::{_constant(spec.dtype)}"


def preprocess_lines(steps: Preprocess) -> Iterator[str]:
    """The assignments that make a C++ ``Preprocess`` of its defaults.

    Raises:
        ConfigError: a number is beyond float32, in which the arithmetic is done.
    """
    for name, sizes in {"resize": steps.resize, "crop": steps.crop}.items():
        if sizes:
            yield f"{name} = {shape_literal(sizes)}"
    if steps.fit == "letterbox":
        yield "letterbox = true"
        yield f"fill = {steps.fill!r}"
    for name, kind in ENUMS.items():
        yield f"{name} = {kind}::{_constant(getattr(steps, name))}"
    yield f"scale = {_float32('scale', steps.scale)}"
    for name, values in {"mean": steps.mean, "std": steps.std}.items():
        if values:
            yield f"{name} = {{{', '.join(_float32(name, value) for value in values)}}}"
    if steps.layout == "nchw":
        yield "is_nchw = true"
    if steps.dtype != "keep":
        yield "casts = true"
        yield f"type = Type::{_constant(steps.dtype)}"


def _constant(name: str) -> str:
    return f"k{name.capitalize()}"


def _float32(name: str, value: float) -> str:
    """The number that numpy makes of it, by as many digits as it takes."""
    with np.errstate(over="ignore"):
        number = np.float32(value)
    if not math.isfinite(number) or (name != "mean" and number == 0):
        raise ConfigError(f"[data.preprocess] {name}: {value:g} is beyond float32, in which it is done; correct it")
    return f"{number!s}f"
