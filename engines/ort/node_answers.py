"""Ask ONNX Runtime node by node: it loads the model, or, if it refuses it, each node as a model of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from engines.support.answers import InputShapes, SupportAnswer
from engines.support.graph import Asked, asked_about, name_of, reads

LEAST_IR_VERSION = 8
WAY_OUT = "replace it in the network, or take another backend"


def answer_by_loading(
    path: Path, shapes: InputShapes, source: str, why_not: Callable[[Path | bytes], str]
) -> SupportAnswer:
    """What ONNX Runtime says of each node of the model in ``path``.

    Args:
        path: the ONNX file.
        shapes: of inputs with dynamic dimensions, to count work at.
        source: who is asked.
        why_not: empty if a session of a model, or of its bytes, can be made, else what it says.

    Raises:
        EngineError: it is no ONNX model.
    """
    asked = asked_about(path, shapes)
    if not (whole := why_not(path)):
        return asked.answer(source, {})
    reasons: dict[int, str] = {}
    unasked: list[str] = []
    for number, node in enumerate(asked.nodes):
        if (alone := _alone(asked, node)) is None:
            unasked.append(name_of(node))
        elif words := why_not(alone.SerializeToString()):
            reasons[number] = f"{words}; {WAY_OUT}"
    notes = [
        f"{len(unasked)} nodes were not asked, '{name}' the first: the types that they read are not known."
        for name in unasked[:1]
    ]
    answer = asked.answer(source, reasons, notes)
    return answer if reasons else replace(answer, refusals=(f"is refused as a whole ({whole})",))


def _alone(asked: Asked, node: onnx.NodeProto) -> onnx.ModelProto | None:
    """A model of this node; None where the type of something that it reads is not known."""
    constants, types, infos = asked.constants, asked.types, asked.infos
    inputs, weights = [], []
    for name in dict.fromkeys(reads(node)):
        tensor = constants.get(name)
        if tensor is not None and tensor.data_location != TensorProto.EXTERNAL:
            weights.append(_named(tensor, name))
        elif name in infos or name in types:
            inputs.append(infos.get(name) or helper.make_tensor_value_info(name, types[name], None))
        else:
            return None
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    alone = onnx.ModelProto()
    alone.CopyFrom(_header(asked.model))
    alone.graph.CopyFrom(helper.make_graph([node], "node", inputs, outputs, weights))
    return alone


def _header(model: onnx.ModelProto) -> onnx.ModelProto:
    header = onnx.ModelProto(ir_version=max(model.ir_version, LEAST_IR_VERSION), functions=model.functions)
    header.opset_import.extend(model.opset_import)
    return header


def _named(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    named = onnx.TensorProto()
    named.CopyFrom(tensor)
    named.name = name
    return named
