"""Files as each tool writes them, built as they are: real ones where the tool is here, else of the very form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx.numpy_helper import from_array, to_array

from pipeline.flow import run
from pipeline.machine import child_process
from pipeline.plan import read_plan
from pipeline.results import Results
from pipeline.sources.contract import source_from_path
from pipeline.stages.export import Export
from pipeline.stages.quantize import Quantize
from pipeline.store import Store
from tests.quantized_files import answers, drawn, sqnr_db
from tests.tflite_files import save_dense_in_int8

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

PLAN = """
[model]
source = "SOURCE"
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
"""


def validated(folder: Path, source: str, table: str, data: tuple[npt.NDArray[Any], npt.NDArray[Any]]) -> Results:
    """A plan run up to its verdicts, which all passed."""
    np.savez(folder / "data.npz", calibration=data[0], evaluation=data[1])
    (folder / "plan.toml").write_text(PLAN.replace("SOURCE", source) + table)
    made = run(read_plan(folder / "plan.toml"), Store(folder / "store"), "validate")
    verdicts = {variant.name: verdict.read() for variant, verdict in made.verdicts.items()}
    assert {name: verdict["passed"] for name, verdict in verdicts.items()} == dict.fromkeys(verdicts, True)
    assert len(verdicts) == 4
    return made


def num_quantized(made: Results, variant: str) -> tuple[int, int]:
    """Products with quantized data and weights, and all."""
    (model,) = (model for name, model in made.models.items() if name.name == variant)
    graph = onnx.load(model.path).graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    products = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    quantized = [node for node in products if {makers.get(name) for name in node.input[:2]} == {"DequantizeLinear"}]
    return len(quantized), len(products)


PT2E = """
<ir_version: 10, opset_import: ["" : 18], producer_name: "pytorch">
main_graph (float[batch,3,16,16] x) => (float[batch,5] y)
{
  dequantize_per_channel = DequantizeLinear <axis = 0> (_frozen_param0, val_0, val_1)
  dequantize_per_channel_1 = DequantizeLinear <axis = 0> (_frozen_param1, val_4, val_5)
  quantize_per_tensor = QuantizeLinear <axis = 1> (x, val_7, val_6)
  dequantize_per_tensor = DequantizeLinear <axis = 1> (quantize_per_tensor, val_7, val_6)
  conv2d = Conv <group = 1, pads = [1, 1, 1, 1], auto_pad = "NOTSET", strides = [1, 1], dilations = [1, 1]>
    (dequantize_per_tensor, dequantize_per_channel, c1_bias)
  relu = Relu (conv2d)
  mean = ReduceMean <noop_with_empty_axes = 0, keepdims = 0> (relu, val_14)
  quantize_per_tensor_2 = QuantizeLinear <axis = 1> (mean, val_16, val_9)
  dequantize_per_tensor_2 = DequantizeLinear <axis = 1> (quantize_per_tensor_2, val_16, val_9)
  y = Gemm <beta = 1.0, transB = 1, alpha = 1.0, transA = 0>
    (dequantize_per_tensor_2, dequantize_per_channel_1, l_bias)
}
"""
"""What torch 2.13's exporter (dynamo) made of what torchao 0.18 made by prepare_pt2e and convert_pt2e."""


def pt2e(path: Path, kind: type[np.int8] | type[np.uint8], zero_points: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(PT2E)
    arrays: dict[str, npt.NDArray[Any]] = {
        "_frozen_param0": random.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
        "_frozen_param1": random.integers(-127, 128, (5, 8)).astype(np.int8),
        "val_0": np.full(8, 0.002, np.float32), "val_1": np.zeros(8, np.int8),
        "val_4": np.full(5, 0.003, np.float32), "val_5": np.zeros(5, np.int8),
        "val_7": np.array(0.03, np.float32), "val_6": np.array(zero_points[0], kind),
        "val_16": np.array(0.006, np.float32), "val_9": np.array(zero_points[1], kind),
        "val_14": np.array([2, 3], np.int64),
        "c1_bias": random.normal(size=8).astype(np.float32), "l_bias": random.normal(size=5).astype(np.float32),
    }  # fmt: skip
    model.graph.initializer.extend(from_array(array, name) for name, array in arrays.items())
    onnx.save(model, path)


def test_pytorchs_pt2e_with_a_symmetric_quantizer(tmp_path: Path) -> None:
    pt2e(tmp_path / "net.onnx", np.int8, (0, 0))
    made = validated(tmp_path, "net.onnx", "", (drawn(16, 3), drawn(66, 4)))
    assert num_quantized(made, "int8@reference") == (2, 2)
    (placed,) = (model for variant, model in made.models.items() if variant.name == "int8@reference")
    arrays = {tensor.name: to_array(tensor) for tensor in onnx.load(placed.path).graph.initializer}
    for name in ("val_0", "val_4", "val_7", "val_16"):
        assert arrays[name].tobytes() == to_array_of(tmp_path / "net.onnx", name).tobytes()
    assert placed.notes() == ["INT8 is the file as it came: nothing was calibrated"]


def to_array_of(path: Path, name: str) -> npt.NDArray[Any]:
    return next(to_array(tensor) for tensor in onnx.load(path).graph.initializer if tensor.name == name)


def test_pytorchs_pt2e_with_the_quantizer_for_x86(tmp_path: Path) -> None:
    """UINT8 with zero point 128 for data of both signs, and 0 behind a Relu."""
    pt2e(tmp_path / "net.onnx", np.uint8, (128, 0))
    table = "[quantize]\ncoarsen_to_symmetric = true\n"
    made = validated(tmp_path, "net.onnx", table, (drawn(16, 3), drawn(66, 4)))
    (placed,) = (model for variant, model in made.models.items() if variant.name == "int8@reference")
    assert placed.notes()[1:] == [
        "1 tensors of UINT8 with zero point 128 are INT8 with zero point 0, as before",
        "1 asymmetric tensors have coarser, symmetric scales (coarsen_to_symmetric): 'mean'",
    ]


MODELOPT = """
<ir_version: 9, opset_import: ["" : 19]> net (float[N,3,16,16] x) => (float[N,5] y)
{
  x_cast_to_fp16 = Cast <to = 10> (x)
  wq = QuantizeLinear <axis = 0> (w1, w1_scale_1, w1_zero_point_1)
  xq = QuantizeLinear (x_cast_to_fp16, x_scale_1, x_zero_point_1)
  wd = DequantizeLinear <axis = 0> (wq, w1_scale_2, w1_zero_point_2)
  xd = DequantizeLinear (xq, x_scale_2, x_zero_point_2)
  c = Conv <pads = [1, 1, 1, 1]> (xd, wd, b1)
  r = Relu (c)
  a = GlobalAveragePool (r)
  f = Flatten (a)
  y_pre_cast = MatMul (f, w4)
  y = Cast <to = 1> (y_pre_cast)
}
"""
"""What NVIDIA ModelOpt 0.47 writes: weights and scales in FP16, those of Q and DQ by themselves, a Cast at each end."""


def test_modelopts_scales_in_fp16(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(MODELOPT)
    arrays: dict[str, npt.NDArray[Any]] = {
        "w1": random.normal(scale=0.3, size=(8, 3, 3, 3)), "b1": random.normal(size=8),
        "w4": random.normal(size=(8, 5)),
    }  # fmt: skip
    for number in (1, 2):
        arrays |= {f"w1_scale_{number}": np.full(8, 0.008), f"x_scale_{number}": np.array(0.03)}
    halves = {name: array.astype(np.float16) for name, array in arrays.items()}
    for number in (1, 2):
        halves |= {f"w1_zero_point_{number}": np.zeros(8, np.int8), f"x_zero_point_{number}": np.array(0, np.int8)}
    model.graph.initializer.extend(from_array(array, name) for name, array in halves.items())
    onnx.save(model, tmp_path / "net.onnx")
    made = validated(tmp_path, "net.onnx", "", (drawn(16, 3), drawn(66, 4)))
    assert num_quantized(made, "int8@reference") == (1, 2)
    assert {t.data_type for t in onnx.load(made.fp32.path).graph.initializer if t.dims} == {onnx.TensorProto.FLOAT}
    assert made.exported.notes()[0].startswith("export: opset 19 is kept: onnx cannot convert it from opset 19 to 17")


@pytest.mark.slow
def test_an_integer_tflite_file(tmp_path: Path) -> None:
    """LiteRT runs the file itself, and its answers are those of the exported one."""
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    save_dense_in_int8(tmp_path / "net.tflite")
    calibration, evaluation = 8 * np.random.default_rng(3).normal(size=(2, 66, 3)).astype(np.float32)
    table = "[quantize]\ncoarsen_to_symmetric = true\n"
    made = validated(tmp_path, "net.tflite", table, (calibration, evaluation))
    assert made.source_verdict is not None
    assert made.source_verdict.read()["comparison"]["y"]["max_abs"] <= 1.0, "a step of its output"
    assert num_quantized(made, "int8@reference") == (1, 1)


@pytest.mark.slow
def test_a_savedmodel_with_fakequant(tmp_path: Path) -> None:
    """As TFMOT's wrappers leave it: of weights by channel, of data with ranges that were learned, here symmetric."""
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    pytest.importorskip("tf2onnx", reason="tf2onnx is not installed")
    x = np.random.default_rng(3).normal(size=(66, 16, 16, 3)).astype(np.float32)
    expected = child_process.call(tmp_path / "save.log", "a SavedModel", save_fakequant, tmp_path / "net", x)
    (tmp_path / "exported").mkdir()
    exported = Export()(tmp_path / "exported", source_from_path(tmp_path / "net", "serving_default"))
    assert exported.notes()[1:] == [
        "export: weights that lie on INT8 steps, as FakeQuant leaves them, are quantized by these: 2"
    ]
    placed = Quantize(target="tensorrt")(tmp_path, exported)
    model = onnx.load(placed.path)
    made = answers(model, x, in_integers=False)
    assert sqnr_db(expected, made) > 50, "but for a value that is rounded the other way here and there"
    makers = {output: node for node in model.graph.node for output in node.output}
    products = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul")]
    assert [makers[node.input[1]].op_type for node in products] == ["DequantizeLinear"] * 2
    arrays = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_allclose(arrays[makers[products[1].input[1]].input[1]], np.arange(1, 6) / 127, rtol=1e-5)
    assert not any(arrays[node.input[2]].any() for node in makers.values() if node.op_type == "QuantizeLinear")


def save_fakequant(path: Path, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Its answers to x; for a process of its own. Ranges of the dense layer's channels: 1, 2, 3, 4, 5."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    quantize, of_channels = (
        tf.quantization.fake_quant_with_min_max_vars,
        (tf.quantization.fake_quant_with_min_max_vars_per_channel),
    )

    class Net(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.kernel = tf.Variable(random.normal(scale=0.3, size=(3, 3, 3, 8)).astype(np.float32))
            self.dense = tf.Variable(
                random.uniform(-1, 1, (8, 5)).astype(np.float32) * np.arange(1, 6, dtype=np.float32)
            )
            self.widest = tf.Variable(np.ones(8, np.float32))
            self.ranges = tf.Variable(np.arange(1, 6, dtype=np.float32))

        def __call__(self, x: Any) -> dict[str, Any]:
            kernel = of_channels(self.kernel, -self.widest, self.widest, narrow_range=True)
            dense = of_channels(self.dense, -self.ranges, self.ranges, narrow_range=True)
            hidden = tf.nn.relu(tf.nn.conv2d(quantize(x, -4.0, 4.0), kernel, 1, "SAME"))
            pooled = tf.reduce_mean(quantize(hidden, -6.0, 6.0), [1, 2])
            return {"y": tf.matmul(quantize(pooled, -2.0, 2.0), dense)}

    net = Net()
    function = tf.function(net.__call__, input_signature=[tf.TensorSpec((None, 16, 16, 3), tf.float32, name="x")])
    tf.saved_model.save(net, str(path), signatures=function)
    return np.asarray(net(x)["y"])


@pytest.mark.parametrize("name", ["fx_qat", "pt2e_qat", "tfmot_qat"])
def test_networks_trained_with_rounding_run_as_the_tools_wrote_them(name: str, tmp_path: Path) -> None:
    """A kernel that adds in another order moves a value to the next step: the export is judged node by node."""
    file = Path(__file__).parents[2] / "data" / "quantized" / f"{name}.onnx"
    with np.load(file.with_suffix(".npz")) as stored:
        validated(tmp_path, str(file), "", (stored["x"], stored["x"]))
