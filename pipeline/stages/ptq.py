"""Write a precision into a float `.tflite` file: post-training quantization, for LiteRT."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from calibration.graph.patterns import matching
from calibration.precision.placement import MATRIX_PRODUCTS, PRODUCTS
from calibration.precision.scale import limits
from calibration.precision.weights import channels_in_4_bits
from calibration.ranges.ranges import RangesRecord, spans_from_ranges
from calibration.ranges.ranges_file import ranges_from_folder
from engines.backends import litert
from engines.litert import quantizer
from engines.litert.four_bits import WeightArray, with_rounded_weights
from engines.litert.in_float import with_operators_in_float
from engines.litert.op_versions import with_int8_versions
from engines.litert.quantizer import TfliteFormat
from engines.precision import DYNAMIC, FP16, FP32, INT8, INT16X8, Precision, precision_named
from pipeline.artifact import Ranges, TfliteModel
from pipeline.errors import ConfigError, NothingQuantized
from pipeline.machine.packages import distribution_versions
from pipeline.option import option
from pipeline.stage import Stage

WrittenPrecision = Literal["fp16", "dynamic", "int8", "int16x8"]


@dataclass(frozen=True)
class Ptq(Stage):
    """Write a precision into a float `.tflite` file, by ai-edge-quantizer, with the ranges of `trtforge calibrate`.

    ``fp16`` keeps weights in FP16 and computes in FP32. ``dynamic`` keeps them in INT8 and rounds data as it comes, but
    for that of depthwise convolutions, which compute in FP32; it needs no data. ``int8`` computes in INT8 throughout,
    ``int16x8`` with data in INT16, for processors that have kernels for it.
    """

    WRITES: ClassVar[tuple[str, ...]] = (FP16.name, DYNAMIC.name, INT8.name, INT16X8.name)
    FORMAT: ClassVar[Literal["tflite"]] = "tflite"
    RESULT: ClassVar[str] = "models"

    precision: WrittenPrecision = option("int8", "what is written; in a plan this follows from the variant")
    per_channel: bool = option(True, "a scale for each channel of weights; no: one for all of a tensor")
    weight_bits: int = option(
        8, "bits of integer weights, 8 or 4: of convolutions that are not depthwise, and of dense layers; others keep 8"
    )
    io: Literal["float", "integer"] = option(
        "float", "types of inputs and outputs, for int8 and int16x8; integer: those of the precision"
    )
    exclude: tuple[str, ...] = option(
        (), "names, types or patterns (head/*) of operators of the .tflite file to keep in FP32, for integer precisions"
    )
    edgetpu: bool = option(
        False,
        "int8 for the Edge TPU: integer inputs and outputs, one scale for the weights of a dense layer, versions of "
        "operators that its compiler reads; in a plan this follows from [build] edgetpu",
    )

    def __post_init__(self) -> None:
        """Check what belongs together; ConfigError."""
        if self.weight_bits not in (4, 8):
            raise ConfigError(f"weight_bits is {self.weight_bits}, but must be 4 or 8; correct it")

    def writing(self, precision: str) -> Ptq:
        """For a variant of that precision."""
        assert precision in get_args(WrittenPrecision), "others are another stage's to write"
        stage = replace(self, precision=cast(WrittenPrecision, precision))
        stage.check_edgetpu()
        return stage

    def check_edgetpu(self) -> None:
        """That it takes what is written.

        Raises:
            ConfigError: it takes neither weights of 4 bits nor operators in FP32.
        """
        if not (self.edgetpu and precision_named(self.precision).has_scales):
            return
        if self.weight_bits != type(self).weight_bits:
            raise ConfigError("weight_bits is 4, but the Edge TPU takes weights of 8 bits; take 8")
        if self.exclude:
            raise ConfigError("exclude keeps operators in FP32, which the Edge TPU does not take; leave it out")

    def operators_of_one_scale(self) -> tuple[str, ...]:
        """Those of ONNX whose weights have one scale, and not one for each channel."""
        if not self.per_channel:
            return PRODUCTS
        return MATRIX_PRODUCTS if self.edgetpu and precision_named(self.precision).has_scales else ()

    def reads_ranges(self, precision: Precision) -> bool:
        """Where the scales of activations are fixed; so not for FP16, which is not clipped here."""
        return precision.is_static

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        return distribution_versions(quantizer.DISTRIBUTION, "ai-edge-litert", "numpy")

    def __call__(self, out: Path, model: TfliteModel, ranges: Ranges | None = None) -> TfliteModel:
        """Write ``out/model.tflite`` and ``out/notes.json``.

        Raises:
            ConfigError: the precision needs ranges and there are none.
            DataError: the ranges are of another model, or an excluded operator is not in this one.
            NothingQuantized: all convolutions and matrix products are excluded.
            Unavailable: ai-edge-quantizer is not installed.
            EngineError: it refuses the model, which is no float one, has custom operators or an open batch.
        """
        self.check_edgetpu()
        litert.check_float(model.path)
        precision = precision_named(self.precision)
        bounds: Mapping[str, tuple[float, float]] = {}
        means: Mapping[str, tuple[float, ...]] = {}
        if self.reads_ranges(precision):
            if ranges is None:
                raise ConfigError(f"{precision.name}: needs ranges; run `trtforge calibrate`, and give --ranges")
            record = ranges_from_folder(ranges.path)
            record.check_model(model.digest(), dict)
            bounds = bounds_for(record, precision)
            means = {name: tensor.channel_means for name, tensor in record.tensors.items()}
        for_edgetpu = self.edgetpu and precision.has_scales
        wanted = TfliteFormat(
            precision,
            self.per_channel,
            integer_io=self.io == "integer" or for_edgetpu,
            weight_bits=self.weight_bits,
            per_dense_tensor=for_edgetpu,
            in_float=self._excluded(model, precision),
        )
        data = quantizer.quantized(model.path, wanted, bounds)
        if self.weight_bits != type(self).weight_bits and precision.is_integer and self.per_channel:
            data = _with_rounded_weights(model.path, data, means)
        if wanted.in_float:
            data = _with_operators_in_float(data, wanted.in_float)
        (out / "model.tflite").write_bytes(_with_versions(data) if for_edgetpu else data)
        notes = self._notes_of_4_bits(out / "model.tflite", model) if precision.is_integer else []
        if wanted.in_float:
            _check_something_is_quantized(out / "model.tflite", model)
        (out / "notes.json").write_text(json.dumps(notes))
        return TfliteModel(out / "model.tflite")

    def _excluded(self, model: TfliteModel, precision: Precision) -> tuple[str, ...]:
        """The names of the operators that stay in FP32, in the order of the file.

        Raises:
            DataError: a pattern matches nothing; the message offers the nearest.
        """
        if not (self.exclude and precision.is_integer):
            return ()
        operators = litert.tflite_facts(model.path).main_operators
        known = dict.fromkeys([*(each.name for each in operators), *(each.kind for each in operators)])
        meant = matching(self.exclude, known, "exclude", "operator or type of operator")
        return tuple(each.name for each in operators if each.name in meant or each.kind in meant)

    def _notes_of_4_bits(self, written: Path, model: TfliteModel) -> list[str]:
        """How many have weights of 4 bits, where they are to have such.

        Raises:
            ConfigError: none has.
        """
        if self.weight_bits == type(self).weight_bits:
            return []
        facts = litert.tflite_facts(written)
        num, num_all = facts.num_4_bits(), len(facts.products)
        if not num:
            raise ConfigError(
                f"{model.path}: weight_bits is 4, but it has no convolution that is not depthwise and no dense layer, "
                "which alone have such weights; take 8"
            )
        return [f"weights of 4 bits: {num} of {num_all} convolutions and matrix products; others keep 8 bits"]


def _with_rounded_weights(model: Path, data: bytes, means: Mapping[str, tuple[float, ...]]) -> bytes:
    """The file with weights of 4 bits whose kernels keep their sums, and biases that take back what is left."""
    import flatbuffers

    def rounded(name: str, weight: WeightArray) -> tuple[npt.NDArray[np.int8], WeightArray, WeightArray]:
        return channels_in_4_bits(weight, means.get(name, ()))

    return with_rounded_weights(litert.schema(), flatbuffers, (model.read_bytes(), data), rounded)


def _with_operators_in_float(data: bytes, names: Sequence[str]) -> bytes:
    import flatbuffers

    return with_operators_in_float(litert.schema(), flatbuffers, data, names)


def _check_something_is_quantized(written: Path, model: TfliteModel) -> None:
    facts = litert.tflite_facts(written)
    if facts.precision() == FP32.name:
        raise NothingQuantized(
            f"{model.path}: exclude leaves none of its {len(facts.products)} convolutions and matrix products in "
            "integers; exclude fewer"
        )


def _with_versions(data: bytes) -> bytes:
    import flatbuffers

    return with_int8_versions(litert.schema(), flatbuffers, data)


def bounds_for(record: RangesRecord, precision: Precision) -> dict[str, tuple[float, float]]:
    """Tensor -> least and largest value, 0 among them: clipped by the range, or with many levels as they were seen."""
    record.check_measured("asymmetric quantization for LiteRT")
    if precision.has_many_levels:
        record = record.unclipped()
    return {name: limits(span) for name, span in spans_from_ranges(record).items()}
