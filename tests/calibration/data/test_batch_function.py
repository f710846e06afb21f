"""Samples from a user's function: what it may yield, that it must repeat itself, and that its errors are kept."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.data.batches import DataSource, InputSpec, Samples, open_samples
from calibration.data.preprocess import Preprocess
from calibration.errors import DataError

VECTOR = (InputSpec("x", "float32", (-1, 2)),)
PAIR = (InputSpec("ids", "int64", (-1, 2)), InputSpec("mask", "float32", (-1, 2)))
NUMBER = itertools.count()


def opened(folder: Path, body: str, specs: tuple[InputSpec, ...] = VECTOR, **options: Any) -> Samples:
    """Samples of a function with this body; ``ones`` is (2, 2) float32."""
    name = f"own_batches_{next(NUMBER)}"
    (folder / f"{name}.py").write_text(
        "import numpy as np\nones = np.ones((2, 2), np.float32)\nruns = 0\n"
        f"def batches():\n    global runs\n    runs += 1\n    {body}\n"
    )
    return open_samples(DataSource(f"{name}:batches", **options), specs, Preprocess(), folder)


@pytest.mark.parametrize(
    "body",
    [
        "yield ones; yield ones[:1]",
        "yield {'x': ones, 'more': 'is ignored'}; yield {'x': ones[:1]}",
        "return [ones, ones[:1]]",
        "return iter([({'x': ones},[0] and np.array([0, 1])), (ones[:1], np.array([2]))])",
    ],
)
def test_what_a_function_may_yield(tmp_path: Path, body: str) -> None:
    samples = opened(tmp_path, body)
    assert samples.num_samples == 3
    assert [batch["x"].shape for batch in samples.batches(2)] == [(2, 2), (1, 2)]


def test_keys_are_mapped_to_inputs(tmp_path: Path) -> None:
    body = "yield {'ids': ones.astype(int), 'm': ones}"
    (batch,) = opened(tmp_path, body, PAIR, inputs={"mask": "m"}).batches(9)
    assert batch["ids"].dtype == np.int64
    assert batch["mask"].dtype == np.float32


def test_a_tensor_that_offers_itself_as_an_array(tmp_path: Path) -> None:
    body = (
        "\n    class Tensor:\n        def __array__(self, dtype=None, copy=None):\n            return ones\n"
        "    yield Tensor()"
    )
    assert opened(tmp_path, body).num_samples == 2


def test_a_buffer_that_the_function_uses_again(tmp_path: Path) -> None:
    samples = opened(
        tmp_path, "buffer = ones[:1].copy()\n    for i in range(3):\n        buffer[:] = i\n        yield buffer"
    )
    (batch,) = samples.batches(3)
    assert batch["x"][:, 0].tolist() == [0, 1, 2]


def test_labels_come_with_the_batches(tmp_path: Path) -> None:
    samples = opened(tmp_path, "for i in range(3): yield ones, np.array([i, i], np.int32)")
    assert samples.labels().tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(DataError, match="has no labels"):
        opened(tmp_path, "yield ones").labels()


def test_a_limit_takes_the_first_and_ends_an_endless_stream(tmp_path: Path) -> None:
    samples = opened(tmp_path, "while True: yield ones, np.array([0, 1])", limit=5)
    assert samples.num_samples == 5
    assert samples.describe()["selection"] == "the first 5"
    assert samples.labels().tolist() == [0, 1, 0, 1, 0]
    assert sum(len(batch["x"]) for batch in samples.batches(2)) == 5


def test_the_preprocessing_is_the_same_as_for_files(tmp_path: Path) -> None:
    (tmp_path / "bytes_of_mine.py").write_text(
        "import numpy as np\ndef b():\n    yield np.full((1, 2), 10, np.uint8)\n"
    )
    samples = open_samples(DataSource("bytes_of_mine:b"), VECTOR, Preprocess(scale=0.5), tmp_path)
    (batch,) = samples.batches(1)
    assert batch["x"].tolist() == [[5.0, 5.0]]


@pytest.mark.parametrize(
    "body",
    [
        "yield ones * runs",  # other values
        "for _ in range(runs): yield ones",  # more batches
        "for _ in range(9 - runs): yield ones",  # fewer
        "yield ones, np.array([0, runs])",  # other labels
        "yield np.random.default_rng().random((2, 2), np.float32)",
    ],
)
def test_other_bytes_on_another_run_are_an_error(tmp_path: Path, body: str) -> None:
    with pytest.raises(
        DataError, match=r"^own_batches_\d+:batches: yields different batches each time .* fix its seed"
    ):
        list(opened(tmp_path, body).batches(2))


def test_the_digest_is_of_the_yielded_bytes(tmp_path: Path) -> None:
    digests = [
        opened(tmp_path, body).digest()
        for body in (
            "yield ones",
            "yield ones + 0",
            "yield ones * 2",
            "yield ones, np.array([0, 1])",
            "yield ones.T[:, :2]",
        )
    ]
    assert digests[0] == digests[1] == digests[4]
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("body", "specs", "message"),
    [
        ("return iter([])", VECTOR, "yields no samples, at least one is expected"),
        ("yield ones[:0]", VECTOR, "yields no samples"),
        (
            "yield {'y': ones}",
            VECTOR,
            "batch 0: has no 'x' for the model's input 'x', its keys are 'y'; write inputs = ",
        ),
        ("yield ones", PAIR, "batch 0: is a ndarray, a dict from name to array is expected .* 'ids', 'mask'"),
        ("yield [1.0, 2.0]", VECTOR, "batch 0: is a list, an array is expected; yield NumPy arrays"),
        ("yield ones, ones, ones", VECTOR, r"batch 0: is a tuple of 3, \(inputs, labels\) is expected"),
        ("yield ones, np.array(['a', 'b'])", VECTOR, "batch 0: labels: is <U1 .* numbers with a batch axis"),
        ("yield np.float32(1)", VECTOR, "batch 0: is float32 .* numbers with a batch axis"),
        ("yield ones, np.arange(3)", VECTOR, "batch 0: has 2 and 3 samples in its arrays, the same number"),
        ("yield ones; yield ones, np.arange(2)", VECTOR, "yields labels with 1 of 2 batches, with all or none"),
        ("yield ones, ones; yield ones, ones[:, :1]", VECTOR, "yields labels of different shapes"),
        ("return {'x': ones}", VECTOR, "batch 0: is a str, an array is expected"),
        ("return None", VECTOR, r"raised TypeError \(.*not iterable\)"),
        ("yield ones; yield ones * float('nan')", VECTOR, "batch 1: input 'x' has NaN in sample 0"),
        ("yield ones.astype(float)", VECTOR, "batch 0: input 'x' is float64"),
    ],
)
def test_what_a_function_may_not_yield(tmp_path: Path, body: str, specs: tuple[InputSpec, ...], message: str) -> None:
    with pytest.raises(DataError, match=rf"^own_batches_\d+:batches(, |: )({message})"):
        list(opened(tmp_path, body, specs).batches(2))


def test_an_error_of_the_function_is_kept(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r":batches: raised ZeroDivisionError \(division by zero\); fix it") as caught:
        opened(tmp_path, "yield ones; yield 1 / 0")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_labels_of_a_function_are_not_set_in_the_plan(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="labels is 'y', but a function yields its labels; drop labels"):
        opened(tmp_path, "yield ones", labels="y")


def test_a_path_that_exists_is_no_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones((2, 2), np.float32))
    Path("x.npy").rename("a:b")
    with pytest.raises(DataError, match=r"^a:b: is a '' file, \.npz"):
        open_samples(DataSource("a:b"), VECTOR, Preprocess(), tmp_path)


def test_folds_go_through_the_batches_of_a_function(tmp_path: Path) -> None:
    body = "yield np.arange(6, dtype=np.float32).reshape(3, 2), np.arange(3); yield ones, np.array([3, 4])"
    samples = opened(tmp_path, body, fold="2/2")
    assert samples.labels().tolist() == [1, 3]
    assert [batch["x"].tolist() for batch in samples.batches(9)] == [[[2, 3], [1, 1]]]
    assert samples.describe()["selection"] == "all 2 of fold 2/2"
    assert opened(tmp_path, body, fold="1/2", limit=1).labels().tolist() == [0]
