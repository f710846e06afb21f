"""The benchmark of stops: which samples it takes, when it calls a stop wrong, and its page."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.calibration_stop import NUM_UNITS, SHARES, Row, Section, page, samples_of, wrong_stops
from benchmarks.trained import LITE_NAME, Trained
from tests.pipeline.stages.networks import save

PRODUCT = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 5] x) => (float[N, 3] y) { y = MatMul (x, w) }"""


def trained(name: str) -> Trained:
    images = np.arange(24, dtype=np.float32).reshape(6, 1, 4, 1)
    return Trained(name, Path("none"), images[:2], images[2:], np.arange(4))


def test_the_samples_of_both_sets_and_mirrored_where_there_are_few() -> None:
    assert sorted(samples_of(trained("small"), 9)[:, 0, 0, 0]) == [0, 4, 8, 12, 16, 20]
    assert len(samples_of(trained("small"), 4)) == 4
    assert sorted(samples_of(trained(LITE_NAME), 99)[:, 0, 0, 0]) == [0, 3, 4, 7, 8, 11, 12, 15, 16, 19, 20, 23]


def test_stops_that_are_wrong_are_counted(tmp_path: Path) -> None:
    """Of steady samples all orders stop and none is wrong; of one far out all are, unless it was among the first."""
    model = save(PRODUCT, tmp_path / "net.onnx", w=(5, 3)).path
    samples = np.tile(np.array([1, -2, 0, 0.5, 3], np.float32), (8 * NUM_UNITS, 1))
    assert wrong_stops(model, samples, "minmax", 6) == [("minmax", share, 6, 6, 0) for share in SHARES]
    samples[100] = 9
    for _, _, num_orders, num_stopped, num_wrong in wrong_stops(model, samples, "minmax", 12):
        assert num_orders == 12
        assert 0 < num_wrong == num_stopped < 12


def test_the_page_has_each_row() -> None:
    row = Row("mse", 0.2, 128, 0.31, 1.7, 0.05, 0.001, (0.75, 0.751), True)
    section = Section("A network", 1024, 0.76, (row,), (("mse", 0.2, 25, 20, 1),))
    text = page([section])
    assert "## A network, 1024 samples\n\nFP32 is right on 76.00%." in text
    assert "| mse, stop 0.2 | 128 | 0.31 | 1.70 | 5.0% | 0.1% | 75.00% | 75.10% | same bytes |" in text
    assert text.endswith("| mse | 0.2 | 25 | 20 | 1 |")
