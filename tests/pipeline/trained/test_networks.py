"""A plan whose network came quantized: nothing is calibrated, INT8 is the file, and the reference is told."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx.numpy_helper import to_array

from engines.backends import onnxruntime, tensorrt
from pipeline.errors import ConfigError, ModelError
from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.results import Results
from pipeline.stages.support import answer_from
from pipeline.store import Store
from tests.made import QUICK_PROTOCOL
from tests.pipeline.bundles import packed, unpacked
from tests.quantized_files import SYMMETRIC, drawn, float_network, quantized_by_onnxruntime

if TYPE_CHECKING:
    from tests.conftest import Command

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

PLAN = """
[model]
source = "symmetric.onnx"
[data]
calibration = { path = "data.npz", inputs = { x = "calibration" } }
evaluation = { path = "data.npz", inputs = { x = "evaluation" } }
[variants]
precisions = ["fp32", "int8"]
backends = ["onnxruntime", "reference"]
[lint]
allow = ["range"]
[tolerate]
num_draws = 3
[pack]
backends = ["onnxruntime", "reference"]
[gate]
candidate = "int8@onnxruntime"
budgets = ["agreement >= 0.5"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One network in FP32, quantized in three ways, data, and the plan."""
    path = tmp_path_factory.mktemp("came_quantized")
    network, feed = float_network(), {"x": drawn(32, 2)}
    onnx.save(network, path / "float.onnx")
    quantized_by_onnxruntime(network, path / "symmetric.onnx", feed, extra_options=dict(SYMMETRIC))
    quantized_by_onnxruntime(network, path / "asymmetric.onnx", feed)
    quantized_by_onnxruntime(network, path / "qoperator.onnx", feed, quant_format="QOperator")
    np.savez(path / "data.npz", calibration=drawn(16, 3), evaluation=drawn(66, 4))
    (path / "plan.toml").write_text(PLAN + QUICK_PROTOCOL)
    return path


@pytest.fixture(scope="module")
def made(folder: Path) -> Results:
    return run(read_plan(folder / "plan.toml"), Store(folder / "store"), "validate")


def scales(path: Path) -> Counter[bytes]:
    """Of each weight and tensor of data; biases have none on TensorRT."""
    model = onnx.load(path)
    arrays = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    readers = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    return Counter(
        arrays[node.input[1]].tobytes()
        for node in readers
        if node.input[0] not in arrays or arrays[node.input[0]].dtype != np.int32
    )


def test_int8_is_the_file(made: Results, folder: Path) -> None:
    models = {variant.name: model.path for variant, model in made.models.items()}
    assert made.ranges is None, "nothing was calibrated"
    as_it_came = scales(folder / "symmetric.onnx")
    assert scales(models["int8@onnxruntime"]) == as_it_came, "byte for byte"
    assert scales(models["int8@reference"]) == as_it_came, "which is placed as for TensorRT"
    x = {"x": drawn(33, 9)}
    with (
        onnxruntime.load(folder / "symmetric.onnx", num_threads=1) as came,
        onnxruntime.load(models["int8@onnxruntime"], num_threads=1) as built,
    ):
        np.testing.assert_array_equal(came.infer(x)["y"], built.infer(x)["y"])
    assert {variant.name: verdict.read()["passed"] for variant, verdict in made.verdicts.items()} == dict.fromkeys(
        ("fp32@onnxruntime", "int8@onnxruntime", "fp32@reference", "int8@reference"), True
    )


def test_support_asks_the_file_itself(folder: Path, command: Command) -> None:
    plan = folder / "asked.toml"
    lists = '[support]\ngeneration = "10.3"\n'
    text = PLAN.replace('["onnxruntime", "reference"]', '["tensorrt", "onnxruntime"]', 1)
    plan.write_text(text.replace('backends = ["onnxruntime", "reference"]', 'backends = ["onnxruntime"]') + lists)
    if not tensorrt.why_not_ask():
        pytest.skip("TensorRT and a GPU are here, whose parser has the last word")
    asked = run(read_plan(plan), Store(folder / "store"), "support").support
    for name in ("tensorrt", "onnxruntime"):
        assert "QuantizeLinear" in {node.operator for node in answer_from(asked[name]).nodes}, name
    told = command("support", str(plan), "--store", str(folder / "store"))
    assert told.status == 0, told.err
    assert "NVIDIA's list of the operators of TensorRT 10.3: " in told.out
    alone = folder / "float_alone.toml"
    alone.write_text(plan.read_text().replace('["fp32", "int8"]', '["fp32"]'))
    asked = run(read_plan(alone), Store(folder / "store"), "support").support
    assert "QuantizeLinear" not in {node.operator for node in answer_from(asked["tensorrt"]).nodes}, "FP32 is built"


def test_what_it_is_compared_with_is_said(made: Results) -> None:
    assert made.notes[0] == (
        "The network came quantized (symmetric.onnx): INT8 is that file, and nothing was calibrated for it. What is "
        "called FP32 is the file without its rounding, weights and bounds as they are in the file: the FP32 network "
        "that it was made of was not compared, and what rounding its weights and bounding its data cost is not seen; "
        "name it as [model] float_source."
    )
    assert made.source_verdict is not None
    assert made.source_verdict.read()["comparison"]["y"]["max_abs"] == 0.0, "the export against the file itself"
    assert "QuantizeLinear" not in {node.op_type for node in onnx.load(made.fp32.path).graph.node}


def test_the_fp32_network_where_the_user_has_it(folder: Path, command: Command) -> None:
    plan = folder / "with_float.toml"
    text = (PLAN + QUICK_PROTOCOL).replace('"symmetric.onnx"', '"qoperator.onnx"\nfloat_source = "float.onnx"')
    plan.write_text(text.replace('["onnxruntime", "reference"]', '["onnxruntime"]', 1))
    results = run(read_plan(plan), Store(folder / "store"), "validate")
    assert results.notes[0] == (
        "The network came quantized (qoperator.onnx): INT8 is that file, and nothing was calibrated for it. FP32, with "
        "which it is compared, is [model] float_source (float.onnx)."
    )
    x = {"x": drawn(33, 9)}
    with (
        onnxruntime.load(folder / "float.onnx", num_threads=1) as came,
        onnxruntime.load(results.fp32.path, num_threads=1) as built,
    ):
        expected, answered = (np.asarray(each.infer(x)["y"], np.float32) for each in (came, built))
        np.testing.assert_allclose(answered, expected, rtol=1e-4, atol=1e-4)
    gated = command("gate", str(plan), "--store", str(folder / "store"))
    assert gated.status == 0, gated.err
    assert results.notes[0] in json.loads((folder / "trtforge-gate-with_float/gate.json").read_text())["notes"]


@pytest.mark.usefixtures("made")
def test_a_bundle_needs_no_ranges(folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = unpacked(packed(command, folder / "plan.toml", store=str(folder / "store")))
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["ranges"] == ""
    assert sorted(manifest["models"]) == ["fp32", "int8.onnxruntime", "int8.tensorrt"]
    monkeypatch.chdir(bundle)
    judged = command("validate", "plan.toml")
    assert judged.status == 0, judged.err
    native = command("validate", "plan.toml", "--set", 'build.int8="native"', "--set", 'variants.backends=["tensorrt"]')
    assert native.status in (2, 3), native.err


REFUSED = {
    "dynamic": ('["fp32", "int8"]\nbackends = ["onnxruntime", "reference"]', '["dynamic"]', "",
        "[variants] precisions: dynamic is made of FP32 weights, and symmetric.onnx came quantized; take it out, or "
        "give the FP32 network as [model] source"),
    "tuned": ('["fp32", "int8"]', '["int8"]', "[tune]\n",
        "[variants] networks: 'tuned' is made of FP32 weights, and symmetric.onnx came quantized; take it out, and its "
        "table, or give the FP32 network as [model] source"),
    "an option of quantize": ('"range"', '"range"', '[quantize]\nexclude = ["Add"]\n',
        "[quantize] exclude: symmetric.onnx came quantized, so that it has no effect: INT8 is the file as it is; leave "
        "it out, or give the FP32 model"),
    "equalize": ('"range"', '"range"', "[export]\nequalize = true\n",
        "[export] equalize: "),
    "quantized float_source": ('"symmetric.onnx"', '"symmetric.onnx"\nfloat_source = "asymmetric.onnx"', "",
        "asymmetric.onnx: [model] float_source came quantized itself; name the FP32 network"),
    "idle float_source": ('"symmetric.onnx"', '"float.onnx"\nfloat_source = "float.onnx"', "",
        "[model] float_source: float.onnx did not come quantized, so that it has no effect; leave it out"),
    "idle coarsening": ('"symmetric.onnx"', '"float.onnx"', "[quantize]\ncoarsen_to_symmetric = true\n",
        "[quantize] coarsen_to_symmetric: float.onnx did not come quantized, so that it has no effect; leave it out"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "table", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_meaning(folder: Path, old: str, new: str, table: str, sentence: str) -> None:
    assert old in PLAN
    plan = folder / "refused.toml"
    plan.write_text(PLAN.replace(old, new) + table)
    with pytest.raises(ConfigError) as caught:
        run(read_plan(plan), Store(folder / "store"), "validate")
    assert sentence in str(caught.value)


CALIBRATION = """calibration = { path = "data.npz", inputs = { x = "calibration" } }\n"""


def test_a_plan_without_calibration_samples(folder: Path, command: Command) -> None:
    """Report and bundle have none either; the evaluation samples are linted by themselves."""
    plan = folder / "uncalibrated.toml"
    assert CALIBRATION in PLAN
    plan.write_text(PLAN.replace(CALIBRATION, "").replace('"reference"', '"onnxruntime"') + QUICK_PROTOCOL)
    ran = command("run", str(plan), "--store", str(folder / "store"), "--set", "report.html=false")
    assert ran.status == 0, ran.err
    report = json.loads((folder / "trtforge-report-uncalibrated/report.json").read_text())
    assert report["data"]["calibration"] is None
    assert report["data"]["evaluation"]["num_samples"] == 66
    bundle = unpacked(packed(command, plan, store=str(folder / "store")))
    assert json.loads((bundle / "manifest.json").read_text())["calibration"] is None


@pytest.mark.parametrize(
    ("old", "new"),
    [('"symmetric.onnx"', '"float.onnx"'), ('["fp32", "int8"]', '["fp16", "int8"]')],
    ids=["FP32", "FP16"],
)
def test_what_has_to_be_calibrated_needs_samples(folder: Path, old: str, new: str) -> None:
    plan = folder / "uncalibrated.toml"
    plan.write_text(PLAN.replace(CALIBRATION, "").replace(old, new))
    with pytest.raises(ConfigError) as caught:
        run(read_plan(plan), Store(folder / "store"), "validate")
    assert str(caught.value).endswith(
        "uncalibrated.toml: [data] names no calibration samples, and only INT8 of a network that came quantized needs "
        'none; add calibration = { path = "..." }, samples like those that it will see'
    )


@pytest.mark.parametrize("source", ["symmetric.onnx", "qoperator.onnx"])
def test_a_layer_is_searched_for_where_each_rounding_stands_by_itself(folder: Path, source: str) -> None:
    plan = folder / "strict.toml"
    text = PLAN.replace('"symmetric.onnx"', f'"{source}"').replace('["onnxruntime", "reference"]', '["onnxruntime"]', 1)
    plan.write_text(text + "[validate.int8]\nmin_cosine = 1.0\n")
    verdicts = run(read_plan(plan), Store(folder / "store"), "validate").verdicts
    (failures,) = (v.read()["failures"] for variant, v in verdicts.items() if variant.precision.is_integer)
    searched = [failure for failure in failures if "layer" in failure]
    assert len(searched) == (source == "symmetric.onnx")


def test_there_is_nothing_to_calibrate(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(read_plan(folder / "plan.toml"), Store(folder / "store"), "calibrate")
    assert str(caught.value).endswith(
        "there is nothing to calibrate: symmetric.onnx came quantized, and its scales stay; `trtforge run` builds it"
    )


def test_other_tensors_than_the_float_networks(folder: Path) -> None:
    other = onnx.load(folder / "float.onnx")
    other.graph.input[0].name = "picture"
    other.graph.node[0].input[0] = "picture"
    onnx.save(other, folder / "other.onnx")
    plan = folder / "other.toml"
    plan.write_text(PLAN.replace('"symmetric.onnx"', '"symmetric.onnx"\nfloat_source = "other.onnx"'))
    with pytest.raises(ConfigError) as caught:
        run(read_plan(plan), Store(folder / "store"), "validate")
    assert str(caught.value).endswith(
        "[model] float_source has the inputs picture, those of the quantized network are x; name the network that it "
        "was made of"
    )


def test_asymmetric_tensors_on_tensorrt(folder: Path, command: Command) -> None:
    """Refused before anything was run; coarsened where the plan says so, and by the verb."""
    plan = folder / "asymmetric.toml"
    plan.write_text(PLAN.replace('"symmetric.onnx"', '"asymmetric.onnx"') + QUICK_PROTOCOL)
    store = Store(folder / "store")
    with pytest.raises(ModelError) as caught:
        run(read_plan(plan), store, "validate")
    assert str(caught.value).startswith("asymmetric.onnx: 'x' is INT8 with zero point ")
    plan.write_text(plan.read_text() + "[quantize]\ncoarsen_to_symmetric = true\n")
    results = run(read_plan(plan), store, "validate")
    (coarse,) = (model for variant, model in results.models.items() if variant.name == "int8@reference")
    assert coarse.notes()[-1].split(" ")[1:5] == ["asymmetric", "tensors", "have", "coarser,"]
    out = folder / "placed.onnx"
    refused = command("quantize", str(folder / "asymmetric.onnx"), "-o", str(out))
    assert (refused.status, out.exists()) == (4, False)
    written = command("quantize", str(folder / "asymmetric.onnx"), "--coarsen-to-symmetric", "-o", str(out))
    assert written.status == 0, written.err
    assert scales(out) == scales(coarse.path)
    idle = command("quantize", str(folder / "asymmetric.onnx"), "--ranges", "ranges", "-o", str(folder / "idle.onnx"))
    assert (idle.status, idle.err.count("\n")) == (2, 1)
    assert "--ranges: has no effect for" in idle.err


def test_fp16_is_of_the_float_network(folder: Path) -> None:
    """And then ranges are found, for what leaves FP16's range; INT8 has its own scales all the same."""
    plan = folder / "fp16.toml"
    plan.write_text(
        PLAN.replace('["fp32", "int8"]', '["fp16", "int8"]').replace('["onnxruntime", "reference"]', '["reference"]', 1)
        + QUICK_PROTOCOL
    )
    results = run(read_plan(plan), Store(folder / "store"), "validate")
    assert results.ranges is not None
    assert {variant.name: verdict.read()["passed"] for variant, verdict in results.verdicts.items()} == {
        "fp16@reference": True,
        "int8@reference": True,
    }
