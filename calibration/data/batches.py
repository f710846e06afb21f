"""Checked batches from whatever the plan names: array files, images, or a user's function. Never random data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from calibration.arrays import AnyArray
from calibration.data import array_files, image_folder
from calibration.data.array_files import open_array_files
from calibration.data.batch_function import open_batch_function
from calibration.data.image_folder import open_image_folder
from calibration.data.input_specs import input_specs_from_onnx, shape_hint, shape_words
from calibration.data.preprocess import Preprocess
from calibration.data.source import (
    DYNAMIC,
    FUNCTION,
    Block,
    DataSource,
    InputSpec,
    SampleReader,
    check_mapping,
    quoted,
)
from calibration.errors import DataError

__all__ = ["DataSource", "InputSpec", "Samples", "input_specs_from_onnx", "open_samples"]


@dataclass(frozen=True)
class Samples:
    """A data set that was opened for one model: every batch is preprocessed and checked before anyone sees it.

    Can be pickled; nothing is held open between passes. Memory does not grow with the number of samples, except for
    one ``.npz``, whose arrays are read whole for the length of a pass.
    """

    source: DataSource
    specs: tuple[InputSpec, ...]
    preprocess: Preprocess
    reader: SampleReader

    @property
    def num_samples(self) -> int:
        """Samples after the selection by ``limit``."""
        return self.reader.num_samples

    @property
    def fixed_batch(self) -> int:
        """The batch that the model takes alone; 0 if it takes any."""
        return max((spec.shape[0] for spec in self.specs if spec.shape[0] != DYNAMIC), default=0)

    def batches(self, batch_size: int) -> Iterator[dict[str, AnyArray]]:
        """All samples in order: model input name -> (n, ...) array of exactly the model's dtype and shape.

        n is ``batch_size``, and less in the last batch only, also where the model's batch is fixed: whoever runs
        such a model fills up the last one. The arrays are the caller's own.

        Raises:
            DataError: a dtype or shape that the model does not take, NaN or infinity, samples of different shapes in
                one batch; naming file, input and sample.
        """
        if batch_size < 1:
            raise DataError(f"{self.source.path}: batches of {batch_size} were requested; at least 1 is expected")
        for spec in self.specs:
            if spec.is_whole and batch_size > 1:
                raise DataError(
                    f"{self.source.path}: batches of {batch_size} were requested, the model's input '{spec.name}' has "
                    "no batch axis, so that it takes one sample at a time; set batch_size = 1"
                )
            if spec.shape[0] not in (DYNAMIC, batch_size):
                raise DataError(
                    f"{self.source.path}: batches of {batch_size} were requested, the model's input '{spec.name}' "
                    "takes "
                    f"{shape_words(spec)} only; set batch_size = {spec.shape[0]}, or export with a dynamic batch"
                )
        return self._batches(batch_size)

    def _batches(self, batch_size: int) -> Iterator[dict[str, AnyArray]]:
        waiting: list[dict[str, AnyArray]] = []
        num_waiting = 0
        for piece, where in self._pieces(batch_size):
            num = len(next(iter(piece.values())))
            start = 0
            while start < num:
                stop = min(num, start + batch_size - num_waiting)
                part = {name: np.array(array[start:stop], order="C") for name, array in piece.items()}
                if waiting:
                    _check_same_shape(waiting[0], part, where)
                waiting.append(part)
                num_waiting += stop - start
                start = stop
                if num_waiting == batch_size:
                    yield _joined(waiting)
                    waiting, num_waiting = [], 0
        if waiting:
            yield _joined(waiting)

    def pieces(self, num_max: int) -> Iterator[dict[str, AnyArray]]:
        """All samples in order, neighbours together as it suits the source: model input name -> (n, ...), n up to
        ``num_max``. For whoever looks at the samples one by one: unlike ``batches`` it takes samples of any shapes.

        Raises:
            DataError: as ``batches``.
        """
        yield from (piece for piece, _ in self._pieces(num_max))

    def at(self, indices: Sequence[int]) -> Iterator[dict[str, AnyArray]]:
        """These samples, each as a batch of one: model input name -> (1, ...). No other picture is decoded for it.

        Raises:
            DataError: as ``batches``.
        """
        for block in self.reader.samples_at(indices):
            yield {spec.name: self._checked(spec, block) for spec in self.specs}

    def _pieces(self, num_max: int) -> Iterator[tuple[dict[str, AnyArray], str]]:
        """Neighbouring samples, preprocessed and checked, with the file that they come from."""
        for block in self.reader.blocks(num_max):
            yield {spec.name: self._checked(spec, block) for spec in self.specs}, block.where

    def _checked(self, spec: InputSpec, block: Block) -> AnyArray:
        where = f"{block.where}: input '{spec.name}'"
        array = block.arrays[spec.name]
        if not self.preprocess.inputs or spec.name in self.preprocess.inputs:
            array = self.preprocess(array, where=where)
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if array.dtype.name != spec.dtype:
            raise DataError(
                f"{where} is {array.dtype.name} {array.shape}, the model takes {spec.dtype}; set dtype = "
                f'"{spec.dtype}" '
                "in preprocess, or convert the data"
            )
        fits = all(want in (DYNAMIC, have) for have, want in zip(array.shape[1:], spec.shape[1:]))
        if array.ndim != len(spec.shape) or not fits:
            raise DataError(
                f"{where} is {array.dtype.name} {array.shape}, the model takes {shape_words(spec)}; "
                f"{shape_hint(array.shape, spec)}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raw = block.arrays[spec.name]
            is_from_data = raw.dtype.kind == "f" and np.isinf(raw).any()
            bad = np.isnan(array) if is_from_data else ~np.isfinite(array)
            rows = bad.reshape(len(array), -1).any(axis=1)
            if rows.any():
                at = int(np.argmax(rows))
                kind = "NaN" if np.isnan(array[at]).any() else "infinity, which the data has not,"
                raise DataError(
                    f"{where} has {kind} in sample {block.indices[at]}, numbers are expected; correct or drop the "
                    "sample, or correct preprocess"
                )
        return array

    def labels(self) -> AnyArray:
        """(num_samples, ...): int64 for class indices; floats, text and masks of 8 or 16 bits as stored; in the order
        of the batches.

        Raises:
            DataError: there are none, or not one for each sample, or neither text nor finite numbers within int64.
        """
        labels = self.reader.labels()
        if labels is None:
            raise DataError(
                f"{self.source.path}: has no labels, the metric compares with them; set labels, or a function that "
                "yields "
                "(inputs, labels)"
            )
        if len(labels) != self.num_samples:
            raise DataError(
                f"{self.source.path}: has {len(labels)} labels, {self.num_samples} samples; make the lengths equal"
            )
        if labels.dtype.kind == "U":
            return np.array(labels)
        if labels.dtype.kind not in "biuf":
            raise DataError(
                f"{self.source.path}: labels are {labels.dtype}, numbers or text are expected; store each class's index"
            )
        if labels.dtype.kind == "f":
            if not np.isfinite(labels).all():
                raise DataError(
                    f"{self.source.path}: labels have NaN or infinity, finite numbers are expected; correct them"
                )
            return np.array(labels)
        if labels.dtype == np.uint64 and labels.max() > np.iinfo(np.int64).max:
            raise DataError(f"{self.source.path}: has the label {labels.max()}, beyond the 64-bit integers; correct it")
        return labels if labels.ndim > 1 and labels.dtype.itemsize < 4 else labels.astype(np.int64)

    def digest(self) -> str:
        """SHA-256 (hex) of the content of all that is read, the source's options and the preprocessing.

        Where the data lies does not count. For a function it is over the bytes that it yielded.
        """
        digest = hashlib.sha256()
        options = {
            "inputs": {spec.name: self.source.inputs.get(spec.name, "") for spec in self.specs},
            "labels": Path(self.source.labels).suffix or self.source.labels,
            "limit": self.source.limit,
            "fold": self.source.fold,
            "preprocess": asdict(self.preprocess),
        }
        digest.update(json.dumps(options, sort_keys=True).encode())
        self.reader.update(digest)
        return digest.hexdigest()

    def describe(self) -> dict[str, object]:
        """What a report says of this data; plain values that JSON takes.

        ``path``, ``num_samples``, ``selection`` and ``preprocess`` (sentences), and ``label_counts``: samples of
        each class by its name or index, empty where there are no class labels.
        """
        counts: dict[str, int] = {}
        labels = None if self.reader.labels() is None else self.labels()
        if labels is not None and labels.ndim == 1 and labels.dtype.kind == "i":
            names = self.reader.classes()
            for label, count in zip(*np.unique(labels, return_counts=True)):
                counts[names[label] if names else str(label)] = int(count)
        return {
            "path": self.source.path,
            "num_samples": self.num_samples,
            "selection": self.reader.selection,
            "preprocess": self.preprocess.describe(),
            "label_counts": counts,
        }


def open_samples(
    source: DataSource, specs: tuple[InputSpec, ...], preprocess: Preprocess, folder: Path = Path()
) -> Samples:
    """Open a data set for a model with these inputs; the first sample is read and checked.

    ``source.path`` is taken as it stands. ``folder`` is the plan's: a ``module:function`` and a file of labels are
    looked for there.

    Raises:
        DataError: nothing there, or nothing that fits the model; in one sentence with what to do.
    """
    check_mapping(source, specs)
    names = [spec.name for spec in specs]
    for name in preprocess.inputs:
        if name not in names:
            raise DataError(
                f"preprocess: inputs names '{name}', the model's inputs are {quoted(names)}; correct the name"
            )
    samples = Samples(source, specs, preprocess, _open(source, specs, preprocess, folder))
    next(samples._pieces(1))
    return samples


def _open(source: DataSource, specs: tuple[InputSpec, ...], preprocess: Preprocess, folder: Path) -> SampleReader:
    """The reader for what lies at the path."""
    names = [spec.name for spec in specs]
    path = Path(source.path)
    if not path.exists():
        if FUNCTION.fullmatch(source.path):
            return open_batch_function(source, specs, folder)
        raise DataError(f"{source.path}: does not exist; correct the path, or give module:function")
    if path.is_file():
        if path.suffix.lower() not in array_files.SUFFIXES:
            raise DataError(
                f"{source.path}: is a '{path.suffix}' file, .npz, .npy or a folder is expected; for other formats "
                "write a "
                "function that yields batches, and give module:function"
            )
        return open_array_files([path], source, specs, folder)
    files = sorted(file for file in path.rglob("*") if _is_visible(file, path) and not file.is_dir())
    samples = (*array_files.SUFFIXES, *image_folder.SUFFIXES)
    if broken := [file for file in files if file.suffix.lower() in samples and not file.exists()]:
        raise DataError(f"{broken[0]}: is a link to nothing; mount or copy its target, or remove it")
    files = [file for file in files if file.is_file()]
    arrays = [file for file in files if file.suffix.lower() in array_files.SUFFIXES]
    images = [file for file in files if file.suffix.lower() in image_folder.SUFFIXES]
    foreign = [file for file in files if file.suffix.lower() in image_folder.FOREIGN_SUFFIXES]
    if foreign:
        raise DataError(
            f"{foreign[0]}: is a '{foreign[0].suffix}' picture, JPEG, PNG, BMP, WebP or TIFF is expected; convert or "
            "move it"
        )
    if arrays and images:
        raise DataError(
            f"{source.path}: holds arrays ({arrays[0].name}) and images ({images[0].name}); move one kind away"
        )
    if arrays:
        return open_array_files(arrays, source, specs, folder)
    if not images:
        raise DataError(
            f"{source.path}: holds no .npz, no .npy and no picture (.jpg, .png, .bmp, .webp, .tif); put samples there"
        )
    if len(specs) != 1:
        raise DataError(
            f"{source.path}: holds images, which can feed one input, the model's are {quoted(names)}; use .npz "
            "files, or a module:function"
        )
    return open_image_folder(images, source, specs[0], preprocess, folder)


def _is_visible(file: Path, root: Path) -> bool:
    """Not hidden, nor below a hidden folder: such files are the system's, not samples."""
    return not any(part.startswith(".") for part in file.relative_to(root).parts)


def _joined(parts: list[dict[str, AnyArray]]) -> dict[str, AnyArray]:
    """Parts of a batch, put together."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _check_same_shape(first: Mapping[str, AnyArray], other: Mapping[str, AnyArray], where: str) -> None:
    """Samples of one batch have one shape."""
    for name, array in first.items():
        if other[name].shape[1:] != array.shape[1:]:
            raise DataError(
                f"{where}: input '{name}' is {other[name].shape[1:]} a sample, the others of its batch are "
                f"{array.shape[1:]}; set resize and crop in preprocess, or batch_size = 1"
            )
