"""Short names for the tensors of a `.tflite` file."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from engines.litert.facts import facts_from_file
from engines.litert.names import with_short_names
from tests.tflite_files import TfliteWriter

schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="ai-edge-litert is not installed")


def renamed(names: list[str], tmp_path: Path) -> list[str]:
    """The names that a chain of Relus has afterwards: of its input, of what lies between, of its output."""
    import flatbuffers

    writer = TfliteWriter()
    for name in names:
        writer.tensor(name, (1, 2))
    for before, after in pairwise(names):
        writer.operator("RELU", [before], [after])
    path = writer.save(tmp_path / "m.tflite", [names[0]], [names[-1]])
    signature = writer.model.signatureDefs[0]
    signature.inputs[0].name, signature.outputs[0].name = b"image", b"scores"
    builder = flatbuffers.Builder(1024)
    builder.Finish(writer.model.Pack(builder), b"TFL3")
    path.write_bytes(with_short_names(schema, flatbuffers, bytes(builder.Output())))
    operators = facts_from_file(schema, path).operators
    return [operators[0].inputs[0].name if operators[0].inputs[0] else "", *(each.name for each in operators)]


@pytest.mark.parametrize(
    ("names", "shorter"),
    [
        (["serving_default_image:0", "a", "StatefulPartitionedCall:0"], ["image", "a", "scores"]),
        (["x", "net/relu/Relu;net/add;net/Conv2D", "y"], ["image", "net/relu/Relu", "scores"]),
        (["x", "StatefulPartitionedCall/StatefulPartitionedCall_1/relu", "y"], ["image", "relu", "scores"]),
        (["x", "relu;one", "relu;other", "y"], ["image", "relu", "relu_1", "scores"]),
        (["x", "scores", "image", "y"], ["image", "scores_1", "image_1", "scores"]),
        (["x", ";", "y"], ["image", "tensor", "scores"]),
    ],
)
def test_names(names: list[str], shorter: list[str], tmp_path: Path) -> None:
    assert renamed(names, tmp_path) == shorter


def test_weights_come_after_what_is_computed(tmp_path: Path) -> None:
    import flatbuffers

    writer = TfliteWriter()
    w = writer.constant("dense;read", np.ones((1, 2), np.float32))
    x, y = writer.tensor("x", (1, 2)), writer.tensor("y", (1, 1))
    middle = writer.tensor("dense;MatMul", (1, 1))
    writer.operator("FULLY_CONNECTED", [x, w], [middle], "FullyConnectedOptions")
    writer.operator("RELU", [middle], [y])
    path = writer.save(tmp_path / "m.tflite", [x], [y])
    path.write_bytes(with_short_names(schema, flatbuffers, path.read_bytes()))
    product = facts_from_file(schema, path).operators[0]
    assert product.name == "dense"
    assert product.weights is not None
    assert product.weights.name == "dense_1"
