"""Stream batches through a runner and keep one histogram per tensor; memory does not grow with the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from calibration.errors import DataError, ModelError
from calibration.observers import Histogram, histogram_from_values

Array: TypeAlias = npt.NDArray[np.generic]
Run: TypeAlias = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""From a batch, input name -> (N, ...), to the values of the watched tensors."""


def collect(
    run: Run, batches: Iterable[Mapping[str, Array]], *, on_batch: Callable[[int], object] = lambda _num: None
) -> dict[str, Histogram]:
    """Run all batches and return the histogram of every floating-point input and watched tensor.

    ``on_batch`` is told the number of samples done.

    Raises:
        DataError: there are no batches, or a tensor has a NaN or infinite value.
    """
    found: dict[str, Histogram] = {}
    num_samples = 0
    for batch in batches:
        for name, values in {**batch, **run(batch)}.items():
            if values.dtype.kind == "f":
                seen = histogram_from_values(values, name)
                found[name] = seen.merged(found[name]) if name in found else seen
        num_samples += len(next(iter(batch.values())))
        on_batch(num_samples)
    if not num_samples:
        raise DataError("calibration: there are no samples, and ranges are never made up; give representative data")
    return found


def watchable(model: onnx.ModelProto) -> list[str]:
    """The FP32 tensors of the main graph that depend on an input, in topological order, inputs first."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False)
    graph = inferred.graph
    floats = {
        value.name
        for value in [*graph.input, *graph.value_info, *graph.output]
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    constants = {tensor.name for tensor in graph.initializer}
    moving = [value.name for value in graph.input if value.name not in constants]
    depends = set(moving)
    for node in graph.node:
        if any(name in depends for name in node.input) or _captures(node, depends):
            moving += [name for name in node.output if name]
            depends.update(node.output)
    return [name for name in moving if name in floats]


def watch_tensors(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The model with these tensors as further outputs; inputs and present outputs stay as they are.

    Raises:
        ModelError: a name is no tensor of the graph, or its type cannot be inferred.
    """
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {value.name: value for value in inferred.graph.value_info}
    have = {value.name for value in [*model.graph.input, *model.graph.output]}
    for name in names:
        if name in have:
            continue
        if name not in known:
            raise ModelError(f"tensor '{name}': is not in the model, or its type is unknown; name another")
        watched.graph.output.append(known[name])
        have.add(name)
    return watched


def _captures(node: onnx.NodeProto, depends: set[str]) -> bool:
    """Whether a subgraph of the node (If, Loop, Scan) reads one of these tensors."""
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for inner in graph.node:
                if any(name in depends for name in inner.input) or _captures(inner, depends):
                    return True
    return False
