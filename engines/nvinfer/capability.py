"""What one generation of TensorRT, or of TensorRT for RTX, can do: found by its names, never by its version.

What a generation or a GPU cannot do is an error that says what can be done instead, before anything is built.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from engines.contract import BuildOptions
from engines.errors import EngineError, Unavailable
from engines.plugin_library import check_library
from engines.precision import PRECISIONS, Precision, precision_named

DEFAULT_OPTIMIZATION_LEVEL = BuildOptions.optimization_level

Typing = Literal["strong", "weak"]


@dataclass(frozen=True)
class Capability:
    """What there is, by the module's names."""

    name: str
    """The module's."""
    version: str
    """For sentences alone."""
    explicit_batch: bool
    """Whether that is a flag; where it is not, it always is so."""
    strong_typing: bool
    """Whether networks can be held to the types that the ONNX file has."""
    weak_typing: bool
    """Whether builder flags may choose the precision."""
    native_int8: bool
    """Whether there are calibrators, and a config that takes one."""
    ahead_of_time: bool
    """Whether it builds for other GPUs than this machine's, and for none at all."""
    optimization_level: bool
    hardware: tuple[str, ...]
    """Of ``BuildOptions.hardware``, besides ``exact``."""
    version_compatible: bool
    stripped: bool
    """Plans without weights."""
    progress: bool
    timing_cache: bool
    dla: bool
    external_kernels: bool
    """Whether it knows kernels of cuBLAS and cuDNN."""
    core_without_libraries: bool
    """Whether it must be told that its own layers are to do without these libraries too."""
    native_norm: bool
    """Whether its parser can be told to do without a plugin for InstanceNormalization."""
    parser_parts: bool
    """Whether its parser numbers the parts of a model that it takes; before, it returned them."""
    profile_sharing: bool
    """Whether it can be told that several execution contexts may use one profile; before, none can, and later all."""


@dataclass(frozen=True)
class Platform:
    """What the builder says of the GPU. Where it has no opinion (TensorRT 11, TensorRT for RTX), all is there."""

    gpu: str = ""
    """Its name and compute capability, for sentences."""
    has_fp16: bool = True
    has_int8: bool = True
    num_dla_cores: int = 0

    def has(self, precision: Precision) -> bool:
        """Whether there is fast arithmetic for it."""
        if precision.is_integer:
            return self.has_int8 and precision.has_scales
        return precision.is_full or self.has_fp16


def capability_of(trt: Any) -> Capability:
    """What the module ``trt`` can do."""
    ahead_of_time = hasattr(trt, "ComputeCapability")
    levels = (
        ("same_compute_capability", hasattr(trt, "HardwareCompatibilityLevel")
         and hasattr(trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY")),
        ("ampere_plus", hasattr(trt, "HardwareCompatibilityLevel")),
    )  # fmt: skip
    return Capability(
        name=trt.__name__.replace("_bindings", ""),
        version=trt.__version__,
        explicit_batch=hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"),
        strong_typing=hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"),
        weak_typing=hasattr(trt.BuilderFlag, "FP16") and not ahead_of_time,  # RTX 1.4 has the flags and refuses them.
        native_int8=hasattr(trt.IBuilderConfig, "int8_calibrator"),  # RTX 1.4 has the classes, but no place for them.
        ahead_of_time=ahead_of_time,
        optimization_level=hasattr(trt.IBuilderConfig, "builder_optimization_level"),
        # TensorRT for RTX has the names of what follows; it warns, or needs a GPU or a library that it lacks.
        hardware=() if ahead_of_time else tuple(name for name, there in levels if there),
        version_compatible=hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE") and not ahead_of_time,
        stripped=hasattr(trt.BuilderFlag, "STRIP_PLAN") and not ahead_of_time,
        progress=hasattr(trt, "IProgressMonitor"),
        timing_cache=not ahead_of_time,  # There it does nothing, but touches the GPU.
        dla=not ahead_of_time,
        external_kernels=hasattr(trt.TacticSource, "CUDNN") and not ahead_of_time,
        core_without_libraries=hasattr(trt.PreviewFeature, "DISABLE_EXTERNAL_TACTIC_SOURCES_FOR_CORE_0805"),
        native_norm=hasattr(trt, "OnnxParserFlag"),
        parser_parts=hasattr(trt.OnnxParser, "supports_model_v2") or not hasattr(trt.OnnxParser, "supports_model"),
        profile_sharing=hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806"),
    )


def has_own_graphs(trt: Any) -> bool:
    """Whether execution contexts capture CUDA graphs by themselves (TensorRT for RTX)."""
    return hasattr(trt, "CudaGraphStrategy")


def has_load_library(trt: Any) -> bool:
    """Whether its registry of plugins asks a library for them."""
    return hasattr(trt.IPluginRegistry, "load_library")


def has_one_kind_of_plugin(trt: Any) -> bool:
    """Whether its registry lists plugins as it did before 10, when they were of one kind."""
    return hasattr(trt.IPluginRegistry, "plugin_creator_list") and not hasattr(trt.IPluginRegistry, "all_creators")


def keeps_plugins(trt: Any) -> bool:
    """Whether an engine that later versions can run takes its libraries of plugins with it."""
    return hasattr(trt.IBuilderConfig, "plugins_to_serialize")


def has_parser_refitter(trt: Any) -> bool:
    """Whether it reads the weights of a refit from ONNX files by itself."""
    return hasattr(trt, "OnnxParserRefitter")


def has_serialization_flags(trt: Any) -> bool:
    """Whether it is told what of an engine is written."""
    return hasattr(trt, "SerializationFlag")


def keeps_refittable(trt: Any) -> bool:
    """Whether it has to be told that an engine which is written stays refittable."""
    return hasattr(trt.SerializationFlag, "INCLUDE_REFIT")


def platform_of(trt: Any, builder: Any, gpu: str) -> Platform:
    """What ``builder`` says of the GPU; ``gpu`` is how sentences call it."""
    can = hasattr(trt.Builder, "platform_has_fast_int8")
    return Platform(
        gpu=gpu,
        has_fp16=builder.platform_has_fast_fp16 if can else True,
        has_int8=builder.platform_has_fast_int8 if can else True,
        num_dla_cores=builder.num_DLA_cores,
    )


def typing_for(capability: Capability, options: BuildOptions) -> Typing:
    """Strong typing wherever it exists, but for what only builder flags can ask for: native INT8, and DLA."""
    wants_flags = options.native is not None or options.dla_core >= 0
    return "weak" if capability.weak_typing and (wants_flags or not capability.strong_typing) else "strong"


def refuse(capability: Capability, options: BuildOptions) -> None:
    """Compare what is requested with what this generation has.

    Raises:
        Unavailable: it cannot do it; the sentence says what can be done.
        EngineError: the options contradict each other, whatever the generation; or a plugin is no shared library.
    """
    _check_numbers(capability, options)
    for file in options.plugins:
        check_library(file)
    reason = next(_lacking(capability, options), "")
    if reason:
        raise Unavailable(f"{capability.name}: {reason}")
    if options.dla_core >= 0:
        _check_dla(capability, options)


def refuse_platform(capability: Capability, platform: Platform, options: BuildOptions) -> None:
    """Compare what is requested with what the GPU has.

    Raises:
        Unavailable: it has no such arithmetic, or no such DLA core; the sentence says what can be done.
    """
    if not platform.has(precision_named(options.precision)):
        can = " or ".join(precision.name for precision in PRECISIONS.values() if platform.has(precision))
        raise Unavailable(
            f"{capability.name}: {options.precision} is requested, {platform.gpu or 'this GPU'} has no fast arithmetic "
            f"for it; build {can} for it"
        )
    if options.dla_core >= max(platform.num_dla_cores, 0):
        number = platform.num_dla_cores
        cores = "no DLA, or its TensorRT does not drive it" if not number else f"{number} of them, counted from 0"
        raise Unavailable(
            f"{capability.name}: DLA core {options.dla_core} is requested, {platform.gpu or 'this machine'} has "
            f"{cores}; {'choose one of these' if number else 'leave dla_core at -1, and it is built for the GPU'}"
        )


def _lacking(capability: Capability, options: BuildOptions) -> Iterator[str]:
    """A sentence for each thing that this generation does not have."""
    has = f"version {capability.version} has"
    precision = precision_named(options.precision)
    if precision.is_integer and not precision.has_scales:
        yield (
            f"{options.precision} is requested, TensorRT has no such engines: its INT8 has fixed scales; take int8, or "
            "another backend"
        )
    if options.native is not None and not capability.native_int8:
        yield f'native INT8 is requested, {has} no calibrators; take int8 = "qdq", which writes INT8 into the model'
    level = options.optimization_level
    if level != DEFAULT_OPTIMIZATION_LEVEL and not capability.optimization_level:
        yield (
            f"optimization level {level} is requested, {has} none; leave it at {DEFAULT_OPTIMIZATION_LEVEL}, or take "
            "TensorRT 8.6 or later"
        )
    if options.hardware != "exact" and options.hardware not in capability.hardware:
        known = ", ".join(f'"{name}"' for name in ("exact", *capability.hardware))
        targets = "; name its targets in compute_capabilities" if capability.ahead_of_time else ""
        yield f'hardware = "{options.hardware}" is requested, {has} {known}; choose one of these{targets}'
    if options.version_compatible and not capability.version_compatible:
        yield f"a version-compatible engine is requested, {has} none; leave it out, and build again after an update"
    if options.weights == "stripped" and not capability.stripped:
        yield f'weights = "stripped" is requested, {has} no such plans; take "fixed"'
    if options.weights == "refittable" and capability.ahead_of_time:
        yield f'weights = "refittable" is requested, {has} none without a GPU; take "fixed"'
    if options.dla_core >= 0 and not capability.dla:
        yield f"DLA core {options.dla_core} is requested, {has} no DLA; leave dla_core at -1"


def _check_numbers(capability: Capability, options: BuildOptions) -> None:
    level = options.optimization_level
    if not 0 <= level <= 5:
        raise EngineError(
            f"{capability.name}: optimization level {level} is requested, it goes from 0 to 5; choose one"
        )
    if options.workspace_mib < 1:
        raise EngineError(f"{capability.name}: workspace is {options.workspace_mib} MiB; give at least 1")
    if options.native is not None and not precision_named(options.precision).is_integer:
        raise EngineError(
            f"{capability.name}: native INT8 is requested with precision {options.precision}; ask for int8"
        )


def _check_dla(capability: Capability, options: BuildOptions) -> None:
    """DLA runs FP16 and INT8 in shapes that do not vary; INT8 by calibration alone, where there are calibrators."""
    where = f"{capability.name}, DLA core {options.dla_core}"
    precision = precision_named(options.precision)
    if precision.is_full:
        raise Unavailable(
            f"{where}: {precision.name} is requested, DLA has FP16 and INT8; build one of these, or for the GPU"
        )
    if precision.is_integer and options.native is None and capability.native_int8:
        raise Unavailable(f'{where}: INT8 by Q/DQ nodes is requested, DLA takes none; take int8 = "native"')
    for ranges in options.profiles():
        for name, shape in ranges.items():
            if not shape.min == shape.opt == shape.max:
                raise Unavailable(
                    f"{where}: the shapes of '{name}' go from {shape.min} to {shape.max}, DLA takes one; give min, opt "
                    "and max alike"
                )
