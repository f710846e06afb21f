"""Bring a model to an opset, up or down, where onnx's converter can do so without changing what is computed."""

from __future__ import annotations

import re

import onnx
from onnx import version_converter

from calibration.errors import ModelError
from calibration.graph.editing import nodes_of
from calibration.graph.external_data import check_model, with_weights_of, without_weights

ONNX_DOMAINS = ("", "ai.onnx")
FIRST_SCAN = 9
"""Scan of opset 8 has a batch, which the converter drops."""
FIRST_COORDINATES = 11
"""Resize and Upsample of opset 10 and before scale coordinates as they are; the converter leaves the new default."""
FIRST_HARDMAX = 13
"""Hardmax, Softmax and LogSoftmax of opset 12 and before flatten all axes from theirs on."""
USUAL_AXES = (0, 2, 3)
"""Of MeanVarianceNormalization; onnx's own checks fail where they are left to the operator's default."""

ASSERTION = re.compile(r"^\S+:\d+: \w+: Assertion `.*?` failed: ")
"""How onnx's converter begins: a file of its source, and a condition there."""
IN_WORDS = (
    (r"^No Adapter (?:From|To) Version \$(\d+) for (\w+)$", r"it does not convert \2 of opset \1"),
    (r"^No Previous Version of (\w+) exists$", r"no earlier opset has \1"),
    (r"^Op '%s' has no registered schema; .*\.(\w+?)\d*$", r"ONNX has no operator \1"),
)
"""Its commonest sentences, one of which it forgets to fill in."""


def opset_of(model: onnx.ModelProto) -> int:
    """The opset of ONNX's own operators; 0 if the model imports none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS), 0)


def brought_to(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A copy of the model in this opset.

    Raises:
        ModelError: onnx's converter cannot do it; says why.
    """
    brought = without_weights(model)
    if not opset_of(model):  # It has operators of ai.onnx.ml alone.
        brought.opset_import.append(onnx.helper.make_opsetid("", opset))
    for node in nodes_of(brought.graph):
        if node.domain in ONNX_DOMAINS:
            _prepare(node, opset_of(model), opset)
            if node.op_type == "Hardmax" and opset_of(model) < FIRST_HARDMAX <= opset and _flattens(model, node):
                raise ModelError(
                    f"node '{node.name or node.output[0]}' is a Hardmax of opset {opset_of(model)} over several axes, "
                    "which onnx's converter makes one of the last axis alone"
                )
    if opset_of(brought) == opset:
        return with_weights_of(model, brought)
    try:
        brought = version_converter.convert_version(brought, opset)
        if opset_of(model) < FIRST_COORDINATES <= opset:
            _keep_coordinates(brought)
        check_model(brought, full_check=True)
        return with_weights_of(model, brought)
    except Exception as error:  # It raises RuntimeError and its own kind, which has no name in Python.
        words = converter_words(error)
        raise ModelError(f"onnx cannot convert it from opset {opset_of(model)} to {opset} ({words:.300})") from error


def converter_words(error: BaseException) -> str:
    """What onnx's converter says of its error, without where in its own source that stands."""
    words = ASSERTION.sub("", " ".join(str(error).split()))
    for pattern, instead in IN_WORDS:
        words = re.sub(pattern, instead, words)
    return words


def _keep_coordinates(model: onnx.ModelProto) -> None:
    for node in nodes_of(model.graph):
        if node.op_type == "Resize" and node.domain in ONNX_DOMAINS:
            attributes = {each.name: each.s.decode() for each in node.attribute}
            before = {"coordinate_transformation_mode": "asymmetric"}
            before |= {"nearest_mode": "floor"} if attributes.get("mode", "nearest") == "nearest" else {}
            for name, value in before.items():
                if name not in attributes:
                    node.attribute.append(onnx.helper.make_attribute(name, value))


def _flattens(model: onnx.ModelProto, node: onnx.NodeProto) -> bool:
    """Whether a Hardmax of opset 12 or before takes more than the last axis together, as far as is known."""
    inferred = onnx.shape_inference.infer_shapes(without_weights(model)).graph
    values = {value.name: value for value in (*inferred.input, *inferred.value_info, *inferred.output)}
    known = node.input[0] in values and values[node.input[0]].type.tensor_type.HasField("shape")
    rank = len(values[node.input[0]].type.tensor_type.shape.dim) if known else 0
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    return not rank or axis % rank != rank - 1


def _prepare(node: onnx.NodeProto, before: int, after: int) -> None:
    """What the converter does not do by itself.

    Raises:
        ModelError: it would do it wrongly.
    """
    if node.op_type == "Scan" and before < FIRST_SCAN <= after:
        raise ModelError(
            f"node '{node.name or node.output[0]}' is a Scan of opset {before}, which has a batch; onnx's converter "
            "drops it"
        )
    names = [attribute.name for attribute in node.attribute]
    if node.op_type == "MeanVarianceNormalization" and "axes" not in names:
        node.attribute.append(onnx.helper.make_attribute("axes", USUAL_AXES))
    if after < before and "noop_with_empty_axes" in names and node.op_type.startswith("Reduce"):
        index = names.index("noop_with_empty_axes")
        if not node.attribute[index].i:  # Which is the default, of an attribute that came late.
            del node.attribute[index]
