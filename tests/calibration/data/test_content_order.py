"""The order of samples by their content: the same however they were listed, with the same samples in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from calibration.data import source as source_module
from calibration.data.array_files import ArrayFiles
from calibration.data.batches import DataSource, InputSpec, Samples, open_samples
from calibration.data.content_order import first_of, in_content_order
from calibration.data.preprocess import Preprocess
from calibration.errors import DataError
from calibration.lint.survey import survey

SPEC = InputSpec("x", "float32", (-1, 3))
ROWS = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)
ORDER = sorted(range(23), key=lambda row: hashlib.sha256(b"<f4(3,):" + ROWS[row].tobytes()).digest())


def opened(path: Path | str, folder: Path = Path(), limit: int = 0, *specs: InputSpec) -> Samples:
    return open_samples(DataSource(str(path), limit=limit), specs or (SPEC,), Preprocess(), folder)


def rows_of(samples: Samples, size: int = 4, name: str = "x") -> npt.NDArray[np.float32]:
    return np.concatenate([batch[name] for batch in samples.batches(size)])


def write(kind: str, rows: npt.NDArray[np.float32], folder: Path) -> Path:
    """The rows as one file, as a file each, or as files of several."""
    folder.mkdir()
    if kind in ("one.npy", "one.npz"):
        path = folder / kind
        np.save(path, rows) if kind == "one.npy" else np.savez(path, x=rows)
        return path
    size = 1 if kind == "file each" else 5
    for number, begin in enumerate(range(0, len(rows), size)):
        part = rows[begin : begin + size]
        if kind == "some.npy":
            np.save(folder / f"{number:03}.npy", part)
        else:
            np.savez(folder / f"{number:03}.npz", x=part)
    return folder


@pytest.mark.parametrize("kind", ["one.npy", "one.npz", "file each", "some.npy", "some.npz"])
def test_the_order_is_that_of_the_digests_however_the_samples_are_listed(tmp_path: Path, kind: str) -> None:
    shuffled = ROWS[np.random.default_rng(1).permutation(23)]
    ours = [
        in_content_order(opened(write(kind, rows, tmp_path / name))) for rows, name in ((ROWS, "a"), (shuffled, "b"))
    ]
    for samples in ours:
        for size in (1, 4, 64):
            np.testing.assert_array_equal(rows_of(samples, size), ROWS[ORDER])
    assert ours[0].digest() == ours[1].digest()
    assert ours[0].num_samples == 23


def test_the_first_of_them_are_other_data(tmp_path: Path) -> None:
    samples = in_content_order(opened(write("one.npz", ROWS, tmp_path / "a")))
    np.testing.assert_array_equal(rows_of(first_of(samples, 6)), ROWS[ORDER[:6]])
    assert first_of(samples, 6).digest() != samples.digest() == first_of(samples, 23).digest()
    with pytest.raises(TypeError):
        first_of(opened(tmp_path / "a" / "one.npz"), 6)


@pytest.mark.parametrize("gathered_bytes", [1, 24, 1000])
def test_what_cannot_be_read_one_by_one_is_gathered(
    tmp_path: Path, gathered_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "GATHERED_BYTES", gathered_bytes)
    for limit, order in ((0, ORDER), (12, [row for row in ORDER if row in {i * 23 // 12 for i in range(12)}])):
        samples = opened(write("some.npz", ROWS, tmp_path / f"{limit}"), limit=limit)
        np.testing.assert_array_equal(rows_of(in_content_order(samples)), ROWS[order])


FUNCTION = """
import numpy as np
def batches():
    rows = np.load({path!r})
    for begin in range(0, 23, 6):
        yield rows[begin : begin + 6], np.arange(begin, min(begin + 6, 23))
"""


def test_a_functions_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    (tmp_path / "order_of_function.py").write_text(FUNCTION.format(path=str(tmp_path / "rows.npy")))
    samples = in_content_order(opened("order_of_function:batches", tmp_path))
    np.testing.assert_array_equal(rows_of(samples), ROWS[ORDER])
    np.testing.assert_array_equal(samples.labels(), ORDER)


def test_images_by_their_files_whatever_their_names(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 5, 4, 3), np.uint8)
    spec = InputSpec("x", "uint8", (-1, 5, 4, 3))
    for folder, names in (("a", range(9)), ("b", [8, 3, 0, 1, 7, 2, 6, 5, 4])):
        (tmp_path / folder).mkdir()
        for image, name in zip(pixels, names):
            Image.fromarray(image).save(tmp_path / folder / f"{name}.png")
    ours = [in_content_order(opened(tmp_path / name, Path(), 0, spec)) for name in "ab"]
    np.testing.assert_array_equal(rows_of(ours[0]), rows_of(ours[1]))
    assert ours[0].digest() == ours[1].digest()
    assert sorted(map(bytes, rows_of(ours[0]))) == sorted(map(bytes, pixels))


def test_several_inputs_count_together(tmp_path: Path) -> None:
    specs = (SPEC, InputSpec("n", "int64", (-1, 2)))
    numbers = np.arange(46).reshape(23, 2)
    order = np.random.default_rng(2).permutation(23)
    np.savez(tmp_path / "a.npz", x=np.zeros((23, 3), np.float32), n=numbers)
    np.savez(tmp_path / "b.npz", x=np.zeros((23, 3), np.float32), n=numbers[order])
    ours = [in_content_order(opened(tmp_path / f"{name}.npz", Path(), 0, *specs)) for name in "ab"]
    np.testing.assert_array_equal(rows_of(ours[0], name="n"), rows_of(ours[1], name="n"))
    assert len(np.unique(rows_of(ours[0], name="n"), axis=0)) == 23


def test_samples_that_are_there_twice_stay_twice(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.concatenate([ROWS, ROWS[:4]]))
    rows = rows_of(in_content_order(opened(tmp_path / "a.npz")))
    assert len(rows) == 27
    assert len(np.unique(rows, axis=0)) == 23


def test_an_error_names_the_file_and_the_sample_as_stored(tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[17] = np.nan
    np.savez(tmp_path / "a.npz", x=rows)
    with pytest.raises(DataError, match=r"a\.npz: input 'x' has NaN in sample 17"):
        list(in_content_order(opened(tmp_path / "a.npz")).batches(4))


def test_it_can_be_read_twice(tmp_path: Path) -> None:
    def both() -> Iterator[npt.NDArray[np.float32]]:
        samples = in_content_order(opened(write("some.npy", ROWS, tmp_path / "a")))
        yield rows_of(samples)
        yield rows_of(samples)

    first, second = both()
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("kind", "preprocess", "dtype", "is_met"),
    [
        ("one.npy", Preprocess(), "<f4", True),
        ("one.npz", Preprocess(), "<f4", False),
        ("one.npy", Preprocess(scale=2.0), "<f4", False),
        ("one.npy", Preprocess(), ">f4", False),
        ("some.npy", Preprocess(), "<f4", False),
    ],
)
def test_samples_that_were_surveyed_are_not_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, preprocess: Preprocess, dtype: str, is_met: bool
) -> None:
    hashed, digests = [], ArrayFiles.digests

    def counted(self: ArrayFiles) -> list[bytes]:
        hashed.append(1)
        return digests(self)

    monkeypatch.setattr(ArrayFiles, "digests", counted)
    path = write(kind, ROWS.astype(dtype), tmp_path / "a")
    samples = open_samples(DataSource(str(path)), (SPEC,), preprocess, tmp_path)
    survey(samples)
    order = in_content_order(samples)
    assert hashed == [1] * (not is_met)
    again = in_content_order(open_samples(DataSource(str(path)), (SPEC,), preprocess, tmp_path))
    assert order.digest() == again.digest()
    assert hashed == [1] * (2 - is_met), "another reader of the file is not taken for the one that was surveyed"
