"""An ONNX source with a plugin of TensorRT's: what it is trained to answer, and what later stages make of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import helper, numpy_helper

from calibration.data.picture_frame import PictureFrame
from engines import backend
from engines.backends import onnxruntime
from engines.plugin_library import NAMED
from engines.support.by_list import answer_by_list
from engines.support.operator_lists import generation_named
from pipeline.artifact import OnnxModel
from pipeline.errors import StageError
from pipeline.sources.onnx import trained
from pipeline.stages.export import Export
from pipeline.tasks.detections import detections_of
from pipeline.tasks.detector import Detector
from tests.engines.plugins import GIVES, plugin_library

DETECTOR = """
<ir_version: 8, opset_import: ["" : 13, "TRT" : 1]>
detector (float[N, 3, 16, 16] image)
    => (int32[N, 1] num_dets, float[N, 5, 4] det_boxes, float[N, 5] det_scores, int32[N, 5] det_classes)
<int64[3] of_boxes = {0, -1, 4}, int64[3] of_scores = {0, -1, 3}, float[4, 3, 3, 3] w_boxes, float[3, 3, 3, 3] w_scores>
{
    raw_boxes = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (image, w_boxes)
    raw_scores = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (image, w_scores)
    last_boxes = Transpose <perm = [0, 2, 3, 1]> (raw_boxes)
    last_scores = Transpose <perm = [0, 2, 3, 1]> (raw_scores)
    signed_boxes = Reshape (last_boxes, of_boxes)
    boxes = Abs (signed_boxes)
    scores = Reshape (last_scores, of_scores)
    num_dets, det_boxes, det_scores, det_classes = TRT.EfficientNMS_TRT (boxes, scores)
}
"""
ATTRIBUTES = {
    "score_threshold": 0.3, "iou_threshold": 0.5, "max_output_boxes": 5, "background_class": -1, "score_activation": 1,
    "box_coding": 1,
}  # fmt: skip


def detector() -> onnx.ModelProto:
    """Two convolutions with the plugin behind them."""
    model, random = onnx.parser.parse_model(DETECTOR), np.random.default_rng(4)
    model.graph.node[-1].attribute.extend(helper.make_attribute(name, value) for name, value in ATTRIBUTES.items())
    for name, number in (("w_boxes", 4), ("w_scores", 3)):
        values = random.normal(size=(number, 3, 3, 3)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """The user's file."""
    path = tmp_path_factory.mktemp("source") / "detector.onnx"
    onnx.save(detector(), path)
    return OnnxModel(path)


@pytest.fixture(scope="module")
def exported(source: OnnxModel, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """What later stages get."""
    return Export()(tmp_path_factory.mktemp("exported"), source)


IMAGES = np.random.default_rng(5).normal(size=(3, 3, 16, 16)).astype(np.float32)


def test_the_plugin_is_written_out_and_the_report_says_so(exported: OnnxModel) -> None:
    operators = {node.op_type for node in onnx.load(exported.path).graph.node}
    assert "NonMaxSuppression" in operators
    assert "EfficientNMS_TRT" not in operators
    notes = json.loads(exported.beside("notes.json").read_text())
    assert "export: TensorRT's plugin EfficientNMS_TRT is written out in operators of ONNX itself: 1" in notes


def test_the_trained_network_runs_without_the_plugin_too(source: OnnxModel, exported: OnnxModel) -> None:
    engine = trained(source, exported, onnxruntime.NAME)
    assert engine.path == exported.beside("source.onnx")
    with (
        onnxruntime.load(engine.path, num_threads=1) as expected,
        backend("reference").load(exported.path, num_threads=1) as got,
    ):
        answers = expected.infer({"image": IMAGES})
        for name, array in got.infer({"image": IMAGES}).items():
            assert array == pytest.approx(answers[name], abs=1e-5)
    assert answers["num_dets"].ravel().tolist() == [5, 5, 5]


def test_its_outputs_are_read_as_boxes(exported: OnnxModel) -> None:
    with onnxruntime.load(exported.path, num_threads=1) as runner:
        outputs = runner.infer({"image": IMAGES})
    frames = [PictureFrame(16, 16, 16, 16, 1, 1, 0, 0)] * 3
    convention, rows = detections_of(outputs, Detector(), frames)
    assert convention.convention == "efficient_nms"
    assert [len(row.scores) for row in rows] == [5, 5, 5]
    assert rows[0].boxes[0] == pytest.approx(np.clip(outputs["det_boxes"][0, 0], 0, 16), abs=1e-4)


@pytest.mark.parametrize("release", ["8.5", "10.3"])
def test_each_tensorrt_reads_what_is_written(exported: OnnxModel, release: str) -> None:
    assert answer_by_list(exported.path, generation_named(release), {}).sentence() == ""


def test_what_the_plugin_lacks_is_said_with_the_file(tmp_path: Path) -> None:
    model = detector()
    del model.graph.node[-1].attribute[:]
    onnx.save(model, tmp_path / "bad.onnx")
    (tmp_path / "out").mkdir()
    with pytest.raises(StageError, match=r"bad\.onnx: node 'num_dets', EfficientNMS_TRT: has no score_threshold"):
        Export()(tmp_path / "out", OnnxModel(tmp_path / "bad.onnx"))


def test_an_operator_of_a_named_library_is_told_from_a_strange_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be done with it is said, for nothing but TensorRT runs it."""
    text = """<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]>
    g (float[N, 2] x) => (float[N, 2] y) { y = com.example.Sharpen (x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "own.onnx")
    (tmp_path / "out").mkdir()
    with pytest.raises(StageError, match=r"'y' is Sharpen of the domain 'com\.example', operators of ONNX itself"):
        Export()(tmp_path / "out", OnnxModel(tmp_path / "own.onnx"))
    monkeypatch.setenv(NAMED, str(plugin_library(tmp_path / "libs", GIVES, plugin="Sharpen")))
    words = r"node 'y': Sharpen is a plugin of libmy\.so, by its name; ONNX Runtime cannot run it on the CPU"
    with pytest.raises(StageError, match=words):
        Export()(tmp_path / "out", OnnxModel(tmp_path / "own.onnx"))
    monkeypatch.setenv(NAMED, str(plugin_library(tmp_path / "others", GIVES, plugin="Blur")))
    with pytest.raises(StageError, match="operators of ONNX itself are expected"):
        Export()(tmp_path / "out", OnnxModel(tmp_path / "own.onnx"))
