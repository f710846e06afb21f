"""A `.tflite` file as a source: told by its content, converted with what it computes, and refused with one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines.backends import litert, onnxruntime
from engines.litert.quantizer import TfliteFormat, quantized
from engines.precision import DYNAMIC
from pipeline.errors import ConfigError, EngineError, ModelError, StageError
from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.results import Results
from pipeline.sources.contract import source_from_path
from pipeline.sources.tflite import READY, TfliteFile
from pipeline.stages.export import Export
from pipeline.store import Store
from tests.made import QUICK_PROTOCOL
from tests.pipeline.bundles import packed, unpacked
from tests.tflite_files import TfliteWriter, save_dense_in_int8, save_linear, save_separable

if TYPE_CHECKING:
    from tests.conftest import Command

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")


@pytest.mark.parametrize("name", ["net.tflite", "net.bin", "net.onnx", "net.h5"])
def test_it_is_told_by_its_content(tmp_path: Path, name: str) -> None:
    assert source_from_path(save_linear(tmp_path / name), "") == TfliteFile(tmp_path / name)


def test_another_content_under_its_ending(tmp_path: Path) -> None:
    (tmp_path / "net.tflite").write_bytes(b"PK\x03\x04 an archive")
    with pytest.raises(
        ConfigError, match=r"net\.tflite: is no \.tflite file, bytes 4 to 8 are b' an ', b'TFL3' is exp"
    ):
        source_from_path(tmp_path / "net.tflite", "")


def test_what_cannot_be_read_or_converted(tmp_path: Path) -> None:
    whole = save_linear(tmp_path / "net.tflite").read_bytes()
    (tmp_path / "cut.tflite").write_bytes(whole[:200])
    with pytest.raises(EngineError, match=r"cut\.tflite: is not a whole \.tflite file"):
        Export()(tmp_path, TfliteFile(tmp_path / "cut.tflite"))
    writer = TfliteWriter()
    x, y = writer.tensor("x", (1, 3)), writer.tensor("y", (1, 3))
    writer.operator("FlexErf", [x], [y])
    with pytest.raises(StageError, match=r"custom\.tflite: FlexErf is no operator of TensorFlow Lite's own, which"):
        Export()(tmp_path, TfliteFile(writer.save(tmp_path / "custom.tflite", [x], [y])))


def test_weights_that_are_stored_sparsely_are_refused_in_a_sentence(tmp_path: Path) -> None:
    writer = TfliteWriter()
    x, y = writer.tensor("x", (1, 2)), writer.tensor("y", (1, 2))
    dense = []
    for name in ("first", "second"):
        sparse = writer.constant(f"{name}_sparse", np.eye(2, dtype=np.float32))
        dense.append(writer.tensor(name, (2, 2)))
        writer.operator("DENSIFY", [sparse], [dense[-1]], "DensifyOptions")
    hidden = writer.tensor("hidden", (1, 2))
    writer.operator("FULLY_CONNECTED", [x, dense[0]], [hidden], "FullyConnectedOptions")
    writer.operator("FULLY_CONNECTED", [hidden, dense[1]], [y], "FullyConnectedOptions")
    words = (
        r"sparse\.tflite: DENSIFY \(tensor 'first' and 1 more\): its weights are stored sparsely, which tf2onnx does"
    )
    with pytest.raises(StageError, match=words):
        Export()(tmp_path, TfliteFile(writer.save(tmp_path / "sparse.tflite", [x], [y])))


def test_a_spectrum_of_complex_numbers_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """As in networks that hear birds: magnitudes are taken, but not right behind the transform."""
    writer = TfliteWriter()
    x, length = writer.tensor("x", (1, 1, 8)), writer.constant("length", np.array([1, 8], np.int32))
    spectrum = writer.tensor("spectrum", (1, 1, 5), "COMPLEX64")
    turned, y = writer.tensor("turned", (1, 5), "COMPLEX64"), writer.tensor("y", (1, 5))
    writer.operator("RFFT2D", [x, length], [spectrum], "Rfft2dOptions")
    writer.operator("SQUEEZE", [spectrum], [turned], "SqueezeOptions")
    writer.operator("COMPLEX_ABS", [turned], [y])
    words = r"birds\.tflite: RFFT2D \(tensor 'spectrum'\) is read by SQUEEZE, and ONNX has no complex numbers.* begins"
    with pytest.raises(StageError, match=words):
        Export()(tmp_path, TfliteFile(writer.save(tmp_path / "birds.tflite", [x], [y])))


PLAN = """
[model]
source = "net.bin"
[data]
calibration = { path = "data.npz", inputs = { picture = "calibration" } }
evaluation = { path = "data.npz", inputs = { picture = "evaluation" } }
[variants]
precisions = ["fp32", "int8"]
backends = ["litert", "onnxruntime"]
[lint]
allow = ["range"]
[tolerate]
num_draws = 3
[pack]
backends = ["litert"]
"""


def save_published(path: Path) -> Path:
    """As TensorFlow 2.4 wrote them: no signature, an open batch, a dense layer that flattens its data."""
    random = np.random.default_rng(0)
    writer = TfliteWriter()
    x, flat = writer.tensor("serving_default_picture:0", (-1, 4, 6)), writer.tensor("a/flat", (-1, 8))
    y = writer.tensor("scores:0", (-1, 3))
    for data, made, size, num_inputs in ((x, flat, 8, 24), (flat, y, 3, 8)):
        w = writer.constant(f"{made}_w", random.normal(size=(size, num_inputs)).astype(np.float32))
        b = writer.constant(f"{made}_b", random.normal(size=size).astype(np.float32))
        writer.operator("FULLY_CONNECTED", [data, w, b], [made], "FullyConnectedOptions")
    return writer.save(path, [x], [y], signature=False)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file, data and the plan."""
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")
    folder = tmp_path_factory.mktemp("published")
    save_published(folder / "net.bin")
    calibration, evaluation = np.random.default_rng(3).normal(size=(2, 66, 4, 6)).astype(np.float32)
    np.savez(folder / "data.npz", calibration=calibration, evaluation=evaluation)
    (folder / "plan.toml").write_text(PLAN + QUICK_PROTOCOL)
    return folder


@pytest.fixture(scope="module")
def made(published: Path) -> Results:
    return run(read_plan(published / "plan.toml"), Store(published / "store"), "validate")


@pytest.mark.slow
def test_a_published_file_is_built_and_judged_on_both_runtimes(made: Results) -> None:
    assert made.source_verdict is not None
    assert made.source_verdict.read()["comparison"]["scores"]["max_abs"] < 1e-4, "the biases are all there"
    verdicts = {variant.name: verdict.read()["passed"] for variant, verdict in made.verdicts.items()}
    assert verdicts == dict.fromkeys(("fp32@litert", "int8@litert", "fp32@onnxruntime", "int8@onnxruntime"), True)
    graph = onnx.load(made.fp32.path).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["picture", "scores"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    converted = made.converted
    assert converted is not None
    assert converted.path.read_bytes() == made.fp32.beside(READY).read_bytes(), "nothing was converted on that way"


@pytest.mark.slow
def test_a_bundle_has_the_files_for_litert_which_a_board_judges(
    made: Results, published: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpacked(packed(command, published / "plan.toml", store=str(published / "store")))
    models = json.loads((folder / "manifest.json").read_text())["models"]
    assert models == {
        "fp32": "models/fp32/model.onnx",
        "fp32.tflite": "models/fp32.tflite/model.tflite",
        "int8.tflite": "models/int8.tflite/model.tflite",
    }
    written = {variant.name: model.path.read_bytes() for variant, model in made.models.items()}
    assert (folder / models["int8.tflite"]).read_bytes() == written["int8@litert"]
    monkeypatch.chdir(folder)
    judged = command("validate", "plan.toml")
    assert judged.status == 0, judged.err
    assert [line.split("\t")[0] for line in judged.out.splitlines()] == ["fp32@litert", "int8@litert"]
    assert "int8@onnxruntime" not in judged.out


@pytest.mark.slow
def test_a_quantized_file_keeps_its_scales_and_answers_alike(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    path = save_dense_in_int8(tmp_path / "int8.tflite")
    exported = Export()(tmp_path, source_from_path(path, ""))
    graph = onnx.load(exported.path).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("QuantizeLinear") == 2
    assert onnx.TensorProto.INT8 in {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 2}
    assert {numpy_helper.to_array(t).item() for t in graph.initializer if t.name == "x_scale"} == {0.5}
    assert exported.notes()[0].startswith("export: 'x' (INT8), 'y' (INT8) are integers in the file; the ONNX model ta")
    x = np.array([[1.0, -3.0, 20.0]], np.float32)
    with litert.load(path, num_threads=1) as lite, onnxruntime.load(exported.path, num_threads=1) as ort:
        np.testing.assert_array_equal(lite.infer({"x": x})["y"], ort.infer({"x": x})["y"])


@pytest.mark.slow
def test_weights_that_are_restored_for_floats_stay_integers_in_the_file(tmp_path: Path) -> None:
    """Those of a depthwise convolution in dynamic-range INT8: what it multiplies is the same, without any rounding."""
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")
    path = tmp_path / "dynamic.tflite"
    path.write_bytes(quantized(save_separable(tmp_path / "float.tflite"), TfliteFormat(DYNAMIC), {}))
    exported = Export()(tmp_path, source_from_path(path, ""))
    assert exported.notes()[0].startswith("export: the network came quantized; its scales, weights and arithmetic stay")
    graph = onnx.load(exported.path).graph
    assert [node.op_type for node in graph.node].count("DequantizeLinear") == 2
    assert [tensor.data_type for tensor in graph.initializer].count(onnx.TensorProto.INT8) >= 2
    x = np.random.default_rng(0).uniform(-1, 1, (1, 6, 6, 4)).astype(np.float32)
    with litert.load(path, num_threads=1) as lite, onnxruntime.load(exported.path, num_threads=1) as ort:
        answered, expected = (runner.infer({"x": x})["y"].astype(np.float64) for runner in (lite, ort))
    np.testing.assert_allclose(answered, expected, atol=0.02 * float(np.abs(expected).max()))


def test_a_plan_makes_precisions_of_float_networks_alone(tmp_path: Path) -> None:
    """What the sentence says of a source that finds its scales at each run, here as ONNX, which is quicker."""
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 2] x) => (float[N, 2] y)
    <int8[2, 2] w = {1, 2, 3, 4}>
    { q, s, z = DynamicQuantizeLinear (x)  p = MatMulInteger (q, w, z)  f = Cast <to = 1> (p)  y = Mul (f, s) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", calibration=np.ones((4, 2), np.float32), evaluation=np.ones((4, 2), np.float32))
    plan = (
        PLAN.replace("net.bin", "net.onnx")
        .replace("picture", "x")
        .replace('["litert", "onnxruntime"]', '["onnxruntime"]')
    )
    (tmp_path / "plan.toml").write_text(plan.replace('["fp32", "int8"]', '["fp32"]'))
    with pytest.raises(ModelError) as caught:
        run(read_plan(tmp_path / "plan.toml"), Store(tmp_path / "store"), "build")
    assert str(caught.value).startswith(
        f"{tmp_path / 'net.onnx'}: multiplies integers already, so that there is no INT8 to"
    )
    assert f"`trtforge export {tmp_path / 'net.onnx'} -o model.onnx` and `trtforge build model.onnx --precision" in str(
        caught.value
    )
