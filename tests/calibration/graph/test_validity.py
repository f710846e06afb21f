"""What is no valid ONNX model is refused with its reason, and large weights are not read for that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from calibration.errors import ModelError
from calibration.graph.constants import fold_constants
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


def doubled(num: int, dims: str = "3") -> onnx.ModelProto:
    """A constant of ``dims`` floats that is put beside itself so many times."""
    nodes = "".join(f" c{i + 1} = Concat <axis = 0> (c{i}, c{i})" for i in range(num))
    rank = ", ".join("ab"[: dims.count(",") + 1])
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net (float[N] x) => (float[{rank}] '
        f"c{num}, float[N] y) {{ {nodes} y = Neg (x) }}"
    )
    shape = tuple(map(int, dims.split(",")))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), "c0"))
    return model


def test_a_list_that_doubles_itself_is_refused_before_onnx_puts_it_together(tmp_path: Path) -> None:
    check_valid(doubled(22), tmp_path)
    with pytest.raises(ModelError, match="a list of 25,165,824 values is computed of constants, at most 16,777,216"):
        check_valid(doubled(23), tmp_path)


def test_constants_that_double_themselves_stay_nodes_from_some_size_on() -> None:
    folded, num = fold_constants(doubled(40, "2, 512"))
    assert num == 13, "64 MiB in all"
    assert folded.ByteSize() < 1 << 26


def functions(num: int) -> onnx.ModelProto:
    """Functions that call the next one twice, so that a relu comes to 2 ** num."""
    bodies = [
        f'<domain: "f", opset_import: ["" : 17, "f" : 1]> f{i} (a) => (b) {{ c = f.f{i + 1} (a)  b = f.f{i + 1} (c) }}'
        for i in range(num)
    ]
    return onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "f" : 1]> net (float[N] x) => (float[N] y) { y = f.f0 (x) } '
        + " ".join([*bodies, f'<domain: "f", opset_import: ["" : 17]> f{num} (a) => (b) {{ b = Relu (a) }}'])
    )


def test_functions_that_come_to_millions_of_nodes_are_refused_before_they_are_written_out(tmp_path: Path) -> None:
    check_valid(functions(3), tmp_path)
    with pytest.raises(ModelError, match=r"has 1,073,741,824 nodes where its functions are written out, at most"):
        check_valid(functions(30), tmp_path)


def test_functions_that_call_themselves_are_refused(tmp_path: Path) -> None:
    model = functions(1)
    model.functions[1].node[0].op_type, model.functions[1].node[0].domain = "f0", "f"
    model.functions[1].opset_import.append(onnx.helper.make_opsetid("f", 1))
    with pytest.raises(ModelError, match=r"is not a valid ONNX model .*recursive"):
        check_valid(model, tmp_path)
