"""One pass over samples: hashes, constants, spread, and the samples that are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.arrays import AnyArray
from calibration.data.batches import DataSource, InputSpec, Samples, open_samples
from calibration.data.preprocess import Preprocess
from calibration.errors import DataError
from calibration.lint.survey import PROBE_BYTES, class_labels, survey

PAIR = (InputSpec("x", "float32", (-1, 2)), InputSpec("mask", "int64", (-1, 2)))


NOTHING = Preprocess()


def opened(folder: Path, specs: tuple[InputSpec, ...], preprocess: Preprocess = NOTHING, **arrays: AnyArray) -> Samples:
    np.savez(folder / "d.npz", **arrays)  # type: ignore[arg-type]  # The stubs take no mapping of arrays.
    labels = "y" if "y" in arrays else ""
    return open_samples(DataSource(str(folder / "d.npz"), labels=labels), specs, preprocess)


def test_the_numbers_of_a_small_set(tmp_path: Path) -> None:
    x = np.array([[1, -3], [1, -3], [2, 2], [0, 0]], np.float32)
    found = survey(opened(tmp_path, PAIR, x=x, mask=np.ones((4, 2), np.int64)))
    assert (found.num_samples, found.num_distinct, found.constant) == (4, 3, (2, 3))
    assert list(found.inputs) == ["x"], "whole numbers have no range"
    x_found = found.inputs["x"]
    assert (x_found.min, x_found.max, x_found.amax) == (-3, 2, 3)
    assert x_found.mean_square == (5 + 5 + 4 + 0) / 4
    assert x_found.negative_share == 2 / 8
    assert np.array(x_found.probe).tolist() == x.tolist()


def test_bytes_are_looked_at_as_floats_are(tmp_path: Path) -> None:
    x = np.array([[255, 251], [9, 9]], np.uint8)
    found = survey(opened(tmp_path, (InputSpec("x", "uint8", (-1, 2)),), x=x))
    assert found.constant == (1,)
    assert (found.inputs["x"].max, found.inputs["x"].rms) == (255, np.sqrt(((255**2 + 251**2) / 2 + 81) / 2))


def test_samples_count_after_preprocessing(tmp_path: Path) -> None:
    x = np.array([[2, 4]], np.float32)
    found = survey(opened(tmp_path, PAIR, Preprocess(scale=0.5, inputs=("x",)), x=x, mask=np.ones((1, 2), np.int64)))
    assert found.inputs["x"].max == 2
    assert found.preprocess == "× 0.5 (inputs x)"


def test_samples_that_differ_in_one_input_are_distinct(tmp_path: Path) -> None:
    x, mask = np.ones((3, 2), np.float32), np.array([[0, 1], [1, 1], [0, 1]])
    found = survey(opened(tmp_path, PAIR, x=x, mask=mask))
    assert found.num_distinct == 2


def test_a_single_number_per_sample_is_not_called_constant(tmp_path: Path) -> None:
    spec = (InputSpec("x", "float32", (-1, 1)),)
    assert survey(opened(tmp_path, spec, x=np.zeros((3, 1), np.float32))).constant == ()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_squares_do_not_overflow(tmp_path: Path, dtype: type[np.floating[np._typing.NBitBase]]) -> None:
    value = float(np.finfo(dtype).max) / 4 if dtype is not np.float64 else 1e100
    spec = (InputSpec("x", np.dtype(dtype).name, (-1, 3)),)
    found = survey(opened(tmp_path, spec, x=np.full((2, 3), value, dtype)))
    assert found.inputs["x"].rms == pytest.approx(value, rel=1e-3)


def test_no_values_at_all(tmp_path: Path) -> None:
    spec = (InputSpec("x", "float32", (-1, -1)),)
    found = survey(opened(tmp_path, spec, x=np.zeros((2, 0), np.float32)))
    assert (found.inputs["x"].min, found.inputs["x"].max, found.inputs["x"].probe) == (0, 0, ())


def test_samples_that_are_kept_are_evenly_spaced_and_few(tmp_path: Path) -> None:
    spec = (InputSpec("x", "float32", (-1, 1)),)
    x = np.arange(200, dtype=np.float32).reshape(-1, 1)
    without = survey(opened(tmp_path, spec, x=x), 50)
    assert len(without.probed) == 32, "more are needed only where there are labels"
    found = survey(opened(tmp_path, spec, x=x, y=np.arange(200)), 50)
    assert found.probed == tuple(range(0, 200, 4))
    assert [float(sample[0]) for sample in found.inputs["x"].probe] == list(range(0, 200, 4))


def test_large_samples_do_not_fill_the_memory(tmp_path: Path) -> None:
    num = PROBE_BYTES // 4 // 16
    spec = (InputSpec("x", "float32", (-1, num)),)
    found = survey(opened(tmp_path, spec, x=np.zeros((20, num), np.float32)))
    assert len(found.inputs["x"].probe) == 16


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([0, 2, 1], np.uint8), [0, 2, 1]),
        (np.array([-1, 0, 1]), None),
        (np.array([0, 1, 2**40]), None),
        (np.array([0.5, 1.5, 2]), None),
        (np.zeros((3, 2), np.int64), None),
    ],
)
def test_only_class_indices_are_labels(tmp_path: Path, labels: AnyArray, expected: list[int] | None) -> None:
    spec = (InputSpec("x", "float32", (-1, 1)),)
    found = class_labels(opened(tmp_path, spec, x=np.zeros((3, 1), np.float32), y=labels))
    assert (None if found is None else found.tolist()) == expected


def test_nan_stays_an_error_that_names_the_sample(tmp_path: Path) -> None:
    spec = (InputSpec("x", "float32", (-1, 2)),)
    x = np.zeros((5, 2), np.float32)
    x[3, 1] = np.nan
    with pytest.raises(DataError, match=r"d\.npz: input 'x' has NaN in sample 3"):
        survey(opened(tmp_path, spec, x=x))
