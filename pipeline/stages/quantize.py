"""Write INT8 into the ONNX model: as Q/DQ nodes, placed as the target wants them, or with dynamic ranges."""

from __future__ import annotations

import json
import math
import platform
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar, Literal, NoReturn, TypeVar, cast, get_args

import onnx

from calibration.errors import ModelError
from calibration.graph.external_data import model_from_file, save_model
from calibration.graph.patterns import nodes_by_name, nodes_meant
from calibration.graph.tensor_digests import tensor_digests
from calibration.graph.weightless import skeleton_from_file
from calibration.precision.dynamic import dynamic_from_onnx
from calibration.precision.fp16 import named, nodes_beyond_fp16
from calibration.precision.int8_fp16 import typed_int8_from_qdq
from calibration.precision.place import BLOCK_SIZES, block_size, placement_words
from calibration.precision.placement import (
    FULL_BITS,
    AttentionChoice,
    PlacementOptions,
    PlacementTarget,
    RoundingMethod,
    SmallProductChoice,
)
from calibration.precision.qdq import qdq_from_onnx
from calibration.precision.scale import Arithmetic, arithmetic_for
from calibration.quantized.grids import check_quantized, is_quantized
from calibration.quantized.symmetric import symmetric_from_quantized
from calibration.ranges.override import WHERE, Override, overridden
from calibration.ranges.ranges import TUNED, RangesRecord, listed, spans_from_ranges
from calibration.ranges.ranges_file import ranges_from_folder
from engines.cpu import cpu_flags
from engines.precision import DYNAMIC, FP32, INT8, Precision, precision_named
from pipeline.accuracy.mixture import MixtureBound, mixture_sentence
from pipeline.accuracy.override import OverrideRanges
from pipeline.accuracy.placed_words import dynamic_notes, nothing_quantized
from pipeline.accuracy.weight_codes import codes_from_folder, rounding_sentence
from pipeline.artifact import Mixture, OnnxModel, PlacementTimes, Ranges, WeightCodes
from pipeline.errors import ConfigError, NothingQuantized
from pipeline.latency.timed_placement import quicker_in_float
from pipeline.machine.packages import cpu_versions, distribution_versions
from pipeline.option import option
from pipeline.stage import Stage

WrittenInteger = Literal["int8", "dynamic"]
T = TypeVar("T")


@dataclass(frozen=True)
class Quantize(Stage):
    """Write INT8 into the ONNX model as Q/DQ nodes, placed as the target wants them.

    For ``tensorrt``: symmetric int8, weights per channel, activations per tensor, on the inputs and weights of
    convolutions and matrix products. For ``onnxruntime``: so that the CPU's integer kernels run, in the arithmetic
    that this CPU does without saturating.

    ``dynamic``, for ``onnxruntime`` alone, needs no ranges: matrix products round their data as it comes, and
    convolutions keep their weights in INT8 and compute in FP32, since its integer convolutions of such data are slow.
    """

    WRITES: ClassVar[tuple[str, ...]] = (INT8.name, DYNAMIC.name)
    RESULT: ClassVar[str] = "models"

    precision: WrittenInteger = option("int8", "what is written; in a plan this follows from the variant")
    target: PlacementTarget = option("tensorrt", "backend whose kernels the Q/DQ nodes are placed for")
    exclude: tuple[str, ...] = option((), "names, operator types or patterns (head/*) of nodes to keep in FP32")
    attention: AttentionChoice = option(
        "rest", "for tensorrt: products of attention, as the rest; fused: INT8 where TensorRT has one kernel for both"
    )
    small_products: SmallProductChoice = option(
        "rest", "for tensorrt: matrix products of fewer than 16 terms or outputs, as the head of few classes, or int8"
    )
    arithmetic: Literal["cpu", "u8s8", "u8s7", "u8u8", "s8s8"] = option(
        "cpu", "for onnxruntime: types of activations and weights (u8s8: UINT8 and INT8); cpu: best on this CPU"
    )

    placement: Literal["static", "timed"] = option(
        "static", "for onnxruntime: what stays in float; timed: also what is quicker so on this CPU, which is measured"
    )
    weight_bits: int = option(
        8, "bits of weights, 8 or 4: of matrix products in blocks, and for onnxruntime of convolutions in the file"
    )
    block_size: int = option(
        0,
        "weights of 4 bits that share a scale along a sum: for tensorrt 64, 128; for onnxruntime 16 to 256; 0: 64, 32",
    )
    rounding: RoundingMethod = option(
        "squant",
        "of weights: squant keeps kernels' sums; gptq: by second moments of the data, from samples; nearest: each",
    )
    rest: Literal["fp32", "fp16"] = option(
        "fp32", "for tensorrt: precision of everything that is not INT8; fp16 needs opset 19 and TensorRT 10 or later"
    )
    min_sqnr_db: float = option(
        -math.inf, "mixed precision: least work out of INT8 so that outputs have this SQNR on calibration samples"
    )
    max_metric_drop: float = option(
        math.inf, "mixed precision: the same for a drop of the metric against FP32, on labelled calibration samples"
    )
    sensitivity: Literal["sqnr", "metric"] = option(
        "sqnr",
        "mixed precision: layers are ranked by the noise that each brings, or by what the metric gains in float",
    )
    override: tuple[Override, ...] = option(
        (),
        "exception by pattern, as in a plan: tensors = 'features/*', range = [0, 6]; or nodes = 'head/*', and method "
        "or precision; can be repeated",
    )
    coarsen_to_symmetric: bool = option(
        False,
        "of a model that came quantized, for tensorrt: let asymmetric tensors have coarser scales with zero point 0",
    )

    def __post_init__(self) -> None:
        """Check what belongs together; ConfigError."""
        if self.weight_bits not in (4, FULL_BITS):
            raise ConfigError(f"weight_bits is {self.weight_bits}, but must be 4 or 8; correct it")
        if self.sensitivity != "sqnr" and not math.isfinite(self.max_metric_drop):
            raise ConfigError(
                f"sensitivity is {self.sensitivity}, which is for max_metric_drop; set that, or leave sensitivity out"
            )
        sizes = {size for of_target in BLOCK_SIZES.values() for size in of_target}
        if self.block_size and (self.weight_bits == FULL_BITS or self.block_size not in sizes):
            self._refuse_block_size(sizes, "")
        for override in self._of_nodes():
            if override.precision != FP32.name and override.precision != self.rest:
                raise ConfigError(f'{override.words()}: FP16 is written with rest = "fp16" alone; write that, or fp32')

    def _check_block_size(self) -> None:
        if self.block_size and self.block_size not in (sizes := BLOCK_SIZES[self.target]):
            self._refuse_block_size(sizes, f" for {self.target}")

    def _refuse_block_size(self, sizes: Collection[int], for_whom: str) -> NoReturn:
        raise ConfigError(
            f"block_size is {self.block_size}, but is for weight_bits = 4 and must be one of "
            f"{', '.join(map(str, sorted(sizes)))}{for_whom}; correct it, or leave it out"
        )

    def _of_nodes(self) -> list[Override]:
        return [override for override in self.override if override.precision]

    def overrides_of_ranges(self) -> OverrideRanges | None:
        """What changes ranges before they are used; None where nothing does."""
        overrides = tuple(override for override in self.override if not override.precision)
        return OverrideRanges(overrides) if overrides else None

    def excluded(self, model: OnnxModel) -> tuple[str, ...]:
        """The names and operator types that are not INT8, of a model.

        Raises:
            DataError: a pattern matches nothing; the message offers the nearest.
        """
        if not (self.exclude or self.override):
            return ()
        nodes = nodes_by_name(skeleton_from_file(model.path))
        overrides = [override.nodes for override in self._of_nodes()]
        return (*nodes_meant(nodes, self.exclude, "exclude"), *nodes_meant(nodes, overrides, f"{WHERE} nodes"))

    def is_for_cpu(self) -> bool:
        """Whether INT8 is for ONNX Runtime's CPU kernels, whose times can be measured here."""
        return self.target == "onnxruntime"

    def is_timed(self) -> bool:
        """Whether what is quicker in float is to be measured."""
        return self.placement == "timed" and self.is_for_cpu() and not self.is_dynamic()

    def placement_options(self, model: OnnxModel) -> PlacementOptions:
        """What placements are decided by, of a model.

        Raises:
            ConfigError: the target has no blocks of that size.
            DataError: a pattern matches nothing.
        """
        self._check_block_size()
        return PlacementOptions(
            self.target,
            self.excluded(model),
            self.chosen_arithmetic()[0],
            self.attention,
            self.small_products,
            weight_bits=self.weight_bits,
            block_size=self.block_size,
            rounding=self.rounding,
        )

    def placed_for(self, placement: str) -> Quantize:
        """For a backend that wants its nodes so."""
        if placement not in get_args(PlacementTarget):
            raise ConfigError(
                f"the backend takes no {precision_named(self.precision).title} model; take {self.precision} out of "
                "[variants] precisions"
            )
        if self.is_dynamic() and placement != "onnxruntime":
            raise ConfigError(
                f"the backend takes no {self.precision} model; take it out of [variants] precisions, or take "
                "onnxruntime or litert, which have it"
            )
        placed = replace(self, target=cast(PlacementTarget, placement))
        placed._check_block_size()
        return placed

    def writing(self, precision: str) -> Quantize:
        """For a variant of that precision."""
        assert precision in get_args(WrittenInteger), "others are another stage's to write"
        return replace(self, precision=cast(WrittenInteger, precision))

    def is_dynamic(self) -> bool:
        """Whether scales of data are found anew at each run."""
        return precision_named(self.precision).is_dynamic

    def reads_ranges(self, precision: Precision) -> bool:
        """Where the scales of data are fixed."""
        return not precision.is_dynamic

    def chosen_arithmetic(self) -> tuple[Arithmetic, str]:
        """The arithmetic, and a sentence that says why."""
        if self.arithmetic == "cpu":
            return arithmetic_for(cpu_flags(), platform.machine())
        return self.arithmetic, f"arithmetic {self.arithmetic}, as asked for"

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on, and for ONNX Runtime what this CPU was found to do."""
        tool_versions = distribution_versions("onnx", "onnx-ir", "numpy")
        if self.target != "onnxruntime":
            return tool_versions
        measured_on = cpu_versions() if self.is_timed() else {}
        return tool_versions | {"arithmetic": self.chosen_arithmetic()[0]} | measured_on

    def is_bounded(self) -> bool:
        """Whether layers are left out of INT8 until a bound holds."""
        return not self.is_dynamic() and not MixtureBound(self.min_sqnr_db, self.max_metric_drop).is_any

    def rounds_by_data(self) -> bool:
        """Whether codes of weights are chosen on calibration samples."""
        return self.rounding == "gptq" and not self.is_dynamic()

    def as_trained(self) -> Quantize:
        """For a network that was trained for INT8: nothing is placed otherwise than it was trained."""
        return replace(self, placement="static", min_sqnr_db=-math.inf, max_metric_drop=math.inf, sensitivity="sqnr")

    def __call__(
        self,
        out: Path,
        model: OnnxModel,
        ranges: Ranges | None = None,
        *decided: PlacementTimes | Mixture | WeightCodes,
    ) -> OnnxModel:
        """Write ``out/model.onnx`` and ``out/notes.json``.

        What is quicker in float by the times that were ``decided`` stays so, and what must by a mixture, so that INT8
        holds a bound; weights are rounded to codes that were.
        A model that came quantized needs no ranges: it is brought to the target where every value stays the same.

        Raises:
            ConfigError: INT8 is to be written and there are no ranges, or dynamic ranges for another target.
            DataError: the ranges are of another model, or lack a tensor; or they were imported, and FP16 needs more; or
                a pattern matches no node.
            ModelError: the model cannot be quantized, or nothing in it can be INT8.
        """
        proto = model_from_file(model.path)
        if is_quantized(proto):
            self.check_for_quantized(model.path)
            return self._brought(out, model, proto)
        self.check_for_float(model.path)
        if self.is_dynamic():
            return self._dynamic(out, model, proto)
        if ranges is None:
            raise ConfigError(f"{self.precision}: needs ranges; run `trtforge calibrate`, and give --ranges")
        record = ranges_from_folder(ranges.path)
        record.check_model(model.digest(), lambda: tensor_digests(proto))
        options = self.placement_options(model)
        record.check_placement(placement_words(options))
        if self.target == "onnxruntime":
            record.check_measured("asymmetric quantization for ONNX Runtime")
        is_tuned = record.method == TUNED  # With the user's ranges in it already.
        exceptions = self._of_nodes() if is_tuned else self.override
        record, overrides = overridden(record, exceptions, skeleton_from_file(model.path), {})
        why = self.chosen_arithmetic()[1]
        in_float, decisions = quicker_in_float(_one(decided, PlacementTimes))
        if (mixture := _one(decided, Mixture)) is not None:
            mixed = mixture.read()
            in_float = tuple(dict.fromkeys((*in_float, *mixed["in_float"])))
            decisions = [*decisions, mixture_sentence(mixed)]
        options = replace(options, exclude=(*options.exclude, *in_float), nearest=is_tuned)
        if (codes := _one(decided, WeightCodes)) is not None:
            options = replace(options, chosen=codes_from_folder(codes))
            decisions = [*decisions, rounding_sentence(codes)]
        elif self.rounds_by_data() and not is_tuned:
            raise ConfigError(f"rounding is {self.rounding}, which needs samples; give --data, or a plan")
        quantized = qdq_from_onnx(proto, spans_from_ranges(record.read_for(self.target)), options)
        if not quantized.placement.nodes:
            raise NothingQuantized(nothing_quantized(proto, quantized.placement.notes))
        heads = {f"node '{name}' " for name in in_float}
        placed_notes = [note for note in quantized.placement.notes if not note.startswith(tuple(heads))]
        notes = [*overrides, *placed_notes, *([why] if self.target == "onnxruntime" else []), *decisions]
        placed = {tensor.tensor for tensor in quantized.placement.tensors}
        user_set = {name for name, tensor in record.tensors.items() if tensor.bounds and tensor.method != TUNED}
        if idle := [name for name in record.tensors if name in user_set and name not in placed]:
            notes.append(f"{WHERE}: {listed(idle)} tensors are not INT8 for {self.target}, their range is not used")
        made = quantized.model
        if self.rest == "fp16" and self.target == "tensorrt":
            full = [override.nodes for override in self._of_nodes() if override.precision == FP32.name]
            made, more = _with_fp16(named(proto), made, record, full)
            notes += more
        save_model(made, out / "model.onnx")
        (out / "notes.json").write_text(json.dumps(notes))
        return OnnxModel(out / "model.onnx")

    def check_for_quantized(self, which: Path | str) -> None:
        """That the options mean something for a model that came quantized; ConfigError."""
        plain = Quantize(target=self.target, coarsen_to_symmetric=self.coarsen_to_symmetric)
        for each in fields(self):
            if getattr(self, each.name) != getattr(plain, each.name):
                raise ConfigError(
                    f"[quantize] {each.name}: {which} came quantized, so that it has no effect: INT8 is the file as it "
                    "is; leave it out, or give the FP32 model"
                )

    def check_for_float(self, which: Path | str) -> None:
        """The same for a model in FP32; ConfigError."""
        if self.coarsen_to_symmetric:
            raise ConfigError(
                f"[quantize] coarsen_to_symmetric: {which} did not come quantized, so that it has no effect; leave it "
                "out"
            )

    def _brought(self, out: Path, model: OnnxModel, proto: onnx.ModelProto) -> OnnxModel:
        """A model that came quantized: as it is, or as TensorRT takes it."""
        notes = ["INT8 is the file as it came: nothing was calibrated"]
        try:
            check_quantized(proto)
            is_taken = self.target == "onnxruntime"
            symmetric = None if is_taken else symmetric_from_quantized(proto, coarsen=self.coarsen_to_symmetric)
        except ModelError as error:
            raise ModelError(f"{model.path}: {error}") from error
        if symmetric is None:
            shutil.copyfile(model.path, out / "model.onnx")
            for weights in model.weight_files():
                (out / weights.relative_to(model.path.parent)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(weights, out / weights.relative_to(model.path.parent))
        else:
            save_model(symmetric.model, out / "model.onnx")
            notes += symmetric.notes()
        (out / "notes.json").write_text(json.dumps(notes))
        return OnnxModel(out / "model.onnx")

    def _dynamic(self, out: Path, model: OnnxModel, proto: onnx.ModelProto) -> OnnxModel:
        if self.target != "onnxruntime":
            raise ConfigError(f"--precision {self.precision}: is for onnxruntime alone; give --target onnxruntime")
        arithmetic, why = self.chosen_arithmetic()
        options = self.placement_options(model)
        block = 0 if self.weight_bits == FULL_BITS else block_size(options)
        written = dynamic_from_onnx(proto, options.exclude, arithmetic, block)
        if not written.in_integers and not written.stored:
            raise NothingQuantized(nothing_quantized(proto, written.notes))
        save_model(written.model, out / "model.onnx")
        if block and not written.in_integers:
            raise ConfigError(
                f"weight_bits is {self.weight_bits}, but the network has no matrix product with a constant matrix, and "
                f"in {self.precision} no other has weights of 4 bits; take 8"
            )
        last = f"weights of matrix products have 4 bits, in blocks of {block}" if block else why
        notes = [*dynamic_notes(written, self.rounding), *written.notes, *([last] if written.in_integers else [])]
        (out / "notes.json").write_text(json.dumps(notes))
        return OnnxModel(out / "model.onnx")


def _one(decided: Sequence[object], kind: type[T]) -> T | None:
    """The one of a kind, if there is one."""
    return next((each for each in decided if isinstance(each, kind)), None)


def _with_fp16(
    model: onnx.ModelProto, quantized: onnx.ModelProto, ranges: RangesRecord, keep_fp32: Sequence[str]
) -> tuple[onnx.ModelProto, list[str]]:
    """FP16 for what is not INT8, but where the values seen or the scales leave FP16's range; and sentences on those."""
    ranges.check_measured("FP16")
    beyond = nodes_beyond_fp16(model, spans_from_ranges(ranges))
    nodes = nodes_by_name(quantized)
    meant = nodes_meant(nodes_by_name(model), keep_fp32, f"{WHERE} nodes")
    excepted = {node.name for node in nodes.values() if node.name in meant or node.op_type in meant}
    typed = typed_int8_from_qdq(quantized, keep_fp32={*excepted, *(beyond.keys() & nodes.keys())})
    return typed.model, [*(f"node '{name}' stays FP32: {reason}" for name, reason in beyond.items()), *typed.notes]
