"""Refitting by TensorRT: the weights of an ONNX file go into a plan that was built for that, from 8.5 on.

From 10 on TensorRT's own reader of ONNX files sets the weights (``OnnxParserRefitter``). Before, there is none: the
model is parsed, and each layer of the network that the parser makes has what the engine's layer of that name takes, as
trtexec does for ``--timeRefit``. So what the parser makes of several tensors, as of a BatchNormalization's, is made by
that very parser, in every generation.

A weight that the builder folded into others is not among those that an engine lets be replaced. Where such a one has
changed, the engine would go on with the old one in silence; so that is an error here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engines.contract import Array, BuildOptions, ShapeRange
from engines.errors import EngineError, OutOfMemory
from engines.nvinfer.builder import logger, parser_for
from engines.nvinfer.builder_config import network_flags
from engines.nvinfer.capability import (
    capability_of,
    has_parser_refitter,
    has_serialization_flags,
    keeps_refittable,
    typing_for,
)
from engines.nvinfer.error_hints import is_out_of_memory, with_hint
from engines.nvinfer.inspection import Inspection
from engines.nvinfer.loading import EngineLoader
from engines.nvinfer.plan_header import is_stripped
from engines.nvinfer.runner import refused_by, runtime_for
from engines.onnx_model import OnnxModelFacts, facts
from engines.plugin_library import libraries_for
from engines.refit.network import names_text
from engines.refitting import ChangedWeights, RefitOutcome

BATCH_NORM = "BatchNormalization"
"""The parser makes one layer of its four tensors, whose weights have names of their own."""
AGAIN = "build it again from that model"
ASK_FOR = 'build it with weights = "refittable" in [build], or `trtforge build --weights refittable`'


@dataclass(frozen=True)
class PlanRefitter:
    """Of TensorRT, or of another library with its interface."""

    loader: EngineLoader
    inspect: Callable[[bytes, OnnxModelFacts, BuildOptions], Inspection]
    """From the plan, the model and the options: what its layers run in."""

    def __call__(self, engine: Path, model: Path, target: Path, changed: ChangedWeights) -> RefitOutcome:
        """As ``RefittingBackend.refit``; the caller has seen to it that there is a GPU."""
        start = time.perf_counter()
        checks = self.loader.checks_of(engine, can_be_stripped=True)
        record = checks.preflight(engine)
        trt, plugins = self.loader.import_trt(), libraries_for(engine, record)
        tail = logger(trt)[1]
        runtime = runtime_for(trt, engine, record, plugins)
        loaded = runtime.deserialize_cuda_engine(checks.bytes_of(engine))
        if loaded is None:
            raise refused_by(engine, tail.text())
        options, lacks_weights = _options_of(record), is_stripped(record)
        num_weights = _refitted(trt, loaded, _Files(engine, model), changed, options)
        plan = _serialized(trt, loaded, stays_refittable=not lacks_weights)
        del loaded  # Its memory is free for the new one.
        again = runtime.deserialize_cuda_engine(plan)
        if again is None:
            raise EngineError(with_hint(f"{engine}: does not load any more once it is refitted", tail.text()))
        target.write_bytes(plan)
        seen = self.inspect(plan, facts(model), options) if lacks_weights else Inspection(-1)
        return RefitOutcome(
            size_bytes=len(plan),
            seconds=time.perf_counter() - start,
            num_weights=num_weights,
            is_refittable=bool(again.refittable) and not lacks_weights,
            num_int8=seen.num_int8,
            layers=seen.layers,
            layers_from=seen.source,
            notes=seen.notes,
        )


class _Files(NamedTuple):
    """For sentences."""

    engine: Path
    model: Path


def _refitted(trt: Any, engine: Any, files: _Files, changed: ChangedWeights, options: BuildOptions) -> int:
    """Replace all weights that a deserialized engine lets be replaced; how many they are.

    Raises:
        EngineError: it cannot be refitted, or not with these.
    """
    log, tail = logger(trt)
    if not engine.refittable:
        raise EngineError(f"{files.engine}: its weights are fixed, so that it cannot be refitted; {ASK_FOR}")
    refitter = trt.Refitter(engine, log)
    _check_replaceable(refitter, changed, files.engine)
    if has_parser_refitter(trt):  # Both keep what TensorRT reads when it refits.
        source: Any = _set_by_parser(trt, refitter, files)
    else:
        source = _set_by_layers(trt, refitter, files, options)
    if missing := list(map(str, refitter.get_missing_weights())):
        raise EngineError(f"{files.engine}: weights {names_text(missing)} are missing in {files.model}; {AGAIN}")
    if not refitter.refit_cuda_engine():
        kind = OutOfMemory if is_out_of_memory(tail.text()) else EngineError
        raise kind(with_hint(f"{files.engine}: cannot be refitted with {files.model}", tail.text()))
    del source
    return len(refitter.get_all_weights())


def _check_replaceable(refitter: Any, changed: ChangedWeights, engine: Path) -> None:
    """That the engine lets each weight be replaced that has changed.

    Raises:
        EngineError: it does not; it would go on with old ones.
    """
    names, layers = set(refitter.get_all_weights()), set(refitter.get_all()[0])

    def is_replaceable(name: str) -> bool:
        if name in names:
            return True
        readers = changed[name]
        return bool(readers) and all(operator == BATCH_NORM and reader in layers for reader, operator in readers)

    if fixed := [name for name in changed if not is_replaceable(name)]:
        raise EngineError(
            f"{engine}: weights {names_text(fixed)} have changed, which it does not let be replaced: they were folded "
            f"into others as it was built; {AGAIN}"
        )


def _set_by_parser(trt: Any, refitter: Any, files: _Files) -> Any:
    """By TensorRT's own reader of ONNX files, which sets all that the engine lets be replaced; it owns the weights."""
    parser_refitter = trt.OnnxParserRefitter(refitter, logger(trt)[0])
    if parser_refitter.refit_from_file(str(files.model)):
        return parser_refitter
    errors = [parser_refitter.get_error(index) for index in range(parser_refitter.num_errors)]
    words = "; ".join(" ".join(error.desc().split()) for error in errors) or logger(trt)[1].text()
    lacking = list(map(str, refitter.get_missing_weights()))
    what = f"weights {names_text(lacking)} are missing in {files.model}" if lacking else f"does not take {files.model}"
    raise EngineError(f"{files.engine}: {what} ({words}); {AGAIN}")


def _set_by_layers(trt: Any, refitter: Any, files: _Files, options: BuildOptions) -> list[Array]:
    """By the layers that the parser makes of the model; the weights, which TensorRT does not copy."""
    weights = layer_weights(trt, files.model, options)
    arrays, lacking = [], []
    for name, role in zip(*refitter.get_all()):
        array = weights.get((name, role))
        if array is None or not array.size:
            lacking.append(f"{name} ({role.name.lower()})")
            continue
        arrays.append(array)
        if not refitter.set_weights(name, role, array):
            what = f"does not take the {role.name.lower()} of layer '{name}'"
            raise EngineError(f"{files.engine}: {what} ({logger(trt)[1].text()}); {AGAIN}")
    if lacking:
        raise EngineError(
            f"{files.engine}: weights of layers {names_text(lacking)} are missing in {files.model}; {AGAIN}"
        )
    return arrays


def layer_weights(trt: Any, model: Path, options: BuildOptions) -> dict[tuple[str, Any], Array]:
    """The weights of each layer that the parser makes of a model, by the layer's name and their role.

    Raises:
        EngineError: the parser refuses the model.
    """
    log, tail = logger(trt)
    capability = capability_of(trt)
    builder = trt.Builder(log)
    network = builder.create_network(network_flags(trt, capability, typing_for(capability, options)))
    parser = parser_for(trt, network, options)
    if not parser.parse_from_file(str(model)):
        raise EngineError(with_hint(f"{model}: {capability.name} cannot take the model", tail.text()))
    product = {"KERNEL": "kernel", "BIAS": "bias"}
    kinds = {
        trt.LayerType.CONVOLUTION: (trt.IConvolutionLayer, product),
        trt.LayerType.DECONVOLUTION: (trt.IDeconvolutionLayer, product),
        trt.LayerType.SCALE: (trt.IScaleLayer, {"SCALE": "scale", "SHIFT": "shift"}),
        trt.LayerType.CONSTANT: (trt.IConstantLayer, {"CONSTANT": "weights"}),
    }
    weights: dict[tuple[str, Any], Array] = {}
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        if layer.type in kinds:
            kind, roles = kinds[layer.type]
            layer.__class__ = kind  # Python gets an ILayer, whatever it is.
            for role, attribute in roles.items():
                value = np.array(getattr(layer, attribute))  # A copy: the network's own goes with it.
                weights[layer.name, getattr(trt.WeightsRole, role)] = value
    return weights


def _serialized(trt: Any, engine: Any, *, stays_refittable: bool) -> bytes:
    """The plan, with its weights."""
    if not has_serialization_flags(trt):
        return bytes(engine.serialize())
    serialization = engine.create_serialization_config()
    serialization.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    if stays_refittable and keeps_refittable(trt):
        serialization.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    return bytes(engine.serialize_with_config(serialization))


def _options_of(record: Mapping[str, Any]) -> BuildOptions:
    """As much of what the builder was told as an inspection asks for."""
    options = record.get("options", {})
    first: Sequence[Mapping[str, Mapping[str, Sequence[int]]]] = options.get("profiles") or ({},)
    shapes = {name: ShapeRange(*(tuple(each[key]) for key in ("min", "opt", "max"))) for name, each in first[0].items()}
    return BuildOptions(
        record.get("precision", ""),
        shapes,
        hardware=options.get("hardware", "exact"),
        version_compatible=bool(options.get("version_compatible")),
        dla_core=int(options.get("dla_core", -1)),
    )
