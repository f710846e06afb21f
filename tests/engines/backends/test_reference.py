"""onnx's evaluator: it defines what is right, so it must know the files that this project writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.backends import reference
from engines.contract import BuildOptions
from engines.errors import EngineError

SaveModel = Callable[[str], Path]

QUANTIZED = """<ir_version: 8, opset_import: ["" : OPSET]>
g (float[N, 2] x) => (float[N, 2] y) <float[2] s = {0.5, 0.1}, int8[2] z = {0, 0}>
{
    q = QuantizeLinear<axis = 1>(x, s, z)
    y = DequantizeLinear<axis = 1>(q, s, z)
}"""


@pytest.mark.parametrize("opset", [13, 17, 19, 21])
def test_quantize_and_dequantize_round_to_even_and_saturate(save_model: SaveModel, tmp_path: Path, opset: int) -> None:
    # Scale 0.5: 0.75 is 1.5 steps -> 2, 0.25 is 0.5 steps -> 0; 100 is over 127 steps -> 63.5. The other column: 0.1.
    model = save_model(QUANTIZED.replace("OPSET", str(opset)))
    record = reference.build(model, tmp_path / "engine.onnx", BuildOptions("int8"))
    assert record.num_int8 == 0
    assert record.notes == ("Q/DQ nodes are computed in floating point, as the ONNX standard writes them.",)
    with reference.load(tmp_path / "engine.onnx", num_threads=1) as runner:
        y = runner.infer({"x": np.array([[0.75, 0.32], [0.25, -99.0], [100.0, 0.0]], np.float32)})["y"]
    np.testing.assert_allclose(y.astype(float), [[1.0, 0.3], [0.0, -12.8], [63.5, 0.0]], rtol=1e-6)


def test_a_failure_while_running_names_the_engine(save_model: SaveModel, tmp_path: Path) -> None:
    model = save_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, M] x) => (float[2, 3] y) <int64[2] s = {2, 3}> '
        "{ y = Reshape(x, s) }"
    )
    with (
        reference.load(model, num_threads=1) as runner,
        pytest.raises(EngineError, match=r"model\.onnx: onnx's evaluator failed \(ValueError: .*reshape"),
    ):
        runner.infer({"x": np.zeros((1, 5), np.float32)})
