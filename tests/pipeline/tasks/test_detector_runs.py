"""Detectors from the plan to the gate: by names and shapes, mapped, in a bundle, refused; what is wrong with labels."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from PIL import Image

from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.store import Store
from tests.pipeline.tasks.detectors_made import HEAD, LISTS, PICKED, PLAN, make_detector

if TYPE_CHECKING:
    from tests.conftest import Command

pytest.importorskip("pycocotools")


def metrics_of(folder: Path) -> dict[str, float]:
    record: dict[str, Any] = json.loads((folder / "trtforge-report/report.json").read_text())
    assert record["metric"]["unit"] == "fraction"
    return {variant["name"]: variant["metric"] for variant in record["variants"]}


CASES = [
    (LISTS, "boxes.json", ""),
    (HEAD, "boxes", ""),
    (PICKED, "boxes", "[quantize]\nmax_metric_drop = 0.05\n[data.detector]\nfirst_class = 1\n"),
]


@pytest.mark.parametrize(("text", "labels", "more"), CASES, ids=["lists", "head", "picked"])
def test_run_and_gate(text: str, labels: str, more: str, command: Command, tmp_path: Path) -> None:
    make_detector(tmp_path, text)
    (tmp_path / "plan.toml").write_text(PLAN.replace("boxes.json", labels) + more)
    ran = command("run", tmp_path / "plan.toml")
    assert ran.status == 0, ran.err
    values = metrics_of(tmp_path)
    assert 0.75 < values["fp32@onnxruntime"] <= 1, values
    assert values["int8@onnxruntime"] > 0.5, values
    gated = command("gate", tmp_path / "plan.toml", "--candidate", "int8@onnxruntime")
    assert gated.status == 0, gated.out + gated.err


def test_lists_in_the_order_of_scores_are_judged_by_the_metric_alone(tmp_path: Path) -> None:
    """Two squares of nearly one score change places in INT8, which no distance of arrays may fail."""
    make_detector(tmp_path)
    plan = PLAN + "[validate.int8]\nmin_cosine = 0.9999\nmin_sqnr_db = 60\n"
    (tmp_path / "plan.toml").write_text(plan.replace('metric = "map"', 'metric = "map50"'))
    made = run(read_plan(tmp_path / "plan.toml"), Store(tmp_path / "store"), "validate")
    verdict = next(v.read() for variant, v in made.verdicts.items() if variant.name == "int8@onnxruntime")
    assert verdict["passed"], verdict["failures"]
    assert verdict["comparison"]["detection_boxes"]["sqnr_db"] < 60
    assert verdict["notes"] == [
        "detection_boxes, detection_scores, detection_classes, num_detections: lists in the order of scores, in which "
        "two that change places are the same answer; judged by map50 alone"
    ]


def renamed(folder: Path) -> None:
    """The detector with outputs named as nobody's, and beside them one that is no part of it."""
    model = onnx.load(folder / "net.onnx")
    names = {"detection_boxes": "b", "detection_scores": "s", "detection_classes": "c", "num_detections": "n"}
    for node in model.graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
    for output in model.graph.output:
        output.name = names[output.name]
    onnx.save(model, folder / "net.onnx")


def test_outputs_named_otherwise_are_listed_and_mapped(command: Command, tmp_path: Path) -> None:
    make_detector(tmp_path)
    renamed(tmp_path)
    refused = command("validate", tmp_path / "plan.toml")
    assert refused.status == 2
    assert "the detector's outputs are 'b' (6, 4), 's' (6,), 'c' (6,), 'n' ()" in refused.err
    assert "name them in [data.detector]" in refused.err
    names = 'boxes = "b"\nscores = "s"\nclasses = "c"\ncount = "n"\ncorners = "yxyx"\n'
    (tmp_path / "plan.toml").write_text(PLAN + f"[data.detector]\n{names}")
    asked = command("validate", tmp_path / "plan.toml")
    assert asked.status == 2
    assert "whether 'c' has ids of the labels' file or places in its list is not known" in asked.err
    (tmp_path / "plan.toml").write_text(PLAN + f'[data.detector]\nnumbers = "id"\n{names}')
    ran = command("run", tmp_path / "plan.toml")
    assert ran.status == 0, ran.err
    assert metrics_of(tmp_path)["fp32@onnxruntime"] > 0.9


def test_a_bundle_has_the_boxes_with_it(command: Command, tmp_path: Path) -> None:
    """Pictures come preprocessed; where they lay is in the labels, so that boxes are undone to the same pixels."""
    make_detector(tmp_path)
    assert command("run", tmp_path / "plan.toml").status == 0
    values = metrics_of(tmp_path)
    (tmp_path / "plan.toml").write_text(PLAN + "[pack]\nbackends = ['onnxruntime']\n")
    packed = command("pack", tmp_path / "plan.toml", "-o", tmp_path / "bundle.tar")
    assert packed.status == 0, packed.err
    with tarfile.open(tmp_path / "bundle.tar") as archive:
        archive.extractall(tmp_path / "device")  # Its own bundle; Python 3.11.2 knows no filter.
    (plan,) = (tmp_path / "device").rglob("plan.toml")
    ran = command("run", plan)
    assert ran.status == 0, ran.err
    assert metrics_of(plan.parent) == values


def test_mixed_precision_is_bounded_by_mean_average_precision(tmp_path: Path) -> None:
    make_detector(tmp_path)
    plan = read_plan(tmp_path / "plan.toml", ["quantize.max_metric_drop = 0.05", "variants.precisions = ['int8']"])
    made = run(plan, Store(tmp_path / "store"), "quantize")
    (model,) = made.models.values()
    assert any("for map at most 0.05 below FP32's, on calibration samples" in note for note in model.notes())


def test_boxes_do_not_train_and_a_teacher_does(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    make_detector(tmp_path, HEAD)
    (tmp_path / "plan.toml").write_text(PLAN + "[tune]\nepochs = 1\nloss = 'labels'\n")
    refused = command("tune", tmp_path / "plan.toml")
    assert refused.status == 2
    assert "labels are (12, 4, 8)" in refused.err
    (tmp_path / "plan.toml").write_text(PLAN + "[tune]\nepochs = 1\n")
    made = command("tune", tmp_path / "plan.toml")
    assert made.status == 0, made.err


def test_no_labels_is_one_sentence(command: Command, tmp_path: Path) -> None:
    make_detector(tmp_path)
    (tmp_path / "plan.toml").write_text(PLAN.replace(', labels = "boxes.json"', ""))
    refused = command("run", tmp_path / "plan.toml")
    assert refused.status == 2
    assert "metric 'map': needs labels, there are none; set labels in [data]" in refused.err


@pytest.mark.parametrize(("labels", "metric"), [("boxes.json", "map"), ("boxes", "map"), ("masks", "miou")])
def test_a_first_plan_has_the_metric_of_the_labels(labels: str, metric: str, command: Command, tmp_path: Path) -> None:
    make_detector(tmp_path)
    (tmp_path / "masks").mkdir()
    for picture in (tmp_path / "pictures").iterdir():
        Image.new("L", (64, 48)).save(tmp_path / "masks" / picture.name)
    (tmp_path / "plan.toml").unlink()
    made = command(
        "init", tmp_path / "net.onnx", "--data", tmp_path / "pictures", "--labels", tmp_path / labels, "-o",
        tmp_path / "plan.toml",
    )  # fmt: skip
    assert made.status == 0, made.err
    text = (tmp_path / "plan.toml").read_text()
    assert f'metric = "{metric}"' in text
    assert ('fit = "?"' in text) is (metric == "map"), "of 64 x 48 in 32 x 40"
    assert ("pictures, such as one of 64 x 48, have another aspect" in made.err.replace("\n", " ")) is (metric == "map")
    refused = command("run", tmp_path / "plan.toml")
    assert refused.status == 2
    assert "?" in refused.err


def test_a_gate_says_why_the_labels_do_not_meet_the_answers(command: Command, tmp_path: Path) -> None:
    """YOLO's files number classes from 0, and the network names COCO's ids."""
    make_detector(tmp_path)
    gated = command(
        "gate", "--candidate", tmp_path / "net.onnx", "--backend", "onnxruntime", "--reference", tmp_path / "net.onnx",
        "--data", tmp_path / "pictures", "--labels", tmp_path / "boxes", "--metric", "map", "--no-html",
        "--preprocess", 'resize=[40,32], fit="letterbox", fill=0.0, scale=0.00392156862745098, layout="nchw"',
        "--budget", "metric >= 0.5", "-o", tmp_path / "gate",
    )  # fmt: skip
    assert gated.status == 5, gated.err
    assert (
        "FP32 itself has 0 on these samples: check the labels and the data first; map: the network names classes 7"
        in (" ".join((gated.out + gated.err).split()))
    )


def test_twelve_pictures_do_not_prove_that_nothing_is_lost(command: Command, tmp_path: Path) -> None:
    make_detector(tmp_path)
    (tmp_path / "plan.toml").write_text(PLAN.replace("metric_drop <= 0.6", "metric_drop <= 0.1"))
    gated = command("gate", tmp_path / "plan.toml", "--candidate", "fp16@onnxruntime")
    assert gated.status == 6
    assert "metric_drop is 0 (99 % interval -0.3560 to 0.3560), too uncertain to say whether <= 0.1 holds" in gated.err
