"""Checks what is fed to an engine: names, dtypes and shapes, without touching the values, so that it can be timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from engines.contract import DYNAMIC, Array, TensorSpec
from engines.errors import EngineError
from engines.onnx_model import shape_text


class FeedCheck:
    """Compares a feed with the engine's inputs: the set of names, each dtype with byte order, each fixed dimension.

    Not checked: the values, and an upper bound of dynamic dimensions (the backend knows it, if there is one).
    Costs about 1 microsecond per input.
    """

    def __init__(self, engine: Path, inputs: tuple[TensorSpec, ...]) -> None:
        self._engine = engine
        self._inputs = {spec.name: (np.dtype(spec.dtype), spec.shape) for spec in inputs}
        self._dtypes = [(name, dtype) for name, (dtype, _) in self._inputs.items()]

    def __call__(self, feed: Mapping[str, Array]) -> None:
        """Nothing, if the feed fits.

        Raises:
            EngineError: an input is missing, unknown, not an array, of another dtype or shape.
        """
        if feed.keys() != self._inputs.keys():
            raise EngineError(self._wrong_names(feed))
        for name, (dtype, shape) in self._inputs.items():
            array = feed[name]
            if not isinstance(array, np.ndarray):
                raise EngineError(
                    f"{self._engine}: input '{name}' is a {type(array).__name__}, the engine takes a numpy array; "
                    "convert it"
                )
            if array.dtype != dtype:
                raise EngineError(
                    f"{self._engine}: input '{name}' is {array.dtype} {array.shape}, the engine takes {dtype}; "
                    "convert it"
                )
            if array.shape != shape and not _fits(array.shape, shape):
                raise EngineError(
                    f"{self._engine}: input '{name}' has shape {shape_text(array.shape)}, the engine takes "
                    f"{shape_text(shape)}; change the data's shape"
                )

    def alike(self, feed: Mapping[str, Array], shapes: Sequence[tuple[int, ...]]) -> list[Array] | None:
        """The arrays in the order of the inputs, if the feed certainly fits and has these shapes; else None.

        What it says costs half of the whole check: for a feed that is like the one before.
        """
        if not len(feed) == len(shapes) == len(self._dtypes):
            return None
        arrays = []
        for (name, dtype), shape in zip(self._dtypes, shapes):
            array = feed.get(name)
            if type(array) is not np.ndarray or array.shape != shape or array.dtype is not dtype:
                return None
            arrays.append(array)
        return arrays

    def _wrong_names(self, feed: Mapping[str, Array]) -> str:
        missing = [name for name in self._inputs if name not in feed]
        unknown = [name for name in feed if name not in self._inputs]
        takes = ", ".join(f"'{name}'" for name in self._inputs)
        differences = "; ".join(
            f"{word} {', '.join(map(repr, names))}"
            for word, names in (("missing", missing), ("unknown", unknown))
            if names
        )
        return (
            f"{self._engine}: the feed does not name the inputs ({differences}), the engine takes {takes}; name these"
        )


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(n == d or (d == DYNAMIC and n > 0) for n, d in zip(shape, wanted))
