"""Read samples from ``.npz`` and ``.npy`` files, one file or a folder of them, without ever unpickling anything."""

from __future__ import annotations

import hashlib
import math
import zipfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import IO

import numpy as np

from calibration.arrays import AnyArray
from calibration.data.labels.pairs import is_list_of_pairs, pair_table, read_pairs
from calibration.data.source import (
    Block,
    DataSource,
    InputSpec,
    digests_of_rows,
    gathered,
    hash_file,
    mapping_lines,
    quoted,
)
from calibration.errors import DataError

SUFFIXES = (".npz", ".npy")
DIGESTED_AT_ONCE = 32
"""Samples that are mapped at a time."""
NPY_KEY = ""
"""Stands for the one array of an ``.npy`` file, which has no name."""


@dataclass(frozen=True)
class ArrayHeader:
    """What an array says about itself before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    def __str__(self) -> str:
        """Dtype and shape."""
        return f"{self.dtype} {self.shape}"


@dataclass(frozen=True)
class ArrayFiles:
    """Samples in one array file or in several; each array has the batch axis first.

    Memory: an ``.npy`` file is mapped, not read; an ``.npz`` cannot be mapped, so its arrays are read once in a pass,
    whole, and let go with the file. Many small files in a folder thus need the least.
    """

    files: tuple[Path, ...]
    names: tuple[str, ...]
    """How messages call the files."""
    counts: tuple[int, ...]
    """Samples in each file."""
    keys: Mapping[str, str]
    """Model input name -> the array's key."""
    labels_key: str
    """Key of the labels in each ``.npz``; empty: none, or in ``labels_file``."""
    labels_file: Path | None
    source: DataSource

    @cached_property
    def _chosen(self) -> Sequence[int]:
        return self.source.chosen(sum(self.counts))

    @property
    def num_samples(self) -> int:
        """Samples after the selection."""
        return len(self._chosen)

    @property
    def selection(self) -> str:
        """How ``fold`` and ``limit`` chose."""
        return self.source.selection(sum(self.counts))

    def _rows(self) -> Iterator[tuple[int, Sequence[int]]]:
        """Each file's number with the selected rows in it; files without a selected row are left out."""
        start = 0
        for number, count in enumerate(self.counts):
            low, high = bisect_left(self._chosen, start), bisect_left(self._chosen, start + count)
            if high > low:
                part = self._chosen[low:high]
                is_range = isinstance(part, range)
                yield number, range(part[0] - start, part[-1] - start + 1) if is_range else [i - start for i in part]
            start += count

    def blocks(self, num_max: int) -> Iterator[Block]:
        """All selected samples in order; a block never spans two files."""
        for number, rows in self._rows():
            path, where = self.files[number], self.names[number]
            arrays = {name: read_array(path, key, where) for name, key in self.keys.items()}
            is_mapped = NPY_KEY in self.keys.values()
            for start in range(0, len(rows), num_max):
                part = rows[start : start + num_max]
                if is_mapped and start:  # Mapped anew: pages that were read count as memory in use.
                    arrays = {name: read_array(path, key, where) for name, key in self.keys.items()}
                yield Block({name: _take(array, part) for name, array in arrays.items()}, where, part)

    def samples_at(self, indices: Sequence[int]) -> Iterator[Block]:
        """One sample after the other; of several ``.npz`` with many samples each, see ``gathered``."""
        if len(self.files) > 1 and max(self.counts) > 1 and NPY_KEY not in self.keys.values():
            yield from gathered(self, indices)
            return
        starts = [0, *accumulate(self.counts)]
        opened, arrays = -1, {}
        for index in indices:
            chosen = self._chosen[index]
            number = bisect_right(starts, chosen) - 1
            path, where, row = self.files[number], self.names[number], chosen - starts[number]
            if number != opened or NPY_KEY in self.keys.values():  # Mapped anew, as above.
                arrays = {name: read_array(path, key, where) for name, key in self.keys.items()}
                opened = number
            yield Block({name: array[row : row + 1] for name, array in arrays.items()}, where, (row,))

    def digests(self) -> list[bytes]:
        """Of the rows of the arrays that are inputs."""
        return digests_of_rows(self.blocks(DIGESTED_AT_ONCE))

    def labels(self) -> AnyArray | None:
        """(num_samples, ...) as stored, or None."""
        if self.labels_file is not None and is_list_of_pairs(self.labels_file):
            num = sum(self.counts)
            return _take(pair_table(read_pairs(self.labels_file, [str(i) for i in range(num)]), num), self._chosen)
        if self.labels_file is not None:
            return _take(read_array(self.labels_file, NPY_KEY, str(self.labels_file)), self._chosen)
        if not self.labels_key:
            return None
        parts = [_take(read_array(self.files[i], self.labels_key, self.names[i]), rows) for i, rows in self._rows()]
        if len({(part.shape[1:], part.dtype) for part in parts}) > 1:
            shapes = sorted({f"{part.dtype} (n, {', '.join(map(str, part.shape[1:]))})" for part in parts})
            raise DataError(
                f"{self.names[0]} and others: labels '{self.labels_key}' are {' and '.join(shapes)} in different "
                "files, "
                "one shape and dtype is expected; make them equal"
            )
        return np.concatenate(parts)

    def classes(self) -> tuple[str, ...]:
        """Not known here."""
        return ()

    def update(self, digest: hashlib._Hash) -> None:
        """Feed the files that hold selected samples into a hash."""
        for number, _ in self._rows():
            hash_file(self.files[number], digest)
        if self.labels_file is not None:
            hash_file(self.labels_file, digest)


def open_array_files(files: list[Path], source: DataSource, specs: tuple[InputSpec, ...], folder: Path) -> ArrayFiles:
    """Look at the header of every file, and settle which array feeds which input.

    Raises:
        DataError: mixed kinds, a file that is cut short or holds objects, an array that is not there, lengths that
            differ, no samples.
    """
    if len({path.suffix.lower() for path in files}) > 1:
        raise DataError(f"{source.path}: holds .npz and .npy files, one kind is expected; move one kind away")
    is_npz = files[0].suffix.lower() == ".npz"
    has_pairs = bool(source.labels) and is_list_of_pairs(folder / source.labels)
    labels_file = folder / source.labels if source.labels and (has_pairs or not is_npz) else None
    if labels_file is not None and labels_file.suffix.lower() != ".npy" and not has_pairs:
        raise DataError(
            f"{source.path}: labels is '{source.labels}', for .npy data an .npy file of labels is expected; write "
            'labels = "….npy"'
        )
    if labels_file is not None and Path(source.path).is_dir():
        files = [path for path in files if path.resolve() != labels_file.resolve()]
        if not files:
            raise DataError(f"{source.path}: holds no .npy file but the labels, samples are expected; add them")
    is_folder = Path(source.path).is_dir()
    names = [path.as_posix() if is_folder else source.path for path in files]
    first = headers(files[0], names[0])
    keys = _keys(source, specs, first, names[0])
    labels_key = source.labels if is_npz and not has_pairs else ""
    counts = [
        _count(headers(path, name) if number else first, keys, labels_key, name)
        for number, (path, name) in enumerate(zip(files, names))
    ]
    if sum(counts) == 0:
        raise DataError(f"{source.path}: has no samples (the batch axis is 0), at least one is expected; add samples")
    if labels_file is not None and not has_pairs:
        _check_labels(labels_file, sum(counts), source)
    return ArrayFiles(tuple(files), tuple(names), tuple(counts), keys, labels_key, labels_file, source)


def headers(path: Path, where: str) -> dict[str, ArrayHeader]:
    """Shape and dtype of every array in a file, without reading the arrays.

    Raises:
        DataError: not a whole ``.npz`` or ``.npy`` file.
    """
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as stream:
                return {NPY_KEY: _header(stream, path.stat().st_size)}
        array_headers = {}
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".npy"):
                    with archive.open(entry) as member:
                        array_headers[entry.filename.removesuffix(".npy")] = _header(member, entry.file_size)
    except Exception as error:  # zipfile, zlib and NumPy raise half a dozen kinds for a file that is cut short.
        raise _unreadable(where, error) from error
    return array_headers


def read_array(path: Path, key: str, where: str) -> AnyArray:
    """One array, mapped from an ``.npy`` file or read from an ``.npz``.

    Raises:
        DataError: the file is cut short, has no such array, or holds objects.
    """
    try:
        if key == NPY_KEY:
            array: AnyArray = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as archive:
                array = archive[key]
    except Exception as error:
        raise _unreadable(where, error) from error
    return array


def _unreadable(where: str, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{where}: does not exist; correct the path")
    return DataError(f"{where}: cannot be read as a whole .npz or .npy file ({error}); copy or make it again")


def _header(stream: IO[bytes], num_bytes: int) -> ArrayHeader:
    """The header of one array in NumPy's own format, checked against the size of the file before anything is read."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    is_short = not dtype.hasobject and math.prod(shape) * dtype.itemsize > num_bytes  # Pickles have any length.
    if min(shape, default=0) < 0 or is_short:
        raise ValueError(f"its head says {dtype} {shape}, but it has {num_bytes} bytes")
    return ArrayHeader(shape, dtype)


def _keys(
    source: DataSource, specs: tuple[InputSpec, ...], array_headers: Mapping[str, ArrayHeader], where: str
) -> dict[str, str]:
    """Which array feeds which input: as the plan says, or of the same name. Nothing is guessed."""
    if NPY_KEY in array_headers:
        if len(specs) != 1 or source.inputs:
            raise DataError(
                f"{where}: an .npy file has one array without a name, the model's inputs are "
                f"{quoted(spec.name for spec in specs)}" + (" and inputs names keys" if source.inputs else "") + "; "
                "use an .npz with one array for each input"
            )
        return {specs[0].name: NPY_KEY}
    keys = {}
    for spec in specs:
        key = source.inputs.get(spec.name, spec.name)
        if key not in array_headers:
            listing = ", ".join(f"'{name}' {header}" for name, header in array_headers.items()) or "none"
            fitting = [name for name, header in array_headers.items() if _fits(header, spec)] or ["…"]
            others = "".join(f"; or '{name}'" for name in fitting[1:])
            raise DataError(
                f"{where}: has no array '{key}' for the model's input '{spec.name}', its arrays are {listing}; write "
                f"{mapping_lines(spec.name, fitting[0])}{others}"
            )
        keys[spec.name] = key
    return keys


def _fits(header: ArrayHeader, spec: InputSpec) -> bool:
    """Whether the array could be that input's: only for the example that a message shows."""
    return len(header.shape) == len(spec.shape) and len(header.shape) > 1


def _count(array_headers: Mapping[str, ArrayHeader], keys: Mapping[str, str], labels_key: str, where: str) -> int:
    """Samples in one file, with every array that is used looked at."""
    used = list(keys.values()) + ([labels_key] if labels_key else [])
    for key in used:
        what = f"array '{key}'" if key != NPY_KEY else "the array"
        if key not in array_headers:
            purpose = "for the labels " if key == labels_key else ""
            raise DataError(
                f"{where}: has no {what} {purpose}among its arrays {quoted(array_headers)}; correct the name, or drop "
                "the file"
            )
        if array_headers[key].dtype.hasobject:
            raise DataError(
                f"{where}: {what} holds Python objects, numbers are expected, and pickles are never opened; "
                "save it as a plain array"
            )
        if not array_headers[key].shape:
            raise DataError(f"{where}: {what} is one number, the batch axis comes first; save an array of samples")
    lengths = {key: array_headers[key].shape[0] for key in used}
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"'{key}' has {length}" for key, length in lengths.items())
        raise DataError(f"{where}: {listing} samples, the same number is expected of each; make the lengths equal")
    return lengths[used[0]]


def _check_labels(path: Path, num: int, source: DataSource) -> None:
    """An ``.npy`` file of labels has one for each sample, before any selection."""
    num_labels = _count(headers(path, str(path)), {"labels": NPY_KEY}, "", str(path))
    if num_labels != num:
        raise DataError(f"{path}: has {num_labels} labels, {source.path} has {num} samples; make the lengths equal")


def _take(array: AnyArray, rows: Sequence[int]) -> AnyArray:
    """Rows of an array; a slice where they are neighbours, so that a mapped file is read in one piece."""
    return array[rows[0] : rows[-1] + 1] if isinstance(rows, range) else array[list(rows)]
