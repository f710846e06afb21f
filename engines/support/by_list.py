"""Ask a generation's list, where no parser of it is installed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import onnx

from engines.onnx_model import ONNX_DOMAINS
from engines.plugin_library import libraries_named, operators_in
from engines.support.answers import InputShapes, SupportAnswer
from engines.support.graph import Asked, asked_about, name_of
from engines.support.operator_lists import TensorRtRelease
from engines.support.restrictions import Surroundings, restrictions

NOT_LISTED = "Plugins and what depends on shapes are not in the list: the parser of that version has the last word."
WAY_OUT = "replace it in the network, or build for a backend that has it"


def answer_by_list(
    path: Path, release: TensorRtRelease, shapes: InputShapes, plugin_operators: Collection[str] = ()
) -> SupportAnswer:
    """What NVIDIA's list of that release says of each node of the model in ``path``.

    ``plugin_operators``: what a library of plugins brings, beside those whose names stand in one that is named.
    TensorRT takes a plugin for an operator that it does not read itself, by its name, whatever its domain.

    Raises:
        EngineError: it is no ONNX model.
    """
    asked = asked_about(path, shapes)
    around = Surroundings(asked.constants, asked.types, asked.ranks)
    functions = {function.name: function for function in asked.model.functions}
    holders = operators_in(libraries_named(), (node.op_type for node in asked.nodes))
    brought = {*plugin_operators, *holders}
    by_name = set()
    reasons = {}
    for index, node in enumerate(asked.nodes):
        reason = next(_reasons(node, around, release, functions), "")
        by_plugin = node.op_type in brought and node.op_type not in release.operators
        if reason and not by_plugin:
            reasons[index] = reason
        elif reason and node.op_type not in plugin_operators:
            by_name.add(node.op_type)
    answer = asked.answer(f"NVIDIA's list of the operators of TensorRT {release.name}", reasons)
    notes = (*_notes(asked, release), *_by_name(by_name, holders))
    return replace(answer, refusals=tuple(_refusals(asked, release)), notes=notes)


def _by_name(operators: Collection[str], holders: Mapping[str, Path]) -> Iterator[str]:
    for name in sorted(operators):
        library = holders[name].name
        yield f"{name} is taken for a plugin of {library}, where its name stands; TensorRT knows as it loads it."


def _reasons(
    node: onnx.NodeProto, around: Surroundings, release: TensorRtRelease, functions: dict[str, onnx.FunctionProto]
) -> Iterator[str]:
    """Why it does not run; the first of them is enough."""
    if node.domain not in ONNX_DOMAINS:
        yield from _reasons_elsewhere(node, around, release, functions)
        return
    if node.op_type not in release.operators:
        first = release.first_with(node.op_type)
        out = f"TensorRT {first} is the first that does; update it, or {WAY_OUT}" if first else WAY_OUT
        yield f"TensorRT {release.name} does not read this operator; {out}"
        return
    yield from restrictions(node, around, release)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            for reason in _reasons(inner, around, release, functions):
                yield f"in its body, node '{name_of(inner)}', {inner.op_type}: {reason}"


def _reasons_elsewhere(
    node: onnx.NodeProto, around: Surroundings, release: TensorRtRelease, functions: dict[str, onnx.FunctionProto]
) -> Iterator[str]:
    """Of an operator that is not ONNX's: a function of the model, or a plugin."""
    function = functions.get(node.op_type)
    if function is None:
        if not _is_plugin(node):
            yield (
                f"TensorRT has no operators of the domain {node.domain}, but for plugins; {WAY_OUT}, or write a plugin"
            )
        return
    if not release.is_from(10, 0):
        yield "it is a function of the model, which this version does not read; export without functions (inline them)"
        return
    for inner in function.node:
        for reason in _reasons(inner, around, release, functions):
            yield f"in its function, node '{name_of(inner)}', {inner.op_type}: {reason}"


def _is_plugin(node: onnx.NodeProto) -> bool:
    return node.domain.lower().split(".")[0] in ("trt", "tensorrt") or node.op_type.endswith(("_TRT", "PluginDynamic"))


def _refusals(asked: Asked, release: TensorRtRelease) -> Iterator[str]:
    """Why the model is not read whatever its nodes are."""
    opset = asked.opset
    if opset >= release.refused_opset:
        largest = release.largest_opset
        yield (
            f"is in opset {opset}, TensorRT {release.name} reads up to {largest}; write it in opset {largest} "
            f"(`trtforge export --opset {largest}`, or [export] opset)"
        )


def _notes(asked: Asked, release: TensorRtRelease) -> Iterator[str]:
    opset = asked.opset
    if release.largest_opset < opset < release.refused_opset:
        yield (
            f"Whether TensorRT {release.name} reads opset {opset} is not listed: 10.0 reads up to 20, and 10.15 up to "
            "24; its parser knows."
        )
    yield NOT_LISTED
