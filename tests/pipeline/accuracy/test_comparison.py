"""Outputs in Polygraphy's format, and the numbers and sentences that a comparison gives."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration.analysis.difference import Element
from engines.contract import Array
from pipeline.accuracy.comparison import (
    OutputComparison,
    SavedOutputs,
    Tolerance,
    compare,
    read_outputs,
    write_outputs,
)
from pipeline.errors import ConfigError

REFERENCE = np.array([[1, 2, 2], [2, 0, 0], [0, 3, 4]], np.float32)
STRICT = Tolerance(atol=0.0, min_cosine=1.0, min_psnr_db=100.0)


def saved(path: Path, *batches: Array, name: str = "scores") -> Path:
    write_outputs(path, "runner", [{name: batch} for batch in batches])
    return path


def compared_files(theirs: Path, ours: Path, tolerance: Tolerance) -> dict[str, OutputComparison]:
    return compare(SavedOutputs(theirs), SavedOutputs(ours), tolerance)


def compared(folder: Path, ours: list[Array], tolerance: Tolerance) -> OutputComparison:
    """REFERENCE, in batches of 2 and 1, with these batches of a candidate."""
    theirs = saved(folder / "reference.json", REFERENCE[:2], REFERENCE[2:])
    return compared_files(theirs, saved(folder / "candidate.json", *ours), tolerance)["scores"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    batches: list[dict[str, Array]] = [
        {"a": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.arange(3)},
        {"a": np.ones((1, 2), np.float32), "b": np.array([9])},
    ]
    write_outputs(tmp_path / "outputs.json", "onnxruntime", batches)
    found = read_outputs(tmp_path / "outputs.json")
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["a"], [[0, 1], [2, 3], [4, 5], [1, 1]])
    np.testing.assert_array_equal(found["b"], [0, 1, 2, 9])
    assert found["a"].dtype == np.float32
    assert found["b"].dtype == np.int64


def test_pytorch_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert compared(tmp_path, [REFERENCE], STRICT).passed
    assert "torch" not in sys.modules


def test_polygraphy_itself_reads_the_file(tmp_path: Path) -> None:
    comparator = pytest.importorskip("polygraphy.comparator")
    saved(tmp_path / "outputs.json", REFERENCE)
    results = comparator.RunResults.load(str(tmp_path / "outputs.json"))
    assert list(results.keys()) == ["runner"]
    np.testing.assert_array_equal(results["runner"][0]["scores"], REFERENCE)


def test_equal_outputs(tmp_path: Path) -> None:
    nowhere = Element((0, 0), 1.0, 1.0)
    expected = OutputComparison(0.0, 0.0, 1.0, 1.0, math.inf, math.inf, nowhere, True, ())
    assert compared(tmp_path, [REFERENCE], STRICT) == expected


def test_the_numbers_by_hand(tmp_path: Path) -> None:
    candidate = REFERENCE.copy()
    candidate[2] = [0, 4, 3]  # Cosine (12 + 12) / 25; mean squared error 2 / 3, largest value 4.
    found = compared(tmp_path, [candidate], Tolerance())
    assert found.max_abs == 1.0
    assert found.mean_abs == pytest.approx(2 / 9)  # Over samples, though the batches are of 2 and of 1.
    assert found.cosine_min == pytest.approx(24 / 25)
    assert found.cosine_mean == pytest.approx((1 + 24 / 25) / 2)
    assert found.psnr_db == pytest.approx(20 * math.log10(4) - 10 * math.log10(2 / 3), abs=0.01)
    assert found.sqnr_db == pytest.approx(10 * math.log10((9 + 4 + 25) / 2))
    assert found.worst == Element((2, 1), 3.0, 4.0), "the first of those that differ most, by its place in all samples"
    assert found.passed


def test_the_candidates_own_batches_do_not_matter(tmp_path: Path) -> None:
    candidate = REFERENCE + np.float32(0.25)
    one = compared(tmp_path, [candidate], STRICT)
    assert compared(tmp_path, list(candidate[:, None]), STRICT) == one


@pytest.mark.parametrize(
    ("tolerance", "failure"),
    [
        (Tolerance(atol=0.5), "output 'scores' differs by up to 1, but atol 0.5 and rtol 0 are allowed"),
        (Tolerance(atol=0.0, rtol=0.3), "output 'scores' differs by up to 1, but atol 0 and rtol 0.3 are allowed"),
        (Tolerance(min_cosine=0.97), "output 'scores' has cosine 0.960000, below min_cosine 0.97"),
        (Tolerance(min_psnr_db=20), "output 'scores' has PSNR 13.8 dB, below min_psnr_db 20"),
    ],
)
def test_each_check_fails_alone(tmp_path: Path, tolerance: Tolerance, failure: str) -> None:
    candidate = REFERENCE.copy()
    candidate[2] = [0, 4, 3]
    found = compared(tmp_path, [candidate], tolerance)
    assert found.failures == (f"{failure}; at [2, 1] it is 4, and 3 of the reference",)
    assert not found.passed


@pytest.mark.parametrize(
    "tolerance", [Tolerance(atol=1.0), Tolerance(atol=0.0, rtol=0.34), Tolerance(min_cosine=0.95, min_psnr_db=13)]
)
def test_what_is_within_passes(tmp_path: Path, tolerance: Tolerance) -> None:
    candidate = REFERENCE.copy()
    candidate[2] = [0, 4, 3]
    assert compared(tmp_path, [candidate], tolerance).passed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_never_pass(tmp_path: Path, value: float) -> None:
    candidate = REFERENCE.copy()
    candidate[1, 1] = value
    found = compared(tmp_path, [candidate], Tolerance())
    assert found.failures == (f"output 'scores' has NaN or infinity; at [1, 1] it is {value}, and 0 of the reference",)
    assert found.sqnr_db == -math.inf
    assert not found.passed


def test_samples_of_one_row_are_compared_with_samples_of_several(tmp_path: Path) -> None:
    """A detector that by chance found one thing on each sample, and another that did not."""
    theirs = saved(tmp_path / "reference.json", *(np.full((1, 3), value, np.float32) for value in (1, 2, 3)))
    rows = [np.full((1, size, 3), value, np.float32) for size, value in ((1, 1), (2, 2), (1, 4))]
    found = compared_files(theirs, saved(tmp_path / "candidate.json", *rows), Tolerance(atol=9.0))["scores"]
    (failure,) = found.failures
    assert failure == (
        "output 'scores' has another shape than FP32's on 1 of 3 samples, such as (2, 3) instead of (1, 3) on sample 1"
    )
    assert found.max_abs == 1.0
    assert found.worst.index[0] == 2


def test_the_same_infinities_agree_and_others_do_not(tmp_path: Path) -> None:
    masked = REFERENCE.copy()
    masked[:, 2] = -np.inf
    theirs = saved(tmp_path / "reference.json", masked)
    equal = compared_files(theirs, saved(tmp_path / "equal.json", masked), STRICT)["scores"]
    assert (equal.passed, equal.max_abs, equal.sqnr_db) == (True, 0.0, math.inf)
    near = compared_files(theirs, saved(tmp_path / "near.json", masked * np.float32(1.5)), Tolerance(atol=9.0))
    assert near["scores"].max_abs == 1.5
    masked[1, 2] = np.inf
    other = compared_files(theirs, saved(tmp_path / "other.json", masked), Tolerance(atol=9.0))["scores"]
    assert not other.passed
    assert other.worst.index == (1, 2)


def test_zeros_against_zeros_are_equal(tmp_path: Path) -> None:
    zeros = saved(tmp_path / "zeros.json", np.zeros((2, 3), np.float32))
    assert compared_files(zeros, zeros, STRICT)["scores"].passed


def test_a_batch_in_which_nothing_is_detected_is_held_to_what_it_would_be_beside_a_signal(tmp_path: Path) -> None:
    found, nothing = np.array([[1.0, 0.0, 0.5]], np.float32), np.full((1, 3), 1e-7, np.float32)
    theirs = saved(tmp_path / "a.json", found, nothing)
    rounded = saved(tmp_path / "b.json", found, np.array([[2e-7, 0, 0]], np.float32))
    close = compared_files(theirs, rounded, Tolerance(min_cosine=0.9999))["scores"]
    assert close.passed
    assert close.cosine_min == pytest.approx(1.0, abs=1e-9)
    wrong = saved(tmp_path / "c.json", found, np.array([[0.05, 0, 0]], np.float32))
    seen = compared_files(theirs, wrong, Tolerance(min_cosine=0.999))["scores"]
    power = 0.01 * (1.25 / 2)
    assert not seen.passed
    assert seen.cosine_min == pytest.approx(1 / math.sqrt(1 + 0.0025 / power), rel=1e-4)
    alone = saved(tmp_path / "d.json", nothing)
    assert not compared_files(alone, saved(tmp_path / "e.json", nothing * [1, 0, 0]), STRICT)["scores"].passed


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float16, np.float64])
def test_other_number_types(tmp_path: Path, kind: type[np.generic]) -> None:
    theirs = saved(tmp_path / "a.json", REFERENCE.astype(kind))
    ours = saved(tmp_path / "b.json", (REFERENCE + 1).astype(kind))
    assert compared_files(theirs, ours, Tolerance())["scores"].max_abs == 1.0


def test_truth_values(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "a.json", np.array([[True, False]]))
    ours = saved(tmp_path / "b.json", np.array([[True, True]]))
    assert compared_files(theirs, theirs, STRICT)["scores"].passed
    assert compared_files(theirs, ours, Tolerance(atol=0))["scores"].max_abs == 1.0


def test_outputs_are_matched_by_name(tmp_path: Path) -> None:
    write_outputs(tmp_path / "a.json", "a", [{"x": REFERENCE, "y": -REFERENCE}])
    write_outputs(tmp_path / "b.json", "b", [{"y": -REFERENCE, "x": REFERENCE}])
    found = compared_files(tmp_path / "a.json", tmp_path / "b.json", STRICT)
    assert [(name, output.passed) for name, output in found.items()] == [("x", True), ("y", True)]


def test_other_names(tmp_path: Path) -> None:
    theirs, ours = saved(tmp_path / "a.json", REFERENCE), saved(tmp_path / "b.json", REFERENCE, name="logits")
    with pytest.raises(ConfigError, match=r"b\.json: has the outputs logits, but \S*a\.json has scores; compare engin"):
        compared_files(theirs, ours, STRICT)


def test_other_numbers_of_samples(tmp_path: Path) -> None:
    theirs, ours = saved(tmp_path / "a.json", REFERENCE), saved(tmp_path / "b.json", REFERENCE[:2])
    with pytest.raises(ConfigError, match=r"b\.json: holds 2 samples, but \S*a\.json 3; run both on the same data"):
        compared_files(theirs, ours, STRICT)


@pytest.mark.parametrize("columns", [1, 2])
def test_other_shapes_are_never_stretched(tmp_path: Path, columns: int) -> None:
    theirs, ours = saved(tmp_path / "a.json", REFERENCE), saved(tmp_path / "b.json", REFERENCE[:, :columns])
    with pytest.raises(
        ConfigError, match=rf"output 'scores' is \({columns},\) a sample, but \(3,\) in \S*a\.json; com"
    ):
        compared_files(theirs, ours, STRICT)


def test_files_that_are_not_outputs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: does not exist; give a file that `trtforge infer` or `polygr"):
        read_outputs(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="is a folder; give a file"):
        read_outputs(tmp_path)
    for text in ("", "{}", "[1, 2]", '{"lst": [], "polygraphy_class": "RunResults"}', "\x00"):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(
            ConfigError, match=r"x\.json: cannot be read as Polygraphy's RunResults \(\w+\); make it wi"
        ):
            read_outputs(tmp_path / "x.json")


def test_a_file_without_batches(tmp_path: Path) -> None:
    write_outputs(tmp_path / "x.json", "r", [])
    with pytest.raises(ConfigError, match=r"x\.json: holds no outputs; run `trtforge infer` again"):
        read_outputs(tmp_path / "x.json")


def test_batches_of_unlike_outputs(tmp_path: Path) -> None:
    write_outputs(tmp_path / "x.json", "r", [{"a": REFERENCE}, {"b": REFERENCE}])
    with pytest.raises(
        ConfigError,
        match=r"x\.json: its batches do not match each other \('a'\); run `trtforge "
        r"infer`",
    ):
        read_outputs(tmp_path / "x.json")


def test_polygraphy_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    compared(tmp_path, [REFERENCE + np.float32(9)], STRICT)
    assert capfd.readouterr() == ("", "")


FLOATS = st.floats(-8, 8, width=16)


@settings(max_examples=25)
@given(hnp.arrays(np.float32, (4, 3), elements=FLOATS), hnp.arrays(np.float32, (4, 3), elements=FLOATS))
def test_the_numbers_are_numpys(tmp_path_factory: pytest.TempPathFactory, a: Array, b: Array) -> None:
    folder = tmp_path_factory.mktemp("pair")
    theirs, ours = saved(folder / "a.json", a[:3], a[3:]), saved(folder / "b.json", b)
    found = compared_files(theirs, ours, Tolerance(atol=1.0))["scores"]
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
    assert found.max_abs == pytest.approx(difference.max(), rel=1e-5)
    assert found.mean_abs == pytest.approx(difference.mean(), rel=1e-5, abs=1e-7)
    assert found.passed == bool(difference.max() <= 1.0)


def test_the_runner_of_outputs_is_known(tmp_path: Path) -> None:
    write_outputs(tmp_path / "outputs.json", "onnxruntime", [{"y": np.ones((1, 2), np.float32)}])
    assert SavedOutputs(tmp_path / "outputs.json").runner == "onnxruntime"
