"""Lists of pairs: read by files or numbers, selected with their samples, refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.data.batches import DataSource, InputSpec, open_samples
from calibration.data.labels.pairs import is_pair_table, pair_table, pairs_in, read_pairs
from calibration.data.preprocess import Preprocess
from calibration.errors import DataError

SPEC = (InputSpec("x", "uint8", (-1, 4, 4, 1)),)
NAMES = ("a/1.png", "a/2.png", "b/1.png", "c 1.png")


def pictures(folder: Path) -> Path:
    for name in NAMES:
        (folder / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "faces" / name)
    return folder / "faces"


def test_a_list_names_files_or_numbers(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("a/1.png a/2.png 1\n\n0 2 0\nb/1.png 1 different\n")
    assert read_pairs(tmp_path / "pairs.txt", NAMES) == [(0, 1, True), (0, 2, False), (2, 1, False)]
    (tmp_path / "pairs.csv").write_text("first, second, same\na/1.png, c 1.png, 0\n0,1,true\n")
    assert read_pairs(tmp_path / "pairs.csv", NAMES) == [(0, 3, False), (0, 1, True)]


def test_they_are_labels_of_pictures_and_of_arrays(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("0 1 1\n0 2 0\n3 2 0\n")
    expected = [[0, 0, 3], [1, 2, 2], [True, False, False]]
    np.savez(tmp_path / "faces.npz", x=np.zeros((4, 4, 4, 1), np.uint8))
    np.save(tmp_path / "faces.npy", np.zeros((4, 4, 4, 1), np.uint8))
    for path in (pictures(tmp_path), tmp_path / "faces.npz", tmp_path / "faces.npy"):
        labels = open_samples(DataSource(str(path), labels="pairs.txt"), SPEC, Preprocess(), tmp_path).labels()
        assert is_pair_table(labels)
        assert [part.tolist() for part in pairs_in(labels)] == expected, path


def test_of_a_part_of_the_samples_the_pairs_with_both_are_left(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("0 2 1\n0 1 0\n2 3 0\n")
    source = DataSource(str(pictures(tmp_path)), labels="pairs.txt", limit=2)  # 0 and 2.
    labels = open_samples(source, SPEC, Preprocess(), tmp_path).labels()
    assert [part.tolist() for part in pairs_in(labels)] == [[0], [1], [True]]
    assert [part.tolist() for part in pairs_in(labels[::-1])] == [[1], [0], [True]]


def test_what_is_no_table_of_pairs() -> None:
    table = pair_table([(0, 1, True)], 3)
    assert is_pair_table(table)
    assert not is_pair_table(table[:, 1:])
    assert not is_pair_table(table.astype(np.float64))
    assert not is_pair_table(np.zeros((2, 3, 3), np.int64))
    assert not is_pair_table(np.arange(4))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("p.txt", "a/1.png a/2.png\n", "p.txt:1: is 'a/1.png a/2.png', two samples and 1 .the same. or 0 are expected"),
        ("p.txt", "a/1.png a/2.png 2\n", "p.txt:1: is"),
        ("p.txt", "0 1 1\n0 4 1\n", "p.txt:2: names '4', which is no sample; write a file, or a number from 0 to 3"),
        ("p.txt", "0 d.png 1\n", "names 'd.png', which is no sample"),
        ("p.txt", "2 2 1\n", "is a pair of '2' with itself; drop the line"),
        ("p.txt", "0 1 1\n1 0 0\n", "has the pair of '.*' and '.*' as the same and as others; drop a line"),
        ("p.txt", "\n", "holds no pair; write lines such as"),
        ("p.csv", "first,second\n0,1\n", "has no column 'same', first, second, same are expected"),
        ("absent.txt", "", "cannot be read as a list of pairs"),
    ],
)
def test_what_is_no_list_is_a_sentence(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    if not name.startswith("absent"):
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=sentence):
        open_samples(DataSource(str(pictures(tmp_path)), labels=name), SPEC, Preprocess(), tmp_path)
