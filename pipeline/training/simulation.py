"""From a placement of INT8 to what is rounded in training, and from what was learned back to ranges."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import onnx
import onnx_ir as ir

from calibration.errors import ModelError
from calibration.graph.editing import change_constant, closed, constant, opened, unique, value_names
from calibration.histogram.histogram import Histogram
from calibration.precision.place import check_4_bits, place
from calibration.precision.placement import (
    FULL_BITS,
    PlacementOptions,
    PlacementTarget,
    QdqPlacement,
    QuantizedTensor,
    QuantizedWeight,
)
from calibration.precision.scale import LEVELS_OF_4_BITS, Quantization
from calibration.precision.weights import bias_of, rounded_weight, trainable
from calibration.ranges.ranges import TUNED, Origin, RangesRecord, with_bounds
from calibration.ranges.span import Span
from engines.torch_graph.rounding import BiasRounding, FakeQuantization, TensorRounding, WeightRounding

NUM_LEVELS = 255
"""Between the least and the largest code of 8 bits."""


@dataclass(frozen=True)
class PlacedModel:
    """The FP32 graph as it is when INT8 is placed, and the placement."""

    model: onnx.ModelProto
    placement: QdqPlacement


def placed_model(model: onnx.ModelProto, spans: Mapping[str, Span], options: PlacementOptions) -> PlacedModel:
    """Where INT8 stands; the graph has its biases joined as the target wants them.

    Its weights and biases are those that post-training quantization deploys, in floating point: rounded so that sums of
    kernels are kept, and biases corrected (``calibration.precision.weights``). So training begins there.

    Raises:
        DataError: a tensor has no range.
        ModelError: nothing can be INT8.
    """
    graph = opened(model)
    placement = place(graph.graph, spans, options)
    if not placement.nodes:
        reasons = "".join(f"; {note}" for note in placement.notes[:3])
        raise ModelError(
            f"{model.graph.name}: nothing can be INT8, so that there is nothing to tune for{reasons}; leave [tune] "
            "out, or run `trtforge export` first, which computes what depends on constants alone"
        )
    check_4_bits(placement, options)
    _take_rounded_weights(graph.graph, placement)
    biases = place(graph.graph, spans, options).biases  # Some came with the means of what was rounded.
    return PlacedModel(closed(graph), replace(placement, biases=biases))


def _take_rounded_weights(graph: ir.Graph, placement: QdqPlacement) -> None:
    """Weights as they are rounded, and biases that take back what rounding shifts."""
    nodes = {node.name or "": node for node in graph}
    taken = value_names(graph)
    for weight in placement.weights:
        node = nodes[weight.reader.node]
        rounded = rounded_weight(node, weight)
        name = unique(f"{weight.tensor}_rounded", taken)
        array = rounded.values
        if weight.bits != FULL_BITS and (exact := constant(node.inputs[weight.reader.index])) is not None:
            array = trainable(exact, rounded, weight)
        change_constant(graph, node, weight.reader.index, array, name)
        taken.add(name)
        if rounded.mean_shift is not None and (bias := bias_of(node, len(rounded.mean_shift))) is not None:
            name = unique(f"{node.name}_bias", taken)
            change_constant(graph, bias.node, bias.index, bias.shifted(rounded.mean_shift), name)
            taken.add(name)


def fake_quantization(
    placement: QdqPlacement, spans: Mapping[str, Span], fixed: Collection[str], learns: bool
) -> FakeQuantization:
    """The rounding of a placement. With ``learns`` scales are learned, but for those of tensors in ``fixed``."""
    held = {tensor.scale_of for tensor in placement.tensors if tensor.is_fixed or tensor.tensor in fixed}
    widest: dict[str, float] = {}
    for tensor in placement.tensors:
        span = spans.get(tensor.tensor)
        scale = tensor.quantization.scale if span is None else _widest(span, placement.target)
        widest[tensor.scale_of] = max(widest.get(tensor.scale_of, 0.0), scale, tensor.quantization.scale)
    tensors = {
        tensor.tensor: _rounding(tensor, widest[tensor.scale_of], tensor.scale_of in held)
        for tensor in placement.tensors
    }
    weights = {(weight.reader.node, weight.reader.index): _weight_rounding(weight) for weight in placement.weights}
    biases = {(bias.reader.node, bias.reader.index): BiasRounding(bias.data) for bias in placement.biases}
    return FakeQuantization(tensors, weights, biases, learns)


def _weight_rounding(weight: QuantizedWeight) -> WeightRounding:
    if weight.bits == FULL_BITS:
        return WeightRounding(weight.axis, weight.in_pairs)
    return WeightRounding(weight.axis, in_pairs=False, num_levels=LEVELS_OF_4_BITS, block=weight.block)


def _widest(span: Span, target: PlacementTarget) -> float:
    """The scale with which nothing that calibration saw is clipped."""
    if target == "tensorrt":
        return max(abs(span.min), abs(span.max)) / (NUM_LEVELS // 2)
    return (max(span.max, 0.0) - min(span.min, 0.0)) / NUM_LEVELS


def _rounding(tensor: QuantizedTensor, widest: float, is_fixed: bool) -> TensorRounding:
    how = tensor.quantization
    low = 0 if how.dtype == "uint8" else -(NUM_LEVELS + 1) // 2
    readers = tuple((reader.node, reader.index) for reader in tensor.readers)
    return TensorRounding(
        how.scale, how.zero_point, low, low + NUM_LEVELS, readers, tensor.is_output, tensor.scale_of, widest, is_fixed
    )


def tuned_ranges(
    ranges: RangesRecord,
    histograms: Mapping[str, Histogram],
    placement: QdqPlacement,
    scales: Mapping[str, float],
    origin: Origin,
) -> RangesRecord:
    """The ranges with which ``quantize`` writes these scales; a tensor that shares one has the same range.

    Raises:
        DataError: the ranges were imported.
    """
    ranges.check_measured("tuning")
    changed = {}
    for tensor in placement.tensors:
        if tensor.is_fixed or tensor.tensor not in scales:
            continue
        bounds = _bounds(tensor.quantization, scales[tensor.tensor], placement.target)
        for name in {tensor.tensor, tensor.scale_of} & set(ranges.tensors):
            changed[name] = with_bounds(ranges.tensors[name], bounds, histograms[name], TUNED)
    tensors = {name: replace(changed.get(name, each), channel_means=()) for name, each in ranges.tensors.items()}
    return replace(ranges, method=TUNED, tensors=tensors, origin=origin)


def _bounds(how: Quantization, scale: float, target: PlacementTarget) -> tuple[float, float]:
    """The least and largest value that a scale stands for; TensorRT's are symmetric."""
    if target == "tensorrt":
        return -127 * scale, 127 * scale
    low = 0 if how.dtype == "uint8" else -(NUM_LEVELS + 1) // 2
    return (low - how.zero_point) * scale, (low + NUM_LEVELS - how.zero_point) * scale
