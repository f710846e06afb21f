"""A plan with `[export] equalize`: channels that depthwise convolutions read are scaled by the calibration samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.results import Results
from pipeline.store import Store
from tests.calibration.graph.nets import with_arrays
from tests.made import QUICK_PROTOCOL

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3, 8, 8] x) => (float[N, 4] y)
{
    a = Conv (x, first)
    s = Sigmoid (a)
    h = Mul (s, uneven)
    b = Conv <group = 16, pads = [1, 1, 1, 1]> (h, depthwise)
    c = HardSwish (b)
    d = Conv (c, dense)
    e = GlobalAveragePool (d)
    y = Flatten (e)
}
"""
PLAN = (
    """
[model]
source = "net.onnx"
[data]
calibration = { path = "data.npz", inputs = { x = "calibration" } }
evaluation = { path = "data.npz", inputs = { x = "evaluation" } }
[variants]
precisions = ["fp32", "int8"]
backends = ["onnxruntime"]
[lint]
allow = ["range"]
[quantize]
arithmetic = "u8s8"
[tolerate]
num_draws = 3
[validate.int8]
min_cosine = -1
derived = false
"""
    + QUICK_PROTOCOL
)
UNEVEN = np.geomspace(1, 200, 16).reshape(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("uneven"), np.random.default_rng(3)
    arrays = {
        "first": random.normal(size=(16, 3, 1, 1)),
        "depthwise": random.normal(size=(16, 1, 3, 3)) / UNEVEN,
        "uneven": UNEVEN.reshape(16, 1, 1),
        "dense": random.normal(size=(4, 16, 1, 1)),
    }
    model = onnx.parser.parse_model(NET)
    onnx.save(with_arrays(model, {name: a.astype(np.float32) for name, a in arrays.items()}), folder / "net.onnx")
    calibration, evaluation = random.normal(size=(2, 32, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", calibration=calibration, evaluation=evaluation)
    return folder


def result(folder: Path, name: str, more: str) -> Results:
    (folder / f"{name}.toml").write_text(PLAN + more)
    return run(read_plan(folder / f"{name}.toml"), Store(folder / "store"), "validate")


def test_int8_is_nearer_and_fp32_is_the_same(folder: Path) -> None:
    plain, alike = result(folder, "plain", ""), result(folder, "alike", "[export]\nequalize = true\n")
    (note,) = [note for note in alike.export_notes() if "depthwise" in note]
    assert note.endswith("number of tensors: 1")
    assert not [note for note in plain.export_notes() if "depthwise" in note]
    assert alike.exported is not alike.fp32
    assert not alike.came_quantized
    assert plain.exported is plain.fp32

    def sqnr_db(made: Results, precision: str) -> float | None:
        verdicts = {variant.precision.name: verdict for variant, verdict in made.verdicts.items()}
        return json.loads(verdicts[precision].path.read_text())["comparison"]["y"]["sqnr_db"]  # type: ignore[no-any-return]

    before, after = sqnr_db(plain, "int8"), sqnr_db(alike, "int8")
    assert before is not None
    assert after is not None
    assert after > before + 3
