"""The stage `validate`: tolerances, metrics and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.accuracy.comparison import Tolerance, write_outputs
from pipeline.artifact import Outputs
from pipeline.errors import ConfigError
from pipeline.stages.validate import Judge, Judged, LabelFile, Validate, agreement
from tests.pipeline.stages.networks import Array, Out

LABELS = np.array([0, 1, 2, 0])


RIGHT = np.eye(3, dtype=np.float32)[LABELS]


def outputs_of(folder: Path, **arrays: Array) -> Outputs:
    write_outputs(folder / "outputs.json", "test", [arrays])
    return Outputs(folder / "outputs.json")


@pytest.fixture
def labelled(tmp_path: Path) -> LabelFile:
    np.save(tmp_path / "labels.npy", LABELS)
    return LabelFile(tmp_path / "labels.npy", "")


def judged(name: str, precision: Any = "int8", folder: Path = Path()) -> Judged:
    return Judged(Judge(name, "", folder), precision)


def test_a_good_engine_passes(out: Out, labelled: LabelFile) -> None:
    verdict = Validate()(
        out(), outputs_of(out(), s=RIGHT), outputs_of(out(), s=RIGHT * 0.9), labelled, judged("top1")
    ).read()
    assert verdict["passed"]
    assert (verdict["metric"], verdict["reference_metric"], verdict["metric_drop"]) == (1.0, 1.0, 0.0)
    assert verdict["agreement"] == 1.0
    assert verdict["comparison"]["s"]["max_abs"] == pytest.approx(0.1)


@pytest.mark.parametrize(("precision", "passes"), [("fp32", False), ("fp16", False), ("int8", True)])
def test_each_precision_has_its_own_tolerances(out: Out, precision: Any, passes: bool) -> None:
    noisy = RIGHT + np.float32(0.1) * np.roll(RIGHT, 1, axis=1)
    verdict = Validate()(out(), outputs_of(out(), s=RIGHT), outputs_of(out(), s=noisy), None, judged("", precision))
    assert verdict.read()["passed"] is passes
    assert verdict.read()["metric"] is None


def test_what_passes_and_is_far_from_fp32_is_said(out: Out) -> None:
    want = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    far = outputs_of(out(), boxes=want + np.array([[0.0, 0.43], [0.43, 0.0]], np.float32))
    verdict = Validate()(out(), outputs_of(out(), boxes=want), far, None, judged("")).read()
    assert verdict["passed"]
    assert verdict["notes"] == ["output 'boxes' differs much from FP32's: cosine 0.919, SQNR 7.3 dB"]


def test_other_tolerances_judge_saved_outputs_again(out: Out) -> None:
    ours, theirs = outputs_of(out(), s=RIGHT * 0.5), outputs_of(out(), s=RIGHT)
    strict = Validate().with_tolerance("fp16", Tolerance(atol=0.1))
    assert strict.tolerances["int8"] == Validate().tolerances["int8"]
    failures = strict(out(), theirs, ours, None, judged("", "fp16")).read()["failures"]
    (failure,) = failures
    assert failure.startswith(
        "output 's' differs by up to 0.5, but atol 0.1 and rtol 0 are allowed; at [0, 0] it is 0.5"
    )


def test_a_drop_is_positive_where_more_is_better(out: Out, labelled: LabelFile) -> None:
    worse = RIGHT.copy()
    worse[0] = [0, 1, 0]
    stage = Validate().with_tolerance("int8", Tolerance(max_metric_drop=0.1))
    verdict = stage(out(), outputs_of(out(), s=RIGHT), outputs_of(out(), s=worse), labelled, judged("top1")).read()
    assert verdict["metric_drop"] == 0.25
    assert verdict["failures"] == ["top1 is 0.7500 against 1.0000 of FP32, a drop of 0.2500, above max_metric_drop 0.1"]
    assert verdict["agreement"] == 0.75


@pytest.mark.parametrize(("shift", "drop"), [(0.5, 0.5), (0.0, 0.0), (-0.25, 0.25)])
def test_a_drop_is_positive_where_less_is_better(out: Out, labelled: LabelFile, shift: float, drop: float) -> None:
    exact, ours = LABELS.astype(np.float32), (LABELS + shift).astype(np.float32)
    stage = Validate().with_tolerance("int8", Tolerance(max_metric_drop=0.3))
    verdict = stage(out(), outputs_of(out(), s=exact), outputs_of(out(), s=ours), labelled, judged("mae")).read()
    assert verdict["metric_drop"] == pytest.approx(drop)
    assert verdict["passed"] is (drop <= 0.3)


def test_better_than_fp32_is_a_negative_drop(out: Out, labelled: LabelFile) -> None:
    exact, off = LABELS.astype(np.float32), (LABELS + 0.5).astype(np.float32)
    stage = Validate().with_tolerance("int8", Tolerance())
    verdict = stage(out(), outputs_of(out(), s=off), outputs_of(out(), s=exact), labelled, judged("mae")).read()
    assert verdict["metric_drop"] == -0.5
    assert verdict["passed"]


@pytest.mark.parametrize("metric", ["", "top1"])
def test_nan_in_the_outputs_fails_in_a_sentence(out: Out, labelled: LabelFile, metric: str) -> None:
    broken = RIGHT.copy()
    broken[2, 1] = np.nan
    verdict = (
        Validate()
        .with_tolerance("int8", Tolerance())(
            out(), outputs_of(out(), s=RIGHT), outputs_of(out(), s=broken), labelled, judged(metric)
        )
        .read()
    )
    assert not verdict["passed"]
    assert "output 's' has NaN or infinity; at [2, 1] it is nan, and 0 of the reference" in verdict["failures"]
    assert verdict["agreement"] == 0.75


def test_a_metric_that_is_nan_is_out_of_any_bound(out: Out, labelled: LabelFile) -> None:
    broken = np.array([0, 1, np.nan, 0], np.float32)
    exact = LABELS.astype(np.float32)
    verdict = (
        Validate()
        .with_tolerance("int8", Tolerance())(
            out(), outputs_of(out(), s=exact), outputs_of(out(), s=broken), labelled, judged("mae")
        )
        .read()
    )
    assert any(failure.startswith("mae is nan against 0.0000 of FP32") for failure in verdict["failures"])


def test_agreement_is_for_class_scores_alone() -> None:
    scores = np.eye(3)
    assert agreement({"s": scores}, {"s": scores}, "") == 1.0
    assert agreement({"s": scores}, {"s": np.roll(scores, 1, axis=0)}, "") == 0.0
    assert agreement({"s": scores, "t": scores}, {"s": scores, "t": scores}, "") is None, "which of the two?"
    assert agreement({"s": scores, "t": scores}, {"s": scores, "t": scores}, "t") == 1.0
    assert agreement({"s": scores[:, 0]}, {"s": scores[:, 0]}, "") is None
    assert agreement({"s": scores[:, :1]}, {"s": scores[:, :1]}, "") is None


def test_a_users_metric_is_found_beside_the_plan_and_its_file_counts(
    tmp_path: Path, out: Out, labelled: LabelFile
) -> None:
    file = tmp_path / "own_metric_of_test_validate.py"
    file.write_text("def low(outputs, labels):\n    return float(outputs['s'][0, 0])\nlow.higher_is_better = False\n")
    name = "own_metric_of_test_validate:low"
    verdict = (
        Validate()
        .with_tolerance("int8", Tolerance())(
            out(), outputs_of(out(), s=RIGHT), outputs_of(out(), s=RIGHT * 3), labelled, judged(name, folder=tmp_path)
        )
        .read()
    )
    assert (verdict["metric"], verdict["reference_metric"], verdict["metric_drop"]) == (3.0, 1.0, 2.0)
    before = Judge(name, "", tmp_path).digest()
    file.write_text(file.read_text() + "# another thought\n")
    assert Judge(name, "", tmp_path).digest() != before
    assert Judge("top1", "", tmp_path).digest() == Judge("top1", "", tmp_path / "elsewhere").digest()
    assert Judge("top1", "", tmp_path).digest() != Judge("top1", "s", tmp_path).digest()


def test_labels_come_from_a_file_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", y=LABELS)
    np.save(tmp_path / "labels.npy", LABELS)
    found = [LabelFile(tmp_path / "data.npz", "y"), LabelFile(tmp_path / "labels.npy", "")]
    assert [file.labels().tolist() for file in found] == [[0, 1, 2, 0]] * 2
    assert len({file.digest() for file in found}) == 2
    for wrong in (LabelFile(tmp_path / "data.npz", "z"), LabelFile(tmp_path / "none.npy", "")):
        with pytest.raises(ConfigError, match=r"has no labels .*name an \.npy file, or an \.npz and --labels KEY"):
            wrong.labels()
