"""Labels of a folder of pictures, whatever they lie in: folders, tables, lists of pairs, masks, boxes."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from calibration.arrays import AnyArray
from calibration.data.labels import masks
from calibration.data.labels.boxes import box_table
from calibration.data.labels.coco_json import ClassBoxes, read_coco
from calibration.data.labels.masks import MaskFiles, mask_files
from calibration.data.labels.pairs import is_list_of_pairs, pair_table, read_pairs
from calibration.data.labels.yolo_text import read_yolo
from calibration.data.picture_frame import Geometry, picture_size
from calibration.data.source import DataSource, hash_array, quoted
from calibration.errors import DataError

BY_FOLDER = "folders"
WAYS = (
    'for images "folders", a .csv file, a COCO .json file, a list of pairs (.txt), or a folder of masks or of YOLO\'s '
    ".txt files"
)


@dataclass(frozen=True)
class Pictures:
    """What is to be labelled."""

    source: DataSource
    names: tuple[str, ...]
    """All of them, as POSIX paths below the source's folder."""
    chosen: Sequence[int]
    """Of which the samples are these."""
    geometry: Geometry
    """What is done to them before the network sees them."""

    @property
    def chosen_names(self) -> tuple[str, ...]:
        """Of the samples."""
        return tuple(self.names[i] for i in self.chosen)


@dataclass(frozen=True)
class PictureLabels:
    """The labels of the samples, and the names of their classes where they are known."""

    array: AnyArray | None = None
    """(num_samples, ...)."""
    masks: MaskFiles | None = None
    classes: tuple[str, ...] = ()

    @cached_property
    def values(self) -> AnyArray | None:
        """(num_samples, ...); None where there are none. Masks are read when they are first asked for."""
        return self.array if self.masks is None else self.masks.read()

    def update(self, digest: hashlib._Hash) -> None:
        """Feed all that they depend on into a hash; masks are not decoded for it."""
        if self.masks is not None:
            self.masks.update(digest)
        elif self.array is not None:
            hash_array(self.array, digest)


def labels_of_pictures(pictures: Pictures, folder: Path) -> PictureLabels:
    """What ``labels`` of a source names; ``folder`` is the plan's.

    Raises:
        DataError: it is not there or of no known kind; a picture without a label, a label without a picture.
    """
    source, names = pictures.source, pictures.names
    if not source.labels:
        return PictureLabels()
    chosen = np.asarray(pictures.chosen)
    if source.labels == BY_FOLDER:
        class_names, targets = _labels_by_folder(list(names), source)
        return PictureLabels(targets[chosen], classes=class_names)
    path = folder / source.labels
    kind = path.suffix.lower()
    if kind == ".json":
        return _boxes(read_coco, path, pictures)
    if path.is_dir():
        if any(file.suffix.lower() == ".txt" for file in path.rglob("*")):
            return _boxes(read_yolo, path, pictures)
        if any(file.suffix.lower() in masks.SUFFIXES for file in path.rglob("*")):
            return PictureLabels(masks=mask_files(path, pictures.chosen_names, Path(source.path), pictures.geometry))
        raise DataError(f"{path}: holds no mask (.png, .bmp, .tif) and no boxes (.txt); put one for each picture there")
    if is_list_of_pairs(path):
        return PictureLabels(pair_table(read_pairs(path, names), len(names))[chosen])
    if kind != ".csv":
        raise DataError(f"{source.path}: labels is '{source.labels}', {WAYS} is expected; correct it")
    return PictureLabels(_labels_from_csv(list(names), source, path)[chosen])


def _boxes(
    read: Callable[[Path, Sequence[str], Sequence[tuple[int, int]]], ClassBoxes], path: Path, pictures: Pictures
) -> PictureLabels:
    """The boxes of the samples, with where each picture lies in what the network sees."""
    root, names = Path(pictures.source.path), pictures.chosen_names
    sizes = [picture_size(root / name) for name in names]
    labelled = read(path, names, sizes)
    frames = [pictures.geometry.frame(*size) for size in sizes]
    return PictureLabels(box_table(frames, labelled.boxes), classes=labelled.classes)


def _labels_by_folder(names: list[str], source: DataSource) -> tuple[tuple[str, ...], AnyArray]:
    """Class names and one class index for each image.

    A class whose folder has no image keeps its number, so that the others keep theirs.
    """
    for name in names:
        if "/" not in name:
            raise DataError(
                f'{source.path}/{name}: lies beside the class folders, labels = "folders" expects every image in one; '
                "move it"
            )
    folders = sorted(
        path.name for path in Path(source.path).iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    number = {name: i for i, name in enumerate(folders)}
    return tuple(folders), np.asarray([number[PurePosixPath(name).parts[0]] for name in names], np.int64)


def _labels_from_csv(names: list[str], source: DataSource, path: Path) -> AnyArray:
    """One label for each image from a CSV with columns ``file`` (path below the image folder) and ``label``."""
    label_of: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream, skipinitialspace=True)
            columns = rows.fieldnames or []
            if not {"file", "label"} <= set(columns):
                raise DataError(
                    f"{path}: has the columns {quoted(columns)}, 'file' and 'label' are expected; rename them"
                )
            for row in rows:
                if row["file"] is None:
                    raise DataError(f"{path}:{rows.line_num}: has no 'file', one is expected in each line; correct it")
                name = PurePosixPath(row["file"]).as_posix()
                if name in label_of:
                    raise DataError(f"{path}:{rows.line_num}: names '{name}' again, one label is expected; drop a line")
                label_of[name] = row["label"] or ""
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a CSV of labels ({error}); correct the path or the file") from error
    listed = set(names)
    for problem, files in {
        "has no label for the image": [name for name in names if name not in label_of],
        f"has a label for a file that is no picture in {source.path}:": [
            name for name in label_of if name not in listed
        ],
    }.items():
        if files:
            more = f" and {len(files) - 1} more" if len(files) > 1 else ""
            raise DataError(f"{path}: {problem} '{files[0]}'{more}, one line for each image is expected; correct it")
    return _numbers([label_of[name] for name in names], path)


def _numbers(texts: list[str], path: Path) -> AnyArray:
    """Class indices as int64 where all are whole numbers, else float64; where none is a number they are text."""
    try:
        whole = [int(text) for text in texts]
    except ValueError:
        whole = []
    if whole:
        if not -(2**63) <= min(whole) <= max(whole) < 2**63:
            raise DataError(f"{path}: has a label outside the 64-bit integers; correct it")
        return np.asarray(whole, np.int64)
    others = [text for text in texts if not _is_number(text)]
    if others and len(others) < len(texts):
        raise DataError(
            f"{path}: has the label '{others[0]}', a number is expected, as others are; write the class's index, "
            "counted from 0"
        )
    return np.asarray(texts if others else [float(text) for text in texts])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
