"""ONNX Runtime with its TensorRT provider: it runs what it takes of a model, CUDA's kernels and the CPU the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from engines.contract import Array, BuildOptions, EngineRecord, LayerTimes, Placement, Runner
from engines.cuda import device, libraries
from engines.errors import Unavailable
from engines.model_format import ModelFormat
from engines.onnx_model import refuse_tensorrt
from engines.ort import shared_times, sharing
from engines.ort.profile_shapes import profile_options
from engines.ort.providers import CUDA, TENSORRT, tensorrt_version, why_not
from engines.ort.session import CPU, load_library
from engines.plugin_library import check_library
from engines.precision import precision_named
from engines.provider_share import ProviderShare
from engines.signing.trust import check_file
from engines.support.answers import InputShapes, SupportAnswer
from engines.support.by_list import answer_by_list
from engines.support.operator_lists import release_nearest

NAME = "onnxruntime_tensorrt"
TAKES: ModelFormat = "onnx"
PLACEMENT: Placement = "tensorrt"
CAN_BUILD = True
GPU = True
STREAMS = False
NEEDS_RANGES = True
REFUSES_NODES = False
HAS_LISTS = True
OBEYS = frozenset({"workspace_mib", "optimization_level", "sparse_weights", "timing_cache", "plugins"})
SUFFIX = ".session"
DESCRIPTION = sharing.DESCRIPTION
INSTALL = "pip install onnxruntime-gpu (it takes the place of onnxruntime), and the TensorRT that it links"

FIRST_STRONGLY_TYPED = 10
"""From this TensorRT on the provider makes strongly typed networks, as long as no flag of a precision is set."""


def why_not_build() -> str:
    """Empty if the wheel with its providers, a GPU, and the libraries that they link are here."""
    return why_not(NAME, (TENSORRT, CUDA))


def why_not_run() -> str:
    """As ``why_not_build``."""
    return why_not_build()


def versions() -> dict[str, str]:
    """Versions of ONNX Runtime and of the TensorRT that it links; driver, GPU, cuDNN and cuBLAS."""
    if reason := why_not_build():
        raise Unavailable(reason)
    linked = {"tensorrt": tensorrt_version(), "onnxruntime": load_library().__version__}
    return {**linked, **device.versions(), **libraries.kernel_libraries()}


def refuse(options: BuildOptions) -> None:
    """Raise Unavailable if something is requested that the provider does not have."""
    refuse_tensorrt(replace(options, timing_cache=None, plugins=()), NAME)
    for file in options.plugins:
        check_library(file)
    if reason := why_not_build():
        raise Unavailable(reason)


def why_not_ask() -> str:
    """Empty if the TensorRT that the provider links is here: the list of its version is asked."""
    return why_not_build()


def ask(model: Path, shapes: InputShapes) -> SupportAnswer:
    """What the list of that TensorRT's version says of each node, and so what would run where."""
    if reason := why_not_ask():
        raise Unavailable(f"{reason}; the list of a version is asked with --generation, or [support] generation")
    return answer_by_list(model, release_nearest(tensorrt_version()), shapes)


def build(model: Path, engine: Path, options: BuildOptions) -> EngineRecord:
    """Let the provider compile what it takes of the model; the rest stays with CUDA's kernels and the CPU's.

    Raises:
        Unavailable: the wheel, a GPU, or what the wheel links is not here; or a library of plugins is for another
            processor.
        EngineError: it refused the model, takes no node of it, or an option does not fit the model.
    """
    refuse(options)
    return sharing.build(SHARING, model, engine, options)


def load(engine: Path, *, num_threads: int) -> Runner:
    """A session on all three providers, as it was built.

    Raises:
        NotTrusted: keys are named that engines have to be signed by, and none of them signed all files of this one.
        EngineError: a library of plugins that it was built with is not named, or another file.
    """
    check_file(engine)  # What was compiled is code.
    return sharing.SharedRunner(SHARING, engine, num_threads)


def providers_of(engine: Path) -> tuple[ProviderShare, ...]:
    """Who runs which nodes."""
    return sharing.description_of(engine).shares


def layer_times(engine: Path, feed: Mapping[str, Array], num_runs: int) -> LayerTimes:
    """By ONNX Runtime's own profile, in a process in which each kernel of the GPU is waited for.

    A part that TensorRT compiled is one of its kernels.

    Raises:
        NotTrusted, EngineError: as ``load``.
    """
    check_file(engine)
    return shared_times.layer_times(SHARING, engine, feed, num_runs)


def provider_options(model: Path, options: BuildOptions, version: str = "") -> dict[str, str]:
    """Those of the TensorRT provider for a model, but for where its cache is.

    Args:
        model: the ONNX file.
        options: what the builder is told.
        version: of TensorRT; empty: that which is linked here.

    Raises:
        EngineError: a dynamic input has no shape range.
    """
    chosen = {
        "trt_max_workspace_size": str(options.workspace_mib * 2**20),
        "trt_builder_optimization_level": str(options.optimization_level),
        **profile_options(model, options),
    }
    if options.sparse_weights:
        chosen["trt_sparsity_enable"] = "True"
    precision, major = precision_named(options.precision), (version or tensorrt_version()).partition(".")[0]
    if not precision.is_full and major.isdigit() and int(major) < FIRST_STRONGLY_TYPED:
        chosen["trt_fp16_enable"] = "True"
        if precision.is_integer:
            chosen["trt_int8_enable"] = "True"
    return chosen


SHARING = sharing.Sharing(
    name=NAME,
    providers=(TENSORRT, CUDA, CPU),
    title="TensorRT",
    compiles=True,
    optimizes=False,
    versions=versions,
    provider_options=provider_options,
)
