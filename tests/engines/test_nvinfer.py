"""What TensorRT and TensorRT-RTX share in building: the tail of the log, and the parser's errors."""

from __future__ import annotations

from types import SimpleNamespace

from engines import nvinfer


def test_the_tail_of_the_log() -> None:
    tail = nvinfer.ErrorTail()
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
    tail = nvinfer.ErrorTail()
    for line in log:
        tail.add(line)
    return nvinfer._parser_error(SimpleNamespace(num_errors=1, get_error=lambda index: error), tail)


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
