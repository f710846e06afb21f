"""ONNX Runtime's library, its sessions, and a runner of one: what every backend on it has in common."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.contract import DYNAMIC, Array, RunnerFacts, TensorSpec
from engines.errors import EngineError, Unavailable
from engines.feed import FeedCheck
from engines.onnx_model import plugin_words, read_model

if TYPE_CHECKING:
    from typing import TypeAlias

INSTALL = "pip install 'trtforge[onnxruntime]'"
CPU = "CPUExecutionProvider"
Providers: TypeAlias = "Sequence[tuple[str, Mapping[str, str]]]"
"""Each with its options, in the order in which they may take nodes."""
CPU_ALONE: Providers = ((CPU, {}),)

_DTYPES = {
    "tensor(bool)": "bool",
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(uint8)": "uint8",
}


def load_library() -> Any:
    """The module; Unavailable where it is not installed, or does not load."""
    # From 1.29 on it leaves an id of this machine below the home folder as it is loaded, and sends models' names away.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise Unavailable(f"onnxruntime: cannot be imported ({words_of(error)}); {INSTALL}") from error
    return onnxruntime


def session_settings(ort: Any, num_threads: int) -> Any:
    """What every session is told: errors as exceptions, nothing at once, no thread that spins."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # fatal ones only: errors come back as exceptions
    settings.intra_op_num_threads = num_threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Threads that still spin after a run would steal the CPU from whatever runs next, such as the other variants of an
    # interleaved benchmark. Costs up to 5 % of the latency of a 0.1 ms model on two threads, nothing on one.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return settings


def open_session(path: Path, settings: Any, providers: Providers = CPU_ALONE, *, written: bytes = b"") -> Any:
    """A session of the model in ``path`` on these providers and no others.

    ``written``: the model to open in its place, which was made of it.

    Raises:
        EngineError: ONNX Runtime, or a provider, refuses it.
    """
    names, options = [name for name, _ in providers], [dict(each) for _, each in providers]
    try:
        # Without its fallback: it would print, and try again without the first provider.
        return load_library().InferenceSession(written or str(path), settings, names, options, enable_fallback=0)
    except library_errors() as error:
        if words := _plugin_sentence(path):
            raise EngineError(f"{path}: {words}") from error
        raise EngineError(f"{path}: ONNX Runtime refuses the model ({words_of(error)}); export it again") from error


def _plugin_sentence(path: Path) -> str:
    try:
        return plugin_words(read_model(path))
    except EngineError:  # What is wrong with it ONNX Runtime has said.
        return ""


def library_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions have no common base below Exception; plain ones come from its Python layer."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    exceptions = (value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception))
    return (*exceptions, RuntimeError, ValueError, TypeError)


def spec_of(value: Any, path: Path) -> TensorSpec:
    """An input or output of a session; EngineError where numpy has no such type."""
    if value.type not in _DTYPES:
        raise EngineError(f"{path}: '{value.name}' is {value.type}, numpy has no such type; give it a numeric type")
    shape = tuple(n if isinstance(n, int) else DYNAMIC for n in value.shape)
    return TensorSpec(value.name, np.dtype(_DTYPES[value.type]).name, shape)


def words_of(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())


class OrtRunner:
    """One session, on the CPU provider unless another opens it."""

    def __init__(self, engine: Path, num_threads: int, *, profile: str = "") -> None:
        """``profile``: a folder for the library's own profile; empty for none."""
        self._engine, self._num_threads, self._profile = engine, num_threads, profile
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()

    def __enter__(self) -> OrtRunner:
        """Open the session."""
        self._open(self._engine, self._settings(load_library()))
        self.inputs = tuple(spec_of(value, self._engine) for value in self._session.get_inputs())
        self.outputs = tuple(spec_of(value, self._engine) for value in self._session.get_outputs())
        self._check = FeedCheck(self._engine, self.inputs)
        self._errors = library_errors()
        return self

    def _settings(self, ort: Any) -> Any:
        settings = session_settings(ort, self._num_threads)
        if self._profile:
            settings.enable_profiling, settings.profile_file_prefix = True, f"{self._profile}/profile"
        return settings

    def _open(self, path: Path, settings: Any) -> None:
        self._session = self._opened(path, settings)
        self._names = [value.name for value in self._session.get_outputs()]

    def _opened(self, path: Path, settings: Any) -> Any:
        return open_session(path, settings)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        del self._session

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once."""
        self._check(feed)
        try:
            values = self._session.run(self._names, feed)
        except self._errors as error:
            raise EngineError(f"{self._engine}: ONNX Runtime failed ({words_of(error)})") from error
        return dict(zip(self._names, values))

    def end_profile(self) -> Path:
        """The file with the profile; it is not gone on with."""
        return Path(self._session.end_profiling())

    def device_ms(self) -> float | None:
        """It cannot tell."""
        return None

    def facts(self) -> RunnerFacts:
        """Nothing."""
        return RunnerFacts()
