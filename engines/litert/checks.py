"""What a `.tflite` file must be, to be run here in the precision that is asked for; one sentence where it is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.contract import DYNAMIC, BuildOptions, TensorSpec
from engines.errors import EngineError
from engines.litert.facts import TfliteFacts, TfliteOperator
from engines.onnx_model import check_ranges, shape_text
from engines.precision import precision_named

NUM_NAMED = 5
"""Operators in a sentence."""


def check_operators(facts: TfliteFacts, path: Path) -> None:
    """That all operators are of TensorFlow Lite's own; EngineError."""
    if customs := [operator for operator in facts.operators if operator.is_custom]:
        are, them = ("is no operator", "that") if len(customs) == 1 else ("are no operators", "them")
        raise EngineError(
            f"{path}: {listed(customs)} {are} of TensorFlow Lite's own, which alone LiteRT runs here; replace "
            f"{them} in the network"
        )


def check_specs(inputs: tuple[TensorSpec, ...], options: BuildOptions, path: Path) -> None:
    """That all shapes are fixed, and within the ranges that are asked for; EngineError."""
    for spec in inputs:
        if DYNAMIC in spec.shape:
            raise EngineError(
                f"{path}: input '{spec.name}' is {shape_text(spec.shape)}, a fixed shape is expected; convert the "
                "network with `trtforge convert`, which fixes the batch"
            )
        if not spec.dtype:
            raise EngineError(f"{path}: input '{spec.name}' is of a type that numpy does not have; give it a number's")
    shapes = {spec.name: spec.shape for spec in inputs}
    free = tuple(TensorSpec(spec.name, spec.dtype, (DYNAMIC, *spec.shape[1:])) for spec in inputs)
    for ranges in options.profiles():
        check_ranges(free, ranges, path)
        for name, each in ranges.items():
            if not all(low <= size <= high for low, size, high in zip(each.min, shapes[name], each.max)):
                raise EngineError(
                    f"{path}: input '{name}' is {shape_text(shapes[name])}, which is not within the shapes asked for, "
                    f"{shape_text(each.min)} to {shape_text(each.max)}; set [convert] batch_size, or the shapes"
                )


def check_precision(facts: TfliteFacts, precision: str, path: Path) -> None:
    """That the file is what is asked for, throughout; EngineError."""
    if (written := facts.precision()) != precision:
        raise EngineError(
            f"{path}: precision {precision} is requested, the file is in {written}; ask for {written}, or write "
            f"{precision} with `trtforge ptq`"
        )
    asked = precision_named(precision)
    if asked.is_integer and not asked.is_dynamic and (floats := facts.left_in_floats()):
        raise EngineError(
            f"{path}: {len(floats)} of {len(facts.operators)} operators compute in floating point, {listed(floats)}; "
            f"in {precision} all are expected to compute in integers: replace them in the network, name them "
            "in [ptq] exclude, or take dynamic"
        )


def listed(operators: Sequence[TfliteOperator]) -> str:
    """The first of them, by kind and name."""
    named = ", ".join(f"{operator.kind} '{operator.name}'" for operator in operators[:NUM_NAMED])
    return named + (f" and {len(operators) - NUM_NAMED} more" if len(operators) > NUM_NAMED else "")
