"""Read samples that a user's function yields, and hold it to yielding the same bytes every time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.arrays import AnyArray
from calibration.data.source import (
    Block,
    DataSource,
    InputSpec,
    digests_of_rows,
    gathered,
    hash_array,
    mapping_lines,
    quoted,
)
from calibration.data.user_function import load_function
from calibration.errors import DataError


@dataclass(frozen=True)
class BatchFunction:
    """Batches of a function without arguments. It is run once when it is opened, and again for every pass.

    Memory: one yielded batch at a time, and a fingerprint of 32 bytes for each.
    """

    spec: str
    folder: str
    keys: Mapping[str, str]
    """Model input name -> key of the yielded dict."""
    source: DataSource
    lengths: tuple[int, ...]
    """Samples taken of each yielded batch."""
    fingerprints: tuple[bytes, ...]
    """SHA-256 of each yielded batch, as the first run gave it."""
    targets: AnyArray | None

    @property
    def num_samples(self) -> int:
        """Samples after the selection."""
        return sum(self.lengths)

    @property
    def selection(self) -> str:
        """A stream has no length: ``limit`` takes the first ones."""
        of_fold = f" of fold {self.source.fold}" if self.source.fold else ""
        return f"the first {self.num_samples}{of_fold}" if self.source.limit else f"all {self.num_samples}{of_fold}"

    def blocks(self, num_max: int) -> Iterator[Block]:
        """The function's samples, cut to ``num_max``; checked against the first run before they are handed on."""
        num_batches = 0
        for number, (arrays, targets) in enumerate(_run(self.source, Path(self.folder), self.keys)):
            num_batches = number + 1
            if number >= len(self.fingerprints) or _fingerprint(arrays, targets) != self.fingerprints[number]:
                raise self._differs(number)
            num = self.lengths[number]
            for start in range(0, num, num_max):
                stop = min(start + num_max, num)
                part = {name: array[start:stop] for name, array in arrays.items()}
                yield Block(part, f"{self.spec}, batch {number}", range(start, stop))
        if num_batches != len(self.fingerprints):
            raise self._differs(num_batches)

    def samples_at(self, indices: Sequence[int]) -> Iterator[Block]:
        """As a function yields in an order of its own, it is run again for each 256 MiB of samples."""
        return gathered(self, indices)

    def digests(self) -> list[bytes]:
        """Of each sample that the function yields, in one more run."""
        return digests_of_rows(self.blocks(max(self.lengths)))

    def _differs(self, number: int) -> DataError:
        return DataError(
            f"{self.spec}: yields different batches each time (batch {number} is not what it was on the first run); "
            "fix "
            "its seed, and do not shuffle"
        )

    def labels(self) -> AnyArray | None:
        """(num_samples, ...) as yielded on the first run, or None."""
        return self.targets

    def classes(self) -> tuple[str, ...]:
        """Not known here."""
        return ()

    def update(self, digest: hashlib._Hash) -> None:
        """Feed all that was yielded into a hash."""
        for fingerprint in self.fingerprints:
            digest.update(fingerprint)


def open_batch_function(source: DataSource, specs: tuple[InputSpec, ...], folder: Path) -> BatchFunction:
    """Run the function once, to count and to know its bytes.

    Raises:
        DataError: the function cannot be loaded, raises (its error is ``__cause__``), or yields what cannot be used.
    """
    if source.labels:
        raise DataError(
            f"{source.path}: labels is '{source.labels}', but a function yields its labels; drop labels, and yield "
            "(inputs, labels)"
        )
    keys = {spec.name: source.inputs.get(spec.name, spec.name) for spec in specs}
    lengths, fingerprints, parts = [], [], []
    for arrays, targets in _run(source, folder, keys):
        lengths.append(len(next(iter(arrays.values()))))
        fingerprints.append(_fingerprint(arrays, targets))
        if targets is not None:
            parts.append(np.array(targets))
    if sum(lengths) == 0:
        raise DataError(f"{source.path}: yields no samples, at least one is expected; check what it reads")
    if len(parts) not in (0, len(lengths)):
        raise DataError(
            f"{source.path}: yields labels with {len(parts)} of {len(lengths)} batches, with all or none is expected; "
            "mend it"
        )
    if len({part.shape[1:] for part in parts}) > 1:
        raise DataError(f"{source.path}: yields labels of different shapes, one shape is expected; fix it")
    return BatchFunction(
        spec=source.path,
        folder=str(folder),
        keys=keys,
        source=source,
        lengths=tuple(lengths),
        fingerprints=tuple(fingerprints),
        targets=np.concatenate(parts) if parts else None,
    )


Batch = tuple[dict[str, AnyArray], AnyArray | None]


def _run(source: DataSource, folder: Path, keys: Mapping[str, str]) -> Iterator[Batch]:
    """The function's batches as arrays by input name, of the fold, ending at ``limit``; its errors become ours."""
    spec, limit = source.path, source.limit
    stream = _items(spec, load_function(spec, folder))
    num_left, start = limit, 0
    for number, item in enumerate(stream):
        arrays, targets = _batch(item, keys, f"{spec}, batch {number}")
        if source.fold:
            length = len(next(iter(arrays.values())))
            rows = [row for row in range(length) if source.is_in_fold(start + row)]
            start += length
            arrays = {name: array[rows] for name, array in arrays.items()}
            targets = None if targets is None else targets[rows]
        if limit:
            arrays = {name: array[:num_left] for name, array in arrays.items()}
            targets = None if targets is None else targets[:num_left]
            num_left -= len(next(iter(arrays.values())))
        yield arrays, targets
        if limit and num_left == 0:
            return


def _items(spec: str, function: Callable[[], Iterable[object]]) -> Iterator[object]:
    try:
        yield from function()
    except Exception as error:
        raise DataError(f"{spec}: raised {type(error).__name__} ({error}); fix it") from error


def _batch(item: Any, keys: Mapping[str, str], where: str) -> Batch:
    """What was yielded, as arrays by input name, and labels if it was a pair."""
    targets: AnyArray | None = None
    if isinstance(item, tuple):
        if len(item) != 2:
            raise DataError(f"{where}: is a tuple of {len(item)}, (inputs, labels) is expected; yield a pair")
        item, targets = item[0], _array(item[1], f"{where}: labels")
    if isinstance(item, Mapping):
        for name, key in keys.items():
            if key not in item:
                example = next(iter(map(str, item)), "…")
                raise DataError(
                    f"{where}: has no '{key}' for the model's input '{name}', its keys are "
                    f"{quoted(map(str, item))}; write {mapping_lines(name, example)}"
                )
        arrays = {name: _array(item[key], f"{where}: '{key}'") for name, key in keys.items()}
    elif len(keys) == 1:
        arrays = {next(iter(keys)): _array(item, where)}
    else:
        raise DataError(
            f"{where}: is a {type(item).__name__}, a dict from name to array is expected for the model's inputs "
            f"{quoted(keys)}; yield a dict"
        )
    lengths = {len(array) for array in (*arrays.values(), *([] if targets is None else [targets]))}
    if len(lengths) > 1:
        raise DataError(
            f"{where}: has {' and '.join(map(str, sorted(lengths)))} samples in its arrays, the same number is "
            "expected "
            "of each; make the lengths equal"
        )
    return arrays, targets


def _array(value: Any, where: str) -> AnyArray:
    """An array of numbers with a batch axis: NumPy's, or anything that offers itself as one (a tensor)."""
    if not hasattr(value, "__array__"):
        raise DataError(f"{where}: is a {type(value).__name__}, an array is expected; yield NumPy arrays")
    array: AnyArray = np.asarray(value)
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise DataError(f"{where}: is {array.dtype} {array.shape}, numbers with a batch axis are expected; convert it")
    return array


def _fingerprint(arrays: Mapping[str, AnyArray], targets: AnyArray | None) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        hash_array(arrays[name], digest)
    if targets is not None:
        hash_array(targets, digest)
    return digest.digest()
