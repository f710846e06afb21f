"""TensorRT's own words turned into ours; those that can be had without a GPU are had in the tests of its builds."""

from __future__ import annotations

import pytest

from engines.nvinfer.error_hints import hint, is_out_of_memory, lacks_memory, with_hint

WORDS = {
    "In node 4 (importPad): INVALID_NODE: Invalid Node - c invalid weights type of Int8": "its weights are stored as I",
    "ITensor: only activation types allowed as input to this layer": "it dequantizes INT32, as of a quantized bias",
    "IConvolutionLayer input and bias must be of same type. input is of type Float but bias is of type Half": (
        "its input and bias have different types"
    ),
    "Myelin ([pass.cpp:337: check_turing_op_compatibility] Cannot compile operation 'fc' for Turing (SM75): FP32 GEMM "
    "is not supported": "this version has no FP32 matrix products for compute capability 7.5; build fp16 for it",
    "MyelinCheckException: graph_jit.cpp:278: CHECK(status == CUDA_SUCCESS) failed": "it needs to query a GPU",
    "Unable to load library: libnvinfer_lean.so.1": "and libnvinfer_lean is not installed; install it (apt install",
    "Error Code 4: API Usage Error (Network has dynamic or shape inputs, but no optimization profile has been defined."
    " In validate": "an input is dynamic and has no shape range; give [model.inputs.NAME] min, opt and max",
    "Dynamic input tensor x is missing dimensions in profile 0.": "an input is dynamic and has no shape range",
    "Supplied bindings are invalid, MIN<=OPT<=MAX must hold": "a shape range is not min <= opt <= max",
    "[optimizer.cpp::computeCosts::3728] Error Code 10: Internal Error (Could not find any implementation for node "
    "{ForeignNode[a...b]}.)": "no kernel for this layer fits into the workspace and the memory that is free",
    "No importer registered for op: Einsum2": "TensorRT has no such operator; replace it in the network",
}


@pytest.mark.parametrize("text", WORDS)
def test_known_words(text: str) -> None:
    assert WORDS[text] in hint(text)
    assert with_hint("m.onnx: tensorrt cannot build an engine", text) == (
        f"m.onnx: tensorrt cannot build an engine: {hint(text)} ({text})"
    )


def test_unknown_words_are_handed_on() -> None:
    assert with_hint("m.onnx: no", "something new") == "m.onnx: no (something new)"


@pytest.mark.parametrize(
    ("text", "is_so"),
    [
        ("[virtualMemoryBuffer.cpp::resizePhysical::154] Error Code 2: OutOfMemory (no further information)", True),
        ("Error Code 1: Cuda Runtime (out of memory)", True),
        ("Could not allocate 2147483648 bytes", True),
        ("Requested amount of GPU memory (4294967296 bytes) could not be allocated. There may not be enough", True),
        ("FP32 GEMM is not supported", False),
    ],
)
def test_out_of_memory(text: str, is_so: bool) -> None:
    assert is_out_of_memory(text) == is_so


@pytest.mark.parametrize(
    ("warning", "is_so"),
    [
        ("Skipping tactic 0 due to insuficient memory on requested size of 29147520 detected for tactic 0.", True),
        ("Skipping tactic 0x3e8 due to insufficient memory on requested size of 67108864 detected for tactic", True),
        ("Skipping tactic 0 due to insufficient memory on requested size of 67108865 detected for tactic 0.", False),
        ("TensorRT was linked against cuDNN 8.6.0 but loaded cuDNN 8.5.0", False),
    ],
)
def test_kernels_that_are_left_out_although_they_fit_into_the_workspace(warning: str, is_so: bool) -> None:
    """Of 64 MiB: what is larger than that wants a larger workspace, not less of everything."""
    none_left = "Error Code 10: Internal Error (Could not find any implementation for node conv.)"
    assert lacks_memory(none_left, ["another", warning], 64) == is_so
    assert not lacks_memory("Error Code 4: another", ["another", warning], 64), "they were not missed"
