"""Shape ranges of every tensor: ONNX Runtime's TensorRT provider wants those of the inputs of each segment.

Which tensors go into a segment is known once the model is divided. So all whose shape can be inferred get a range, and
those that no segment reads are not looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import onnx
from onnx import shape_inference

from engines.contract import DYNAMIC, BuildOptions, ShapeRange, TensorSpec
from engines.errors import EngineError
from engines.onnx_model import facts_from_model, read_model, shape_text
from engines.support.work import without_large_values

SEPARATORS = ":,"
"""What stands between names and shapes in the provider's options, so that a name cannot have it."""
WORDS = ("min", "opt", "max")


def profile_options(model: Path, options: BuildOptions) -> dict[str, str]:
    """``trt_profile_min_shapes`` and the like, for each profile of ``options``; none if all inputs have fixed shapes.

    Raises:
        EngineError: a dynamic input has no range, or its name cannot stand in these options.
    """
    proto = read_model(model)
    dynamic = [spec for spec in facts_from_model(proto, model).inputs if DYNAMIC in spec.shape]
    if not dynamic:
        return {}
    proto = without_large_values(proto)
    varying = {value.name for value in _values(shape_inference.infer_shapes(proto)) if _shape(value) is None}
    texts: dict[str, list[str]] = {word: [] for word in WORDS}
    for ranges in options.profiles() or ({},):
        check_profile(model, dynamic, ranges)
        inputs = {word: {name: getattr(r, word) for name, r in ranges.items()} for word in WORDS}
        shapes = {word: _shapes(proto, varying, inputs[word]) for word in WORDS}
        names = [name for name in shapes["min"] if all(name in shapes[word] for word in WORDS)]
        for word in WORDS:
            texts[word] += [f"{name}:{'x'.join(map(str, shapes[word][name]))}" for name in names]
    return {f"trt_profile_{word}_shapes": ",".join(texts[word]) for word in WORDS}


def check_profile(model: Path, dynamic: list[TensorSpec], ranges: Mapping[str, ShapeRange]) -> None:
    """That each dynamic input has a range, and a name that the provider can be told.

    Raises:
        EngineError: one has not.
    """
    for spec in dynamic:
        if spec.name not in ranges:
            low, mid, high = (shape_text(tuple(size if n == DYNAMIC else n for n in spec.shape)) for size in (1, 4, 16))
            raise EngineError(
                f"{model}: input '{spec.name}' is {shape_text(spec.shape)}, and no shape range is given for it; give "
                f"its min, opt and max shape, such as {low}, {mid} and {high}"
            )
        if any(separator in spec.name for separator in SEPARATORS):
            raise EngineError(
                f"{model}: input '{spec.name}' is {shape_text(spec.shape)}, and the TensorRT provider of ONNX Runtime "
                "cannot be told ranges of a name with ':' or ','; export it under another name, or take tensorrt"
            )


def _shapes(
    model: onnx.ModelProto, varying: Collection[str], inputs: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Of each tensor that is dynamic in the model, its shape with these inputs, as far as it can be inferred."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]  # An exporter's, with names for sizes that are known now.
    for value in (*fixed.graph.input, *fixed.graph.output):
        if value.name in inputs:
            for dim, size in zip(value.type.tensor_type.shape.dim, inputs[value.name]):
                dim.dim_value = size
        elif value.type.tensor_type.HasField("shape") and _shape(value) is None:
            value.type.tensor_type.ClearField("shape")
    values = _values(shape_inference.infer_shapes(fixed, data_prop=True))
    shapes = {value.name: _shape(value) for value in values if value.name in varying}
    return {
        name: shape
        for name, shape in shapes.items()
        if shape is not None and not any(separator in name for separator in SEPARATORS)
    }


def _values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    return [*inputs, *graph.value_info, *graph.output]


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """Its shape; None where that is not known."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return tuple(dim.dim_value for dim in tensor.shape.dim)
