"""Bring a model to an opset, up or down, where onnx's converter can do so without changing what is computed."""

from __future__ import annotations

import onnx
from onnx import version_converter

from calibration.errors import ModelError
from calibration.graph.editing import nodes_of

ONNX_DOMAINS = ("", "ai.onnx")
FIRST_SCAN = 9
"""Scan of opset 8 has a batch, which the converter drops."""
USUAL_AXES = (0, 2, 3)
"""Of MeanVarianceNormalization; onnx's own checks fail where they are left to the operator's default."""


def opset_of(model: onnx.ModelProto) -> int:
    """The opset of ONNX's own operators; 0 if the model imports none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS), 0)


def brought_to(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A copy of the model in this opset.

    Raises:
        ModelError: onnx's converter cannot do it; says why.
    """
    brought = onnx.ModelProto()
    brought.CopyFrom(model)
    if not opset_of(model):  # It has operators of ai.onnx.ml alone.
        brought.opset_import.append(onnx.helper.make_opsetid("", opset))
    for node in nodes_of(brought.graph):
        if node.domain in ONNX_DOMAINS:
            _prepare(node, opset_of(model), opset)
    if opset_of(brought) == opset:
        return brought
    try:
        brought = version_converter.convert_version(brought, opset)
        onnx.checker.check_model(brought, full_check=True)
        return brought
    except Exception as error:  # It raises RuntimeError and its own kind, which has no name in Python.
        words = " ".join(str(error).split())
        raise ModelError(f"onnx cannot convert it from opset {opset_of(model)} to {opset} ({words:.300})") from error


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
