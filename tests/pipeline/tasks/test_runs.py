"""Whole runs with metrics that are no share of right answers: report, gate, mixed precision, training, advice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from calibration.arrays import Floats
from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.store import Store
from tests.made import QUICK_PROTOCOL

if TYPE_CHECKING:
    from tests.conftest import Command

PLAN = (
    """
[model]
source = "net.onnx"
{data}
[variants]
precisions = ["fp32", "int8"]
[calibrate]
method = "minmax"
[validate.int8]
max_metric_drop = 0.2
[tolerate]
num_samples = 8
num_draws = 4
[lint]
allow = ["few"]
"""
    + QUICK_PROTOCOL
    + """
[gate]
budgets = ["{budget}"]
html = false
[report]
html = false
"""
)
PICTURES = """
[data]
metric = "miou"
calibration = { path = "pictures", limit = 4 }
evaluation = { path = "pictures", labels = "masks" }
[data.preprocess]
resize = [16, 24]
fit = "letterbox"
scale = 0.00392156862745098
layout = "nchw"
"""
FACES = """
[data]
metric = "tar@0.1"
calibration = { path = "faces.npy", labels = "pairs.txt" }
evaluation = { path = "faces.npy", labels = "pairs.txt" }
"""
ENGINES = """
[data]
metric = "{metric}"
calibration = { path = "engines.npz", labels = "{key}", limit = 16 }
evaluation = { path = "engines.npz", labels = "{key}" }
"""


def layered(folder: Path, kind: str, weights: list[Floats], shape: tuple[Any, ...]) -> None:
    """`net.onnx`: layers with a Relu between them."""
    nodes, tensors, name = [], [], "x"
    for number, weight in enumerate(weights):
        if number:
            nodes.append(helper.make_node("Relu", [name], [f"active{number}"]))
            name = f"active{number}"
        tensors.append(numpy_helper.from_array(weight.astype(np.float32), f"w{number}"))
        last = number == len(weights) - 1
        nodes.append(helper.make_node(kind, [name, f"w{number}"], ["y" if last else f"layer{number}"]))
        name = f"layer{number}"
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "net", [value("x", 1, shape)], [value("y", 1, ["N", *[None] * (len(shape) - 1)])], tensors
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "net.onnx")


def make_scenes(folder: Path) -> None:
    """Bright rectangles on dark ground, of 20 x 30 pixels, and a network that names the bright pixels."""
    random = np.random.default_rng(1)
    for part in ("pictures", "masks"):
        (folder / part).mkdir()
    for number in range(10):
        mask = np.zeros((20, 30), np.uint8)
        top, left = random.integers(12), random.integers(20)
        mask[top : top + 8, left : left + 10] = 1
        light = 60 + 120 * mask[..., None] + random.integers(0, 50, (20, 30, 3))
        Image.fromarray(light.astype(np.uint8)).save(folder / f"pictures/{number}.png")
        Image.fromarray(mask).save(folder / f"masks/{number}.png")
    mixing = random.uniform(0.2, 1, (4, 3, 1, 1))
    classes = np.array([[-1.0, -1, -1, -1], [1, 1, 1, 1]])[:, :, None, None]
    layered(folder, "Conv", [mixing, classes], ("N", 3, 16, 24))
    model = onnx.load(folder / "net.onnx")
    bias = numpy_helper.from_array((np.array([4.8, -4.8]) * mixing.mean()).astype(np.float32), "bias")
    model.graph.initializer.append(bias)
    model.graph.node[-1].input.append("bias")
    onnx.save(model, folder / "net.onnx")


def make_faces(folder: Path) -> None:
    """20 people, 3 samples of each, and some of the pairs."""
    random = np.random.default_rng(2)
    who = np.repeat(np.arange(20), 3)
    people = random.normal(size=(20, 8))
    np.save(folder / "faces.npy", (people[who] + 0.5 * random.normal(size=(60, 8))).astype(np.float32))
    i, j = np.triu_indices(60, 1)
    lines = [f"{a} {b} {int(who[a] == who[b])}" for a, b in zip(i, j) if who[a] == who[b] or (a + b) % 7 == 0]
    (folder / "pairs.txt").write_text("\n".join(lines))
    layered(folder, "MatMul", [random.normal(size=(8, 16)), random.normal(size=(16, 12))], ("N", 8))


def make_engines(folder: Path) -> None:
    """Sensors of machines, and what will be: a remaining life, and whether it fails soon."""
    random = np.random.default_rng(3)
    first, second = random.normal(size=(6, 12)), 0.2 * random.normal(size=(12, 1))
    sensors = random.normal(size=(80, 6)).astype(np.float32)
    life = np.maximum(sensors @ first, 0) @ second
    np.savez(folder / "engines.npz", x=sensors, life=life + 0.1 * random.normal(size=life.shape), soon=(life < 0)[:, 0])
    layered(folder, "MatMul", [first, second], ("N", 6))


def report_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "trtforge-report/report.json").read_text())
    return record


def filled(data: str, budget: str) -> str:
    """The plan with data and budget in it."""
    return PLAN.replace("{data}", data).replace("{budget}", budget)


CASES = [
    (make_scenes, PICTURES, "metric_drop <= 0.6", "miou", (0.85, 1)),
    (make_faces, FACES, "metric >= 0.2", "tar@0.1", (0.6, 0.9)),
    (make_engines, ENGINES.replace("{metric}", "rmse").replace("{key}", "life"), "metric <= 1", "rmse", (0.05, 0.15)),
    (make_engines, ENGINES.replace("{metric}", "r2").replace("{key}", "life"), "metric >= 0.1", "r2", (0.9, 1)),
]


@pytest.mark.parametrize(("make", "data", "budget", "metric", "limits"), CASES, ids=["miou", "tar", "rmse", "r2"])
def test_run_and_gate(
    make: Any, data: str, budget: str, metric: str, limits: tuple[float, float], command: Command, tmp_path: Path
) -> None:
    make(tmp_path)
    (tmp_path / "plan.toml").write_text(filled(data, budget))
    ran = command("run", tmp_path / "plan.toml")
    assert ran.status == 0, ran.err
    record = report_of(tmp_path)
    values = {variant["name"]: variant["metric"] for variant in record["variants"]}
    assert record["metric"]["name"] == metric
    assert limits[0] < values["fp32@onnxruntime"] <= limits[1], values
    assert values["int8@onnxruntime"] == pytest.approx(values["fp32@onnxruntime"], abs=0.2)
    gated = command("gate", tmp_path / "plan.toml")
    assert gated.status == 0, gated.out + gated.err


def test_mixed_precision_is_bounded_by_such_a_metric(tmp_path: Path) -> None:
    make_faces(tmp_path)
    (tmp_path / "plan.toml").write_text(filled(FACES, "metric >= 0.5"))
    plan = read_plan(tmp_path / "plan.toml", ["quantize.max_metric_drop = 0.1"])
    made = run(plan, Store(tmp_path / "store"), "quantize")
    (model,) = made.models.values()
    assert any("for tar@0.1 at most 0.1 below FP32's, on calibration samples" in note for note in model.notes())


def test_training_judges_epochs_by_such_a_metric(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    make_engines(tmp_path)
    data = ENGINES.replace("{metric}", "rmse").replace("{key}", "life")
    (tmp_path / "plan.toml").write_text(filled(data, "metric <= 1") + "[tune]\nloss = 'labels'\nepochs = 1\n")
    made = run(read_plan(tmp_path / "plan.toml"), Store(tmp_path / "store"), "tune")
    (tuned,) = made.tuned.values()
    record = tuned.read()
    assert record["metric"] == "rmse"
    assert all(0 < epoch["metric"] < 1 for epoch in record["epochs"])


def test_pairs_do_not_train(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    make_faces(tmp_path)
    (tmp_path / "plan.toml").write_text(filled(FACES, "metric >= 0.5") + "[tune]\nloss = 'labels'\n")
    made = command("tune", tmp_path / "plan.toml")
    assert made.status == 2
    assert "labels are (60, " in made.err


def test_a_class_without_samples_is_named_in_the_report(command: Command, tmp_path: Path) -> None:
    make_scenes(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(path)
    (tmp_path / "plan.toml").write_text(filled(PICTURES, "metric >= 0.5"))
    ran = command("run", tmp_path / "plan.toml", "--set", "variants.precisions = ['fp32']")
    note = "miou: class 1 has no sample among the labels, the mean is over the other 1"
    assert note in json.dumps(report_of(tmp_path)["variants"]), ran.err
