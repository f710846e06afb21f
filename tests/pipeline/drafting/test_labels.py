"""A metric that fits the labels is named, one that does not is asked; what a plan cannot hold is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from PIL import Image

from calibration.data.source import DYNAMIC
from pipeline.drafting.class_labels import is_one_hot, why_no_classes
from pipeline.plan import read_plan, tomllib

if TYPE_CHECKING:
    from tests.conftest import Command

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
means (float[N, 3, 8, 8] image) => (float[N, 3] scores)
{
    means = GlobalAveragePool (image)
    scores = Flatten (means)
}
"""
INDICES = np.arange(20) % 3


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx.parser.parse_model(NETWORK), tmp_path / "net.onnx")
    return tmp_path


@pytest.mark.parametrize(
    ("labels", "metric", "asked"),
    [
        (INDICES, "top1", ""),
        (INDICES + 1, "", "For top1 labels go from 1 to 3, but the output has the classes 0 to 2."),
        (INDICES - 1, "", "For top1 labels go from -1 to 1, but the output"),
        (INDICES[:, None], "", "For top1 whole numbers (N,) are expected, not int64"),
        (np.array(["cat", "dog", "cow"])[INDICES], "", "For top1 whole numbers (N,) are expected, not <U3"),
        (np.eye(3, dtype=np.float32)[INDICES], "", "labels are one-hot: store each class's index instead, for top1"),
        (np.eye(3, dtype=np.int64)[INDICES], "", "labels are one-hot"),
        (np.full((20, 3), 0.25, np.float32), "mae", ""),
        (np.full(20, 0.25, np.float32), "", "which metric fits labels float32"),
    ],
)
def test_the_metric_fits_the_labels(here: Path, command: Command, labels: np.ndarray, metric: str, asked: str) -> None:
    np.savez("data.npz", image=np.zeros((20, 3, 8, 8), np.float32), y=labels)
    assert command("init", "net.onnx", "--data", "data.npz", "--labels", "y").status == 0
    plan, text = read_plan(here / "plan.toml"), (here / "plan.toml").read_text()
    assert plan.data.metric == metric
    assert plan.data.evaluation.labels == "y"
    comments = " ".join(line.strip("# ") for line in text.splitlines() if line.startswith("#"))
    assert asked in comments
    assert ("which metric" in comments) is bool(asked)


def test_values_of_one_number_are_held_to_their_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    """A network that answers (N, 1) with labels (N,), in hours: 0.01 of them is no bound."""
    monkeypatch.chdir(tmp_path)
    text = "net (float[N, 4] x) => (float[N, 1] y) { y = ReduceMean <axes = [1]> (x) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}'), tmp_path / "net.onnx")
    labels = np.linspace(0, 1000, 40)
    np.savez("data.npz", x=np.ones((40, 4), np.float32), hours=labels)
    assert command("init", "net.onnx", "--data", "data.npz", "--labels", "hours").status == 0
    plan = read_plan(tmp_path / "plan.toml")
    assert plan.data.metric == "mae"
    (bound,) = plan.advise.bounds
    assert float(bound.removeprefix("metric_drop <= ")) == pytest.approx(0.01 * labels.std(), rel=0.1)
    assert (
        command("init", "net.onnx", "--data", "data.npz", "--labels", "hours", "--metric", "r2", "-o", "r2.toml").status
        == 0
    )
    assert read_plan(tmp_path / "r2.toml").advise.bounds == ("metric_drop <= 0.01",)


@pytest.mark.parametrize("labels", ["0.5", "7", "cat"])
def test_labels_that_are_no_classes_do_not_tell_the_scale_of_pixels(here: Path, command: Command, labels: str) -> None:
    (here / "photos").mkdir()
    for number in range(5):
        Image.new("RGB", (8, 8)).save(here / "photos" / f"{number}.png")
    rows = "".join(f"{number}.png,{labels}\n" for number in range(5))
    (here / "labels.csv").write_text(f"file,label\n{rows}")
    told = command("init", "net.onnx", "--data", "photos", "--labels", "labels.csv")
    assert told.status == 0, told.err
    assert "Labels do not tell: for top1 " in told.err
    assert tomllib.loads((here / "plan.toml").read_text())["data"]["preprocess"]["scale"] == "?"


def test_pixels_stored_channels_first_are_not_tried_with_a_mean_for_each_channel(here: Path, command: Command) -> None:
    np.savez("data.npz", image=np.zeros((20, 3, 8, 8), np.uint8), y=INDICES)
    told = command("init", "net.onnx", "--data", "data.npz", "--labels", "y")
    assert told.status == 0, told.err
    assert "It cannot be tried on pictures stored with their channels first" in told.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--labels", "z"), "data.npz: has no array 'z' for the labels among its arrays 'image', 'y'"),
        (("--labels", "y", "--metric", "topp1"), "topp1"),
    ],
)
def test_what_would_not_run_is_not_written(here: Path, command: Command, options: tuple[str, ...], told: str) -> None:
    np.savez("data.npz", image=np.zeros((20, 3, 8, 8), np.float32), y=INDICES)
    refused = command("init", "net.onnx", "--data", "data.npz", *options)
    assert refused.status == 2
    assert told in refused.err
    assert not (here / "plan.toml").exists()


def test_names_that_a_plan_holds_and_one_that_it_cannot(here: Path, command: Command) -> None:
    strange = 'my "photos" \\ \x7f ü'
    for name in (strange, os.fsdecode(b"latin-\xe4")):
        Path(name).mkdir()
        np.save(Path(name) / "0.npy", np.zeros((20, 3, 8, 8), np.float32))
    assert command("init", "net.onnx", "--data", strange).status == 0
    assert read_plan(here / "plan.toml").data.evaluation.path == strange
    refused = command("init", "net.onnx", "--data", os.fsdecode(b"latin-\xe4"), "-o", "other.toml")
    assert refused.status == 2
    assert "is not UTF-8, which a plan is written in; rename the file or folder" in refused.err
    assert not (here / "other.toml").exists()


def test_indices_and_one_hot_rows() -> None:
    assert why_no_classes(np.array([0, 5]), DYNAMIC) == ""
    assert "the classes 0, 1, …" in why_no_classes(np.array([-1, 5]), DYNAMIC)
    assert why_no_classes(np.array([], np.int64), 3) == ""
    assert not is_one_hot(np.array([[1], [1]]))
    assert not is_one_hot(np.array([[1, 1], [0, 1]]))
    assert not is_one_hot(np.array([["1", "0"]]))
    assert is_one_hot(np.array([[True, False]]))
