"""Weights of 4 bits in a `.tflite` file are those that were handed in, and biases fit them."""

from __future__ import annotations

from pathlib import Path

import flatbuffers
import numpy as np
import numpy.typing as npt
import pytest

from calibration.precision.weights import channels_in_4_bits
from engines.backends import litert
from engines.contract import BuildOptions
from engines.litert.four_bits import WeightArray, with_rounded_weights
from engines.litert.quantizer import TfliteFormat, quantized
from engines.precision import PRECISIONS
from tests.engines.litert.test_quantizer import RANGES, WITH_RANGES
from tests.tflite_files import TfliteWriter, save_residual

pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")


@pytest.mark.parametrize("name", ["dynamic", "int8", "int16x8"])
def test_codes_and_biases_are_those_handed_in(name: str, tmp_path: Path) -> None:
    model = save_residual(tmp_path / "float.tflite")
    ranges = RANGES if name in WITH_RANGES else {}
    by_library = quantized(model, TfliteFormat(PRECISIONS[name], weight_bits=4), ranges)
    asked: dict[str, WeightArray] = {}

    def exactly(data: str, weight: WeightArray) -> tuple[npt.NDArray[np.int8], WeightArray, WeightArray]:
        asked[data] = weight
        return channels_in_4_bits(weight, ())

    def shifted(data: str, weight: WeightArray) -> tuple[npt.NDArray[np.int8], WeightArray, WeightArray]:
        codes, scales, shift = exactly(data, weight)
        return codes, scales, shift + (1.0 if data == "added" else 0.0)  # The last product's data.

    answers = {}
    rows = np.random.default_rng(1).uniform(-1, 1, (20, 1, 8)).astype(np.float32)
    for key, data in {
        "library": by_library,
        "exact": with_rounded_weights(litert.schema(), flatbuffers, (model.read_bytes(), by_library), exactly),
        "shifted": with_rounded_weights(litert.schema(), flatbuffers, (model.read_bytes(), by_library), shifted),
    }.items():
        path = tmp_path / f"{key}.tflite"
        path.write_bytes(data)
        record = litert.build(path, tmp_path / "engine.tflite", BuildOptions(name))
        assert (record.num_quantizable, record.num_4_bits) == (3, 3)
        with litert.load(path, num_threads=1) as runner:
            answers[key] = np.concatenate([runner.infer({"x": row})["y"] for row in rows]).astype(np.float64)
    assert len(asked) == 3
    assert all(weight.ndim == 3 for weight in asked.values())
    spread = np.abs(answers["exact"]).max()
    assert 0 < np.abs(answers["library"] - answers["exact"]).max() < 0.3 * spread
    np.testing.assert_allclose(answers["exact"] - answers["shifted"], 1.0, atol=0.02 * spread)


def test_channels_are_rounded_so_that_kernels_keep_their_sums() -> None:
    weight = np.random.default_rng(2).normal(size=(5, 3, 9)).astype(np.float32)
    codes, scales, shift = channels_in_4_bits(weight, (1.0, -2.0, 0.5))
    values = codes * scales[:, None, None]
    assert np.abs(codes).max() == 7
    expected = (values - weight).sum(axis=2) @ np.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(shift, expected, rtol=1e-4, atol=1e-5)
    assert channels_in_4_bits(weight, ())[2].tolist() == [0.0] * 5
    nearest = np.clip(np.rint(weight / scales[:, None, None]), -7, 7) * scales[:, None, None]
    assert np.abs((values - weight).sum(axis=2)).mean() < np.abs((nearest - weight).sum(axis=2)).mean()


def test_a_channel_whose_weights_are_next_to_nothing_keeps_its_bias(tmp_path: Path) -> None:
    """As batch norms leave them: in steps of such weights the bias would be beyond INT32."""
    writer = TfliteWriter()
    x, y = writer.tensor("x", (1, 8)), writer.tensor("y", (1, 4))
    weights = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    weights[1] *= 1e-12
    w = writer.constant("w", weights)
    b = writer.constant("b", np.array([0.5, -2.0, 0.0, 1.0], np.float32))
    writer.operator("FULLY_CONNECTED", [x, w, b], [y], "FullyConnectedOptions")
    model = writer.save(tmp_path / "float.tflite", [x], [y])
    by_library = quantized(model, TfliteFormat(PRECISIONS["int8"], weight_bits=4), {"x": (-1, 1), "y": (-12, 12)})
    data = with_rounded_weights(
        litert.schema(), flatbuffers, (model.read_bytes(), by_library), lambda _, weight: channels_in_4_bits(weight, ())
    )
    (tmp_path / "int8.tflite").write_bytes(data)
    with litert.load(tmp_path / "int8.tflite", num_threads=1) as runner:
        values = runner.infer({"x": np.full((1, 8), 0.5, np.float32)})["y"]
    assert values[0, 1] == pytest.approx(-2.0, abs=0.1)
