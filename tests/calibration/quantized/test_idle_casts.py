"""Casts that change nothing are left out, and no others."""

from __future__ import annotations

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from calibration.quantized.idle_casts import drop_idle_casts

HEAD = '<ir_version: 9, opset_import: ["" : 19]>'
FLOAT, UINT8, INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.INT32


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_between_q_and_dq_and_of_floats() -> None:
    model = onnx.parser.parse_model(
        f"""{HEAD} g (float[N, 2] x) => (float[N, 2] y) <float s = {{0.5}}, uint8 z = {{128}}>
        {{ a = Cast <to = {FLOAT}> (x)  q = QuantizeLinear (a, s, z)  c = Cast <to = {UINT8}> (q)
           d = DequantizeLinear (c, s, z)  e = DequantizeLinear (q, s, z)  y = Add (d, e) }}"""
    )
    changed, number = drop_idle_casts(model)
    assert number == 2
    assert operators(changed) == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "Add"]
    x = {"x": np.array([[0.3, -1.2]], np.float32)}
    (before,), (after,) = (list(ReferenceEvaluator(each).run(None, x)) for each in (model, changed))
    np.testing.assert_array_equal(np.asarray(before), np.asarray(after))


def test_what_changes_a_type_stays_and_so_does_what_gives_an_output_its_name() -> None:
    model = onnx.parser.parse_model(
        f"""{HEAD} g (float[N] x) => (float[N] y, float[N] z)
        {{ i = Cast <to = {INT32}> (x)  y = Cast <to = {FLOAT}> (i)  z = Cast <to = {FLOAT}> (x) }}"""
    )
    assert drop_idle_casts(model) == (model, 0)


def test_a_type_that_is_not_known_is_not_guessed() -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[N] x) => (float[N] y)
        {{ a = own.Odd (x)  b = Cast <to = {FLOAT}> (a)  y = Neg (b) }}"""
    )
    assert drop_idle_casts(model) == (model, 0)
