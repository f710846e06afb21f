"""An ``IBuilderConfig`` as the options ask for it, once ``capability`` has nothing against them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from engines.contract import BuildOptions
from engines.nvinfer import timing_cache
from engines.nvinfer.capability import Capability, Platform, Typing
from engines.nvinfer.progress import progress_monitor
from engines.precision import precision_named

NVINFER_OPTIONS = frozenset(
    {
        "workspace_mib", "optimization_level", "hardware", "version_compatible", "weights", "dla_core", "cuda_graph",
        "native", "sparse_weights", "plugins", "builds",
    }
)  # fmt: skip
"""The fields of ``BuildOptions`` that TensorRT and TensorRT for RTX both have an effect for; and ``builds``, which the
stage that builds obeys: engines that they choose kernels for by time differ from build to build."""
LIBRARIES = ("CUBLAS", "CUBLAS_LT", "CUDNN")
"""Names of ``trt.TacticSource`` whose kernels are another library's."""


def network_flags(trt: Any, capability: Capability, typing: Typing) -> int:
    """Explicit batch where that is a choice, and strong typing: the ONNX file carries the precision."""
    flags = 0
    if capability.explicit_batch:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if capability.strong_typing and typing == "strong":
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return flags


def configure(
    trt: Any, capability: Capability, config: Any, options: BuildOptions, warnings: deque[str]
) -> tuple[str, ...]:
    """Everything but precision and profiles; ``warnings``: see ``timing_cache.begin``. Sentences for the record."""
    notes: list[str] = []
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * 2**20)
    if capability.optimization_level:
        config.builder_optimization_level = options.optimization_level
    if not capability.ahead_of_time:  # Without it the engine's inspector knows layers by name alone.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if capability.profile_sharing and not config.get_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806):
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)  # 8.6: so that streams can share one.
    if capability.progress:
        config.progress_monitor = progress_monitor(trt, options.progress)
    if capability.timing_cache and options.timing_cache is not None:
        problem = timing_cache.begin(config, options.timing_cache, warnings)
        notes += [problem] if problem else []
    _set_portability(trt, config, options)
    if capability.external_kernels and not options.external_kernels:
        _leave_libraries_out(trt, capability, config)
    if options.dla_core >= 0:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if options.sparse_weights:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    return tuple(notes)


def set_precision(trt: Any, config: Any, options: BuildOptions, typing: Typing, platform: Platform) -> tuple[str, ...]:
    """Builder flags for weakly typed networks. Returns sentences for the record."""
    notes: tuple[str, ...] = ()
    precision = precision_named(options.precision)
    if not precision.is_half and config.get_flag(trt.BuilderFlag.TF32):
        notes = ("TF32 is on, as is the library's default: FP32 products may round their inputs to 10 bits.",)
    if typing == "strong" or precision.is_full:
        return notes
    if platform.has_fp16:
        config.set_flag(trt.BuilderFlag.FP16)
    if precision.is_half:
        return ("Weakly typed network with the FP16 flag: the builder may leave layers in FP32.",)
    config.set_flag(trt.BuilderFlag.INT8)
    flags = "INT8 and FP16 flags" if platform.has_fp16 else "INT8 flag"
    rest = "may run in FP16" if platform.has_fp16 else "runs in FP32"
    return (*notes, f"Weakly typed network with the {flags}: what is not quantized {rest}.")


def keep_full(trt: Any, config: Any, network: Any, is_full: Callable[[str], bool]) -> tuple[str, ...]:
    """Ask for FP32 in those layers of a weakly typed network that the ONNX file has in FP32. Sentences for the record.

    With the FP16 flag the builder takes FP16 wherever that is faster, whatever types the file has, and such nodes are
    in FP32 because their values do not fit FP16.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    full_layers = [layer for layer in layers if is_full(layer.name)]
    for layer in full_layers:
        layer.precision = trt.DataType.FLOAT
        for index in range(layer.num_outputs):
            layer.set_output_type(index, trt.DataType.FLOAT)
    if not full_layers:
        return ()
    config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
    return (
        f"FP32 is requested in {len(full_layers)} layers that the model has in FP32, such as '{full_layers[0].name}'.",
    )


def layers_off_dla(config: Any, network: Any) -> tuple[str, ...]:
    """Names of the layers that DLA cannot run, and the GPU will."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    return tuple(layer.name for layer in layers if not config.can_run_on_DLA(layer))


def _set_portability(trt: Any, config: Any, options: BuildOptions) -> None:
    if options.hardware == "ampere_plus":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    elif options.hardware == "same_compute_capability":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.weights == "refittable":
        config.set_flag(trt.BuilderFlag.REFIT)
    elif options.weights == "stripped":
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)  # It is filled with the weights that it was built from.


def _leave_libraries_out(trt: Any, capability: Capability, config: Any) -> None:
    """Try TensorRT's own kernels alone."""
    kinds = [int(kind) for name, kind in trt.TacticSource.__members__.items() if name not in LIBRARIES]
    config.set_tactic_sources(sum(1 << kind for kind in kinds))
    if capability.core_without_libraries:
        config.set_preview_feature(trt.PreviewFeature.DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805, True)
