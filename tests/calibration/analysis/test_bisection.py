"""A network is broken at one place, and the bisection names that place; sound ones have nothing to name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

from calibration.analysis.bisection import Bisection, Power, Suspect, counterparts
from calibration.arrays import AnyArray
from calibration.graph.watched_outputs import watch_tensors
from calibration.histogram.collect import RunModel
from calibration.precision.dynamic import dynamic_from_onnx
from calibration.precision.fp16 import fp16_from_onnx
from calibration.precision.placement import PlacementOptions
from calibration.precision.qdq import qdq_from_onnx
from calibration.ranges.span import Span

NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 16, 6, 6] x) => (float[N, 4] y) {
    [first] c1 = Conv <pads = [1, 1, 1, 1]> (x, w1)
    r1 = Relu (c1)
    [second] c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2)
    r2 = Relu (c2)
    [third] c3 = Conv <pads = [1, 1, 1, 1]> (r2, w3)
    s = Add (c3, r1)
    pooled = GlobalAveragePool (s)
    flat = Flatten (pooled)
    [last] logits = MatMul (flat, dense)
    y = Softmax (logits)
}"""

SHAPES = {"w1": (16, 16, 3, 3), "w2": (16, 16, 3, 3), "w3": (16, 16, 3, 3), "dense": (16, 4)}


def network() -> onnx.ModelProto:
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(NETWORK)
    for name, shape in SHAPES.items():
        values = (random.standard_normal(shape) * 0.15).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def feeds(num: int = 6) -> list[dict[str, AnyArray]]:
    random = np.random.default_rng(1)
    return [{"x": random.standard_normal((1, 16, 6, 6)).astype(np.float32)} for _ in range(num)]


def runner(model: onnx.ModelProto, names: list[str]) -> RunModel:
    """ONNX Runtime with every node as it is written: onnx's own evaluator lacks Q and DQ of this opset."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(watch_tensors(model, names).SerializeToString(), options)
    outputs = [value.name for value in session.get_outputs()]
    return lambda feed: dict(zip(outputs, session.run(outputs, dict(feed))))


def ranges() -> dict[str, Span]:
    """The ranges of FP32's tensors on the very samples, min-max."""
    seen = Bisection(network(), network())
    run = runner(network(), seen.watched()[0])
    for feed in feeds():
        seen.see(feed, run)
    return seen.spans


def bisected(candidate: onnx.ModelProto) -> Bisection:
    found = Bisection(network(), candidate)
    theirs, ours = found.watched()
    runs = runner(network(), theirs), runner(candidate, ours)
    for feed in feeds():
        found.see(feed, runs[0])
    rounded = found.rounded()
    sound = runner(rounded.model, found.sound())
    for feed in feeds():
        found.add(feed, (*runs, sound), np.random.default_rng(0))
    return found


def quantized(target: Any) -> onnx.ModelProto:
    return qdq_from_onnx(network(), ranges(), PlacementOptions(target=target)).model


def changed(model: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    """The same with a constant multiplied."""
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((array * factor).astype(array.dtype), name))
    return model


def first(found: Bisection) -> Suspect:
    return found.suspects(ranges())[0]


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_in_a_sound_model_nothing_stands_out(target: Any) -> None:
    found = bisected(quantized(target))
    suspects = found.suspects(ranges())
    assert {suspect.tensor for suspect in suspects} >= {"c1", "r1", "c2", "c3", "s", "y"}
    assert [suspect for suspect in suspects if suspect.is_clear()] == []
    assert found.sqnrs_db()["y"] > 20


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("tensor", ["x", "r1", "r2"])
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_a_wrong_scale_is_named_with_what_calibration_says(target: Any, tensor: str, factor: float) -> None:
    suspect = first(bisected(changed(quantized(target), f"{tensor}_scale", factor)))
    assert (suspect.tensor, suspect.operator) == (tensor, "QuantizeLinear and DequantizeLinear")
    assert suspect.is_misfit()
    assert suspect.scale is not None
    assert suspect.scale.amax == ranges()[tensor].amax
    widest = max(-suspect.scale.low, suspect.scale.high)
    assert (widest < 0.6 * suspect.scale.amax) is (factor < 1)


@pytest.mark.parametrize("factor", [0.4, 4.0])
@pytest.mark.parametrize("tensor", ["x", "r1", "r2"])
def test_without_ranges_the_noise_names_it(tensor: str, factor: float) -> None:
    suspect = bisected(changed(quantized("tensorrt"), f"{tensor}_scale", factor)).suspects({})[0]
    assert (suspect.tensor, suspect.is_misfit(), suspect.is_clear()) == (tensor, False, True)
    assert suspect.drop_db > 6
    assert suspect.sqnr_out_db < suspect.sound_db


@pytest.mark.parametrize(("weight", "node"), [("w1", "first"), ("w2", "second"), ("w3", "third"), ("dense", "last")])
def test_a_wrong_weight_is_found_at_the_node_that_reads_it(weight: str, node: str) -> None:
    suspect = first(bisected(changed(quantized("tensorrt"), weight, 1.5)))
    assert suspect.node == node
    assert suspect.is_clear()
    assert suspect.scale is None


def test_dynamic_range() -> None:
    """Nothing stands out in a sound one; a weight that is wrong is found at FP32's node that reads it."""
    sound = dynamic_from_onnx(network(), (), "u8s8").model
    found = bisected(sound)
    assert found.is_dynamic
    assert [suspect for suspect in found.suspects({}) if suspect.is_clear()] == []
    for constant, node, operator in (("w2_scale", "second", "Conv"), ("dense_scale", "last", "MatMul")):
        suspect = bisected(changed(dynamic_from_onnx(network(), (), "u8s8").model, constant, 1.5)).suspects({})[0]
        assert (suspect.node, suspect.operator) == (node, operator)
        assert suspect.is_clear()
        assert suspect.scale is None


def test_fp16() -> None:
    sound = fp16_from_onnx(network(), keep_fp32=())
    assert [suspect for suspect in bisected(sound).suspects({}) if suspect.is_clear()] == []
    suspect = bisected(changed(sound, "w2_fp16", 1.01)).suspects({})[0]
    assert (suspect.node, suspect.tensor) == ("second", "c2")
    assert suspect.sqnr_out_db == pytest.approx(40, abs=1), "one in a hundred"


def test_fp16_that_overflows_is_found_where_it_does() -> None:
    suspect = bisected(changed(fp16_from_onnx(network(), keep_fp32=()), "w2_fp16", 60000.0)).suspects({})[0]
    assert suspect.tensor == "c2"
    assert suspect.sqnr_out_db == -math.inf
    assert suspect.sentence().startswith("node 'second' (Conv), 'c2': SQNR ")
    assert "nothing left of it after it" in suspect.sentence()


def test_the_sentence_has_node_tensor_ratios_and_scale() -> None:
    said = first(bisected(changed(quantized("tensorrt"), "r2_scale", 0.25))).sentence()
    assert said.startswith(
        "node 'r2_DequantizeLinear' (QuantizeLinear and DequantizeLinear), the rounding of 'r2': SQNR "
    )
    assert " dB noisier than correct rounding; its scale " in said
    assert f"calibration found ±{ranges()['r2'].amax:.4g}, which is not its scale" in said


def test_tensors_are_matched_through_q_dq_and_casts() -> None:
    int8 = counterparts(network(), quantized("tensorrt"))
    assert int8["r1"] == int8["r1_quantized"] == int8["r1_dequantized"] == "r1"
    assert "w1_dequantized" not in int8
    half = fp16_from_onnx(network(), keep_fp32=())
    casts = [node for node in half.graph.node if node.op_type == "Cast"]
    assert len(casts) == 2
    found = counterparts(network(), half)
    assert {found[casts[0].input[0]], found[casts[0].output[0]]} == {"x"}
    assert {found[casts[1].input[0]], found[casts[1].output[0]]} == {"y"}


def test_an_output_that_is_quantized_itself() -> None:
    model = quantized("onnxruntime")
    found = counterparts(network(), model)
    assert all(found[value.name] == value.name for value in model.graph.output)
    assert set(bisected(model).sqnrs_db()) == {"y"}


def test_powers_add_up_over_batches() -> None:
    power = Power()
    power.add(np.array([3.0, 4.0]), np.array([3.0, 5.0]), np.array([3.0, 4.5]))
    power.add(np.array([5.0]), np.array([4.0]), np.array([5.0]))
    assert (power.signal, power.noise, power.sound) == (50.0, 2.0, 0.25)
    assert power.gap_db() == pytest.approx(10 * math.log10(8))
    power.add(np.zeros(3), np.zeros(2), np.zeros(3))
    assert power.signal == 50.0, "shapes that differ are not compared"
