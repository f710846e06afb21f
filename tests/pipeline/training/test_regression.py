"""Tuning a network that answers with three numbers: where a spot is in a picture, and how bright."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.data.batches import Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from pipeline.artifact import OnnxModel
from pipeline.engine_runner import load_simulation
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.tune import Tune
from tests.calibration.graph.nets import with_arrays
from tests.pipeline.training.conftest import narrowed
from tests.pipeline.training.test_tune import aim_of

SPOTS = """
<ir_version: 8, opset_import: ["" : 17]>
spots (float[N, 1, 12, 12] image) => (float[N, 3] place)
{
    a = Conv <pads = [1, 1, 1, 1]> (image, first)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (b, second)
    d = Relu (c)
    e = Flatten (d)
    f = MatMul (e, last)
    place = Add (f, bias)
}
"""
NUM = 240


@pytest.fixture(scope="module")
def spots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``net.onnx``, fitted by least squares on random features, and ``data.npz``: image and place (NUM, 3)."""
    folder, random = tmp_path_factory.mktemp("spots"), np.random.default_rng(7)
    place = random.uniform([2, 2, 0.5], [9, 9, 2.0], size=(NUM, 3))
    rows, columns = np.mgrid[0:12, 0:12]
    distance = (rows - place[:, 0, None, None]) ** 2 + (columns - place[:, 1, None, None]) ** 2
    image = (place[:, 2, None, None] * np.exp(-distance / 4) + random.normal(0, 0.02, (NUM, 12, 12)))[:, None]
    image = image.astype(np.float32)
    arrays = {"first": random.normal(size=(4, 1, 3, 3)) / 3, "second": random.normal(size=(8, 4, 3, 3)) / 6}
    arrays |= {"last": np.eye(288), "bias": np.zeros(288)}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    wide = SPOTS.replace("float[N, 3] place", "float[N, 288] place")
    onnx.save(with_arrays(onnx.parser.parse_model(wide), arrays), folder / "wide.onnx")
    with load_simulation(folder / "wide.onnx", 1) as runner:
        features = runner.infer({"image": image})["place"].astype(np.float64)
    centred = features - features.mean(axis=0)
    last = np.linalg.solve(centred.T @ centred + 0.1 * np.eye(288), centred.T @ (place - place.mean(axis=0)))
    fitted = {"last": last, "bias": place.mean(axis=0) - features.mean(axis=0) @ last}
    arrays |= {name: array.astype(np.float32) for name, array in fitted.items()}
    onnx.save(with_arrays(onnx.parser.parse_model(SPOTS), arrays), folder / "net.onnx")
    np.savez(folder / "data.npz", image=image, place=place.astype(np.float32))
    return folder


def samples_of(spots: Path) -> Samples:
    source = DataSource(str(spots / "data.npz"), labels="place")
    return open_samples(source, input_specs_from_onnx(spots / "net.onnx"), Preprocess())


def test_three_numbers_are_no_classes(spots: Path, tmp_path: Path) -> None:
    """By their squared error: which of the three is the largest neither trains nor decides."""
    model, samples = OnnxModel(spots / "net.onnx"), samples_of(spots)
    ranges = narrowed(Calibrate(method="minmax")(tmp_path, model, samples), tmp_path / "narrow")
    tune = Tune(epochs=3, batch_size=16, rate=0.003, num_threads=1)
    aim = aim_of(model, "tensorrt", "mae")
    (tmp_path / "mse").mkdir()
    record = tune(tmp_path / "mse", model, ranges, samples, aim).read()
    assert record["compared"] == [
        "'place': squared error by the variance of the teacher's answers (MSE): metric mae compares values"
    ]
    assert record["is_used"], record["decision"]
    assert record["decision"].startswith("loss ")
    assert "classes" not in record["decision"]
    (tmp_path / "kl").mkdir()
    as_classes = replace(tune, distance="kl", epochs=1)(tmp_path / "kl", model, ranges, samples, aim).read()
    assert as_classes["compared"] == [
        "'place': divergence of the classes' probabilities along axis 1 from the teacher's (KL): distance is kl"
    ]


def test_numbers_that_are_labels_train(spots: Path, tmp_path: Path) -> None:
    model, samples = OnnxModel(spots / "net.onnx"), samples_of(spots)
    ranges = Calibrate(method="minmax")(tmp_path, model, samples)
    tune = Tune(epochs=1, loss="both", rate=0.001, num_threads=1)
    (tmp_path / "both").mkdir()
    record = tune(tmp_path / "both", model, ranges, samples, aim_of(model, "onnxruntime", "mae")).read()
    assert record["compared"][1] == "'place': squared error to labels, which are values"
    assert record["metric"] == "mae"
    assert all(0 < epoch["metric"] < 1 for epoch in record["epochs"]), "pixels"
