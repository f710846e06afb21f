"""The stage `ptq`: what it writes into a `.tflite` file by which ranges, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.ranges.ranges_file import ranges_from_folder
from engines.backends import litert
from engines.precision import DYNAMIC, FP16, INT8, INT16X8
from pipeline.artifact import Ranges, TfliteModel
from pipeline.errors import ConfigError, DataError, NothingQuantized
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.ptq import Ptq, bounds_for
from tests.pipeline.stages.networks import Out
from tests.pipeline.stages.tflite_samples import residual, samples_of
from tests.tflite_files import save_separable

pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")


@pytest.fixture
def model(tmp_path: Path) -> TfliteModel:
    return residual(tmp_path)


@pytest.fixture
def model_ranges(model: TfliteModel, tmp_path: Path, out: Out) -> Ranges:
    """By entropy, of data with an outlier, so that they clip."""
    return Calibrate(method="entropy")(out(), model, samples_of(tmp_path, 64, 30.0))


@pytest.mark.parametrize("precision", ["fp16", "dynamic", "int8", "int16x8"])
def test_it_writes_each_of_its_precisions(precision: str, model: TfliteModel, model_ranges: Ranges, out: Out) -> None:
    written = Ptq().writing(precision)(out(), model, model_ranges)
    assert litert.tflite_facts(written.path).precision() == precision
    assert written.notes() == []


def test_no_scale_is_wider_than_the_range(model: TfliteModel, model_ranges: Ranges, out: Out) -> None:
    record = ranges_from_folder(model_ranges.path)
    facts = litert.tflite_facts(Ptq()(out(), model, model_ranges).path)
    scales = {each.name: each.outputs[0].scales for each in facts.operators if each.outputs[0].scales}
    bounds = bounds_for(record, INT8)
    assert {name for name in bounds if name in scales} >= {"first", "active", "second", "added"}
    for name in scales.keys() & bounds.keys():
        low, high = bounds[name]
        assert scales[name][0] == pytest.approx((high - low) / 255, rel=1e-5)


def test_int8_clips_and_int16_holds_all_that_was_seen(model_ranges: Ranges) -> None:
    record = ranges_from_folder(model_ranges.path)
    wide, narrow = bounds_for(record, INT16X8), bounds_for(record, INT8)
    for name, tensor in record.tensors.items():
        assert wide[name] == pytest.approx((min(tensor.min, 0.0), max(tensor.max, 0.0)))
    assert any(narrow[name][1] < 0.5 * wide[name][1] for name in wide)


def test_which_precisions_read_ranges() -> None:
    assert [Ptq().reads_ranges(each) for each in (FP16, DYNAMIC, INT8, INT16X8)] == [False, False, True, True]


def test_without_ranges(model: TfliteModel, out: Out) -> None:
    with pytest.raises(ConfigError, match="int8: needs ranges; run `trtforge calibrate`, and give --ranges"):
        Ptq()(out(), model)
    assert Ptq(precision="dynamic")(out(), model).path.is_file()


def test_ranges_of_another_file(model_ranges: Ranges, tmp_path: Path, out: Out) -> None:
    with pytest.raises(DataError, match=r"ranges: were found on model .*, not on this one"):
        Ptq()(out(), residual(tmp_path, 2), model_ranges)


@pytest.mark.parametrize(
    ("exclude", "in_float"),
    [(("RELU",), {"active"}), (("s*", "first"), {"first", "second"})],
)
@pytest.mark.parametrize("precision", ["int8", "int16x8"])
def test_operators_that_are_left_in_float(
    precision: str,
    exclude: tuple[str, ...],
    in_float: set[str],
    model: TfliteModel,
    model_ranges: Ranges,
    out: Out,
) -> None:
    stage = Ptq(exclude=exclude).writing(precision)
    facts = litert.tflite_facts(stage(out(), model, model_ranges).path)
    assert {each.name for each in facts.in_floats()} == facts.meant_in_float == in_float
    assert facts.left_in_floats() == ()
    assert facts.precision() == precision


def test_dynamic_range_leaves_them_too_and_fp16_has_none(model: TfliteModel, out: Out) -> None:
    facts = litert.tflite_facts(Ptq(precision="dynamic", exclude=("second",))(out(), model).path)
    assert [each.name for each in facts.with_integer_weights()] == ["first", "y"]
    facts = litert.tflite_facts(Ptq(precision="fp16", exclude=("second",))(out(), model).path)
    assert (len(facts.halves()), facts.meant_in_float) == (3, frozenset())


def test_depthwise_convolutions_are_left_too_or_count_as_quantized(tmp_path: Path, out: Out) -> None:
    """Where one is excluded that wins over keeping its weights alone in INT8."""
    separable = TfliteModel(save_separable(tmp_path / "separable.tflite"))
    facts = litert.tflite_facts(Ptq(precision="dynamic", exclude=("DEPTHWISE_CONV_2D",))(out(), separable).path)
    assert [each.kind for each in facts.operators] == ["DEPTHWISE_CONV_2D", "CONV_2D"]
    assert facts.with_stored_weights() == ()
    assert facts.meant_in_float == {"depth"}
    facts = litert.tflite_facts(Ptq(precision="dynamic", exclude=("CONV_2D",))(out(), separable).path)
    assert ([each.name for each in facts.with_stored_weights()], facts.precision()) == (["depth"], "dynamic")
    with pytest.raises(NothingQuantized, match="exclude leaves none of its 2 convolutions and matrix products"):
        Ptq(precision="dynamic", exclude=("CONV_2D", "DEPTHWISE_CONV_2D"))(out(), separable)
    small = Ptq(precision="dynamic", weight_bits=4)(out(), separable)
    assert small.notes() == ["weights of 4 bits: 1 of 2 convolutions and matrix products; others keep 8 bits"]


def test_what_is_excluded_must_be_there_and_not_for_the_edge_tpu(
    model: TfliteModel, model_ranges: Ranges, out: Out
) -> None:
    with pytest.raises(
        DataError, match=r"exclude: 'secnod' is in the list, but the model has no such operator .*'second'"
    ):
        Ptq(exclude=("secnod",))(out(), model, model_ranges)
    with pytest.raises(NothingQuantized, match="exclude leaves none of its 3 convolutions and matrix products in"):
        Ptq(exclude=("FULLY_CONNECTED",))(out(), model, model_ranges)
    with pytest.raises(ConfigError, match="exclude keeps operators in FP32, which the Edge TPU does not take"):
        Ptq(exclude=("second",), edgetpu=True)(out(), model, model_ranges)


@pytest.mark.parametrize("precision", ["dynamic", "int8", "int16x8"])
def test_weights_of_4_bits(precision: str, model: TfliteModel, model_ranges: Ranges, out: Out) -> None:
    full = Ptq().writing(precision)(out(), model, model_ranges)
    small = Ptq(weight_bits=4).writing(precision)(out(), model, model_ranges)
    facts = litert.tflite_facts(small.path)
    assert facts.precision() == precision
    assert {each.weights.type for each in facts.products if each.weights is not None} == {"INT4"}
    assert small.notes() == ["weights of 4 bits: 3 of 3 convolutions and matrix products; others keep 8 bits"]
    assert small.path.stat().st_size < full.path.stat().st_size
    assert Ptq(weight_bits=4).writing("fp16")(out(), model).notes() == [], "they are of integer weights"
