"""A model that gives intermediate tensors as outputs, and which of them can be watched."""

from __future__ import annotations

import difflib
import math
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx

from calibration.errors import ModelError
from calibration.graph.editing import RANDOM, nodes_of, shapes_inferred, unique
from calibration.graph.external_data import save_model, without_weights
from calibration.graph.weightless import skeleton_from_file


def watchable(model: onnx.ModelProto, types: Collection[int] = (onnx.TensorProto.FLOAT,)) -> list[str]:
    """The FP32 tensors of the main graph that depend on an input, in topological order, inputs first.

    Constants, initializers, and what is computed from them alone are left out; random numbers are not. ``types`` asks
    for tensors of other element types.
    """
    floats = {name for name, value in typed_values(model).items() if value.type.tensor_type.elem_type in types}
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    moving = [value.name for value in model.graph.input if value.name not in constants]
    depends = set(moving)
    for node in model.graph.node:
        if _is_random(node) or not depends.isdisjoint(read_by(node)):
            names = [name for name in node.output if name]
            moving += names
            depends.update(names)
    return [name for name in moving if name in floats]


def replaced_where_nan(model: onnx.ModelProto) -> frozenset[str]:
    """Tensors of the main graph whose NaN the model itself replaces: each way from them leads through a Where or IsNaN.

    So a Softmax whose row is all masked, as PyTorch's exporter writes it: ``Where(IsNaN(p), 0, p)``.
    """
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    inner: set[str] = set()
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, index))
        inner.update(set(read_by(node)) - set(node.input))
    outputs, replaced = {value.name for value in model.graph.output}, set[str]()
    for node in reversed(model.graph.node):
        for name in node.output:
            if name in readers and name not in outputs | inner:
                ends = [_replaces(reader, index, replaced) for reader, index in readers[name]]
                if None not in ends and any(ends):
                    replaced.add(name)
    return frozenset(replaced)


def _replaces(node: onnx.NodeProto, index: int, replaced: Collection[str]) -> bool | None:
    """Whether a NaN that it reads there is replaced at once or later; False if it reads no values, None if not."""
    if node.op_type in ("Shape", "Size", "IsInf"):
        return False
    if node.op_type == "IsNaN" or (node.op_type == "Where" and index):
        return True
    return True if node.output and all(name in replaced for name in node.output if name) else None


def watch_tensors(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """A copy of the model with these tensors as further outputs; inputs and present outputs stay as they are.

    A tensor whose rank onnx cannot infer comes out flat, as an output without a rank is not valid.

    Raises:
        ModelError: a name is no tensor of the main graph, or its type cannot be inferred.
    """
    known = typed_values(model)
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


def write_watched(source: Path, model: onnx.ModelProto, names: Iterable[str], target: Path) -> None:
    """Write the model of the file ``source`` with these tensors as further outputs, see ``watch_tensors``.

    Where that takes nothing but outputs they are appended to the file: fields of a message that come later join those
    that came before (Protocol Buffers, "Encoding", last field wins and merging), so no weight is touched.

    Args:
        source: the binary ONNX file that ``model`` was read from.
        model: the same, with the weights of external files loaded.
        names: tensors to watch.
        target: the file to write.

    Raises:
        ModelError: as ``watch_tensors``.
    """
    light = skeleton_from_file(source)
    watched = watch_tensors(without_weights(model), names)
    has_external = any(tensor.external_data for tensor in light.graph.initializer)
    if has_external or len(watched.graph.node) != len(light.graph.node):
        save_model(watch_tensors(model, names), target)
        return
    shutil.copyfile(source, target)
    outputs = watched.graph.output[len(light.graph.output) :]
    with target.open("ab") as stream:
        stream.write(onnx.ModelProto(graph=onnx.GraphProto(output=outputs)).SerializeToString())


def num_computed_values(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Values of all tensors of the main graph for inputs of these shapes; an unknown dimension counts as one."""
    model = skeleton_from_file(path)
    for value in model.graph.input:
        for dimension, size in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ())):
            dimension.dim_value = size
    model.graph.ClearField("value_info")
    dimensions = (value.type.tensor_type.shape.dim for value in typed_values(model).values())
    return sum(math.prod(max(dimension.dim_value, 1) for dimension in shape) for shape in dimensions)


def typed_values(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Inputs, node outputs and outputs of the main graph whose type is given or can be inferred."""
    graph = shapes_inferred(without_weights(model)).graph
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


def _is_random(node: onnx.NodeProto) -> bool:
    """Whether the node, or a node of a graph inside it, draws numbers."""
    return any(each.op_type in RANDOM for each in nodes_of(onnx.GraphProto(node=[node])))


def read_by(node: onnx.NodeProto) -> set[str]:
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
