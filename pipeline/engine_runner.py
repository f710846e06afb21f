"""A runner for an Engine, and how batches fit it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import onnx

from calibration.data.batches import Samples
from calibration.data.source import spread
from calibration.graph.external_data import save_model
from calibration.graph.watched_outputs import num_computed_values
from engines import backend, module_of
from engines.contract import DYNAMIC, Array, ProfiledRunner, Runner
from engines.timed_queries import QueriesElsewhere
from pipeline.artifact import Engine

ModelRunner: TypeAlias = Literal["onnxruntime", "reference"]
"""What can run the FP32 model on the CPU, as an option of stages."""
SIMULATOR: ModelRunner = "onnxruntime"
"""The backend that computes a Q/DQ model as it stands, in floating point."""
SIMULATION = "float simulation (ONNX Runtime, Q/DQ as written)"


def runner_of(engine: Engine, num_threads: int) -> Runner:
    """The runner that an engine asks for."""
    if engine.simulated:
        return load_simulation(engine.path, num_threads)
    if engine.signature:
        module = import_module(module_of(engine.backend))
        runner = cast(Runner, module.load_signature(engine.path, engine.signature, num_threads=num_threads))
        return cast(Runner, SampleFeeds(runner))
    return load_model(engine.path, engine.backend, num_threads)


@dataclass(frozen=True)
class BatchSizes:
    """The batches that an engine takes: of each profile the smallest and the largest, in order; 0: no upper bound."""

    ranges: tuple[tuple[int, int], ...]

    def __contains__(self, size: int) -> bool:
        return any(low <= size <= (high or size) for low, high in self.ranges)

    def __str__(self) -> str:
        return " and ".join(f"from {low} to {high}" for low, high in self.ranges)

    def up_to(self, most: int) -> list[int]:
        """All of them, rising, that are not above ``most``."""
        return sorted({size for low, high in self.ranges for size in range(low, min(high or most, most) + 1)})

    def at_most(self, size: int) -> int:
        """The largest that is not above ``size``; the smallest of all if there is none."""
        below = [min(size, high or size) for low, high in self.ranges if low <= size]
        return max(below, default=self.ranges[0][0])

    def at_least(self, size: int) -> int:
        """The smallest that so many samples can be filled up to; ``size`` itself if there is none."""
        return size if size in self else min((low for low, _ in self.ranges if low > size), default=size)


def batch_sizes(engine: Engine, runner: Runner, feed: Mapping[str, Array]) -> BatchSizes:
    """The batches that the engine takes of samples such as those in ``feed``."""
    if fixed := fixed_batch(runner):
        return BatchSizes(((fixed, fixed),))
    shapes = {name: array.shape for name, array in feed.items()}
    profiles = runner.batch_ranges(shapes) if isinstance(runner, ProfiledRunner) else ()
    return BatchSizes(profiles or ((max(engine.min_batch, 1), engine.max_batch),))


def fixed_batch(runner: Runner) -> int:
    """The batch that the model was exported for, 1 if an input has no batch axis; 0 if it takes any."""
    sizes = {spec.shape[0] for spec in runner.inputs if spec.shape}
    return 1 if len(sizes) > 1 else max(sizes - {DYNAMIC}, default=0)


class SampleFeeds:
    """Loads an engine for feeds that have the batch axis in front of every input, also where the model has none."""

    def __init__(self, runner: Runner) -> None:
        """``runner`` is entered and left with this."""
        self._runner = runner
        self._ranks: dict[str, int] = {}

    def __enter__(self) -> Runner:
        """The runner itself, where all its inputs have a batch axis: nothing stands between."""
        runner = self._runner.__enter__()
        if len({spec.shape[:1] for spec in runner.inputs}) == 1 and runner.inputs[0].shape:
            return runner
        self._runner, self._ranks = runner, {spec.name: len(spec.shape) for spec in runner.inputs}
        return cast(Runner, self)

    def __exit__(self, *error: Any) -> None:
        """Give everything back."""
        self._runner.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        """All else is the runner's."""
        return getattr(self._runner, name)

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run one sample."""
        return self._runner.infer(self.taken(feed))

    def taken(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """The sample as the model takes it."""
        return as_model_takes(feed, self._ranks)


class ReplacedNan:
    """Gives NaN of these outputs as infinity, which ranges leave out: the model replaces it behind them."""

    def __init__(self, runner: Runner, names: Collection[str]) -> None:
        """``runner`` is entered and left with this."""
        self._runner, self._names = runner, names

    def __enter__(self) -> Runner:
        """The runner itself, where it has no such output: nothing stands between."""
        self._runner = self._runner.__enter__()
        return cast(Runner, self) if any(spec.name in self._names for spec in self._runner.outputs) else self._runner

    def __exit__(self, *error: Any) -> None:
        """Give everything back."""
        self._runner.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        """All else is the runner's."""
        return getattr(self._runner, name)

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run once."""
        values = self._runner.infer(feed)
        return {
            name: np.where(np.isnan(array), np.asarray(np.inf, array.dtype), array) if name in self._names else array
            for name, array in values.items()
        }


def engine_process(engine: Engine) -> int:
    """The process that the engine is going to run in: this one, or another, which is started."""
    module = None if engine.simulated else backend(engine.backend)
    return int(getattr(module, "process_id", os.getpid)())


def queries_elsewhere(
    runner: Runner, feeds: Sequence[Mapping[str, Array]], *, in_flight: bool = False
) -> QueriesElsewhere | None:
    """Queries on these feeds, timed in the process that holds the engine; None where that is this one."""
    if isinstance(runner, SampleFeeds):
        feeds = [runner.taken(feed) for feed in feeds]
    bind = getattr(runner, "bind", None)
    return None if bind is None else cast(QueriesElsewhere, bind(feeds, in_flight=in_flight))


def as_model_takes(feed: Mapping[str, Array], ranks: Mapping[str, int]) -> dict[str, Array]:
    """A sample without the axis in front of those inputs that have fewer in the model; ``ranks`` are the model's."""
    return {
        name: array.reshape(array.shape[1:]) if array.ndim > ranks.get(name, array.ndim) else array
        for name, array in feed.items()
    }


def model_ranks(samples: Samples) -> dict[str, int]:
    """Each input's number of axes in the model."""
    return {spec.name: len(spec.shape) - spec.is_whole for spec in samples.specs}


def padded(feed: Mapping[str, Array], num_samples: int) -> dict[str, Array]:
    """The batch, filled up to ``num_samples`` by repeating its last sample."""
    return {
        name: np.concatenate([array, np.repeat(array[-1:], num_samples - len(array), axis=0)])
        if array.ndim and len(array) < num_samples
        else array
        for name, array in feed.items()
    }


def unpadded(array: Array, num_samples: int, batch: int) -> Array:
    """The samples' own part of what a model said of a batch that was ``padded`` to ``batch``."""
    return array[:num_samples] if array.ndim and num_samples < batch == len(array) else array


def few(samples: Samples, num: int) -> Iterator[dict[str, Array]]:
    """So many samples, evenly spread, each as a batch of one; 0: all."""
    return samples.at(spread(samples.num_samples, num))


def num_values_of_sample(path: Path, samples: Samples) -> int:
    """Values of all tensors that the ONNX model computes for one of the samples."""
    feed = as_model_takes(next(few(samples, 1)), model_ranks(samples))
    shapes = {name: array.shape for name, array in feed.items()}
    return num_computed_values(path, shapes)


def load_simulation(path: Path, num_threads: int = 0) -> Runner:
    """ONNX Runtime with every node computed as it stands. Who calls it names ``SIMULATOR`` among its modules."""
    runner = cast(Runner, import_module(module_of(SIMULATOR)).load_simulation(path, num_threads=num_threads))
    return cast(Runner, SampleFeeds(runner))


def load_model(path: Path, runner: str, num_threads: int) -> Runner:
    """A model or an engine, to be fed samples."""
    return cast(Runner, SampleFeeds(backend(runner).load(path, num_threads=num_threads)))


class SampleRunner:
    """A runner for batches of any size up to its own, if that is fixed."""

    def __init__(self, runner: Runner) -> None:
        """``runner`` is entered already, and left by who entered it."""
        self._runner, self.fixed = runner, fixed_batch(runner)

    def __call__(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Run a batch: its samples' own part of each output."""
        num = next(len(array) for array in feed.values() if array.ndim)
        outputs = self._runner.infer(padded(feed, self.fixed))
        return {name: unpadded(array, num, self.fixed) for name, array in outputs.items()}


class Sessions:
    """Opens models, for as long as the stack is entered."""

    def __init__(self, stack: ExitStack, runner: ModelRunner, num_threads: int) -> None:
        """``num_threads``: 0 for the runner's default."""
        self._stack, self._runner, self._num_threads = stack, runner, num_threads
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trtforge-")))
        self._num = 0
        self._twice: dict[Path, tuple[SampleRunner, SampleRunner]] = {}

    @contextmanager
    def apart(self) -> Iterator[Sessions]:
        """For models that are closed before the others are."""
        with ExitStack() as stack:
            yield Sessions(stack, self._runner, self._num_threads)

    def opened(self, proto: onnx.ModelProto) -> SampleRunner:
        """A model in memory."""
        return self.of_file(self._saved(proto))

    def simulated(self, proto: onnx.ModelProto) -> SampleRunner:
        """A model in memory, whose Q/DQ nodes are computed as they stand."""
        file = self._saved(proto)
        if self._runner != SIMULATOR:
            return self.of_file(file)
        return SampleRunner(self._stack.enter_context(load_simulation(file, self._num_threads)))

    def _saved(self, proto: onnx.ModelProto) -> Path:
        self._num += 1
        file = self._folder / f"{self._num}.onnx"
        save_model(proto, file)
        return file

    def of_file(self, path: Path) -> SampleRunner:
        """A model in a file."""
        return SampleRunner(self._stack.enter_context(load_model(path, self._runner, self._num_threads)))

    def plain(self, proto: onnx.ModelProto) -> Runner:
        """A model in memory that is fed its inputs just as they are."""
        return self._stack.enter_context(backend(self._runner).load(self._saved(proto), num_threads=self._num_threads))

    def of_file_twice(self, path: Path) -> tuple[SampleRunner, SampleRunner]:
        """The model, and the same computed in another order where the runner can do so; opened when first asked for."""
        if path not in self._twice:
            first = self.of_file(path)
            if self._runner != SIMULATOR:
                self._twice[path] = first, first
            else:
                self._twice[path] = first, SampleRunner(self._stack.enter_context(load_simulation(path, 1)))
        return self._twice[path]
