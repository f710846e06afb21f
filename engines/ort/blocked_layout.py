"""ONNX Runtime's optimized graph, with tensors given out in the blocked layout that its convolutions compute in.

On CPUs with AVX its convolutions keep 8 or 16 channels side by side (``com.microsoft.nchwc``), and a tensor that is an
output goes through a ReorderOutput node first. Whoever needs the values alone, in whatever order, can do without: of
the time that 53 watched tensors cost a MobileNetV2, four fifths are that reordering.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

DOMAIN = "com.microsoft.nchwc"
LARGEST_BLOCK = 16
"""Channels in a block, at most. Numbers of channels that it does not divide are padded, with values of no meaning."""


@dataclass(frozen=True)
class Unordered:
    """A model some of whose outputs stand for others, with their values in another order."""

    model: onnx.ModelProto
    source: Mapping[str, str]
    """Output of the ordered model -> the output that has its values now; for every output."""

    @property
    def num_reordered(self) -> int:
        """So many outputs need no reordering any more."""
        return sum(name != source for name, source in self.source.items())


def unordered(model: onnx.ModelProto) -> Unordered:
    """Take out each ReorderOutput whose result is nothing but an output, and give out what it read.

    A model with graphs inside (If, Loop, Scan) stays as it is: ONNX Runtime gives the tensors that it adds to each
    graph the same names, and refuses to read that again.

    Args:
        model: a graph that ONNX Runtime has optimized and saved; it is changed in place. Weights are not looked at.
    """
    graph = model.graph
    outputs = {value.name for value in graph.output}
    source = {name: name for name in outputs}
    if any(attribute.HasField("g") or attribute.graphs for node in graph.node for attribute in node.attribute):
        return Unordered(model, source)
    read = {name for node in graph.node for name in node.input}
    nodes = []
    for node in graph.node:
        if node.op_type == "ReorderOutput" and node.domain == DOMAIN and _is_needless(node, outputs - read):
            source[node.output[0]] = node.input[0]
        else:
            nodes.append(node)
    values = {value.name: value for value in graph.output}
    output_by_source = {source[name]: value for name, value in values.items()}
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    for name, value in output_by_source.items():
        if name == value.name:
            graph.output.append(value)
        else:
            graph.output.add(name=name).type.tensor_type.elem_type = value.type.tensor_type.elem_type
    return Unordered(model, source)


def _is_needless(node: onnx.NodeProto, only_outputs: set[str]) -> bool:
    channels = next((attribute.i for attribute in node.attribute if attribute.name == "channels"), 1)
    return node.output[0] in only_outputs and channels % LARGEST_BLOCK == 0


def probe() -> tuple[onnx.ModelProto, npt.NDArray[np.float32]]:
    """A convolution that gives its input ``x`` out as ``y``, and values for it that tell where each of them went."""
    channels = 2 * LARGEST_BLOCK
    weight = np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1)
    shape = [1, channels, 3, 3]
    value = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in "xy")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"])],
        "probe",
        [next(value)],
        [next(value)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    return model, np.arange(channels * 9, dtype=np.float32).reshape(shape)


def block_size(values: npt.NDArray[Any], ordered: npt.NDArray[Any]) -> int | None:
    """How many channels lie side by side in (N, C, H, W) values, 1 if they are in order; None of another layout."""
    num, channels, *others = ordered.shape
    for block in (1, *(size for size in range(2, LARGEST_BLOCK + 1) if channels % size == 0)):
        blocked = np.moveaxis(ordered.reshape(num, channels // block, block, *others), 2, -1)
        if np.array_equal(values.reshape(-1), blocked.reshape(-1)):
            return block
    return None
