"""Changes that labels prove to be better, and the many that they do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from calibration.arrays import AnyArray
from calibration.lint.label_check import Change, better_change, changes_for, channel_axis, other_layout, sign_test

Picture = npt.NDArray[np.float32]


CAFFE = "Caffe's preprocessing (BGR, 0..255, less the mean)"


def pictures(num: int) -> list[tuple[AnyArray, int]]:
    """Pictures (6, 6, 3) of 0..255 in four classes: which corner is bright, in reds rather than blues."""
    random = np.random.default_rng(5)
    found: list[tuple[AnyArray, int]] = []
    for index in range(num):
        picture = random.uniform(0, 60, (6, 6, 3)).astype(np.float32)
        label = index % 4
        row, column = 3 * (label // 2), 3 * (label % 2)
        picture[row : row + 3, column : column + 3] += np.array([190, 90, 0], np.float32)
        found.append((picture, label))
    return found


def network(sample: AnyArray) -> int:
    """The brightest corner in red; where the red is off the scale of 0..255, whatever comes first."""
    red = np.asarray(sample, np.float32)[:, :, 0]
    corners = [float(red[r : r + 3, c : c + 3].mean()) for r in (0, 3) for c in (0, 3)]
    return int(np.argmax(corners)) if max(corners) > 100 else 0


def seen_as(change: Callable[[Picture], AnyArray]) -> tuple[list[tuple[AnyArray, int]], list[Change]]:
    """The pictures as somebody stored them, and what would be tried."""
    data = [(np.ascontiguousarray(change(np.asarray(picture, np.float32))), label) for picture, label in pictures(128)]
    low, high = (float(f([f(picture) for picture, _ in data])) for f in (np.min, np.max))
    return data, changes_for(data[0][0], low, high)


@pytest.mark.parametrize(
    ("stored", "code", "words"),
    [
        (lambda x: x / np.float32(255), "range", "× 255"),
        (lambda x: x / np.float32(127.5) - 1, "range", "(x + 1) × 127.5"),
        (lambda x: x[:, :, ::-1], "channels", "the channels in reverse order (BGR and RGB)"),
        (lambda x: np.swapaxes(x, 0, 1), "layout", "rows and columns exchanged"),
    ],
)
def test_what_went_wrong_is_named(stored: Callable[[Picture], AnyArray], code: str, words: str) -> None:
    data, changes = seen_as(stored)
    right = [network(sample) == label for sample, label in data]
    found = better_change(network, data, changes, 1e-4, right)
    assert found is not None
    assert (found.change.code, found.change.words) == (code, words)
    assert found.num_right > found.num_right_as_given
    assert (found.num_samples, found.num_right_as_given) == (128, sum(right))
    if 2 * sum(right[:16]) < 16:
        assert better_change(network, data, changes, 1e-4) == found, "the model is asked where nothing is known"


def test_data_as_it_should_be_costs_sixteen_answers() -> None:
    data, changes = seen_as(lambda x: x)
    asked = []

    def counting(sample: AnyArray) -> int:
        asked.append(1)
        return network(sample)

    assert better_change(counting, data, changes, 1e-4) is None
    assert len(asked) == 16
    assert better_change(counting, data, changes, 1e-4, right=[True] * 128) is None
    assert len(asked) == 16, "what is known is not asked again, and nothing can be mended"


def test_labels_of_another_model_prove_nothing() -> None:
    data, changes = seen_as(lambda x: x)
    random = np.random.default_rng(1)
    shuffled = [(sample, int(random.integers(4))) for sample, _ in data]
    assert better_change(network, shuffled, changes, 1e-4) is None


@pytest.mark.parametrize("share", [1.0, 0.9, 0.6])
def test_a_change_that_spoils_all_samples_into_a_frequent_class_is_no_help(share: float) -> None:
    """The network calls spoilt samples 0, and so are most labels called, by somebody who numbers classes otherwise."""
    data, changes = seen_as(lambda x: x)
    num = int(share * 128)
    named_otherwise = [(sample, 0 if i < num else 1 + label % 3) for i, (sample, label) in enumerate(data)]
    assert better_change(network, named_otherwise, changes, 1e-4) is None


def test_no_network_of_chance_is_ever_helped() -> None:
    """A network that says anything: in 200 trials at 1 in 10,000, none may be named."""
    data, changes = seen_as(lambda x: x)
    random = np.random.default_rng(2)
    for _ in range(200):
        assert better_change(lambda _sample: int(random.integers(4)), data[:64], changes, 1e-4) is None


def test_too_few_samples_prove_nothing() -> None:
    data, changes = seen_as(lambda x: x / np.float32(255))
    assert better_change(network, data[:16], changes, 1e-4) is None


def test_the_sign_test_is_the_binomials_upper_tail() -> None:
    assert sign_test(0, 0) == 1
    assert sign_test(3, 0) == 1 / 8
    assert sign_test(3, 1) == 5 / 16
    assert sign_test(0, 7) == 1


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0, 1, ["× 255", "× 2 − 1", "ImageNet's mean and std", CAFFE]),
        (-1, 1, ["(x + 1) ÷ 2", "(x + 1) × 127.5", "× 255"]),
        (0, 255, ["÷ 255", "÷ 127.5 − 1", "ImageNet's mean and std", CAFFE]),
        (-2.1, 2.6, ["÷ 255", "× 255", "× ImageNet's std + mean", "(× std + mean) × 255"]),
        (-120, 30, ["÷ 255", "× 255"]),
    ],
)  # fmt: skip
def test_scales_that_are_tried_follow_from_the_values(low: float, high: float, words: list[str]) -> None:
    for shape in ((8, 8, 3), (3, 8, 8)):
        sample = np.zeros(shape, np.float32)
        assert [c.words for c in changes_for(sample, low, high) if c.code == "range"] == words


def test_bytes_have_but_one_scale() -> None:
    assert {c.code for c in changes_for(np.zeros((8, 8, 3), np.uint8), 0, 255)} == {"channels", "layout"}


@pytest.mark.parametrize("shape", [(8, 8, 3), (3, 8, 8)])
def test_every_change_keeps_shape_and_dtype(shape: tuple[int, ...]) -> None:
    for low, high in ((0, 1), (-1, 1), (0, 255), (-2.1, 2.6), (-120, 30)):
        sample = np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)
        for change in changes_for(sample, low, high):
            changed = change.apply(sample)
            assert (changed.shape, changed.dtype.name, changed.flags["C_CONTIGUOUS"]) == (shape, "float32", True)


def test_imagenets_scales_are_each_others_inverse() -> None:
    sample = np.random.default_rng(0).uniform(0, 255, (8, 8, 3)).astype(np.float32)
    there = next(c for c in changes_for(sample, 0, 255) if c.words == "ImageNet's mean and std")
    back = next(c for c in changes_for(sample, -2.1, 2.6) if c.words == "(× std + mean) × 255")
    again = np.asarray(back.apply(there.apply(sample)), np.float32)
    np.testing.assert_allclose(again.ravel(), sample.ravel(), atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((32, 32, 3), 2), ((3, 32, 32), 0), ((49, 10, 1), 2), ((1, 28, 28), 0), ((8, 8, 16), None), ((7,), None),
     ((3, 3, 3), None), ((4, 100), None)],
)  # fmt: skip
def test_the_axis_of_channels(shape: tuple[int, ...], axis: int | None) -> None:
    assert channel_axis(shape) == axis


def test_the_other_layout_undoes_a_reshape() -> None:
    picture = np.arange(4 * 5 * 3, dtype=np.float32).reshape(4, 5, 3)
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1))
    np.testing.assert_array_equal(other_layout(planes.reshape(4, 5, 3), 2), picture)
    np.testing.assert_array_equal(other_layout(picture.reshape(3, 4, 5), 0), planes)
