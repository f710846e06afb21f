"""Convert a trained network to an FP32 ONNX model that every later stage can rely on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import onnx

from calibration.data.preprocess import Preprocess
from calibration.errors import ModelError
from calibration.graph.activations import write_gelus, write_hard_sigmoids
from calibration.graph.attention import scale_queries, transpose_keys
from calibration.graph.constants import fold_constants
from calibration.graph.einsum import products_from_einsums
from calibration.graph.external_data import save_model
from calibration.graph.fold import fold_batch_norm, portable_names
from calibration.graph.layout import join_transposes
from calibration.graph.pads import fold_pads
from calibration.graph.pools import pool_means
from calibration.graph.strides import raise_strides
from calibration.graph.views import drop_views
from calibration.quantized.grids import is_quantized
from calibration.quantized.idle_casts import drop_idle_casts
from calibration.quantized.stepped_weights import quantize_stepped_weights
from calibration.weights.equalize import equalize_layers
from calibration.weights.pixels import PixelSteps, fold_pixels
from pipeline.artifact import OnnxModel, Source
from pipeline.errors import ConfigError, StageError
from pipeline.machine.packages import distribution_versions
from pipeline.option import option
from pipeline.sources.contract import RENAMED, Conversion, first_line, module_of, source_kind
from pipeline.stage import Stage

LARGEST_OPSET = 18
"""tf2onnx 1.17 says of 19: `Opset 19 is not supported yet`."""
SMALLEST_OPSET = 13
"""The first with per-channel QuantizeLinear."""

Rewrite: TypeAlias = Callable[[onnx.ModelProto], tuple[onnx.ModelProto, int]]

REWRITES: tuple[tuple[Rewrite, str], ...] = (
    (products_from_einsums, "Einsums that are one product are written as MatMul: {num}"),
    (drop_idle_casts, "casts of values to the type that they have are left out: {num}"),
    (fold_constants, "what depends on constants alone is computed, number of nodes: {num}"),
    (join_transposes, "what stands between convolutions has its channels first as they do, Transposes fewer: {num}"),
    (write_hard_sigmoids, "hard sigmoids in pieces are written as HardSigmoid: {num}"),
    (write_gelus, "GELUs are written in the pieces that runtimes know: {num}"),
    (pool_means, "means over all positions are written as GlobalAveragePool: {num}"),
    (transpose_keys, "keys of attention are transposed by their last two axes: {num}"),
    (drop_views, "Reshapes back to a shape that the values had before are left out: {num}"),
    (fold_pads, "convolutions and pools that pad for themselves now, instead of a Pad: {num}"),
    (scale_queries, "scales of attention are multiplied into the query, before its product: {num}"),
    (fold_batch_norm, "{num} multiplications and additions of batch norms folded into weights"),
    (raise_strides, "strides of 1x1 convolutions moved up to where the values are computed: {num}"),
)
"""In this order: what a rewrite finds may be what one before it wrote. None changes the function."""
ROUNDED = (drop_idle_casts, fold_constants, join_transposes, drop_views, fold_pads, raise_strides)
"""Those of a model that came quantized: they change no value, also not by the order in which numbers are added."""
STEPPED = "weights that lie on INT8 steps, as FakeQuant leaves them, are quantized by these: {num}"
EQUALIZED = "channels between products are scaled so that their weights are alike, number of pairs: {num}"
NOTHING_EQUALIZED = "there are no products with nothing but a Relu between them whose channels could be made alike"
UNFOLDED = "unfolded.json"
"""Beside a model that preprocesses by itself: the inputs that take bytes, and what they took before."""


@dataclass(frozen=True)
class Pixels:
    """What a network that takes bytes does to them itself, and of which inputs; of all where none is named."""

    steps: PixelSteps
    inputs: tuple[str, ...] = ()


def pixels_from(preprocess: Preprocess) -> Pixels:
    """The part of a preprocessing that ``Preprocess.of_bytes`` leaves to the network."""
    how = preprocess
    steps = PixelSteps(how.channels == "bgr", how.scale, how.mean, how.std, to_nchw=how.layout == "nchw")
    return Pixels(steps, how.inputs)


@dataclass(frozen=True)
class Export(Stage):
    """Convert a SavedModel, a Keras file, a PyTorch network or an ONNX file to the FP32 ONNX model of later stages.

    TensorFlow models are converted by tf2onnx, PyTorch's by torch, in a process of its own. After it, batch norms left
    behind biased or depthwise convolutions are folded into their weights, tensor names lose their `:`, and onnx's
    checker reads the model in full. Input and output names are the signature's, or those of `forward`.
    """

    RESULT: ClassVar[str] = "exported"

    opset: int = option(
        17, "ONNX opset version, 13 to 18 (what tf2onnx supports); PyTorch networks are brought down from 18"
    )
    allow: tuple[str, ...] = option(
        (), "operators that touch files or run Python, and Lambda layers of Keras files, that are allowed to"
    )
    fold: bool = option(True, "fold batch normalization into the preceding weights")
    equalize: bool = option(
        False, "scale channels between convolutions so that weights of both are alike (cross-layer equalization)"
    )
    fold_preprocess: bool = option(
        False, "let the network take 8-bit pixels (N, H, W, C): it scales, subtracts, divides and transposes itself"
    )

    def versions(self, source: Source, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        always = ("tensorflow", "tf2onnx", "keras", "tf_keras", "onnx", "onnx-ir")
        return distribution_versions(*always, *source.DISTRIBUTIONS)

    def modules(self, source: Source, *_inputs: object) -> tuple[str, ...]:
        """The source of ours that the result depends on, beside what this module imports."""
        return (module_of(source.KIND),)

    def __call__(self, out: Path, source: Source, pixels: Pixels | None = None) -> OnnxModel:
        """Write ``out/model.onnx`` and, beside it, ``notes.json`` and ``names.json`` (new name -> old name).

        Beside it, too, lies what it can be compared with: ``savedmodel``, made of a Keras file, ``trained.pt2``, of a
        function's PyTorch module, or ``source.onnx``, an ONNX source whose tensors had to be renamed or whose plugin
        had to be written out.

        Args:
            out: a folder to write to.
            source: the trained network.
            pixels: for ``fold_preprocess``; what its inputs took before is then in ``unfolded.json``.

        Raises:
            ConfigError: no such file or signature, an opset that cannot be had, or inputs that cannot take bytes.
            Unavailable: TensorFlow and tf2onnx, or torch and onnxscript, are not installed.
            StageError: the converter refused the model, or what it made is not valid ONNX.
        """
        if not SMALLEST_OPSET <= self.opset <= LARGEST_OPSET:
            raise ConfigError(
                f"[export] opset is {self.opset}, but tf2onnx and Q/DQ take {SMALLEST_OPSET} to {LARGEST_OPSET}"
            )
        converted = source_kind(source.KIND).to_onnx(source, out, Conversion(self.opset, self.allow))
        model, notes = converted.model, converted.notes
        if came_quantized := is_quantized(model):
            if self.equalize:
                raise ConfigError(f"[export] equalize: {source.path} came quantized, its weights stay; leave it out")
            notes.append("export: the network came quantized; its scales, weights and arithmetic stay as they are")
        for rewrite, sentence in REWRITES:
            if rewrite in ROUNDED or (not came_quantized and (rewrite is not fold_batch_norm or self.fold)):
                model, num = rewrite(model)
                notes += [f"export: {sentence.format(num=num)}"] * bool(num)
        if came_quantized:
            model, num = quantize_stepped_weights(model)
            notes += [f"export: {STEPPED.format(num=num)}"] * bool(num)
        if self.equalize:
            model, num = equalize_layers(model)
            notes.append(f"export: {EQUALIZED.format(num=num)}" if num else f"export: {NOTHING_EQUALIZED}")
        model, names = portable_names(model)
        if self.fold_preprocess:
            if came_quantized:
                raise ConfigError(
                    f"[export] fold_preprocess: {source.path} came quantized, its scales and weights stay; leave it out"
                )
            model = _folded(model, source, pixels, out, notes)
        _name_batch_dimension(model)
        _tell_unknown_dimensions_apart(model)
        path = out / "model.onnx"
        _write_checked(model, path)
        if converted.original is not None and (names or not converted.runs_alone):
            save_model(portable_names(converted.original)[0], out / RENAMED)
        (out / "names.json").write_text(json.dumps(names, indent=1))
        (out / "notes.json").write_text(json.dumps(notes))
        return OnnxModel(path)


def _folded(
    model: onnx.ModelProto, source: Source, pixels: Pixels | None, out: Path, notes: list[str]
) -> onnx.ModelProto:
    """The model that takes bytes; notes are added to."""
    if pixels is None:
        raise ConfigError(
            f"[export] fold_preprocess: there is no preprocessing to fold into {source.path}; give --preprocess, or a "
            "plan with [data.preprocess]"
        )
    try:
        model, inputs = fold_pixels(model, pixels.steps, pixels.inputs)
    except ModelError as error:
        raise ConfigError(
            f"[export] fold_preprocess: {source.path}: {error}; name the inputs that take pictures in "
            "[data.preprocess] inputs, or leave it out"
        ) from error
    before: dict[str, Any] = {each.name: {"dtype": each.dtype, "shape": list(each.shape)} for each in inputs}
    (out / UNFOLDED).write_text(json.dumps(before, indent=1))
    for each in inputs:
        notes.append(f"export: '{each.name}' takes 8-bit pixels: {each.words or 'they are cast, which is all'}")
    return model


def _name_batch_dimension(model: onnx.ModelProto) -> None:
    """tf2onnx calls a dynamic first dimension `unk__149`; it is the batch, and gets that name wherever it stands."""
    first = [value.type.tensor_type.shape.dim[:1] for value in (*model.graph.input, *model.graph.output)]
    is_dynamic = any(dims and not dims[0].HasField("dim_value") for dims in first[: len(model.graph.input)])
    unknown = {dims[0].dim_param for dims in first if dims and is_dynamic and dims[0].dim_param.startswith("unk__")}
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in unknown:
                dimension.dim_param = "batch"


NAMELESS = ("", "none", "unk", "unknown", "dynamic", "dyn", "any")


def _tell_unknown_dimensions_apart(model: onnx.ModelProto) -> None:
    """Dimensions that share a name without a meaning, such as ``?``, would be one and the same to TensorRT.

    Each of an input gets a name of its own, but for the first, which is the batch; elsewhere they stay unknown.
    """
    for value in model.graph.input:
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if dimension.HasField("dim_param") and _is_nameless(dimension.dim_param):
                dimension.dim_param = "batch" if axis == 0 else f"{value.name}_{axis}"
    for value in (*model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.HasField("dim_param") and _is_nameless(dimension.dim_param):
                dimension.ClearField("dim_param")


def _is_nameless(name: str) -> bool:
    return not any(map(str.isalpha, name)) or name.lower() in NAMELESS


def _write_checked(model: onnx.ModelProto, path: Path) -> None:
    save_model(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise StageError(
            f"{path.name}: onnx's checker refuses the converted model ({first_line(error)}); report it"
        ) from error
