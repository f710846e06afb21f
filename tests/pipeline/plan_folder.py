"""A user's folder with a network, data and a plan, and changes to the plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from engines import backend
from tests.made import QUICK_PROTOCOL

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4, 8, 8] image) => (float[N, 3] scores)
<float[16, 4, 3, 3] kernel, float[16] gamma, float[16] beta, float[16] mean, float[16] variance, float[16, 3] dense>
{
    convolved = Conv <pads = [1, 1, 1, 1]> (image, kernel)
    features = BatchNormalization (convolved, gamma, beta, mean, variance)
    active = Relu (features)
    pooled = GlobalAveragePool (active)
    flat = Flatten (pooled)
    scores = MatMul (flat, dense)
}
"""


PLAN = (
    """
[model]
source = "net.onnx"

[data]
metric = "top1"
calibration = { path = "data.npz", inputs = { image = "x_calibration" } }
evaluation = { path = "data.npz", inputs = { image = "x_evaluation" }, labels = "y_evaluation" }

[variants]
precisions = ["fp32", "fp16", "int8"]
backends = ["onnxruntime"]

[calibrate]
method = "minmax"

[validate.int8]
max_metric_drop = 0.3
"""
    + QUICK_PROTOCOL
    + """
[report]
html = false
"""
)


def network() -> onnx.ModelProto:
    model = onnx.parser.parse_model(NET)
    random = np.random.default_rng(11)
    for name, shape in {"kernel": (16, 4, 3, 3), "dense": (16, 3)}.items():
        model.graph.initializer.append(numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name))
    for name in ("gamma", "beta", "mean", "variance"):
        model.graph.initializer.append(numpy_helper.from_array(random.uniform(0.5, 2, 16).astype(np.float32), name))
    return model


def make_users_folder(folder: Path) -> None:
    """Write `net.onnx`, `data.npz`, whose labels are the network's own answers, and `plan.toml`."""
    onnx.save(network(), folder / "net.onnx")
    images = np.random.default_rng(12).normal(size=(36, 4, 8, 8)).astype(np.float32)
    with backend("reference").load(folder / "net.onnx", num_threads=1) as runner:
        labels = runner.infer({"image": images[12:]})["scores"].argmax(axis=1)
    np.savez(folder / "data.npz", x_calibration=images[:12], x_evaluation=images[12:], y_evaluation=labels)
    (folder / "plan.toml").write_text(PLAN)


def change(folder: Path, old: str, new: str) -> None:
    text = (folder / "plan.toml").read_text()
    assert old in text
    (folder / "plan.toml").write_text(text.replace(old, new))
