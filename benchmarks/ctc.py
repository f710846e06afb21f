"""A metric for text recognition, as a user writes one: ``metric = "ctc:character_accuracy"`` in a plan beside it.

Scores are (N, T, C) with the blank as class 0, before or after a Softmax; labels are (N, L) classes, padded with -1.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def character_accuracy(outputs: Mapping[str, Array], labels: Array) -> float:
    """Mean over the lines of difflib's ratio of the characters that were read and those that are there."""
    (scores,) = outputs.values()
    return float(
        np.mean([similarity(read, text) for read, text in zip(texts(scores.argmax(axis=-1)), written(labels))])
    )


def texts(classes: Array) -> list[list[int]]:
    """Greedy decoding of (N, T) classes: repeats merged, blanks dropped."""
    return [[int(now) for before, now in zip([0, *line], line) if now not in (before, 0)] for line in classes.tolist()]


def written(labels: Array) -> list[list[int]]:
    """The labels without their padding."""
    return [[label for label in line if label >= 0] for line in labels.tolist()]


def similarity(first: list[int], second: list[int]) -> float:
    """Twice the characters in common, of all of both."""
    return difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()
