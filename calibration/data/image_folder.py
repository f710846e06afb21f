"""Read samples from a folder of pictures, labelled by sub-folder or by a CSV."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.arrays import AnyArray
from calibration.data.labels.of_pictures import PictureLabels, Pictures, labels_of_pictures
from calibration.data.picture_frame import Geometry
from calibration.data.preprocess import Channels, Preprocess, decode_image
from calibration.data.source import (
    Block,
    DataSource,
    InputSpec,
    digest_of_file,
    hash_file,
)
from calibration.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff")
FOREIGN_SUFFIXES = (".gif", ".heic", ".avif", ".jp2")
"""Pictures that are not read; left out in silence they would thin the data."""


@dataclass(frozen=True)
class ImageFolder:
    """Images under a folder, in sorted order; decoded one at a time, when it is their turn."""

    root: str
    files: tuple[str, ...]
    """The selected ones, as POSIX paths below the root."""
    selection: str
    """How it was chosen, as words for the report."""
    labelled: PictureLabels
    """Labels of the selected ones."""
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
        """(num_samples, ...) or None."""
        return self.labelled.values

    def classes(self) -> tuple[str, ...]:
        """The sub-folders in sorted order, or the names of masks' and boxes' classes, where they are known."""
        return self.labelled.classes

    def update(self, digest: hashlib._Hash) -> None:
        """Feed the selected files and their labels into a hash."""
        for name in self.files:
            hash_file(Path(self.root, name), digest)
        self.labelled.update(digest)


def open_image_folder(
    files: list[Path], source: DataSource, spec: InputSpec, preprocess: Preprocess, folder: Path
) -> ImageFolder:
    """List the images and their labels.

    Raises:
        DataError: an image without a label, a label without an image, a label that is not a number.
    """
    beside = folder / source.labels if source.labels else None  # Masks may lie in the pictures' own folder.
    names = sorted(
        path.relative_to(source.path).as_posix()
        for path in files
        if beside is None or beside.resolve() not in path.resolve().parents or beside.samefile(source.path)
    )
    if not names:
        raise DataError(f"{source.path}: holds no picture but those of its labels; put samples there")
    if source.inputs:
        raise DataError(f"{source.path}: inputs names arrays, but these are images, which have no names; drop inputs")
    chosen = source.chosen(len(names))
    is_changed = not preprocess.inputs or spec.name in preprocess.inputs
    pictures = Pictures(source, tuple(names), chosen, Geometry(preprocess if is_changed else Preprocess()))
    return ImageFolder(
        root=source.path,
        files=tuple(names[i] for i in chosen),
        selection=source.selection(len(names)),
        labelled=labels_of_pictures(pictures, folder),
        input_name=spec.name,
        channels=preprocess.channels,
    )
