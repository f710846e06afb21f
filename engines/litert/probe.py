"""The smallest `.tflite` file: a Relu of one number. What runs it tells whose kernels a runtime has."""

from __future__ import annotations

from typing import Any


def relu_model(schema: Any, flatbuffers: Any) -> bytes:
    """The file's bytes.

    Args:
        schema: the module that the format's schema was compiled to.
        flatbuffers: what writes it.
    """
    graph = schema.SubGraphT()
    graph.tensors = [_tensor(schema, name) for name in (b"x", b"y")]
    graph.inputs, graph.outputs = [0], [1]
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [0], [1]
    graph.operators = [operator]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.RELU
    code.version = 1
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _tensor(schema: Any, name: bytes) -> Any:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.type = name, [1], schema.TensorType.FLOAT32
    return tensor
