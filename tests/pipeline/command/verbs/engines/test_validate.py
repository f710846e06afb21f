"""The verb `validate`: tolerances from the command line, the table that it prints, and outputs judged again."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pipeline.accuracy.comparison import read_outputs
from pipeline.command.outcome_tables import print_verdict
from pipeline.command.verbs.engines.validate import TOLERANCES, tolerance_from
from pipeline.spelling import table_console
from pipeline.stages.validate import Validate
from tests.pipeline.command.verbs.calls import files, one_sentence

if TYPE_CHECKING:
    from tests.conftest import Command


def test_saved_outputs_are_judged_again(command: Command, outputs: tuple[Path, Path]) -> None:
    loose = command("validate", *outputs, "--precision", "int8", "-o", "verdict.json")
    assert loose.status == 0, loose.err
    assert loose.err == ""
    assert re.search(r"scores +[\d.]+ +[\d.]+ +0\.9\d{5} +\d+\.\d +\d+\.\d +yes", loose.out)
    assert "same arg max on 95.83% of the samples" in loose.out
    verdict = json.loads(Path("verdict.json").read_text())
    assert (verdict["passed"], verdict["precision"], verdict["metric"]) == (True, "int8", None)
    strict = command("validate", *outputs, "--atol", 0.25)
    assert strict.status == 5
    assert strict.out.startswith("out of tolerance")
    assert strict.err.startswith("trtforge: out of tolerance: other.json: output 'scores' differs by up to ")
    assert files(outputs[0].parent) == {"fp32.json", "other.json", "verdict.json"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--atol", 0.25), "differs by up to "),
        (("--min-cosine", 0.99999), "has cosine 0."),
        (("--min-psnr-db", 90), "has PSNR "),
        (("--metric", "mae", "--data", "labels.npy", "--max-metric-drop", 0), "mae is "),
        (("--metric", "top1", "--data", "data.npz", "--labels", "y", "--max-metric-drop", -1), "top1 is "),
    ],
)
def test_every_tolerance_can_fail(
    command: Command, outputs: tuple[Path, Path], options: tuple[object, ...], said: str
) -> None:
    np.save("labels.npy", np.asarray(read_outputs(outputs[0])["scores"]))
    found = command("validate", *outputs, "--precision", "int8", *options)
    assert found.status == 5, found.out
    assert len(found.err.splitlines()) == 1
    assert said in found.err


def test_the_metric_of_saved_outputs(command: Command, outputs: tuple[Path, Path]) -> None:
    right = np.argmax(read_outputs(outputs[0])["scores"], axis=1)
    np.save("labels.npy", right)
    said = command(
        "validate", *outputs, "--precision", "int8", "--metric", "top1", "--data", "labels.npy", "--max-metric-drop", 1
    )
    assert said.status == 0, said.err
    assert f"metric {23 / 24:.4f}, reference 1.0000" in said.out


def test_validate_runs_what_has_not_been_run(command: Command, int8: Path) -> None:
    options = ("--precision", "int8", "--data", "data.npz", "--labels", "y", "--metric", "top1")
    said = command("validate", "tiny.onnx", int8, *options)
    assert said.status == 0, said.err
    assert re.search(r"metric 0\.\d{4}, reference 0\.\d{4}", said.out)
    assert files(int8.parent) == {"ranges", "int8.onnx"}


def test_a_plan_judges_again_without_running_again(command: Command, ran: Path) -> None:
    ran.write_text(ran.read_text() + "\n[validate.int8]\natol = 1e-9\n")
    said = command("validate", ran)
    assert said.status == 5
    made = [line.split()[1] for line in said.err.splitlines() if "made in" in line]
    assert set(made) == {"validate"}


def test_labels_are_missing(command: Command, outputs: tuple[Path, Path]) -> None:
    metric = ("--metric", "top1")
    one_sentence(command("validate", *outputs, *metric), 2, "--data is missing: the metric compares with labels; name")
    said = command("validate", *outputs, *metric, "--data", "data.npz")
    one_sentence(said, 2, "--labels is missing: name the key of the labels in data.npz")
    one_sentence(command("validate", *outputs, *metric, "--data", "data.npz", "--labels", "z"), 2, "data.npz: has no ")
    said = command("validate", "tiny.onnx", outputs[1], *metric, "--data", "data.npz")
    one_sentence(said, 2, "data.npz: has no labels, the metric compares with them; set labels")
    said = command("validate", *outputs, "--metric", "top7", "--data", "data.npz", "--labels", "y")
    one_sentence(said, 2, "metric 'top7': is not one of top1, top5, mae, cosine, auc, precision, recall, f1, ")


NOT_GIVEN: dict[str, Any] = dict.fromkeys(TOLERANCES)


def test_what_is_not_given_is_the_precisions_default() -> None:
    for precision in ("fp32", "fp16", "int8"):
        assert tolerance_from(precision, dict(NOT_GIVEN)) == Validate().tolerance(precision)


def test_what_is_given_replaces_that_alone() -> None:
    found = tolerance_from("int8", NOT_GIVEN | {"atol": 0.0, "min_cosine": 0.5})
    default = Validate().tolerance("int8")
    assert (found.atol, found.min_cosine) == (0.0, 0.5), "zero is given too"
    assert (found.rtol, found.max_metric_drop) == (default.rtol, default.max_metric_drop)


def verdict(**changes: Any) -> dict[str, Any]:
    row = {"max_abs": 0.5, "mean_abs": 0.125, "cosine_min": 0.75, "psnr_db": math.inf, "sqnr_db": 7.9, "passed": True}
    return {
        "passed": True,
        "comparison": {"scores": row, "a[b]c": row | {"passed": False, "max_abs": math.nan}},
        "notes": ["output 'scores' differs much"],
        "metric": None,
        "reference_metric": None,
        "agreement": None,
    } | changes


def test_a_verdict_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    print_verdict(verdict(passed=False, metric=0.5, reference_metric=0.75, agreement=0.875), table_console())
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines == [
        "out of tolerance",
        "         max   mean    cosine  PSNR min  SQNR",
        " output  |Δ|    |Δ|       min        dB    dB  passed",
        " ────────────────────────────────────────────────────",
        " scores  0.5  0.125  0.750000       inf   7.9     yes",
        " a[b]c   nan  0.125  0.750000       inf   7.9      no",
        "Note: output 'scores' differs much",
        "metric 0.5000, reference 0.7500",
        "same arg max on 87.50% of the samples",
    ]


def test_a_verdict_without_metric_or_classes(capsys: pytest.CaptureFixture[str]) -> None:
    print_verdict(verdict(), table_console())
    out = capsys.readouterr().out
    assert out.startswith("passed")
    assert "metric" not in out
    assert "arg max" not in out
