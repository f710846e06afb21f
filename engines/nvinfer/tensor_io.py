"""Inputs and outputs of a deserialized engine, and the shapes that its optimization profiles take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.contract import DYNAMIC, ShapeRange, TensorSpec
from engines.errors import EngineError
from engines.onnx_model import shape_text

if TYPE_CHECKING:
    from typing import TypeAlias

Shapes: TypeAlias = "tuple[tuple[int, ...], ...]"
"""One of each input, in the engine's order."""

_DTYPES = {
    "BOOL": "bool",
    "FLOAT": "float32",
    "HALF": "float16",
    "INT32": "int32",
    "INT64": "int64",
    "INT8": "int8",
    "UINT8": "uint8",
}
"""Names of ``trt.DataType`` that numpy has too."""


@dataclass(frozen=True)
class EngineIo:
    """What goes in and comes out."""

    path: Path
    """The engine's file, for sentences."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[tuple[ShapeRange, ...], ...]
    """Of each optimization profile, the shapes of each input."""

    def profile_for(self, shapes: Shapes) -> int:
        """The profile to run these shapes with: one whose usual shapes they are, else the narrowest that holds them.

        Raises:
            EngineError: no profile holds them.
        """
        holding = [index for index, ranges in enumerate(self.profiles) if _holds(ranges, shapes)]
        if holding:
            return min(holding, key=lambda index: (_usual(self.profiles[index]) != shapes, self._room(index), index))
        raise EngineError(self._outside(shapes))

    def batch_ranges(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, int], ...]:
        """As the contract says of a ``ProfiledRunner``."""
        batched = [index for index, spec in enumerate(self.inputs) if spec.shape[:1] == (DYNAMIC,)]
        if not batched:
            return ()
        ranges = []
        for profile in self.profiles:
            low = max(profile[index].min[0] for index in batched)
            high = min(profile[index].max[0] for index in batched)
            usual = tuple(
                (low, *shapes[spec.name][1:]) if index in batched else shapes[spec.name]
                for index, spec in enumerate(self.inputs)
            )
            if low <= high and _holds(profile, usual):
                ranges.append((low, high))
        return tuple(sorted(ranges))

    def _room(self, index: int) -> int:
        return sum(math.prod(shape_range.max) for shape_range in self.profiles[index])

    def _outside(self, shapes: Shapes) -> str:
        outside = [
            index
            for index, shape in enumerate(shapes)
            if not any(_inside(ranges[index], shape) for ranges in self.profiles)
        ]
        index = outside[0] if outside else 0
        known = dict.fromkeys(
            f"from {shape_text(ranges[index].min)} to {shape_text(ranges[index].max)}" for ranges in self.profiles
        )
        words = "profile goes" if len(self.profiles) == 1 else "profiles go"
        alone = "" if outside else " beside the other inputs' shapes, which no one profile holds together"
        name, shape = self.inputs[index].name, shape_text(shapes[index])
        return (
            f"{self.path}: input '{name}' has shape {shape}{alone}, the engine's "
            f"{words} {' and '.join(known)}; change the batch, or build with another shape range"
        )


def io_of(trt: Any, engine: Any, path: Path) -> EngineIo:
    """Ask the engine.

    Raises:
        EngineError: a tensor has a type or a layout that numpy lacks, or lies in host memory.
    """
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    is_input = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
    specs = {name: _spec(trt, engine, name, path) for name in names}
    inputs = tuple(specs[name] for name in names if is_input[name])
    return EngineIo(
        path,
        inputs,
        tuple(specs[name] for name in names if not is_input[name]),
        tuple(
            tuple(_range(engine, spec, index) for spec in inputs) for index in range(engine.num_optimization_profiles)
        ),
    )


def _range(engine: Any, spec: TensorSpec, profile: int) -> ShapeRange:
    if DYNAMIC not in spec.shape:  # What a profile says of such an input is not documented.
        return ShapeRange(spec.shape, spec.shape, spec.shape)
    low, usual, high = (tuple(shape) for shape in engine.get_tensor_profile_shape(spec.name, profile))
    return ShapeRange(low, usual, high)


def _inside(shape_range: ShapeRange, shape: tuple[int, ...]) -> bool:
    bounds = zip(shape_range.min, shape, shape_range.max)
    return len(shape) == len(shape_range.min) and all(low <= n <= high for low, n, high in bounds)


def _holds(ranges: tuple[ShapeRange, ...], shapes: Shapes) -> bool:
    return all(_inside(shape_range, shape) for shape_range, shape in zip(ranges, shapes))


def _usual(ranges: tuple[ShapeRange, ...]) -> Shapes:
    return tuple(shape_range.opt for shape_range in ranges)


def _spec(trt: Any, engine: Any, name: str, path: Path) -> TensorSpec:
    kind = engine.get_tensor_dtype(name).name
    if kind not in _DTYPES:
        raise EngineError(f"{path}: '{name}' is {kind}, numpy has no such type; cast it to FP32 inside the model")
    if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
        raise EngineError(f"{path}: '{name}' is a shape tensor in host memory; make it a constant of the model")
    layout = engine.get_tensor_format(name)
    if layout != trt.TensorFormat.LINEAR:  # Of engines of others: ours have no other.
        raise EngineError(
            f"{path}: '{name}' is laid out as {layout.name}, arrays are LINEAR; build the engine without formats for "
            "its inputs and outputs"
        )
    return TensorSpec(name, _DTYPES[kind], tuple(engine.get_tensor_shape(name)))
