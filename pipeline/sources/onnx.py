"""A user's ONNX file: read strictly, brought to the opset, run by what runs the FP32 model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from calibration.errors import ModelError
from calibration.graph.editing import (
    check_inference,
    nodes_of,
    without_functions,
    without_sparse,
    without_weight_inputs,
)
from calibration.graph.external_data import model_from_file
from calibration.graph.opset import brought_to, opset_of
from calibration.graph.validity import check_valid
from calibration.graph.weightless import skeleton_from_file
from calibration.plugins.efficient_nms import OPERATOR, without_efficient_nms
from calibration.quantized.grids import is_read
from engines.litert.facts import is_tflite
from engines.onnx_model import plugin_words
from engines.plugin_library import libraries_named, operators_in
from pipeline.artifact import Engine, OnnxModel, Source
from pipeline.errors import StageError
from pipeline.sources.contract import RENAMED, Conversion, Converted, first_line

WHAT = ".onnx"
OWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
"""Domains of ONNX's own operators."""


def recognises(path: Path) -> bool:
    """By its ending, but for a `.tflite` file of that name."""
    return path.is_file() and path.suffix == ".onnx" and not is_tflite(path)


def source(path: Path, _signature: str) -> Source:
    """The file, which is an ONNX model as those are that trtforge writes."""
    return OnnxModel(path)


def to_onnx(source: Source, out: Path, how: Conversion) -> Converted:
    """Read, check and bring it to the opset. See ``contract.SourceKind``."""
    read, num_plugins = _read_onnx(source.path)
    original, num_inputs = without_weight_inputs(without_functions(read))
    notes = [f"export: {num_inputs} weights were listed as inputs; they are constants now"] if num_inputs else []
    if num_plugins:
        notes.append(f"export: TensorRT's plugin {OPERATOR} is written out in operators of ONNX itself: {num_plugins}")
    return Converted(_in_opset(original, source.path, how.opset, notes), original, notes, runs_alone=not num_plugins)


def trained(source: Source, exported: OnnxModel, runner: str) -> Engine:
    """The file itself, or where its tensors had to be renamed or a plugin written out, itself with that done."""
    renamed = exported.beside(RENAMED)
    return Engine(renamed if renamed.is_file() else source.path, runner)


def _read_onnx(path: Path) -> tuple[onnx.ModelProto, int]:
    """A user's ONNX model, weights included, of operators that every runtime knows, or of ONNX Runtime's quantizer.

    How many plugins of TensorRT were written out in it stands beside it.
    """
    try:
        skeleton_from_file(path)
    except Exception as error:
        raise StageError(f"{path}: is not a whole ONNX model ({first_line(error)}); export it again") from error
    try:
        model, num_plugins = without_efficient_nms(model_from_file(path))
    except ModelError as error:
        raise StageError(f"{path}: {error}") from error
    local = {(function.domain, function.name) for function in model.functions}
    strange = [node for node in nodes_of(model.graph) if node.domain not in OWN_DOMAINS and not is_read(node)]
    strange = [node for node in strange if (node.domain, node.op_type) not in local]
    if words := _named_plugin_words(strange) or plugin_words(model):
        raise StageError(f"{path}: {words}")
    for node in nodes_of(model.graph):
        if (
            node.domain in OWN_DOMAINS[:2]
            and (node.domain, node.op_type) not in local
            and not onnx.defs.has(node.op_type)
        ):
            raise StageError(
                f"{path}: node '{node.name or next(iter(node.output), '')}' is {node.op_type}, which is no operator of "
                "ONNX itself (ONNX Runtime's optimizer writes some that are not); export the model without it"
            )
    check_valid(model, path)
    try:
        check_inference(model, str(path))
        model = without_sparse(model)
    except ModelError as error:
        raise StageError(str(error)) from error
    for node in strange:
        raise StageError(
            f"{path}: node '{node.name or node.output[0]}' is {node.op_type} of the domain '{node.domain}', "
            "operators of ONNX itself are expected; export the model without it"
        )
    return model, num_plugins


def _named_plugin_words(nodes: Sequence[onnx.NodeProto]) -> str:
    """Of an operator whose plugin is in a library that is named; empty where there is none."""
    holders = operators_in(libraries_named(), (node.op_type for node in nodes))
    node = next((node for node in nodes if node.op_type in holders), None)
    if node is None:
        return ""
    where, library = node.name or node.output[0], holders[node.op_type].name
    return (
        f"node '{where}': {node.op_type} is a plugin of {library}, by its name;"
        " ONNX Runtime cannot run it on the CPU, so that there is no reference to calibrate on and to compare engines "
        "with: cut the model in front of it, or build the file as it is (`trtforge build FILE --backend tensorrt "
        "--plugins LIBRARY`)"
    )


def _in_opset(model: onnx.ModelProto, path: Path, opset: int, notes: list[str]) -> onnx.ModelProto:
    """The model in ``opset``, or in its own where that is later and onnx cannot bring it down; notes are added to."""
    before = opset_of(model)
    try:
        brought = brought_to(model, opset)
    except ModelError as error:
        if before <= opset:
            raise StageError(f"{path}: {first_line(error)}; export it with {opset}") from error
        notes.append(f"export: opset {before} is kept: {first_line(error)}")
        return model
    if before not in (0, opset):
        notes.append(f"export: converted from opset {before} to {opset}")
    return brought
