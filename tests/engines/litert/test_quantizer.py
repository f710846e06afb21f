"""Precisions written into a `.tflite` file, with ranges that are handed in."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from calibration.arrays import Floats
from engines.backends import litert
from engines.contract import BuildOptions
from engines.errors import Unavailable
from engines.litert.facts import TfliteFacts
from engines.litert.quantizer import TfliteFormat, quantized
from engines.precision import PRECISIONS
from tests.tflite_files import save_residual, save_separable

pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")

RANGES = {
    "x": (-3.0, 3.5), "first": (-9.0, 12.0), "active": (0.0, 12.0), "second": (-40.0, 35.0), "added": (-30.0, 41.0),
    "y": (-99.0, 120.0),
}  # fmt: skip
WITH_RANGES = ("int8", "int16x8")


def written(tmp_path: Path, wanted: TfliteFormat) -> Path:
    """The residual network in that precision."""
    path = tmp_path / "written.tflite"
    model = save_residual(tmp_path / "float.tflite")
    path.write_bytes(quantized(model, wanted, RANGES if wanted.precision.name in WITH_RANGES else {}))
    return path


def activations(facts: TfliteFacts) -> dict[str, tuple[float, int]]:
    """Of each quantized tensor that is computed or fed, its scale and zero point."""
    tensors = [tensor for each in facts.operators for tensor in (*each.inputs, *each.outputs) if tensor is not None]
    return {each.name: (each.scales[0], each.zero_points[0]) for each in tensors if each.scales and not each.constant}


@pytest.mark.parametrize("name", ["fp16", "dynamic", *WITH_RANGES])
def test_every_precision_is_built_as_itself_and_near_fp32(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, TfliteFormat(PRECISIONS[name]))
    record = litert.build(path, tmp_path / "engine.tflite", BuildOptions(name))
    assert record.num_quantizable == 3
    assert record.num_int8 == (0 if name == "fp16" else 3)
    rows = np.random.default_rng(1).uniform(-1, 1, (20, 1, 8)).astype(np.float32)
    with litert.load(tmp_path / "float.tflite", num_threads=1) as full, litert.load(path, num_threads=1) as reduced:
        pairs = [(full.infer({"x": row})["y"], reduced.infer({"x": row})["y"]) for row in rows]
    expected, answered = (np.concatenate(side).astype(np.float64) for side in zip(*pairs))
    assert np.abs(expected - answered).max() < 0.05 * np.abs(expected).max()
    assert (answered != expected).any()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("per_channel", [True, False])
def test_dynamic_keeps_weights_alone_of_depthwise_convolutions(bits: int, per_channel: bool, tmp_path: Path) -> None:
    """For a kernel in FP32: one of XNNPACK that rounds their data at each run there is not."""
    model, path = save_separable(tmp_path / "float.tflite"), tmp_path / "written.tflite"
    path.write_bytes(quantized(model, TfliteFormat(PRECISIONS["dynamic"], per_channel, weight_bits=bits), {}))
    facts = litert.tflite_facts(path)
    assert [each.kind for each in facts.operators] == ["DEQUANTIZE", "DEPTHWISE_CONV_2D", "CONV_2D"]
    assert [each.name for each in facts.with_stored_weights()] == ["depth"]
    assert [each.name for each in facts.with_integer_weights()] == ["y"]
    weights = [weight for weight in map(facts.file_weights, facts.products) if weight is not None]
    assert [weight.type for weight in weights] == ["INT8", f"INT{bits}"]
    assert [len(weight.scales) for weight in weights] == ([4, 8] if per_channel else [1, 1])
    record = litert.build(path, tmp_path / "engine.tflite", BuildOptions("dynamic"))
    assert (record.num_quantizable, record.num_int8, record.num_4_bits) == (2, 1, int(bits == 4))
    assert record.notes[1] == (
        "1 of 2 convolutions and matrix products (DEPTHWISE_CONV_2D) have INT8 weights in the file alone and compute "
        "in FP32: where data is rounded at each run they run in slow kernels."
    )


def test_their_data_is_rounded_nowhere(tmp_path: Path) -> None:
    """What a depthwise convolution makes is what its rounded weights make of the very data."""
    model = save_separable(tmp_path / "float.tflite")
    x = np.random.default_rng(1).uniform(-1, 1, (1, 6, 6, 4)).astype(np.float32)
    made: dict[bool, list[Floats]] = {}
    for rounds in (True, False):
        path = tmp_path / f"{rounds}.tflite"
        path.write_bytes(quantized(model, TfliteFormat(PRECISIONS["dynamic"], rounds_all_data=rounds), {}))
        with litert.load_values(path, num_threads=1) as runner:
            made[rounds] = [runner.infer({"x": x / share})["depth"].astype(np.float64) * share for share in (1, 3)]
    whole, third = made[False]
    np.testing.assert_allclose(whole, third, atol=1e-5)
    assert np.abs(made[True][0] - whole).max() > 1e-3


def test_every_scale_of_int8_is_that_of_the_range(tmp_path: Path) -> None:
    facts = litert.tflite_facts(written(tmp_path, TfliteFormat(PRECISIONS["int8"])))
    for name, (scale, zero_point) in activations(facts).items():
        low, high = RANGES[name.removesuffix("_quantized").removesuffix("_dequant")]
        assert scale == pytest.approx((high - low) / 255, rel=1e-5), name
        assert (-128 - zero_point) * scale == pytest.approx(low, abs=scale), name


def test_int16_is_symmetric(tmp_path: Path) -> None:
    facts = litert.tflite_facts(written(tmp_path, TfliteFormat(PRECISIONS["int16x8"])))
    for name, (scale, zero_point) in activations(facts).items():
        amax = max(map(abs, RANGES[name.removesuffix("_quantized").removesuffix("_dequant")]))
        assert scale == pytest.approx(amax / 32767, rel=1e-4), name
        assert zero_point == 0


@pytest.mark.parametrize("per_channel", [True, False])
def test_scales_of_weights(per_channel: bool, tmp_path: Path) -> None:
    facts = litert.tflite_facts(written(tmp_path, TfliteFormat(PRECISIONS["int8"], per_channel)))
    numbers = [len(each.weights.scales) for each in facts.products if each.weights is not None]
    assert numbers == ([16, 16, 3] if per_channel else [1, 1, 1])


def test_inputs_and_outputs_in_integers(tmp_path: Path) -> None:
    facts = litert.tflite_facts(written(tmp_path, TfliteFormat(PRECISIONS["int8"], integer_io=True)))
    assert [tensor.type for _, tensor in (*facts.inputs, *facts.outputs)] == ["INT8", "INT8"]
    assert facts.in_floats() == ()
    outside = litert.tflite_facts(written(tmp_path, TfliteFormat(PRECISIONS["int8"])))
    assert [tensor.type for _, tensor in (*outside.inputs, *outside.outputs)] == ["FLOAT32", "FLOAT32"]


def test_equal_ranges_give_equal_bytes(tmp_path: Path) -> None:
    wanted = TfliteFormat(PRECISIONS["int8"])
    assert written(tmp_path, wanted).read_bytes() == written(tmp_path, wanted).read_bytes()


def test_without_the_quantizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        Unavailable, match=r"litert: ai-edge-quantizer is not installed, .*pip install 'trtforge\[litert"
    ):
        written(tmp_path, TfliteFormat(PRECISIONS["int8"]))
