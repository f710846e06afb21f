"""The stage `tolerate`: tolerances that follow from the FP32 network, alone and in a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.analysis.rounding import FP16, FP16_WEIGHTS, FP32, TF32
from calibration.data.batches import Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from calibration.precision.placement import PlacementTarget
from pipeline.accuracy.comparison import Tolerance
from pipeline.artifact import OnnxModel, Tolerances
from pipeline.errors import ConfigError
from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.cast import Cast
from pipeline.stages.quantize import Quantize
from pipeline.stages.tolerate import Rounding, Tolerate
from pipeline.stages.validate import Judge, Judged, Validate
from pipeline.store import Store
from tests.pipeline.tolerances import INT8, answers, derived, sound


def bound(tolerances: Tolerances) -> dict[str, float]:
    return dict(tolerances.read()["outputs"]["scores"])


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_a_sound_engine_is_within_and_a_shrunk_one_is_not(
    fp32: OnnxModel, samples: Samples, target: PlacementTarget
) -> None:
    tolerances = derived(fp32, samples, INT8[target])
    model = sound(fp32, samples, target)
    reference = answers(fp32, samples, "reference.json")
    judged = Judged(Judge("", "", Path()), "int8", None, tolerances)
    stage = Validate().with_tolerance("int8", Tolerance())
    found = stage(fp32.path.parent, reference, answers(model, samples, "ours.json"), None, judged).read()
    assert found["failures"] == []
    assert found["derived"]["scores"] == bound(tolerances)
    proto = onnx.load(model.path)
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("_scale") and len(tensor.dims) == 0:
            halved = onnx.numpy_helper.to_array(tensor) * np.float32(0.25)
            tensor.CopyFrom(onnx.numpy_helper.from_array(halved, tensor.name))
    onnx.save(proto, fp32.path.with_name("shrunk.onnx"))
    wrong = answers(OnnxModel(fp32.path.with_name("shrunk.onnx")), samples, "shrunk.json")
    failures = stage(fp32.path.parent, reference, wrong, None, judged).read()["failures"]
    assert any(
        failure.startswith("output 'scores' has an SQNR of ") and "dB that was derived: correct int8 engines" in failure
        for failure in failures
    ), failures


def test_fp16_is_within_and_other_inputs_are_not(fp32: OnnxModel, samples: Samples) -> None:
    tolerances = derived(fp32, samples, Rounding("fp16", "none"))
    folder = fp32.path.with_name("half")
    folder.mkdir()
    model = Cast()(folder, fp32, Calibrate(method="minmax", watch="all")(folder, fp32, samples))
    reference = answers(fp32, samples, "reference.json")
    judged = Judged(Judge("", "", Path()), "fp16", None, tolerances)
    stage = Validate().with_tolerance("fp16", Tolerance())
    passed = stage(fp32.path.parent, reference, answers(model, samples, "ours.json"), None, judged).read()
    assert passed["failures"] == []
    wrong = answers(model, samples, "scaled.json", scale=1.02)
    failed = stage(fp32.path.parent, reference, wrong, None, judged).read()
    assert not failed["passed"]


def test_formats_are_ordered_and_one_seed_gives_one_result(fp32: OnnxModel, samples: Samples) -> None:
    kinds = [Rounding("fp32", "none"), Rounding("fp32", "tensorrt"), Rounding("fp16", "none"), INT8["tensorrt"]]
    found = [bound(derived(fp32, samples, kind)) for kind in kinds]
    assert [one["min_sqnr_db"] for one in found] == sorted((one["min_sqnr_db"] for one in found), reverse=True)
    assert [one["atol"] for one in found] == sorted(one["atol"] for one in found)
    first, again = (derived(fp32, samples, INT8["tensorrt"]).path.read_bytes() for _ in range(2))
    assert first == again
    assert derived(fp32, samples, INT8["tensorrt"], seed=1).path.read_bytes() != first


def test_of_tflite_files_formats_are_ordered_too(fp32: OnnxModel, samples: Samples) -> None:
    kinds = [Rounding(name, "tflite", method="minmax") for name in ("fp16", "int16x8", "int8")]
    found = [bound(derived(fp32, samples, kind))["mean_db"] for kind in kinds]
    assert found == sorted(found, reverse=True)
    coarse = Rounding("int8", "tflite", method="minmax", weight_bits=4, one_scale=("Conv", "MatMul", "Gemm"))
    assert bound(derived(fp32, samples, coarse))["mean_db"] < found[-1] - 3
    assert kinds[0].form() == FP16_WEIGHTS


@pytest.mark.parametrize("target", ["onnxruntime", "tflite"])
def test_dynamic_range_is_within_and_a_wrong_weight_is_not(fp32: OnnxModel, samples: Samples, target: Any) -> None:
    tolerances = derived(fp32, samples, Rounding("dynamic", target, arithmetic="u8u8"))
    assert (tolerances.read()["target"], tolerances.read()["amaxes"]) == (target, {})
    folder = fp32.path.with_name("dynamic")
    folder.mkdir()
    model = Quantize(precision="dynamic", target="onnxruntime", arithmetic="u8u8")(folder, fp32)
    reference = answers(fp32, samples, "reference.json")
    judged = Judged(Judge("", "", Path()), "dynamic", None, tolerances)
    stage = Validate().with_tolerance("dynamic", Tolerance())
    passed = stage(fp32.path.parent, reference, answers(model, samples, "ours.json"), None, judged).read()
    assert passed["failures"] == []
    wrong = stage(fp32.path.parent, reference, answers(model, samples, "scaled.json", 1.3), None, judged).read()
    assert any("dB that was derived: correct dynamic engines" in failure for failure in wrong["failures"])


def test_what_is_derived_knows_nothing_of_the_calibration(fp32: OnnxModel, samples: Samples) -> None:
    """It is the samples' own ranges: on samples that are twice as large they are twice as wide."""
    amaxes = derived(fp32, samples, INT8["tensorrt"]).read()["amaxes"]
    with np.load(fp32.path.with_name("many.npz")) as stored:
        np.savez(fp32.path.with_name("double.npz"), image=stored["image"] * np.float32(2))
    double = open_samples(DataSource("double.npz"), samples.specs, Preprocess())
    assert derived(fp32, double, INT8["tensorrt"]).read()["amaxes"]["image"] == pytest.approx(2 * amaxes["image"])


def test_any_method_is_the_loosest_of_them(fp32: OnnxModel, samples: Samples) -> None:
    one = [
        bound(derived(fp32, samples, Rounding("int8", "tensorrt", method=method), num_draws=64))["min_sqnr_db"]
        for method in ("entropy", "minmax", "percentile", "mse")
    ]  # fmt: skip
    tolerances = derived(fp32, samples, Rounding("int8", "tensorrt"), num_draws=64)
    assert bound(tolerances)["min_sqnr_db"] == pytest.approx(min(one), abs=3)
    assert tolerances.read()["amaxes"] == {}


def test_samples_are_spread_and_counted(fp32: OnnxModel, samples: Samples) -> None:
    record = derived(fp32, samples, INT8["tensorrt"]).read()
    assert (record["num_given"], record["num_samples"]) == (192, len(record["indices"]))
    assert record["indices"] == [step * 192 // record["num_samples"] for step in range(record["num_samples"])]
    few = derived(fp32, samples, INT8["tensorrt"], num_samples=3).read()
    assert few["indices"] == [0, 64, 128]
    assert derived(fp32, samples, INT8["tensorrt"], num_draws=3).read()["num_draws"] == 3


def test_a_fixed_batch(fp32: OnnxModel, samples: Samples) -> None:
    proto = onnx.load(fp32.path)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 5
    onnx.save(proto, fp32.path.with_name("fixed.onnx"))
    fixed = OnnxModel(fp32.path.with_name("fixed.onnx"))
    own = open_samples(DataSource("many.npz"), input_specs_from_onnx(fixed.path), Preprocess())
    found = bound(derived(fixed, own, INT8["tensorrt"]))
    assert found["mean_db"] == pytest.approx(bound(derived(fp32, samples, INT8["tensorrt"]))["mean_db"], abs=0.5)


def test_the_formats_of_what_is_not_int8() -> None:
    kinds = (Rounding("fp32", "none"), Rounding("fp32", "tensorrt"), Rounding("fp16", "none"))
    assert [kind.form() for kind in kinds] == [FP32, TF32, FP16]
    assert [INT8[target].form() for target in INT8] == [FP16, FP32]


WHOLE = '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 4, 8, 8] image) => (int64[N, 1, 8, 8] best, float[N, 4, 8, 8] zero) { best = ArgMax <axis = 1> (image) zero = Sub (image, image) }'  # noqa: E501


def test_outputs_that_are_no_numbers_or_always_zero(tiny: Path, samples: Samples) -> None:
    onnx.save(onnx.parser.parse_model(WHOLE), tiny / "whole.onnx")
    outputs = derived(OnnxModel(tiny / "whole.onnx"), samples, Rounding("fp16", "none")).read()["outputs"]
    assert outputs == {"zero": None}


@pytest.fixture
def wide(plan: Path, samples: Samples) -> Path:
    """The plan, judged on 192 samples and calibrated on 96 others."""
    with np.load(plan.with_name("many.npz")) as stored:
        images = stored["image"]
    other = np.random.default_rng(10).normal(size=(96, 4, 8, 8)).astype(np.float32)
    np.savez(plan.with_name("evaluation.npz"), image=images, y=np.arange(len(images)) % 3)
    np.savez(plan.with_name("calibration.npz"), image=other, y=np.arange(96) % 3)
    text = plan.read_text().replace('{ path = "data.npz", limit = 12 }', '"calibration.npz"')
    plan.write_text(text.replace('"data.npz", labels', '"evaluation.npz", labels'))
    assert samples.num_samples == len(images)
    return plan


def test_a_plan_derives_once_for_each_kind_and_holds_engines_to_it(wide: Path) -> None:
    store = Store(wide.parent / "store")
    made = run(read_plan(wide), store, "tolerate")
    assert [variant.name for variant in made.tolerances] == ["fp32@onnxruntime", "int8@onnxruntime"]
    assert made.engines == {}
    again = Store(wide.parent / "store")
    made = run(read_plan(wide), again, "validate")
    assert [entry.served for entry in again.account if entry.stage == "tolerate"] == [True]
    verdicts = {variant.name: verdict.read() for variant, verdict in made.verdicts.items()}
    assert all(verdict["passed"] for verdict in verdicts.values()), verdicts
    assert verdicts["int8@onnxruntime"]["derived"]["scores"]["atol"] > 0
    assert verdicts["fp32@onnxruntime"]["derived"] is None  # It is the reference.


def test_explicit_numbers_replace_derived_ones(wide: Path) -> None:
    store = Store(wide.parent / "store")
    table = "\n[tolerate]\nnum_deviations = 1.0\n[validate.int8]\n"

    def failures(text: str, deviations: float) -> list[str]:
        wide.with_name("own.toml").write_text(wide.read_text() + table.replace("1.0", str(deviations)) + text)
        made = run(read_plan(wide.with_name("own.toml")), store, "validate")
        return [failure for verdict in made.verdicts.values() for failure in verdict.read()["failures"]]

    assert failures("", 4.0) == []
    (said, _) = failures("min_sqnr_db = 200.0\n", 4.0)
    assert said.startswith("output 'scores' has an SQNR of ")
    assert "below min_sqnr_db 200; at [" in said
    (said, _) = failures("atol = 1e-9\n", 4.0)
    assert "but atol 1e-09 and rtol 0 are allowed" in said
    assert failures("derived = false\n", 4.0) == []


def test_a_calibration_on_shrunk_data_is_caught(wide: Path) -> None:
    with np.load(wide.with_name("calibration.npz")) as stored:
        np.savez(wide.with_name("dark.npz"), image=stored["image"] * np.float32(0.5), y=stored["y"])
    text = wide.read_text().replace('"calibration.npz"', '"dark.npz"')
    wide.write_text(text + '\n[lint]\nallow = ["range", "overlap"]\n')
    made = run(read_plan(wide), Store(wide.parent / "store"), "validate")
    (wrong,) = (verdict.read()["failures"] for v, verdict in made.verdicts.items() if v.precision.is_integer)
    assert any(failure.startswith("ranges are 0.5") for failure in wrong), wrong


def test_each_option_is_bounded() -> None:
    wrong: Any
    for wrong in ({"num_samples": -1}, {"num_draws": 1}, {"num_deviations": 0.0}, {"seed": -1}, {"num_threads": -1}):
        with pytest.raises(ConfigError, match="but must be at least"):
            Tolerate(**wrong)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tolerances_hold_by_default(precision: str) -> None:
    assert Validate().tolerance(precision).derived


def test_tolerances_of_an_earlier_version_are_refused(fp32: OnnxModel, samples: Samples) -> None:
    tolerances = derived(fp32, samples, Rounding("fp16", "none"))
    record = tolerances.read()
    del record["indices"]
    tolerances.path.write_text(json.dumps(record))
    judged = Judged(Judge("", "", Path()), "fp16", None, tolerances)
    with pytest.raises(ConfigError, match=r"derived by an earlier version, .* pack the bundle again"):
        judged.derived(Tolerance())
