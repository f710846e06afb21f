"""What is no valid ONNX model is refused with its reason, and large weights are not read for that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from calibration.errors import ModelError
from calibration.graph.validity import check_file, check_valid
from tests.conftest import tiny_model
from tests.made import model_with_weights

WRONG: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "no outputs": (lambda model: model.graph.ClearField("output"), "the model has no outputs; export it again"),
    "an opset of tomorrow": (
        lambda model: setattr(model.opset_import[0], "version", 9999),
        r"is of opset 9999, the onnx that is installed knows \d+; update onnx",
    ),
    "no opset": (lambda model: model.ClearField("opset_import"), "is not a valid ONNX model"),
    "a tensor that nobody makes": (
        lambda model: model.graph.node[1].input.__setitem__(0, "nobody"), "is not a valid ONNX model",
    ),
    "a weight of no type": (
        lambda model: setattr(model.graph.initializer[0], "data_type", 0), "the weight 'kernel' has no type",
    ),
    "a weight of a type of tomorrow": (
        lambda model: setattr(model.graph.initializer[0], "data_type", 99), "the weight 'kernel' has no type",
    ),
    "no weights": (lambda model: model.graph.ClearField("initializer"), "is not a valid ONNX model"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(what: str, tmp_path: Path) -> None:
    change, words = WRONG[what]
    model = tiny_model()
    change(model)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=rf"m.onnx: {words}"):
        check_file(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=rf"m.onnx: {words}"):
        check_valid(model, tmp_path / "m.onnx")


def test_a_large_weight_is_not_read_whether_inside_or_beside(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }'
    model = model_with_weights(text, 3, w=(64, 64))
    onnx.save(model, tmp_path / "m.onnx")
    check_file(tmp_path / "m.onnx")
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    (tmp_path / "weights").unlink()
    check_file(tmp_path / "m.onnx")
