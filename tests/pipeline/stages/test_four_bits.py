"""Weights of 4 bits through the stages: what is written and said, what is built of it, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.arrays import Floats
from calibration.data.batches import DataSource, Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.errors import DataError
from calibration.precision.placement import PlacementTarget
from engines.backends import onnxruntime, reference, tensorrt_rtx
from engines.contract import BuildOptions, ShapeRange
from engines.errors import EngineError
from pipeline.artifact import OnnxModel, Ranges
from pipeline.engine_runner import load_simulation
from pipeline.errors import ConfigError
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.ptq import Ptq
from pipeline.stages.quantize import Quantize
from pipeline.stages.tune import Tune
from pipeline.training.options import TrainingAim
from tests.calibration.graph.nets import with_arrays

DENSE = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 256] x) => (float[N, 10] y)
{
    a = Gemm <transB = 1> (x, first, first_bias)
    b = Relu (a)
    c = MatMul (b, second)
    d = Add (c, second_bias)
    e = Relu (d)
    f = Gemm (e, last, last_bias)
    y = Softmax (f)
}
"""
SHAPES = {"first": (512, 256), "first_bias": (512,), "second": (512, 512), "second_bias": (512,), "last": (512, 10)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``net.onnx``, of matrix products alone, and ``data.npz``: x."""
    folder, random = tmp_path_factory.mktemp("dense"), np.random.default_rng(11)
    arrays = {name: random.normal(size=shape) / np.sqrt(shape[-1]) for name, shape in SHAPES.items()}
    arrays |= {"last": arrays["last"] * 3, "last_bias": np.zeros(10)}
    floats = {name: array.astype(np.float32) for name, array in arrays.items()}
    onnx.save(with_arrays(onnx.parser.parse_model(DENSE), floats), folder / "net.onnx")
    x = random.normal(size=(160, 6)) @ random.normal(size=(6, 256)) / 2  # With less in it than weights could learn.
    np.savez(folder / "data.npz", x=x.astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def net(place: Path) -> OnnxModel:
    return OnnxModel(place / "net.onnx")


@pytest.fixture(scope="module")
def samples(place: Path) -> Samples:
    return open_samples(DataSource(str(place / "data.npz")), input_specs_from_onnx(place / "net.onnx"), Preprocess())


@pytest.fixture(scope="module")
def ranges(place: Path, net: OnnxModel, samples: Samples) -> Ranges:
    return Calibrate(method="minmax")(place, net, samples)


def written(stage: Quantize, net: OnnxModel, ranges: Ranges | None, folder: Path) -> OnnxModel:
    folder.mkdir()
    return stage(folder, net, ranges)


def answers(path: Path, samples: Samples) -> Floats:
    with load_simulation(path, 1) as runner:
        return np.concatenate([runner.infer(feed)["y"] for feed in samples.batches(64)]).astype(np.float64)


WIDE = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 1024] x) => (float[N, 2048] y)
{
    a = Gemm <transB = 1> (x, weight, bias)
    y = Relu (a)
}
"""


@pytest.mark.skipif(bool(tensorrt_rtx.why_not_build()), reason="TensorRT-RTX is not installed")
def test_tensorrt_rtx_keeps_them_in_its_engine(tmp_path: Path) -> None:
    """Beside FP32 and beside FP16: the plan has little more than 4 bits for each weight, and the kernel's code."""
    random = np.random.default_rng(0)
    arrays = {"weight": random.normal(size=(2048, 1024)) / 32, "bias": random.normal(size=2048)}
    floats = {name: array.astype(np.float32) for name, array in arrays.items()}
    onnx.save(with_arrays(onnx.parser.parse_model(WIDE), floats), tmp_path / "wide.onnx")
    np.savez(tmp_path / "x.npz", x=random.normal(size=(32, 1024)).astype(np.float32))
    net = OnnxModel(tmp_path / "wide.onnx")
    data = open_samples(DataSource(str(tmp_path / "x.npz")), input_specs_from_onnx(net.path), Preprocess())
    ranges = Calibrate(method="minmax")(tmp_path, net, data)
    shape = {"x": ShapeRange((1, 1024), (4, 1024), (64, 1024))}
    rests: tuple[Literal["fp32", "fp16"], ...] = ("fp32", "fp16")
    for rest in rests:
        sizes = {}
        for bits in (8, 4):
            model = written(Quantize(rest=rest, weight_bits=bits), net, ranges, tmp_path / f"{rest}_{bits}")
            record = tensorrt_rtx.build(model.path, tmp_path / "engine", BuildOptions("int8", shape))
            assert record.num_4_bits == (1 if bits == 4 else 0)
            sizes[bits] = record.size_bytes
        assert sizes[4] < 0.75 * 1024 * 2048 < sizes[8]
    with pytest.raises(EngineError, match="precision fp32 is requested, the model has weights of 4 bits; ask for int8"):
        tensorrt_rtx.build(model.path, tmp_path / "engine", BuildOptions("fp32", shape))


def test_every_backend_computes_the_same(net: OnnxModel, ranges: Ranges, samples: Samples, tmp_path: Path) -> None:
    """TensorRT's blocks by onnx's own evaluator and by the simulator, ONNX Runtime's by its kernels."""
    exact = answers(net.path, samples)
    blocks = written(Quantize(target="tensorrt", weight_bits=4), net, ranges, tmp_path / "tensorrt")
    simulated = answers(blocks.path, samples)
    record = reference.build(blocks.path, tmp_path / "engine.onnx", BuildOptions("int8"))
    assert record.num_4_bits == 3
    with reference.load(tmp_path / "engine.onnx", num_threads=1) as runner:
        feed = next(iter(samples.batches(160)))
        np.testing.assert_allclose(runner.infer(feed)["y"].astype(np.float64), simulated, rtol=1e-3, atol=1e-5)
    for stage in (
        Quantize(target="onnxruntime", weight_bits=4, block_size=64),
        Quantize(target="onnxruntime", weight_bits=4, block_size=64).writing("dynamic"),
    ):
        model = written(stage, net, None if stage.is_dynamic() else ranges, tmp_path / stage.precision)
        record = onnxruntime.build(model.path, tmp_path / "ort.onnx", BuildOptions(stage.precision))
        assert (record.num_4_bits, record.num_int8, record.num_quantizable) == (3, 3, 3)
        with onnxruntime.load(tmp_path / "ort.onnx", num_threads=1) as runner:
            near = runner.infer(feed)["y"].astype(np.float64)
        assert np.abs(near - simulated).max() < 0.2 * np.abs(exact - simulated).max() or stage.is_dynamic()
        assert (near.argmax(1) == exact.argmax(1)).mean() > 0.7


def test_it_is_said_how_many_have_them(net: OnnxModel, ranges: Ranges, tmp_path: Path) -> None:
    model = written(Quantize(target="onnxruntime", weight_bits=4), net, ranges, tmp_path / "a")
    assert (
        "weights of 4 bits: 3 of 3 convolutions and matrix products, 398,336 weights (100% of them), in blocks of 32 "
        "where they are matrices"
    ) in model.notes()
    dynamic = Quantize(target="onnxruntime", weight_bits=4).writing("dynamic")
    assert written(dynamic, net, None, tmp_path / "b").notes() == [
        "3 matrix products round their data to UINT8 at each run",
        "weights of matrix products have 4 bits, in blocks of 32",
    ]
    assert model.path.stat().st_size < 398_336 * 0.66 + 10_000


def test_what_is_tuned_for_them_is_deployed_with_them_alone(
    net: OnnxModel, ranges: Ranges, samples: Samples, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    exact = answers(net.path, samples)
    for target in get_args(PlacementTarget):
        stage = Quantize(target=target, weight_bits=4)
        (tmp_path / target).mkdir()
        aim = TrainingAim(net, "", "", Path(), stage.placement_options(net))
        tuned = Tune(epochs=6, rate=0.001, num_threads=1)(tmp_path / target, net, ranges, samples, aim)
        record = tuned.read()
        assert record["is_used"], record["decision"]
        assert record["agreement_db"] is None or record["agreement_db"] > 30
        ptq = answers(written(stage, net, ranges, tmp_path / f"{target}_ptq").path, samples)
        ours = answers(written(stage, tuned.model, tuned.ranges, tmp_path / f"{target}_tuned").path, samples)
        assert np.square(ours - exact).sum() < 0.7 * np.square(ptq - exact).sum()
        with pytest.raises(DataError, match=f"were tuned for {target} with weights of 4 bits in blocks of"):
            replace(stage, weight_bits=8)(tmp_path, tuned.model, tuned.ranges)
        with pytest.raises(DataError, match=r"are to be placed for .* in blocks of 128; tune the network"):
            replace(stage, block_size=128)(tmp_path, tuned.model, tuned.ranges)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight_bits": 5}, "weight_bits is 5, but must be 4 or 8"),
        ({"block_size": 64}, "block_size is 64, but is for weight_bits = 4 and must be one of 16, 32, 64, 128, 256"),
        ({"weight_bits": 4, "block_size": 20}, "block_size is 20, but is for weight_bits = 4 and must be one of 16"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, int], said: str, net: OnnxModel) -> None:
    with pytest.raises(ConfigError, match=said):
        Quantize(**options)  # type: ignore[arg-type]
    small = Quantize(weight_bits=4, block_size=32)
    with pytest.raises(ConfigError, match="must be one of 64, 128 for tensorrt"):
        small.placement_options(net)
    with pytest.raises(ConfigError, match="must be one of 64, 128 for tensorrt"):
        small.placed_for("tensorrt")
    assert small.placed_for("onnxruntime").block_size == 32
    with pytest.raises(ConfigError, match="weight_bits is 4, but the Edge TPU takes weights of 8 bits"):
        Ptq(weight_bits=4, edgetpu=True).writing("int8")
