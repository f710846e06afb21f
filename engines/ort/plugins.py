"""Plugins of TensorRT for its provider in ONNX Runtime: the libraries that it loads, the nodes that they compute."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from engines.errors import EngineError
from engines.onnx_model import ONNX_DOMAINS, node_name, nodes_in, read_model
from engines.plugin_library import PluginLibrary

if TYPE_CHECKING:
    from typing import TypeAlias

Libraries: TypeAlias = "tuple[PluginLibrary, ...]"
PLUGIN_PATHS = "trt_extra_plugin_lib_paths"
"""The option by which the provider loads libraries of plugins, with semicolons between their paths."""
PLUGIN_DOMAIN = "trt.plugins"
"""Where the provider makes an operator of each plugin that TensorRT has registered."""
REGISTERED = ("EfficientNMS_TRT", "MultilevelCropAndResize_TRT", "PyramidROIAlign_TRT", "DisentangledAttention_TRT")
"""Plugins of NVIDIA's that ONNX Runtime has in ONNX's own domain."""


def plugin_options(libraries: Libraries) -> dict[str, str]:
    """So that the provider loads libraries of plugins, whose names therefore have no semicolon.

    Raises:
        EngineError: one has.
    """
    paths = [str(library.path.resolve()) for library in libraries]
    if wrong := next((path for path in paths if ";" in path), ""):
        raise EngineError(f"{wrong}: ONNX Runtime takes no path with a semicolon; move the library of plugins")
    return {PLUGIN_PATHS: ";".join(paths)} if paths else {}


def records_of(libraries: Libraries) -> tuple[Mapping[str, Any], ...]:
    """What an engine's description and its record have of each."""
    return tuple(library.record(is_inside=False) for library in libraries)


def name_plugins(path: Path) -> None:
    """Bring operators that ONNX does not have into the domain where the provider has plugins, by whatever name."""
    model = read_model(path)
    functions = {(function.domain, function.name) for function in model.functions}
    changed = [
        node for node in nodes_in(model.graph) if is_of_plugin(node) and (node.domain, node.op_type) not in functions
    ]
    for node in changed:
        node.domain = PLUGIN_DOMAIN
    if changed:
        domains = {entry.domain for entry in model.opset_import}
        if PLUGIN_DOMAIN not in domains:
            model.opset_import.append(onnx.helper.make_opsetid(PLUGIN_DOMAIN, 1))
        onnx.save(model, path)


def is_of_plugin(node: onnx.NodeProto) -> bool:
    """Whether a plugin alone can compute it: its domain is neither ONNX's nor ONNX Runtime's, or ONNX has no such."""
    if node.domain not in ONNX_DOMAINS:
        return not node.domain.startswith(("ai.onnx", "com.microsoft"))
    return not onnx.defs.has(node.op_type) and node.op_type not in REGISTERED


def name_nodes(path: Path) -> None:
    """Give nodes without a name that of what they make, so that the record can name them."""
    model = read_model(path)
    unnamed = [node for node in model.graph.node if not node.name]
    for node in unnamed:
        node.name = node_name(node)
    if unnamed:
        onnx.save(model, path)
