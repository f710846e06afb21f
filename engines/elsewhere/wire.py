"""What passes between two Pythons: JSON, in which each value says its kind; arrays lie in shared memory beside it.

Nothing is pickled: that of one numpy does not open in another, and it would run what it is sent.
"""

from __future__ import annotations

import base64
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.contract import (
    BuildOptions,
    DeviceTimes,
    EngineRecord,
    GivenScales,
    GpuUse,
    LayerFacts,
    LayerTime,
    LayerTimes,
    RunnerFacts,
    ShapeRange,
    TensorSpec,
)  # fmt: skip
from engines.refitting import RefitOutcome
from engines.signing.trust import Signed
from engines.support.answers import NodeAnswer, Partition, SupportAnswer
from engines.timed_queries import BlockLength, QueryArrivals

if TYPE_CHECKING:
    from engines.contract import Array

RECORDS = {
    record.__name__: record
    for record in (
        BlockLength, BuildOptions, DeviceTimes, EngineRecord, GivenScales, GpuUse, LayerFacts, LayerTime, LayerTimes,
        NodeAnswer, Partition, QueryArrivals, RefitOutcome, RunnerFacts, ShapeRange, Signed, SupportAnswer,
        TensorSpec,
    )
}  # fmt: skip
LEFT_HERE = {"BuildOptions": ("progress",)}
"""Fields of a record that stay on their side."""
ALIGNMENT = 64
"""Bytes; as numpy's own arrays lie, so that copies from here are as quick."""


class Arena:
    """Memory of one side's arrays, which the other maps; it has no name, and goes with the two processes.

    What lies in it holds until the next message of that side.
    """

    def __init__(self, descriptor: int) -> None:
        """``descriptor``: of ``memfd_create``."""
        self.descriptor = descriptor
        self._map: Any = None
        self._size = 0
        self._used = 0

    def close(self) -> None:
        """Give it back; views of it hold it for as long as they live."""
        os.close(self.descriptor)
        self._map, self._size = None, 0

    def clear(self) -> None:
        """Begin a message."""
        self._used = 0

    def put(self, array: Array) -> int:
        """Copy an array in, contiguous; where it lies."""
        offset = -(-self._used // ALIGNMENT) * ALIGNMENT
        self._used = offset + array.nbytes
        if self._used > self._size:
            size = max(self._used, 2 * self._size, mmap.PAGESIZE)
            os.posix_fallocate(self.descriptor, 0, size)  # Full memory is an error here, and no signal later.
        if array.nbytes:
            np.copyto(self._view(offset, array.dtype, array.shape), array)
        return offset

    def get(self, offset: int, dtype: str, shape: tuple[int, ...]) -> Array:
        """An array that the other side put in: a view."""
        return self._view(offset, np.dtype(dtype), shape)

    def _view(self, offset: int, dtype: Any, shape: tuple[int, ...]) -> Array:
        num_items = int(np.prod(shape, dtype=np.int64))
        if not num_items:
            return np.empty(shape, dtype)
        if offset + num_items * dtype.itemsize > self._size:  # It has grown; views of before keep their own mapping.
            self._size = os.fstat(self.descriptor).st_size
            self._map = mmap.mmap(self.descriptor, self._size)
        flat: Array = np.frombuffer(self._map, dtype, num_items, offset)
        return flat.reshape(shape)


def encoded(value: Any, arena: Arena) -> Any:
    """A value as JSON's types; arrays go into the arena.

    Raises:
        TypeError: it has no form for it.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise TypeError(f"an array of {value.dtype} has no form in shared memory")
        return {"array": [arena.put(value), value.dtype.str, list(value.shape)]}
    if isinstance(value, (tuple, list, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return {type(value).__name__: [encoded(item, arena) for item in items]}
    if isinstance(value, Mapping):
        return {"dict": {str(name): encoded(item, arena) for name, item in value.items()}}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    name = type(value).__name__
    if RECORDS.get(name) is not type(value):
        raise TypeError(f"{name} has no form on the wire; add it to RECORDS")
    parts = {key: item for key, item in vars(value).items() if key not in LEFT_HERE.get(name, ())}
    return {"record": [name, {key: encoded(item, arena) for key, item in parts.items()}]}


def decoded(value: Any, arena: Arena) -> Any:
    """What ``encoded`` was given; arrays are views into the arena."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "array":
        offset, dtype, shape = content
        return arena.get(offset, dtype, tuple(shape))
    if kind == "dict":
        return {name: decoded(item, arena) for name, item in content.items()}
    if kind == "path":
        return Path(content)
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "record":
        name, parts = content
        return RECORDS[name](**{key: decoded(item, arena) for key, item in parts.items()})
    containers = {"tuple": tuple, "list": list, "set": set, "frozenset": frozenset}
    return containers[kind](decoded(item, arena) for item in content)
