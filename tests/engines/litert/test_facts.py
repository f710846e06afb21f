"""What a `.tflite` file says of itself, read by its schema."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engines.contract import DYNAMIC, TensorSpec
from engines.errors import EngineError
from engines.litert.facts import facts_from_file, is_tflite
from tests.tflite_files import TfliteWriter, save_cosine_in_int8, save_dense_in_int8, save_linear

schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="ai-edge-litert is not installed")


def test_specs_are_named_by_the_signature(tmp_path: Path) -> None:
    facts = facts_from_file(schema, save_linear(tmp_path / "m.tflite", batch=-1))
    assert facts.specs(facts.inputs) == (TensorSpec("x", "float32", (DYNAMIC, 3)),)
    assert facts.specs(facts.outputs) == (TensorSpec("y", "float32", (DYNAMIC, 2)),)


def test_operators_in_floats_and_in_integers(tmp_path: Path) -> None:
    facts = facts_from_file(schema, save_cosine_in_int8(tmp_path / "m.tflite"))
    assert [operator.kind for operator in facts.operators] == ["FULLY_CONNECTED", "DEQUANTIZE", "COS", "QUANTIZE"]
    assert [operator.kind for operator in facts.in_floats()] == ["COS"]
    assert [operator.name for operator in facts.in_integers()] == ["y"]
    assert facts.precision() == "int8"


def test_the_size_of_floats_is_no_computing_in_floats(tmp_path: Path) -> None:
    """As where Keras flattens a batch that varies, in a file that is else in integers."""
    writer = TfliteWriter()
    x = writer.tensor("x", (-1, 4), "INT8", scale=0.5)
    floats, size = writer.tensor("x_dequant", (-1, 4)), writer.tensor("size", (2,), "INT32")
    writer.operator("DEQUANTIZE", [x], [floats])
    writer.operator("SHAPE", [floats], [size])
    writer.save(tmp_path / "m.tflite", [x], [size])
    facts = facts_from_file(schema, tmp_path / "m.tflite")
    assert [operator.kind for operator in facts.operators] == ["DEQUANTIZE", "SHAPE"]
    assert facts.in_floats() == ()


def test_one_scale_in_the_file_is_one_scale(tmp_path: Path) -> None:
    """The interpreter shows one for each channel."""
    operator = facts_from_file(schema, save_dense_in_int8(tmp_path / "m.tflite")).operators[0]
    assert operator.weights is not None
    assert (operator.weights.scales, operator.weights.constant) == ((0.5,), True)
    assert operator.data is not None
    assert (operator.data.scales, operator.data.zero_points, operator.data.constant) == ((0.5,), (10,), False)


def dense(path: Path, weights_type: str) -> Path:
    """A dense layer of FP32 data, whose weights are kept in that type."""
    writer = TfliteWriter()
    x, y = writer.tensor("x", (1, 2)), writer.tensor("y", (1, 1))
    w = writer.constant("w", np.ones((1, 2), weights_type), 0.5 if weights_type == "int8" else 0.0)
    if weights_type == "float16":
        half, w = w, writer.tensor("w_full", (1, 2))
        writer.operator("DEQUANTIZE", [half], [w])
    b = writer.constant("b", np.zeros(1, np.float32))
    writer.operator("FULLY_CONNECTED", [x, w, b], [y], "FullyConnectedOptions")
    return writer.save(path, [x], [y])


@pytest.mark.parametrize(("weights", "precision"), [("float32", "fp32"), ("float16", "fp16"), ("int8", "dynamic")])
def test_the_precision_that_a_file_is_in(tmp_path: Path, weights: str, precision: str) -> None:
    facts = facts_from_file(schema, dense(tmp_path / "m.tflite", weights))
    assert facts.precision() == precision
    assert len(facts.with_integer_weights()) == (precision == "dynamic")
    assert facts.in_integers() == ()


@pytest.mark.parametrize(("kept", "precision"), [("int8", "dynamic"), ("float16", "fp16")])
def test_weights_that_are_restored_are_in_the_file_alone(tmp_path: Path, kept: str, precision: str) -> None:
    """No product multiplies integers there, but the file holds them."""
    writer = TfliteWriter()
    x, y, full = writer.tensor("x", (1, 2)), writer.tensor("y", (1, 1)), writer.tensor("full", (1, 2))
    w = writer.constant("w", np.ones((1, 2), kept), 0.5 if kept == "int8" else 0.0)
    writer.operator("DEQUANTIZE", [w], [full])
    writer.operator("FULLY_CONNECTED", [x, full], [y], "FullyConnectedOptions")
    facts = facts_from_file(schema, writer.save(tmp_path / "m.tflite", [x], [y]))
    (product,) = facts.products
    assert facts.precision() == precision
    assert facts.with_stored_weights() == ((product,) if kept == "int8" else ())
    assert (facts.with_integer_weights(), facts.in_integers(), facts.num_4_bits()) == ((), (), 0)
    weights = facts.file_weights(product)
    assert weights is not None
    assert weights.name == ("w" if kept == "int8" else "full")
    assert [each.name for each in facts.in_floats()] == ["y"]


def test_magic(tmp_path: Path) -> None:
    assert is_tflite(save_linear(tmp_path / "m.tflite"))
    (tmp_path / "short").write_bytes(b"TFL3")
    assert not is_tflite(tmp_path / "short")
    with pytest.raises(EngineError, match=r"is not a \.tflite file, bytes 4 to 8 are b'', b'TFL3' is expected"):
        facts_from_file(SimpleNamespace(), tmp_path / "short")
