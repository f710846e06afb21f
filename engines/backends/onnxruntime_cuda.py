"""ONNX Runtime with its CUDA provider: its own kernels on the GPU, and the CPU's for the rest. FP32 and FP16."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engines.contract import Array, BuildOptions, EngineRecord, LayerTimes, Placement, Runner
from engines.cuda import device, libraries
from engines.errors import Unavailable
from engines.model_format import ModelFormat
from engines.onnx_model import refuse_tensorrt
from engines.ort import shared_times, sharing
from engines.ort.providers import CUDA, why_not
from engines.ort.session import CPU, load_library
from engines.provider_share import ProviderShare

NAME = "onnxruntime_cuda"
TAKES: ModelFormat = "onnx"
PLACEMENT: Placement = "none"
"""The provider has no kernels that multiply integers: what is quantized would be restored before each product."""
CAN_BUILD = True
GPU = True
STREAMS = False
NEEDS_RANGES = False
OBEYS: frozenset[str] = frozenset()
SUFFIX = ".session"
DESCRIPTION = sharing.DESCRIPTION
INSTALL = "pip install onnxruntime-gpu (it takes the place of onnxruntime), and the CUDA and cuDNN that it links"


def why_not_build() -> str:
    """Empty if the wheel with its provider, a GPU, and the libraries that it links are here."""
    return why_not(NAME, (CUDA,))


def why_not_run() -> str:
    """As ``why_not_build``."""
    return why_not_build()


def versions() -> dict[str, str]:
    """Versions of ONNX Runtime, driver, GPU, cuDNN and cuBLAS."""
    if reason := why_not_build():
        raise Unavailable(reason)
    return {"onnxruntime": load_library().__version__, **device.versions(), **libraries.kernel_libraries()}


def refuse(options: BuildOptions) -> None:
    """Raise Unavailable if something of TensorRT's is requested."""
    refuse_tensorrt(options, NAME)
    if reason := why_not_build():
        raise Unavailable(reason)


def build(model: Path, engine: Path, options: BuildOptions) -> EngineRecord:
    """Divide the model between the GPU and the CPU.

    Raises:
        Unavailable: the wheel, a GPU, or what the wheel links is not here.
        EngineError: it refused the model, or takes no node of it.
    """
    refuse(options)
    return sharing.build(SHARING, model, engine, options)


def load(engine: Path, *, num_threads: int) -> Runner:
    """A session on both providers, as it was built."""
    return sharing.SharedRunner(SHARING, engine, num_threads)


def providers_of(engine: Path) -> tuple[ProviderShare, ...]:
    """Who runs which nodes, after ONNX Runtime's optimizations."""
    return sharing.description_of(engine).shares


def layer_times(engine: Path, feed: Mapping[str, Array], num_runs: int) -> LayerTimes:
    """By ONNX Runtime's own profile, in a process in which each kernel of the GPU is waited for."""
    return shared_times.layer_times(SHARING, engine, feed, num_runs)


SHARING = sharing.Sharing(
    name=NAME, providers=(CUDA, CPU), title="the GPU (CUDA)", compiles=False, optimizes=True, versions=versions
)
