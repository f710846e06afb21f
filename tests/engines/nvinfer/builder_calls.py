"""What TensorRT's builder does with a calibrator, in C++, on the real bindings: run by test_native_calibrator.py.

Usage: python builder_calls.py FOLDER_OF_BINDINGS CLASS_ALGORITHM CACHE_FILE. Prints what happened, as JSON. A builder
cannot be had without a GPU, but its calls can: they go through the object's table of virtual functions, whose first
entries are getBatchSize, getBatch, readCalibrationCache, writeCalibrationCache (NvInfer.h); from TensorRT 10 on four
entries of IVersionedInterface stand before them. pybind11 keeps the C++ object's address behind Python's header.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.contract import GivenScales
from engines.nvinfer.calibrator import CalibrationFeed, native_calibrator

ROOM = ctypes.sizeof(ctypes.c_void_p)
HEADER = 2 * ROOM
NUM_BEFORE = {"8": 0, "10": 4}
NAMES = (ctypes.c_char_p * 2)(b"image", b"size")


class HostMemory:
    """Memory of this machine in the place of a GPU's."""

    def __init__(self, num_bytes: int) -> None:
        self.array: npt.NDArray[np.uint8] = np.zeros(num_bytes, np.uint8)
        self.is_freed = False

    def __int__(self) -> int:
        return int(self.array.ctypes.data)

    def free(self) -> None:
        self.is_freed = True


class Host:
    """A device that copies within this machine, but not before the stream is synchronized."""

    def __init__(self) -> None:
        self.allocated: list[HostMemory] = []
        self._queue: list[tuple[HostMemory, npt.NDArray[Any]]] = []

    def stream(self) -> Host:
        return self

    def allocate(self, num_bytes: int) -> HostMemory:
        self.allocated.append(HostMemory(num_bytes))
        return self.allocated[-1]

    def copy_in(self, device: Any, host: npt.NDArray[Any], stream: Any) -> None:
        assert stream is self
        self._queue.append((device, host))

    def synchronize(self) -> None:
        for memory, host in self._queue:
            memory.array[:] = np.frombuffer(host.tobytes(), np.uint8)
        self._queue.clear()


class Builder:
    """The four calls."""

    def __init__(self, calibrator: Any, version: str) -> None:
        self._object = ctypes.c_void_p.from_address(id(calibrator) + HEADER).value or 0
        self._first = NUM_BEFORE[version.split(".")[0]]

    def _function(self, index: int, result: Any, *arguments: Any) -> Any:
        table = ctypes.c_void_p.from_address(self._object).value or 0
        address = ctypes.c_void_p.from_address(table + ROOM * (self._first + index)).value or 0
        return ctypes.PYFUNCTYPE(result, ctypes.c_void_p, *arguments)(address)

    def batch_size(self) -> int:
        return int(self._function(0, ctypes.c_int32)(self._object))

    def batch(self) -> list[int]:
        """Addresses of the two inputs; empty at the end."""
        bindings = (ctypes.c_void_p * len(NAMES))()
        function = self._function(1, ctypes.c_bool, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
        more = function(self._object, ctypes.addressof(bindings), ctypes.addressof(NAMES), len(NAMES))
        return [int(address or 0) for address in bindings] if more else []

    def read(self) -> bytes | None:
        length = ctypes.c_size_t(0)
        function = self._function(2, ctypes.c_void_p, ctypes.c_void_p)
        address = function(self._object, ctypes.addressof(length))
        return ctypes.string_at(address, length.value) if address else None

    def write(self, cache: bytes) -> None:
        self._function(3, None, ctypes.c_char_p, ctypes.c_size_t)(self._object, cache, len(cache))


def batches(num_batches: int, *, broken: bool = False) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Batch i has image = i, i + 0.5, ... and size = i."""
    for index in range(num_batches):
        if broken and index == 1:
            raise ValueError("sample 2 is damaged")
        image = np.arange(6, dtype=np.float32).reshape(2, 3) / 2 + index
        yield {"size": np.array([index, index], np.int32), "image": image}


def floats_at(address: int) -> list[float]:
    return list((ctypes.c_float * 6).from_address(address))


def whole_calibration(trt: Any, algorithm: Any, cache: Path) -> dict[str, Any]:
    """No cache, two batches, the end, a cache written; then another calibrator that finds it."""
    device = Host()
    calibrator = native_calibrator(trt, algorithm, CalibrationFeed(batches(2), 2, device), cache)
    builder = Builder(calibrator, trt.__version__)
    said: dict[str, Any] = {"batch_size": builder.batch_size(), "cache": builder.read(), "seen": []}
    while addresses := builder.batch():
        said["seen"].append([floats_at(addresses[0]), ctypes.c_int32.from_address(addresses[1] + 4).value])
    builder.write(b"TRT-1-x\0y")
    calibrator.check()
    calibrator.close()
    said["num_batches"] = calibrator.num_batches
    said["freed"] = [memory.is_freed for memory in device.allocated]
    said["algorithm"] = calibrator.get_algorithm().name
    said["is_real"] = [kind.__name__ for kind in type(calibrator).__mro__[1:3]]
    later = native_calibrator(trt, algorithm, CalibrationFeed(batches(0), 2, device), cache)
    said["later"] = (Builder(later, trt.__version__).read() or b"").decode()
    later.check()
    return said


def failed(trt: Any, algorithm: Any, source: Any, cache: Path) -> dict[str, Any]:
    """A calibration that goes wrong on the way, as its builder sees it and as ``check`` says."""
    calibrator = native_calibrator(trt, algorithm, source, cache)
    builder = Builder(calibrator, trt.__version__)
    num = 0
    given = builder.read()
    while builder.batch():
        num += 1
    builder.write(b"of too few batches")
    try:
        calibrator.check()
        error = ""
    except Exception as raised:  # noqa: BLE001
        error = f"{type(raised).__name__}: {raised}"
    return {"num_batches": num, "error": error, "given": given and given.decode(), "written": cache.exists()}


def main() -> None:
    folder, algorithm, cache = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    sys.path.insert(0, str(folder))
    import tensorrt_bindings as trt  # type: ignore[import-not-found]

    said = {"version": trt.__version__, "whole": whole_calibration(trt, algorithm, cache)}
    none = cache.with_name("none")
    said["broken"] = failed(trt, algorithm, CalibrationFeed(batches(3, broken=True), 2, Host()), none)
    said["refused"] = failed(trt, algorithm, GivenScales(b"TRT-8502-EntropyCalibration2\n"), none)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
