"""Scales from another tool's table into the ranges of a model, and a model's ranges into the scales of every tensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from calibration.errors import DataError
from calibration.graph.tensor_digests import tensor_digests
from calibration.graph.watched_outputs import watchable
from calibration.graph.weightless import skeleton_from_file
from calibration.histogram.histogram import LEAST_EXPONENT, exponent_of
from calibration.histogram.methods import LARGEST_CODE
from calibration.ranges.ort_table import scales_from_flatbuffers, scales_from_json, scales_from_text
from calibration.ranges.ranges import IMPORTED, Origin, RangesRecord, TensorRange, listed
from calibration.ranges.trt_cache import MARK, cache_from_bytes

SAME_VALUES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity")
"""Operators that give each value of their first input once: input and output have one range."""


LARGEST_TABLE_BYTES = 256 * 2**20
"""A table has some 50 bytes for each tensor."""


@dataclass(frozen=True)
class ScaleTable:
    """Scales of tensors by the names that another tool knows them by."""

    source: str
    """What they were read from: the header of TensorRT's cache, or ``ONNX Runtime calibration table``."""
    scales: Mapping[str, float]
    """amax / 127, each exactly a float32; 0 for a tensor that is all zero."""


def table_from_file(path: Path) -> ScaleTable:
    """Read TensorRT's calibration cache, or one of ONNX Runtime's tables; which it is, its content tells.

    Raises:
        DataError: the file cannot be read, is damaged, or is none of these.
    """
    try:
        size = path.stat().st_size
        if _is_model(path):
            raise DataError(
                f"{path}: is an ONNX model, a calibration cache, a table or a folder of ranges is expected; scales are "
                "not read out of Q/DQ nodes: give the cache or the ranges that it was made from"
            )
        if size > LARGEST_TABLE_BYTES:
            raise DataError(
                f"{path}: has {size // 2**20} MiB, a table of a model's tensors is expected, which has at most "
                f"{LARGEST_TABLE_BYTES // 2**20}; give a calibration cache or table"
            )
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a calibration cache or table") from error
    if data.startswith(MARK.encode()):
        cache = cache_from_bytes(data, str(path))
        return ScaleTable(cache.header, cache.scales)
    if data.lstrip().startswith(b"{"):
        scales = scales_from_json(data, str(path))
    elif b"\0" in data:  # Text has none, and a FlatBuffer's offsets always do.
        scales = scales_from_flatbuffers(data, str(path))
    else:
        scales = scales_from_text(data, str(path))
    return ScaleTable("ONNX Runtime calibration table", scales)


def _is_model(path: Path) -> bool:
    """Whether it is an ONNX file, of which little is read."""
    try:
        return bool(skeleton_from_file(path).graph.node)
    except DecodeError:
        return False


def ranges_from_table(
    table: ScaleTable, model: onnx.ModelProto, model_digest: str, names: Mapping[str, str]
) -> tuple[RangesRecord, list[str]]:
    """The ranges of a model from another tool's table, and sentences on what did not fit.

    Args:
        table: scales by the names that the tool knew the model's tensors by.
        model: FP32.
        model_digest: what the ranges are keyed by.
        names: the model's name -> the table's, for tensors that were renamed, as ``names.json`` of ``trtforge export``
            has them. Where it says nothing, names are taken as they are, then as export renames them: without ``:0``
            at the end, and with ``_`` for ``:``.

    Raises:
        DataError: no tensor of the table is in the model, or two are the same one there.
    """
    known = watchable(model)
    scales, notes = _renamed(table, set(known), names)
    tensors = {name: _imported(scales[name], table.source) for name in sorted(scales)}
    origin = Origin(model_digest, "", 0, tensor_digests=tensor_digests(model), source=table.source)
    if lacking := [name for name in known if name not in scales]:
        notes.append(f"{listed(lacking)} of the model's tensors have no scale in {table.source}")
    return RangesRecord(IMPORTED, 100.0, origin, tensors), notes


def scales_from_ranges(ranges: RangesRecord) -> tuple[dict[str, float], list[str]]:
    """Tensor name -> scale, sorted by name; and a sentence on the all-zero tensors, which have none."""
    scales = {name: float(np.float32(tensor.amax / LARGEST_CODE)) for name, tensor in sorted(ranges.tensors.items())}
    zero = [name for name, scale in scales.items() if not scale]
    notes = [f"{listed(zero)} tensors had no value but 0 in calibration, which gives no scale"] if zero else []
    return {name: scale for name, scale in scales.items() if scale}, notes


def scales_of_every_tensor(
    scales: Mapping[str, float], model: onnx.ModelProto, zero: Collection[str]
) -> dict[str, float]:
    """Add the tensors whose values are those of another, reshaped; so that every FP32 tensor of the model is there.

    That is what TensorRT's DLA needs of a cache. ``zero`` names tensors that are known to have no scale.

    Raises:
        DataError: a tensor still has no scale.
    """
    scale_of = dict(scales)
    pairs = [(n.input[0], n.output[0]) for n in model.graph.node if n.op_type in SAME_VALUES]
    for source, target in [*pairs, *((target, source) for source, target in reversed(pairs)), *pairs]:
        if source in scale_of and target not in scale_of:
            scale_of[target] = scale_of[source]
    known = watchable(model)
    if lacking := [name for name in known if name not in scale_of and name not in zero]:
        raise DataError(
            f"ranges: {listed(lacking)} of the model's tensors have no range, a cache for DLA needs each of them; "
            "calibrate with --watch all, or leave out --model for a cache of those that are there"
        )
    return {name: scale_of[name] for name in sorted(scale_of) if name in set(known)}


def _renamed(table: ScaleTable, known: Collection[str], names: Mapping[str, str]) -> tuple[dict[str, float], list[str]]:
    """The scales by the model's names, and sentences."""
    new_name_of = {old: new for new, old in names.items()}
    origin_of: dict[str, str] = {}
    unknown, renamed = [], []
    for old in table.scales:
        candidates = [new_name_of[old]] if old in new_name_of else [old, old.removesuffix(":0").replace(":", "_")]
        new = next((name for name in candidates if name in known), None)
        if new is None:
            unknown.append(old)
            continue
        if new in origin_of:
            raise DataError(
                f"{table.source}: '{old}' and '{origin_of[new]}' are both the model's tensor '{new}'; "
                "say which is which with --names, as names.json of `trtforge export` does"
            )
        origin_of[new] = old
        renamed += [old] if new != old else []
    if not origin_of:
        raise DataError(
            f"{table.source}: none of its {listed(unknown)} tensors is in the model; give the model it was made for, "
            "or --names with the names.json that `trtforge export` left"
        )
    notes = [f"{listed(renamed)} tensors were renamed as `trtforge export` renames them"] if renamed else []
    notes += [f"{listed(unknown)} tensors of {table.source} are not in the model, and left out"] if unknown else []
    return {new: table.scales[old] for new, old in origin_of.items()}, notes


def _imported(scale: float, source: str) -> TensorRange:
    amax = LARGEST_CODE * scale
    notes = () if scale else (f"all zero, says {source}",)
    exponent = exponent_of(amax) if amax else LEAST_EXPONENT
    return TensorRange(IMPORTED, amax, {}, {}, {}, -amax, amax, 0, 0, exponent, notes)
