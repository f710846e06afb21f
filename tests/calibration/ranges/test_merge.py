"""Merged ranges are those of one run over all samples, to the byte; what does not belong together is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.errors import DataError
from calibration.histogram.histogram import histogram_from_values
from calibration.ranges.merge import merged_ranges
from calibration.ranges.ranges import Origin, RangesRecord, TensorRange, ranges_from_histograms
from calibration.ranges.ranges_file import histograms_from_folder, ranges_from_folder, write_ranges

ORIGIN = Origin("a" * 64, "b" * 64, 10, {"onnx": "1.0"}, {"x": "1", "y": "2"})


def write(
    folder: Path, values: dict[str, Any], origin: Origin, method: Any = "entropy", percentile: float = 99.9
) -> Path:
    histograms = {name: histogram_from_values(np.array(each, np.float32), name) for name, each in values.items()}
    folder.mkdir()
    write_ranges(ranges_from_histograms(histograms, method, percentile, origin), histograms, folder)
    return folder


def part(folder: Path, number: int, values: dict[str, Any]) -> Path:
    num_samples = len(values["x"])
    return write(
        folder / f"part{number}", values, replace(ORIGIN, data_digest=f"{number}" * 64, num_samples=num_samples)
    )


def write_merged(out: Path, folders: list[Path]) -> Path:
    out.mkdir()
    write_ranges(*merged_ranges(folders), out)
    return out


def content(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The record without what says on which data it was made, and the histograms."""
    record = json.loads((folder / "ranges.json").read_text())
    return {key: record[key] for key in record if key not in ("data_digest", "parts")}, (
        folder / "histograms.npz"
    ).read_bytes()


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32), cuts=st.lists(st.integers(0, 300), min_size=1, max_size=3), order=st.randoms())
def test_any_split_merged_in_any_order_is_one_run(
    seed: int, cuts: list[int], order: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("merge")
    values = np.random.default_rng(seed).standard_normal(300).astype(np.float32) * np.logspace(-3, 3, 300)
    whole = write(folder / "whole", {"x": values, "y": values**2}, replace(ORIGIN, num_samples=300))
    pieces = np.split(values, sorted(cuts))
    folders = [part(folder, number, {"x": piece, "y": piece**2}) for number, piece in enumerate(pieces)]
    order.shuffle(folders)
    merged = write_merged(folder / "merged", folders)
    assert content(merged) == content(whole)


def test_the_merged_file_differs_in_two_keys_only(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", {"x": [1, 2, 3], "y": [0, 0, 4]}, replace(ORIGIN, num_samples=3))
    folders = [part(tmp_path, 1, {"x": [1], "y": [0]}), part(tmp_path, 2, {"x": [2, 3], "y": [0, 4]})]
    merged = write_merged(tmp_path / "merged", folders)
    lines = [(folder / "ranges.json").read_text().splitlines() for folder in (whole, merged)]
    assert {line.split(":")[0].strip() for line in lines[1] if line not in lines[0]} == {'"data_digest"', '"parts"'}
    assert len(lines[1]) == len(lines[0])


def test_means_are_weighted_by_samples(tmp_path: Path) -> None:
    folders = []
    for number, (size, means) in enumerate([(1, (3.0, -1.0)), (3, (7.0, 1.0))]):
        folder = part(tmp_path, number, {"x": [1.0] * size, "y": [2.0]})
        ranges, histograms = ranges_from_folder(folder), histograms_from_folder(folder)
        with_one = {"x": means} if number else {"x": means, "y": (1.0,)}
        write_ranges(ranges.with_means(with_one), histograms, folder)
        folders.append(folder)
    merged, _ = merged_ranges(folders)
    assert {name: tensor.channel_means for name, tensor in merged.tensors.items()} == {"x": (6.0, 0.5), "y": ()}


def test_merging_is_associative_and_independent_of_order(tmp_path: Path) -> None:
    a, b, c = (part(tmp_path, number, {"x": [number, -3.0], "y": [0.5, 0.5]}) for number in (1, 2, 3))
    files = []
    for name, folders in (
        ("abc", [a, b, c]),
        ("cba", [c, b, a]),
        ("ab_c", [write_merged(tmp_path / "ab", [a, b]), c]),
        ("a_bc", [a, write_merged(tmp_path / "bc", [c, b])]),
    ):
        out = write_merged(tmp_path / name, folders)
        files.append([(out / file).read_bytes() for file in ("ranges.json", "histograms.npz")])
    assert files[0] == files[1] == files[2] == files[3]
    assert json.loads(files[0][0])["parts"] == ["1" * 64, "2" * 64, "3" * 64]
    assert json.loads(files[0][0])["num_samples"] == 6


def refusal(*folders: Path) -> str:
    with pytest.raises(DataError) as caught:
        merged_ranges(folders)
    return str(caught.value)


def test_the_same_data_twice_is_refused_also_within_a_merge(tmp_path: Path) -> None:
    a, b = (part(tmp_path, number, {"x": [1.0], "y": [1.0]}) for number in (1, 2))
    assert refusal(a, b, a) == (
        f"{a}: was found on data 111111111111, as were ranges before it, and samples must not count twice; "
        "leave one of them out"
    )
    assert refusal(write_merged(tmp_path / "ab", [a, b]), b).startswith(f"{b}: was found on data 222222222222")


def test_one_folder_is_not_enough(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "ranges: 1 folder is given, at least two are expected to merge; give more"


OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "model": (
        {"model_digest": "c" * 64, "tensor_digests": {"x": "1", "y": "other"}}, {},
        "are of different models, they first differ at tensor 'y'; merge ranges of one model",
    ),
    "unknown model": (
        {"model_digest": "c" * 64, "tensor_digests": {}}, {},
        "are of different models; merge ranges of one model",
    ),
    "version": ({"versions": {"onnx": "2.0"}}, {}, "differ in version of onnx, 2.0 and 1.0; calibrate both in the "
                                                   "same way"),
    "tool": ({"versions": {"onnx": "1.0", "z": "1"}}, {}, "differ in version of z, 1 and none; calibrate both in "
                                                          "the same way"),
    "method": ({}, {"method": "mse"}, "differ in method, mse and entropy; calibrate both in the same way"),
    "percentile": ({}, {"percentile": 99.0}, "differ in percentile, 99.0 and 99.9; calibrate both in the same way"),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_what_differs_is_named(tmp_path: Path, what: str) -> None:
    origin, how, said = OTHERS[what]
    values = {"x": [1.0], "y": [2.0]}
    one, two = part(tmp_path, 1, values), write(tmp_path / "two", values, replace(ORIGIN, **origin), **how)
    found = refusal(one, two)
    assert found.removeprefix(f"{two} and {one}: ") == said


def test_runs_that_watched_other_tensors_are_refused(tmp_path: Path) -> None:
    one, two = part(tmp_path, 1, {"x": [1.0], "y": [2.0]}), part(tmp_path, 2, {"x": [1.0]})
    assert (
        refusal(one, two) == f"{two} and {one}: only one of them has tensor 'y'; calibrate both in the same way, "
        "with --watch all"
    )


@pytest.mark.parametrize("place", [0, 1])
def test_imported_ranges_are_refused(tmp_path: Path, place: int) -> None:
    (tmp_path / "imported").mkdir()
    tensor = TensorRange("imported", 1.0, {}, {}, {}, -1.0, 1.0, 0, 0, 1, ())
    write_ranges(
        RangesRecord("imported", 100.0, replace(ORIGIN, source="TRT-8502-X"), {"x": tensor}), {}, tmp_path / "imported"
    )
    folders = [part(tmp_path, 1, {"x": [1.0], "y": [2.0]})]
    folders.insert(place, tmp_path / "imported")
    assert refusal(*folders).startswith(
        "ranges: were imported from TRT-8502-X, which has scales only, but merging needs"
    )
