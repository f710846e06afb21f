"""EfficientNMS_TRT in operators of ONNX itself, held to the plugin's rules, box by box, in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from calibration.errors import ModelError
from calibration.plugins.efficient_nms import without_efficient_nms

Box = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Nms:
    """The attributes of a node."""

    score_threshold: float = 0.25
    iou_threshold: float = 0.5
    max_output_boxes: int = 10
    background_class: int = -1
    score_activation: int = 0
    box_coding: int = 0
    class_agnostic: int = 0


def model_of(nms: Nms, inputs: Mapping[str, Box], opset: int = 17, element: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A model that is one such node; the batch is dynamic."""
    node = helper.make_node(
        "EfficientNMS_TRT", [*inputs], ["num_dets", "det_boxes", "det_scores", "det_classes"], "nms", domain="TRT",
        **asdict(nms),
    )  # fmt: skip
    most, outputs = nms.max_output_boxes, []
    shapes: tuple[tuple[str, int, list[str | int]], ...] = (
        ("num_dets", TensorProto.INT32, ["batch", 1]),
        ("det_boxes", element, ["batch", most, 4]),
        ("det_scores", element, ["batch", most]),
        ("det_classes", TensorProto.INT32, ["batch", most]),
    )
    for name, kind, shape in shapes:
        outputs.append(helper.make_tensor_value_info(name, kind, shape))
    values = [
        helper.make_tensor_value_info(name, element, [1 if len(array) == 1 else "batch", *array.shape[1:]])
        for name, array in inputs.items()
    ]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("TRT", 1)]
    return helper.make_model(helper.make_graph([node], "one", values, outputs), opset_imports=opsets, ir_version=8)


def answers(model: onnx.ModelProto, inputs: Mapping[str, Box]) -> list[Box]:
    """Of ONNX Runtime."""
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(inputs)))


def by_the_rules(nms: Nms, inputs: Mapping[str, Box]) -> list[Box]:
    """What the plugin's README says, one picture and one pair of boxes after the other."""
    boxes, scores, *anchors = inputs.values()
    num, most = len(scores), nms.max_output_boxes
    results: list[Box] = [
        np.zeros((num, 1), np.int32), np.zeros((num, most, 4), np.float32), np.zeros((num, most), np.float32),
        np.zeros((num, most), np.int32),
    ]  # fmt: skip
    for picture in range(num):
        anchor = anchors[0][picture % len(anchors[0])] if anchors else None
        kept = rows_kept(nms, boxes[picture], scores[picture], anchor)
        results[0][picture, 0] = len(kept)
        for place, (box, score, label) in enumerate(kept):
            results[1][picture, place], results[2][picture, place], results[3][picture, place] = box, score, label
    return list(results)


def rows_kept(nms: Nms, boxes: Box, scores: Box, anchors: Box | None) -> list[tuple[Box, float, int]]:
    """Box, score and class of each that is kept, the best first."""
    values = 1 / (1 + np.exp(-scores.astype(np.float64))) if nms.score_activation else scores
    pairs = [
        (row, label)
        for row in range(len(scores))
        for label in range(scores.shape[1])
        if label != nms.background_class and values[row, label] >= np.float32(nms.score_threshold)
    ]
    pairs = sorted(pairs, key=lambda pair: -scores[pair])[:4096]
    kept: list[tuple[Box, float, int]] = []
    for row, label in pairs:
        raw = boxes[row, label] if boxes.ndim == 3 else boxes[row]
        box = corners(nms.box_coding, raw, None if anchors is None else anchors[row])
        rivals = [other for other, _, of in kept if nms.class_agnostic or of == label]
        if len(kept) < nms.max_output_boxes and all(overlap(box, o) < np.float32(nms.iou_threshold) for o in rivals):
            kept.append((box, float(values[row, label]), label))
    return kept


def corners(coding: int, box: Box, anchor: Box | None) -> Box:
    """A decoded box as two corners."""
    if coding == 0:
        in_order = [
            np.concatenate([np.minimum(b[:2], b[2:]), np.maximum(b[:2], b[2:])]) for b in (box, anchor) if b is not None
        ]
        return box if anchor is None else in_order[0] + in_order[1]
    center, size = box[:2], box[2:]
    if anchor is not None:
        center, size = center * anchor[2:] + anchor[:2], anchor[2:] * np.exp(size)
    return np.concatenate([center - size / 2, center + size / 2])


def overlap(first: Box, second: Box) -> np.float32:
    """Intersection over union, in FP32."""
    lows = [np.minimum(b[:2], b[2:]) for b in (first, second)]
    highs = [np.maximum(b[:2], b[2:]) for b in (first, second)]
    inner = np.prod(np.maximum(np.minimum(*highs) - np.maximum(*lows), np.float32(0)))
    union = sum(np.prod(high - low) for low, high in zip(lows, highs)) - inner
    return np.float32(0) if inner <= 0 or union <= 0 else np.float32(inner / union)


def boxes_on_a_grid(rng: np.random.Generator, shape: tuple[int, ...]) -> Box:
    """Small whole coordinates, so that many overlap by exactly a half or a third; some have their corners swapped."""
    low, size = rng.integers(0, 6, (*shape, 2)), rng.integers(1, 5, (*shape, 2))
    box = np.concatenate([low, low + size], axis=-1).astype(np.float32)
    return np.where(rng.random((*shape, 1)) < 0.1, box[..., [2, 3, 0, 1]], box)


def scores_all_different(rng: np.random.Generator, shape: tuple[int, int, int]) -> Box:
    """From 0 to 1, no two alike in a picture."""
    num = shape[1] * shape[2]
    return np.stack([rng.permutation(num).reshape(shape[1:]) / num for _ in range(shape[0])]).astype(np.float32)


CASES = {
    "as it is": Nms(),
    "all classes alike": Nms(class_agnostic=1),
    "with a background": Nms(background_class=2),
    "a threshold that scores meet": Nms(score_threshold=0.5),
    "by a third": Nms(iou_threshold=1 / 3),
    "everything that is not the same": Nms(iou_threshold=1.0, score_threshold=0.0, max_output_boxes=60),
    "more than there are": Nms(max_output_boxes=200),
    "centers and sizes": Nms(box_coding=1),
    "nothing is high enough": Nms(score_threshold=1.5),
}


@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize("case", CASES)
def test_random_boxes_come_out_as_by_the_rules(case: str, opset: int) -> None:
    rng, nms = np.random.default_rng(len(case)), CASES[case]
    boxes = boxes_on_a_grid(rng, (3, 40))
    if nms.box_coding:
        boxes = np.concatenate([(boxes[..., :2] + boxes[..., 2:]) / 2, abs(boxes[..., 2:] - boxes[..., :2])], axis=-1)
    inputs: Mapping[str, Box] = {"boxes": boxes, "scores": scores_all_different(rng, (3, 40, 4))}
    written, num = without_efficient_nms(model_of(nms, inputs, opset))
    assert num == 1
    assert [entry.domain for entry in written.opset_import] == [""]
    for got, expected in zip(answers(written, inputs), by_the_rules(nms, inputs), strict=True):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == expected.dtype


@pytest.mark.parametrize("coding", [0, 1])
@pytest.mark.parametrize("num_anchors", [1, 3])
def test_boxes_are_decoded_from_anchors(coding: int, num_anchors: int) -> None:
    rng, nms = np.random.default_rng(5), Nms(box_coding=coding)
    inputs: Mapping[str, Box] = {
        "boxes": rng.normal(0, 0.3, (3, 30, 4)).astype(np.float32),
        "scores": scores_all_different(rng, (3, 30, 2)),
        "anchors": boxes_on_a_grid(rng, (num_anchors, 30)),
    }
    written, _ = without_efficient_nms(model_of(nms, inputs))
    for got, expected in zip(answers(written, inputs), by_the_rules(nms, inputs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_each_class_may_have_a_box_of_its_own() -> None:
    rng, nms = np.random.default_rng(6), Nms(class_agnostic=1)
    inputs: Mapping[str, Box] = {
        "boxes": boxes_on_a_grid(rng, (2, 30, 3)), "scores": scores_all_different(rng, (2, 30, 3)),
    }  # fmt: skip
    written, _ = without_efficient_nms(model_of(nms, inputs))
    for got, expected in zip(answers(written, inputs), by_the_rules(nms, inputs), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_box_for_all_classes_and_scores_may_have_one_more_dimension() -> None:
    """(N, boxes, 1, 4) and (N, boxes, classes, 1), which the plugin takes as (N, boxes, 4) and (N, boxes, classes)."""
    rng, nms = np.random.default_rng(6), Nms(background_class=1)
    boxes, scores = boxes_on_a_grid(rng, (2, 30)), scores_all_different(rng, (2, 30, 3))
    expected = by_the_rules(nms, {"boxes": boxes, "scores": scores})
    for box, score in ((boxes[:, :, None], scores), (boxes, scores[..., None]), (boxes[:, :, None], scores[..., None])):
        inputs = {"boxes": box, "scores": score}
        written, _ = without_efficient_nms(model_of(nms, inputs))
        for got, wanted in zip(answers(written, inputs), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_raw_scores_go_through_the_sigmoid_as_they_are_put_out(threshold: float) -> None:
    rng, nms = np.random.default_rng(7), Nms(score_activation=1, score_threshold=threshold)
    scores = scores_all_different(rng, (2, 40, 3)) * 60 - 30  # The sigmoid of half of them is 1 in FP32.
    inputs: Mapping[str, Box] = {"boxes": boxes_on_a_grid(rng, (2, 40)), "scores": scores}
    written, _ = without_efficient_nms(model_of(nms, inputs))
    for got, expected in zip(answers(written, inputs), by_the_rules(nms, inputs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_no_more_than_4096_pairs_take_part_and_none_is_asked_for_at_once_that_tensorrt_cannot_sort() -> None:
    rng = np.random.default_rng(8)
    same = np.tile(np.array([0, 0, 4, 4], np.float32), (1, 5000, 1))
    scores = (rng.permutation(5000) / 5000).astype(np.float32).reshape(1, 5000, 1)
    order = np.argsort(-scores[0, :, 0])
    same[0, order[4095]] += 100  # The last that takes part stands alone, and the next two as well.
    same[0, order[4096]] += 200
    same[0, order[4097]] += 300
    inputs: Mapping[str, Box] = {"boxes": same, "scores": scores}
    written, _ = without_efficient_nms(model_of(Nms(score_threshold=0.0), inputs))
    num, boxes, *_ = answers(written, inputs)
    assert num.tolist() == [[2]]
    assert boxes[0, 1].tolist() == [100, 100, 104, 104]
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
    asked = [int(constants[node.input[1]][0]) for node in written.graph.node if node.op_type == "TopK"]
    assert asked == [3840, 256, 10]


def test_fp16_in_is_fp16_out() -> None:
    rng = np.random.default_rng(9)
    inputs: Mapping[str, Box] = {
        "boxes": boxes_on_a_grid(rng, (2, 20)).astype(np.float16),
        "scores": scores_all_different(rng, (2, 20, 2)).astype(np.float16),
    }
    written, _ = without_efficient_nms(model_of(Nms(), inputs, element=TensorProto.FLOAT16))
    wide = {name: array.astype(np.float32) for name, array in inputs.items()}
    got = answers(written, inputs)
    assert got[1].dtype == got[2].dtype == np.float16
    for mine, expected in zip(got, by_the_rules(Nms(), wide), strict=True):
        np.testing.assert_array_equal(mine, expected)


BOXES = {"boxes": np.zeros((2, 9, 4), np.float32), "scores": np.zeros((2, 9, 2), np.float32)}


def test_what_the_plugin_would_refuse_is_refused() -> None:
    for nms, words in (
        (replace(Nms(), iou_threshold=0.0), r"node 'nms', EfficientNMS_TRT: iou_threshold is 0\.0, which is not taken"),
        (replace(Nms(), box_coding=2), "box_coding is 2"),
        (replace(Nms(), max_output_boxes=5000), "max_output_boxes is 5000"),
    ):
        with pytest.raises(ModelError, match=words):
            without_efficient_nms(model_of(nms, BOXES))
    lacking = model_of(Nms(), BOXES)
    del lacking.graph.node[0].attribute[0]
    with pytest.raises(ModelError, match=r"has no .*, which the plugin asks for"):
        without_efficient_nms(lacking)
    odd = model_of(Nms(), BOXES)
    (attribute,) = (each for each in odd.graph.node[0].attribute if each.name == "iou_threshold")
    attribute.CopyFrom(helper.make_attribute("iou_threshold", "half"))
    with pytest.raises(ModelError, match="EfficientNMS_TRT: iou_threshold is b'half', a number is expected; export"):
        without_efficient_nms(odd)
    (attribute,) = (each for each in odd.graph.node[0].attribute if each.name == "iou_threshold")
    attribute.CopyFrom(helper.make_attribute("iou_threshold", 0.5))
    odd.graph.output[1].type.tensor_type.shape.dim[1].dim_value = 12
    with pytest.raises(ModelError, match="max_output_boxes is 10, and the model says of 'det_boxes' that it has 12;"):
        without_efficient_nms(odd)
    for shape in ((2, 8, 4), (2, 9, 3, 4)):
        with pytest.raises(ModelError, match=r"its inputs have the shapes 'boxes' .*, 'scores' .*; boxes \(N, B, 4\)"):
            without_efficient_nms(model_of(Nms(), BOXES | {"boxes": np.zeros(shape, np.float32)}))


def test_a_number_of_boxes_that_is_not_fixed_is_refused() -> None:
    model = model_of(Nms(), BOXES)
    for value in model.graph.input:
        value.type.tensor_type.shape.dim[1].dim_param = "boxes"
    with pytest.raises(ModelError, match="the number of boxes or of classes of 'scores' is not fixed"):
        without_efficient_nms(model)
    with pytest.raises(ModelError, match=r"its inputs have the shapes 'boxes' \(0, 9, 5\)"):
        without_efficient_nms(model_of(Nms(), BOXES | {"boxes": np.zeros((2, 9, 5), np.float32)}))
    with pytest.raises(ModelError, match="is in a model of opset 11; export it with 12 or later"):
        without_efficient_nms(model_of(Nms(), BOXES, opset=11))


def test_two_of_one_name_are_told_apart() -> None:
    """ONNX lets nodes have one name; no tensor may be made twice."""
    rng, model = np.random.default_rng(10), model_of(Nms(), BOXES)
    inputs: Mapping[str, Box] = {
        "boxes": boxes_on_a_grid(rng, (2, 9)), "scores": scores_all_different(rng, (2, 9, 2)),
    }  # fmt: skip
    second = onnx.NodeProto()
    second.CopyFrom(model.graph.node[0])
    for place, value in enumerate([*model.graph.output]):
        second.output[place] += "_again"
        model.graph.output.append(value)
        model.graph.output[-1].name += "_again"
    model.graph.node.append(second)
    written, num = without_efficient_nms(model)
    assert num == 2
    for got, expected in zip(answers(written, inputs), 2 * by_the_rules(Nms(), inputs), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_model_without_one_is_the_same_model() -> None:
    model, num = without_efficient_nms(model_of(Nms(), BOXES))
    assert num == 1
    assert without_efficient_nms(model) == (model, 0)
