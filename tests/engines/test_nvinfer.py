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


def test_parser_errors_of_old_and_new_generations() -> None:
    old = SimpleNamespace(desc=lambda: "not\n supported", node=lambda: 4)
    new = SimpleNamespace(
        desc=lambda: "not supported", node=lambda: 4, node_name=lambda: "c", node_operator=lambda: "Conv"
    )
    cut = SimpleNamespace(desc=lambda: "cut short", node=lambda: -1, node_name=lambda: "", node_operator=lambda: "")
    told = [
        nvinfer._parser_error(SimpleNamespace(num_errors=1, get_error=lambda index, e=e: e), nvinfer.ErrorTail())
        for e in (old, new, cut)
    ]
    assert told == ["node 4: not supported", "node 'c', Conv: not supported", "cut short"]
