"""Small `.tflite` files, written operator by operator so that a test's reader sees them; and the linear network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Constant = npt.NDArray[Any]


class TfliteWriter:
    """A file with one graph. A tensor is named in the order in which it is added."""

    def __init__(self) -> None:
        """An empty one."""
        from ai_edge_litert import schema_py_generated

        self.schema: Any = schema_py_generated
        self.model = self.schema.ModelT()
        self.model.version, self.model.buffers, self.model.operatorCodes = 3, [self.schema.BufferT()], []
        self.graph = self.schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.model.subgraphs = [self.graph]
        self._numbers: dict[str, int] = {}

    def tensor(
        self, name: str, shape: Sequence[int], type_name: str = "FLOAT32", scale: float = 0.0, zero_point: int = 0
    ) -> str:
        """A tensor that is computed or fed; a dimension of -1 is dynamic."""
        tensor = self.schema.TensorT()
        tensor.name, tensor.type = name.encode(), getattr(self.schema.TensorType, type_name)
        tensor.shape = [1 if size < 0 else size for size in shape]
        if -1 in shape:
            tensor.shapeSignature = list(shape)
        if scale:
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [scale], [zero_point]
        self._numbers[name] = len(self.graph.tensors)
        self.graph.tensors.append(tensor)
        return name

    def constant(self, name: str, values: Constant, scale: float = 0.0) -> str:
        """A tensor whose values are in the file."""
        types = {"float32": "FLOAT32", "float16": "FLOAT16", "int8": "INT8", "int32": "INT32"}
        self.tensor(name, values.shape, types[values.dtype.name], scale)
        buffer = self.schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self.graph.tensors[-1].buffer = len(self.model.buffers)
        self.model.buffers.append(buffer)
        return name

    def operator(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], options: str = "") -> None:
        """An operator; ``options``: the name of its table of options, whose values are the schema's defaults."""
        code = self.schema.OperatorCodeT()
        builtin = getattr(self.schema.BuiltinOperator, kind, self.schema.BuiltinOperator.CUSTOM)
        code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), 1
        if builtin == self.schema.BuiltinOperator.CUSTOM:
            code.customCode = kind.encode()
        operator = self.schema.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes)
        operator.inputs, operator.outputs = ([self._numbers[name] for name in side] for side in (inputs, outputs))
        if options:
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
            operator.builtinOptions = getattr(self.schema, f"{options}T")()
        self.model.operatorCodes.append(code)
        self.graph.operators.append(operator)

    def save(self, path: Path, inputs: Sequence[str], outputs: Sequence[str], *, signature: bool = True) -> Path:
        """Write the file; the signature has the tensors' own names."""
        import flatbuffers

        self.graph.inputs, self.graph.outputs = ([self._numbers[name] for name in side] for side in (inputs, outputs))
        if signature:
            self.model.signatureDefs = [self._signature(inputs, outputs)]
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        return path

    def _signature(self, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
        signature = self.schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
        signature.inputs, signature.outputs = [], []
        for side, names in ((signature.inputs, inputs), (signature.outputs, outputs)):
            for name in names:
                entry = self.schema.TensorMapT()
                entry.name, entry.tensorIndex = name.encode(), self._numbers[name]
                side.append(entry)
        return signature


def save_linear(path: Path, batch: int = 1) -> Path:
    """y = x w + b, as tests/engines/conftest.py writes it in ONNX; -1 is an open batch."""
    writer = TfliteWriter()
    x = writer.tensor("x", (batch, 3))
    w = writer.constant("w", np.array([[1, 3, 5], [2, 4, 6]], np.float32))
    b = writer.constant("b", np.array([0.5, -0.5], np.float32))
    y = writer.tensor("y", (batch, 2))
    writer.operator("FULLY_CONNECTED", [x, w, b], [y], "FullyConnectedOptions")
    return writer.save(path, [x], [y])


def save_cosine_in_int8(path: Path) -> Path:
    """int8 -> a dense layer in int8 -> back to float -> COS -> int8: what a converter leaves where int8 has no COS."""
    writer = TfliteWriter()
    x, y = writer.tensor("x", (1, 3), "INT8", 0.1), writer.tensor("y", (1, 2), "INT8", 0.2)
    w = writer.constant("w", np.array([[1, 2, 3], [4, 5, 6]], np.int8), 0.01)
    b = writer.constant("b", np.zeros(2, np.int32), 0.001)
    writer.operator("FULLY_CONNECTED", [x, w, b], [y], "FullyConnectedOptions")
    back, turned = writer.tensor("back", (1, 2)), writer.tensor("turned", (1, 2))
    out = writer.tensor("out", (1, 2), "INT8", 0.01)
    writer.operator("DEQUANTIZE", [y], [back])
    writer.operator("COS", [back], [turned])
    writer.operator("QUANTIZE", [turned], [out])
    return writer.save(path, [x], [out])


def save_dense_in_int8(path: Path) -> Path:
    """int8 in, a dense layer without bias, int8 out."""
    writer = TfliteWriter()
    x, y = writer.tensor("x", (1, 3), "INT8", 0.5, 10), writer.tensor("y", (1, 2), "INT8", 1.0)
    w = writer.constant("w", np.array([[1, 2, 3], [4, 5, 6]], np.int8), 0.5)
    b = writer.constant("b", np.zeros(2, np.int32), 0.25)
    writer.operator("FULLY_CONNECTED", [x, w, b], [y], "FullyConnectedOptions")
    return writer.save(path, [x], [y])


def save_residual(path: Path, batch: int = 1) -> Path:
    """x (8) -> dense -> Relu -> dense, added to the Relu's -> dense -> y (3): float, with random weights."""
    random = np.random.default_rng(0)
    writer = TfliteWriter()
    x = writer.tensor("x", (batch, 8))

    def dense(data: str, name: str, size: int, num_inputs: int) -> str:
        w = writer.constant(f"{name}_w", random.normal(size=(size, num_inputs)).astype(np.float32))
        b = writer.constant(f"{name}_b", random.normal(size=size).astype(np.float32))
        made = writer.tensor(name, (batch, size))
        writer.operator("FULLY_CONNECTED", [data, w, b], [made], "FullyConnectedOptions")
        return made

    first = dense(x, "first", 16, 8)
    active = writer.tensor("active", (batch, 16))
    writer.operator("RELU", [first], [active])
    second = dense(active, "second", 16, 16)
    added = writer.tensor("added", (batch, 16))
    writer.operator("ADD", [active, second], [added], "AddOptions")
    return writer.save(path, [x], [dense(added, "y", 3, 16)])


def save_separable(path: Path) -> Path:
    """x (1, 6, 6, 4) -> a depthwise convolution, 3 x 3 -> a plain one, 1 x 1 -> y (1, 4, 4, 8): float, random."""
    random = np.random.default_rng(0)
    writer = TfliteWriter()
    x, depth, y = (writer.tensor(name, (1, n, n, c)) for name, n, c in (("x", 6, 4), ("depth", 4, 4), ("y", 4, 8)))
    sizes = {"depth": (1, 3, 3, 4), "point": (8, 1, 1, 4)}
    kernels = {
        name: writer.constant(f"{name}_w", random.normal(size=size).astype(np.float32)) for name, size in sizes.items()
    }
    depth_b, point_b = (writer.constant(name, np.zeros(size, np.float32)) for name, size in (("db", 4), ("pb", 8)))
    writer.operator("DEPTHWISE_CONV_2D", [x, kernels["depth"], depth_b], [depth], "DepthwiseConv2DOptions")
    writer.operator("CONV_2D", [depth, kernels["point"], point_b], [y], "Conv2DOptions")
    for operator in writer.graph.operators:
        operator.builtinOptions.padding = writer.schema.Padding.VALID
        operator.builtinOptions.strideH = operator.builtinOptions.strideW = 1
    writer.graph.operators[0].builtinOptions.depthMultiplier = 1
    return writer.save(path, [x], [y])
