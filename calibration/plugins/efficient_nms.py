"""TensorRT's plugin EfficientNMS_TRT, written out in operators of ONNX itself, which every runtime knows.

What it computes is what NVIDIA's README and source of the plugin say (github.com/NVIDIA/TensorRT,
plugin/efficientNMSPlugin). Of each picture the 4,096 pairs of box and class with the highest scores take part, but for
the background and those below ``score_threshold``. From the highest on, one is dropped if it overlaps one that was
kept, of its class or with ``class_agnostic`` of any, with an intersection over union of ``iou_threshold`` or more; the
first ``max_output_boxes`` of what is left are the answer, padded with zeros. A raw score is compared as it is, and goes
through the sigmoid as it is put out. Where there are too few, and the threshold is below 0.007, the plugin's source
fills up with what is below it; that is left out here.

No TopK asks for more than 3,840, which is the most that TensorRT sorts at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from calibration.errors import ModelError
from calibration.graph.editing import nodes_of, shapes_inferred
from calibration.graph.external_data import without_weights
from calibration.graph.opset import opset_of
from calibration.plugins.writer import NodeWriter

OPERATOR = "EfficientNMS_TRT"
NEEDED = (
    "score_threshold", "iou_threshold", "max_output_boxes", "background_class", "score_activation", "box_coding",
)  # fmt: skip
"""Attributes that the plugin asks for."""
MOST_CONSIDERED = 4096
"""So many pairs of box and class take part, of each picture."""
MOST_AT_ONCE = 3840
"""TensorRT's TopK takes no more."""
FIRST_OPSET = 12
"""Of GatherND as it is written here."""
FIRST_AXES_INPUT = 13
"""ReduceSum has its axes as an input from here on."""
LEFT_OUT = -10_000.0
"""The score of what does not take part: far below any score, raw ones too, and well within FP16's range."""


@dataclass(frozen=True)
class NmsAttributes:
    """Those of a node."""

    score_threshold: float
    iou_threshold: float
    max_output_boxes: int
    background_class: int
    score_activation: bool
    box_coding: int
    class_agnostic: bool

    def least_score(self) -> float:
        """The lowest score, as the model gives it, that takes part."""
        if not self.score_activation:
            return self.score_threshold
        if self.score_threshold <= 0:
            return LEFT_OUT
        share = np.float32(self.score_threshold)
        return float(np.log(share / (1 - share))) if share < 1 else math.inf


@dataclass(frozen=True)
class NmsShapes:
    """What is known of a node's inputs."""

    num_boxes: int
    num_classes: int
    each_class: bool
    """A box for each class: (N, boxes, classes, 4); else one for all, (N, boxes, 4) or (N, boxes, 1, 4)."""
    box_rank: int
    score_rank: int
    """4: (N, boxes, classes, 1)."""
    anchors_of_picture: bool
    """Each picture has anchors of its own."""
    element_type: int

    @property
    def num_considered(self) -> int:
        """Pairs of box and class that take part, of each picture."""
        return min(MOST_CONSIDERED, self.num_boxes * self.num_classes)


@dataclass(frozen=True)
class NmsNode:
    """One node of a model."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: NmsAttributes
    shapes: NmsShapes
    opset: int


def without_efficient_nms(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """Write each EfficientNMS_TRT out in operators of ONNX itself; outputs keep their names.

    Returns the model, and how many were written out; the same model if none.

    Raises:
        ModelError: a node lacks what the plugin asks for, or the number of its boxes or classes is not fixed.
    """
    if not any(node.op_type == OPERATOR for node in model.graph.node):
        return model, 0
    opset = opset_of(model)
    if opset < FIRST_OPSET:
        raise ModelError(f"{OPERATOR} is in a model of opset {opset}; export it with {FIRST_OPSET} or later")
    types = {value.name: value.type.tensor_type for value in _values(shapes_inferred(without_weights(model)))}
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.node[:]
    num, taken = 0, _names(model)
    for node in model.graph.node:
        if node.op_type != OPERATOR:
            changed.graph.node.append(node)
            continue
        nms = NmsNode(tuple(node.input), tuple(node.output), _attributes(node), _shapes(node, types), opset)
        _check_outputs(node, types, nms.attributes.max_output_boxes)
        writer = NodeWriter(node.name or f"{OPERATOR}_{num}", taken)
        _write(writer, nms)
        changed.graph.node.extend(writer.nodes)
        changed.graph.initializer.extend(writer.constants)
        num += 1
    _drop_unused_domains(changed)
    return changed, num


def _names(model: onnx.ModelProto) -> set[str]:
    names = {name for node in nodes_of(model.graph) for name in (*node.input, *node.output)}
    return names | {tensor.name for tensor in model.graph.initializer}


def _values(model: onnx.ModelProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (*model.graph.input, *model.graph.value_info, *model.graph.output)
    for tensor in model.graph.initializer:
        yield helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)


def _drop_unused_domains(model: onnx.ModelProto) -> None:
    used = {node.domain for node in nodes_of(model.graph)} | {"", "ai.onnx", *(f.domain for f in model.functions)}
    entries = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(entries)


def _attributes(node: onnx.NodeProto) -> NmsAttributes:
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if lacks := [name for name in NEEDED if name not in values]:
        raise ModelError(f"{_where(node)}: has no {lacks[0]}, which the plugin asks for; export the model again")
    for name in (*NEEDED, "class_agnostic"):
        if not isinstance(value := values.get(name, 0), (int, float)):
            raise ModelError(f"{_where(node)}: {name} is {value!r}, a number is expected; export the model again")
    attributes = NmsAttributes(
        score_threshold=float(values["score_threshold"]),
        iou_threshold=float(values["iou_threshold"]),
        max_output_boxes=int(values["max_output_boxes"]),
        background_class=int(values["background_class"]),
        score_activation=bool(values["score_activation"]),
        box_coding=int(values["box_coding"]),
        class_agnostic=bool(values.get("class_agnostic", 0)),
    )
    bounds = {
        "score_threshold": attributes.score_threshold >= 0,
        "iou_threshold": attributes.iou_threshold > 0,
        "max_output_boxes": 0 < attributes.max_output_boxes <= MOST_AT_ONCE,
        "box_coding": attributes.box_coding in (0, 1),
    }
    if wrong := [name for name, is_kept in bounds.items() if not is_kept]:
        raise ModelError(f"{_where(node)}: {wrong[0]} is {values[wrong[0]]}, which is not taken; export it again")
    return attributes


def _shapes(node: onnx.NodeProto, types: dict[str, onnx.TypeProto.Tensor]) -> NmsShapes:
    if len(node.input) not in (2, 3) or len(node.output) != 4:
        raise ModelError(f"{_where(node)}: two or three inputs and four outputs are expected; export the model again")
    boxes, scores, *anchors = (_dimensions(types.get(name)) for name in node.input)
    if not _are_taken(boxes, scores, anchors):
        shapes = ", ".join(f"'{name}' {_dimensions(types.get(name))}" for name in node.input)
        raise ModelError(
            f"{_where(node)}: its inputs have the shapes {shapes}; boxes (N, B, 4), (N, B, 1, 4) or (N, B, C, 4), "
            "scores (N, B, C) or (N, B, C, 1) and anchors (N, B, 4) are expected; export the model again"
        )
    num_boxes, num_classes = scores[1] or boxes[1], scores[2]
    if not num_boxes or not num_classes or (len(boxes) == 4 and not boxes[2]):
        raise ModelError(
            f"{_where(node)}: the number of boxes or of classes of '{node.input[1]}' is not fixed; export the model "
            "for pictures of one size"
        )
    of_picture = bool(anchors) and anchors[0][0] != 1
    each_class = len(boxes) == 4 and boxes[2] != 1
    ranks = len(boxes), len(scores)
    return NmsShapes(num_boxes, num_classes, each_class, *ranks, of_picture, types[node.input[0]].elem_type)


def _are_taken(boxes: tuple[int, ...], scores: tuple[int, ...], anchors: list[tuple[int, ...]]) -> bool:
    """Whether the plugin takes them, as far as their sizes are known."""
    if len(boxes) not in (3, 4) or boxes[-1] != 4 or any(len(each) != 3 for each in anchors):
        return False
    if len(scores) != 3 and not (len(scores) == 4 and scores[3] == 1):
        return False
    numbers = {each[1] for each in (boxes, scores, *anchors)} - {0}
    return len(numbers) < 2 and (len(boxes) == 3 or boxes[2] in (0, 1, scores[2]))


def _check_outputs(node: onnx.NodeProto, types: dict[str, onnx.TypeProto.Tensor], most: int) -> None:
    """That the model says no other number of boxes than the plugin puts out."""
    for name in node.output[1:]:
        sizes = _dimensions(types.get(name))
        if len(sizes) > 1 and sizes[1] not in (0, most):
            raise ModelError(
                f"{_where(node)}: max_output_boxes is {most}, and the model says of '{name}' that it has {sizes[1]}; "
                "export the model again"
            )


def _dimensions(value: onnx.TypeProto.Tensor | None) -> tuple[int, ...]:
    """0 for what is not known."""
    return () if value is None else tuple(each.dim_value for each in value.shape.dim)


def _where(node: onnx.NodeProto) -> str:
    return f"node '{node.name or node.output[0]}', {OPERATOR}"


def _write(write: NodeWriter, nms: NmsNode) -> None:
    score, pair = _considered(write, nms)
    num_classes = write.ints(nms.shapes.num_classes)
    box_index = write("Div", pair, num_classes)
    class_index = write("Sub", pair, write("Mul", box_index, num_classes))
    boxes = _corners(write, nms, pair if nms.shapes.each_class else box_index, box_index)
    chosen = _chosen(write, nms, boxes, score, class_index)
    _put_out(write, nms, boxes, class_index, chosen)


def _in_fp32(write: NodeWriter, nms: NmsNode, value: str) -> str:
    return value if nms.shapes.element_type == TensorProto.FLOAT else write.cast(value, TensorProto.FLOAT)


def _considered(write: NodeWriter, nms: NmsNode) -> tuple[str, str]:
    """Scores that take part, falling, ``LEFT_OUT`` behind them, and where each is in (boxes, classes); (N, K) both."""
    attributes, shapes = nms.attributes, nms.shapes
    scores = _in_fp32(write, nms, nms.inputs[1])
    if shapes.score_rank == 4:
        scores = write.reshaped(scores, (0, -1, shapes.num_classes))
    if 0 <= attributes.background_class < shapes.num_classes:
        is_background = np.arange(shapes.num_classes) == attributes.background_class
        mask = write.cast(write.ints(is_background.astype(np.int64)), TensorProto.BOOL)
        scores = write("Where", mask, write.floats(LEFT_OUT), scores)
    flat = write.reshaped(scores, (0, -1))
    least = write.floats(min(attributes.least_score(), float(np.finfo(np.float32).max)))
    is_high = write("Or", write("Greater", flat, least), write("Equal", flat, least))
    flat = write("Where", is_high, flat, write.floats(LEFT_OUT))
    score, place = write.top(flat, min(shapes.num_considered, MOST_AT_ONCE))
    if num_more := max(shapes.num_considered - MOST_AT_ONCE, 0):
        gone = write("Add", write("Mul", score, write.floats(0)), write.floats(LEFT_OUT))
        more, at = write.top(write("ScatterElements", flat, place, gone, axis=1), num_more)
        score, place = write("Concat", score, more, axis=1), write("Concat", place, at, axis=1)
    return score, place


def _corners(write: NodeWriter, nms: NmsNode, box_places: str, anchor_places: str) -> str:
    """The boxes that take part as two corners each, (N, K, 4); where they are, and where their anchors, (N, K)."""
    boxes = _in_fp32(write, nms, nms.inputs[0])
    boxes = _rows(write, write.reshaped(boxes, (0, -1, 4)) if nms.shapes.box_rank == 4 else boxes, box_places)
    anchors = ""
    if len(nms.inputs) > 2:
        anchors = _in_fp32(write, nms, nms.inputs[2])
        if nms.shapes.anchors_of_picture:
            anchors = _rows(write, anchors, anchor_places)
        else:
            anchors = write("Gather", write.reshaped(anchors, (-1, 4)), anchor_places, axis=0)
    if nms.attributes.box_coding == 0:
        return write("Add", _in_order(write, boxes), _in_order(write, anchors)) if anchors else boxes
    center, size = _halves(write, boxes)
    if anchors:
        anchor_center, anchor_size = _halves(write, anchors)
        center = write("Add", write("Mul", center, anchor_size), anchor_center)
        size = write("Mul", anchor_size, write("Exp", size))
    half = write("Mul", size, write.floats(0.5))
    return write("Concat", write("Sub", center, half), write("Add", center, half), axis=2)


def _rows(write: NodeWriter, table: str, places: str) -> str:
    """Of a table (N, R) or (N, R, 4) the rows at places (N, K)."""
    return write("GatherND", table, write.reshaped(places, (0, -1, 1)), batch_dims=1)


def _halves(write: NodeWriter, boxes: str) -> tuple[str, str]:
    return write("Gather", boxes, write.ints([0, 1]), axis=2), write("Gather", boxes, write.ints([2, 3]), axis=2)


def _in_order(write: NodeWriter, boxes: str) -> str:
    first, second = _halves(write, boxes)
    return write("Concat", write("Min", first, second), write("Max", first, second), axis=2)


def _chosen(write: NodeWriter, nms: NmsNode, boxes: str, score: str, class_index: str) -> str:
    """Scores of the pairs of box and class that are kept, ``LEFT_OUT`` for the others, (N, K)."""
    attributes, num_classes = nms.attributes, nms.shapes.num_classes
    of_classes = write.reshaped(score, (0, 1, -1))
    if not attributes.class_agnostic and num_classes > 1:
        every = write.ints(np.arange(num_classes).reshape(1, -1, 1))
        is_of_class = write("Equal", write.reshaped(class_index, (0, 1, -1)), every)
        of_classes = write("Where", is_of_class, of_classes, write.floats(LEFT_OUT))
    overlap = np.float32(1)
    if attributes.iou_threshold <= 1:  # ONNX drops what overlaps by more, the plugin what overlaps by as much.
        overlap = np.nextafter(np.float32(attributes.iou_threshold), np.float32(0))
    selected = write(
        "NonMaxSuppression", boxes, of_classes, write.ints([attributes.max_output_boxes]),
        write.floats([float(overlap)]), write.floats([LEFT_OUT]),
    )  # fmt: skip
    at = write("Gather", selected, write.ints([0, 2]), axis=1)
    first = write.cast(write("Gather", selected, write.ints(0), axis=1), TensorProto.FLOAT)
    ones = write("Add", write("Mul", first, write.floats(0)), write.floats(1))
    marks = write("ScatterND", write("Mul", score, write.floats(0)), at, ones)
    return write("Where", write("Greater", marks, write.floats(0.5)), score, write.floats(LEFT_OUT))


def _put_out(write: NodeWriter, nms: NmsNode, boxes: str, class_index: str, chosen: str) -> None:
    """The plugin's four outputs, by their names; ``chosen``: the scores of the pairs that are kept."""
    most, element_type = nms.attributes.max_output_boxes, nms.shapes.element_type
    num_boxes, boxes_out, scores_out, classes_out = nms.outputs
    num = min(most, nms.shapes.num_considered)
    score, place = write.top(chosen, num)
    is_valid = write("Greater", score, write.floats(LEFT_OUT))
    counts = write.cast(is_valid, TensorProto.INT32)
    if nms.opset < FIRST_AXES_INPUT:
        write("ReduceSum", counts, output=num_boxes, axes=[1], keepdims=1)
    else:
        write("ReduceSum", counts, write.ints([1]), output=num_boxes, keepdims=1)
    if nms.attributes.score_activation:
        score = write("Sigmoid", score)
    zero = write.floats(0)
    score = write("Where", is_valid, score, zero)
    rows = write("Where", write.reshaped(is_valid, (0, -1, 1)), _rows(write, boxes, place), zero)
    classes = write.cast(_rows(write, class_index, place), TensorProto.FLOAT)
    classes = write("Where", is_valid, classes, zero)
    if missing := most - num:
        score, classes = (write("Pad", each, write.ints([0, 0, 0, missing])) for each in (score, classes))
        rows = write("Pad", rows, write.ints([0, 0, 0, 0, missing, 0]))
    write.cast(rows, element_type, boxes_out)
    write.cast(score, element_type, scores_out)
    write.cast(classes, TensorProto.INT32, classes_out)
