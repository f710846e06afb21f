"""Decide where a target wants INT8: prepares the graph, and asks the target's own placement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import onnx_ir as ir

from calibration.errors import ModelError
from calibration.graph.editing import attribute_int, constant, from_constants
from calibration.graph.fold import join_bias, split_bias
from calibration.precision import placement_onnxruntime, placement_tensorrt
from calibration.precision.placement import (
    FULL_BITS,
    MATRIX_PRODUCTS,
    NodeInput,
    PlacementContext,
    PlacementOptions,
    PlacementTarget,
    QdqPlacement,
    QuantizedWeight,
    fixed_span,
    is_float_weight,
    is_plain,
    recurrent_weights,
    span_in_model,
)
from calibration.ranges.span import Span

BLOCK_SIZES: dict[PlacementTarget, tuple[int, ...]] = {
    "tensorrt": (64, 128),
    "onnxruntime": (32, 16, 64, 128, 256),
}
"""Weights of 4 bits that can share a scale along a sum, the default first: TensorRT's guide ("Quantization Schemes");
what ONNX Runtime's MatMulNBits takes. Smaller ones lose less and take more room for scales."""


def place(graph: ir.Graph, ranges: Mapping[str, Span], options: PlacementOptions) -> QdqPlacement:
    """Where the target wants INT8 with these ranges; for ``onnxruntime``, biases are joined to their products first.

    With ``weight_bits`` of 4, matrix products with constant matrices have weights of 4 bits in blocks and data in
    float, as both targets compute them; a Gemm among them becomes a MatMul. For ``onnxruntime`` convolutions also have
    weights of 4 bits in the file, which it takes for 8 bits as it loads them; for TensorRT, which cannot, they keep 8.

    Raises:
        DataError: a tensor that must be quantized has no range.
    """
    blocked, why_not = _blocked_products(graph, options)
    for node in blocked.values():
        if node.op_type == "Gemm":
            split_bias(graph, node)
    in_float = (*options.exclude, *blocked)
    if options.target == "onnxruntime":
        join_bias(graph, in_float)
    decide = placement_tensorrt.place if options.target == "tensorrt" else placement_onnxruntime.place
    ranges = _FixedRanges(graph, ranges)
    others = replace(options, exclude=in_float)
    context = PlacementContext(graph, ranges, others, from_constants(graph), ranges.by_definition)
    placement = decide(context)
    for node, why in recurrent_weights(graph):
        if not context.excluded(node):
            context.leave(node, why)
    nodes = {node.name or "": node for node in graph}
    weights = [*placement.weights, *(_in_blocks(nodes[name], options) for name in blocked)]
    weights = _with_data_scales(weights, placement)
    if not options.nearest:
        weights = [_corrected(weight, nodes[weight.reader.node], ranges, options) for weight in weights]
    notes = [note for name, note in context.notes.items() if name not in blocked]
    if options.weight_bits != FULL_BITS:
        notes.append(_note_of_4_bits(weights, nodes, options, why_not))
    return replace(placement, weights=tuple(weights), nodes=(*placement.nodes, *blocked), notes=tuple(notes))


def _with_data_scales(weights: Iterable[QuantizedWeight], placement: QdqPlacement) -> list[QuantizedWeight]:
    """Weights whose scales have to leave room for a bias know by what that is divided."""
    scales = {tensor.tensor: tensor.quantization.scale for tensor in placement.tensors}
    by_node = {bias.reader.node: scales[bias.data] for bias in placement.biases}
    return [replace(weight, data_scale=by_node.get(weight.reader.node, 0.0)) for weight in weights]


def block_size(options: PlacementOptions) -> int:
    """Of weights in 4 bits."""
    return options.block_size or BLOCK_SIZES[options.target][0]


def placement_words(options: PlacementOptions) -> str:
    """What weights are trained for: the target, and how many bits they have there."""
    if options.weight_bits == FULL_BITS:
        return options.target
    return f"{options.target} with weights of {options.weight_bits} bits in blocks of {block_size(options)}"


class NothingIn4Bits(ModelError):
    """No weight has 4 bits, where that is asked for."""


def check_4_bits(placement: QdqPlacement, options: PlacementOptions) -> None:
    """That some weight has 4 bits, where that is asked for.

    Raises:
        NothingIn4Bits: none has.
    """
    if options.weight_bits != FULL_BITS and all(weight.bits == FULL_BITS for weight in placement.weights):
        raise NothingIn4Bits(
            f"weight_bits is {options.weight_bits}, for which {options.target} has nothing to multiply by in this "
            f"network ({placement.notes[-1] if placement.notes else 'it has no weights'}); take 8"
        )


def _blocked_products(graph: ir.Graph, options: PlacementOptions) -> tuple[dict[str, ir.Node], dict[str, str]]:
    """The matrix products that get weights of 4 bits in blocks; and why others do not, by name."""
    blocked: dict[str, ir.Node] = {}
    why_not: dict[str, str] = {}
    if options.weight_bits == FULL_BITS:
        return blocked, why_not
    fixed, size = from_constants(graph), block_size(options)
    for node in graph:
        is_product = node.op_type in MATRIX_PRODUCTS and node.domain in ("", "ai.onnx")
        if not is_product or not {node.op_type, node.name}.isdisjoint(options.exclude):
            continue
        data, weight = node.inputs[0], constant(node.inputs[1]) if is_float_weight(node.inputs[1]) else None
        if data is None or weight is None or data.name in fixed or data.dtype not in (None, ir.DataType.FLOAT):
            continue
        num_terms = weight.shape[-1 if attribute_int(node, "transB", 0) else 0] if weight.ndim == 2 else 0
        if weight.ndim != 2:
            why_not[node.name or ""] = "its weight is no matrix"
        elif not is_plain(node):
            why_not[node.name or ""] = "it has alpha, beta or transA"
        elif options.target == "tensorrt" and num_terms % size:
            why_not[node.name or ""] = f"its sums of {num_terms} are no whole number of blocks of {size}"
        else:
            blocked[node.name or ""] = node
    return blocked, why_not


def _in_blocks(node: ir.Node, options: PlacementOptions) -> QuantizedWeight:
    weight = node.inputs[1]
    assert weight is not None
    reader = NodeInput(node.name or "", 1)
    return QuantizedWeight(weight.name or "", reader, 1, "int8", bits=options.weight_bits, block=block_size(options))


def _note_of_4_bits(
    weights: Iterable[QuantizedWeight], nodes: Mapping[str, ir.Node], options: PlacementOptions, why_not: dict[str, str]
) -> str:
    """How many have weights of 4 bits, and why others do not."""
    sizes: dict[bool, list[int]] = {True: [], False: []}
    reasons: Counter[str] = Counter()
    for weight in weights:
        node, array = nodes[weight.reader.node], constant(nodes[weight.reader.node].inputs[weight.reader.index])
        assert array is not None
        is_small = weight.bits != FULL_BITS
        sizes[is_small].append(array.size)
        if not is_small:
            is_convolution = node.op_type not in MATRIX_PRODUCTS
            of_target = "a convolution" if options.target == "tensorrt" else "a depthwise convolution"
            reasons[why_not.get(node.name or "", of_target if is_convolution else "its weight is no second input")] += 1
    num, num_all = len(sizes[True]), len(sizes[True]) + len(sizes[False])
    share = sum(sizes[True]) / max(sum(sizes[True]) + sum(sizes[False]), 1)
    sentence = (
        f"weights of 4 bits: {num} of {num_all} convolutions and matrix products, {sum(sizes[True]):,} weights "
        f"({share:.0%} of them), in blocks of {block_size(options)} where they are matrices"
    )
    if not reasons:
        return sentence
    return f"{sentence}; others keep 8 bits: {', '.join(f'{count} ({why})' for why, count in reasons.items())}"


class _FixedRanges(Mapping[str, Span]):
    """Ranges by calibration, but for the tensors that have one by definition and that the user set none for."""

    def __init__(self, graph: ir.Graph, ranges: Mapping[str, Span]) -> None:
        makers = {value.name or "": node for node in graph for value in node.outputs}
        self._makers = {name: node for name, node in makers.items() if fixed_span(node) is not None}
        self._ranges = ranges

    @property
    def by_definition(self) -> frozenset[str]:
        """Names of those."""
        return frozenset(self._makers)

    def __getitem__(self, name: str) -> Span:
        maker = self._makers.get(name)
        fixed = fixed_span(maker)
        if fixed is not None and name not in self._ranges:
            return fixed
        return span_in_model(maker, self._ranges[name])

    def __contains__(self, name: object) -> bool:
        return name in self._makers or name in self._ranges

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys((*self._ranges, *self._makers)))

    def __len__(self) -> int:
        return len(set(self._ranges) | set(self._makers))


def _corrected(
    weight: QuantizedWeight, node: ir.Node, ranges: Mapping[str, Span], options: PlacementOptions
) -> QuantizedWeight:
    """With what is known of the data that the weight is multiplied by, and how it is rounded."""
    data = node.inputs[1 - weight.reader.index]
    name = "" if data is None else data.name or ""
    means = ranges[name].channel_means if name in ranges else ()
    chosen = options.chosen.by_node.get(weight.reader.node) if options.chosen is not None else None
    keeps_sums = options.rounding != "nearest"
    return replace(weight, keeps_sums=keeps_sums, data_means=means, is_cut=weight.bits != FULL_BITS, chosen=chosen)
