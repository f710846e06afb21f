"""Every name of TensorRT's Python API that the code touches exists in each generation that it is used on.

``tensorrt_api.json`` holds what the real bindings wheels 8.5.3 to 11.4 and TensorRT-RTX 1.4 to 1.7 export, for the
names used here. A name that is not in it fails the test: look it up in the wheels, and add it.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import engines

API = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())
SHARED = (
    "support/parser_limits.py",
    *(f"nvinfer/{name}.py" for name in (
        "allocator", "builder", "builder_config", "calibrator", "capability", "execution", "inspection",
        "layer_profiler", "parser_answers", "plugins", "progress", "runner", "shape_profiles", "tensor_io",
        "timing_cache",
    )),
)  # fmt: skip
FILES = {
    "tensorrt": (*SHARED, "refit/refitter.py", "backends/tensorrt.py"),
    "tensorrt_rtx": (*SHARED, "backends/tensorrt_rtx.py"),
}

CLASS_OF = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "engine": "ICudaEngine",
    "inspector": "EngineInspector",
    "layer": "ILayer",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser_refitter": "OnnxParserRefitter",
    "profile": "IOptimizationProfile",
    "refitter": "Refitter",
    "registry": "IPluginRegistry",
    "runtime": "Runtime",
    "runtime_config": "IRuntimeConfig",
    "serialization": "ISerializationConfig",
    "strategy": "CudaGraphStrategy",
    "_runtime": "Runtime",
}
"""The code calls a variable by what it holds, so that this test can tell."""

BEHIND = {
    "BuilderFlag.FP16": "BuilderFlag.FP16",
    "BuilderFlag.INT8": "BuilderFlag.FP16",
    "BuilderFlag.PREFER_PRECISION_CONSTRAINTS": "BuilderFlag.FP16",
    "ILayer.precision": "BuilderFlag.FP16",
    "ILayer.set_output_type": "BuilderFlag.FP16",
    "BuilderFlag.STRIP_PLAN": "BuilderFlag.STRIP_PLAN",
    "BuilderFlag.REFIT_IDENTICAL": "BuilderFlag.STRIP_PLAN",
    "ICudaEngine.create_serialization_config": "SerializationFlag",
    "ICudaEngine.serialize_with_config": "SerializationFlag",
    "ISerializationConfig.clear_flag": "SerializationFlag",
    "ISerializationConfig.set_flag": "SerializationFlag",
    "OnnxParserRefitter": "OnnxParserRefitter",
    "OnnxParserRefitter.get_error": "OnnxParserRefitter",
    "OnnxParserRefitter.num_errors": "OnnxParserRefitter",
    "OnnxParserRefitter.refit_from_file": "OnnxParserRefitter",
    "SerializationFlag": "SerializationFlag",
    "SerializationFlag.EXCLUDE_WEIGHTS": "SerializationFlag",
    "SerializationFlag.INCLUDE_REFIT": "SerializationFlag.INCLUDE_REFIT",
    "BuilderFlag.VERSION_COMPATIBLE": "BuilderFlag.VERSION_COMPATIBLE",
    "Builder.platform_has_fast_fp16": "Builder.platform_has_fast_int8",
    "Builder.platform_has_fast_int8": "Builder.platform_has_fast_int8",
    "Runtime.engine_host_code_allowed": "BuilderFlag.VERSION_COMPATIBLE",
    "CudaGraphStrategy": "CudaGraphStrategy",
    "CudaGraphStrategy.DISABLED": "CudaGraphStrategy",
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE": "CudaGraphStrategy",
    "ICudaEngine.create_runtime_config": "CudaGraphStrategy",
    "IRuntimeConfig.cuda_graph_strategy": "CudaGraphStrategy",
    "HardwareCompatibilityLevel": "HardwareCompatibilityLevel",
    "HardwareCompatibilityLevel.AMPERE_PLUS": "HardwareCompatibilityLevel",
    "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY",
    "IBuilderConfig.builder_optimization_level": "IBuilderConfig.builder_optimization_level",
    "IBuilderConfig.hardware_compatibility_level": "HardwareCompatibilityLevel",
    "IBuilderConfig.int8_calibrator": "IBuilderConfig.int8_calibrator",
    "IBuilderConfig.progress_monitor": "IProgressMonitor",
    "IBuilderConfig.set_calibration_profile": "IBuilderConfig.int8_calibrator",
    "IBuilderConfig.plugins_to_serialize": "IBuilderConfig.plugins_to_serialize",
    "IPluginRegistry.all_creators": "IPluginRegistry.all_creators",
    "IPluginRegistry.load_library": "IPluginRegistry.load_library",
    "IPluginRegistry.plugin_creator_list": "IPluginRegistry.plugin_creator_list",
    "IProgressMonitor": "IProgressMonitor",
    "PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805": (
        "PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805"
    ),
    "OnnxParser.get_subgraph_nodes": "OnnxParser.supports_model_v2",
    "OnnxParser.num_subgraphs": "OnnxParser.supports_model_v2",
    "OnnxParser.set_flag": "OnnxParserFlag",
    "OnnxParser.supports_model": "OnnxParser.supports_model",
    "OnnxParser.supports_model_v2": "OnnxParser.supports_model_v2",
    "OnnxParserFlag": "OnnxParserFlag",
    "OnnxParserFlag.NATIVE_INSTANCENORM": "OnnxParserFlag",
    "PreviewFeature.PROFILE_SHARING_0806": "PreviewFeature.PROFILE_SHARING_0806",
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": "NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
}
"""A name that some generation lacks, and the name that ``engines/nvinfer/capability.py`` asks for before it is used."""


def names_used(source: str) -> set[str]:
    """``trt.A.B`` as ``A.B``, and ``builder.x`` as ``Builder.x``; nothing for private names."""
    return {name for node in ast.walk(ast.parse(source)) for name in _names_of(node) if "__" not in name}


def _names_of(node: ast.AST) -> Iterator[str]:
    if not isinstance(node, ast.Attribute):
        return
    chain = ast.unparse(node).removeprefix("family.")
    if chain.startswith("trt.") and all(part.isidentifier() for part in chain.split(".")):
        yield chain.removeprefix("trt.")
    owner = node.value
    holder = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
    if holder in CLASS_OF:
        yield f"{CLASS_OF[holder]}.{node.attr}"


def names_asked_for(source: str) -> set[str]:
    """``hasattr(trt.A, "b")`` as ``A.b``, and ``hasattr(trt, "A")`` as ``A``."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return {
        f"{ast.unparse(call.args[0])}.{call.args[1].value!s}".removeprefix("trt.")
        for call in calls
        if ast.unparse(call.func) == "hasattr" and isinstance(call.args[1], ast.Constant)
    }


def has(version: str, name: str) -> bool:
    return version in API["names"][name]


def _uses() -> list[tuple[str, str]]:
    folder = Path(engines.__file__).parent
    skip = {
        "ICudaEngine.write_bytes",
        "ICudaEngine.read_bytes",
    }  # in ``build`` and ``refit``, ``engine`` is the path of the file
    return [
        (family, name)
        for family, files in FILES.items()
        for name in sorted(set().union(*(names_used((folder / file).read_text()) for file in files)) - skip)
    ]


@pytest.mark.parametrize(("family", "name"), _uses())
def test_name_exists_wherever_it_is_used(family: str, name: str) -> None:
    assert name in API["names"], f"look {name} up in the bindings wheels, and add it to tensorrt_api.json"
    for version in API["versions"][family]:
        assert has(version, BEHIND.get(name, name)) <= has(version, name), f"{name} is missing in {family} {version}"
        if name not in BEHIND:
            assert has(version, name), f"{name} is missing in {family} {version}"


def test_what_some_generation_lacks_is_asked_for_first() -> None:
    source = (Path(engines.__file__).parent / "nvinfer" / "capability.py").read_text()
    assert set(BEHIND.values()) <= names_asked_for(source)
    assert set(BEHIND) <= {name for _, name in _uses()}, "a name that is not used any more"


def test_no_file_uses_the_module_unseen() -> None:
    """Whatever is handed a module ``trt``, or imports it so, is among the files above."""
    using = set()
    folder = Path(engines.__file__).parent
    for file in folder.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        if any(isinstance(node, ast.Attribute) and ast.unparse(node.value) == "trt" for node in nodes):
            using.add(file.relative_to(folder).as_posix())
    assert using <= {*SHARED, *FILES["tensorrt"], *FILES["tensorrt_rtx"]}
    assert "nvinfer/builder.py" in using


def test_the_names_are_found() -> None:
    source = (
        "builder = trt.Builder(log)\nbuilder.create_network(0)\nself._context.set_input_shape(n, s)\ntrt.__version__"
    )
    assert names_used(source) == {"Builder", "Builder.create_network", "IExecutionContext.set_input_shape"}


def test_a_name_of_one_generation_only_would_be_found_out() -> None:
    # What the first pipelines for TensorRT 7 and 8 were written with.
    assert not has("10.3", "ICudaEngine.num_bindings")
    assert has("8.5.3", "ICudaEngine.num_bindings")


def test_python_reads_the_json_that_was_cut_from_the_wheels() -> None:
    assert set(API["versions"]) == set(FILES)
    assert API["versions"]["tensorrt"][0] == "8.5.3"
    assert API["versions"]["tensorrt_rtx"][-1] == "1.7"
