"""Where TensorRT wants Q/DQ: on the inputs and weights of convolutions and matrix products, never on outputs.

Rules from NVIDIA's TensorFlow quantization toolkit (tools/tensorflow-quantization at release 8.6) and from ModelOpt:

- int8 symmetric with zero point 0; one scale for an activation, one for each output channel of a weight.
- On a residual Add only the branch that does not come straight from a convolution, so that Conv + Add + ReLU becomes
  one kernel; if both do, the one on the longer path stays bare.
- The input of AveragePool and GlobalAveragePool; both inputs of the Mul of a squeeze-and-excite block.
- Tensors that are joined by Concat, or that differ only in shape or order, have one scale, so that TensorRT can move
  its Q/DQ through without another rounding.
- Convolutions and products that TensorRT's INT8 kernels do not serve well stay FP32. Of matrix products those are the
  ones of a single row or column, and those of fewer than 16 terms or outputs: tensor cores multiply 16 at a time, and
  Q/DQ around less make an engine slower (NVIDIA/Model-Optimizer, pull request 1256), while the head of few classes is
  what the answers are rounded by last. Where a network has no other product they are in INT8, which was asked for.
- The two products of attention stay in float, as ModelOpt has them where a mask is added and beyond 512 steps. INT8
  knows 127 levels of a Softmax's output, of which attention that is spread over its steps uses the lowest few: every
  transformer that was tried is 1 to 7 dB nearer without, while they are S / (6 D + S) of a layer's arithmetic, with S
  steps of D values. TensorRT has one kernel for the whole of it in FP16; in INT8 for heads of 16, 32 or 64, at most 512
  steps, and Q/DQ before, between and behind the two products (docs.nvidia.com, TensorRT, Fused Attention; TensorRT for
  RTX 1.7 fuses nothing without those behind them), which the user may choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import onnx_ir as ir

from calibration.graph.attention import Attention, attentions
from calibration.graph.editing import attribute_int, constant, dimensions
from calibration.precision.input_arithmetic import ARITHMETIC
from calibration.precision.placement import (
    MATRIX_PRODUCTS,
    PRODUCTS,
    AttentionChoice,
    NodeInput,
    PlacementContext,
    QdqPlacement,
    QuantizedTensor,
    QuantizedWeight,
    SmallProductChoice,
    is_float_weight,
    weight_axis,
    why_no_weight_scale,
)
from calibration.precision.scale import Quantization, symmetric
from calibration.ranges.span import Span

SHAPE_ONLY = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "DepthToSpace", "SpaceToDepth")
PART = ("Pad", "Slice", "Split", "MaxPool")
"""With those above, the operators through which Q/DQ commute: their first input and their outputs have one scale."""
POOLS = ("AveragePool", "GlobalAveragePool")
BRANCH = ("BatchNormalization", "Relu", "Clip", "LeakyRelu")
"""What may lie between a convolution and the Add it is fused with, besides Add and Mul with a constant."""
MIN_CHANNELS = 16
"""Fewer channels, terms or outputs than that leave tensor cores idle, but for the cases in ``_is_served``."""

FUSED_HEADS, FUSED_LENGTH = (16, 32, 64), 512
"""Head sizes, and the most steps of query and key, of TensorRT's fused attention in INT8."""

Edges = dict[str, list[NodeInput]]
"""Activation tensor -> the inputs that want it quantized."""


def place(context: PlacementContext) -> QdqPlacement:
    """Decide the placement for TensorRT.

    Raises:
        DataError: a tensor that must be quantized has no range.
    """
    edges: Edges = {}
    weights: list[QuantizedWeight] = []
    nodes: list[str] = []
    depths = _depths(context.graph)
    in_float = _attention_in_float(context)
    in_float = {**_small_in_float(context, in_float), **in_float}
    for node in context.nodes():
        if node.op_type in PRODUCTS:
            if (reason := in_float.get(node.name or "") or _why_not(context, node)) is not None:
                context.leave(node, reason)
                continue
            nodes.append(node.name or "")
            _place_product(node, edges, weights)
        else:
            wanted = [(index, node.inputs[index]) for index in _wanted(node, depths)]
            if all(context.is_activation(value) for _, value in wanted):
                for index, value in wanted:
                    if value is not None and context.why_no_scale(value, node) is None:
                        _want(edges, node, index)
    scales, roots = _shared(context, edges)
    fixed = {roots[name] for name in edges if context.has_fixed_range(name)}
    tensors = tuple(
        QuantizedTensor(name, scales[name], tuple(readers), scale_of=roots[name], is_fixed=roots[name] in fixed)
        for name, readers in edges.items()
    )
    return QdqPlacement("tensorrt", tensors, tuple(weights), (), tuple(nodes), tuple(context.notes.values()))


def _want(edges: Edges, node: ir.Node, index: int) -> None:
    value = node.inputs[index]
    assert value is not None
    edges.setdefault(value.name or "", []).append(NodeInput(node.name or "", index))


def _place_product(node: ir.Node, edges: Edges, weights: list[QuantizedWeight]) -> None:
    for index in (0, 1):
        value = node.inputs[index]
        assert value is not None
        if is_float_weight(value):
            axis = weight_axis(node) if index == 1 else None
            reader = NodeInput(node.name or "", index)
            weights.append(QuantizedWeight(value.name or "", reader, axis, "int8"))
        else:
            _want(edges, node, index)


def _why_not(context: PlacementContext, node: ir.Node) -> str | None:
    """Why a product stays FP32; None if it is quantized."""
    data, weight = node.inputs[0], node.inputs[1]
    if node.op_type in ("Conv", "ConvTranspose") and not is_float_weight(weight):
        return "its weight is not a float32 constant"
    for value in (data, weight):
        if not is_float_weight(value) and not context.is_activation(value):
            return f"its input '{value.name if value is not None else ''}' is neither float32 data nor a constant"
    reason = _is_served(node)
    if reason is not None:
        return reason
    for value in (data, weight):
        if value is None:
            continue
        reason = why_no_weight_scale(value) if is_float_weight(value) else context.why_no_scale(value, node)
        if reason is not None:
            return reason
    return None


def _attention_in_float(context: PlacementContext) -> dict[str, str]:
    """Names of the products of attention that stay in float, and why; where there are no others, INT8 was asked for.

    Others count that the user excludes, so that excluding one never brings another into INT8.
    """
    all_attentions = list(attentions(context.graph))
    of_attention = _names_of(all_attentions)
    others = (node for node in _products(context) if node.name not in of_attention)
    choice = context.options.attention
    if all_attentions and not any(context.excluded(node) or _why_not(context, node) is None for node in others):
        choice = WHERE_ALONE.get(choice, choice)
    why_in_float = WHY_IN_FLOAT[choice]
    reasons: dict[str, str] = {}
    for attention in all_attentions:
        if (reason := why_in_float(context, attention)) is not None:
            reasons |= {node.name or "": reason for node in (attention.scores, attention.mixed)}
    return reasons


def _names_of(all_attentions: Iterable[Attention]) -> set[str | None]:
    """Names of their products."""
    return {node.name for each in all_attentions for node in (each.scores, each.mixed)}


def _products(context: PlacementContext) -> Iterator[ir.Node]:
    """All convolutions and matrix products, also those that the user excludes."""
    for node in context.graph:
        if node.op_type in PRODUCTS and node.domain in ("", "ai.onnx"):
            yield node


def _small_in_float(context: PlacementContext, in_float: Mapping[str, str]) -> dict[str, str]:
    """Names of the small matrix products that stay in float, and why; none where the network has no others for INT8.

    Others count that the user excludes, so that excluding one never brings another into INT8.
    """
    why_small = WHY_SMALL[context.options.small_products]
    of_attention = _names_of(attentions(context.graph))
    small: dict[str, str] = {}
    has_others = False
    for node in _products(context):
        if node.name in in_float:
            continue
        if (reason := None if node.name in of_attention else why_small(node)) is not None:
            small[node.name or ""] = reason
        elif context.excluded(node) or _why_not(context, node) is None:
            has_others = True
    return small if has_others else {}


def _why_small(node: ir.Node) -> str | None:
    """Why a matrix product is too small for tensor cores; None if it is not, or its sizes are not known."""
    if node.op_type not in MATRIX_PRODUCTS:
        return None
    terms, outputs = dimensions(node.inputs[0]), dimensions(node.outputs[0])
    turned = attribute_int(node, "transB", 0)
    weight = constant(node.inputs[1])
    if weight is not None and weight.ndim >= 2:
        num_terms, num_outputs = weight.shape[-1 if turned else -2], weight.shape[-2 if turned else -1]
    else:
        num_terms = terms[-2 if attribute_int(node, "transA", 0) else -1] if terms and len(terms) > 1 else None
        num_outputs = outputs[-1] if outputs else None
    if min(num_terms or MIN_CHANNELS, num_outputs or MIN_CHANNELS) >= MIN_CHANNELS:
        return None
    shown = ["?" if each is None else str(each) for each in (num_terms, num_outputs)]
    return f"{shown[0]} terms and {shown[1]} outputs are too few for INT8 kernels; small_products = int8 takes it too"


WHY_SMALL: dict[SmallProductChoice, Callable[[ir.Node], str | None]] = {
    "rest": _why_small,
    "int8": lambda _node: None,
}


def _unfused(context: PlacementContext, attention: Attention) -> str | None:
    """Why TensorRT has no fused INT8 kernel for an attention; None if it has, or if its sizes are not known."""
    head, (query, key) = attention.head_size, attention.lengths
    if head is not None and head not in FUSED_HEADS:
        return f"attention with heads of {head}; TensorRT's fused INT8 kernels are for {FUSED_HEADS}"
    if max(query or 0, key or 0) > FUSED_LENGTH:
        return f"attention over {max(query or 0, key or 0)} steps; TensorRT's fused INT8 kernels take {FUSED_LENGTH}"
    if not _goes_on_in_int8(context, attention.mixed.outputs[0]):
        return "attention that goes on in float; TensorRT's fused INT8 kernels want a product in INT8 behind it"
    return None


def _goes_on_in_int8(context: PlacementContext, value: ir.Value) -> bool:
    """Whether every reader of a value, but for what only moves it, is a product that is in INT8."""
    why_small = WHY_SMALL[context.options.small_products]
    waiting = [value]
    while waiting:
        last = waiting.pop()
        if last.is_graph_output():
            return False
        for node, index in last.uses():
            if node.op_type in SHAPE_ONLY and index == 0:
                waiting.append(node.outputs[0])
            if node.op_type in (*SHAPE_ONLY, "Shape", "Size"):
                continue
            is_open = node.op_type in PRODUCTS and not context.excluded(node)
            if not is_open or why_small(node) is not None or _why_not(context, node) is not None:
                return False
    return True


def _is_worse(_context: PlacementContext, _attention: Attention) -> str:
    return "a product of attention, by which INT8 loses more than it saves; attention = int8 takes it too"


WHY_IN_FLOAT: dict[AttentionChoice, Callable[[PlacementContext, Attention], str | None]] = {
    "rest": _is_worse,
    "fused": _unfused,
    "int8": lambda _context, _attention: None,
}
WHERE_ALONE: dict[AttentionChoice, AttentionChoice] = {"rest": "int8"}
"""What is done where a network has no other products."""


def _is_served(node: ir.Node) -> str | None:
    """Why TensorRT's INT8 kernels do not serve a product well; None if they do. ModelOpt's rules."""
    if node.op_type in ("MatMul", "Gemm"):
        shape = dimensions(node.outputs[0])
        if shape is not None and len(shape) >= 2 and 1 in shape[-2:]:
            return "it multiplies a matrix with a single row or column"
        return None
    weight = constant(node.inputs[1])
    if node.op_type != "Conv" or weight is None or min(weight.shape[:2]) >= MIN_CHANNELS:
        return None
    num_out, num_in, *kernel = weight.shape
    if attribute_int(node, "group", 1) > 1:
        fits = num_out % 8 == 0 and all(size >= 3 for size in kernel)
    else:
        enough = _is_of_input(node.inputs[0]) or max(num_out, num_in) >= MIN_CHANNELS
        fits = (num_out % 8 == 0 or num_in % 8 == 0) and enough and len(set(kernel)) == 1
    shown = "x".join(str(size) for size in kernel)
    return None if fits else f"{num_in} channels in, {num_out} out, kernel {shown}: too small for INT8 kernels"


def _is_of_input(value: ir.Value | None) -> bool:
    """Whether data is an input of the model, in another type, order or scale at most: its reader is a first layer."""
    while value is not None and not value.is_graph_input():
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx"):
            return False
        data = [each for each in node.inputs if each is not None and constant(each) is None]
        if node.op_type not in (*SHAPE_ONLY, "Cast", *ARITHMETIC) or len(data) != 1:
            return False
        (value,) = data
    return value is not None


def _wanted(node: ir.Node, depths: dict[str, int]) -> tuple[int, ...]:
    """Inputs that a node other than a product wants quantized."""
    if node.op_type in POOLS:
        return (0,)
    if node.op_type == "Add" and not any(constant(value) is not None for value in node.inputs):
        return _residual(node, depths)
    if node.op_type == "Mul" and _is_squeeze_excite(node):
        return (0, 1)
    return ()


def _residual(node: ir.Node, depths: dict[str, int]) -> tuple[int, ...]:
    """The input of an Add that is the residual branch; none if no branch comes straight from a convolution."""
    convolutions = [_straight_from_convolution(value) for value in node.inputs]
    if len(node.inputs) != 2 or node.inputs[0] is node.inputs[1] or not any(convolutions):
        return ()
    first, second = convolutions
    if first is not None and second is not None:
        return (1,) if depths[first.name or ""] > depths[second.name or ""] else (0,)
    return (1,) if first is not None else (0,)


def _straight_from_convolution(value: ir.Value | None) -> ir.Node | None:
    """The convolution behind a value, if all that lies between has one reader and can be fused."""
    while value is not None and len(value.uses()) == 1 and not value.is_graph_output():
        node = value.producer()
        if node is None:
            return None
        if node.op_type in ("Conv", "ConvTranspose"):
            return node
        with_constant = node.op_type in ("Add", "Mul") and constant(node.inputs[1]) is not None
        if node.op_type not in BRANCH and not with_constant:
            return None
        value = node.inputs[0]
    return None


def _is_squeeze_excite(node: ir.Node) -> bool:
    """x * sigmoid(f(x)) with f other than identity, which would be a swish."""
    for gate, data in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        producer = gate.producer() if gate is not None else None
        if producer is not None and producer.op_type in ("Sigmoid", "HardSigmoid"):
            return data is not None and producer.inputs[0] is not data and constant(data) is None
    return False


def _depths(graph: ir.Graph) -> dict[str, int]:
    """Longest path from an input of the graph to each node, in nodes."""
    depths: dict[str, int] = {}
    for node in graph:
        producers = [value.producer() for value in node.inputs if value is not None]
        depths[node.name or ""] = 1 + max((depths.get(p.name or "", 0) for p in producers if p is not None), default=0)
    return depths


def _shared(context: PlacementContext, edges: Iterable[str]) -> tuple[dict[str, Quantization], dict[str, str]]:
    """The scale of each quantized tensor: the largest amax among those that must agree; and a name for those."""
    group: dict[str, str] = {}

    def root(name: str) -> str:
        while group.setdefault(name, name) != name:
            name = group[name]
        return name

    for node in context.graph:
        joined: list[ir.Value | None] = []
        if node.op_type == "Concat":
            joined = [*node.inputs, node.outputs[0]]
        elif node.op_type in (*SHAPE_ONLY, *PART):
            joined = [node.inputs[0], *node.outputs]
        names = [value.name for value in joined if value is not None and value.name and constant(value) is None]
        for name in names[1:]:
            group[root(name)] = root(names[0])
    amax: dict[str, float] = {}
    for name in edges:
        amax[root(name)] = max(amax.get(root(name), 0.0), context.ranges[name].amax)
    quantizations = {name: symmetric(Span(amax[root(name)], 0.0, 0.0)) for name in edges}
    scales = {name: quantization for name, quantization in quantizations.items() if quantization is not None}
    return scales, {name: root(name) for name in edges}
