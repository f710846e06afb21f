"""Zeros made good for layer by layer: what is held changes nothing, and what nothing makes good for is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.data.batches import Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from pipeline.artifact import OnnxModel
from pipeline.stages.prune import Prune
from pipeline.training import reconstruction
from pipeline.training.options import TrainingAim
from tests.calibration.graph.nets import with_arrays


def pruned(out: Path, model: OnnxModel, samples: Samples) -> tuple[bytes, list[str]]:
    out.mkdir()
    made = Prune(num_threads=1)(out, model, samples, TrainingAim(model, "", "", Path()))
    return made.path.read_bytes(), json.loads((out / "notes.json").read_text())


def test_what_there_is_no_room_for_is_computed_again(
    tmp_path: Path, model: OnnxModel, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, _ = pruned(tmp_path / "held", model, samples)
    monkeypatch.setattr(reconstruction, "MOST_HELD_BYTES", 0)
    again, _ = pruned(tmp_path / "again", model, samples)
    first, second = (onnx.load_from_string(each).graph.initializer for each in (held, again))
    for tensor, other in zip(first, second, strict=True):  # What is fused sums in another order.
        expected = onnx.numpy_helper.to_array(other)
        np.testing.assert_allclose(onnx.numpy_helper.to_array(tensor), expected, atol=1e-5, err_msg=tensor.name)


def test_few_of_many_samples_evenly_spread(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconstruction, "MOST_SAMPLES", 4)
    everything = np.concatenate([feed["x"] for feed in samples.batches(32)])
    feeds = list(reconstruction.feeds_of(samples))
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), everything[[0, 24, 48, 72]])
    feeds = list(reconstruction.feeds_of(samples, [1, 3, 5, 7, 9, 11, 13, 15]))
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in feeds]), everything[[1, 5, 9, 13]])


BROKEN = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[2, 6] x) => (float[2, 4] y)
{
    a = MatMul (x, first)
    b = Log (a)
    c = MatMul (b, second)
    d = Where (mask, a, c)
    e = MatMul (d, shared)
    f = Relu (e)
    g = MatMul (f, shared)
    y = Softmax (g)
}
"""


def test_what_nothing_makes_good_for_is_said(tmp_path: Path) -> None:
    """Data that is infinite or NaN, and a weight of two products; a batch of two is filled up."""
    random = np.random.default_rng(1)
    shapes = {"first": (6, 4), "second": (4, 4), "shared": (4, 4)}
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    net = with_arrays(onnx.parser.parse_model(BROKEN), {**arrays, "mask": np.ones((2, 4), bool)})
    onnx.save(net, tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=random.normal(size=(17, 6)).astype(np.float32))
    specs = input_specs_from_onnx(tmp_path / "net.onnx")
    samples = open_samples(DataSource(str(tmp_path / "x.npz")), specs, Preprocess())
    made, notes = pruned(tmp_path / "out", OnnxModel(tmp_path / "net.onnx"), samples)
    assert notes[1:] == [
        "method obs: weights of 1 of 3 convolutions and matrix products make good for zeros, on 17 samples",
        "'MatMul_c', 'MatMul_e': zeros are those with the least |weight|, and nothing makes good for them: the weight "
        "has other readers, the product is scaled or transposed, or its data is not finite",
    ]
    zeros = {
        tensor.name: onnx.numpy_helper.to_array(tensor) == 0 for tensor in onnx.load_from_string(made).graph.initializer
    }
    assert [zeros[name].sum(axis=0).tolist() for name in shapes] == [[3] * 4, [2] * 4, [2] * 4]
