"""A network of a size that trains in a second, its samples, and its ranges."""

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
from calibration.ranges.ranges_file import histograms_from_folder, ranges_from_folder, write_ranges
from pipeline.artifact import OnnxModel, Ranges
from pipeline.stages.calibrate import Calibrate
from tests.calibration.graph.nets import with_arrays

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4, 8, 8] x) => (float[N, 5] y)
{
    a = Conv <pads = [1, 1, 1, 1]> (x, first, bias)
    b = Relu (a)
    c = Conv <pads = [1, 1, 1, 1]> (b, second)
    d = Add (b, c)
    e = Relu (d)
    f = GlobalAveragePool (e)
    g = Flatten (f)
    h = MatMul (g, last)
    y = Softmax (h)
}
"""
NUM_SAMPLES = 96


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``net.onnx`` and ``data.npz``: x, y (the network's own classes), same (all of one class) and text."""
    folder = tmp_path_factory.mktemp("net")
    random = np.random.default_rng(4)
    shapes = {"first": (16, 4, 3, 3), "bias": (16,), "second": (16, 16, 3, 3), "last": (16, 5)}
    arrays = {name: (random.normal(size=shape) / 3).astype(np.float32) for name, shape in shapes.items()}
    onnx.save(with_arrays(onnx.parser.parse_model(NET), arrays), folder / "net.onnx")
    x = random.normal(size=(NUM_SAMPLES, 4, 8, 8)).astype(np.float32)
    y = np.arange(NUM_SAMPLES) % 5
    np.savez(folder / "data.npz", x=x, y=y, same=0 * y, text=y.astype(str))
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> OnnxModel:
    return OnnxModel(place / "net.onnx")


def samples_of(place: Path, labels: str = "", limit: int = 0) -> Samples:
    """The samples, with those labels."""
    source = DataSource(str(place / "data.npz"), labels=labels, limit=limit)
    return open_samples(source, input_specs_from_onnx(place / "net.onnx"), Preprocess())


@pytest.fixture(scope="module")
def samples(place: Path) -> Samples:
    return samples_of(place)


@pytest.fixture(scope="module")
def ranges(place: Path, model: OnnxModel, samples: Samples) -> Ranges:
    return Calibrate(method="minmax")(place, model, samples)


def narrowed(ranges: Ranges, folder: Path) -> Ranges:
    """Each a quarter as wide."""
    folder.mkdir()
    record = ranges_from_folder(ranges.path)
    tensors = {
        name: replace(
            tensor,
            amax=tensor.amax / 4,
            amax_by_method={key: amax / 4 for key, amax in tensor.amax_by_method.items()},
            channel_means=(),
        )
        for name, tensor in record.tensors.items()
    }
    write_ranges(replace(record, tensors=tensors), histograms_from_folder(ranges.path), folder)
    return Ranges(folder)
