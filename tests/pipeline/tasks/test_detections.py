"""Detectors' outputs of every convention: the same boxes come of all; NMS is ONNX Runtime's; letterbox is undone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx.parser
import pytest

from calibration.arrays import Floats
from calibration.data.picture_frame import Geometry, PictureFrame
from calibration.data.preprocess import Preprocess
from engines.contract import Array
from pipeline.errors import ConfigError
from pipeline.tasks.detections import Detections, detections_of, suppression
from pipeline.tasks.detector import Detector

FRAME = PictureFrame(100, 80, 100, 80, 1, 1, 0, 0)
BOXES = np.array([[10.0, 20, 30, 60], [50, 5, 90, 45]])
SCORES, CLASSES = np.array([0.9, 0.6]), np.array([2.0, 0.0])
NORMALIZED = (BOXES / (100, 80, 100, 80))[None]
YXYX = NORMALIZED[..., (1, 0, 3, 2)]


def padded(array: Floats, num: int = 5) -> Array:
    """With rows of 0 behind; one picture."""
    return np.concatenate([array, np.zeros((num - len(array), *array.shape[1:]))])[None].astype(np.float32)


def raw_head(num: int = 40) -> npt.NDArray[np.float32]:
    """(1, 4 + 3, 40): centre and size, and a score for each class, where only two places have one."""
    head = np.zeros((1, 7, num), np.float32)
    for place, (box, score, number) in enumerate(zip(BOXES, SCORES, CLASSES)):
        head[0, :4, 7 * place] = (*(box[:2] + box[2:]) / 2, *(box[2:] - box[:2]))
        head[0, 4 + int(number), 7 * place] = score
    return head


def head_of_yolov5(num: int) -> npt.NDArray[np.float32]:
    """(1, num, 5 + 3): the same, of a score of 1 that there is an object, or of another that the class makes up for."""
    head = np.zeros((1, num, 8), np.float32)
    head[0, :40, :4], head[0, :40, 5:] = raw_head()[0, :4].T, raw_head()[0, 4:].T
    head[0, :, 4] = 1
    head[0, 7, 4], head[0, 7, 5:] = 0.75, head[0, 7, 5:] / 0.75
    return head


def nms_outputs() -> dict[str, Array]:
    dense = np.zeros((1, 3, 6), np.float32)
    dense[0, 2, 1], dense[0, 0, 4] = SCORES
    boxes = np.zeros((1, 6, 4), np.float32)
    boxes[0, 1], boxes[0, 4] = BOXES[:, (1, 0, 3, 2)]
    picks = np.empty(1, object)
    picks[0] = np.array([[0, 2, 1], [0, 0, 4]], np.int64)
    return {"all_boxes": boxes, "all_scores": dense, "picked": picks}


def one_each(boxes: Array, scores: Array, classes: Array) -> dict[str, Array]:
    """As torchvision's, whose number differs by picture."""
    outputs: dict[str, Array] = {}
    for name, array in {"boxes": boxes, "scores": scores, "labels": classes.astype(np.int64)}.items():
        outputs[name] = np.empty(1, object)
        outputs[name][0] = array
    return outputs


DENSE = np.zeros((1, 40, 3), np.float32)
DENSE[0, 0, 2], DENSE[0, 7, 0] = SCORES
CONVENTIONS: dict[str, tuple[dict[str, Array], Detector]] = {
    "TensorFlow": (
        {
            "detection_boxes": padded(YXYX[0]), "detection_scores": padded(SCORES),
            "detection_classes": padded(CLASSES), "num_detections": np.array([2.0]),
            "raw_detection_scores": np.zeros((1, 9, 3)),
        },
        Detector(),
    ),
    "EfficientNMS": (
        {
            "num_dets": np.array([[2]], np.int32), "det_boxes": padded(BOXES), "det_scores": padded(SCORES),
            "det_classes": padded(CLASSES).astype(np.int32),
        },
        Detector(),
    ),
    "torchvision": (one_each(BOXES, SCORES, CLASSES), Detector()),
    "Ultralytics": ({"output0": raw_head()}, Detector()),
    "Ultralytics, normalized": ({"Identity": raw_head() / [[[100], [80], [100], [80], [1], [1], [1]]]}, Detector()),
    "Ultralytics, the other way round": (
        {"output0": np.swapaxes(raw_head(), 1, 2)}, Detector(convention="ultralytics"),
    ),
    "YOLOv5, by its rows": ({"output0": head_of_yolov5(468)}, Detector()),
    "YOLOv5, as it is named": ({"output": head_of_yolov5(40)}, Detector(convention="yolov5")),
    "YOLOv5 beside its levels": (
        {"output": head_of_yolov5(468), "345": np.zeros((1, 3, 10, 12, 8))}, Detector(boxes="output"),
    ),
    "end to end": ({"output0": padded(np.column_stack([BOXES, SCORES, CLASSES]))}, Detector()),
    "NonMaxSuppression": (nms_outputs(), Detector()),
    "mapped lists": (
        {"a": padded(YXYX[0]), "b": padded(CLASSES), "c": padded(SCORES), "d": np.array([2.0])},
        Detector(convention="tensorflow", boxes="a", classes="b", scores="c", count="d"),
    ),
    "mapped dense": (
        {"loc": np.swapaxes(raw_head()[:, :4], 1, 2), "conf": DENSE},
        Detector(boxes="loc", scores="conf", corners="center"),
    ),
    "mapped head beside another": (
        {"head": raw_head(), "masks": np.zeros((1, 32, 20, 20))}, Detector(boxes="head"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_same_boxes_come_of_every_convention(name: str) -> None:
    outputs, detector = CONVENTIONS[name]
    _, (row,) = detections_of(outputs, detector, [FRAME])
    order = np.argsort(-row.scores)
    assert row.boxes[order] == pytest.approx(BOXES, abs=1e-4)
    assert row.scores[order] == pytest.approx(SCORES)
    assert row.classes[order].tolist() == [2, 0]


def test_lists_of_one_box_on_every_picture_have_no_axis_for_it() -> None:
    one = {"boxes": BOXES[:1].astype(np.float32), "scores": SCORES[:1], "labels": CLASSES[:1].astype(np.int64)}
    _, (row,) = detections_of(one, Detector(), [FRAME])
    assert (row.boxes.tolist(), row.classes.tolist()) == ([BOXES[0].tolist()], [2])
    outputs = nms_outputs()
    outputs["picked"] = np.array([[0, 2, 1]], np.int64)
    reading, (row,) = detections_of(outputs, Detector(), [FRAME])
    assert row.boxes == pytest.approx(BOXES[:1])
    assert reading.chosen() == ("picked",)


def test_numbers_of_classes_are_shifted() -> None:
    outputs, _ = CONVENTIONS["Ultralytics"]
    _, (row,) = detections_of(outputs, Detector(first_class=-1), [FRAME])
    assert row.classes.tolist() == [1], "what is of a class below 0 is the background"


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(resize=(64, 64), fit="letterbox"),
        Preprocess(resize=(48, 96)),
        Preprocess(resize=(60,), crop=(40, 50)),
        Preprocess(crop=(70, 81)),
        Preprocess(resize=(97, 33), fit="letterbox", crop=(31, 29)),
    ],
)
def test_what_preprocessing_does_to_places_is_undone(preprocess: Preprocess) -> None:
    """A bright rectangle goes through the preprocessing itself; where it lies is brought back to the picture."""
    picture = np.zeros((1, 80, 100, 1), np.float32)
    picture[0, 30:50, 40:70] = 1
    seen = preprocess(picture)[0, :, :, 0].astype(np.float64)
    if preprocess.fit == "letterbox":
        seen = np.where(seen > 2, 0, seen)
    rows, columns = np.nonzero(seen > 0.5)
    box = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, 0.9, 0]])
    frame = Geometry(preprocess).frame(100, 80)
    assert (frame.input_height, frame.input_width) == seen.shape
    _, (row,) = detections_of({"y": padded(box)}, Detector(units="pixels"), [frame])
    visible = np.array([40, 30, 70, 50], float)
    low = np.array([-frame.offset_x / frame.scale_x, -frame.offset_y / frame.scale_y])
    high = low + np.array([frame.input_width / frame.scale_x, frame.input_height / frame.scale_y])
    expected = np.clip(visible, np.tile(low, 2), np.tile(high, 2))
    assert row.boxes[0] == pytest.approx(expected, abs=1.01 / min(frame.scale_x, frame.scale_y))


def test_boxes_beyond_the_picture_are_cut_at_its_edge() -> None:
    frame = Geometry(Preprocess(resize=(100, 100), fit="letterbox")).frame(100, 80)
    whole = np.array([[0.0, 0, 100, 100, 0.9, 1]])
    _, (row,) = detections_of({"y": padded(whole)}, Detector(), [frame])
    assert row.boxes.tolist() == [[0, 0, 100, 80]]


SUPPRESSION = """
<ir_version: 8, opset_import: ["" : 17]>
nms (float[1, N, 4] boxes, float[1, C, N] scores, int64[1] most, float[1] overlap) => (int64[K, 3] picks) {
  picks = NonMaxSuppression (boxes, scores, most, overlap)
}
"""


@pytest.mark.parametrize("overlap", [0.3, 0.7])
def test_suppression_is_that_of_onnx_runtime(overlap: float) -> None:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(onnx.parser.parse_model(SUPPRESSION).SerializeToString())
    random = np.random.default_rng(3)
    corner = random.uniform(0, 60, (200, 2))
    boxes = np.concatenate([corner, corner + random.uniform(5, 40, (200, 2))], axis=1).astype(np.float32)
    scores = random.random((4, 200)).astype(np.float32)
    picks = session.run(
        None,
        {"boxes": boxes[None, :, (1, 0, 3, 2)], "scores": scores[None], "most": np.array([1000]),
         "overlap": np.array([overlap], np.float32)},
    )[0]  # fmt: skip
    expected = {(int(c), int(place)) for _, c, place in picks}
    every = Detections(np.tile(boxes, (4, 1)).astype(float), scores.reshape(-1).astype(float), np.repeat(range(4), 200))
    ours = suppression(every, overlap, 10_000)
    assert {(int(every.classes[i]), int(i) % 200) for i in ours} == expected
    assert np.array_equal(ours, ours[np.argsort(-every.scores[ours])])
    assert suppression(every, overlap, 5).tolist() == ours[:5].tolist()


def test_a_head_of_yolov5_is_what_a_direct_computation_makes_of_it() -> None:
    """Its score of an object times that of a class, above 0.001; ONNX Runtime suppresses."""
    runtime = pytest.importorskip("onnxruntime")
    random = np.random.default_rng(5)
    head = random.uniform(0, 1, (2, 756, 9)).astype(np.float32)
    head[..., :2] *= (128, 96)
    head[..., 2:4] = 4 + 40 * head[..., 2:4]
    head[..., 4] **= 8
    frame = PictureFrame(128, 96, 128, 96, 1, 1, 0, 0)
    reading, rows = detections_of({"output0": head.astype(np.float16)}, Detector(), [frame, frame])
    assert reading.convention == "yolov5"
    session = runtime.InferenceSession(onnx.parser.parse_model(SUPPRESSION).SerializeToString())
    for row, picture in zip(rows, head.astype(np.float16).astype(np.float32)):
        scores = (picture[:, 4:5] * picture[:, 5:]).T
        corners = np.concatenate([picture[:, :2] - picture[:, 2:4] / 2, picture[:, :2] + picture[:, 2:4] / 2], axis=1)
        feeds = {
            "boxes": corners[None],
            "scores": scores[None],
            "most": np.array([3000]),
            "overlap": np.array([0.7], np.float32),
        }
        picks = session.run(None, feeds)[0]
        best = sorted((-scores[c, k], k, c) for _, c, k in picks if scores[c, k] > 0.001)[:300]
        assert row.scores == pytest.approx([-falling for falling, _, _ in best], rel=1e-6)
        assert row.classes.tolist() == [c for _, _, c in best]
        expected = np.clip([corners[k] for _, k, _ in best], 0, (128, 96, 128, 96))
        assert row.boxes == pytest.approx(expected, abs=1e-3)


def test_answers_that_are_no_numbers_are_told_by_the_metric_without_a_warning() -> None:
    for number in (np.nan, np.inf):
        _, (row,) = detections_of({"y": np.full((1, 7, 40), number, np.float32)}, Detector(), [FRAME])
        assert row.is_nan


def test_a_raw_head_is_suppressed_and_an_end_to_end_one_is_not() -> None:
    head = raw_head()
    head[0, :, 20] = head[0, :, 0]
    head[0, 4:, 20] *= 0.5
    _, (row,) = detections_of({"y": head}, Detector(), [FRAME])
    assert len(row.scores) == 2
    twice = np.tile(np.column_stack([BOXES, SCORES, CLASSES]), (2, 1))
    _, (row,) = detections_of({"y": padded(twice)}, Detector(), [FRAME])
    assert len(row.scores) == 4


LISTS = {"p": padded(BOXES), "q": padded(SCORES), "r": padded(CLASSES)}


KNOWN_NOT = "which are named and shaped as none that is known; name them in [data.detector]"
REFUSED = [
    (LISTS, Detector(), f"the detector's outputs are 'p' (5, 4), 'q' (5,), 'r' (5,), {KNOWN_NOT}"),
    (
        LISTS,
        Detector(boxes="p", scores="q"),
        "convention dense expects boxes (k, 4) and scores (k, classes) of each picture, the outputs are 'p' (5, 4), "
        "'q' (5,)",
    ),
    (LISTS, Detector(boxes="p", scores="s", classes="r"), "there is no output 's', there are 'p' (5, 4), 'q' (5,)"),
    (LISTS, Detector(scores="q"), "scores alone do not say what the outputs 'p' (5, 4)"),
    (
        LISTS,
        Detector(boxes="r", scores="q", classes="p"),
        "convention lists expects boxes (k, 4), scores (k) and classes (k)",
    ),
    (LISTS, Detector(convention="ultralytics", boxes="q"), "convention ultralytics expects (4 + classes, k)"),
    (LISTS, Detector(convention="tensorflow"), KNOWN_NOT),
    (
        {"y": np.zeros((1, 25200, 85))},
        Detector(),
        "the detector's output 'y' (25200, 85) is of YOLOv5, or without its score of objects: of an input of 100 x 80 "
        "YOLOv5 has 468 rows, or 471 (P6); set convention in [data.detector] to yolov5 or ultralytics",
    ),
    ({"y": np.zeros((1, 40, 5))}, Detector(convention="yolov5"), "the detector's outputs are 'y' (40, 5), which are"),
    (
        {"a/boxes": padded(BOXES), "b/boxes": padded(BOXES), "scores": padded(SCORES), "labels": padded(CLASSES)},
        Detector(),
        KNOWN_NOT,
    ),
    ({"y": np.zeros((1, 10))}, Detector(), "the detector's outputs are 'y' (10,), which are"),
]


@pytest.mark.parametrize(("outputs", "detector", "sentence"), REFUSED)
def test_outputs_that_are_named_otherwise_are_listed(
    outputs: dict[str, Array], detector: Detector, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        detections_of(outputs, detector, [FRAME])


def test_picks_of_another_output_are_refused() -> None:
    outputs: dict[str, Any] = nms_outputs()
    outputs["picked"][0] = np.array([[0, 5, 1]])
    with pytest.raises(ConfigError, match="'picked' names class 5 and box 1, of which there are 3 and 6"):
        detections_of(outputs, Detector(), [FRAME])
