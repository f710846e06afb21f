"""Native calibrators are TensorRT's own, on the real bindings; what goes wrong in them is never lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
import weakref
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engines.contract import GivenScales
from engines.errors import EngineError, Unavailable
from engines.nvinfer.calibrator import CacheKey, CalibrationAlgorithm, CalibrationFeed, native_calibrator

ROOT = Path(__file__).resolve().parents[3]
CALLS = Path(__file__).with_name("builder_calls.py")
GENERATIONS = ("8.6.1", "10.3.0", "10.16.1.11")
KINDS = {
    "EntropyCalibration2": ("IInt8EntropyCalibrator2", "ENTROPY_CALIBRATION_2"),
    "MinMaxCalibration": ("IInt8MinMaxCalibrator", "MINMAX_CALIBRATION"),
}
KEY = CacheKey("model", "data", "8.5.2", "EntropyCalibration2", 8)


# On the real bindings, called as the builder calls.


@pytest.mark.parametrize("algorithm", KINDS)
@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_builder_is_served_on_the_real_bindings(generation: str, algorithm: str, tmp_path: Path) -> None:
    folder = ROOT / ".venv" / "bindings" / generation
    if not folder.is_dir():
        pytest.skip(f"TensorRT's bindings {generation} are not there; scripts/bindings gets them")
    cache = tmp_path / "folder" / "key.cache"
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder / "stubs"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", str(CALLS), str(folder), algorithm, str(cache)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "TensorRT saw an exception"
    said = json.loads(done.stdout)
    assert said["version"] == generation
    image = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    kind, algorithm_name = KINDS[algorithm]
    assert said["whole"] == {
        "batch_size": 2,
        "cache": None,
        "seen": [[image, 0], [[value + 1 for value in image], 1]],
        "num_batches": 2,
        "freed": [True, True],
        "algorithm": algorithm_name,
        "is_real": [kind, "IInt8Calibrator"],
        "later": "TRT-1-x\0y",
    }
    assert cache.read_bytes() == b"TRT-1-x\0y"
    broken = {"num_batches": 1, "error": "ValueError: sample 2 is damaged", "given": None, "written": False}
    assert said["broken"] == broken
    assert said["refused"].pop("error").startswith("EngineError: native calibration: TensorRT does not take the cache")
    assert said["refused"] == {"num_batches": 0, "given": "TRT-8502-EntropyCalibration2\n", "written": False}


def test_tensorrt_for_rtx_has_no_calibrators() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    with pytest.raises(Unavailable, match=r"^tensorrt_rtx: version .* has no IInt8EntropyCalibrator2, 10 was the last"):
        native_calibrator(trt, "EntropyCalibration2", GivenScales(b""), None)


# What it does with batches and caches; the class it is derived from does not matter here.


class Memory:
    """Device memory that remembers what was copied."""

    def __init__(self, address: int) -> None:
        self.address, self.content, self.is_freed = address, b"", False

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.is_freed = True


class Device:
    """Gives out memory at 1000, 2000, ..."""

    def __init__(self) -> None:
        self.memory: list[Memory] = []

    def stream(self) -> Device:
        return self

    def synchronize(self) -> None:
        pass

    def allocate(self, num_bytes: int) -> Memory:
        self.memory.append(Memory(1000 * (len(self.memory) + 1)))
        return self.memory[-1]

    def copy_in(self, device: Any, host: npt.NDArray[Any], stream: Any) -> None:
        device.content = host.tobytes()


def calibrator(batches: Iterable[Any], cache: Path | None = None, device: Device | None = None) -> Any:
    """One on a class without TensorRT."""
    base = type("IInt8EntropyCalibrator2", (), {})
    trt = types.SimpleNamespace(IInt8EntropyCalibrator2=base, __name__="tensorrt", __version__="8.5.2")
    return native_calibrator(trt, "EntropyCalibration2", CalibrationFeed(batches, 2, device or Device()), cache)


def batch(*values: float) -> dict[str, npt.NDArray[Any]]:
    return {"x": np.array(values, np.float32)}


def refusal(*batches: Any, names: tuple[str, ...] = ("x",)) -> str:
    made = calibrator(batches)
    while made.get_batch(names):
        pass
    with pytest.raises(EngineError) as caught:
        made.check()
    assert made.get_batch(names) is None, "after an error there are no more batches"
    return str(caught.value)


def test_the_addresses_are_in_tensorrts_order_and_memory_is_used_again() -> None:
    device = Device()
    two = {"a": np.zeros((2, 3), np.float32), "b": np.ones((2, 3), np.float32)[:, ::-1]}
    made = calibrator([two, two], device=device)
    assert made.get_batch(["b", "a"]) == [1000, 2000]
    assert made.get_batch(["a", "b"]) == [2000, 1000]
    assert made.get_batch(["a", "b"]) is None
    assert [memory.content for memory in device.memory] == [two["b"].tobytes(), two["a"].tobytes()]
    assert made.num_batches == 2
    made.check()
    made.close()
    assert [memory.is_freed for memory in device.memory] == [True, True]


def test_its_stream_goes_with_its_buffers() -> None:
    """PyCUDA cannot give a stream back once its context is gone, and TensorRT may hold the calibrator longer."""

    class Stream:
        def synchronize(self) -> None:
            pass

    streams: list[weakref.ref[Stream]] = []

    class Streaming(Device):
        def stream(self) -> Any:
            made = Stream()
            streams.append(weakref.ref(made))
            return made

    made = calibrator([batch(1, 2)], device=Streaming())
    assert made.get_batch(["x"])
    assert streams[0]() is not None
    made.close()
    assert streams[0]() is None


def test_a_last_batch_that_is_not_whole_is_refused() -> None:
    assert refusal(batch(1, 2), batch(3)) == (
        "native calibration, batch 1: input 'x' has the shape (1,), 2 samples are expected, as TensorRT reads "
        "complete batches only; choose a batch size that divides the number of samples"
    )


def test_an_input_that_the_batches_lack_is_named() -> None:
    assert refusal(batch(1, 2), names=("x", "y")) == (
        "native calibration, batch 0: has x, the network's input 'y' is missing"
    )


def test_batches_that_are_not_alike_are_refused() -> None:
    assert refusal(batch(1, 2), {"x": np.zeros(2, np.float64)}) == (
        "native calibration, batch 1: input 'x' is float64 (2,), it was float32 (2,) before; make all batches alike"
    )
    assert "is float32 (2, 1), it was float32 (2,) before" in refusal(batch(1, 2), {"x": np.zeros((2, 1), np.float32)})


def test_samples_of_another_shape_than_tensorrt_reads_are_refused() -> None:
    """It is told an address, and reads as many bytes as its own shape has."""
    made = calibrator([{"x": np.zeros((2, 3, 8, 8), np.float32)}])
    made.expect({"x": (2, 3, 16, 16)})
    assert made.get_batch(["x"]) is None
    with pytest.raises(EngineError) as caught:
        made.check()
    assert str(caught.value) == (
        "native calibration, batch 0: input 'x' has the shape (2, 3, 8, 8), calibration runs in (2, 3, 16, 16), which "
        "has the profile's opt shape; let opt be the shape of the samples"
    )


def test_no_batches_at_all_are_refused() -> None:
    assert refusal() == ("native calibration: there are no batches, at least one is expected; give representative data")


def test_a_batch_size_of_0_is_refused() -> None:
    with pytest.raises(EngineError, match=r"^native calibration: batch size is 0; give at least 1"):
        native_calibrator(
            types.SimpleNamespace(IInt8MinMaxCalibrator=object),
            "MinMaxCalibration",
            CalibrationFeed([], 0, Device()),
            None,
        )


def test_a_tensorrt_without_calibrators_is_refused() -> None:
    trt = types.SimpleNamespace(__name__="tensorrt", __version__="11.0.0")
    with pytest.raises(
        Unavailable, match=r"^tensorrt: version 11\.0\.0 has no IInt8MinMaxCalibrator, 10 was the last .*`trtforge quan"
    ):
        native_calibrator(trt, "MinMaxCalibration", CalibrationFeed([], 8, Device()), None)


def test_a_cache_is_read_and_kept_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.cache"
    path.write_bytes(b"TRT")
    made = calibrator([], path)
    assert made.read_calibration_cache() == b"TRT"
    before = path.stat().st_ino
    made.write_calibration_cache(memoryview(b"TRT"))
    assert path.stat().st_ino == before
    made.check()


def test_a_cache_that_tensorrt_did_not_take_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.cache"
    path.write_bytes(b"of another version")
    made = calibrator([batch(1, 2)], path)
    assert made.read_calibration_cache() == b"of another version"
    assert made.get_batch(["x"])
    made.write_calibration_cache(memoryview(b"new"))
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["a.cache"]


def test_without_a_file_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = calibrator([batch(1, 2)])
    assert made.read_calibration_cache() is None
    made.write_calibration_cache(b"new")
    made.check()
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = calibrator([batch(1, 2)], tmp_path / "file" / "a.cache")
    made.write_calibration_cache(b"new")
    with pytest.raises(OSError, match="file"):
        made.check()


MINMAX: CalibrationAlgorithm = "MinMaxCalibration"


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, model_digest="other"),
        replace(KEY, data_digest="other"),
        replace(KEY, tensorrt_version="8.5.3"),
        replace(KEY, algorithm=MINMAX),
        replace(KEY, batch_size=9),
        replace(KEY, model_digest="data", data_digest="model"),
    ],
)
def test_each_part_of_the_key_makes_another_cache(other: CacheKey) -> None:
    assert KEY.path_in(Path("a")) == replace(KEY).path_in(Path("a"))
    assert other.path_in(Path("a")) != KEY.path_in(Path("a"))
    assert other.path_in(Path("a")).parent == Path("a")
