"""Zero padding of its own, as Keras's ZeroPadding2D writes it, into the convolution or pool that reads it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from calibration.graph.editing import (
    attribute_int,
    attribute_ints,
    attribute_string,
    constant,
    dimensions,
    rewritten,
)

NOT_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax")
"""Of their output no value is below 0."""


def fold_pads(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Let convolutions pad for themselves; and max pools, whose padding is minus infinity, of data that is nowhere < 0.

    Folded is a Pad with constant zeros of the positions of (N, C, …) data. It stays for whoever else reads it. The
    answers are the same bits.

    Returns the model, and how many readers pad for themselves now; the same model if none.

    Raises:
        ModelError: the result is not valid ONNX.
    """
    return rewritten(model, "Pad", _fold_pads)


def _fold_pads(graph: ir.Graph) -> int:
    num_folded = 0
    for pad in [node for node in graph if node.op_type == "Pad" and node.domain in ("", "ai.onnx")]:
        edges, data = _edges(pad), pad.inputs[0]
        if edges is None or data is None:
            continue
        output = pad.outputs[0]
        for reader in [use.node for use in output.uses() if use.idx == 0 and use.node.graph is graph]:
            num_folded += _fold_into(reader, edges, data)
        if not output.uses() and not output.is_graph_output():
            graph.remove(pad, safe=True)
    return num_folded


def _edges(pad: ir.Node) -> tuple[list[int], list[int]] | None:
    """Zeros before and behind the data by position; None if it pads in another way."""
    shape = dimensions(pad.inputs[0])
    pads = constant(pad.inputs[1]) if len(pad.inputs) > 1 else None
    if shape is None or len(shape) < 3 or pads is None or attribute_string(pad, "mode", "constant") != "constant":
        return None
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    if value is not None and ((array := constant(value)) is None or array.size != 1 or float(array.reshape(-1)[0])):
        return None
    axes = np.arange(len(shape))
    if len(pad.inputs) > 3 and pad.inputs[3] is not None:
        chosen = constant(pad.inputs[3])
        if chosen is None:
            return None
        axes = chosen % len(shape)
    edges = np.zeros((2, len(shape)), np.int64)
    edges[:, axes] = pads.reshape(2, -1)
    if (edges < 0).any() or edges[:, :2].any():
        return None
    begin, end = edges[:, 2:].tolist()
    return begin, end


def _fold_into(reader: ir.Node, edges: tuple[list[int], list[int]], data: ir.Value) -> bool:
    """Let a reader of the padded data pad for itself; False if it cannot."""
    if reader.domain not in ("", "ai.onnx") or attribute_string(reader, "auto_pad", "NOTSET") not in (
        "NOTSET",
        "VALID",
    ):
        return False
    begin, end = edges
    padded = attribute_ints(reader, "pads", (0,) * (2 * len(begin)))
    summed = [old + new for old, new in zip(padded, (*begin, *end), strict=True)]
    if reader.op_type == "MaxPool":
        if not _is_pool_of_positive(reader, data, summed) or any(padded):
            return False
    elif reader.op_type != "Conv":
        return False
    reader.attributes.pop("auto_pad", None)
    reader.attributes["pads"] = ir.AttrInt64s("pads", summed)
    reader.replace_input_with(0, data)
    return True


def _is_pool_of_positive(pool: ir.Node, data: ir.Value, pads: list[int]) -> bool:
    """Whether zeros around the data are never the largest but of zeros, and no window lies in them alone."""
    producer = data.producer()
    if producer is None or attribute_int(pool, "ceil_mode", 0) or len(pool.outputs) > 1:
        return False
    if producer.op_type == "Clip":
        least = constant(producer.inputs[1]) if len(producer.inputs) > 1 else None
        is_positive = least is not None and float(least.reshape(-1)[0]) >= 0
    else:
        is_positive = producer.op_type in NOT_NEGATIVE
    sizes = list(pool.attributes["kernel_shape"].as_ints())
    dilated = "dilations" in pool.attributes and any(each > 1 for each in pool.attributes["dilations"].as_ints())
    return is_positive and not dilated and all(pad < size for pad, size in zip(pads, sizes * 2, strict=True))
