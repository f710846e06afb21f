"""What every backend offers: the same verbs, whatever the runtime below. The contract tests hold each one to it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from engines.model_format import ModelFormat
from engines.precision import FP32
from engines.provider_share import ProviderShare

if TYPE_CHECKING:
    from typing import TypeAlias

Array: TypeAlias = npt.NDArray[np.generic]
Placement = Literal["tensorrt", "onnxruntime", "none"]
"""Where a backend wants its Q/DQ nodes; ``none`` for a backend that takes no ONNX model in INT8."""
Hardware = Literal["exact", "same_compute_capability", "ampere_plus"]
"""The GPUs that an engine is to run on: the kind that it was built on, that compute capability, or 8.0 and later."""
Weights = Literal["fixed", "refittable", "stripped"]
"""Whether an engine's weights can be replaced later, and whether it has any."""

DYNAMIC = -1
"""Stands for a dimension that is only known when the model runs."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of an engine: its name, numpy dtype name, and shape (``DYNAMIC`` where it may vary)."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ShapeRange:
    """The shapes that one input may take: ``min`` <= ``opt`` <= ``max``, dimension by dimension."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class GivenScales:
    """A whole calibration cache for the TensorRT at hand, such as ``trtforge ranges convert`` writes."""

    cache: bytes


@dataclass(frozen=True)
class GivenBatches:
    """Samples for TensorRT's own calibrator to find scales on."""

    batches: Callable[[], Iterable[Mapping[str, Array]]]
    """Input name -> (batch_size, ...) array of the type and shape that the network takes; all of one size."""
    batch_size: int
    cache: Path
    """Where TensorRT's cache is kept; read if it is there."""


def _silent(_phase: str, _done: int, _total: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class BuildOptions:
    """What the builder is told. A backend that cannot obey a field raises; it never ignores it in silence."""

    precision: str = FP32.name
    """What the model was written for, by name; TensorRT 8 and 10 need builder flags that follow from it."""
    shapes: Mapping[str, ShapeRange] = field(default_factory=dict)
    """The first optimization profile: a shape range for each input with a dynamic dimension."""
    more_shapes: tuple[Mapping[str, ShapeRange], ...] = ()
    """Further optimization profiles."""
    workspace_mib: int = 1024
    """Upper bound for TensorRT's scratch memory, MiB."""
    optimization_level: int = 3
    """TensorRT's builder optimization level, 0 to 5."""
    compute_capabilities: tuple[str, ...] = ()
    """Targets of an ahead-of-time build, such as ``8.6``. Empty: what the builder takes by itself."""
    native: GivenScales | GivenBatches | None = None
    """INT8 by TensorRT's own calibrator instead of Q/DQ nodes: the model is FP32. None: as the model says."""
    hardware: Hardware = "exact"
    version_compatible: bool = False
    """Whether later versions of TensorRT are to run the engine too."""
    weights: Weights = "fixed"
    dla_core: int = -1
    """The core of a Jetson's deep learning accelerator; what it cannot do runs on the GPU. -1: the GPU alone."""
    external_kernels: bool = True
    """Whether kernels of cuBLAS and cuDNN are tried too, where the version knows such (up to TensorRT 10). Without them
    these libraries are not loaded, which saves memory, and need not be there."""
    sparse_weights: bool = False
    """Whether kernels for weights in the pattern 2:4 are tried too."""
    cuda_graph: bool = True
    """Whether runners may hand the engine's work over as a CUDA graph; kept in the record, for all who run it."""
    edgetpu: bool = False
    """Whether a full-integer file has to be ready for an Edge TPU."""
    timing_cache: Path | None = None
    """A file of kernel timings to begin with and to add to. None: every kernel is timed."""
    plugins: tuple[Path, ...] = ()
    """Shared libraries with plugins of TensorRT, in the order in which they are loaded."""
    progress: Callable[[str, int, int], None] = _silent
    """Told the phase, and how many of its steps are done, of how many."""

    def profiles(self) -> tuple[Mapping[str, ShapeRange], ...]:
        """All optimization profiles, the first first; empty if no input is dynamic."""
        return (self.shapes, *self.more_shapes) if self.shapes or self.more_shapes else ()


@dataclass(frozen=True)
class LayerFacts:
    """One layer of a built engine."""

    name: str
    kind: str
    """The library's word for it; ``reformat`` for one that changes a layout or type and computes nothing."""
    precision: str
    """``INT8``, ``FP16``, ``FP32``, ``BF16`` or ``FP8``: the type that goes in; empty where it is not told."""
    nodes: tuple[str, ...]
    """Names of the ONNX nodes that it comes from, as far as they are told."""
    profile: int = 0
    """The optimization profile that it is of: each has layers of its own."""


@dataclass(frozen=True)
class EngineRecord:
    """What a build says about the engine it made. Goes into the store beside the engine."""

    backend: str
    precision: str
    size_bytes: int
    build_seconds: float
    versions: Mapping[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    num_quantizable: int
    """Convolutions and matrix products in the model."""
    num_int8: int
    """Those of them that really run in integer arithmetic, in the first optimization profile; -1 if the backend cannot
    tell of each that may."""
    num_4_bits: int = 0
    """Convolutions and matrix products whose weights have 4 bits in the file that it was built from."""
    notes: tuple[str, ...] = ()
    """Sentences for the report."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the builder was told, by the names of ``BuildOptions``; what does not hold for the backend is left out."""
    layers: tuple[LayerFacts, ...] = ()
    """In the engine's order; those that the backend can tell of."""
    layers_from: str = ""
    """Who told of them."""
    num_layers_by_precision: Mapping[str, int] = field(default_factory=dict)
    """Layers of the first profile by precision, and ``reformat`` for those that only reformat."""
    providers: tuple[ProviderShare, ...] = ()
    """Who runs which nodes, where several share the engine: first whom the backend is for. Else empty."""


@dataclass(frozen=True)
class GpuUse:
    """How a runner uses the GPU; runtimes on the CPU have no use for it."""

    cuda_graph: bool = True
    """Whether work is captured into a CUDA graph, and handed to the driver as one, where that works and the engine's
    record does not forbid it."""
    num_streams: int = 1
    """So many queries of ``infer_all`` are in flight at once, each with an execution context of its own."""
    count_memory: bool = False
    """Whether the library takes its device memory from an allocator that counts; for ``layer_times`` alone."""


@dataclass(frozen=True)
class DeviceTimes:
    """Where the time of one ``infer`` went, milliseconds. By events on the device, but for the last."""

    host_to_device_ms: float
    compute_ms: float
    device_to_host_ms: float
    enqueue_ms: float
    """Host time that handing over the computation took."""


@dataclass(frozen=True)
class LayerTime:
    """Device time of one layer of an engine, over several runs."""

    layer: LayerFacts
    median_ms: float
    share: float
    """Of the sum over all layers, by medians."""


@dataclass(frozen=True)
class LayerTimes:
    """Where an engine's device time goes. Told in runs of their own, for telling it costs time."""

    layers: tuple[LayerTime, ...] = ()
    """In the engine's order; empty where the backend cannot tell."""
    allocated_mib: float | None = None
    """The most device memory that the library held at once, MiB; None where the backend cannot tell."""


@dataclass(frozen=True)
class RunnerFacts:
    """What a runner has seen so far; None where the backend cannot tell."""

    times: DeviceTimes | None = None
    """Of the last query."""
    device_memory_mib: float | None = None
    """By how much the GPU's free memory fell from before the engine was loaded to after the first two queries: weights,
    scratch, inputs and outputs, code, graph. Where others use the GPU, or a module shares its memory with the CPU, what
    they took meanwhile is in it."""
    notes: tuple[str, ...] = ()
    """Sentences for the report: what was asked for and could not be done."""


class Runner(Protocol):
    """A loaded engine: a context manager that holds the device's memory between ``__enter__`` and ``__exit__``."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __enter__(self) -> Runner:
        """Load the engine and take what it needs from the device."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give everything back."""
        ...

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once. Arrays by input name in, by output name out, in the specs' dtypes and shapes.

        Raises:
            EngineError: an input is missing, unknown, of another dtype or of a shape that the engine does not take.
        """
        ...

    def device_ms(self) -> float | None:
        """Device time of the last ``infer``, milliseconds; None where the backend cannot tell."""
        ...

    def facts(self) -> RunnerFacts:
        """Where the last query's time went, the memory taken, and what could not be done."""
        ...


@runtime_checkable
class ProfiledRunner(Runner, Protocol):
    """A runner of an engine that has optimization profiles, each for shapes of its own."""

    def batch_ranges(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, int], ...]:
        """The smallest and largest batch of each profile that holds samples of these shapes, in order.

        ``shapes``: of each input, whatever its first dimension. Empty where no input has a dynamic first dimension, or
        no profile holds them.
        """
        ...


@runtime_checkable
class MemoryRunner(Runner, Protocol):
    """A runner that can tell the device's memory again at any time."""

    def device_memory_now_mib(self) -> float:
        """By how much the device's free memory is lower than before the engine was loaded, MiB; see ``RunnerFacts``."""
        ...


class StreamingRunner(Runner, Protocol):
    """A runner that can have several queries in flight."""

    def infer_all(self, feeds: Iterable[Mapping[str, Array]]) -> Generator[dict[str, Array], None, None]:
        """Run them all, ``GpuUse.num_streams`` in flight at once; the outputs come in the feeds' order.

        Closing it waits for what is in flight. Until then nothing else may be run; ``facts()`` are of the query whose
        outputs came last.

        Raises:
            EngineError: as ``infer``.
        """
        ...


class Backend(Protocol):
    """A module of this package. Every name below is a module-level name of it."""

    NAME: str
    TAKES: ModelFormat
    """The file format that it builds from."""
    PLACEMENT: Placement
    CAN_BUILD: bool
    """Whether engines can be built for it; else it runs what others made, such as a trained network."""
    GPU: bool
    """Whether it computes on the GPU."""
    STREAMS: bool
    """Whether its runners can have several queries in flight (``StreamingBackend``)."""
    NEEDS_RANGES: bool
    """Whether an engine is built for given shapes: each dynamic input needs a shape range."""
    OBEYS: frozenset[str]
    """The fields of ``BuildOptions`` that have an effect on its engines, beside the precision and the shapes."""
    SUFFIX: str
    """File name ending of its engines, with the dot."""
    INSTALL: str
    """The line that installs the runtime."""

    def why_not_build(self) -> str:
        """Empty if this machine can build engines; else one sentence."""
        ...

    def why_not_run(self) -> str:
        """Empty if this machine can run engines; else one sentence."""
        ...

    def versions(self) -> dict[str, str]:
        """Versions of everything below that a built engine or a measured number depends on.

        Raises:
            Unavailable: the runtime is not installed.
        """
        ...

    def refuse(self, options: BuildOptions) -> None:
        """Raise what ``build`` would raise of the options alone, before there is a model.

        Raises:
            Unavailable: the runtime is not installed, or cannot do what the options ask.
            EngineError: the options contradict each other.
        """
        ...

    def build(self, model: Path, engine: Path, options: BuildOptions) -> EngineRecord:
        """Build ``engine`` from the ONNX file ``model``.

        Raises:
            Unavailable: the runtime is not installed, or cannot do what the options ask on this machine.
            EngineError: the runtime refused the model.
        """
        ...

    def load(self, engine: Path, *, num_threads: int) -> Runner:
        """A runner for an engine that ``build`` made; nothing is loaded before ``__enter__``.

        ``num_threads`` is for runtimes on the CPU, 0 leaves it to the runtime.
        """
        ...

    def layer_times(self, engine: Path, feed: Mapping[str, Array], num_runs: int) -> LayerTimes:
        """Load the engine, run it ``num_runs`` times on one feed, and tell the median time of each layer.

        Raises:
            Unavailable, EngineError: as a runner does.
        """
        ...


@runtime_checkable
class ChoosyBackend(Backend, Protocol):
    """One that does not read every ONNX model, and can tell so before it builds."""

    def refuse_model(self, model: Path) -> None:
        """Raise what ``build`` would raise of the operators of a model, as far as that is known without its builder.

        Raises:
            Unavailable: this version does not read them; the sentence says what the model is to be like.
        """
        ...


@runtime_checkable
class SharingBackend(Backend, Protocol):
    """One that gives a provider what it takes of a model, and the rest to others. Its engines are folders."""

    DESCRIPTION: str
    """The file by which such a folder is known."""

    def providers_of(self, engine: Path) -> tuple[ProviderShare, ...]:
        """Who runs which nodes of an engine that ``build`` made.

        Raises:
            EngineError: it is no such engine.
        """
        ...


class StreamingBackend(Backend, Protocol):
    """One whose runners can have several queries in flight: those on the GPU."""

    def load(self, engine: Path, *, num_threads: int, use: GpuUse = ...) -> StreamingRunner:
        """As a backend does, for that use of the GPU."""
        ...
