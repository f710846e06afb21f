"""A first plan: what network and data tell stands in it, what they do not tell is asked and never taken."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.plan import Plan, read_plan, tomllib
from tests.pipeline.quadrants import QUADRANTS

if TYPE_CHECKING:
    from tests.conftest import Command

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
COLOURED = """
<ir_version: 8, opset_import: ["" : 17]>
coloured (float[N, 3, H, W] image) => (float[N, 3] scores)
{
    means = GlobalAveragePool (image)
    scores = Flatten (means)
}
"""


def save_network(folder: Path, text: str = QUADRANTS) -> None:
    onnx.save(onnx.parser.parse_model(text), folder / "net.onnx")


def pictures(num: int, high: int = 255) -> tuple[np.ndarray, np.ndarray]:
    """(num, 8, 8, 1) bytes of which a quarter is bright, and which one."""
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 60, (num, 8, 8, 1)), np.arange(num) % 4
    for image, label in zip(images, labels):
        top, left = 4 * (label // 2), 4 * (label % 2)
        image[top : top + 4, left : left + 4] = random.integers(high - 60, high, (4, 4, 1))
    return images.astype(np.uint8), labels


def save_pictures(folder: Path, num: int) -> None:
    for number, (image, label) in enumerate(zip(*pictures(num))):
        (folder / f"class{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[:, :, 0]).save(folder / f"class{label}" / f"{number}.png")


def drafted(folder: Path, command: Command, *options: object) -> Plan:
    told = command("init", "net.onnx", *options, "-o", "drafted.toml")
    assert told.status == 0, told.err
    return read_plan(folder / "drafted.toml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_network(tmp_path)
    return tmp_path


def test_pictures_in_one_folder_are_split_and_their_scale_is_told_by_labels(here: Path, command: Command) -> None:
    save_pictures(here / "photos", 60)
    plan = drafted(here, command, "--data", "photos", "--labels", "folders")
    assert plan.data.calibration is not None
    assert (plan.data.calibration.fold, plan.data.evaluation.fold) == ("1/5", "2-5/5")
    assert plan.data.calibration.path == plan.data.evaluation.path == "photos"
    assert plan.data.metric == "top1"
    options = plan.data.preprocess
    assert (options.resize, options.channels, options.layout, options.scale) == ((8, 8), "gray", "nchw", 1.0)
    assert "pixels as 0 to 255: of 48 labelled samples the network is right on: 0 to 255 48; 0 to 1 12" in (
        " ".join((here / "drafted.toml").read_text().replace("\n# ", " ").split())
    )
    assert plan.model.inputs["image"].max == (8, 1, 8, 8)
    assert "onnxruntime" in plan.variants.backends
    assert "reference" not in plan.variants.backends


def test_folders_named_for_it_are_the_two_sets(here: Path, command: Command) -> None:
    save_pictures(here / "photos" / "train", 40)
    save_pictures(here / "photos" / "val", 40)
    plan = drafted(here, command, "--data", "photos", "--labels", "folders")
    assert plan.data.calibration is not None
    assert (plan.data.calibration.path, plan.data.evaluation.path) == ("photos/train", "photos/val")
    assert plan.data.calibration.fold == ""


def test_without_labels_the_scale_is_a_question_that_has_to_be_answered(here: Path, command: Command) -> None:
    save_pictures(here / "photos", 20)
    told = command("init", "net.onnx", "--data", "photos", "-o", "drafted.toml")
    assert told.status == 0
    assert "[data.preprocess] scale is to be answered" in told.err
    text = (here / "drafted.toml").read_text()
    assert 'scale = "?"' in text
    assert "# ? are the 4 sub-folders of photos the classes?" in text
    with pytest.raises(ConfigError, match=r"\[data.preprocess.scale\] is still the question '\?'; answer it"):
        read_plan(here / "drafted.toml")
    refused = command("run", "net.onnx", "--data", "photos")
    assert refused.status == 2
    assert "network and data do not tell all that a plan needs: [data.preprocess] scale: which scale" in refused.err
    assert not (here / "trtforge-report-net").exists()


def test_what_labels_do_not_decide_is_asked(here: Path, command: Command) -> None:
    save_pictures(here / "photos", 10)
    told = command("init", "net.onnx", "--data", "photos", "--labels", "folders", "-o", "drafted.toml")
    assert told.status == 0
    assert "which does not decide" in told.err


def test_a_network_that_rescales_tells_the_scale_itself(here: Path, command: Command) -> None:
    text = QUADRANTS.replace("level = {100}", "level = {0}, float part = {255}").replace(
        "bright = Sub (image, level)", "unit = Div (image, part)\n    bright = Sub (unit, level)"
    )
    save_network(here, text)
    save_pictures(here / "photos", 20)
    plan = drafted(here, command, "--data", "photos")
    assert plan.data.preprocess.scale == 1.0
    assert "pixels from 0 to 255: the network divides by 255 first" in (here / "drafted.toml").read_text()
    assert plan.data.metric == ""
    assert plan.advise.bounds == ("agreement >= 0.98",)


def test_arrays_are_found_by_their_names(here: Path, command: Command) -> None:
    images, labels = pictures(60)
    turned = images.transpose(0, 3, 1, 2).astype(np.float32)
    np.savez(here / "data.npz", x_train=turned, y_train=labels, x_test=turned[:50], y_test=labels[:50])
    plan = drafted(here, command, "--data", "data.npz", "--labels", "y")
    assert plan.data.calibration is not None
    assert plan.data.calibration.inputs == {"image": "x_train"}
    assert plan.data.evaluation.inputs == {"image": "x_test"}
    assert (plan.data.calibration.labels, plan.data.evaluation.labels) == ("y_train", "y_test")
    assert plan.data.preprocess.dtype == "keep"


def test_arrays_that_could_each_be_it_are_a_question(here: Path, command: Command) -> None:
    zeros = np.zeros((4, 1, 8, 8), np.float32)
    np.savez(here / "data.npz", first=zeros, second=zeros)
    told = command("init", "net.onnx", "--data", "data.npz", "-o", "drafted.toml")
    assert "which array is the input 'image'? data.npz has first (4, 1, 8, 8), second (4, 1, 8, 8)" in told.err
    table = tomllib.loads((here / "drafted.toml").read_text())
    assert table["data"]["calibration"]["inputs"] == "?"


def test_pictures_of_any_size_are_asked_for_theirs(here: Path, command: Command) -> None:
    save_network(here, COLOURED)
    save_pictures(here / "photos", 8)
    told = command("init", "net.onnx", "--data", "photos", "-o", "drafted.toml")
    assert "[data.preprocess] resize is to be answered" in told.err
    table = tomllib.loads((here / "drafted.toml").read_text())
    assert "[data.preprocess] scale is to be answered" in told.err, "a size does not tell it"
    asked = {"resize": "?", "scale": "?"}
    assert table["data"]["preprocess"] == {"channels": "rgb", "layout": "nchw", "dtype": "float32"} | asked


def test_a_network_and_data_are_run_and_the_plan_is_told(here: Path, command: Command) -> None:
    save_pictures(here / "photos", 60)
    told = command("run", "net.onnx", "--data", "photos", "--labels", "folders", "--set", "report.html=false",
                   "--set", "benchmark.protocol.min_seconds=0", "--set", "benchmark.protocol.min_queries=8",
                   "--set", "benchmark.protocol.warmup_seconds=0", "--set", 'variants.backends=["onnxruntime"]',
                   "--set", 'variants.precisions=["fp32", "fp16"]')  # fmt: skip
    assert told.status == 0, told.err
    assert "trtforge: the plan that is used" in told.err
    assert (here / "trtforge-report-net" / "report.json").is_file()
    assert not (here / "net.toml").exists()


def test_the_command_of_the_page_on_data(here: Path, command: Command) -> None:
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^\$ trtforge (init .*)$", page, flags=re.MULTILINE)
    (here / "net.onnx").rename("model.onnx")
    save_pictures(here / "photos", 60)
    told = command(*shlex.split(line))
    assert (told.status, told.out) == (0, "first.toml\n")
    assert read_plan(here / "first.toml").data.metric == "top1"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "--data is missing: name samples; this tool never makes up data"),
        (("--data", "nowhere"), "--data nowhere: does not exist; give a folder"),
        (("--data", "net.onnx"), "--data net.onnx: is a '.onnx' file; give a folder"),
        (("--data", "empty"), "--data empty: holds neither pictures nor arrays"),
    ],
)
def test_what_is_no_data(here: Path, command: Command, options: tuple[str, ...], told: str) -> None:
    (here / "empty").mkdir()
    refused = command("init", "net.onnx", *options)
    assert refused.status == 2
    assert told in refused.err
    assert not (here / "plan.toml").exists()


def test_a_plan_that_is_there_is_never_replaced(here: Path, command: Command) -> None:
    (here / "plan.toml").write_text("mine")
    refused = command("init", "net.onnx", "--data", "photos")
    assert refused.status == 2
    assert "plan.toml: exists already" in refused.err
    assert (here / "plan.toml").read_text() == "mine"


def test_beside_a_plan_data_has_no_effect(plan: Path, command: Command) -> None:
    refused = command("run", plan, "--data", "photos")
    assert refused.status == 2
    assert "--data: has no effect together with a plan" in refused.err
