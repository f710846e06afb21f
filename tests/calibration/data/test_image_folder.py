"""Folders of images: order, labels by sub-folder and by CSV, and the sentence for each thing that does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.data.batches import DataSource, InputSpec, Samples, open_samples
from calibration.data.preprocess import Preprocess
from calibration.errors import DataError

GRAY = (InputSpec("image", "float32", (-1, 4, 4, 1)),)
FLOAT = Preprocess(dtype="float32")


def image(path: Path, gray: int, size: tuple[int, int] = (4, 4), mode: str = "L") -> None:
    """One plain image, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, gray).convert(mode).save(path)


def opened(folder: Path, preprocess: Preprocess = FLOAT, **options: Any) -> Samples:
    """The samples of ``folder``/images."""
    return open_samples(DataSource(str(folder / "images"), **options), GRAY, preprocess, folder)


def grays(samples: Samples) -> list[float]:
    """The first pixel of every sample."""
    return [float(batch["image"][0, 0, 0, 0]) for batch in samples.batches(1)]


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """images/: cat 1 and 2, dog 10 to 13, an empty folder elk, fox 20."""
    for i in (1, 2):
        image(tmp_path / f"images/cat/{i}.png", i)
    for i in range(10, 14):
        image(tmp_path / f"images/dog/deeper/{i}.PNG", i)
    (tmp_path / "images/elk").mkdir()
    image(tmp_path / "images/fox/20.png", 20)
    (tmp_path / "images/readme.txt").write_text("no image")
    (tmp_path / "images/.cache").mkdir()
    (tmp_path / "images/.cache/thumb.png").write_bytes(b"")
    return tmp_path


def test_classes_are_the_sub_folders_in_sorted_order(classes: Path) -> None:
    samples = opened(classes, labels="folders")
    assert grays(samples) == [1, 2, 10, 11, 12, 13, 20]
    assert samples.labels().tolist() == [0, 0, 1, 1, 1, 1, 3]  # elk keeps number 2, though it is empty
    assert samples.describe()["label_counts"] == {"cat": 2, "dog": 4, "fox": 1}


def test_a_limit_is_spread_over_the_classes_with_its_labels(classes: Path) -> None:
    samples = opened(classes, labels="folders", limit=3)
    assert grays(samples) == [1, 10, 12]
    assert samples.labels().tolist() == [0, 1, 1]
    assert samples.describe()["selection"] == "3 of 7, evenly spaced"


def test_some_samples_are_read_without_the_others(classes: Path) -> None:
    samples = opened(classes)
    (classes / "images/cat/2.png").write_bytes(b"no picture any more")
    assert [float(sample["image"][0, 0, 0, 0]) for sample in samples.at([0, 6, 3])] == [1, 20, 11]
    with pytest.raises(DataError, match=r"2\.png"):
        list(samples.at([1]))


def test_images_in_folders_need_no_labels(classes: Path) -> None:
    samples = opened(classes)
    assert samples.num_samples == 7
    with pytest.raises(DataError, match="has no labels"):
        samples.labels()


def test_images_are_batched_after_they_were_brought_to_one_size(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png", 1, (8, 8))
    image(tmp_path / "images/b.jpg", 2, (10, 6), "RGB")
    samples = opened(tmp_path, Preprocess(resize=(4,), crop=(4, 4), channels="gray", dtype="float32"))
    (batch,) = samples.batches(8)
    assert batch["image"].shape == (2, 4, 4, 1)
    assert batch["image"][:, 2, 2, 0].tolist() == [1, 2]


def test_an_image_that_does_not_fit_is_named(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png", 1)
    image(tmp_path / "images/b.png", 2, mode="RGB")
    image(tmp_path / "images/c.png", 2, (3, 3))
    samples = opened(tmp_path)
    with pytest.raises(
        DataError, match=r"images/b\.png: input 'image' is float32 \(1, 4, 4, 3\), the model takes \(N, 4, 4"
    ):
        list(samples.batches(2))
    with pytest.raises(
        DataError,
        match=r"images/c\.png: is 3×3 pixels before the crop, at least 4×4 is expected".replace(
            ": is", ": input 'image': is"
        ),
    ):
        list(opened(tmp_path, Preprocess(channels="gray", crop=(4, 4), dtype="float32")).batches(3))


def test_images_as_decoded_are_bytes_and_that_is_said(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png", 1)
    with pytest.raises(
        DataError, match=r"a\.png: input 'image' is uint8 \(1, 4, 4, 1\), the model takes float32; set dtype"
    ):
        opened(tmp_path, Preprocess())


def test_an_image_that_is_cut_short(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png", 1)
    image(tmp_path / "images/b.png", 1)
    (tmp_path / "images/b.png").write_bytes((tmp_path / "images/a.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"images/b\.png: cannot be read as an image"):
        list(opened(tmp_path).batches(2))


def test_an_image_beside_the_class_folders(classes: Path) -> None:
    image(classes / "images/stray.png", 1)
    with pytest.raises(DataError, match=r"images/stray\.png: lies beside the class folders, .* move it"):
        opened(classes, labels="folders")


def test_inputs_name_nothing_in_an_image(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png", 1)
    with pytest.raises(DataError, match="inputs names arrays, but these are images"):
        opened(tmp_path, inputs={"image": "a"})


def csv_of(folder: Path, text: str, encoding: str = "utf-8") -> Samples:
    """Two images, a.png and b/c.png, with labels.csv."""
    image(folder / "images/a.png", 1)
    image(folder / "images/b/c.png", 2)
    (folder / "labels.csv").write_text(text, encoding=encoding)
    return opened(folder, labels="labels.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labels_from_a_csv_in_any_order(tmp_path: Path, encoding: str) -> None:
    samples = csv_of(tmp_path, "file,label,note\r\nb/c.png, 7,x\r\n./a.png,3,y\r\n", encoding)
    assert samples.labels().tolist() == [3, 7]
    assert samples.labels().dtype == np.int64
    assert samples.describe()["label_counts"] == {"3": 1, "7": 1}


def test_labels_from_a_csv_may_be_fractions(tmp_path: Path) -> None:
    assert csv_of(tmp_path, "file,label\na.png,0.5\nb/c.png,2\n").labels().tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,class\na.png,1\n", "has the columns 'name', 'class', 'file' and 'label' are expected"),
        ("", "has the columns none, 'file' and 'label' are expected"),
        ("file,label\na.png,1\n", r"has no label for the image 'b/c\.png', one line for each"),
        (
            "file,label\na.png,1\nb/c.png,1\nd.png,1\ne.png,2\n",
            r"has a label for a file that is no .* 'd\.png' and 1 more",
        ),
        ("file,label\na.png,1\nb/c.png,1\na.png,2\n", r"names 'a\.png' again"),
        (
            "file,label\na.png,cat\nb/c.png,1\n",
            "has the label 'cat', a number is expected, as others are; write the class's index",
        ),
        ("file,label\na.png\nb/c.png,1\n", "has the label '', a number is expected"),
        ("file,label\na.png,99999999999999999999\nb/c.png,1\n", "has a label outside the 64-bit integers"),
    ],
)
def test_a_csv_that_does_not_fit(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"/labels\.csv:.*{message}"):
        csv_of(tmp_path, text)


def test_a_csv_that_is_not_there_or_no_csv(tmp_path: Path) -> None:
    image(tmp_path / "images/a.png", 1)
    with pytest.raises(DataError, match=r"labels\.csv: cannot be read as a CSV of labels \(.*No such file"):
        opened(tmp_path, labels="labels.csv")
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="cannot be read as a CSV of labels"):
        opened(tmp_path, labels="labels.csv")
    with pytest.raises(DataError, match=r"labels is 'y', for images .folders., a \.csv file, "):
        opened(tmp_path, labels="y")


def test_the_digest_follows_pictures_and_labels(tmp_path: Path) -> None:
    rows = "file,label\na.png,1\nb/c.png,"
    digests = {csv_of(tmp_path, rows + label).digest() for label in ("1", "2")}
    image(tmp_path / "images/a.png", 9)
    digests.add(opened(tmp_path, labels="labels.csv").digest())
    assert len(digests) == 3


def test_only_the_chosen_images_count_for_the_digest(tmp_path: Path) -> None:
    for i in range(4):
        image(tmp_path / f"images/{i}.png", i)
    before = opened(tmp_path, limit=2).digest()  # 0 and 2
    image(tmp_path / "images/3.png", 99)
    assert opened(tmp_path, limit=2).digest() == before
    image(tmp_path / "images/2.png", 99)
    assert opened(tmp_path, limit=2).digest() != before


def test_text_labels_are_text_for_a_users_own_metric(tmp_path: Path) -> None:
    samples = csv_of(tmp_path, "file,label\na.png,cat\nb/c.png,dog\n")
    assert samples.labels().tolist() == ["cat", "dog"]
    assert samples.digest() != csv_of(tmp_path, "file,label\na.png,cat\nb/c.png,cow\n").digest()


def test_folds_share_no_image_and_have_all(classes: Path) -> None:
    parts = [grays(opened(classes, labels="folders", fold=fold)) for fold in ("1/3", "2-3/3")]
    assert parts == [[1, 11, 20], [2, 10, 12, 13]]
    samples = opened(classes, labels="folders", fold="2-3/3", limit=2)
    assert grays(samples) == [2, 12]
    assert samples.reader.labels() is not None
    assert samples.labels().tolist() == [0, 1]
    assert samples.describe()["selection"] == "2 of 7, fold 2-3/3, evenly spaced"


@pytest.mark.parametrize(
    ("fold", "told"),
    [
        ("0/3", "fold is '0/3', a part such as 1/5"),
        ("4/3", "fold is '4/3'"),
        ("3-2/5", "fold is '3-2/5'"),
        ("half", "fold is 'half'"),
        ("9/9", "of its 7 samples none is in fold 9/9"),
    ],
)
def test_what_is_no_fold(classes: Path, fold: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        opened(classes, fold=fold)
