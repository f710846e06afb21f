"""A Pad of zeros goes into what reads it, with the same bits; any other stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.numpy_helper import from_array

from calibration.graph.pads import fold_pads
from engines.backends import onnxruntime

Array = np.ndarray[Any, Any]
CONV = "y = Conv <strides = [2, 2]> (padded, w)"
POOL = "y = MaxPool <kernel_shape = [3, 3], strides = [2, 2]> (padded)"
BOTH = "y = Conv <pads = [1, 0, 0, 1]> (padded, w) z = MaxPool <kernel_shape = [3, 3]> (padded)"


def net(
    body: str, before: str = "Relu (x)", opset: int = 17, pads: tuple[int, ...] = (0, 0, 1, 0, 0, 0, 1, 2)
) -> onnx.ModelProto:
    """``body`` reads ``padded``."""
    outputs = "float[N,O,A,B] y" + (", float[N,O,E,F] z" if " z = " in f" {body}" else "")
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> net (float[N,3,9,8] x) => ({outputs}) '
        f"{{ data = {before} padded = Pad (data, pads) {body} }}"
    )
    arrays: dict[str, Array] = {
        "w": np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32),
        "pads": np.array(pads, np.int64),
        "axes": np.array([2, -1], np.int64),
        "zero": np.array(0, np.float32),
        "one": np.array(1, np.float32),
        "six": np.array(6, np.float32),
    }
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(from_array(array, name) for name, array in arrays.items() if name in read)
    return model


def answers(model: onnx.ModelProto, folder: Path) -> list[Array]:
    """By ONNX Runtime, on fixed numbers."""
    onnx.save(model, folder / "model.onnx")
    x = np.random.default_rng(1).normal(size=(2, 3, 9, 8)).astype(np.float32)
    with onnxruntime.load_simulation(folder / "model.onnx", num_threads=1) as runner:
        return list(runner.infer({"x": x}).values())


@pytest.mark.parametrize(
    ("body", "before", "num"),
    [
        (CONV, "Relu (x)", 1),
        (CONV, "Neg (x)", 1),
        (POOL, "Relu (x)", 1),
        (POOL, "Clip (x, zero, six)", 1),
        (BOTH, "Sigmoid (x)", 2),
        (BOTH, "Neg (x)", 1),
    ],
)
def test_readers_pad_for_themselves_and_the_bits_are_the_same(tmp_path: Path, body: str, before: str, num: int) -> None:
    model = net(body, before)
    made, num_folded = fold_pads(model)
    assert num_folded == num
    assert ("Pad" in {node.op_type for node in made.graph.node}) == (num < len(model.graph.output))
    for padded, folded in zip(answers(model, tmp_path), answers(made, tmp_path), strict=True):
        np.testing.assert_array_equal(folded, padded)


def test_axes_of_opset_18_and_a_value_of_zero(tmp_path: Path) -> None:
    model = net(CONV, opset=18, pads=(1, 2, 0, 1))
    model.graph.node[1].input.extend(["zero", "axes"])
    arrays = (from_array(np.array(0, np.float32), "zero"), from_array(np.array([2, -1], np.int64), "axes"))
    model.graph.initializer.extend(arrays)
    made, num_folded = fold_pads(model)
    assert num_folded == 1
    assert list(made.graph.node[1].attribute[-1].ints or made.graph.node[1].attribute[0].ints)
    np.testing.assert_array_equal(answers(made, tmp_path)[0], answers(model, tmp_path)[0])


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        (POOL, {"before": "Neg (x)"}),
        (POOL, {"before": "Clip (x)"}),
        (CONV, {"pads": (0, 1, 1, 0, 0, 0, 0, 0)}),
        (CONV, {"pads": (0, 0, -1, 0, 0, 0, 0, 0)}),
        (POOL, {"pads": (0, 0, 3, 0, 0, 0, 0, 0)}),
        ("y = Relu (padded)", {}),
        ("y = AveragePool <kernel_shape = [3, 3]> (padded)", {}),
        ('y = Conv <auto_pad = "SAME_UPPER"> (padded, w)', {}),
        ("y = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (padded)", {}),
        ("y = MaxPool <kernel_shape = [3, 3], ceil_mode = 1> (padded)", {}),
    ],
)
def test_what_would_change_the_answers_stays(body: str, changes: dict[str, Any]) -> None:
    model = net(body, **changes)
    made, num_folded = fold_pads(model)
    assert num_folded == 0
    assert made is model


@pytest.mark.parametrize("change", ["reflect", "ones", "computed"])
def test_another_padding_stays(change: str) -> None:
    model = net(CONV)
    pad = model.graph.node[1]
    if change == "reflect":
        pad.attribute.append(onnx.helper.make_attribute("mode", "reflect"))
    elif change == "ones":
        pad.input.append("one")
        model.graph.initializer.append(from_array(np.array(1, np.float32), "one"))
    else:
        del model.graph.initializer[:]
        model.graph.input.append(onnx.helper.make_tensor_value_info("pads", onnx.TensorProto.INT64, [8]))
        model.graph.initializer.append(from_array(np.zeros((5, 3, 3, 3), np.float32), "w"))
    assert fold_pads(model)[1] == 0
