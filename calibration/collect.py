"""Stream batches through a runner and keep one histogram per tensor; memory does not grow with the samples."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from calibration.accumulate import Accumulator, accumulator
from calibration.errors import DataError, ModelError
from calibration.graph import nodes_of, unique
from calibration.observers import Histogram

Array: TypeAlias = npt.NDArray[np.generic]
Run: TypeAlias = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""From a batch, input name -> (N, ...), to the values of the watched tensors."""

logger = logging.getLogger(__name__)


def collect(
    run: Run, batches: Iterable[Mapping[str, Array]], *, on_batch: Callable[[int], object] = lambda _num: None
) -> dict[str, Histogram]:
    """Run all batches and return the histogram of every floating-point input and watched tensor, inputs first.

    The result does not depend on the batch size or on the order of the samples, as far as the runner's values do not.
    A tensor that is empty on a batch adds nothing; one that is empty on all has a histogram of nothing.
    ``on_batch`` is told the number of samples done.

    Raises:
        DataError: there are no samples, or a tensor has a NaN or infinite value.
    """
    adding: dict[str, Accumulator] = {}
    num_samples = 0
    for batch in batches:
        num_batch = len(next(iter(batch.values()), ()))
        which = f"samples {num_samples} to {num_samples + num_batch - 1}"
        _add({**batch, **run(batch)}, adding, which)
        del batch  # Before the next one is made, so that never two are in memory.
        num_samples += num_batch
        on_batch(num_samples)
    if not num_samples:
        raise DataError(
            "calibration: there are no calibration samples, at least one is expected, as ranges are never made up; "
            "give representative data"
        )
    found = {name: each.histogram() for name, each in adding.items()}
    for name, histogram in found.items():
        if not histogram.num_values:
            logger.warning("tensor '%s' is empty on every sample, so it has no range", name)
    return found


def _add(tensors: Mapping[str, Array], adding: dict[str, Accumulator], which: str) -> None:
    """Add the values of a batch's floating-point tensors to the histograms found so far."""
    for name, values in tensors.items():
        if values.dtype.kind == "f":
            if name not in adding:
                adding[name] = accumulator()
            adding[name].add(values, f"tensor '{name}' on {which}")


def watchable(model: onnx.ModelProto) -> list[str]:
    """The FP32 tensors of the main graph that depend on an input, in topological order, inputs first.

    Constants, initializers, and what is computed from them alone are left out; random numbers are not.
    """
    floats = {name for name, value in _typed_values(model).items() if _is_float(value)}
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    moving = [value.name for value in model.graph.input if value.name not in constants]
    depends = set(moving)
    for node in model.graph.node:
        if _is_random(node) or not depends.isdisjoint(_read_by(node)):
            names = [name for name in node.output if name]
            moving += names
            depends.update(names)
    return [name for name in moving if name in floats]


def watch_tensors(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of the model with these tensors as further outputs; inputs and present outputs stay as they are.

    A tensor whose rank onnx cannot infer comes out flat, as an output without a rank is not valid.

    Raises:
        ModelError: a name is no tensor of the main graph, or its type cannot be inferred.
    """
    known = _typed_values(model)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    have = {value.name for value in [*model.graph.input, *model.graph.output]}
    for name in names:
        if name in have:
            continue
        if name not in known:
            raise _unknown(model, name)
        watched.graph.output.append(known[name])
        have.add(name)
        if not known[name].type.tensor_type.HasField("shape"):
            _flatten(watched.graph, name)
    return watched


def _typed_values(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Inputs, node outputs and outputs of the main graph whose type is given or can be inferred."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    made = {name for node in graph.node for name in node.output} | {value.name for value in graph.input}
    values = [*graph.input, *graph.value_info, *graph.output]
    return {value.name: value for value in values if value.name in made and value.type.HasField("tensor_type")}


def _flatten(graph: onnx.GraphProto, name: str) -> None:
    """Make the last output, ``name``, the flat values of what was called so before."""
    nodes = list(nodes_of(graph))
    taken = {each for node in nodes for each in (*node.input, *node.output)}
    taken |= {tensor.name for tensor in graph.initializer}
    inner, shape = unique(f"{name}_in_shape", taken), unique(f"{name}_flat", taken)
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [inner if each == name else each for each in names]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1]), shape))
    graph.node.append(onnx.helper.make_node("Reshape", [inner, shape], [name]))
    graph.output[-1].type.tensor_type.shape.dim.add()


def _is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def _is_random(node: onnx.NodeProto) -> bool:
    return node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial")


def _read_by(node: onnx.NodeProto) -> set[str]:
    """Names that the node, or a node of a graph inside it (If, Loop, Scan), reads."""
    inner = onnx.GraphProto(node=[node])
    return {name for each in nodes_of(inner) for name in each.input if name}


def _unknown(model: onnx.ModelProto, name: str) -> ModelError:
    made = sorted({output for node in model.graph.node for output in node.output if output})
    if name in made:
        return ModelError(
            f"tensor '{name}': its type is not known and onnx cannot infer it; add it to the graph's value_info"
        )
    near = difflib.get_close_matches(name, made, n=1, cutoff=0.0)
    hint = f"; the nearest is '{near[0]}'" if near else ""
    return ModelError(f"tensor '{name}': is computed by no node of the model's main graph, so cannot be watched{hint}")
