"""Samples from every kind of source: the same batches, checks, labels, digests; and the sentence for each misfit."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from calibration.arrays import AnyArray
from calibration.data.batches import DataSource, InputSpec, Samples, open_samples
from calibration.data.input_specs import sample_specs
from calibration.data.preprocess import Preprocess
from calibration.data.source import spread
from calibration.errors import DataError

IMAGE = (InputSpec("image", "float32", (-1, 2, 2, 1)),)
VECTOR = (InputSpec("x", "float32", (-1, 2)),)
PAIR = (InputSpec("ids", "int64", (-1, 2)), InputSpec("mask", "float32", (-1, 2)))


def vectors(num: int) -> AnyArray:
    """(num, 2) float32: row i is [i, -i]."""
    return np.stack([np.arange(num), -np.arange(num)], axis=1).astype(np.float32)


def npz(path: Path, **arrays: Any) -> str:
    """An .npz file; its path."""
    np.savez(path, **arrays)
    return str(path)


def opened(path: str | Path, specs: tuple[InputSpec, ...] = VECTOR, **options: Any) -> Samples:
    """Samples without preprocessing."""
    return open_samples(DataSource(str(path), **options), specs, Preprocess(), Path(path).parent)


def together(samples: Samples, name: str, batch_size: int = 3) -> AnyArray:
    """All values of one input."""
    return np.concatenate([batch[name] for batch in samples.batches(batch_size)])


# One .npz, one .npy, a folder of either: the same samples.


@pytest.fixture(params=["npz", "npy", "npz folder", "npy folder", "function"])
def ten(request: pytest.FixtureRequest, tmp_path: Path) -> Samples:
    """Ten vectors with labels 0 to 9, in each of the ways one may store them."""
    x, y = vectors(10), np.arange(10)
    if request.param == "npz":
        return opened(npz(tmp_path / "d.npz", x=x, y=y), labels="y")
    if request.param == "npy":
        np.save(tmp_path / "d.npy", x)
        np.save(tmp_path / "y.npy", y)
        return opened(tmp_path / "d.npy", labels="y.npy")
    if request.param == "function":
        (tmp_path / f"ten_{tmp_path.name}.py").write_text(
            "import numpy as np\n"
            "def batches():\n"
            "    x = np.stack([np.arange(10), -np.arange(10)], axis=1).astype(np.float32)\n"
            "    for first, last in [(0, 4), (4, 5), (5, 10)]:\n"
            "        yield {'x': x[first:last]}, np.arange(first, last)\n"
        )
        return open_samples(DataSource(f"ten_{tmp_path.name}:batches"), VECTOR, Preprocess(), tmp_path)
    folder = tmp_path / "samples"
    folder.mkdir()
    for number, (first, last) in enumerate([(0, 4), (4, 5), (5, 10)]):
        if request.param == "npz folder":
            npz(folder / f"{number:04}.npz", x=x[first:last], y=y[first:last])
        else:
            np.save(folder / f"{number:04}.npy", x[first:last])
    if request.param == "npy folder":
        np.save(tmp_path / "y.npy", y)
        return opened(folder, labels="y.npy")
    return opened(folder, labels="y")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 10, 100])
def test_batches_are_full_but_the_last(ten: Samples, batch_size: int) -> None:
    sizes = [len(batch["x"]) for batch in ten.batches(batch_size)]
    assert sizes == [batch_size] * (10 // batch_size) + [10 % batch_size] * (10 % batch_size > 0)
    values = together(ten, "x", batch_size)
    np.testing.assert_array_equal(values, vectors(10))
    assert values.dtype == np.float32


def test_some_samples_in_any_order(ten: Samples) -> None:
    assert [sample["x"].tolist() for sample in ten.at([7, 0, 7])] == [[[7, -7]], [[0, 0]], [[7, -7]]]


def test_labels_and_count(ten: Samples) -> None:
    assert ten.num_samples == 10
    assert ten.labels().tolist() == list(range(10))
    assert ten.labels().dtype == np.int64


def test_describe_is_for_a_report(ten: Samples) -> None:
    words = json.loads(json.dumps(ten.describe()))
    assert words == {
        "path": ten.source.path,
        "num_samples": 10,
        "selection": "all 10",
        "preprocess": "none, samples are used as stored",
        "label_counts": {str(i): 1 for i in range(10)},
    }


def test_batches_are_the_callers_own(ten: Samples) -> None:
    for batch in ten.batches(4):
        assert type(batch["x"]) is np.ndarray
        assert batch["x"].flags.c_contiguous
        batch["x"][:] = 7
    np.testing.assert_array_equal(together(ten, "x"), vectors(10))


def test_samples_go_into_another_process(ten: Samples) -> None:
    ten.labels()
    copy: Samples = pickle.loads(pickle.dumps(ten))
    assert copy.digest() == ten.digest()
    np.testing.assert_array_equal(together(copy, "x"), vectors(10))


def test_the_digest_stays_and_is_a_sha256(ten: Samples) -> None:
    digest = ten.digest()
    together(ten, "x")
    assert ten.digest() == digest
    assert len(digest) == 64
    int(digest, 16)


def test_no_batch_is_empty_or_negative(ten: Samples) -> None:
    with pytest.raises(DataError, match="batches of 0 were requested"):
        ten.batches(0)


# Selection.


@given(st.integers(1, 200), st.integers(0, 250))
def test_spread_is_ascending_even_and_of_the_asked_length(num: int, limit: int) -> None:
    chosen = list(spread(num, limit))
    assert len(chosen) == (min(limit, num) or num)
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    assert chosen[-1] < num
    gaps = {b - a for a, b in itertools.pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_a_limit_takes_its_part_of_every_class(tmp_path: Path) -> None:
    path = npz(tmp_path / "sorted.npz", x=vectors(100), y=np.repeat([0, 1, 2, 3], 25))
    samples = opened(path, labels="y", limit=8)
    assert samples.describe()["label_counts"] == {"0": 2, "1": 2, "2": 2, "3": 2}
    assert samples.describe()["selection"] == "8 of 100, evenly spaced"
    assert together(samples, "x")[:, 0].tolist() == [0, 12, 25, 37, 50, 62, 75, 87]


def test_a_limit_goes_across_the_files_of_a_folder(tmp_path: Path) -> None:
    for i in range(5):
        npz(tmp_path / f"{i}.npz", x=vectors(10)[2 * i : 2 * i + 2], y=np.array([2 * i, 2 * i + 1]))
    samples = opened(tmp_path, labels="y", limit=3)
    assert together(samples, "x")[:, 0].tolist() == [0, 3, 6]
    assert samples.labels().tolist() == [0, 3, 6]


def test_a_limit_above_the_number_is_all(tmp_path: Path) -> None:
    samples = opened(npz(tmp_path / "d.npz", x=vectors(3)), limit=50)
    assert (samples.num_samples, samples.describe()["selection"]) == (3, "all 3")


def test_a_source_without_a_path_or_with_a_negative_limit() -> None:
    with pytest.raises(DataError, match="path is empty"):
        DataSource("")
    with pytest.raises(DataError, match=r"d\.npz: limit is -1, 0 \(all\) or more is expected"):
        DataSource("d.npz", limit=-1)


# What feeds which input: never guessed.


def test_one_npz_holds_calibration_and_evaluation(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", x_calib=vectors(3), x_test=vectors(6)[3:], y_test=np.array([1, 0, 1], np.uint8))
    calibration = opened(path, inputs={"x": "x_calib"})
    evaluation = opened(path, inputs={"x": "x_test"}, labels="y_test")
    assert together(calibration, "x")[:, 0].tolist() == [0, 1, 2]
    assert together(evaluation, "x")[:, 0].tolist() == [3, 4, 5]
    assert evaluation.labels().dtype == np.int64
    assert calibration.digest() != evaluation.digest()


def test_no_array_of_the_inputs_name_lists_the_arrays_and_the_line_to_write(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", y=np.arange(3), x_calib=vectors(3), x_test=vectors(3))
    with pytest.raises(DataError) as caught:
        opened(path)
    assert str(caught.value) == (
        f"{path}: has no array 'x' for the model's input 'x', its arrays are 'y' int64 (3,), 'x_calib' float32 (3, 2), "
        "'x_test' float32 (3, 2); write inputs = { x = \"x_calib\" } in a plan, --input x=x_calib on "
        "the command line; or 'x_test'"
    )


def test_the_line_to_write_is_valid_toml_for_any_name(tmp_path: Path) -> None:
    specs = (InputSpec("serving_default/x:0", "float32", (-1, 2)),)
    with pytest.raises(DataError, match=r'write inputs = \{ "serving_default/x:0" = "a" \} in a plan'):
        opened(npz(tmp_path / "d.npz", a=vectors(3)), specs)


def test_several_inputs(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", ids=np.ones((3, 2), np.int64), m=vectors(3))
    (batch,) = opened(path, PAIR, inputs={"mask": "m"}).batches(3)
    assert {name: array.dtype.name for name, array in batch.items()} == {"ids": "int64", "mask": "float32"}


def test_an_unknown_input_in_the_mapping_offers_the_nearest(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", ids=np.ones((3, 2), np.int64), mask=vectors(3))
    with pytest.raises(
        DataError, match="inputs names 'masks', the model's inputs are 'ids', 'mask'; did you mean 'mask'"
    ):
        opened(path, PAIR, inputs={"masks": "mask"})


def test_an_npy_file_cannot_feed_two_inputs_nor_be_asked_for_a_key(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", vectors(3))
    with pytest.raises(
        DataError, match=r"one array without a name, the model's inputs are 'ids', 'mask'; use an \.npz"
    ):
        opened(tmp_path / "d.npy", PAIR)
    with pytest.raises(DataError, match="and inputs names keys"):
        opened(tmp_path / "d.npy", inputs={"x": "a"})


def test_preprocessing_only_one_of_two_inputs(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", ids=np.ones((3, 2), np.int64), mask=np.full((3, 2), 4, np.uint8))
    half = Preprocess(scale=0.5, inputs=("mask",))
    (batch,) = open_samples(DataSource(path), PAIR, half).batches(3)
    assert (batch["ids"][0, 0], batch["mask"][0, 0]) == (1, 2.0)
    with pytest.raises(DataError, match="preprocess: inputs names 'image', the model's inputs are 'ids', 'mask'"):
        open_samples(DataSource(path), PAIR, Preprocess(inputs=("image",)))


# What the model takes.


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (
            np.zeros((3, 2)),
            r"input 'x' is float64 \(1, 2\), the model takes float32; set dtype = \"float32\" in preprocess",
        ),
        (np.zeros((3, 2), np.uint8), r"input 'x' is uint8 \(1, 2\), the model takes float32"),
        (np.zeros((3, 4), np.float32), r"input 'x' is float32 \(1, 4\), the model takes \(N, 2\); convert the data"),
        (np.zeros(2, np.float32), r"input 'x' is float32 \(1,\), the model takes \(N, 2\)"),
        (np.array([["a", "b"]]), r"input 'x': is <U1 \(1, 2\), numbers with a batch axis are expected"),
    ],
)
def test_dtype_and_shape_are_checked_when_the_data_is_opened(tmp_path: Path, stored: AnyArray, message: str) -> None:
    with pytest.raises(DataError, match=rf"d\.npz: {message}"):
        opened(npz(tmp_path / "d.npz", x=stored))


def test_a_later_file_that_does_not_fit_is_named(tmp_path: Path) -> None:
    npz(tmp_path / "0001.npz", x=vectors(1))
    npz(tmp_path / "0002.npz", x=vectors(1).astype(np.float64))
    samples = opened(tmp_path)
    with pytest.raises(DataError, match=r"0002\.npz: input 'x' is float64 \(1, 2\), the model takes float32"):
        list(samples.batches(2))


def test_nan_names_file_input_and_sample(tmp_path: Path) -> None:
    x = vectors(10)
    x[7, 1], x[5, 0] = np.nan, np.inf
    samples = opened(npz(tmp_path / "d.npz", x=x))
    with pytest.raises(DataError, match=r"d\.npz: input 'x' has NaN in sample 7, numbers are expected"):
        list(samples.batches(4))


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinities_of_the_data_such_as_a_mask_has_are_values(tmp_path: Path, value: float) -> None:
    x = vectors(10)
    x[7, 1] = value
    (batch,) = opened(npz(tmp_path / "d.npz", x=x)).batches(10)
    np.testing.assert_array_equal(batch["x"], x)


def test_a_sample_is_named_by_its_place_in_the_file_under_a_limit(tmp_path: Path) -> None:
    x = vectors(10)
    x[8] = np.nan
    samples = opened(npz(tmp_path / "d.npz", x=x), limit=5)
    with pytest.raises(DataError, match="in sample 8,"):
        list(samples.batches(5))


def test_an_overflow_of_the_preprocessing_is_found(tmp_path: Path) -> None:
    half = (InputSpec("x", "float16", (-1, 2)),)
    with pytest.raises(DataError, match="has infinity, which the data has not, in sample 0"):
        open_samples(
            DataSource(npz(tmp_path / "d.npz", x=np.full((3, 2), 1e6))), half, Preprocess(dtype="float16"), tmp_path
        )


def test_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    fixed = (InputSpec("x", "float32", (4, 2)),)
    samples = opened(npz(tmp_path / "d.npz", x=vectors(6)), fixed)
    assert [len(batch["x"]) for batch in samples.batches(4)] == [4, 2]
    with pytest.raises(DataError, match=r"input 'x' takes \(4, 2\) only; set batch_size = 4"):
        samples.batches(8)


def test_an_input_without_a_batch_axis(tmp_path: Path) -> None:
    specs = sample_specs([InputSpec("training", "bool", ()), InputSpec("x", "float32", (-1, 2))])
    samples = opened(npz(tmp_path / "d.npz", training=np.arange(3) > 1, x=vectors(3)), specs)
    assert [batch["training"].tolist() for batch in samples.batches(1)] == [[False], [False], [True]]
    with pytest.raises(DataError, match="input 'training' has no batch axis, so that it takes one sample at a time"):
        samples.batches(2)


def test_samples_of_different_length_fill_batches_of_one_only(tmp_path: Path) -> None:
    text = (InputSpec("x", "float32", (-1, -1)),)
    npz(tmp_path / "a.npz", x=np.ones((1, 2), np.float32))
    npz(tmp_path / "b.npz", x=np.ones((1, 5), np.float32))
    samples = opened(tmp_path, text)
    assert [batch["x"].shape for batch in samples.batches(1)] == [(1, 2), (1, 5)]
    with pytest.raises(DataError, match=r"b\.npz: input 'x' is \(5,\) a sample, the others of its batch are \(2,\)"):
        list(samples.batches(2))


def test_the_other_byte_order_is_the_same_numbers(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", vectors(3).astype(">f4"))
    (batch,) = opened(tmp_path / "d.npy").batches(3)
    assert batch["x"].dtype.isnative
    np.testing.assert_array_equal(batch["x"], vectors(3))


# Labels.


def test_no_labels(tmp_path: Path) -> None:
    samples = opened(npz(tmp_path / "d.npz", x=vectors(3)))
    assert samples.describe()["label_counts"] == {}
    with pytest.raises(DataError, match=r"d\.npz: has no labels, the metric compares with them; set labels"):
        samples.labels()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([b"a", b"b", b"c"]), r"labels are \|S1, numbers or text are expected; store each class's index"),
        (np.array([0.0, np.nan, 1.0]), "labels have NaN or infinity"),
        (np.array([0, 1, 2**63], np.uint64), "has the label 9223372036854775808, beyond the 64-bit integers"),
    ],
)
def test_labels_that_are_no_numbers(tmp_path: Path, labels: AnyArray, message: str) -> None:
    samples = opened(npz(tmp_path / "d.npz", x=vectors(3), y=labels), labels="y")
    with pytest.raises(DataError, match=message):
        samples.labels()


def test_labels_may_be_text(tmp_path: Path) -> None:
    samples = opened(npz(tmp_path / "d.npz", x=vectors(3), y=np.array(["ab", "", "c"])), labels="y")
    assert samples.labels().tolist() == ["ab", "", "c"]
    assert samples.describe()["label_counts"] == {}


def test_labels_may_be_arrays_of_floats(tmp_path: Path) -> None:
    samples = opened(npz(tmp_path / "d.npz", x=vectors(3), y=np.full((3, 4), 0.5, np.float32)), labels="y")
    assert (samples.labels().shape, samples.labels().dtype.name) == ((3, 4), "float32")
    assert samples.describe()["label_counts"] == {}


def test_labels_in_the_folder_of_the_samples_are_no_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", vectors(3))
    np.save(tmp_path / "y.npy", np.arange(3))
    samples = opened(tmp_path, labels=str(tmp_path / "y.npy"))
    assert (samples.num_samples, samples.labels().tolist()) == (3, [0, 1, 2])


# The digest follows content and options, not the place.


def test_the_digest_does_not_depend_on_the_place(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    here = opened(npz(tmp_path / "a.npz", x=vectors(3)))
    there = opened(npz(tmp_path / "elsewhere" / "b.npz", x=vectors(3)))
    assert here.digest() == there.digest()


def test_the_digest_depends_on_all_that_changes_the_samples(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz", x=vectors(9), y=np.arange(9), z=vectors(9))
    other = npz(tmp_path / "other.npz", x=vectors(9) + 1, y=np.arange(9), z=vectors(9))
    variants: Mapping[str, Samples] = {
        "plain": opened(path),
        "content": opened(other),
        "labels": opened(path, labels="y"),
        "limit": opened(path, limit=4),
        "key": opened(path, inputs={"x": "z"}),
        "preprocess": open_samples(DataSource(path), VECTOR, Preprocess(scale=2.0)),
    }
    assert len({samples.digest() for samples in variants.values()}) == len(variants)


# What lies at the path.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "does not exist; correct the path, or give module:function"),
        (lambda p: p.mkdir(), r"holds no \.npz, no \.npy and no picture \(.*\); put samples there"),
        (lambda p: p.write_bytes(b""), "is a '.data' file, .npz, .npy or a folder is expected; for other formats"),
    ],
)
def test_missing_empty_or_foreign(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "d.data")
    with pytest.raises(DataError, match=rf"d\.data: {message}"):
        opened(tmp_path / "d.data")


def test_a_link_to_nothing_is_not_left_out_in_silence(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 3), np.float32))
    (tmp_path / "readme").symlink_to(tmp_path / "not there")
    spec = InputSpec("x", "float32", (-1, 3))
    assert open_samples(DataSource(str(tmp_path)), (spec,), Preprocess()).num_samples == 2
    (tmp_path / "b.npy").symlink_to(tmp_path / "not there")
    with pytest.raises(DataError, match=r"b\.npy: is a link to nothing; mount or copy its target, or remove it"):
        open_samples(DataSource(str(tmp_path)), (spec,), Preprocess())


def test_a_folder_of_hidden_files_is_empty(tmp_path: Path) -> None:
    npz(tmp_path / ".hidden.npz", x=vectors(3))
    with pytest.raises(DataError, match="holds no"):
        opened(tmp_path)


def test_arrays_beside_images(tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", x=vectors(3))
    Image.new("L", (2, 2)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"holds arrays \(a\.npz\) and images \(b\.png\); move one kind away"):
        opened(tmp_path)


def test_pictures_that_are_not_read_are_not_left_out_in_silence(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    Image.new("L", (2, 2)).save(tmp_path / "b.gif")
    with pytest.raises(DataError, match=r"b\.gif: is a '\.gif' picture, JPEG, PNG, BMP, WebP or TIFF is expected"):
        opened(tmp_path, IMAGE)


@pytest.mark.parametrize("ending", [".jfif", ".JPE", ".bmp", ".webp", ".tif", ".tiff"])
def test_pictures_of_every_usual_kind(tmp_path: Path, ending: str) -> None:
    kind = {".jfif": "JPEG", ".jpe": "JPEG", ".tif": "TIFF"}.get(ending.lower(), ending[1:].upper())
    Image.new("L", (2, 2), 90).save(tmp_path / f"a{ending}", kind)
    preprocess = Preprocess(channels="gray", dtype="float32")
    (batch,) = open_samples(DataSource(str(tmp_path)), IMAGE, preprocess, tmp_path).batches(1)
    assert np.abs(batch["image"].astype(np.float64) - 90).max() <= 1


def test_images_cannot_feed_two_inputs(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="holds images, which can feed one input, the model's are 'ids', 'mask'"):
        opened(tmp_path, PAIR)
