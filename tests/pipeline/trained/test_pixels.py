"""A plan with `[export] fold_preprocess`: bytes go in, from the samples to the engines and a bundle of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.numpy_helper import from_array

from calibration.data.preprocess import Preprocess
from engines.backends import onnxruntime
from engines.onnx_model import facts
from pipeline.errors import CheckFailed, ConfigError, DataError
from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.results import Results
from pipeline.store import Store
from pipeline.trained.pixels import preprocess_of
from tests.made import QUICK_PROTOCOL
from tests.pipeline.bundles import packed, unpacked

if TYPE_CHECKING:
    from tests.conftest import Command

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 16, 16] image) => (float[N, 3] scores) <float[8, 3, 3, 3] kernel, float[8, 3] dense>
{
    features = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (image, kernel)
    active = Relu (features)
    pooled = GlobalAveragePool (active)
    flat = Flatten (pooled)
    scores = MatMul (flat, dense)
}
"""
STEPS = 'channels = "bgr", scale = 0.00392156862745098, mean = [0.4, 0.5, 0.6], std = [0.2, 0.25, 0.3], layout = "nchw"'
PLAN = f"""
[model]
source = "net.onnx"
[data]
metric = "top1"
calibration = {{ path = "data.npz", inputs = {{ image = "x_calibration" }} }}
evaluation = {{ path = "data.npz", inputs = {{ image = "x_evaluation" }}, labels = "y" }}
preprocess = {{ {STEPS}, dtype = "float32" }}
[export]
fold_preprocess = true
[variants]
precisions = ["fp32", "fp16", "int8"]
backends = ["onnxruntime"]
[calibrate]
method = "minmax"
[validate.int8]
max_metric_drop = 0.3
[pack]
backends = ["onnxruntime"]
[report]
html = false
{QUICK_PROTOCOL}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for prepared pictures, bytes, and the plan; the labels are the network's own answers."""
    path = tmp_path_factory.mktemp("bytes")
    model, random = onnx.parser.parse_model(NET), np.random.default_rng(21)
    for name, shape in {"kernel": (8, 3, 3, 3), "dense": (8, 3)}.items():
        model.graph.initializer.append(from_array(random.normal(size=shape).astype(np.float32), name))
    onnx.save(model, path / "net.onnx")
    coarse = random.integers(0, 256, (48, 4, 4, 3))
    pictures = np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2).astype(np.uint8)
    (path / "plan.toml").write_text(PLAN)
    prepared = read_plan(path / "plan.toml").data.preprocess(pictures[16:])
    with onnxruntime.load(path / "net.onnx", num_threads=1) as runner:
        labels = runner.infer({"image": prepared})["scores"].argmax(axis=1)
    np.savez(path / "data.npz", x_calibration=pictures[:16], x_evaluation=pictures[16:], y=labels)
    return path


@pytest.fixture(scope="module")
def made(folder: Path) -> Results:
    return run(read_plan(folder / "plan.toml"), Store(folder / "store"), "benchmark")


def largest(array: Any) -> float:
    return float(np.abs(array).max())


def inputs(path: Path) -> list[tuple[str, int, list[int]]]:
    """Name, type and shape without the batch of each input of an ONNX file."""
    found = [(value.name, value.type.tensor_type) for value in onnx.load(path).graph.input]
    return [(name, tensor.elem_type, [dim.dim_value for dim in tensor.shape.dim[1:]]) for name, tensor in found]


def test_samples_models_and_engines_have_bytes_and_answer_as_the_network_did(made: Results) -> None:
    assert inputs(made.fp32.path) == [("image", onnx.TensorProto.UINT8, [16, 16, 3])]
    for samples in (made.calibration, made.evaluation):
        assert samples is not None
        batch = next(iter(samples.batches(4)))["image"]
        assert (batch.dtype.name, batch.shape) == ("uint8", (4, 16, 16, 3))
        assert samples.preprocess == Preprocess(channels="rgb")
    assert made.trained_evaluation is not None
    before = next(iter(made.trained_evaluation.batches(4)))["image"]
    assert before.nbytes == 4 * next(iter(made.evaluation.batches(4)))["image"].nbytes
    assert made.source_verdict is not None
    assert made.source_verdict.read()["metric"] == 1.0, "the labels are what the network says of prepared pictures"
    assert all(verdict.read()["passed"] for verdict in made.verdicts.values())
    for model in made.models.values():
        assert inputs(model.path) == [("image", onnx.TensorProto.UINT8, [16, 16, 3])]
    assert made.timings is not None
    assert any("'image' takes 8-bit pixels: the order of the channels is in the" in note for note in made.fp32.notes())
    assert made.findings is not None
    assert {finding.code for finding in made.findings.read()} <= {"labels", "few"}, "no alarm of a scale or a layout"


def test_fp32_and_fp16_differ_from_the_unfolded_network_by_rounding_alone(folder: Path, made: Results) -> None:
    pictures = np.load(folder / "data.npz")["x_evaluation"]
    with onnxruntime.load(folder / "net.onnx", num_threads=1) as runner:
        expected: Any = runner.infer({"image": read_plan(folder / "plan.toml").data.preprocess(pictures)})["scores"]
    for variant, bound in (("fp32@onnxruntime", 1e-5), ("fp16@onnxruntime", 5e-3)):
        (path,) = (model.path for each, model in made.models.items() if each.name == variant)
        with onnxruntime.load(path, num_threads=1) as runner:
            answered: Any = runner.infer({"image": pictures})["scores"]
        assert largest(answered - expected) < bound * largest(expected)


def test_a_bundle_holds_the_bytes_and_builds_by_itself(command: Command, folder: Path) -> None:
    bundle = packed(command, folder / "plan.toml", store=folder / "store")
    device = unpacked(bundle)
    assert np.load(device / "samples.npz")["image"].dtype == np.uint8
    plan = read_plan(device / "plan.toml")
    assert not plan.export.fold_preprocess
    assert plan.data.preprocess == preprocess_of(plan) == Preprocess()
    there = run(plan, Store(folder / "device-store"), "validate")
    assert there.verdicts
    assert all(verdict.read()["passed"] for verdict in there.verdicts.values())


def test_an_engine_for_tensorrt_is_placed_and_simulated_with_bytes(folder: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    shapes = "model.inputs.image={min=[1,16,16,3],opt=[4,16,16,3],max=[32,16,16,3]}"
    backends = 'variants.backends=["tensorrt_rtx"]'
    done = run(read_plan(folder / "plan.toml", (backends, shapes)), Store(folder / "store"), "validate")
    assert len(done.engines) == 3
    (int8,) = (model.path for variant, model in done.models.items() if variant.name == "int8@tensorrt_rtx")
    assert facts(int8).quantized_names == ("Conv_features",), "the first layer is INT8, bytes or not; the head is small"
    for engine in done.engines.values():
        record = json.loads(engine.beside("record.json").read_text())
        assert [spec["dtype"] for spec in record["inputs"]] == ["uint8"]


def changed(folder: Path, *settings: str) -> Results:
    return run(read_plan(folder / "plan.toml", settings), Store(folder / "store"), "export")


def test_the_export_depends_on_what_is_folded_alone(folder: Path, made: Results) -> None:
    assert changed(folder, "data.preprocess.resize=[16, 16]").fp32.path == made.fp32.path
    assert changed(folder, "data.preprocess.scale=0.0041").fp32.path != made.fp32.path


def test_what_cannot_be_folded_is_refused(folder: Path, tmp_path: Path) -> None:
    stored = dict(np.load(folder / "data.npz"))
    floats = {name: array.astype(np.float32) if name != "y" else array for name, array in stored.items()}
    np.savez(tmp_path / "floats.npz", **floats)
    file = tmp_path / "floats.npz"
    settings = [f'data.{which}.path="{file}"' for which in ("calibration", "evaluation")]
    with pytest.raises(DataError, match=r"input 'image' is stored as float32, and \[export\] fold_preprocess is for"):
        changed(folder, *settings)
    with pytest.raises(ConfigError, match="litert builds from the trained network, not from the exported one"):
        changed(folder, 'variants.backends=["litert"]')
    with pytest.raises(ConfigError, match="there is no input 'picture', the network's are 'image'; name the inputs"):
        changed(folder, 'data.preprocess.inputs=["picture"]')
    with pytest.raises(
        CheckFailed, match=r"the exported ONNX model, with \[data.preprocess\] folded into it, does not"
    ):
        changed(folder, "validate.fp32.atol=1e-15")


def test_a_network_without_a_plan(command: Command, folder: Path, tmp_path: Path) -> None:
    source, out = folder / "net.onnx", tmp_path / "model.onnx"
    said = command("export", source, "--fold-preprocess", "--preprocess", STEPS, "-o", out)
    assert said.status == 0, said.err
    assert inputs(out) == [("image", onnx.TensorProto.UINT8, [16, 16, 3])]
    lacking = command("export", source, "--fold-preprocess", "-o", out)
    assert (lacking.status, "there is no preprocessing to fold into" in lacking.err) == (2, True)
    idle = command("export", source, "--preprocess", STEPS, "-o", out)
    assert (idle.status, "--preprocess: has no effect without --fold-preprocess" in idle.err) == (2, True)
    beside = command("export", folder / "plan.toml", "--preprocess", STEPS)
    assert beside.status == 2, beside.err
