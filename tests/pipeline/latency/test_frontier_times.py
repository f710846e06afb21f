"""How fast the sets are that mixed precision judged: measured in turns, of the very models, on this CPU."""

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
from calibration.precision.placement import PlacementOptions
from pipeline.artifact import Mixture, OnnxModel, Ranges
from pipeline.latency import frontier_times
from pipeline.latency.frontier_times import FILE, TimeFrontier
from pipeline.machine.packages import cpu_versions
from pipeline.stages.calibrate import Calibrate
from tests.calibration.graph.nets import with_arrays

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[BATCH, 64] x) => (float[BATCH, 64] y)
{
    a = MatMul (x, first)
    b = Relu (a)
    c = MatMul (b, second)
    d = Relu (c)
    y = MatMul (d, third)
}
"""


def made(folder: Path, batch: str) -> tuple[OnnxModel, Ranges, Samples]:
    """Three products, for any batch or for one."""
    random = np.random.default_rng(1)
    arrays = {name: random.normal(size=(64, 64)).astype(np.float32) / 8 for name in ("first", "second", "third")}
    model = with_arrays(onnx.parser.parse_model(NET.replace("BATCH", batch)), arrays)
    for node in model.graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    onnx.save(model, folder / "net.onnx")
    np.savez(folder / "data.npz", x=random.normal(size=(16, 64)).astype(np.float32))
    net = OnnxModel(folder / "net.onnx")
    samples = open_samples(DataSource(str(folder / "data.npz")), input_specs_from_onnx(net.path), Preprocess())
    return net, Calibrate(method="minmax")(folder, net, samples), samples


def mixture(folder: Path, sets: list[list[str]]) -> Mixture:
    """What of a judged mixture is read."""
    (folder / "mixture.json").write_text(json.dumps({"sets": sets}))
    return Mixture(folder / "mixture.json")


@pytest.mark.parametrize("batch", ["N", "4"])
def test_each_number_of_nodes_is_timed_once(tmp_path: Path, batch: str) -> None:
    model, ranges, samples = made(tmp_path, batch)
    sets = [[], ["MatMul_a"], ["MatMul_c"], ["MatMul_a", "MatMul_c"]]
    stage = TimeFrontier(PlacementOptions("onnxruntime", arithmetic="u8s8"))
    times = stage(tmp_path, model, ranges, samples, mixture(tmp_path, sets))
    assert times.path == tmp_path / FILE
    record = times.read()
    assert record["made_on"] == cpu_versions()
    assert [ms is None for ms in record["ms"]] == [False, True, False, False], "of two with one node one is timed"
    assert all(ms > 0 for ms in (record["fp32_ms"], *record["ms"]) if ms is not None)
    assert stage.versions()["cpu"] == cpu_versions()["cpu"], "of this machine alone"


def test_many_sets_are_timed_evenly_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ranges, samples = made(tmp_path, "N")
    monkeypatch.setattr(frontier_times, "MOST_TIMED", 2)
    products = ["MatMul_a", "MatMul_c", "MatMul_y"]
    sets = [products[:num] for num in range(3)]
    stage = TimeFrontier(PlacementOptions("onnxruntime", arithmetic="u8s8"))
    record = stage(tmp_path, model, ranges, samples, mixture(tmp_path, sets)).read()
    assert sum(ms is not None for ms in record["ms"]) == 2
