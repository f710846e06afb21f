"""The tour, first to read: a network goes in, engines and a defended decision come out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import pytest

from calibration.ranges.ranges_file import ranges_from_folder
from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.report.table import report_from_json
from pipeline.report.write import write_report
from pipeline.store import Store

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
tour (float[batch, 1, 8, 8] image) => (float[batch, 16] scores)
<float[16, 1, 3, 3] kernel, float[16, 16] dense, float[16] bias>
{
    features = Conv <pads = [1, 1, 1, 1]> (image, kernel)
    active = Relu (features)
    pooled = GlobalAveragePool (active)
    flat = Flatten (pooled)
    scores = Gemm <transB = 1> (flat, dense, bias)
}
"""

PLAN = """
[model]
source = "network.onnx"

[data]
metric = "top1"
calibration = { path = "samples.npz", inputs = { image = "x_calibration" } }
evaluation = { path = "samples.npz", inputs = { image = "x_evaluation" }, labels = "y_evaluation" }

[variants]
precisions = ["fp32", "fp16", "int8"]
backends = ["onnxruntime", "reference"]

[validate.int8]
max_metric_drop = 0.05

[benchmark.protocol]
warmup_seconds = 0.01
min_seconds = 0.02
min_queries = 8
num_blocks = 4

[report]
html = false
"""


@pytest.fixture(scope="module")
def users_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network, its data and a plan, as a user would have them, and the store after a run until validate."""
    folder = tmp_path_factory.mktemp("user")
    random = np.random.default_rng(0)
    network = onnx.parser.parse_model(NETWORK)
    weights = {"kernel": (16, 1, 3, 3), "dense": (16, 16), "bias": (16,)}
    for name, shape in weights.items():
        values = random.normal(size=shape).astype(np.float32)
        network.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(network, folder / "network.onnx")
    images = random.normal(size=(96, 1, 8, 8)).astype(np.float32)
    labels = answers(folder / "network.onnx", images).argmax(axis=1)
    np.savez(folder / "samples.npz", x_calibration=images[:32], x_evaluation=images[32:], y_evaluation=labels[32:])
    (folder / "plan.toml").write_text(PLAN)
    run(read_plan(folder / "plan.toml"), Store(folder / "store"), until="validate")
    return folder


@pytest.fixture
def plan_file(users_folder: Path, tmp_path: Path) -> Path:
    """The plan in such a folder."""
    return Path(shutil.copytree(users_folder, tmp_path / "user", symlinks=True)) / "plan.toml"


def answers(network: Path, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What onnx's own evaluator answers: the definition of right."""
    from onnx.reference import ReferenceEvaluator

    found: Any = ReferenceEvaluator(str(network)).run(None, {"image": images})
    return np.asarray(found[0], dtype=np.float32)


def test_from_a_network_to_a_decision(plan_file: Path) -> None:
    plan = read_plan(plan_file)
    store = Store(plan_file.parent / "new-store")

    made = run(plan, store, until="benchmark")

    # One ONNX file per precision: the precision is written in it, so that any runtime builds the same thing.
    by_name = {variant.name: model for variant, model in made.models.items()}
    assert {node.op_type for node in onnx.load(by_name["fp16@onnxruntime"].path).graph.node} >= {"Cast", "Conv"}
    assert "QuantizeLinear" in {node.op_type for node in onnx.load(by_name["int8@onnxruntime"].path).graph.node}
    assert by_name["int8@onnxruntime"].path != by_name["int8@reference"].path, "placement is a property of the target"

    # Ranges come from the samples, each by the method that the network's outputs ask for.
    assert made.ranges is not None
    ranges = ranges_from_folder(made.ranges.path)
    assert ranges.method == "auto"
    assert ranges.origin.num_samples == 32
    assert {"image", "active", "flat"} <= set(ranges.tensors)

    # Every engine was run on the evaluation samples and judged against FP32.
    verdicts = {variant.name: verdict.read() for variant, verdict in made.verdicts.items()}
    assert verdicts["fp32@reference"]["metric"] == 1.0, "the labels are the network's own answers"
    assert all(verdict["passed"] for verdict in verdicts.values())
    assert verdicts["int8@onnxruntime"]["agreement"] >= 0.95

    # The report holds all of it, and a recommendation in words.
    record = write_report(plan, made, store.account)
    kept = report_from_json(plan_file.parent / "trtforge-report" / "report.json")
    assert kept == record
    assert [variant.name for variant in kept.variants] == list(by_name)
    assert all(variant.latency_ms is not None for variant in kept.variants)
    assert kept.recommendation.sentence


def test_a_second_run_is_served(plan_file: Path) -> None:
    again = Store(plan_file.parent / "store")
    run(read_plan(plan_file), again, until="validate")
    assert all(entry.served for entry in again.account)


def test_only_what_changed_is_made_again(plan_file: Path) -> None:
    plan_file.write_text(PLAN + '\n[quantize]\nexclude = ["Gemm"]\n')
    again = Store(plan_file.parent / "store")
    run(read_plan(plan_file), again, until="validate")
    made = [entry.stage for entry in again.account if not entry.served]
    assert made == ["quantize", "quantize", *["tolerate"] * 2, "build", "build", "infer", "infer", *["validate"] * 2]


def test_every_result_can_be_walked_back(plan_file: Path) -> None:
    store = Store(plan_file.parent / "store")
    made = run(read_plan(plan_file), store, until="build")
    makers = store.makers()
    engine = next(iter(made.engines.values()))
    recipe = json.loads((makers[engine.digest()] / "recipe.json").read_text())
    assert recipe["stage"] == "build"
    assert makers[recipe["inputs"][0]["digest"]].parent.name == "export"
