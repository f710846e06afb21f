"""Pairs of samples that are the same or not, for verification: read from a list, and as an array with a row a sample.

The array is (N, 1 + K, 3) of int64. Row 0 of a sample is (its number, -1, 0), the others are pairs (its number, the
other's number, 1 for the same or 0), filled with -1. So any part of the samples, in any order, has its pairs with it.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from calibration.arrays import AnyArray, Bools, Ints
from calibration.errors import DataError

COLUMNS = ("first", "second", "same")
SAME = {"1": True, "0": False, "true": True, "false": False, "same": True, "different": False}
MOST_ELEMENTS = 1 << 27
"""Of the array: 1 GiB."""


def pair_table(pairs: Sequence[tuple[int, int, bool]], num_samples: int) -> Ints:
    """The array of those pairs of samples' numbers.

    Raises:
        DataError: it would be too large, as so many pairs have the same sample first.
    """
    by_first: list[list[tuple[int, int, bool]]] = [[] for _ in range(num_samples)]
    for pair in pairs:
        by_first[pair[0]].append(pair)
    most = max(map(len, by_first), default=0)
    if num_samples * (1 + most) * 3 > MOST_ELEMENTS:
        raise DataError(
            f"pairs: one sample is first in {most:,} of {len(pairs):,} pairs, which is too many; give fewer pairs"
        )
    table = np.full((num_samples, 1 + most, 3), -1, np.int64)
    table[:, 0] = [(number, -1, 0) for number in range(num_samples)] or np.zeros((0, 3))
    for number, rows in enumerate(by_first):
        table[number, 1 : 1 + len(rows)] = rows or np.zeros((0, 3))
    return table


def is_pair_table(labels: AnyArray) -> bool:
    """Whether labels are such an array."""
    is_like = labels.ndim == 3 and labels.shape[2] == 3 and labels.dtype == np.int64 and labels.shape[1] > 0
    return bool(is_like and (labels[:, 0, 1] == -1).all() and (labels[:, 0, 2] == 0).all())


def pairs_in(labels: AnyArray) -> tuple[Ints, Ints, Bools]:
    """(P,) rows of the samples of each pair of which both are here, and whether they are the same.

    The samples' numbers are those in the table, whatever part of it this is; each is expected once.
    """
    row_of = np.full(int(labels[:, :, :2].max(initial=0)) + 1, -1, np.int64)
    row_of[labels[:, 0, 0]] = np.arange(len(labels))
    pairs = labels[:, 1:].reshape(-1, 3)
    pairs = pairs[np.greater_equal(pairs[:, 0], 0)]
    first, second = row_of[pairs[:, 0]], row_of[pairs[:, 1]]
    here = (first >= 0) & (second >= 0)
    return first[here], second[here], np.asarray(pairs[here, 2] == 1)


def is_list_of_pairs(path: Path) -> bool:
    """Whether a file is such a list by its name, and a ``.csv`` by its head."""
    if path.suffix.lower() != ".csv":
        return path.suffix.lower() == ".txt"
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            head = next(csv.reader(stream, skipinitialspace=True), [])
    except (OSError, csv.Error, UnicodeDecodeError):
        return False
    return COLUMNS[:2] == tuple(name for name in head if name in COLUMNS[:2])


def read_pairs(path: Path, names: Sequence[str]) -> list[tuple[int, int, bool]]:
    """The pairs of a list: a ``.csv`` with columns first, second, same; or text with three columns and no head.

    A sample is called by its file, or by its number from 0; ``names`` are the files, empty where samples have none.

    Raises:
        DataError: no such file, a line that is no pair, a sample that is not there.
    """
    number_of = {name: number for number, name in enumerate(names)}
    pairs = []
    try:
        for line, words in _lines(path):
            where = f"{path}:{line}"
            if len(words) != 3 or words[2].lower() not in SAME:
                raise DataError(
                    f"{where}: is '{' '.join(words):.60}', two samples and 1 (the same) or 0 are expected; correct it"
                )
            first, second = (_number(word, number_of, where) for word in words[:2])
            if first == second:
                raise DataError(f"{where}: is a pair of '{words[0]}' with itself; drop the line")
            pairs.append((first, second, SAME[words[2].lower()]))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of pairs ({error}); correct the path or the file") from error
    is_same = {frozenset(pair[:2]): pair[2] for pair in pairs}
    if clash := next((pair for pair in pairs if is_same[frozenset(pair[:2])] != pair[2]), None):
        words = [names[number] if names else str(number) for number in clash[:2]]
        raise DataError(f"{path}: has the pair of '{words[0]}' and '{words[1]}' as the same and as others; drop a line")
    if not pairs:
        raise DataError(f"{path}: holds no pair; write lines such as 'anna/1.png anna/2.png 1'")
    return pairs


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Number and words of each line that has some."""
    with path.open(newline="", encoding="utf-8-sig") as stream:
        if path.suffix.lower() != ".csv":
            return [(number, words) for number, line in enumerate(stream, 1) if (words := line.split())]
        rows = csv.DictReader(stream, skipinitialspace=True)
        missing = [name for name in COLUMNS if name not in (rows.fieldnames or [])]
        if missing:
            raise DataError(f"{path}: has no column '{missing[0]}', {', '.join(COLUMNS)} are expected; add it")
        return [(rows.line_num, [(row[name] or "").strip() for name in COLUMNS]) for row in rows]


def _number(word: str, number_of: Mapping[str, int], where: str) -> int:
    name = PurePosixPath(word).as_posix()
    if name in number_of:
        return number_of[name]
    if word.isdecimal() and int(word) < len(number_of):
        return int(word)
    raise DataError(
        f"{where}: names '{word}', which is no sample; write a file, or a number from 0 to {len(number_of) - 1}"
    )
