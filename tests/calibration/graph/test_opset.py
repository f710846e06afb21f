"""Models are brought to an opset with the same answers, or refused with the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from calibration.arrays import Floats
from calibration.errors import ModelError
from calibration.graph.opset import brought_to, opset_of


def parsed(opset: int, body: str, head: str = "float[2,3,4,4] x) => (float[2,3] y") -> onnx.ModelProto:
    """A model of one body."""
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> net ({head}) {body}')


def answer(model: onnx.ModelProto) -> Floats:
    """On fixed numbers."""
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    answers: Any = ReferenceEvaluator(model).run(None, {"x": x})
    return np.asarray(answers[0], np.float64)


AXES = "<int64[2] axes = {2, 3}>"


@pytest.mark.parametrize("operator", ["ReduceMean", "ReduceMax", "ReduceL2", "ReduceSum"])
def test_what_pytorch_writes_in_18_is_brought_to_17(operator: str) -> None:
    body = f"{AXES} {{ y = {operator} <keepdims = 0, noop_with_empty_axes = 0> (x, axes) }}"
    model = parsed(18, body)
    before = model.SerializeToString()
    brought = brought_to(model, 17)
    assert opset_of(brought) == 17
    onnx.checker.check_model(brought, full_check=True)
    np.testing.assert_allclose(answer(brought), answer(model), rtol=1e-6)
    assert model.SerializeToString() == before


def test_an_attribute_that_17_has_not_is_a_reason() -> None:
    model = parsed(18, f"{AXES} {{ y = ReduceMean <keepdims = 0, noop_with_empty_axes = 1> (x, axes) }}")
    with pytest.raises(ModelError, match="onnx cannot convert it from opset 18 to 17"):
        brought_to(model, 17)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{ y = Gelu (x) }", "no earlier opset has Gelu"),
        ('{ y = GridSample <mode = "cubic"> (x, x) }', "it does not convert GridSample of opset 20"),
        ("{ y = Nonsense (x) }", "ONNX has no operator Nonsense"),
    ],
)
def test_the_converters_words_are_said_without_where_they_stand_in_its_source(body: str, words: str) -> None:
    with pytest.raises(ModelError, match=rf"^onnx cannot convert it from opset 20 to 17 \((?:{words})\)$"):
        brought_to(parsed(20, body, "float[1,2,2,2] x) => (float[N,M] y"), 17)


def test_a_scan_with_a_batch_is_refused() -> None:
    inside = "b (float[3,4,4] a, float[4,4] c) => (float[3,4,4] d, float[4,4] e) { d = Identity (a) e = Identity (c) }"
    body = f'{{ y, z = Scan ("", x, x) <num_scan_inputs: int = 1, body: graph = {inside}> }}'
    with pytest.raises(ModelError, match="node 'y' is a Scan of opset 8, which has a batch"):
        brought_to(parsed(8, body, "float[2,3,4,4] x) => (float[2,3,4,4] y, float[2,3,4,4] z"), 17)


def test_an_operators_default_axes_are_written_out() -> None:
    model = parsed(13, "{ y = MeanVarianceNormalization (x) }", "float[2,3,4,4] x) => (float[2,3,4,4] y")
    brought = brought_to(model, 17)
    onnx.checker.check_model(brought, full_check=True)
    np.testing.assert_allclose(answer(brought), answer(model), rtol=1e-5)


def test_a_model_without_onnxs_own_operators_gets_the_opset() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["ai.onnx.ml" : 3]> net (float[N] x) => (float[N] y) '
        "{ y = ai.onnx.ml.Binarizer <threshold = 0.5> (x) }"
    )
    assert (opset_of(model), opset_of(brought_to(model, 17))) == (0, 17)


@pytest.mark.parametrize(("opset", "operator"), [(9, "Upsample"), (10, "Resize")])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_a_resize_keeps_its_coordinates(opset: int, operator: str, mode: str) -> None:
    head = "float[2,3,4,4] x) => (float[2,3,8,6] y"
    model = parsed(opset, f'<float[4] s = {{1, 1, 2, 1.5}}> {{ y = {operator} <mode = "{mode}"> (x, s) }}', head)
    brought = brought_to(model, 17)
    np.testing.assert_allclose(run(brought), run(model), rtol=1e-5, atol=1e-5)


def run(model: onnx.ModelProto) -> Floats:
    """In ONNX Runtime, as onnx's reference has no old resizes."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0], np.float64)


def test_a_hardmax_over_several_axes_is_refused() -> None:
    head = "float[2,3,4,4] x) => (float[2,3,4,4] y"
    with pytest.raises(ModelError, match="node 'y' is a Hardmax of opset 9 over several axes"):
        brought_to(parsed(9, "{ y = Hardmax (x) }", head), 17)
    last = parsed(9, "{ y = Hardmax <axis = 3> (x) }", head)
    np.testing.assert_array_equal(run(brought_to(last, 17)), run(last))
