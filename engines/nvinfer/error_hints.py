"""What TensorRT's own error messages mean, and what to do: those that a user of this project can bring about.

The words on the left were seen on TensorRT for RTX 1.4 to 1.7, which share TensorRT's parser and builder, or are quoted
by users of TensorRT 8.5 to 10.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

NO_KERNEL = "Could not find any implementation for node"
MEANINGS: tuple[tuple[str, str], ...] = (
    (
        r"Non-zero zero point is not supported|shiftIsAllZeros",
        "it is quantized with a zero point other than 0, TensorRT takes symmetric int8 only; bring it there "
        "with `trtforge quantize MODEL --coarsen-to-symmetric`, or quantize the FP32 model with `trtforge quantize`",
    ),
    (
        r"input has type Int32 but must have type|only activation types allowed",
        "it dequantizes INT32, as of a quantized bias, TensorRT takes biases in floating point; `trtforge "
        "quantize MODEL` writes them so",
    ),
    (
        r"invalid weights type of Int8",
        "its weights are stored as INT8, this version takes them as FP32 through QuantizeLinear; `trtforge quantize "
        "MODEL` writes them so",
    ),
    (
        r"input and bias must be of same type",
        "its input and bias have different types: a DequantizeLinear gives the type of its scale; let scales and the "
        "floating-point rest be of one type, as `trtforge quantize --rest` writes them",
    ),
    (
        r"FP32 GEMM is not supported",
        "this version has no FP32 matrix products for compute capability 7.5; build fp16 for it, or leave 7.5 out of "
        "compute_capabilities",
    ),
    (
        r"cudnn_impl\.cpp.*CHECK\(dtype == myelinTypeFloat",
        "this version has no INT8 convolutions (TensorRT for RTX 1.7 was the first with them); update it, or build "
        "fp16",
    ),
    (
        r"graph_jit\.cpp.*CHECK\(status == CUDA_SUCCESS\)|cudaDeviceProfile",
        "it needs to query a GPU for this model, and there is none; build on a machine with one",
    ),
    (
        r"Unable to load library: libnvinfer_lean",
        "a version-compatible engine has the lean runtime in it, and libnvinfer_lean is not installed; install it "
        "(apt install libnvinfer-lean10, or pip install tensorrt_lean), or set version_compatible = false",
    ),
    (
        r"no optimization profile has been defined|is missing dimensions in profile",
        "an input is dynamic and has no shape range; give [model.inputs.NAME] min, opt and max",
    ),
    (
        r"MIN<=OPT<=MAX",
        "a shape range is not min <= opt <= max; put it in order",
    ),
    (
        NO_KERNEL,
        "no kernel for this layer fits into the workspace and the memory that is free, or there is none for this GPU; "
        "raise workspace_mib, free memory, or give the layer another type",
    ),
    (
        r"(_TRT|PluginDynamic|\bTRT\w+): .*(Plugin not found|No importer registered for op)",
        "it is a plugin of TensorRT that this library does not have (TensorRT for RTX has none); cut the model in "
        "front of it, or build for the tensorrt backend, in a version with this plugin",
    ),
    (
        r"Plugin not found|No importer registered for op|is not supported in TensorRT",
        "TensorRT has no such operator; replace it in the network, or build for a backend that has it",
    ),
)
"""Pattern of a message -> what it means, and what to do."""

OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|insufficient memory|Failed to allocate|could not (be allocated|allocate)", re.IGNORECASE
)
OLD_DRIVER = re.compile(r"driver version is insufficient|cudaError 35\b|initialization failure with error: 35\b")
SKIPPED = re.compile(r"insuff?icient memory on requested size of (\d+)")
"""In a warning, since no kernel being left is the error; 8.5 spells it with one f."""


def hint(text: str) -> str:
    """A sentence for what the library said: what is, and what to do. Empty if it is none of those that are known."""
    return next((sentence for pattern, sentence in MEANINGS if re.search(pattern, text)), "")


def with_hint(where: str, text: str) -> str:
    """An error's whole message: where, what it means, and what the library said."""
    cause = hint(text)
    return f"{where}: {cause} ({text})" if cause else f"{where} ({text})"


def lacks_memory(text: str, warnings: Iterable[str], workspace_mib: int) -> bool:
    """Whether no kernel is left, and some were left out that fit into the workspace: so much memory is not free."""
    sizes = [int(size) for warning in warnings for size in SKIPPED.findall(warning)]
    return NO_KERNEL in text and any(size <= workspace_mib * 2**20 for size in sizes)


def is_old_driver(text: str) -> bool:
    """Whether the library said that its CUDA is newer than the driver, or that there is none."""
    return OLD_DRIVER.search(text) is not None


def is_out_of_memory(text: str) -> bool:
    """Whether the library said that memory ran out: the GPU's, or the host's."""
    return OUT_OF_MEMORY.search(text) is not None
