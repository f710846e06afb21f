"""Array files: what is wrong with one is one sentence, nothing is ever unpickled, and memory stays small."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.data.array_files import headers, open_array_files, read_array
from calibration.data.batches import open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource, InputSpec
from calibration.errors import DataError

VECTOR = (InputSpec("x", "float32", (-1, 2)),)
ZEROS = np.zeros((4, 2), np.float32)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def opened(path: Path, **options: Any) -> Any:
    """The reader for a file or folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return open_array_files(files, DataSource(str(path), **options), VECTOR, path.parent)


def test_headers_are_read_without_the_arrays(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=np.zeros((1000, 1000)), y=np.asfortranarray(np.ones((2, 3), np.int8)))
    tracemalloc.start()
    found = headers(tmp_path / "d.npz", "d.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {key: str(header) for key, header in found.items()} == {"x": "float64 (1000, 1000)", "y": "int8 (2, 3)"}
    assert peak < 1_000_000  # bytes; the arrays are 8 million


def test_an_npy_file_is_mapped_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.zeros((500_000, 2), np.float32))  # 4 million bytes
    reader = opened(tmp_path / "d.npy")
    tracemalloc.start()
    num = sum(len(block.indices) for block in reader.blocks(1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num == 500_000
    assert peak < 1_000_000


def test_a_version_2_header_is_read(tmp_path: Path) -> None:
    with (tmp_path / "d.npy").open("wb") as stream:
        np.lib.format.write_array(stream, ZEROS, version=(2, 0))
    assert str(headers(tmp_path / "d.npy", "d.npy")[""]) == "float32 (4, 2)"


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95])
def test_a_file_that_is_cut_short(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"d{suffix}"
    if suffix == ".npy":
        np.save(path, np.ones((500, 2), np.float32))
    else:
        np.savez(path, x=np.ones((500, 2), np.float32))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(
        DataError, match=rf"d{suffix}: cannot be read as a whole .npz or .npy file \(.*\); copy or make it"
    ):
        list(opened(path).blocks(10))


def test_a_flipped_bit_in_an_npz_is_found(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.ones((500, 2), np.float32))
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot be read as a whole .*CRC"):
        list(opened(path).blocks(10))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.savez(tmp_path / "d.npz", x=trap, y=ZEROS, allow_pickle=True)  # type: ignore[call-overload, unused-ignore]
    np.save(tmp_path / "d.npy", trap, allow_pickle=True)
    with pytest.raises(
        DataError, match=r"d\.npz: array 'x' holds Python objects, numbers are expected, and pickles are"
    ):
        opened(tmp_path / "d.npz")
    with pytest.raises(DataError, match=r"d\.npy: the array holds Python objects"):
        opened(tmp_path / "d.npy")
    with pytest.raises(DataError, match="cannot be read"):
        read_array(tmp_path / "d.npz", "x", "d.npz")
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for name in ("raw.npy", "raw.npz"):
        with pytest.raises(DataError, match="cannot be read"):
            opened(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def test_a_header_that_claims_more_than_there_is(tmp_path: Path) -> None:
    with (tmp_path / "d.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 2)})
    with pytest.raises(DataError, match=r"d\.npy: cannot be read"):
        next(opened(tmp_path / "d.npy").blocks(1))


def test_a_zip_with_other_members(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=ZEROS)
    with zipfile.ZipFile(tmp_path / "d.npz", "a") as archive:
        archive.writestr("readme.txt", "hello")
    assert opened(tmp_path / "d.npz").num_samples == 4


def test_lengths_that_differ(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=ZEROS, y=np.arange(3))
    with pytest.raises(DataError, match=r"d\.npz: 'x' has 4, 'y' has 3 samples, the same number is expected of each"):
        opened(tmp_path / "d.npz", labels="y")


def test_labels_of_another_length_in_their_own_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ZEROS)
    np.save(tmp_path / "y.npy", np.arange(3))
    with pytest.raises(DataError, match=r"y\.npy: has 3 labels, .*x\.npy has 4 samples; make the lengths equal"):
        opened(tmp_path / "x.npy", labels="y.npy")


def test_labels_that_are_not_there(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=ZEROS)
    with pytest.raises(
        DataError, match=r"d\.npz: has no array 'y' for the labels among its arrays 'x'; correct the name"
    ):
        opened(tmp_path / "d.npz", labels="y")
    np.save(tmp_path / "x.npy", ZEROS)
    with pytest.raises(DataError, match=r"none\.npy: does not exist"):
        opened(tmp_path / "x.npy", labels="none.npy")
    with pytest.raises(DataError, match=r"labels is 'y', for \.npy data an \.npy file of labels is expected"):
        opened(tmp_path / "x.npy", labels="y")


def test_a_folder_where_one_file_lacks_the_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", x=ZEROS)
    np.savez(tmp_path / "1.npz", y=ZEROS)
    with pytest.raises(
        DataError, match=r"/1\.npz: has no array 'x' among its arrays 'y'; correct the name, or drop the file"
    ):
        opened(tmp_path)


def test_a_folder_of_both_kinds(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", x=ZEROS)
    np.save(tmp_path / "1.npy", ZEROS)
    with pytest.raises(DataError, match=r"holds \.npz and \.npy files, one kind is expected"):
        opened(tmp_path)


def test_a_folder_of_labels_only(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.arange(4))
    with pytest.raises(DataError, match=r"holds no \.npy file but the labels"):
        opened(tmp_path, labels=str(tmp_path / "y.npy"))


def test_labels_of_different_shapes_in_a_folder(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", x=ZEROS, y=np.zeros((4, 1)))
    np.savez(tmp_path / "1.npz", x=ZEROS, y=np.zeros((4, 2)))
    with pytest.raises(DataError, match=r"labels 'y' are float64 \(n, 1\) and float64 \(n, 2\) in different files"):
        opened(tmp_path, labels="y").labels()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 2), np.float32), r"has no samples \(the batch axis is 0\)"),
        (np.float32(1), "array 'x' is one number, the batch axis comes first"),
    ],
)
def test_no_samples(tmp_path: Path, x: Any, message: str) -> None:
    np.savez(tmp_path / "d.npz", x=x)
    with pytest.raises(DataError, match=message):
        opened(tmp_path / "d.npz")


def test_an_empty_file_among_full_ones_adds_nothing(tmp_path: Path) -> None:
    np.savez(tmp_path / "0.npz", x=ZEROS)
    np.savez(tmp_path / "1.npz", x=ZEROS[:0])
    np.savez(tmp_path / "2.npz", x=ZEROS + 1)
    blocks = list(opened(tmp_path).blocks(3))
    assert [list(block.indices) for block in blocks] == [[0, 1, 2], [3], [0, 1, 2], [3]]
    assert [block.where[-5:] for block in blocks] == ["0.npz", "0.npz", "2.npz", "2.npz"]


def test_memory_does_not_grow_with_an_npy_file(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((256, 1 << 18), np.float32))  # 256 MiB.
    code = f"""
import resource
from pathlib import Path
from calibration.data.array_files import open_array_files
from calibration.data.source import DataSource, InputSpec
path = Path({str(path)!r})
reader = open_array_files([path], DataSource(path=str(path)), (InputSpec("x", "float32", (-1, 1 << 18)),), path.parent)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(float(block.arrays["x"].max()) + len(block.arrays["x"]) for block in reader.blocks(4)) == 256
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40 << 10  # KiB.


@pytest.mark.parametrize("shape", ["(-1, 2)", "(1000000000000, 2)"])
def test_a_head_that_does_not_fit_the_file(shape: str, tmp_path: Path) -> None:
    head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    file = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + bytes(64)
    (tmp_path / "d.npy").write_bytes(file)
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", file)
    for name in ("d.npy", "d.npz"):
        with pytest.raises(DataError, match=r"its head says float32 \(.*\), but it has \d+ bytes"):
            headers(tmp_path / name, name)


def test_pickles_are_never_opened_and_called_what_they_are(tmp_path: Path) -> None:
    """Their file may be shorter than eight bytes for each would be."""
    np.savez(tmp_path / "d.npz", x=np.ones((400, 1), np.float32), y=np.array(["cat"] * 400, dtype=object))
    specs = (InputSpec("x", "float32", (-1, 1)),)
    with pytest.raises(DataError, match="array 'y' holds Python objects, numbers are expected, and pickles are never"):
        open_samples(DataSource(str(tmp_path / "d.npz"), labels="y"), specs, Preprocess(), tmp_path)


def test_folds_of_several_files_share_no_row(tmp_path: Path) -> None:
    for number in range(2):
        np.savez(
            tmp_path / f"{number}.npz", x=np.arange(5, dtype=np.float32).reshape(5, 1) + 5 * number, y=np.arange(5)
        )
    specs = (InputSpec("x", "float32", (-1, 1)),)
    first, rest = (
        open_samples(DataSource(str(tmp_path), labels="y", fold=fold), specs, Preprocess(), tmp_path)
        for fold in ("1/3", "2-3/3")
    )
    assert [row for batch in first.batches(2) for row in batch["x"].ravel().tolist()] == [0, 3, 6]
    assert [row for batch in rest.batches(4) for row in batch["x"].ravel().tolist()] == [1, 2, 4, 5, 7, 8, 9]
    assert first.labels().tolist() == [0, 3, 1]
    assert first.digest() != rest.digest()
