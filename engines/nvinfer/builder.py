"""Building an engine: everything that TensorRT and TensorRT-RTX have in common. ``trt`` is the module of either.

Only the name-based API is used (8.5 and later). What a generation can do is found out with ``hasattr``, never from its
version. One build leaves state behind in the library (a build after a failed one came out different), so that a build
wants a process of its own; its caller sees to that.
"""

from __future__ import annotations

import functools
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.contract import BuildOptions, EngineRecord, GivenBatches
from engines.cuda import device
from engines.errors import EngineError, OutOfMemory, Unavailable
from engines.layers import num_layers_by_precision
from engines.nvinfer import timing_cache
from engines.nvinfer.builder_config import configure, keep_full, layers_off_dla, network_flags, set_precision
from engines.nvinfer.calibrator import calibrator_for
from engines.nvinfer.capability import capability_of, keeps_plugins, platform_of, refuse, refuse_platform, typing_for
from engines.nvinfer.error_hints import is_out_of_memory, lacks_memory, with_hint
from engines.nvinfer.inspection import Inspection
from engines.nvinfer.plugins import can_be_inside, load_plugins
from engines.nvinfer.shape_profiles import add_profiles, calibration_profile, calibration_shapes, located
from engines.onnx_model import OnnxModelFacts, check_options, facts
from engines.plugin_library import FIELD, PluginLibrary, library_at
from engines.precision import precision_named
from engines.support.parser_limits import refuse_model

_LOG = logging.getLogger(__name__)
SPARSITY = "(Sparsity)"
"""What the builder's messages on sparse kernels begin with, in 8.4 to 10 (NVIDIA/TensorRT, issues 1403, 2169, 4056)."""

_OPERATOR = re.compile(r"While parsing node number \d+ \[(\w+)")
_NODE_NAME = re.compile(r'\bname: "([^"]*)" op_type: ')
"""In the parser's log, which has the node itself between two lines."""


@dataclass(frozen=True)
class Family:
    """What differs between TensorRT and TensorRT-RTX."""

    name: str
    """The backend's name."""
    trt: Any
    """The module."""
    versions: Mapping[str, str]
    configure: Callable[[Any, BuildOptions], None]
    """Sets on an ``IBuilderConfig`` what only this member of the family has."""
    inspect: Callable[[bytes, OnnxModelFacts, BuildOptions], Inspection]
    """From the plan, the model and the options: what its layers run in."""
    open_device: Callable[[], Any] = device.Device
    """The GPU, for TensorRT's own calibrator."""


class ErrorTail:
    """The last error messages of the library, at most twelve, and its last warnings."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=12)
        self.warnings: deque[str] = deque(maxlen=12)
        self.sparsity: list[str] = []
        """What the builder says of sparse kernels: which layers could have one, and which do."""

    def add(self, line: str) -> None:
        """Keep one message."""
        self._lines.append(" ".join(line.split()))

    def clear(self) -> None:
        """Forget them all; at the start of a build."""
        self._lines.clear()
        self.warnings.clear()
        self.sparsity.clear()

    def lines(self) -> tuple[str, ...]:
        """All of the errors that are kept."""
        return tuple(self._lines)

    def text(self) -> str:
        """The last two messages that say something of their own, in one line."""
        # Without a driver each failure is followed by CUDA error 35, which is not its cause.
        telling = [line for line in self._lines if "catchCudaError" not in line] or list(self._lines)
        return "; ".join(telling[-2:]) or "it gave no reason"


@functools.lru_cache(maxsize=None)
def logger(trt: Any) -> tuple[Any, ErrorTail]:
    """The one logger of this process (TensorRT keeps the first it is given), and what it heard of errors."""
    tail = ErrorTail()
    levels = {"VERBOSE": logging.DEBUG, "INFO": logging.DEBUG}

    class Log(trt.ILogger):  # type: ignore[misc]
        """Errors are kept for the sentence that is raised; everything goes to Python's logging."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                tail.add(message)
            elif severity == trt.ILogger.WARNING:
                tail.warnings.append(message)
            elif message.startswith(SPARSITY):
                tail.sparsity.append(" ".join(message[len(SPARSITY) :].split()))
            _LOG.log(levels.get(severity.name, logging.INFO), "%s: %s", trt.__name__, message)

    return Log(), tail


@functools.lru_cache(maxsize=None)
def register_plugins(trt: Any) -> None:
    """Let the library know NVIDIA's plugins: its parser makes some operators of them, and plans may hold them.

    Up to 8.6 InstanceNormalization is one, and in every generation those that networks are exported with are, such as
    EfficientNMS_TRT.
    """
    trt.init_libnvinfer_plugins(logger(trt)[0], "")


def build(family: Family, model: Path, engine: Path, options: BuildOptions) -> EngineRecord:
    """Build ``engine`` from the ONNX file ``model``.

    Raises:
        Unavailable: this generation or this machine cannot do what the options ask.
        EngineError: the parser or the builder refused the model, or an option does not fit it.
    """
    start = time.perf_counter()
    refuse(capability_of(family.trt), options)
    model_facts = facts(model)
    check_options(model_facts, options, model)
    if model_facts.has_half_scales and not capability_of(family.trt).strong_typing:
        raise Unavailable(
            f"{model}: has FP16 scales, {family.name} {family.trt.__version__} takes FP32 scales and puts the rest "
            'into FP16 by itself; quantize with rest = "fp32"'
        )
    refuse_model(family.trt, model_facts, model)
    if model_facts.num_4_bits and options.dla_core >= 0:
        raise Unavailable(f"{model}: has weights of 4 bits, which the DLA does not take; quantize with weight_bits = 8")
    plugins = tuple(map(library_at, options.plugins))
    log_tail = logger(family.trt)[1]
    load_plugins(family.trt, plugins, log_tail.text)
    _check_inside(family, plugins, options)
    with calibrator_for(family.trt, options, family.open_device) as calibrator:
        data, notes = _serialized(family, model, options, calibrator, model_facts)
    engine.write_bytes(data)
    seen = family.inspect(data, model_facts, options)
    return EngineRecord(
        backend=family.name,
        precision=options.precision,
        size_bytes=len(data),
        build_seconds=time.perf_counter() - start,
        versions=family.versions,
        inputs=model_facts.inputs,
        outputs=model_facts.outputs,
        num_quantizable=model_facts.num_quantizable,
        num_int8=seen.num_int8,
        num_4_bits=model_facts.num_4_bits,
        notes=(*notes, *seen.notes),
        options=_told(options, plugins),
        layers=seen.layers,
        layers_from=seen.source,
        num_layers_by_precision=num_layers_by_precision(seen.layers),
    )


def _serialized(
    family: Family, model: Path, options: BuildOptions, calibrator: Any, model_facts: OnnxModelFacts
) -> tuple[bytes, tuple[str, ...]]:
    """The plan, and sentences for the record."""
    trt, capability = family.trt, capability_of(family.trt)
    log, tail = logger(trt)
    tail.clear()
    register_plugins(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # what pybind makes of a null pointer
        raise Unavailable(
            f"{family.name}: the builder does not start ({tail.text()}); its CUDA may be newer than the driver: look "
            "at nvidia-smi, update the driver or take an older version"
        ) from error
    platform = platform_of(trt, builder, _gpu_text(family.versions))
    refuse_platform(capability, platform, options)
    typing = typing_for(capability, options)
    network = builder.create_network(network_flags(trt, capability, typing))
    parser = trt.OnnxParser(network, log)
    if capability.native_norm and (options.version_compatible or options.hardware != "exact"):
        parser.set_flag(
            trt.OnnxParserFlag.NATIVE_INSTANCENORM
        )  # Such engines take no plugins; from 10 on it is so anyway.
    if not parser.parse_from_file(str(model)):
        raise EngineError(with_hint(f"{model}: {family.name} cannot take the model", _parser_error(parser, tail)))
    config = builder.create_builder_config()
    notes = configure(trt, capability, config, options, tail.warnings)
    family.configure(config, options)
    if options.plugins and options.version_compatible:
        config.plugins_to_serialize = [str(file) for file in options.plugins]
    notes += set_precision(trt, config, options, typing, platform)
    if typing == "weak" and precision_named(options.precision).is_half:
        notes += keep_full(trt, config, network, model_facts.is_full)
    located(model, lambda: add_profiles(builder, config, network, options), tail.text)
    if calibrator is not None:
        shapes = located(model, lambda: calibration_shapes(network, options), tail.text)
        profile = calibration_profile(builder, network, shapes)
        if profile is not None and not config.set_calibration_profile(profile):
            raise EngineError(f"{model}: {family.name} refuses the profile to calibrate in ({tail.text()})")
        calibrator.expect(shapes)
        config.int8_calibrator = calibrator
    if options.dla_core >= 0:
        notes += _dla_notes(layers_off_dla(config, network), network.num_layers)
    plan = builder.build_serialized_network(network, config)
    if calibrator is not None:
        calibrator.check()
    if plan is None:
        log_text = " ".join(tail.lines())
        is_full = is_out_of_memory(tail.text()) or lacks_memory(log_text, tail.warnings, options.workspace_mib)
        kind = OutOfMemory if is_full else EngineError
        raise kind(with_hint(f"{model}: {family.name} cannot build an engine", tail.text()))
    if capability.timing_cache and options.timing_cache is not None:
        timing_cache.keep(config, options.timing_cache)
    return bytes(plan), notes + (sparsity_notes(tail.sparsity) if options.sparse_weights else ())


def sparsity_notes(words: Sequence[str]) -> tuple[str, ...]:
    """Sentences on what the builder said of sparse kernels, which it times beside the dense ones."""
    if not words:
        return ("Sparse weights: the builder says nothing of sparse kernels.",)
    return tuple(f"Sparse weights: {text}{' none' if text.endswith(':') else ''}." for text in words)


def parser_for(trt: Any, network: Any, options: BuildOptions) -> Any:
    """An ``OnnxParser`` for this network. For engines that are to run elsewhere too it makes nothing of plugins."""
    parser = trt.OnnxParser(network, logger(trt)[0])
    if capability_of(trt).native_norm and (options.version_compatible or options.hardware != "exact"):
        parser.set_flag(trt.OnnxParserFlag.NATIVE_INSTANCENORM)  # As trtexec does for 8.6; from 10 on it is so anyway.
    return parser


def _check_inside(family: Family, plugins: Sequence[PluginLibrary], options: BuildOptions) -> None:
    """That an engine for later versions can have its plugins in it: they look for no library of an older one."""
    if not options.version_compatible:
        return
    for library in plugins:
        if not keeps_plugins(family.trt) or not can_be_inside(library):
            raise EngineError(
                f"{library.path}: a version-compatible engine takes its plugins with it, which needs getCreators or "
                "getPluginCreators in the library; export one of them, or leave version_compatible out"
            )


def _told(options: BuildOptions, plugins: Sequence[PluginLibrary]) -> dict[str, Any]:
    """What a record has of the options: all but what lies on this machine or stands elsewhere in the record."""
    names = (
        "workspace_mib", "optimization_level", "compute_capabilities", "hardware", "version_compatible", "weights",
        "dla_core", "external_kernels", "cuda_graph", "sparse_weights",
    )  # fmt: skip
    values = {name: getattr(options, name) for name in names}
    source = options.native
    native = "" if source is None else "samples" if isinstance(source, GivenBatches) else "given scales"
    profiles = [{name: asdict(shape) for name, shape in ranges.items()} for ranges in options.profiles()]
    in_record = {**values, "native": native, "profiles": profiles}
    if plugins:  # With a copy in it where later versions are to run the engine.
        in_record[FIELD] = [library.record(is_inside=options.version_compatible) for library in plugins]
    return in_record


def _gpu_text(versions: Mapping[str, str]) -> str:
    if "gpu" not in versions:
        return ""
    return f"{versions['gpu']} (compute capability {versions.get('compute_capability', 'unknown')})"


def _dla_notes(off: tuple[str, ...], num_layers: int) -> tuple[str, ...]:
    if not off:
        return (f"All {num_layers} layers can run on DLA.",)
    return (f"{len(off)} of {num_layers} layers run on the GPU, for DLA cannot: {', '.join(off)}.",)


def _parser_error(parser: Any, tail: ErrorTail) -> str:
    """The first error of the parser, with the ONNX node that it is about: up to 8.6 the log alone has its words."""
    if not parser.num_errors:
        return tail.text()
    error = parser.get_error(0)
    words = " ".join(error.desc().split())
    if hasattr(error, "node_operator"):
        name, operator = error.node_name(), error.node_operator()
    else:
        name, operator = (_last(pattern, tail.lines()) for pattern in (_NODE_NAME, _OPERATOR))
    if words == "false" and error.code().name == "UNSUPPORTED_NODE":  # Of an operator that it knows, and never takes.
        words = f"{operator} is not supported in TensorRT"
    if operator:
        return f"node '{name}', {operator}: {words}"
    return f"node {error.node()}: {words}" if error.node() >= 0 else words


def _last(pattern: re.Pattern[str], lines: Iterable[str]) -> str:
    matches = [match[1] for line in lines if (match := pattern.search(line))]
    return matches[-1] if matches else ""
