"""Weights that are rounded by calibration samples, through plans and on files: nearer answers, and what is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.arrays import Floats
from calibration.data.batches import Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from pipeline import flow
from pipeline.accuracy.weight_codes import codes_from_folder, rounding_sentence
from pipeline.accuracy.weight_rounding import RoundWeights
from pipeline.artifact import OnnxModel, Ranges
from pipeline.command.cli import status_of
from pipeline.engine_runner import load_simulation
from pipeline.errors import ConfigError
from pipeline.plan import read_plan
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.quantize import Quantize
from pipeline.store import Store
from tests.calibration.graph.nets import with_arrays

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16, 8, 8] x) => (float[N, 6] y)
{
    a = Conv <pads = [1, 1, 1, 1]> (x, first, first_bias)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1], group = 32> (b, depthwise)
    d = Relu (c)
    e = Conv (d, pointwise, pointwise_bias)
    f = Relu (e)
    g = GlobalAveragePool (f)
    h = Flatten (g)
    y = MatMul (h, last)
}
"""
SHAPES = {
    "first": (32, 16, 3, 3), "first_bias": (32,), "depthwise": (32, 1, 3, 3), "pointwise": (48, 32, 1, 1),
    "pointwise_bias": (48,), "last": (48, 6),
}  # fmt: skip
BY_DATA = Quantize(target="onnxruntime", arithmetic="u8s8", weight_bits=4, rounding="gptq")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``net.onnx``, and ``data.npz`` of pictures whose channels go together: 96 to calibrate, 64 to evaluate."""
    folder, random = tmp_path_factory.mktemp("rounding"), np.random.default_rng(8)
    arrays = {name: (random.normal(size=shape) / 4).astype(np.float32) for name, shape in SHAPES.items()}
    onnx.save(with_arrays(onnx.parser.parse_model(NET), arrays), folder / "net.onnx")
    coarse = random.normal(size=(160, 4, 4, 4)).repeat(2, axis=2).repeat(2, axis=3)
    x = np.einsum("nchw,cd->ndhw", coarse, random.normal(size=(4, 16))) + 0.3 * random.normal(size=(160, 16, 8, 8))
    np.savez(folder / "data.npz", x=x[:96].astype(np.float32), y=np.arange(96) % 6)
    np.savez(folder / "test.npz", x=x[96:].astype(np.float32), y=np.arange(64) % 6)
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> OnnxModel:
    return OnnxModel(place / "net.onnx")


@pytest.fixture(scope="module")
def samples(place: Path) -> Samples:
    return open_samples(DataSource(str(place / "data.npz")), input_specs_from_onnx(place / "net.onnx"), Preprocess())


@pytest.fixture(scope="module")
def ranges(place: Path, model: OnnxModel, samples: Samples) -> Ranges:
    return Calibrate(method="minmax")(place, model, samples)


def answers(path: Path, place: Path) -> Floats:
    with load_simulation(path, 1) as runner:
        return runner.infer({"x": np.load(place / "test.npz")["x"]})["y"].astype(np.float64)


def test_answers_are_nearer_and_the_record_says_what_each_product_gained(
    tmp_path: Path, place: Path, model: OnnxModel, ranges: Ranges, samples: Samples
) -> None:
    """Answers on samples that the rounding has not seen."""
    codes = RoundWeights(BY_DATA.placement_options(model))(tmp_path, model, ranges, samples)
    record = codes.read()
    assert (record["num_samples"], record["num_products"]) == (96, 4)
    assert all(row["error"] < row["error_of_nearest"] for row in record["products"])
    assert set(codes_from_folder(codes).by_node) == {row["node"] for row in record["products"]}
    assert codes_from_folder(codes).digest == codes.digest()
    exact, noise = answers(model.path, place), {}
    for rounding, decided in (("squant", ()), ("nearest", ()), ("gptq", (codes,))):
        (out := tmp_path / rounding).mkdir()
        written = replace(BY_DATA, rounding=rounding)(out, model, ranges, *decided)  # type: ignore[arg-type]
        noise[rounding] = float(np.square(answers(written.path, place) - exact).sum())
    assert noise["gptq"] < 0.5 * noise["squant"] < 0.5 * noise["nearest"], noise
    (sentence,) = (note for note in json.loads((tmp_path / "gptq" / "notes.json").read_text()) if "gptq" in note)
    assert sentence == rounding_sentence(codes)
    assert sentence.startswith("rounding gptq: weights of 4 of 4 convolutions and matrix products, by the second ")
    assert "of their data on 96 calibration samples; a product's squared error is 0." in sentence


UP = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16, 8, 8] x) => (float[N, 8, 16, 16] y)
{
    a = Conv <pads = [1, 1, 1, 1]> (x, first, first_bias)
    b = Relu (a)
    y = ConvTranspose <strides = [2, 2]> (b, up)
}
"""


def test_what_is_rounded_without_data_is_said(tmp_path: Path, samples: Samples) -> None:
    """A transposed convolution; and everything with dynamic ranges."""
    random = np.random.default_rng(3)
    shapes = {"first": (32, 16, 3, 3), "first_bias": (32,), "up": (32, 8, 2, 2)}
    arrays = {name: (random.normal(size=shape) / 4).astype(np.float32) for name, shape in shapes.items()}
    net = with_arrays(onnx.parser.parse_model(UP), arrays)
    for node in net.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    onnx.save(net, tmp_path / "net.onnx")
    model = OnnxModel(tmp_path / "net.onnx")
    ranges = Calibrate(method="minmax")(tmp_path, model, samples)
    stage = replace(BY_DATA, target="tensorrt", weight_bits=8)
    codes = RoundWeights(stage.placement_options(model), 1)(tmp_path, model, ranges, samples)
    sentence = rounding_sentence(codes)
    assert sentence.startswith("rounding gptq: weights of 1 of 2 convolutions and matrix products, by the second ")
    assert sentence.endswith("; as by squant: 'ConvTranspose_y' (ConvTranspose)")
    (tmp_path / "dynamic").mkdir()
    Quantize("dynamic", target="onnxruntime", rounding="gptq")(tmp_path / "dynamic", model)
    notes = json.loads((tmp_path / "dynamic" / "notes.json").read_text())
    assert notes[0] == "rounding gptq is for INT8 with fixed ranges: here weights are rounded as by squant"


def test_equal_inputs_give_equal_bytes(tmp_path: Path, model: OnnxModel, ranges: Ranges, samples: Samples) -> None:
    digests = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        stage = RoundWeights(BY_DATA.placement_options(model), 1)
        digests.add(stage(tmp_path / name, model, ranges, samples).digest())
    assert len(digests) == 1


def test_moments_that_memory_has_no_room_for_are_found_part_by_part(
    tmp_path: Path, model: OnnxModel, ranges: Ranges, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, written = RoundWeights(BY_DATA.placement_options(model), 1), []
    for name, most in (("whole", 2**26), ("parts", 1)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr("pipeline.accuracy.weight_rounding.MOST_MOMENTS", most)
        written.append(codes_from_folder(stage(tmp_path / name, model, ranges, samples)).by_node)
    for name, chosen in written[0].items():
        np.testing.assert_array_equal(chosen.codes, written[1][name].codes)


PLAN = """
[model]
source = "{place}/net.onnx"
[data]
metric = "top1"
calibration = {{ path = "{place}/data.npz", labels = "y" }}
evaluation = {{ path = "{place}/test.npz", labels = "y" }}
[variants]
precisions = ["fp32", "int8"]
[lint]
allow = ["imbalance", "classes", "few", "labels"]
[calibrate]
method = "minmax"
[quantize]
weight_bits = 4
rounding = "gptq"
arithmetic = "u8s8"
{more}
[validate.int8]
min_cosine = -1
max_metric_drop = 1
"""


def test_a_plan_rounds_by_its_calibration_samples(place: Path, tmp_path: Path) -> None:
    """What is deployed has the codes; the bound of mixed precision is held by these too; nothing is made twice."""
    (tmp_path / "plan.toml").write_text(PLAN.format(place=place, more="min_sqnr_db = 24"))
    plan, store = read_plan(tmp_path / "plan.toml"), Store(tmp_path / "store")
    made = flow.run(plan, store, "quantize")
    (folder,) = (tmp_path / "store" / "weight_rounding").iterdir()
    assert json.loads((folder / "codes" / "rounding.json").read_text())["num_products"] == 4
    (variant,) = made.mixtures
    notes = made.models[variant].notes()
    assert any(note.startswith("rounding gptq: ") for note in notes)
    (tmp_path / "other.toml").write_text(PLAN.format(place=place, more="min_sqnr_db = 24").replace("gptq", "squant"))
    other = flow.run(read_plan(tmp_path / "other.toml"), store, "quantize")
    needed = [len(each.mixtures[variant].read()["in_float"]) for each in (made, other)]
    assert needed[0] < needed[1], "rounded so, more of it holds the bound in INT8"
    assert made.models[variant].digest() != other.models[variant].digest()


def test_on_files_samples_round_what_is_quantized(
    place: Path, tmp_path: Path, ranges: Ranges, capsys: pytest.CaptureFixture[str]
) -> None:
    net, data = str(place / "net.onnx"), ["--data", str(place / "data.npz"), "--input", "x=x"]
    how = ["--target", "onnxruntime", "--arithmetic", "u8s8", "--weight-bits", "4", "--method", "minmax"]
    noise, exact = {}, answers(place / "net.onnx", place)
    for rounding in ("squant", "gptq"):
        out = tmp_path / f"{rounding}.onnx"
        assert status_of(["quantize", net, *data, *how, "--rounding", rounding, "-o", str(out)]) == 0
        noise[rounding] = float(np.square(answers(out, place) - exact).sum())
    assert noise["gptq"] < 0.5 * noise["squant"]
    capsys.readouterr()
    by_ranges = ["--ranges", str(ranges.path), "--target", "onnxruntime", "--rounding", "gptq"]
    assert status_of(["quantize", net, *by_ranges, "-o", str(tmp_path / "no.onnx")]) == 2
    words = "--rounding gptq: weights are rounded by samples; give --data instead of --ranges"
    assert words in capsys.readouterr().err


def test_without_samples_nothing_is_written(tmp_path: Path, model: OnnxModel, ranges: Ranges) -> None:
    with pytest.raises(ConfigError, match="rounding is gptq, which needs samples; give --data, or a plan"):
        BY_DATA(tmp_path, model, ranges)
    assert not list(tmp_path.iterdir())


def test_training_begins_at_the_codes_and_what_is_not_used_has_them(place: Path, tmp_path: Path) -> None:
    """Epoch 0 is what is deployed without training; where no epoch is better, it is that very model."""
    (tmp_path / "plan.toml").write_text(
        PLAN.format(place=place, more="[tune]\nepochs = 1\nrate = 1e-12\nnum_threads = 1")
    )
    made = flow.run(read_plan(tmp_path / "plan.toml"), Store(tmp_path / "store"), "quantize")
    by_name = {variant.name: model for variant, model in made.models.items()}
    (tuned,) = made.tuned.values()
    record = tuned.read()
    assert not record["is_used"]
    ptq, still = by_name["int8@onnxruntime"], by_name["tuned+int8@onnxruntime"]
    assert onnx.load(still.path) == onnx.load(ptq.path)
    (tmp_path / "other.toml").write_text((tmp_path / "plan.toml").read_text().replace("gptq", "squant"))
    other = flow.run(read_plan(tmp_path / "other.toml"), Store(tmp_path / "store"), "quantize")
    (without,) = other.tuned.values()
    losses = [each["epochs"][0]["held_out_loss"] for each in (record, without.read())]
    assert losses[0] < 0.7 * losses[1], "it begins nearer to the teacher"


def test_tune_on_files_begins_there_too(place: Path, tmp_path: Path) -> None:
    net, data = str(place / "net.onnx"), ["--data", str(place / "data.npz"), "--input", "x=x"]
    how = ["--target", "onnxruntime", "--arithmetic", "u8s8", "--weight-bits", "4", "--method", "minmax"]
    losses = []
    for rounding in ("squant", "gptq"):
        out = tmp_path / rounding
        words = ["tune", net, *data, *how, "--rounding", rounding, "--epochs", "1", "--num-threads", "1"]
        assert status_of([*words, "-o", str(out)]) == 0
        losses.append(json.loads((out / "training.json").read_text())["epochs"][0]["held_out_loss"])
    assert losses[1] < 0.7 * losses[0]


def test_a_layer_whose_data_is_not_finite_is_rounded_as_without_samples(
    tmp_path: Path, place: Path, ranges: Ranges, model: OnnxModel
) -> None:
    """The others by their data; the sentence says of how many."""
    x = np.load(place / "data.npz")["x"].copy()
    x[0, 0, 0, 0] = np.inf
    np.savez(tmp_path / "infinite.npz", x=x)
    samples = open_samples(
        DataSource(str(tmp_path / "infinite.npz")), input_specs_from_onnx(place / "net.onnx"), Preprocess()
    )
    with np.errstate(all="ignore"):
        codes = RoundWeights(BY_DATA.placement_options(model))(tmp_path, model, ranges, samples)
    record = codes.read()
    assert record["num_products"] == 4
    assert len(record["products"]) < 4
    assert f"weights of {len(record['products'])} of 4 convolutions and matrix products" in rounding_sentence(codes)
    (tmp_path / "int8").mkdir()
    written = BY_DATA(tmp_path / "int8", model, ranges, codes)
    assert np.isfinite(answers(written.path, place)).all()
