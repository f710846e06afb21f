"""Dynamic-range INT8 rounded in float: the same numbers as the model that is written computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from calibration.analysis.found_scales import found_scales_in, with_found_scales
from calibration.analysis.sqnr import sqnr_db_of
from calibration.precision.dynamic import dynamic_from_onnx, found_scales
from tests.made import model_with_weights

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 8, 6, 6] x) => (float[N, 5] y)
{
    [conv] c = Conv <pads = [1, 1, 1, 1]> (x, kernel)
    r = Relu (c)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    [head] m = MatMul (f, matrix)
    [gemm] g = Gemm <transB = 1> (m, turned, offset)
    [scaled] y = Gemm <alpha = 0.5> (g, square)
}"""
WEIGHTS = {
    "kernel": (16, 8, 3, 3), "matrix": (16, 32), "turned": (5, 32), "offset": (5,), "square": (5, 5),
}  # fmt: skip
X = np.random.default_rng(1).normal(size=(1, 8, 6, 6)).astype(np.float32)


def net() -> onnx.ModelProto:
    return model_with_weights(NET, 3, **WEIGHTS)


def answers(model: onnx.ModelProto, **inputs: Any) -> npt.NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": X, **inputs})[0])


def whole_levels(shares: tuple[str, ...]) -> dict[str, Any]:
    """256 levels, as they are without a draw."""
    return {name: np.asarray(np.float32(1 / 255)) for name in shares}


@pytest.mark.parametrize("block", [0, 16])
def test_it_computes_what_the_written_model_computes(block: int) -> None:
    rounded = with_found_scales(net(), found_scales(net(), (), "u8s8", block))
    written = dynamic_from_onnx(net(), (), "u8s8", block).model
    ours, theirs = answers(rounded.model, **whole_levels(rounded.shares)), answers(written)
    exact = answers(net())
    assert sqnr_db_of(exact, theirs) < 50, "it rounds"
    assert sqnr_db_of(theirs, ours) > sqnr_db_of(exact, theirs) + (20 if block == 0 else 3)  # Blocks round data finer.


def test_what_is_excluded_and_what_cannot_be_stays_exact() -> None:
    what = found_scales(net(), ("head", "Conv"), "u8s8")
    assert [weight.reader.node for weight in what.weights] == ["gemm"]
    assert what.in_integers == {"gemm"}
    assert with_found_scales(net(), found_scales(net(), ("Conv", "MatMul", "Gemm"), "u8s8")).shares == ()


@pytest.mark.parametrize("block", [0, 16])
def test_where_a_written_model_rounds_is_read_from_it(block: int) -> None:
    written = dynamic_from_onnx(net(), ("gemm",), "u8s8", block).model
    assert found_scales_in(net(), written) == found_scales(net(), ("gemm",), "u8s8", block)
    assert found_scales_in(net(), net()).weights == ()


def test_draws_differ_in_the_width_of_levels() -> None:
    rounded = with_found_scales(net(), found_scales(net(), (), "u8s8"))
    assert len(rounded.shares) == 2
    first, second = (rounded.draw(np.random.default_rng(seed)) for seed in (1, 2))
    assert first.keys() == set(rounded.shares)
    assert all(2**-0.25 / 255 <= share <= 2 / 255 for share in first.values())
    assert not np.array_equal(answers(rounded.model, **first), answers(rounded.model, **second))


def test_data_that_is_zero_throughout() -> None:
    rounded = with_found_scales(net(), found_scales(net(), (), "u8s8"))
    inputs = {"x": np.zeros_like(X), **whole_levels(rounded.shares)}
    assert np.isfinite(answers(rounded.model, **inputs)).all()
