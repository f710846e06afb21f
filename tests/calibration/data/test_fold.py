"""Parts of a data set: they share no sample, have all together, and take turns with nothing in the data."""

from __future__ import annotations

import pytest

from calibration.data.source import DataSource


def part(fold: str, num: int) -> list[int]:
    return list(DataSource("data.npz", fold=fold).chosen(num))


@pytest.mark.parametrize("num_folds", [2, 3, 5, 10, 97])
@pytest.mark.parametrize("num", [97, 1000])
def test_folds_are_of_one_size_share_nothing_and_have_all(num: int, num_folds: int) -> None:
    folds = [part(f"{number}/{num_folds}", num) for number in range(1, num_folds + 1)]
    assert sorted(index for fold in folds for index in fold) == list(range(num))
    assert {len(fold) for fold in folds} <= {num // num_folds, num // num_folds + 1}
    rest = part(f"2-{num_folds}/{num_folds}", num)
    assert sorted([*folds[0], *rest]) == list(range(num))


@pytest.mark.parametrize("num_classes", [2, 3, 4, 5, 6, 7, 10, 15, 20, 25])
def test_classes_that_take_turns_are_in_every_part(num_classes: int) -> None:
    """As in a set that was written round robin; a fold of every fifth sample would have every fifth class."""
    for fold in ("1/5", "2/5", "5/5"):
        counts = [0] * num_classes
        for index in part(fold, 100 * num_classes):
            counts[index % num_classes] += 1
        assert min(counts) >= 6  # Of 20 each, give or take 4.
        assert max(counts) <= 36


def test_classes_in_order_are_in_every_part_equally() -> None:
    counts = [sum(index // 50 == label for index in part("1/5", 500)) for label in range(10)]
    assert all(9 <= count <= 11 for count in counts)
