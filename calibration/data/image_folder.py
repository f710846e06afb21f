"""Read samples from a folder of pictures, labelled by sub-folder or by a CSV."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from calibration.arrays import AnyArray
from calibration.data.preprocess import Channels, decode_image
from calibration.data.source import (
    Block,
    DataSource,
    InputSpec,
    digest_of_file,
    hash_array,
    hash_file,
    quoted,
)
from calibration.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")
FOREIGN_SUFFIXES = (".gif", ".heic", ".avif", ".jp2")
"""Pictures that are not read; left out in silence they would thin the data."""
BY_FOLDER = "folders"


@dataclass(frozen=True)
class ImageFolder:
    """Images under a folder, in sorted order; decoded one at a time, when it is their turn."""

    root: str
    files: tuple[str, ...]
    """The selected ones, as POSIX paths below the root."""
    selection: str
    """How it was chosen, as words for the report."""
    targets: AnyArray | None
    """(num_samples,) labels of the selected ones."""
    class_names: tuple[str, ...]
    input_name: str
    channels: Channels

    @property
    def num_samples(self) -> int:
        """Samples after the selection."""
        return len(self.files)

    def blocks(self, num_max: int) -> Iterator[Block]:
        """One image in a block, whatever ``num_max``: images may differ in size until they are preprocessed."""
        yield from self.samples_at(range(len(self.files)))

    def samples_at(self, indices: Sequence[int]) -> Iterator[Block]:
        """One image after the other."""
        for index in indices:
            path = Path(self.root, self.files[index])
            where = path.as_posix()
            yield Block({self.input_name: decode_image(path, self.channels, where)}, where, (0,))

    def digests(self) -> list[bytes]:
        """Of the files, which are not decoded for it."""
        return [digest_of_file(Path(self.root, name)) for name in self.files]

    def labels(self) -> AnyArray | None:
        """(num_samples,) or None."""
        return self.targets

    def classes(self) -> tuple[str, ...]:
        """The sub-folders in sorted order, where they are the labels."""
        return self.class_names

    def update(self, digest: hashlib._Hash) -> None:
        """Feed the selected files and their labels into a hash."""
        for name in self.files:
            hash_file(Path(self.root, name), digest)
        if self.targets is not None:
            hash_array(self.targets, digest)


def open_image_folder(
    files: list[Path], source: DataSource, spec: InputSpec, channels: Channels, folder: Path
) -> ImageFolder:
    """List the images and their labels.

    Raises:
        DataError: an image without a label, a label without an image, a label that is not a number.
    """
    names = sorted(path.relative_to(source.path).as_posix() for path in files)
    if source.inputs:
        raise DataError(f"{source.path}: inputs names arrays, but these are images, which have no names; drop inputs")
    class_names: tuple[str, ...] = ()
    targets: AnyArray | None = None
    if source.labels == BY_FOLDER:
        class_names, targets = _labels_by_folder(names, source)
    elif source.labels:
        targets = _labels_from_csv(names, source, folder)
    chosen = source.chosen(len(names))
    return ImageFolder(
        root=source.path,
        files=tuple(names[i] for i in chosen),
        selection=source.selection(len(names)),
        targets=None if targets is None else targets[np.asarray(chosen)],
        class_names=class_names,
        input_name=spec.name,
        channels=channels,
    )


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


def _labels_from_csv(names: list[str], source: DataSource, folder: Path) -> AnyArray:
    """One label for each image from a CSV with columns ``file`` (path below the image folder) and ``label``."""
    path = folder / source.labels
    if path.suffix.lower() != ".csv":
        raise DataError(
            f"{source.path}: labels is '{source.labels}', for images \"folders\" or a .csv file is expected; correct it"
        )
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
