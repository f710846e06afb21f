"""The verb `lint`: findings as lines, and an exit status."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Command


def test_findings_are_lines_on_stdout_and_errors_end_with_2(command: Command, pictures: Path) -> None:
    said = command("lint", "quadrants.onnx", "--data", "right.npz", "--labels", "y")
    assert (said.status, said.err) == (0, "")
    assert said.out == (
        "note\tlabels\tright.npz: 64 labelled samples, scale, layout: as trained "
        "(the FP32 model is right on 64; 64 runs of it)\n"
    )
    said = command("lint", "quadrants.onnx", "--data", "wrong.npz", "--labels", "y", "--limit", 12, "-o", "found.json")
    assert (said.status, said.err) == (0, ""), "12 samples prove nothing"
    assert said.out.startswith("warning\tfew\twrong.npz: 12 distinct samples")
    assert [item["code"] for item in json.loads((pictures / "found.json").read_text())] == ["few", "labels"]
    said = command("lint", "quadrants.onnx", "--data", "wrong.npz", "--labels", "y")
    assert said.status == 2
    assert said.out.startswith(
        "error\trange\twrong.npz (preprocessing: none, samples are used as stored): the FP32 model"
    )
    assert re.search(r"right on \d+ of \d+ labelled samples as given, and on \d+ with × 255, which is", said.out)
    assert command("lint", "quadrants.onnx", "--data", "wrong.npz", "--labels", "y", "--allow", "range").status == 0


def test_evaluation_data_has_options_of_its_own(command: Command, pictures: Path) -> None:
    data = ("lint", "quadrants.onnx", "--data", "wrong.npz")
    said = command(
        *data, "--evaluation", "right.npz", "--evaluation-input", "image=evaluation", "--evaluation-labels", "z"
    )
    assert said.status == 2
    assert "the evaluation data right.npz from" in said.out
    assert said.err.startswith("trtforge: lint: 1 of 1 findings prevent calibration; if this is intended, allow ")
    said = command(*data, "--evaluation-labels", "z")
    assert (said.status, said.err) == (
        2, "trtforge: --evaluation is missing: its input or labels are given; name the samples\n"
    )  # fmt: skip
    said = command(*data, "--preprocess", "scale = 255.0", "--evaluation", "wrong.npz")
    assert said.status == 0
    assert said.out.startswith("warning\toverlap\t100 of 100 calibration samples are evaluation samples too")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip"])
def test_damaged_data_is_one_sentence(command: Command, pictures: Path, content: bytes) -> None:
    (pictures / "right.npz").write_bytes(content)
    said = command("lint", "quadrants.onnx", "--data", "right.npz")
    assert said.status == 2
    assert said.err.startswith("trtforge: right.npz: cannot be read as a whole .npz or .npy file (")


def test_the_verb_on_a_plan_prints_and_serves(command: Command, plan: Path) -> None:
    said = command("lint", plan)
    assert said.status == 0
    assert [line.split("\t")[:2] for line in said.out.splitlines()] == [
        ["warning", "few"], ["warning", "overlap"], ["note", "labels"]
    ]  # fmt: skip
    assert "calibrate" not in said.err
    again = command("lint", plan)
    assert again.out == said.out
    assert re.search(r"trtforge: lint +\w{12}  served", again.err)
    assert command("lint", plan, "--allow", "range").err.startswith(
        "trtforge: --allow: has no effect together with a plan"
    )
