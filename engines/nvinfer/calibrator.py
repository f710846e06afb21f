"""TensorRT's own INT8 calibrators, for 10 and older: fed from batches through device buffers, with a keyed cache.

TensorRT 11 has no calibrators, and DLA takes no Q/DQ: this is the second way to INT8, and DLA's only one. A calibrator
is a subclass, made at run time, of a class of the TensorRT that is handed in. What its methods raise never leaves
TensorRT: it prints the exception, takes it for the end of the data, and goes on with too few batches. So errors are
kept, nothing is written to the cache after one, and whoever builds calls ``check`` before using the engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from engines.contract import Array, BuildOptions, GivenBatches, GivenScales
from engines.errors import EngineError, Unavailable
from engines.whole_file import write_whole

R = TypeVar("R")
CalibrationAlgorithm = Literal["EntropyCalibration2", "MinMaxCalibration"]

CLASSES: dict[CalibrationAlgorithm, str] = {
    "EntropyCalibration2": "IInt8EntropyCalibrator2",
    "MinMaxCalibration": "IInt8MinMaxCalibrator",
}
"""Both calibrate before layers are fused, so that the tensors in their caches are those of the ONNX model."""


class Buffers(Protocol):
    """What a calibrator needs of a device; ``engines.cuda.device.Device`` has it."""

    def stream(self) -> Any:
        """A new stream, with ``synchronize()``."""

    def allocate(self, num_bytes: int) -> Any:
        """Device memory: ``int()`` of it is the address, ``free()`` gives it back."""

    def copy_in(self, device: Any, host: Array, stream: Any) -> None:
        """Host to device, queued on the stream."""


@dataclass(frozen=True)
class CacheKey:
    """What a calibration cache depends on; another one of these is another file."""

    model_digest: str
    data_digest: str
    """Of the samples and their preprocessing."""
    tensorrt_version: str
    algorithm: CalibrationAlgorithm
    batch_size: int
    """TensorRT's histograms grow batch by batch, so that its scales depend on it."""

    def path_in(self, folder: Path) -> Path:
        """The cache's file: its name is the SHA-256 of the key."""
        text = "\n".join(f"{name} {value}" for name, value in sorted(vars(self).items()))
        return folder / f"{hashlib.sha256(text.encode()).hexdigest()}.cache"


@dataclass(frozen=True)
class CalibrationFeed:
    """What calibration runs on."""

    batches: Iterable[Mapping[str, Array]]
    """Input name -> (batch_size, ...) array of the type and shape that the network takes; all of one size."""
    batch_size: int
    device: Buffers
    """Its context is current on the thread that builds."""


def native_calibrator(
    trt: Any, algorithm: CalibrationAlgorithm, source: CalibrationFeed | GivenScales, cache: Path | None
) -> Any:
    """A calibrator for ``IBuilderConfig.int8_calibrator``.

    Besides TensorRT's methods it has ``expect(shapes)`` (of each input, as TensorRT is going to read it), ``check()``,
    which raises what went wrong, ``num_batches`` (given to TensorRT so far) and ``close()``, which frees its buffers.

    Args:
        trt: the module ``tensorrt``, 8.5 to 10.
        algorithm: which of TensorRT's calibrators.
        source: batches with a device, or a cache.
        cache: see ``CacheKey``; read if it is there, else written after a whole calibration. None: neither.

    Raises:
        Unavailable: this TensorRT has no such calibrator.
        EngineError: the batch size is below 1.
    """
    base: Any = getattr(trt, CLASSES[algorithm], None)
    if base is None:
        raise Unavailable(
            f"{trt.__name__}: version {trt.__version__} has no {CLASSES[algorithm]}, 10 was the last with calibrators; "
            "quantize the model with Q/DQ nodes (`trtforge quantize`) and build that"
        )
    if isinstance(source, CalibrationFeed) and source.batch_size < 1:
        raise EngineError(f"native calibration: batch size is {source.batch_size}; give at least 1")
    state = _State(source, cache)

    class Calibrator(base):  # type: ignore[misc]
        """Hands TensorRT's calls on to the state, and keeps what they raise."""

        def __init__(self) -> None:
            base.__init__(self)  # As pybind11 asks for it, by the class.

        def get_batch_size(self) -> int:
            return source.batch_size if isinstance(source, CalibrationFeed) else 1

        def get_batch(self, names: Sequence[str]) -> list[int] | None:
            return state.guarded(lambda: state.next_batch(names))

        def read_calibration_cache(self) -> bytes | None:
            return state.guarded(state.read)

        def write_calibration_cache(self, cache: Any) -> None:
            state.guarded(lambda: state.write(cache))

        @property
        def num_batches(self) -> int:
            return state.num_batches

        def expect(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
            state.expected = shapes

        def check(self) -> None:
            state.check()

        def close(self) -> None:
            state.close()

    return Calibrator()


@contextmanager
def calibrator_for(trt: Any, options: BuildOptions, open_device: Callable[[], Any]) -> Iterator[Any]:
    """The calibrator that the options ask for, None if they ask for none; its buffers are freed at the end.

    Batches go through the device that ``open_device`` gives; it is entered for the time of the build.

    Raises:
        Unavailable: this TensorRT has no calibrators, or there is no device.
    """
    if options.native is None:
        yield None
    elif isinstance(options.native, GivenScales):
        yield native_calibrator(trt, "EntropyCalibration2", options.native, None)
    else:
        yield from _fed(trt, options.native, open_device)


def _fed(trt: Any, source: GivenBatches, open_device: Callable[[], Any]) -> Iterator[Any]:
    with open_device() as device:
        feed = CalibrationFeed(source.batches(), source.batch_size, device)
        calibrator = native_calibrator(trt, "EntropyCalibration2", feed, source.cache)
        try:
            yield calibrator
        finally:
            calibrator.close()


class _State:
    """Everything of a calibrator that is not TensorRT's."""

    def __init__(self, source: CalibrationFeed | GivenScales, cache: Path | None) -> None:
        self._source = source
        self._path = cache
        self._batches: Iterator[Mapping[str, Array]] = iter(
            source.batches if isinstance(source, CalibrationFeed) else ()
        )
        self._buffers: dict[str, tuple[Any, Array]] = {}
        self._stream: Any = None
        self._given: bytes | None = None
        self._failure: Exception | None = None
        self.num_batches = 0
        self.expected: Mapping[str, tuple[int, ...]] = {}

    def guarded(self, call: Callable[[], R]) -> R | None:
        """Call it; on an error keep it and return None. After one, nothing is called any more."""
        if self._failure is not None:
            return None
        try:
            return call()
        except Exception as error:  # noqa: BLE001  # TensorRT would print it and go on; `check` raises it.
            self._failure = error
            return None

    def check(self) -> None:
        """Raise what went wrong."""
        if self._failure is not None:
            raise self._failure

    def next_batch(self, names: Sequence[str]) -> list[int] | None:
        """Addresses of the next batch on the device, in the order of the names; None at the end."""
        if isinstance(self._source, GivenScales):
            raise EngineError(
                "native calibration: TensorRT does not take the cache it was given and asks for data; write it for "
                "this version and calibrator (`trtforge ranges convert --tensorrt … --algorithm …`)"
            )
        batch = next(self._batches, None)
        if batch is None:
            if not self.num_batches:
                raise EngineError(
                    "native calibration: there are no batches, at least one is expected; give representative data"
                )
            return None
        addresses = [self._copied(name, batch) for name in names]
        self._stream.synchronize()
        self.num_batches += 1
        return addresses

    def _copied(self, name: str, batch: Mapping[str, Array]) -> int:
        assert isinstance(self._source, CalibrationFeed)
        where = f"native calibration, batch {self.num_batches}"
        if name not in batch:
            raise EngineError(f"{where}: has {', '.join(sorted(batch))}, the network's input '{name}' is missing")
        host = np.ascontiguousarray(batch[name])
        if host.ndim == 0 or len(host) != self._source.batch_size:
            raise EngineError(
                f"{where}: input '{name}' has the shape {host.shape}, {self._source.batch_size} samples are expected, "
                "as TensorRT reads complete batches only; choose a batch size that divides the number of samples"
            )
        if (wanted := self.expected.get(name, host.shape)) != host.shape:  # TensorRT would read as much all the same.
            raise EngineError(
                f"{where}: input '{name}' has the shape {host.shape}, calibration runs in {wanted}, which has the "
                "profile's opt shape; let opt be the shape of the samples"
            )
        device = self._source.device
        if self._stream is None:
            self._stream = device.stream()
        if name not in self._buffers:
            self._buffers[name] = device.allocate(host.nbytes), np.empty_like(host)
        buffer, staging = self._buffers[name]
        if (staging.dtype, staging.shape) != (host.dtype, host.shape):
            raise EngineError(
                f"{where}: input '{name}' is {host.dtype} {host.shape}, it was {staging.dtype} {staging.shape} before; "
                "make all batches alike"
            )
        staging[...] = host  # The copy is queued: what it reads must live until the stream is synchronized.
        device.copy_in(buffer, staging, self._stream)
        return int(buffer)

    def read(self) -> bytes | None:
        """The cache that was given, or the one in the file; None if there is neither."""
        if isinstance(self._source, GivenScales):
            self._given = self._source.cache
        elif self._path is not None and self._path.is_file():
            self._given = self._path.read_bytes()
        return self._given  # Kept alive: TensorRT is given its address.

    def write(self, cache: Any) -> None:
        """Keep what TensorRT found, whole or not at all."""
        if self._path is None or isinstance(self._source, GivenScales):
            return
        data = bytes(cache)
        if self._given is not None and data == self._given:
            return
        write_whole(self._path, data)

    def close(self) -> None:
        """Free the buffers and the stream, while the device's context is current."""
        while self._buffers:
            self._buffers.popitem()[1][0].free()
        self._stream = None
