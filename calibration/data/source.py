"""What the plan says about a data set, and what every reader of one hands over: blocks of raw samples."""

from __future__ import annotations

import difflib
import hashlib
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from calibration.arrays import AnyArray
from calibration.errors import DataError
from calibration.file_digest import file_digest

GATHERED_BYTES = 256 << 20
"""Memory for samples that are read in another order than they are stored in, where they cannot be read one by one."""
DYNAMIC = -1
"""Stands for a dimension that is only known when the model runs."""

FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
"""How ``module:function`` is told from a path."""

FOLD = re.compile(r"([1-9]\d{0,5})(?:-([1-9]\d{0,5}))?/([1-9]\d{0,5})")
"""``k/n`` or ``k-m/n``."""


@dataclass(frozen=True)
class InputSpec:
    """An input of a model: its name, numpy dtype name, and shape with the batch axis first (``DYNAMIC`` where open)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_whole: bool = False
    """The model takes one sample of it whole, without a batch axis; ``shape`` has a 1 in front all the same."""


@dataclass(frozen=True)
class DataSource:
    """Where the samples lie. The same record serves calibration and evaluation."""

    path: str
    """An ``.npz`` or ``.npy`` file, a folder of them, a folder of JPEG or PNG images, or ``module:function``.

    Every array has the batch axis first, also in a folder with one sample per file, and also for an input that the
    model takes without one. A function takes no argument and
    yields batches: an array (a model with one input), a dict from name to array, or ``(either, labels)``. It is called
    anew for every pass, and must yield the same bytes each time.
    """
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Model input name -> key in the ``.npz`` or in the yielded dict. Inputs not named here are looked up by their own
    name."""
    labels: str = ""
    """The labels' key in the ``.npz``; an ``.npy`` file for ``.npy`` data; for images, a ``.csv`` with columns
    ``file,label``, ``folders`` (classes are the sub-folders in sorted order, counted from 0), a COCO ``.json`` file, or
    a folder of masks or of YOLO's text files; for either, a list of pairs. A function yields them itself. Empty: no
    labels."""
    limit: int = 0
    """At most this many samples, 0 for all. Taken at even distances, so that every class of a sorted data set has its
    part; of a function, which has no length, the first ones."""
    fold: str = ""
    """A part of the samples that shares none with the others: ``1/5`` is one of every five neighbours, each time at
    another place, so that classes that take turns are in every part; ``2-5/5`` is the rest. Before ``limit``. Empty:
    all."""

    def __post_init__(self) -> None:
        """Refuse what no data set can satisfy.

        Raises:
            DataError: no path, a negative limit, or a fold that is none.
        """
        if not self.path:
            raise DataError("data: path is empty, a file, a folder or module:function is expected; write path = …")
        if self.limit < 0:
            raise DataError(f"{self.path}: limit is {self.limit}, 0 (all) or more is expected; correct it")
        first, last, num = self.folds()
        if not 1 <= first <= last <= num:
            raise DataError(
                f"{self.path}: fold is '{self.fold}', a part such as 1/5 (one of every five samples) or 2-5/5 (the "
                "others) is expected; correct it"
            )

    def folds(self) -> tuple[int, int, int]:
        """The first and the last fold that are taken, from 1 on, and of how many; zeros where it is no fold."""
        if not self.fold:
            return 1, 1, 1
        match = FOLD.fullmatch(self.fold)
        return (int(match[1]), int(match[2] or match[1]), int(match[3])) if match else (0, 0, 0)

    def is_in_fold(self, index: int) -> bool:
        """Whether the sample of that index, from 0 on, is taken, before the limit."""
        first, last, num = self.folds()
        block, place = divmod(index, num)
        turn = scattered(block) * num >> 32
        return first <= (place + turn) % num + 1 <= last

    def chosen(self, num: int) -> Sequence[int]:
        """The indices, of so many samples, that the fold and then the limit take, ascending.

        Raises:
            DataError: none is in the fold.
        """
        if not self.fold:
            return spread(num, self.limit)
        of_fold = [index for index in range(num) if self.is_in_fold(index)]
        if not of_fold:
            raise DataError(f"{self.path}: of its {num} samples none is in fold {self.fold}; correct fold")
        return [of_fold[place] for place in spread(len(of_fold), self.limit)]

    def selection(self, num: int) -> str:
        """What ``chosen`` takes of so many samples, in words."""
        if not self.fold:
            return selection_words(num, self.limit)
        return f"{len(self.chosen(num))} of {num}, fold {self.fold}" + (", evenly spaced" if self.limit else "")


@dataclass(frozen=True)
class Block:
    """Neighbouring samples as stored, before preprocessing."""

    arrays: dict[str, AnyArray]
    """Model input name -> (n, ...), the same n for all."""
    where: str
    """The file they come from, for messages."""
    indices: Sequence[int]
    """Each sample's index in that file."""


class SampleReader(Protocol):
    """One kind of data set. Made by ``open_…`` of its own file, after the selection by ``limit``."""

    @property
    def num_samples(self) -> int:
        """Samples after the selection."""
        ...

    @property
    def selection(self) -> str:
        """How ``limit`` chose, as words for the report."""
        ...

    def blocks(self, num_max: int) -> Iterator[Block]:
        """All selected samples in order, at most ``num_max`` in a block."""
        ...

    def labels(self) -> AnyArray | None:
        """(num_samples, ...) as stored, or None where the source has none."""
        ...

    def classes(self) -> tuple[str, ...]:
        """Names of the classes 0, 1, … where the source knows them."""
        ...

    def update(self, digest: hashlib._Hash) -> None:
        """Feed all content that the samples and labels depend on into a hash; where it lies does not matter."""
        ...

    def digests(self) -> list[bytes]:
        """SHA-256 of each selected sample's content, in order; its labels and where it lies do not matter."""
        ...

    def samples_at(self, indices: Sequence[int]) -> Iterator[Block]:
        """The selected samples of these numbers, as they are listed here, each in a block of its own."""
        ...


def scattered(number: int) -> int:
    """A number of 32 bits for each, 0 for 0, as if by chance: the last steps of MurmurHash3."""
    number = (number ^ number >> 16) * 0x85EBCA6B % 2**32
    number = (number ^ number >> 13) * 0xC2B2AE35 % 2**32
    return number ^ number >> 16


def spread(num: int, limit: int) -> Sequence[int]:
    """``limit`` of ``num`` indices at even distances, ascending; all of them where ``limit`` is 0 or not smaller."""
    if limit == 0 or limit >= num:
        return range(num)
    return [i * num // limit for i in range(limit)]


def spread_order(num: int, ends: Sequence[int]) -> list[int]:
    """0 ... num - 1 so that the first ``end`` are evenly spread among all, for each of the rising ``ends``."""
    order: list[int] = []
    for end in [size for size in ends if size < num] + [num]:
        taken = set(order)
        order += [index for index in (at * num // end for at in range(end)) if index not in taken][: end - len(order)]
    return order


def selection_words(num: int, limit: int) -> str:
    """What ``spread`` did, in words."""
    return f"all {num}" if limit == 0 or limit >= num else f"{limit} of {num}, evenly spaced"


def hash_file(path: Path, digest: hashlib._Hash) -> None:
    """Feed the digest of a file's content into a hash."""
    digest.update(digest_of_file(path))


def digest_of_file(path: Path) -> bytes:
    """SHA-256 of a file's content."""
    try:
        return file_digest(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the file and its permissions") from error


def hash_array(array: AnyArray, digest: hashlib._Hash) -> None:
    """Feed an array's dtype, shape and values into a hash."""
    digest.update(f"{array.dtype.str}{array.shape}:".encode())
    whole = np.ascontiguousarray(array)
    digest.update(whole.tobytes() if whole.dtype.kind == "U" else whole.data)


def digests_of_rows(blocks: Iterable[Block]) -> list[bytes]:
    """SHA-256 of each sample: of its arrays in the order of the inputs' names."""
    digests = []
    for block in blocks:
        for row in range(len(block.indices)):
            digest = hashlib.sha256()
            for _, array in sorted(block.arrays.items()):
                hash_array(array[row], digest)
            digests.append(digest.digest())
    return digests


def gathered(reader: SampleReader, indices: Sequence[int]) -> Iterator[Block]:
    """``SampleReader.samples_at`` for a source that can only be read from its beginning on.

    It is read several times, and each time as many of the samples as fit into 256 MiB are kept.
    """
    begin = 0
    while begin < len(indices):
        sizes = (sum(array.nbytes for array in block.arrays.values()) for block in reader.blocks(1))
        end = begin + max(1, GATHERED_BYTES // max(1, next(sizes)))
        wanted = frozenset(indices[begin:end])
        rows: dict[int, Block] = {}
        for index, block in enumerate(reader.blocks(1)):
            if index in wanted:
                arrays = {name: array.copy() for name, array in block.arrays.items()}
                rows[index] = Block(arrays, block.where, block.indices)
        yield from (rows[index] for index in indices[begin:end])
        begin = end


def mapping_lines(name: str, key: str) -> str:
    """What maps a model input to a stored array, ready to paste: into a plan, and behind a command."""
    bare = re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None
    line = f'inputs = {{ {name if bare else chr(34) + name + chr(34)} = "{key}" }}'
    return f"{line} in a plan, {shlex.join(['--input', f'{name}={key}'])} on the command line"


def check_mapping(source: DataSource, specs: tuple[InputSpec, ...]) -> None:
    """Refuse a mapping that names an input the model does not have.

    Raises:
        DataError: with the nearest name.
    """
    names = [spec.name for spec in specs]
    for name in source.inputs:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else "correct the name"
            raise DataError(f"{source.path}: inputs names '{name}', the model's inputs are {quoted(names)}; {hint}")


def quoted(names: Iterable[str]) -> str:
    """Names for a message: 'a', 'b'."""
    return ", ".join(f"'{name}'" for name in names) or "none"
