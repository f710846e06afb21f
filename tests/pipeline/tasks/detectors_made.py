"""A folder with a small detector that finds bright squares, pictures of 64 x 48, their boxes and a plan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from PIL import Image

from tests.made import QUICK_PROTOCOL

CELLS = [(row, column) for row in range(5) for column in range(4)]
"""Of 8 x 8 pixels in the network's input of 40 x 32, in which a picture, halved, begins at the second row."""
LISTS = """
<ir_version: 8, opset_import: ["" : 17]>
detector (float[N, 3, 40, 32] image) => (
  float[N, 6, 4] detection_boxes, float[N, 6] detection_scores, float[N, 6] detection_classes, float[N] num_detections
) {
  light = Conv <strides = [2, 2]> (image, mixing)
  active = Relu (light)
  cells = Conv <strides = [4, 4]> (active, cell, threshold)
  probable = Sigmoid (cells)
  flat = Flatten <axis = 1> (probable)
  most = Constant <value = int64[1] {6}> ()
  detection_scores, places = TopK (flat, most)
  detection_boxes = Gather <axis = 0> (boxes, places)
  none = Mul (detection_scores, zero)
  detection_classes = Add (none, class)
  six = Add (none, one)
  axis = Constant <value = int64[1] {1}> ()
  num_detections = ReduceSum <keepdims = 0> (six, axis)
}
"""
HEAD = """
<ir_version: 8, opset_import: ["" : 17]>
detector (float[N, 3, 40, 32] image) => (float[N, 6, 20] output0) {
  light = Conv <strides = [2, 2]> (image, mixing)
  active = Relu (light)
  cells = Conv <strides = [4, 4]> (active, cell, threshold)
  probable = Sigmoid (cells)
  shape = Constant <value = int64[3] {0, 1, 20}> ()
  flat = Reshape (probable, shape)
  none = Mul (flat, zero)
  four = Concat <axis = 1> (none, none, none, none)
  places = Add (four, centers)
  output0 = Concat <axis = 1> (places, none, flat)
}
"""
PICKED = """
<ir_version: 8, opset_import: ["" : 17]>
detector (float[1, 3, 40, 32] image) => (float[1, 20, 4] places, float[1, 1, 20] probable, int64[K, 3] picked) {
  light = Conv <strides = [2, 2]> (image, mixing)
  active = Relu (light)
  cells = Conv <strides = [4, 4]> (active, cell, threshold)
  sure = Sigmoid (cells)
  shape = Constant <value = int64[3] {0, 1, 20}> ()
  probable = Reshape (sure, shape)
  none = Mul (probable, zero)
  column = Constant <value = int64[3] {1, 20, 1}> ()
  nothing = Reshape (none, column)
  places = Add (nothing, boxes)
  most = Constant <value = int64[1] {30}> ()
  overlap = Constant <value = float[1] {0.5}> ()
  least = Constant <value = float[1] {0.5}> ()
  picked = NonMaxSuppression (places, probable, most, overlap, least)
}
"""
"""Of as many rows as there are squares."""
PLAN = (
    """
[model]
source = "net.onnx"
[data]
metric = "map"
calibration = { path = "pictures", labels = "boxes.json" }
evaluation = { path = "pictures", labels = "boxes.json" }
[data.preprocess]
resize = [40, 32]
fit = "letterbox"
fill = 0.0
scale = 0.00392156862745098
layout = "nchw"
[variants]
precisions = ["fp32", "fp16", "int8"]
[calibrate]
method = "minmax"
[tolerate]
num_samples = 8
num_draws = 4
[lint]
allow = ["few"]
"""
    + QUICK_PROTOCOL
    + """
[gate]
budgets = ["metric_drop <= 0.6"]
html = false
[report]
html = false
"""
)


def network(text: str) -> onnx.ModelProto:
    corners = np.array([[8 * r, 8 * c, 8 * r + 8, 8 * c + 8] for r, c in CELLS], np.float32)
    centers = np.array([[8 * c + 4, 8 * r + 4, 8, 8] for r, c in CELLS], np.float32).T[None]
    mixing = np.random.default_rng(1).uniform(0.2, 1, (4, 3, 2, 2))
    arrays = {
        "mixing": mixing,
        "cell": np.full((1, 4, 4, 4), 20 / (mixing.sum() * 16)),
        "threshold": np.array([-10]),
        "zero": np.array(0),
        "one": np.array(1),
        "class": np.array(7),
        "boxes": corners / (40, 32, 40, 32),
        "centers": centers,
    }
    model = onnx.parser.parse_model(text)
    used = {name for node in model.graph.node for name in node.input}
    for name in sorted(used & set(arrays)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(arrays[name].astype(np.float32), name))
    onnx.checker.check_model(model, full_check=True)
    return model


def make_detector(folder: Path, text: str = LISTS) -> None:
    """Write `net.onnx`, `pictures`, `boxes.json` (ids 3 and 7), the folder `boxes` of YOLO's, and `plan.toml`."""
    onnx.save(network(text), folder / "net.onnx")
    random = np.random.default_rng(2)
    (folder / "pictures").mkdir()
    (folder / "boxes").mkdir()
    images, annotations = [], list[dict[str, object]]()
    for number in range(12):
        light = random.integers(0, 90, (48, 64, 3))
        lines = []
        for place in random.choice(12, size=random.integers(1, 4), replace=False):
            top, left = 16 * int(place // 4), 16 * int(place % 4)
            light[top : top + 16, left : left + 16] = random.integers(100, 256)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 7, "bbox": [left, top, 16, 16]}
            )
            lines.append(f"1 {(left + 8) / 64} {(top + 8) / 48} 0.25 {16 / 48}\n")
        Image.fromarray(light.astype(np.uint8)).save(folder / f"pictures/{number:02}.png")
        images.append({"id": number, "file_name": f"{number:02}.png", "width": 64, "height": 48})
        (folder / f"boxes/{number:02}.txt").write_text("".join(lines))
    categories = [{"id": 3, "name": "shadow"}, {"id": 7, "name": "light"}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "boxes.json").write_text(json.dumps(content))
    (folder / "plan.toml").write_text(PLAN)
