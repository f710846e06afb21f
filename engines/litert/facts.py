"""What a `.tflite` file says of itself: inputs, outputs, and each operator with the types that go in and come out.

It is read by the format's own schema, which is handed in, and not through the interpreter: that one shows a scale for
each channel where the file has a single one, and knows no operators that it cannot run.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from engines.contract import DYNAMIC, LayerFacts, TensorSpec
from engines.errors import EngineError
from engines.litert.in_float import operators_in_float

MAGIC = b"TFL3"
"""At byte 4 of every `.tflite` file."""
SCHEMA_VERSION = 3
DEFAULT_SIGNATURE = "serving_default"
PRODUCTS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "CONV_3D", "TRANSPOSE_CONV", "FULLY_CONNECTED", "BATCH_MATMUL"})
"""Convolutions and matrix products."""
DATA_INPUT = {"TRANSPOSE_CONV": 2}
"""Where the data of a product stands among its inputs, if not first; its weights are the next, or the one before."""
INTEGER_WEIGHTS = ("INT8", "INT4")
READ_NO_VALUES = ("RANK", "SHAPE")
"""Kinds that tell the size of a tensor, as a flattening of a batch that varies does, and nothing of what is in it."""
BRIDGES = frozenset({"QUANTIZE", "DEQUANTIZE"})
"""They lead from floating point to integers and back, and compute nothing."""
DTYPES = {
    "FLOAT32": "float32", "FLOAT16": "float16", "FLOAT64": "float64", "BOOL": "bool",
    "INT8": "int8", "INT16": "int16", "INT32": "int32", "INT64": "int64",
    "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64",
}  # fmt: skip
FLOATS = frozenset({"FLOAT32", "FLOAT16", "FLOAT64", "BFLOAT16"})
PRECISION_OF_TYPE = {"FLOAT32": "FP32", "FLOAT16": "FP16", "INT8": "INT8", "UINT8": "INT8", "INT16": "INT16"}
MOST_VALUES = 16
"""Of a constant whose values are read."""
UNREADABLE = (struct.error, IndexError, ValueError, OverflowError, TypeError, AttributeError, KeyError, MemoryError)
"""What reading a damaged flatbuffer raises."""


@dataclass(frozen=True)
class TfliteTensor:
    """A tensor of the file; ``constant``: whether the file holds its values."""

    index: int
    name: str
    type: str
    """As the schema writes it: ``FLOAT32``."""
    shape: tuple[int, ...]
    """``DYNAMIC`` where it may vary."""
    scales: tuple[float, ...]
    """One for the whole tensor, or one for each channel; none where it is not quantized."""
    zero_points: tuple[int, ...]
    constant: bool
    values: tuple[int, ...] = ()
    """Of a small constant of type INT32, such as axes, one after the other."""

    def spec(self, name: str) -> TensorSpec:
        """As a runner shows it: quantized inputs and outputs are fed and answered in floating point."""
        dtype = "float32" if self.scales else DTYPES.get(self.type, "")
        return TensorSpec(name, dtype, self.shape)


@dataclass(frozen=True)
class TfliteOperator:
    """One operator, with the types of what goes in and comes out; an input that is left out has none."""

    kind: str
    """As the schema writes it: ``CONV_2D``; of a custom operator its own name."""
    is_custom: bool
    version: int
    inputs: tuple[TfliteTensor | None, ...]
    outputs: tuple[TfliteTensor, ...]
    activation: str = ""
    """What is computed with its result at once, as the schema writes it; empty where there is no such option."""

    @property
    def name(self) -> str:
        """That of the tensor that it makes."""
        return self.outputs[0].name if self.outputs else self.kind

    def types(self) -> Iterator[str]:
        """Of all tensors that it reads and makes."""
        yield from (tensor.type for tensor in (*self.inputs, *self.outputs) if tensor is not None)

    @property
    def data(self) -> TfliteTensor | None:
        """The first input, or of a product its data."""
        at = DATA_INPUT.get(self.kind, 0)
        return self.inputs[at] if len(self.inputs) > at else None

    @property
    def weights(self) -> TfliteTensor | None:
        """Of a product, what the data is multiplied by."""
        return self.inputs[1] if self.kind in PRODUCTS and len(self.inputs) > 1 else None

    def layer(self) -> LayerFacts:
        """As records have it."""
        data = self.data
        precision = PRECISION_OF_TYPE.get(data.type, "") if data is not None else ""
        return LayerFacts(self.name, self.kind, precision, (self.name,))


@dataclass(frozen=True)
class TfliteFacts:
    """What a record needs to know of a file."""

    inputs: tuple[tuple[str, TfliteTensor], ...]
    """By the names of the signature, in its order."""
    outputs: tuple[tuple[str, TfliteTensor], ...]
    operators: tuple[TfliteOperator, ...]
    """In the order in which they run; those of the bodies of loops and branches come after."""
    num_main: int
    """The first of them, which are of the graph itself."""
    meant_in_float: frozenset[str] = frozenset()
    """Names of operators that a file in integers keeps in floating point because that was asked for."""

    @property
    def main_operators(self) -> tuple[TfliteOperator, ...]:
        """Those of the graph itself."""
        return self.operators[: self.num_main]

    def specs(self, side: tuple[tuple[str, TfliteTensor], ...]) -> tuple[TensorSpec, ...]:
        """Of the inputs, or of the outputs."""
        return tuple(tensor.spec(name) for name, tensor in side)

    @cached_property
    def products(self) -> tuple[TfliteOperator, ...]:
        """Convolutions and matrix products."""
        return tuple(operator for operator in self.operators if operator.kind in PRODUCTS)

    def in_integers(self) -> tuple[TfliteOperator, ...]:
        """The products whose data is integers."""
        return tuple(each for each in self.products if each.data is not None and each.data.type not in FLOATS)

    def in_floats(self) -> tuple[TfliteOperator, ...]:
        """The operators that compute in floating point."""
        return tuple(
            each
            for each in self.operators
            if each.kind not in (*BRIDGES, *READ_NO_VALUES) and not FLOATS.isdisjoint(each.types())
        )

    def left_in_floats(self) -> tuple[TfliteOperator, ...]:
        """Those of them that nobody asked for."""
        return tuple(each for each in self.in_floats() if each.name not in self.meant_in_float)

    def with_integer_weights(self) -> tuple[TfliteOperator, ...]:
        """The products of floating-point data and integer weights, whose data is rounded as it comes."""
        return tuple(
            each
            for each in self.products
            if each.weights is not None and each.weights.type in INTEGER_WEIGHTS and each not in self.in_integers()
        )

    def with_stored_weights(self) -> tuple[TfliteOperator, ...]:
        """The products that compute in floating point with weights that are integers in the file alone."""
        return tuple(each for each in self.products if each.weights in self._restored)

    def file_weights(self, product: TfliteOperator) -> TfliteTensor | None:
        """The weights of a product as the file holds them, before they are restored."""
        weights = product.weights
        return None if weights is None else self._restored.get(weights, weights)

    @cached_property
    def _restored(self) -> dict[TfliteTensor | None, TfliteTensor]:
        """What the file holds in integers, by the tensor in floating point that it is restored to at each run."""
        return {
            each.outputs[0]: each.data
            for each in self.operators
            if each.kind == "DEQUANTIZE" and each.data is not None
            if each.data.constant and each.data.type in INTEGER_WEIGHTS
        }

    def num_4_bits(self) -> int:
        """The products whose weights have 4 bits in the file."""
        weights = map(self.file_weights, self.products)
        return sum(each is not None and each.type == "INT4" for each in weights)

    def halves(self) -> tuple[TfliteOperator, ...]:
        """What leads from weights in FP16 to the FP32 that is computed in."""
        return tuple(each for each in self.operators if each.data is not None and each.data.type == "FLOAT16")

    def precision(self) -> str:
        """The name of the precision that the file is written in."""
        integers = {each.data.type for each in self.in_integers() if each.data is not None}
        if integers:
            return "int16x8" if "INT16" in integers else "int8"
        if self.with_integer_weights() or self.with_stored_weights():
            return "dynamic"
        return "fp16" if self.halves() else "fp32"

    def names_are_unique(self) -> bool:
        """Whether a tensor's name says which tensor it is."""
        tensors = {
            tensor.index: tensor.name
            for operator in self.main_operators
            for tensor in (*operator.inputs, *operator.outputs)
            if tensor is not None
        }
        return len(set(tensors.values())) == len(tensors)


def is_tflite(path: Path) -> bool:
    """Whether a file says of itself that it is one, by its magic."""
    with path.open("rb") as stream:
        return stream.read(8)[4:] == MAGIC


def facts_from_file(schema: Any, path: Path, *, unsigned: bool = False) -> TfliteFacts:
    """What the file says; ``schema``: the module that the format's schema was compiled to.

    With ``unsigned``, inputs and outputs of a file without any signature have their tensors' names.

    Raises:
        EngineError: it cannot be read, is no such file, or has no signature that names its inputs and outputs.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EngineError(f"{path}: cannot be read ({error.strerror}); give a .tflite file") from error
    if data[4:8] != MAGIC:
        raise EngineError(
            f"{path}: is not a .tflite file, bytes 4 to 8 are {data[4:8]!r}, {MAGIC!r} is expected; copy it again"
        )
    try:
        model = schema.Model.GetRootAs(data, 0)
        version = model.Version()
        graphs = [] if version != SCHEMA_VERSION else [model.Subgraphs(n) for n in range(model.SubgraphsLength())]
        tensors = [_tensors(schema, model, graph) for graph in graphs]
        operators = [tuple(_operators(schema, model, graph, made)) for graph, made in zip(graphs, tensors)]
        signatures = [model.SignatureDefs(n) for n in range(model.SignatureDefsLength())]
        if graphs and unsigned and not signatures:
            sides = _graph_sides(graphs[0], tensors[0])
        else:
            sides = _signature_sides(signatures, path) if graphs else ((), ())
        inputs, outputs = (tuple((name, tensors[0][index]) for name, index in side) for side in sides)
        meant_in_float = operators_in_float(model) if graphs else frozenset[str]()
    except UNREADABLE as error:
        words = " ".join(str(error).split()) or type(error).__name__
        raise EngineError(f"{path}: is not a whole .tflite file ({words}); copy or convert it again") from error
    if version != SCHEMA_VERSION:
        raise EngineError(
            f"{path}: is of version {version} of the format, {SCHEMA_VERSION} is expected; convert it again"
        )
    every_operator = tuple(each for graph in operators for each in graph)
    return TfliteFacts(inputs, outputs, every_operator, len(operators[0]), meant_in_float)


Sides: TypeAlias = tuple[Iterable[tuple[str, int]], Iterable[tuple[str, int]]]
"""Names and indices of inputs, and of outputs."""


def _graph_sides(graph: Any, tensors: list[TfliteTensor]) -> Sides:
    inputs = [graph.Inputs(n) for n in range(graph.InputsLength())]
    outputs = [graph.Outputs(n) for n in range(graph.OutputsLength())]
    return [(tensors[n].name, n) for n in inputs], [(tensors[n].name, n) for n in outputs]


def _signature_sides(signatures: list[Any], path: Path) -> Sides:
    """Names and indices of inputs, and of outputs."""
    by_key = {_text(signature.SignatureKey()): signature for signature in signatures}
    key = next(iter(by_key)) if len(by_key) == 1 else DEFAULT_SIGNATURE
    if key not in by_key or by_key[key].SubgraphIndex():
        there = f"it has {', '.join(by_key)}" if by_key else "it has none"
        raise EngineError(
            f"{path}: has no signature of its main graph, which names its inputs and outputs ({there}); "
            f"`trtforge convert {path.name} -o NEW.tflite` names them"
        )
    signature = by_key[key]
    maps = (
        [signature.Inputs(n) for n in range(signature.InputsLength())],
        [signature.Outputs(n) for n in range(signature.OutputsLength())],
    )
    inputs, outputs = ([(_text(each.Name()), each.TensorIndex()) for each in side] for side in maps)
    return inputs, outputs


def _tensors(schema: Any, model: Any, graph: Any) -> list[TfliteTensor]:
    types = _names(schema.TensorType)
    return [_tensor(types, model, graph.Tensors(n), n) for n in range(graph.TensorsLength())]


def _tensor(types: dict[int, str], model: Any, tensor: Any, index: int) -> TfliteTensor:
    shape, signature = tensor.ShapeAsNumpy(), tensor.ShapeSignatureAsNumpy()
    sizes = signature if tensor.ShapeSignatureLength() else shape if tensor.ShapeLength() else ()
    quantization = tensor.Quantization()
    has_scales = quantization is not None and quantization.ScaleLength()
    return TfliteTensor(
        index,
        _text(tensor.Name()),
        types[tensor.Type()],
        tuple(DYNAMIC if size < 0 else int(size) for size in sizes),
        tuple(map(float, quantization.ScaleAsNumpy())) if has_scales else (),
        tuple(map(int, quantization.ZeroPointAsNumpy())) if has_scales and quantization.ZeroPointLength() else (),
        bool(model.Buffers(tensor.Buffer()).DataLength() or model.Buffers(tensor.Buffer()).Size()),
        _small(types[tensor.Type()], model.Buffers(tensor.Buffer())),
    )


def _small(type_name: str, buffer: Any) -> tuple[int, ...]:
    length = buffer.Size() or buffer.DataLength()
    if type_name != "INT32" or not 0 < length <= 4 * MOST_VALUES:
        return ()
    if buffer.Size():  # Behind the flatbuffer, as in large files.
        data = bytes(buffer._tab.Bytes[buffer.Offset() : buffer.Offset() + length])
    else:
        data = bytes(buffer.DataAsNumpy())
    return struct.unpack(f"<{length // 4}i", data[: length // 4 * 4])


def _operators(schema: Any, model: Any, graph: Any, tensors: list[TfliteTensor]) -> Iterator[TfliteOperator]:
    kinds = _names(schema.BuiltinOperator)
    for n in range(graph.OperatorsLength()):
        operator = graph.Operators(n)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = kinds[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        is_custom = kind == "CUSTOM"
        inputs, outputs = (
            [] if not length else list(indices)
            for length, indices in (
                (operator.InputsLength(), operator.InputsAsNumpy()),
                (operator.OutputsLength(), operator.OutputsAsNumpy()),
            )
        )
        yield TfliteOperator(
            _text(code.CustomCode()) if is_custom else kind,
            is_custom,
            code.Version(),
            tuple(None if index < 0 else tensors[index] for index in inputs),
            tuple(tensors[index] for index in outputs),
            _activation(schema, operator),
        )


def _activation(schema: Any, operator: Any) -> str:
    table, kind = operator.BuiltinOptions(), _names(schema.BuiltinOptions).get(operator.BuiltinOptionsType(), "")
    if table is None or not hasattr(schema, kind):
        return ""
    options = getattr(schema, kind)()
    options.Init(table.Bytes, table.Pos)
    if not hasattr(options, "FusedActivationFunction"):
        return ""
    return _names(schema.ActivationFunctionType).get(options.FusedActivationFunction(), "")


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if not name.startswith("_")}


def _text(value: bytes | None) -> str:
    return (value or b"").decode(errors="replace")
