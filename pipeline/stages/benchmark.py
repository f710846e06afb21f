"""Time engines against each other, taking turns, on real samples."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from calibration.batches import Samples
from engines import backend
from engines.contract import DYNAMIC, Array, Runner
from pipeline import isolate
from pipeline.artifact import Engine, Timings
from pipeline.errors import ConfigError, Unavailable
from pipeline.machine import this_machine
from pipeline.option import check_bounds, option
from pipeline.progress import waiting
from pipeline.stages.infer import batch_bounds, runner_of
from pipeline.timing import Candidate, Latency, Protocol, Timing, measure, queries_from_npz


@dataclass(frozen=True)
class Benchmark:
    """Time engines against each other, taking turns block by block, on samples of the evaluation data.

    Latency is wall-clock time from arrays in host memory to outputs in host memory, one query at a time; device time
    stands beside it where the backend tells. Raw samples are kept, with the machine's identity.
    """

    batch_sizes: tuple[int, ...] = option((1,), "batch sizes to time")
    num_threads: int = option(0, "threads of a runtime on the CPU; 0: its own choice")
    protocol: Protocol = Protocol()

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(self, batch_sizes=(1, math.inf), num_threads=(0, math.inf))
        if not self.batch_sizes:
            raise ConfigError("batch_sizes is empty; name at least one, such as 1")
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise ConfigError(f"batch_sizes names a size twice: {', '.join(map(str, self.batch_sizes))}; leave one out")

    def __call__(self, out: Path, engines: Mapping[str, Engine], samples: Samples) -> Timings:
        """Write ``out/timings.json`` and, for each engine and batch size, the raw samples as ``.npz``.

        All engines are loaded at once, in a process of their own.

        Raises:
            Unavailable: an engine cannot run on this machine.
            ConfigError: no engine takes one of the batch sizes, or there are too few samples for it.
            StageError: a runtime crashed.
        """
        for engine in engines.values():
            if reason := backend(engine.backend).why_not_run():
                raise Unavailable(reason)
        self.check_samples(samples)
        what = f"benchmark {', '.join(engines)}"
        with waiting(what):
            timings = isolate.call(out / "benchmark.log", what, _measure, self, dict(engines), samples)
        rows = [_row(timing, engines[timing.name], out) for timing in timings]
        record = {
            "protocol": self.protocol.describe(),
            "num_threads": self.num_threads,
            "machine": asdict(this_machine()),
            "timings": rows,
        }
        (out / "timings.json").write_text(json.dumps(record, indent=1))
        return Timings(out / "timings.json")

    def check_samples(self, samples: Samples) -> None:
        """That the samples and the model take these batches.

        Raises:
            ConfigError: there are too few samples, or the model's batch is fixed at another size.
        """
        if (largest := max(self.batch_sizes)) > samples.num_samples:
            raise ConfigError(
                f"[benchmark] batch_sizes has {largest}, but there are {samples.num_samples} samples to time with; "
                f"give sizes from 1 to {samples.num_samples}"
            )
        fixed = {spec.shape[0] for spec in samples.specs} - {DYNAMIC}
        for size in self.batch_sizes:
            if fixed and fixed != {size}:
                raise ConfigError(
                    f"[benchmark] batch_sizes has {size}, but the model's batch is fixed at {max(fixed)}; "
                    f"write batch_sizes = [{max(fixed)}], or export the model with a dynamic batch"
                )


def timings_from(timings: Timings) -> list[Timing]:
    """Read back what the stage wrote, raw samples included.

    Raises:
        ConfigError: the raw samples are missing.
    """
    found = []
    for row in timings.read()["timings"]:
        device = None if row["device_ms"] is None else Latency(**row["device_ms"])
        queries = queries_from_npz(timings.beside(row["samples"]))
        kept = {key: value for key, value in row.items() if key not in ("samples", "engine", "latency_ms", "device_ms")}
        found.append(Timing(latency_ms=Latency(**row["latency_ms"]), device_ms=device, queries=queries, **kept))
    return found


def _row(timing: Timing, engine: Engine, out: Path) -> dict[str, object]:
    file = out / f"{timing.name}-batch{timing.batch_size}.npz"
    timing.queries.write(file)
    kept = {key: value for key, value in vars(timing).items() if key not in ("queries", "latency_ms", "device_ms")}
    device = None if timing.device_ms is None else asdict(timing.device_ms)
    return kept | {
        "latency_ms": asdict(timing.latency_ms),
        "device_ms": device,
        "samples": file.name,
        "engine": engine.digest(),
    }


def _measure(stage: Benchmark, engines: dict[str, Engine], samples: Samples) -> list[Timing]:
    with ExitStack() as loaded:
        candidates = []
        for name, engine in engines.items():
            runner = loaded.enter_context(runner_of(engine, stage.num_threads))
            for size in stage.batch_sizes:
                smallest, largest = batch_bounds(engine, runner)
                if not smallest <= size <= (largest or size):
                    raise ConfigError(
                        f"{name}: takes batches from {smallest} to {largest}, but [benchmark] batch_sizes has {size}; "
                        "change it, or the input's shapes in [model.inputs]"
                    )
                feed = next(iter(samples.batches(size)))
                candidates.append(Candidate(name, size, _query(runner, feed), runner.device_ms))
        return measure(candidates, stage.protocol)


def _query(runner: Runner, feed: Mapping[str, Array]) -> Callable[[], object]:
    return partial(runner.infer, feed)
