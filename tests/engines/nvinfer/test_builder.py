"""What TensorRT and TensorRT-RTX share in building: the tail of the log, and the parser's errors."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from engines.contract import BuildOptions
from engines.nvinfer import builder


def test_the_tail_of_the_log() -> None:
    tail = builder.ErrorTail()
    assert tail.text() == "it gave no reason"
    tail.add("first")
    tail.add("second\n  line")
    tail.add("[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (cudaError 35)")
    tail.add("third")
    assert tail.text() == "second line; third"
    tail.clear()
    tail.add("catchCudaError: error 35")
    assert tail.text() == "catchCudaError: error 35"


def said(error: SimpleNamespace, *log: str) -> str:
    tail = builder.ErrorTail()
    for line in log:
        tail.add(line)
    return builder._parser_error(SimpleNamespace(num_errors=1, get_error=lambda index: error), tail)


def parser_error(words: str, node: int, code: str = "INVALID_NODE", **more: str) -> SimpleNamespace:
    """As 8.6 has them; from 10 on they also have the node's name and operator."""
    functions = {name: lambda value=value: value for name, value in more.items()}
    return SimpleNamespace(desc=lambda: words, node=lambda: node, code=lambda: SimpleNamespace(name=code), **functions)


def test_parser_errors_of_old_and_new_generations() -> None:
    assert said(parser_error("not\n supported", 4, node_name="c", node_operator="Conv")) == (
        "node 'c', Conv: not supported"
    )
    assert said(parser_error("cut short", -1, node_name="", node_operator="")) == "cut short"
    assert said(parser_error("not supported", 4)) == "node 4: not supported"


LOG_OF_8 = (
    'ModelImporter.cpp:771: While parsing node number 1 [Wobble -> "y"]:',
    "ModelImporter.cpp:772: --- Begin node ---",
    'ModelImporter.cpp:773: input: "h"\noutput: "y"\nname: "odd"\nop_type: "Wobble"\ndomain: "my.ops"\n',
    "ModelImporter.cpp:774: --- End node ---",
    "ModelImporter.cpp:777: ERROR: builtin_op_importers.cpp:5407 In function importFallbackPluginImporter:\n[8] ...",
)


def test_where_the_error_does_not_have_the_node_the_log_has() -> None:
    words = 'Assertion failed: creator && "Plugin not found, are the plugin name, version, and namespace correct?"'
    assert said(parser_error(words, 1), *LOG_OF_8) == f"node 'odd', Wobble: {words}"


def test_an_operator_that_is_known_and_never_taken_is_said_to_be_so() -> None:
    error = parser_error("false", 1, "UNSUPPORTED_NODE", node_name="odd", node_operator="Det")
    assert said(error) == "node 'odd', Det: Det is not supported in TensorRT"


def test_plugins_are_registered_once_in_a_process(pretended_8_6: ModuleType) -> None:
    for _ in range(2):
        builder.register_plugins(pretended_8_6)
    assert pretended_8_6.registered == [""]


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (BuildOptions(), []),
        (BuildOptions(version_compatible=True), ["native norm"]),
        (BuildOptions(hardware="ampere_plus"), ["native norm"]),
    ],
)
def test_engines_that_run_elsewhere_too_take_no_plugin(
    pretended_8_6: ModuleType, options: BuildOptions, flags: list[str]
) -> None:
    assert builder.parser_for(pretended_8_6, None, options).flags == flags


@pytest.fixture
def pretended_8_6() -> ModuleType:
    """The names that 8.6.1 has, as far as it is requested them here; its parser wants a builder, and that a GPU."""

    class Parser:
        def __init__(self, network: Any, log: Any) -> None:
            self.flags: list[str] = []

        def set_flag(self, flag: str) -> None:
            self.flags.append(flag)

    trt = ModuleType("pretended")
    registered: list[str] = []
    flags = SimpleNamespace(FP16=0, VERSION_COMPATIBLE=1)
    vars(trt).update(
        ILogger=type("ILogger", (), {}),
        init_libnvinfer_plugins=lambda log, namespace: registered.append(namespace),
        registered=registered,
        OnnxParser=Parser,
        OnnxParserFlag=SimpleNamespace(NATIVE_INSTANCENORM="native norm"),
        BuilderFlag=flags,
        NetworkDefinitionCreationFlag=flags,
        IBuilderConfig=flags,
        TacticSource=flags,
        PreviewFeature=flags,
        __version__="8.6.1",
    )
    return trt


def test_what_the_builder_says_of_sparse_kernels_is_a_sentence() -> None:
    """Its words as users of TensorRT 8.4 and 8.6 quote them (NVIDIA/TensorRT, issues 2169 and 4056)."""
    heard = [
        "Layers eligible for sparse math: Conv_22, MatMul_51",
        "TRT inference plan picked sparse implementation for layers:",
    ]
    assert builder.sparsity_notes(heard) == (
        "Sparse weights: Layers eligible for sparse math: Conv_22, MatMul_51.",
        "Sparse weights: TRT inference plan picked sparse implementation for layers: none.",
    )
    assert builder.sparsity_notes([]) == ("Sparse weights: the builder says nothing of sparse kernels.",)
