"""Which samples calibrate and which judge, by the names of folders and arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.data.source import InputSpec
from pipeline.drafting.data_sets import data_sets
from pipeline.drafting.facts import DataSet
from pipeline.errors import ConfigError

IMAGE = (InputSpec("image", "float32", (-1, 4, 4, 3)),)
TWO = (InputSpec("ids", "int64", (-1, 6)), InputSpec("mask", "float32", (-1, 6)))


def arrays_in(folder: Path, **shapes: tuple[int, ...]) -> str:
    arrays: Any = {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}
    np.savez(folder / "data.npz", **arrays)
    return str(folder / "data.npz")


def pictures_in(folder: Path, *names: str) -> str:
    for name in names:
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return str(folder / "photos")


@pytest.mark.parametrize(
    ("names", "calibration", "evaluation"),
    [
        (("train/a.jpg", "val/b.jpg"), "photos/train", "photos/val"),
        (("Training-Set/a.jpg", "test_images/b.jpg"), "photos/Training-Set", "photos/test_images"),
        (("calibration/a.jpg", "train/c.jpg", "evaluation/b.jpg"), "photos/calibration", "photos/evaluation"),
        (("trains/a.jpg", "planes/b.jpg"), "photos", "photos"),  # Classes: only whole words count.
        (("train/a.jpg", "other/b.jpg"), "photos", "photos"),
        (("a.jpg", "b.PNG"), "photos", "photos"),
    ],
)
def test_folders(tmp_path: Path, names: tuple[str, ...], calibration: str, evaluation: str) -> None:
    sets = data_sets(pictures_in(tmp_path, *names), "", IMAGE, tmp_path)
    assert sets.are_pictures
    assert (sets.calibration.path, sets.evaluation.path) == (calibration, evaluation)
    folds = ("1/5", "2-5/5") if calibration == evaluation else ("", "")
    assert (sets.calibration.fold, sets.evaluation.fold) == folds
    assert ("one set of samples" in sets.notes[0]) is bool(folds[0])


def test_a_csv_beside_each_folder_has_its_labels(tmp_path: Path) -> None:
    data = pictures_in(tmp_path, "calibration/a.jpg", "evaluation/b.jpg")
    for name in ("calibration", "evaluation"):
        (tmp_path / "photos" / f"{name}.csv").write_text("file,label\n")
    sets = data_sets(data, "evaluation.csv", IMAGE, tmp_path)
    assert sets.calibration.labels == "photos/calibration.csv"
    assert sets.evaluation.labels == "photos/evaluation.csv"


def test_one_csv_serves_both_folds(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("file,label\n")
    sets = data_sets(pictures_in(tmp_path, "a.jpg"), str(tmp_path / "all.csv"), IMAGE, tmp_path)
    assert sets.calibration.labels == sets.evaluation.labels == "all.csv"


def test_sub_folders_are_asked_whether_they_are_classes(tmp_path: Path) -> None:
    data = pictures_in(tmp_path, "cat/a.jpg", "dog/b.jpg")
    (ask,) = data_sets(data, "", IMAGE, tmp_path).asks
    assert ask.startswith("are the 2 sub-folders of photos the classes?")
    assert data_sets(data, "folders", IMAGE, tmp_path).asks == ()


def test_a_plan_elsewhere_has_whole_paths(tmp_path: Path) -> None:
    (tmp_path / "plans").mkdir()
    sets = data_sets(pictures_in(tmp_path, "a.jpg"), "", IMAGE, tmp_path / "plans")
    assert sets.calibration.path == str(tmp_path / "photos")


def test_arrays_with_the_inputs_names(tmp_path: Path) -> None:
    data = arrays_in(tmp_path, ids=(9, 6), mask=(9, 6), y=(9,))
    sets = data_sets(data, "y", TWO, tmp_path)
    assert sets.calibration == DataSet("data.npz", {}, "y", "1/5")
    assert sets.evaluation == DataSet("data.npz", {}, "y", "2-5/5")
    (ask,) = data_sets(data, "", TWO, tmp_path).asks
    assert ask.startswith("are y the labels?")


@pytest.mark.parametrize(
    ("shapes", "calibration", "evaluation"),
    [
        ({"x_train": (5, 4, 4, 3), "x_test": (6, 4, 4, 3)}, "x_train", "x_test"),
        ({"calib.images": (5, 4, 4, 3), "val.images": (6, 4, 4, 3), "val.more": (6, 2)}, "calib.images", "val.images"),
        ({"x_train": (5, 3, 4, 4), "x_val": (6, 3, 4, 4)}, "x_train", "x_val"),  # Channels first: to be turned.
    ],
)
def test_arrays_whose_names_say_it(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], calibration: str, evaluation: str
) -> None:
    spec = (InputSpec("image", "float32", (-1, 4, 4, 3)),) if "x_val" not in shapes else (
        InputSpec("image", "float32", (-1, 3, 4, 4)),
    )  # fmt: skip
    sets = data_sets(arrays_in(tmp_path, **shapes), "", spec, tmp_path)
    assert sets.calibration.inputs == {"image": calibration}
    assert sets.evaluation.inputs == {"image": evaluation}
    assert (sets.calibration.fold, sets.questions) == ("", {})


def test_the_only_array_that_fits_is_it(tmp_path: Path) -> None:
    sets = data_sets(arrays_in(tmp_path, photos=(5, 4, 4, 3), boxes=(5, 7)), "", IMAGE, tmp_path)
    assert sets.calibration.inputs == {"image": "photos"}
    assert sets.calibration.fold == "1/5"


def test_a_function_is_split_as_well(tmp_path: Path) -> None:
    sets = data_sets("my_data:batches", "", IMAGE, tmp_path)
    assert (sets.calibration.path, sets.calibration.fold, sets.are_pictures) == ("my_data:batches", "1/5", False)


def test_one_name_with_words_of_both_is_one_set(tmp_path: Path) -> None:
    sets = data_sets(arrays_in(tmp_path, x_train_test=(5, 4, 4, 3), boxes=(5, 7)), "", IMAGE, tmp_path)
    assert (sets.calibration.fold, sets.evaluation.fold) == ("1/5", "2-5/5")
    assert sets.calibration.inputs == sets.evaluation.inputs == {"image": "x_train_test"}
    pictures = data_sets(pictures_in(tmp_path, "train-test/a.jpg", "more/b.jpg"), "", IMAGE, tmp_path)
    assert (pictures.calibration.path, pictures.calibration.fold) == ("photos", "1/5")


@pytest.mark.parametrize("names", [("",), ("train", "test")])
def test_arrays_of_files_in_a_folder_are_mapped_as_those_of_one_file(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / "data" / name).mkdir(parents=True)
        np.savez(tmp_path / "data" / name / "0.npz", photos=np.zeros((2, 4, 4, 3), np.float32), y=np.zeros(2, np.int64))
    sets = data_sets(str(tmp_path / "data"), "y", IMAGE, tmp_path)
    assert sets.calibration.inputs == sets.evaluation.inputs == {"image": "photos"}
    assert (sets.calibration.labels, sets.are_pictures) == ("y", False)
    assert sets.calibration.path == ("data" if len(names) == 1 else "data/train")
    assert sets.calibration.fold == ("1/5" if len(names) == 1 else "")


def test_labels_in_a_file_are_named_from_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", np.zeros((5, 4, 4, 3), np.float32))
    np.save(tmp_path / "y.npy", np.zeros(5, np.int64))
    (tmp_path / "plans").mkdir()
    monkeypatch.chdir(tmp_path)
    assert data_sets("x.npy", "y.npy", IMAGE, Path()).evaluation.labels == "y.npy"
    assert data_sets("x.npy", "y.npy", IMAGE, Path("plans")).evaluation.labels == str(tmp_path / "y.npy")
    pictures_in(tmp_path, "a.jpg")
    (tmp_path / "masks").mkdir()
    assert data_sets("photos", "masks", IMAGE, Path("plans")).evaluation.labels == str(tmp_path / "masks")
    monkeypatch.chdir(tmp_path / "plans")
    assert data_sets("../x.npy", "y.npy", IMAGE, tmp_path).evaluation.labels == "y.npy"  # Beside the samples.


def test_what_is_asked_loses_neither_labels_nor_folds(tmp_path: Path) -> None:
    sets = data_sets(arrays_in(tmp_path, first=(9, 4, 4, 3), second=(9, 4, 4, 3), y=(9,)), "y", IMAGE, tmp_path)
    assert list(sets.questions) == ["inputs"]
    assert sets.calibration == DataSet("data.npz", {}, "y", "1/5")
    assert sets.evaluation == DataSet("data.npz", {}, "y", "2-5/5")


def test_pictures_are_one_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds pictures, but the network takes ids, mask; write a function that"):
        data_sets(pictures_in(tmp_path, "a.jpg"), "", TWO, tmp_path)
