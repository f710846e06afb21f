"""What an ONNX file says of itself, and whether the build options fit it. The same words for every backend."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import external_data_helper, helper, shape_inference

from engines.contract import DYNAMIC, BuildOptions, ShapeRange, TensorSpec
from engines.errors import EngineError, Unavailable
from engines.precision import precision_named

PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Convolutions and matrix products: the operators that INT8 is about."""
ONNX_DOMAINS = ("", "ai.onnx")
INTEGER_PRODUCTS = (
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QAttention", "QGemm",
    "QLinearConv", "QLinearConvTranspose", "QLinearMatMul", "MatMulNBits",
)  # fmt: skip
"""Those that multiply integers by themselves: ONNX's (QOperator format), and ONNX Runtime's."""
FOUR_BITS = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
DYNAMIC_OPERATORS = ("DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "QAttention")
"""Those that find the scale of their data themselves."""


@dataclass(frozen=True)
class OnnxModelFacts:
    """Inputs and outputs, and what a record says of the model's arithmetic."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    num_quantizable: int
    """Convolutions and matrix products."""
    num_quantized: int
    """Those of them whose first two inputs both come out of a DequantizeLinear, or that take integers."""
    depthwise_quantized: tuple[str, ...]
    """Names of the quantized convolutions with one group for each input channel."""
    has_quantize: bool
    has_float16: bool
    has_half_scales: bool = False
    """Whether a DequantizeLinear has an FP16 scale, which strongly typed networks alone take."""
    product_names: tuple[str, ...] = ()
    """Of the convolutions and matrix products; of one without a name what TensorRT's parser calls it."""
    node_names: frozenset[str] = frozenset()
    full_names: frozenset[str] = frozenset()
    """Of the nodes that a model with FP16 tensors computes in FP32; casts are none."""
    quantized_names: tuple[str, ...] = ()
    """Those of ``product_names`` that are quantized."""
    opset: int = 0
    """Of ONNX's own operators; 0 if it has none."""
    is_dynamic: bool = False
    """Whether weights are in INT8 and scales of data are found at each run, or data stays FP32."""
    num_4_bits: int = 0
    """Those of the convolutions and matrix products whose weights have 4 bits in the file."""
    reduces_by_input: str = ""
    """A reduction other than ReduceSum whose axes are an input, as from opset 18 on; empty if there is none."""

    def is_full(self, layer: str) -> bool:
        """Whether a parser's layer is of such a node; of several layers of one node the later ones end in a number."""
        return (layer if layer in self.node_names else re.sub(r"_\d+$", "", layer)) in self.full_names


def read_model(path: Path) -> onnx.ModelProto:
    """The ONNX model in ``path``, without the weights in files beside it.

    Raises:
        EngineError: there is no such file, it is not ONNX, it has no outputs, or a file of its weights is not there.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as error:
        raise EngineError(f"{path}: cannot be read as an ONNX model ({_one_line(error)}); export it again") from error
    if not model.graph.output:
        raise EngineError(f"{path}: is not an ONNX model with outputs, or is cut short; export it again")
    for name in _weight_names(model):
        if not _is_beside(path, name):
            raise EngineError(
                f"{path}: weights lie in '{name}', a file in the model's folder is expected; copy the model and the "
                "files of weights beside it again"
            )
    return model


def copy_model(model: Path, engine: Path) -> int:
    """Copy an ONNX file and the files of its weights, which keep their names; the number of bytes of all.

    Raises:
        EngineError: see ``read_model``.
    """
    pairs = {model: engine, **{model.parent / n: engine.parent / n for n in _weight_names(read_model(model))}}
    for source, target in pairs.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return sum(target.stat().st_size for target in pairs.values())


def _is_beside(path: Path, name: str) -> bool:
    """Whether there is a file of that relative name in the model's folder."""
    if "\0" in name or Path(name).is_absolute():
        return False
    file = path.parent / name
    return file.is_file() and path.parent.resolve() in file.resolve().parents


def _weight_names(model: onnx.ModelProto) -> list[str]:
    tensors = filter(external_data_helper.uses_external_data, model.graph.initializer)
    return sorted({external_data_helper.ExternalDataInfo(tensor).location for tensor in tensors})


def facts_from_model(model: onnx.ModelProto, path: Path) -> OnnxModelFacts:
    """What a record needs to know of ``model``; ``path`` is for the error messages.

    Raises:
        EngineError: an input or output has no type or no shape, not even after shape inference.
    """
    if not all(value.type.tensor_type.HasField("shape") for value in (*model.graph.input, *model.graph.output)):
        model = shape_inference.infer_shapes(model)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    producers = {name: node for node in nodes_in(graph) for name in node.output}
    products = [node for node in nodes_in(graph) if node.op_type in (*PRODUCTS, *INTEGER_PRODUCTS)]
    quantized = [node for node in products if _is_quantized(node, producers)]
    return OnnxModelFacts(
        inputs=tuple(_spec(value, path) for value in graph.input if value.name not in weights),
        outputs=tuple(_spec(value, path) for value in graph.output),
        num_quantizable=len(products),
        num_quantized=len(quantized),
        depthwise_quantized=tuple(node.name or node.output[0] for node in quantized if _num_groups(node) > 1),
        has_quantize=any(node.op_type in ("QuantizeLinear", *INTEGER_PRODUCTS) for node in nodes_in(graph)),
        has_float16=has_float16(graph),
        has_half_scales=_has_half_scales(graph),
        product_names=tuple(map(node_name, products)),
        node_names=frozenset(node.name for node in nodes_in(graph) if node.name),
        full_names=_full_names(model) if has_float16(graph) else frozenset(),
        quantized_names=tuple(map(node_name, quantized)),
        opset=opset_of(model),
        is_dynamic=_is_dynamic(graph, producers),
        num_4_bits=_num_4_bits(graph, products, producers),
        reduces_by_input=reduction_by_input(graph),
    )


def opset_of(model: onnx.ModelProto) -> int:
    """Of ONNX's own operators; 0 if it names none."""
    return next((entry.version for entry in model.opset_import if entry.domain in ONNX_DOMAINS), 0)


def facts(path: Path) -> OnnxModelFacts:
    """``facts_from_model`` of the ONNX file in ``path``."""
    return facts_from_model(read_model(path), path)


def check_options(model_facts: OnnxModelFacts, options: BuildOptions, path: Path) -> None:
    """That the file was written for the precision that is requested, and that the shape ranges fit its inputs.

    Raises:
        EngineError: they do not; an engine of another precision than asked would be the result.
    """
    precision = precision_named(options.precision)
    if precision.is_static and not precision.has_scales:
        raise EngineError(
            f"{path}: precision {precision.name} is requested, which no ONNX file is written in here; ask for int8, or "
            "take litert, which has it"
        )
    if precision.is_dynamic and not (model_facts.is_dynamic or model_facts.num_4_bits):
        raise EngineError(
            f"{path}: precision {precision.name} is requested, the model has no DynamicQuantizeLinear, nor a weight in "
            f"INT8 that is restored; write it with `trtforge quantize --precision {precision.name}`"
        )
    if model_facts.is_dynamic and not precision.is_dynamic:
        raise EngineError(
            f"{path}: precision {precision.name} is requested, the model finds its scales at each run; ask for "
            "dynamic, or give the model from before quantization"
        )
    if options.native is not None:
        _check_for_calibrator(model_facts, path)
    elif precision.has_scales and not (model_facts.has_quantize or model_facts.num_4_bits):
        raise EngineError(
            f"{path}: precision {precision.name} is requested, the model has no QuantizeLinear; quantize it first"
        )
    if not precision.is_integer and (model_facts.has_quantize or model_facts.num_4_bits):
        what = "QuantizeLinear nodes" if model_facts.has_quantize else "weights of 4 bits"
        raise EngineError(
            f"{path}: precision {options.precision} is requested, the model has {what}; ask for int8, "
            "or give the model from before quantization"
        )
    if precision.is_half and not model_facts.has_float16:
        raise EngineError(
            f"{path}: precision {precision.name} is requested, the model has no FP16 tensor; cast it first"
        )
    if precision.is_full and model_facts.has_float16:
        raise EngineError(
            f"{path}: precision {precision.name} is requested, the model has FP16 tensors; ask for fp16, "
            "or give the model from before the cast"
        )
    for ranges in options.profiles():
        check_ranges(model_facts.inputs, ranges, path)


def _check_for_calibrator(model_facts: OnnxModelFacts, path: Path) -> None:
    """A calibrator takes the FP32 model: TensorRT ignores it where there are Q/DQ nodes."""
    if model_facts.has_quantize or model_facts.has_float16:
        what = "QuantizeLinear nodes" if model_facts.has_quantize else "FP16 tensors"
        raise EngineError(f"{path}: native INT8 is requested, the model has {what}; give the FP32 model")


def refuse_targets(options: BuildOptions, backend: str) -> None:
    """For backends that build for the machine they run on.

    Raises:
        Unavailable: ``options.compute_capabilities`` is not empty.
    """
    if options.compute_capabilities:
        raise Unavailable(
            f"{backend}: compute capabilities {', '.join(options.compute_capabilities)} are requested, this backend "
            "builds for the machine it runs on; leave them out, or take tensorrt_rtx"
        )


def refuse_tensorrt(options: BuildOptions, backend: str) -> None:
    """For backends other than TensorRT's.

    Raises:
        Unavailable: something is requested that TensorRT alone has.
    """
    refuse_targets(options, backend)
    plain = BuildOptions()
    of_tensorrt = ("native", "hardware", "version_compatible", "weights", "dla_core", "timing_cache", "plugins")
    if asked := [name for name in of_tensorrt if getattr(options, name) != getattr(plain, name)]:
        raise Unavailable(f"{backend}: {asked[0]} is requested, only TensorRT has it; leave it out, or take tensorrt")


def check_ranges(inputs: tuple[TensorSpec, ...], ranges: Mapping[str, ShapeRange], path: Path) -> None:
    """That shape ranges are of the model's inputs, fit them, and are in order.

    Raises:
        EngineError: they are not.
    """
    specs = {spec.name: spec for spec in inputs}
    for name, shape_range in ranges.items():
        if name not in specs:
            raise EngineError(
                f"{path}: a shape range is given for '{name}', the model's inputs are {', '.join(map(repr, specs))}; "
                "name one of them"
            )
        shape = specs[name].shape
        for word, size in (("min", shape_range.min), ("opt", shape_range.opt), ("max", shape_range.max)):
            if len(size) != len(shape) or any(d not in (n, DYNAMIC) or n < 1 for n, d in zip(size, shape)):
                raise EngineError(
                    f"{path}: input '{name}' is {shape_text(shape)}, its {word} shape {shape_text(size)} does not fit; "
                    "give as many dimensions, the fixed ones unchanged and the dynamic ones at least 1"
                )
        if any(not low <= mid <= high for low, mid, high in zip(shape_range.min, shape_range.opt, shape_range.max)):
            raise EngineError(
                f"{path}: the shape range of input '{name}' is min {shape_text(shape_range.min)}, opt "
                f"{shape_text(shape_range.opt)}, max {shape_text(shape_range.max)}, it must be min <= opt <= max in "
                "every dimension; put them in order"
            )


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape for a sentence: ``(N, 3, 8, 8)``, with a question mark for a dynamic dimension."""
    return "(" + ", ".join("?" if n == DYNAMIC else str(n) for n in shape) + ")"


def _spec(value: onnx.ValueInfoProto, path: Path) -> TensorSpec:
    tensor = value.type.tensor_type
    if not tensor.elem_type or not tensor.HasField("shape"):
        raise EngineError(f"{path}: '{value.name}' has no type or no shape; run onnx shape inference on the model")
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = (d.dim_value if d.HasField("dim_value") else DYNAMIC for d in tensor.shape.dim)
    return TensorSpec(value.name, dtype, tuple(shape))


def nodes_in(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """Its nodes, and those of the bodies of loops and branches in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes_in(inner)


def node_name(node: onnx.NodeProto) -> str:
    """Its own name, or one of what it makes."""
    return node.name or f"node_of_{next(filter(None, node.output), node.op_type)}"


def reduction_by_input(graph: onnx.GraphProto) -> str:
    """A reduction other than ReduceSum whose axes are an input, as from opset 18 on; empty if there is none."""

    def is_one(node: onnx.NodeProto) -> bool:
        return node.op_type.startswith("Reduce") and node.op_type != "ReduceSum" and any(node.input[1:])

    return next((node_name(node) for node in nodes_in(graph) if is_one(node)), "")


def plugin_words(model: onnx.ModelProto) -> str:
    """What is to be said of a model with a plugin of TensorRT, by the first one's name or domain; empty without one."""
    for node in nodes_in(model.graph):
        name, domain = node.op_type, node.domain.lower().split(".")[0]
        if name.endswith(("_TRT", "PluginDynamic")) or name.startswith("TRT") or domain in ("trt", "tensorrt"):
            return (
                f"node '{node.name or node.output[0]}': {name} is a TensorRT plugin: nothing but TensorRT runs it; cut "
                "the model in front of it, or build the file as it is for the tensorrt backend"
            )
    return ""


def _is_quantized(node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> bool:
    return node.op_type in INTEGER_PRODUCTS or all(_is_dequantized(name, producers) for name in node.input[:2])


def _is_dequantized(name: str, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Through the layout and cast nodes that may stand between DequantizeLinear and its consumer."""
    node = producers.get(name)
    while node is not None and node.op_type in ("Cast", "Transpose", "Reshape", "Identity"):
        node = producers.get(node.input[0])
    return node is not None and node.op_type == "DequantizeLinear"


def _num_4_bits(
    graph: onnx.GraphProto, products: Iterable[onnx.NodeProto], producers: Mapping[str, onnx.NodeProto]
) -> int:
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type in FOUR_BITS}
    return sum(_reads_4_bits(node, weights, producers) for node in products)


def _reads_4_bits(node: onnx.NodeProto, weights: Collection[str], producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Through what may stand between a weight and its product."""
    if node.op_type == "MatMulNBits":
        return any(attribute.name == "bits" and attribute.i == 4 for attribute in node.attribute)
    name = node.input[1]
    while name in producers and producers[name].op_type in ("Cast", "DequantizeLinear", "Transpose", "Mul"):
        name = producers[name].input[0]
    return name in weights


def _num_groups(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


def has_float16(graph: onnx.GraphProto) -> bool:
    """Whether a weight, an input or an output, or what a node makes is FP16."""
    half = onnx.TensorProto.FLOAT16
    if any(tensor.data_type == half for tensor in graph.initializer):
        return True
    if any(value.type.tensor_type.elem_type == half for value in (*graph.input, *graph.output)):
        return True
    return any(
        (attribute.name == "to" and attribute.i == half) or attribute.t.data_type == half
        for node in nodes_in(graph)
        for attribute in node.attribute
    )


def _is_dynamic(graph: onnx.GraphProto, producers: Mapping[str, onnx.NodeProto]) -> bool:
    if any(node.op_type in DYNAMIC_OPERATORS for node in nodes_in(graph)):
        return True
    integers = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type in integers}
    return any(
        _restores(producers.get(node.input[1]), producers, weights) for node in graph.node if node.op_type in PRODUCTS
    )


def _restores(node: onnx.NodeProto | None, producers: Mapping[str, onnx.NodeProto], integers: Collection[str]) -> bool:
    """Whether a node scales integers of the file to the FP32 that is computed in."""
    cast = producers.get(node.input[0]) if node is not None and node.op_type == "Mul" else None
    return cast is not None and cast.op_type == "Cast" and cast.input[0] in integers


def _has_half_scales(graph: onnx.GraphProto) -> bool:
    halves = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    return any(node.op_type == "DequantizeLinear" and node.input[1] in halves for node in graph.node)


def _full_names(model: onnx.ModelProto) -> frozenset[str]:
    graph = shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    full = onnx.TensorProto.FLOAT
    nodes = [node for node in graph.node if node.name and node.op_type not in ("Cast", "Constant")]
    return frozenset(node.name for node in nodes if any(kinds.get(name) == full for name in node.output))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def is_qdq_in_fp32(model: onnx.ModelProto) -> bool:
    """Whether the model has Q/DQ nodes, and nothing in FP16."""
    has_qdq = any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in nodes_in(model.graph))
    return has_qdq and not has_float16(model.graph)
