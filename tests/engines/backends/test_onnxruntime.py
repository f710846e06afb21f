"""ONNX Runtime: integer kernels are counted, the simulation has none, its errors and warnings stay inside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.backends import reference
from engines.contract import BuildOptions
from engines.errors import EngineError

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
from engines.backends import onnxruntime as ort

SaveModel = Callable[[str], Path]

INTEGER_CONV = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 1, 4, 4] x) => (float[N, 1, 4, 4] y)
<float sx = {0.1}, uint8 zx = {128}, int8[1, 1, 1, 1] w = {100}, float sw = {0.02}, int8 zw = {0},
 float sy = {0.2}, uint8 zy = {128}>
{
    xq = QuantizeLinear(x, sx, zx)
    xd = DequantizeLinear(xq, sx, zx)
    wd = DequantizeLinear(w, sw, zw)
    c = Conv(xd, wd)
    cq = QuantizeLinear(c, sy, zy)
    y = DequantizeLinear(cq, sy, zy)
}"""


def test_a_convolution_between_quantize_and_dequantize_runs_in_integers(save_model: SaveModel, tmp_path: Path) -> None:
    record = ort.build(save_model(INTEGER_CONV), tmp_path / "engine.onnx", BuildOptions("int8"))
    assert (record.num_quantizable, record.num_int8, record.notes) == (1, 1, ())


INTEGER_OPERATORS = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 1, 4, 4] x) => (float[N, 1, 4, 4] y, int32[N, 1, 4, 4] z)
<float sx = {0.1}, uint8 zx = {128}, int8[1, 1, 1, 1] w = {100}, float sw = {0.02}, int8 zw = {0},
 float sy = {0.2}, uint8 zy = {128}>
{
    xq = QuantizeLinear(x, sx, zx)
    [conv] cq = QLinearConv(xq, sx, zx, w, sw, zw, sy, zy)
    y = DequantizeLinear(cq, sy, zy)
    [integer] z = ConvInteger(xq, w)
}"""


def test_operators_that_take_integers_count(save_model: SaveModel, tmp_path: Path) -> None:
    """As ONNX Runtime's own quantizer writes them (QOperator)."""
    record = ort.build(save_model(INTEGER_OPERATORS), tmp_path / "engine.onnx", BuildOptions("int8"))
    assert (record.num_quantizable, record.num_int8, record.notes) == (2, 2, ())


def test_a_convolution_without_quantized_output_does_not(
    save_quantized_conv: Callable[[int], Path], tmp_path: Path
) -> None:
    record = ort.build(save_quantized_conv(1), tmp_path / "engine.onnx", BuildOptions("int8"))
    assert (record.num_quantizable, record.num_int8) == (1, 0)
    assert record.notes == (
        "0 of 1 quantized convolutions and matrix products run in integer arithmetic, the others in FP32 between "
        "quantize and dequantize.",
    )


def test_it_leaves_nothing_in_the_users_folders(linear: Path, tmp_path: Path) -> None:
    """Its telemetry keeps an id of the machine and a table of events there, and a file with a name that can be guessed.

    In a process whose environment has nothing of CI, where it is off by itself.
    """
    code = f"""
from pathlib import Path
from engines.backends import onnxruntime as ort
from engines.backends import reference
ort.versions()
with ort.load(Path({str(linear)!r}), num_threads=1):
    pass
"""
    folders = {name: tmp_path / name for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR")}
    for folder in folders.values():
        folder.mkdir()
    root = Path(__file__).resolve().parents[3]
    environment = {name: str(folder) for name, folder in folders.items()} | {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-B", "-c", code], env=environment, check=True)
    assert {name: list(folder.iterdir()) for name, folder in folders.items()} == {name: [] for name in folders}


def test_the_engine_is_the_model(linear: Path, tmp_path: Path) -> None:
    ort.build(linear, tmp_path / "engine.onnx", BuildOptions())
    assert (tmp_path / "engine.onnx").read_bytes() == linear.read_bytes()


def test_the_simulation_computes_what_the_onnx_standard_says(save_quantized_conv: Callable[[int], Path]) -> None:
    path = save_quantized_conv(1)
    x = np.random.default_rng(1).standard_normal((2, 16, 8, 8)).astype(np.float32)
    with ort.load_simulation(path, num_threads=1) as runner:
        found = runner.infer({"x": x})["y"]
    with reference.load(path, num_threads=1) as runner:
        wanted = runner.infer({"x": x})["y"]
    np.testing.assert_allclose(found.astype(np.float64), wanted.astype(np.float64), rtol=0, atol=1e-4)


def test_the_simulation_does_not_saturate_and_does_not_round_twice(save_model: SaveModel) -> None:
    # 100 * 0.02 = 2.0, times 0.1 * k, rounded to steps of 0.2: exact for every k.
    path = save_model(INTEGER_CONV)
    x = (np.arange(16, dtype=np.float32) * np.float32(0.1)).reshape(1, 1, 4, 4)
    for load in (ort.load, ort.load_simulation):
        with load(path, num_threads=1) as runner:
            found = runner.infer({"x": x})["y"].astype(np.float64)
        np.testing.assert_allclose(found, x * 2.0, rtol=1e-6)


def test_fp16_models_run_on_the_cpu(save_model: SaveModel) -> None:
    path = save_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => (float[N, 2] y) <float[2] b = {1, 2}>
        { h = Cast<to = 10>(x)  c = Cast<to = 10>(b)  s = Add(h, c)  y = Cast<to = 1>(s) }"""
    )
    ort.build(path, path.with_suffix(".engine"), BuildOptions("fp16"))
    with ort.load(path, num_threads=1) as runner:
        found = runner.infer({"x": np.array([[0.1, 2048]], np.float32)})["y"]
    assert found.tolist() == [[np.float16(0.1) + np.float16(1), 2050]]


def test_a_failure_while_running_is_an_engine_error_and_nothing_else(
    save_model: SaveModel, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N, M] x) => (float[2, 3] y) <int64[2] s = {2, 3}> '
        "{ y = Reshape(x, s) }"
    )
    with (
        ort.load(path, num_threads=1) as runner,
        pytest.raises(EngineError, match=r"model\.onnx: ONNX Runtime failed \(.*[Rr]eshape"),
    ):
        runner.infer({"x": np.zeros((1, 5), np.float32)})
    assert capfd.readouterr().err == ""


def test_warnings_stay_off_the_screen(save_model: SaveModel, tmp_path: Path) -> None:
    # An initializer that nothing uses makes ONNX Runtime warn at its default level.
    path = save_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) <float[1] unused = {1}> '
        "{ y = Relu(x) }"
    )
    program = (
        "import sys; from pathlib import Path; from engines.backends import onnxruntime as o; from "
        "engines.contract import *\n"
        "o.build(Path(sys.argv[1]), Path(sys.argv[2]), BuildOptions())\n"
        "with o.load(Path(sys.argv[2]), num_threads=1) as r: print(r.inputs[0].name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path, tmp_path / "engine"], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("x\n", "")


def test_versions_name_the_cpu() -> None:
    assert {"onnxruntime", "providers", "cpu", "machine", "cpu_flags"} == set(ort.versions())
    assert "CPUExecutionProvider" in ort.versions()["providers"]


@pytest.mark.parametrize("operator", ["EfficientNMS_TRT", "TRT.ROIAlign"])
def test_a_plugin_of_tensorrt_is_named(save_model: SaveModel, operator: str) -> None:
    model = save_model(
        f"""<ir_version: 8, opset_import: ["" : 17, "TRT" : 1]> g (float[3] x) => (float[3] y)
        {{ [first] h = Relu(x)  [last] y = {operator}(h) }}"""
    )
    name = operator.removeprefix("TRT.")
    words = (
        rf"model\.onnx: node 'last': {name} is a TensorRT plugin: nothing but TensorRT runs it; cut the model in front"
    )
    with pytest.raises(EngineError, match=words), ort.load(model, num_threads=1):
        pytest.fail("it runs")
    with pytest.raises(EngineError, match=words), reference.load(model, num_threads=1):
        pytest.fail("it runs")
