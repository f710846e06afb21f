"""What is said of calibration data, and on what evidence; as much, what is not said."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from calibration.arrays import AnyArray
from calibration.data.batches import DataSource, InputSpec, open_samples
from calibration.data.preprocess import Preprocess
from calibration.errors import DataError
from calibration.lint.changes import Change, ChangeCode
from calibration.lint.finding import Finding
from calibration.lint.findings import LintThresholds, finding_from_labels, findings, note_from_labels, raise_errors
from calibration.lint.input_scale import Rescaling
from calibration.lint.label_check import Better, LabelVerdict
from calibration.lint.survey import Survey, survey

Floats = npt.NDArray[np.float32]


def photographs(num: int, seed: int = 0, shape: tuple[int, int] = (24, 24)) -> Floats:
    """(num, H, W, 3) of 0..255 with what photographs have: smooth patches, edges, channels alike but not equal."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]] / shape[0]
    found = np.zeros((num, *shape, 3), np.float32)
    for picture in found:
        for _ in range(6):
            slope_r, slope_c, offset = random.normal(size=3)
            region = (rows * slope_r + columns * slope_c > offset / 3)[:, :, None]
            picture += (
                region * random.uniform(0, 50, 3) * (1 + 0.3 * np.sin(9 * rows + random.uniform(0, 6)))[:, :, None]
            )
        picture += random.normal(0, 2, picture.shape)
    return np.clip(found, 0, 255)


def surveyed(path: Path, x: AnyArray, labels: Sequence[int] | None = None) -> Survey:
    arrays = {"x": x} | ({} if labels is None else {"y": np.asarray(labels)})
    np.savez(path, **arrays)
    spec = InputSpec("x", x.dtype.name, (-1, *x.shape[1:]))
    return survey(open_samples(DataSource(str(path), labels="" if labels is None else "y"), (spec,), Preprocess()))


def found_in(data: Survey, evaluation: Survey | None = None, model: Rescaling | None = None) -> list[tuple[str, str]]:
    """Severity and code of all findings."""
    return [
        (f.severity, f.code)
        for f in findings(data, evaluation, {} if model is None else {"x": model}, LintThresholds())
    ]


def rescaling(mean: float, std: float) -> Rescaling:
    return Rescaling(np.full((1, 1, 1, 1), mean), np.full((1, 1, 1, 1), std), ("Sub", "Div"))


BYTES, UNIT, SIGNED = rescaling(0, 255), rescaling(0.45, 0.23), rescaling(127.5, 127.5)


@pytest.mark.parametrize(
    ("model", "scale", "shift", "expected"),
    [
        (BYTES, 1, 0, ""), (BYTES, 1 / 255, 0, "too small"), (BYTES, 2 / 255, -1, "too small"), (BYTES, 1 / 6, 0, ""),
        (SIGNED, 1, 0, ""), (SIGNED, 1 / 255, 0, "too small"),
        (UNIT, 1 / 255, 0, ""), (UNIT, 1, 0, "too large"), (UNIT, 2 / 255, -1, ""), (UNIT, 1 / 255**2, 0, "too small"),
        (rescaling(116, 1), 1, 0, ""), (rescaling(116, 1), 1 / 255, 0, "too small"),
    ],
)  # fmt: skip
def test_a_model_that_rescales_its_input_gives_the_scale_away(
    tmp_path: Path, model: Rescaling, scale: float, shift: float, expected: str
) -> None:
    data = surveyed(tmp_path / "d.npz", (photographs(20) * scale + shift).astype(np.float32))
    found = [f for f in findings(data, None, {"x": model}, LintThresholds()) if f.code == "range"]
    assert len(found) == bool(expected)
    if expected:
        assert found[0].severity == "error"
        assert f", {expected} for the model, which " in found[0].sentence
        assert "d.npz: input 'x' has values from " in found[0].sentence


def test_dark_pictures_are_no_scaled_pictures(tmp_path: Path) -> None:
    """Strokes of a pen on black: the mean square is tiny, the brightest pixels are not."""
    sketches = np.zeros((20, 24, 24, 3), np.float32)
    sketches[:, 12, 3:9] = 255
    assert found_in(surveyed(tmp_path / "d.npz", sketches + photographs(20) / 500), model=BYTES) == []


def test_a_batch_norm_at_the_start_fits_its_own_data_exactly(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal([5, -300], [2, 9], (64, 2)).astype(np.float32)
    saw = Rescaling(np.array([[5.0, -300.0]]), np.array([[2.0, 9.0]]), ("BatchNormalization",))
    assert found_in(surveyed(tmp_path / "d.npz", x), model=saw) == []
    assert found_in(surveyed(tmp_path / "d.npz", x * np.float32(100)), model=saw) == [("error", "range")]


def test_constants_that_do_not_fit_the_samples_are_no_evidence(tmp_path: Path) -> None:
    saw = Rescaling(np.zeros((1, 1, 1, 7)), np.full((1, 1, 1, 7), 255.0), ("Div",))
    assert found_in(surveyed(tmp_path / "d.npz", photographs(20) / 255), model=saw) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: x, []),
        (lambda x: x * 0.2, []),
        (lambda x: x / 255, [("error", "range")]),
        (lambda x: x / 127.5 - 1, [("error", "range")]),
    ],
)
def test_calibration_and_evaluation_data_of_two_scales(
    tmp_path: Path, change: Callable[[Floats], Floats], expected: list[tuple[str, str]]
) -> None:
    data = surveyed(tmp_path / "c.npz", change(photographs(20)).astype(np.float32))
    assert found_in(data, surveyed(tmp_path / "e.npz", photographs(40, seed=1))) == expected


def test_values_0_to_1_beside_values_of_both_signs(tmp_path: Path) -> None:
    unit = surveyed(tmp_path / "c.npz", photographs(20) / np.float32(255))
    signed = surveyed(tmp_path / "e.npz", photographs(40, seed=1) / np.float32(127.5) - np.float32(1))
    assert found_in(unit, signed) == found_in(signed, unit) == [("error", "range")]


@pytest.mark.parametrize("channels_first", [False, True])
def test_a_reshape_in_a_transposes_place_leaves_rough_pictures(tmp_path: Path, channels_first: bool) -> None:
    right = np.moveaxis(photographs(20), 3, 1) if channels_first else photographs(20)
    right = np.ascontiguousarray(right)
    assert found_in(surveyed(tmp_path / "d.npz", right)) == []
    planes = np.moveaxis(photographs(20), 3, 1)
    if not channels_first:
        wrong = np.ascontiguousarray(planes).reshape(right.shape)
        assert found_in(surveyed(tmp_path / "d.npz", wrong)) == [("error", "layout")]


@pytest.mark.parametrize(
    "pictures",
    [
        np.repeat(photographs(20)[..., :1], 3, axis=3),
        np.random.default_rng(0).uniform(0, 255, (20, 24, 24, 3)),
        np.repeat(np.random.default_rng(0).uniform(0, 255, (20, 24, 1, 3)), 24, axis=2),
        np.repeat(np.random.default_rng(0).uniform(0, 255, (20, 1, 24, 3)), 24, axis=1),
        photographs(20)[..., :1],
    ],
    ids=["gray in three channels", "noise", "bands along rows", "bands along columns", "one channel"],
)
@pytest.mark.parametrize("channels_first", [False, True])
def test_pictures_in_their_layout_are_never_rough(tmp_path: Path, pictures: AnyArray, channels_first: bool) -> None:
    x = np.moveaxis(pictures, 3, 1) if channels_first else pictures
    assert found_in(surveyed(tmp_path / "d.npz", np.ascontiguousarray(x, dtype=np.float32))) == []


def test_constant_samples_are_named_and_nothing_else_stops(tmp_path: Path) -> None:
    x = photographs(20)
    x[3], x[7] = 128, 0
    (found,) = findings(surveyed(tmp_path / "d.npz", x), None, {}, LintThresholds())
    assert (found.severity, found.code) == ("warning", "constant")
    assert "d.npz: 2 of 20 samples (3, 7) have one value in all elements; drop them" in found.sentence
    x[...] = np.arange(20, dtype=np.float32).reshape(-1, 1, 1, 1)
    assert found_in(surveyed(tmp_path / "d.npz", x)) == [("error", "constant")]


def test_copies_are_counted(tmp_path: Path) -> None:
    x = photographs(40)
    x[30:33] = x[0]
    (found,) = findings(surveyed(tmp_path / "d.npz", x), None, {}, LintThresholds())
    assert found.code == "duplicates"
    assert "3 of 40 samples are exact copies of others, 37 are distinct" in found.sentence


def test_few_samples_are_told_and_copies_do_not_help(tmp_path: Path) -> None:
    assert found_in(surveyed(tmp_path / "d.npz", photographs(15))) == [("warning", "few")]
    copies = np.repeat(photographs(5), 8, axis=0)
    assert found_in(surveyed(tmp_path / "d.npz", copies)) == [("warning", "duplicates"), ("warning", "few")]


def test_samples_that_are_evaluation_samples_too(tmp_path: Path) -> None:
    x = photographs(20)
    evaluation = surveyed(tmp_path / "e.npz", np.concatenate([photographs(40, seed=1), x[:3]]))
    (found,) = findings(surveyed(tmp_path / "d.npz", x), evaluation, {}, LintThresholds())
    assert found.sentence.startswith("3 of 20 calibration samples are evaluation samples too: the accuracy of INT8")


def samples(labels: Sequence[int], seed: int = 0) -> Floats:
    """As many distinct samples."""
    return np.random.default_rng(seed).normal(size=(len(labels), 2)).astype(np.float32)


def classes_of(path: Path, own: Sequence[int], other: Sequence[int] | None = None) -> list[str]:
    evaluation = None if other is None else surveyed(path / "e.npz", samples(other, seed=1), other)
    found = findings(surveyed(path / "d.npz", samples(own), own), evaluation, {}, LintThresholds())
    assert all(f.severity == "warning" for f in found)
    return [f"{f.code}: {f.sentence.partition('d.npz: ')[2]}" for f in found]


def test_a_class_that_should_be_there_and_is_not(tmp_path: Path) -> None:
    evaluation = [0, 1, 2, 3] * 100
    (said,) = classes_of(tmp_path, [0, 1, 3] * 40, evaluation)
    assert said.startswith("classes: no sample of 1 classes (2), the evaluation data ")
    assert classes_of(tmp_path, [0, 1, 2, 3] * 30, evaluation) == []


def test_a_thousand_classes_need_not_all_be_in_five_hundred_samples(tmp_path: Path) -> None:
    evaluation = list(range(1000)) * 2
    drawn = np.random.default_rng(0).integers(0, 1000, 500).tolist()
    assert classes_of(tmp_path, drawn, evaluation) == []
    assert classes_of(tmp_path, drawn) == [], "nor without evaluation data"


def test_gaps_in_the_labels_count_where_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    (said,) = classes_of(tmp_path, [0, 1, 3] * 40)
    assert said == "classes: no sample of 1 classes (2), labels go up to 3; add some of each"
    (said,) = classes_of(tmp_path, [0, 1, 3] * 3)
    assert said.startswith("few: 9 distinct samples, at least 16 are needed to see if ranges settle; add ")


def test_one_class_that_is_nearly_all(tmp_path: Path) -> None:
    (said,) = classes_of(tmp_path, [1] * 95 + [0] * 5)
    assert said == "imbalance: 95 of 100 samples are of class 1; draw from all classes"
    assert classes_of(tmp_path, [1] * 95 + [0] * 5, [1] * 190 + [0] * 10) == [], "it is so in the evaluation data too"
    assert classes_of(tmp_path, [1] * 80 + [0] * 20) == []


def test_a_class_with_another_share_than_in_the_evaluation_data(tmp_path: Path) -> None:
    (said,) = classes_of(tmp_path, [0] * 10 + [1] * 190, [0, 1] * 100)
    assert said.startswith(
        "imbalance: 1 classes have another share than in the evaluation data, most of all 0 with 10 of"
    )
    assert classes_of(tmp_path, [0] * 70 + [1] * 130, [0, 1] * 100) == []
    assert classes_of(tmp_path, [0] * 10 + [1] * 190, [0, 1]) == [], "two evaluation samples are no evidence"


def test_classes_are_called_by_their_names(tmp_path: Path) -> None:
    from PIL import Image

    for index in range(60):
        folder = tmp_path / "photos" / ("cat" if index % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photographs(1, seed=index)[0].astype(np.uint8)).save(folder / f"{index}.png")
    spec = InputSpec("x", "uint8", (-1, 24, 24, 3))
    data = survey(open_samples(DataSource(str(tmp_path / "photos"), labels="folders"), (spec,), Preprocess()))
    evaluation = surveyed(tmp_path / "e.npz", samples([0] * 2 + [1] * 98), [0] * 2 + [1] * 98)
    (found,) = (f for f in findings(data, evaluation, {}, LintThresholds()) if f.code == "imbalance")
    assert "most of all 'cat' with 30 of 60 samples where 1 are its share" in found.sentence


def test_what_labels_prove_is_an_error_with_the_numbers() -> None:
    found = finding_from_labels("d.npz", Better(Change("range", "÷ 255", lambda x: x), 128, 115, 33, 2e-21, (0,)))
    assert found == Finding(
        "error",
        "range",
        "d.npz: the FP32 model is right on 33 of 128 labelled samples as given, and on 115 with ÷ 255, which is not by "
        "chance (p = 2e-21); correct scale, mean and std in preprocess, or the stored samples",
    )


@pytest.mark.parametrize(
    ("refuted", "undecided", "is_beyond_one_class", "conclusion"),
    [
        (("range", "channels", "layout"), (), True, "scale, layout, channel order: as trained"),
        (("layout",), (), True, "layout: as trained"),
        (("range",), ("channels",), True, "scale: as trained; channel order: undecided, these samples are too few"),
        ((), ("range", "layout"), True, "scale, layout: undecided, these samples are too few"),
        (("range", "layout"), (), False, "no change of scale, layout helps, but the most frequent class is right as "
         "often; check the labels"),
    ],
)  # fmt: skip
def test_what_was_checked_is_said_where_all_is_well(
    refuted: tuple[ChangeCode, ...], undecided: tuple[ChangeCode, ...], is_beyond_one_class: bool, conclusion: str
) -> None:
    verdict = LabelVerdict(None, 64, 57, 128, refuted, undecided, is_beyond_one_class)
    assert note_from_labels("d.npz", verdict) == Finding(
        "note", "labels", f"d.npz: 64 labelled samples, {conclusion} (the FP32 model is right on 57; 128 runs of it)"
    )


def test_errors_stop_unless_they_are_allowed() -> None:
    found = (Finding("error", "range", "one"), Finding("error", "layout", "two"), Finding("warning", "few", "three"))
    with pytest.raises(DataError, match=r'^one; two; if this is intended, allow "range", "layout" \('):
        raise_errors(found, ())
    with pytest.raises(DataError, match=r"^two; "):
        raise_errors(found, ("range",))
    raise_errors(found, ("range", "layout"))
