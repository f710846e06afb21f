"""A `.tflite` file, float or quantized: converted by tf2onnx with its Q/DQ nodes, run by LiteRT."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from engines.backends import litert
from engines.litert.facts import MAGIC, TfliteFacts, TfliteTensor, is_tflite
from engines.litert.published import with_signature
from engines.model_format import ModelFormat
from pipeline.artifact import Engine, OnnxModel, Source
from pipeline.errors import ConfigError, StageError, Unavailable
from pipeline.sources.contract import Conversion, Converted
from pipeline.sources.tf2onnx import convert_tflite

WHAT = ".tflite"
READY = "source.tflite"
"""Beside the exported model: the file with names for its inputs and outputs, and a fixed batch."""


class TfliteFile(Source):
    """A `.tflite` file that somebody made."""

    KIND: ClassVar[str] = "tflite"
    BECOMES: ClassVar[frozenset[ModelFormat]] = frozenset({"onnx", "tflite"})


def recognises(path: Path) -> bool:
    """By its magic, or its ending."""
    return path.is_file() and (path.suffix == ".tflite" or is_tflite(path))


def source(path: Path, _signature: str) -> Source:
    """The file.

    Raises:
        ConfigError: it has another file's ending or content.
    """
    if not is_tflite(path):
        with path.open("rb") as stream:
            head = stream.read(8)
        raise ConfigError(
            f"{path}: is no .tflite file, bytes 4 to 8 are {head[4:]!r}, {MAGIC!r} is expected; copy it again"
        )
    return TfliteFile(path)


def to_onnx(source: Source, out: Path, how: Conversion) -> Converted:
    """By tf2onnx, of a copy that is left in ``out``. See ``contract.SourceKind``.

    Inputs and outputs that are integers are fed and answered in floating point, as LiteRT's runner does it.
    """
    if reason := litert.why_not_run():
        raise Unavailable(reason)
    facts = litert.tflite_facts(source.path, unsigned=True)
    if customs := sorted({operator.kind for operator in facts.operators if operator.is_custom}):
        are, them = ("is no operator", "that") if len(customs) == 1 else ("are no operators", "them")
        raise StageError(
            f"{source.path}: {', '.join(customs)} {are} of TensorFlow Lite's own, which alone are read; replace "
            f"{them} in the network"
        )
    if words := _lost_by_tf2onnx(facts):
        raise StageError(f"{source.path}: {words}")
    ready = out / READY
    ready.write_bytes(_ready(source.path))
    facts = litert.tflite_facts(ready)
    model = convert_tflite(ready, source.path, out, how)
    _check_names(model, facts, source.path)
    notes = _with_float_ends(model, facts)
    return Converted(model, notes=notes)


def _lost_by_tf2onnx(facts: TfliteFacts) -> str:
    """What tf2onnx 1.17 would end at with words of its own, and what to do; empty where there is nothing of it."""
    sparse = [operator.name for operator in facts.operators if operator.kind == "DENSIFY"]
    if sparse:
        more = f" and {len(sparse) - 1} more" if len(sparse) > 1 else ""
        return (
            f"DENSIFY (tensor '{sparse[0]}'{more}): its weights are stored sparsely, which tf2onnx does not read; "
            "convert the network again without tf.lite.Optimize.EXPERIMENTAL_SPARSITY, or give the network behind it"
        )
    for operator in facts.operators:
        readers = [each.kind for each in facts.operators if {*operator.outputs} & {*each.inputs}]
        if operator.kind == "RFFT2D" and set(readers) != {"COMPLEX_ABS"}:
            return (
                f"RFFT2D (tensor '{operator.name}') is read by {', '.join(sorted(set(readers))) or 'nobody'}, and ONNX "
                "has no complex numbers: tf2onnx takes it with COMPLEX_ABS right behind it alone; compute the spectrum "
                "in front of the network, which then begins with it"
            )
    return ""


def trained(source: Source, exported: OnnxModel, runner: str) -> Engine:
    """Run by LiteRT, with the names and the batch that the ONNX model has."""
    return Engine(exported.beside(READY), litert.NAME)


def _ready(path: Path) -> bytes:
    import flatbuffers

    return with_signature(litert.schema(), flatbuffers, path.read_bytes())


def _check_names(model: onnx.ModelProto, facts: TfliteFacts, path: Path) -> None:
    """That the converter kept all inputs and outputs by name."""
    for what, side, values in (
        ("input", facts.inputs, model.graph.input),
        ("output", facts.outputs, model.graph.output),
    ):
        if missing := sorted({name for name, _ in side} - {value.name for value in values}):
            raise StageError(
                f"{path}: tf2onnx lost the {what} '{missing[0]}' (it kept {', '.join(v.name for v in values)}); an "
                f"unused {what} cannot be converted: remove it from the network"
            )


def _with_float_ends(model: onnx.ModelProto, facts: TfliteFacts) -> list[str]:
    """Write a QuantizeLinear behind each integer input, a DequantizeLinear in front of each such output; sentences."""
    ends = [(value, dict(facts.inputs)[value.name], True) for value in model.graph.input]
    ends += [(value, dict(facts.outputs)[value.name], False) for value in model.graph.output]
    integers = [end for end in ends if end[1].scales]
    for value, tensor, is_input in integers:
        _write_end(model.graph, value, tensor, is_input=is_input)
    if not integers:
        return []
    names = ", ".join(f"'{value.name}' ({tensor.type})" for value, tensor, _ in integers)
    return [f"export: {names} are integers in the file; the ONNX model takes and gives FP32 there, and rounds itself"]


def _write_end(graph: onnx.GraphProto, value: onnx.ValueInfoProto, tensor: TfliteTensor, *, is_input: bool) -> None:
    name, inner = value.name, f"{value.name}_{tensor.type.lower()}"
    for node in graph.node:
        node.input[:] = [inner if each == name else each for each in node.input]
        if not is_input:
            node.output[:] = [inner if each == name else each for each in node.output]
    numbers = {
        f"{name}_scale": np.array(tensor.scales[0], np.float32),
        f"{name}_zero_point": np.array((tensor.zero_points or (0,))[0], tensor.type.lower()),
    }
    graph.initializer.extend(numpy_helper.from_array(array, each) for each, array in numbers.items())
    operator, read, written = ("QuantizeLinear", name, inner) if is_input else ("DequantizeLinear", inner, name)
    node = helper.make_node(operator, [read, *numbers], [written], name=f"{name}_{operator}")
    graph.node.insert(0 if is_input else len(graph.node), node)
    value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
