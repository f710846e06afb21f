"""What a published file lacks is added, and what it computes stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.backends import litert
from engines.errors import EngineError
from engines.litert.published import with_signature
from tests.tflite_files import TfliteWriter, save_linear

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")


def ready(path: Path) -> Path:
    import flatbuffers

    path.write_bytes(with_signature(litert.schema(), flatbuffers, path.read_bytes()))
    return path


def dense(path: Path, names: tuple[str, str], batch: int = 1) -> Path:
    """y = x w, without a signature."""
    writer = TfliteWriter()
    x, y = writer.tensor(names[0], (batch, 2)), writer.tensor(names[1], (batch, 2))
    w = writer.constant("w", np.array([[1, 2], [3, 4]], np.float32))
    b = writer.constant("b", np.zeros(2, np.float32))
    writer.operator("FULLY_CONNECTED", [x, w, b], [y], "FullyConnectedOptions")
    return writer.save(path, [x], [y], signature=False)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("input_1", "Identity"), ("input_1", "Identity")),
        (("serving_default_image:0", "StatefulPartitionedCall:0"), ("image", "StatefulPartitionedCall")),
        (("", "out"), ("tensor_0", "out")),
    ],
)
def test_inputs_and_outputs_get_names(tmp_path: Path, names: tuple[str, str], expected: tuple[str, str]) -> None:
    facts = litert.tflite_facts(ready(dense(tmp_path / "m.tflite", names)))
    assert (facts.inputs[0][0], facts.outputs[0][0]) == expected


def test_the_batch_is_fixed_and_the_answers_are_the_same(tmp_path: Path) -> None:
    path = ready(dense(tmp_path / "m.tflite", ("x", "y"), batch=-1))
    assert [tensor.shape for _, tensor in litert.tflite_facts(path).inputs] == [(1, 2)]
    with litert.load(path, num_threads=1) as runner:
        assert runner.infer({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[3.0, 7.0]]


def test_a_signature_stays(tmp_path: Path) -> None:
    facts = litert.tflite_facts(ready(save_linear(tmp_path / "m.tflite", -1)))
    assert [name for name, _ in (*facts.inputs, *facts.outputs)] == ["x", "y"]


def test_codes_of_operators_stand_in_both_places(tmp_path: Path) -> None:
    """As ai-edge-quantizer writes them, an old reader takes all for ADD, number 0."""
    import flatbuffers

    path = dense(tmp_path / "m.tflite", ("x", "y"))
    schema: Any = litert.schema()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    model.operatorCodes[0].deprecatedBuiltinCode = 0
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    written = with_signature(schema, flatbuffers, bytes(builder.Output()))
    code = schema.ModelT.InitFromObj(schema.Model.GetRootAs(written, 0)).operatorCodes[0]
    assert (code.builtinCode, code.deprecatedBuiltinCode) == (schema.BuiltinOperator.FULLY_CONNECTED,) * 2


def test_a_file_without_a_signature_is_read_where_that_is_asked_for(tmp_path: Path) -> None:
    path = dense(tmp_path / "m.tflite", ("x", "y"))
    assert [name for name, _ in litert.tflite_facts(path, unsigned=True).inputs] == ["x"]
    with pytest.raises(EngineError, match=r"has no signature .* \(it has none\); `trtforge convert m\.tflite -o"):
        litert.tflite_facts(path)
