"""Time engines against each other, taking turns, on real samples."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from calibration.data.batches import Samples
from engines import backend, module_of
from engines.contract import DYNAMIC, DeviceTimes, Runner
from engines.timed_queries import DeviceTimeRecorder
from pipeline.artifact import Engine, Timings
from pipeline.engine_runner import as_model_takes, batch_sizes, model_ranks, runner_of
from pipeline.errors import ConfigError, Unavailable
from pipeline.json_record import record_from_data
from pipeline.latency.benchmark import Candidate, Latency, Timing, measure, queries_from_npz
from pipeline.latency.candidates import candidate_of, notes_of_sizes, sizes_for
from pipeline.latency.device_times import NUM_RUNS, LayersRun, facts_as_json, feed_of, recorder_for
from pipeline.latency.energy import Energy, block_energies_of, energies_of
from pipeline.latency.largest_batch import MOST_BATCH, LargestBatch, bound_from_text, find_largest_batch
from pipeline.latency.offline import batches_in_memory, offline, streaming_runner
from pipeline.latency.power_modes import MeasuredMode, PowerModes, compare_modes, power_modes_here
from pipeline.latency.protocol import CONFIDENCE, LEAST_SECONDS, Pairing, Protocol
from pipeline.latency.soak import trace
from pipeline.latency.together import RunIn, Together, TogetherTimings, measure_together, members_from, together_from
from pipeline.machine import child_process
from pipeline.machine.cpu_load import cpu_times, load_from_others
from pipeline.machine.identity import this_machine
from pipeline.machine.monitor import Monitor, MonitorSummary
from pipeline.machine.power_mode import asked_models
from pipeline.machine.progress import waiting
from pipeline.machine.sensors import available_mib
from pipeline.option import MOST_THREADS, check_bounds, option
from pipeline.stage import Stage

ROOT = Path("/")
"""Where the monitor looks for /sys and /proc; a test points it at a made-up tree."""
MONITOR = "monitor.npz"
"""Every reading of the monitor."""
NOT_OF_TIMING = ("samples", "engine", "latency_ms", "device_ms", "split_ms")
"""Keys of a row that are no fields of a ``Timing``, or not as they are."""


@dataclass(frozen=True)
class Benchmark(Stage):
    """Time engines against each other, taking turns block by block, on samples of the evaluation data.

    Latency is wall-clock time from arrays in host memory to outputs in host memory, one query at a time; device time
    stands beside it where the backend tells. Raw samples are kept, with the machine's identity.
    """

    NEEDS_ENGINES: ClassVar[bool] = True
    NEEDS_TOLERANCES: ClassVar[bool] = True
    RESULT: ClassVar[str] = "timings"

    batch_sizes: tuple[int, ...] = option((1,), "batch sizes to measure")
    num_threads: int = option(0, "threads of a CPU runtime; 0: the runtime's default")
    monitor_ms: int = option(100, "interval at which power, clocks and temperatures are sampled, in ms; 0: off")
    layers: bool = option(False, "also profile each layer, at the first batch size, in separate runs at the end")
    trace_seconds: float = option(
        0.0, "soak test: interval of the trace of latency, temperatures and clocks, in seconds; 0: off"
    )
    largest_batch: str = option(
        "", "also search the largest batch that keeps a bound such as 'p99_ms <= 20' (p50, p90, p99, mean); empty: none"
    )
    largest_batch_seconds: float = option(30.0, "time limit for each batch size that the search tries, in seconds")
    together: tuple[str, ...] = option(
        (), "also run these engines at once, each beside the others' load; one may be named twice; 'all': all of them"
    )
    together_in: RunIn = option(
        "processes", "where engines run at once: in processes of their own, or in threads of one process"
    )
    power_mode: tuple[str, ...] = option(
        (), "Jetson: also measure in these power modes of nvpmodel (name or number), and put back the one from before"
    )
    protocol: Protocol = Protocol()

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(self, batch_sizes=(1, math.inf), num_threads=(0, MOST_THREADS), monitor_ms=(0, math.inf))
        check_bounds(self, trace_seconds=(0, 86_400), largest_batch_seconds=(LEAST_SECONDS, 86_400))
        if self.largest_batch:
            bound_from_text(self.largest_batch)
        if self.together and self.protocol.scenario == "offline":
            raise ConfigError(
                "[benchmark] together: scenario offline has several batches in flight and no latency of a query; take "
                "single_stream or server, or leave together out"
            )
        if not self.batch_sizes:
            raise ConfigError("batch_sizes is empty; name at least one, such as 1")
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise ConfigError(f"batch_sizes names a size twice: {', '.join(map(str, self.batch_sizes))}; leave one out")

    def modules(self, engines: Mapping[str, Engine], _samples: object) -> tuple[str, ...]:
        """What is loaded by name."""
        return tuple(module_of(name) for name in sorted({engine.backend for engine in engines.values()}))

    def __call__(
        self,
        out: Path,
        engines: Mapping[str, Engine],
        samples: Samples,
        samples_of: Mapping[str, Samples] = MappingProxyType({}),
    ) -> Timings:
        """Write ``out/timings.json`` and, for each engine and batch size, the raw samples as ``.npz``.

        All engines are loaded at once, in a process of their own.

        Args:
            out: a folder to write to.
            engines: by name.
            samples: what they are fed.
            samples_of: by engine, other samples for those with other inputs.

        Raises:
            Unavailable: an engine cannot run on this machine.
            ConfigError: no engine takes one of the batch sizes, or there are too few samples for it.
            StageError: a runtime crashed.
        """
        for engine in engines.values():
            if reason := backend(engine.backend).why_not_run():
                raise Unavailable(reason)
        self.check_samples(samples)
        members = members_from(self.together, list(engines))
        modes = asked_models(ROOT, self.power_mode)
        fed = {name: samples_of.get(name, samples) for name in engines}
        before = cpu_times(ROOT)
        measured, monitor = self._measured(out, engines, fed)
        others = load_from_others(before, cpu_times(ROOT))
        searched: list[LargestBatch] = []
        if self.largest_batch:
            log, what = out / "benchmark.log", f"largest batch of {', '.join(engines)}"
            with waiting(what):
                searched = child_process.call(log, what, largest_batches, self, dict(engines), fed)
        together: Together | None = None
        if members:
            log, what = out / "benchmark.log", f"{', '.join(members)} at once"
            with waiting(what):
                timings = child_process.call(log, what, engines_together, self, members, dict(engines), fed)
            together = together_from(timings, self.together_in, self.protocol.seed, out)
        power = power_modes_here(ROOT)
        if modes:
            again = replace(self, layers=False)
            here = in_mode(measured, monitor)
            power = compare_modes(ROOT, modes, here, lambda: in_mode(*again._measured(out, engines, fed)))
        rows = [
            _row(timing, engines[timing.name], out) | {"split_ms": None if split is None else asdict(split)}
            for timing, split in zip(measured.timings, measured.splits)
        ]
        if self.monitor_ms:
            monitor.readings().write(out / MONITOR, measured.began_ns)
        record = {
            "protocol": self.protocol.describe(),
            "num_threads": self.num_threads,
            "machine": asdict(this_machine()),
            "timings": rows,
            "monitor": asdict(monitor.watched()) if self.monitor_ms else None,
            "load_from_others": others,
            "energies": [asdict(energy) for energy in energies_of(monitor, measured.timings, measured.began_ns)],
            "ram_change_mib": measured.ram_change_mib,
            "runners": measured.runners,
            "layers": {name: asdict(run) for name, run in measured.layers.items()},
            "largest_batches": [asdict(largest) for largest in searched],
            "together": None if together is None else asdict(together),
            "power_modes": None if power is None else asdict(power),
            "traces": [
                asdict(trace(timing, monitor.readings(), measured.began_ns, self.trace_seconds))
                for timing in measured.timings
                if self.trace_seconds
            ],
        }
        (out / "timings.json").write_text(json.dumps(record, indent=1))
        return Timings(out / "timings.json")

    def _measured(
        self, out: Path, engines: Mapping[str, Engine], fed: dict[str, Samples]
    ) -> tuple[BenchmarkResult, Monitor]:
        """All engines against each other, in a process of their own, and what was seen of the machine meanwhile."""
        what = f"benchmark {', '.join(engines)}"
        with waiting(what), Monitor(ROOT, self.monitor_ms) as monitor:
            result = child_process.call(out / "benchmark.log", what, measure_engines, self, dict(engines), fed)
        return result, monitor

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
    timing_list = []
    for row in timings.read()["timings"]:
        device = None if row["device_ms"] is None else Latency(**row["device_ms"])
        queries = queries_from_npz(timings.beside(row["samples"]))
        other_fields = {key: value for key, value in row.items() if key not in NOT_OF_TIMING}
        timing_list.append(
            Timing(latency_ms=Latency(**row["latency_ms"]), device_ms=device, queries=queries, **other_fields)
        )
    return timing_list


def watched_from(timings: Timings) -> MonitorSummary | None:
    """What was seen of the machine; None if it was not watched."""
    monitor = timings.read()["monitor"]
    return (
        None if monitor is None else record_from_data(monitor, MonitorSummary, f"{timings.path}: monitor", "time again")
    )


def energies_from(timings: Timings) -> dict[tuple[str, int], Energy]:
    """The energy of each engine at each batch size."""
    return {(row["name"], row["batch_size"]): Energy(**row) for row in timings.read()["energies"]}


def _row(timing: Timing, engine: Engine, out: Path) -> dict[str, object]:
    file = out / f"{timing.name}-batch{timing.batch_size}.npz"
    timing.queries.write(file)
    other_fields = {
        key: value for key, value in vars(timing).items() if key not in ("queries", "latency_ms", "device_ms")
    }
    device = None if timing.device_ms is None else asdict(timing.device_ms)
    return other_fields | {
        "latency_ms": asdict(timing.latency_ms),
        "device_ms": device,
        "samples": file.name,
        "engine": engine.digest(),
    }


@dataclass(frozen=True)
class BenchmarkResult:
    """What the process that measures hands back."""

    timings: list[Timing]
    began_ns: int
    """When the first block began, on the monotonic clock, which all processes share."""
    ram_change_mib: dict[str, float | None]
    """By how much the available memory fell while an engine was loaded and ran once; None where it is not told."""
    splits: list[DeviceTimes | None]
    """Of each timing: where its queries' time went."""
    runners: dict[str, dict[str, Any]]
    """What each engine's runner tells."""
    layers: dict[str, LayersRun]


def in_mode(measured: BenchmarkResult, monitor: Monitor) -> MeasuredMode:
    """What was measured in the power mode of that time."""
    energies = block_energies_of(monitor, measured.timings, measured.began_ns)
    return MeasuredMode(measured.timings, energies, monitor.watched().num_throttles)


def power_modes_from(timings: Timings) -> PowerModes | None:
    """The device's power modes, and what others brought; None where it has none."""
    where, data = f"{timings.path}: power_modes", timings.read()["power_modes"]
    return None if data is None else record_from_data(data, PowerModes, where, "time again")


def measure_engines(stage: Benchmark, engines: dict[str, Engine], fed: dict[str, Samples]) -> BenchmarkResult:
    """Load all engines in this process and time them by the stage's protocol; ``fed``: what each is fed."""
    began_ns: list[int] = []
    changes: dict[str, float | None] = {}
    runners: dict[str, Runner] = {}
    is_offline = stage.protocol.scenario == "offline"
    kinds = {samples.specs: samples for samples in fed.values()} if is_offline else {}
    feeds = {(specs, n): batches_in_memory(kinds[specs], n) for specs in kinds for n in stage.batch_sizes}
    with ExitStack() as loaded:
        candidates: list[Candidate] = []
        splits: list[DeviceTimeRecorder] = []
        for name, engine in engines.items():
            before_mib = available_mib(Path("/"))
            streaming = streaming_runner(engine, stage.protocol.load, stage.num_threads)
            runner = runners[name] = loaded.enter_context(streaming or runner_of(engine, stage.num_threads))
            sizes = sizes_for(runner, stage.batch_sizes)
            engine_candidates = [candidate_of(engine, runner, name, next(iter(fed[name].batches(n)))) for n in sizes]
            if is_offline:
                engine_candidates = [
                    offline(candidate, runner, streaming, feeds[fed[name].specs, candidate.batch_size])
                    for candidate in engine_candidates
                ]
            for candidate in engine_candidates:
                loaded.callback(candidate.rest)  # Before its runner goes.
                candidate.call()  # Some runtimes take their memory at the first query.
                candidate.rest()
            change_mib = before_mib - available_mib(Path("/"))
            changes[name] = None if math.isnan(change_mib) else change_mib
            heard = [recorder_for(candidate.elsewhere, runner) for candidate in engine_candidates]
            candidates += [
                replace(candidate, device_ms=split.device_ms) for candidate, split in zip(engine_candidates, heard)
            ]
            splits += heard
        timings = measure(candidates, stage.protocol, on_begin=began_ns.append)
        facts = {name: facts_as_json(runner.facts()) for name, runner in runners.items()}
        for name, runner in runners.items():
            facts[name]["notes"] = [*facts[name]["notes"], *notes_of_sizes(runner, stage.batch_sizes)]
    layers = {name: _layers(stage, engine, fed[name]) for name, engine in engines.items()} if stage.layers else {}
    return BenchmarkResult(timings, began_ns[0], changes, [split.medians() for split in splits], facts, layers)


def largest_batches(stage: Benchmark, engines: dict[str, Engine], fed: dict[str, Samples]) -> list[LargestBatch]:
    """Search each engine's largest batch that keeps the stage's bound, in this process; ``fed``: what each is fed."""
    bound = bound_from_text(stage.largest_batch)
    pairing = Pairing(max_seconds=stage.largest_batch_seconds, confidence=CONFIDENCE)

    @contextmanager
    def loaded(name: str, size: int) -> Iterator[Candidate]:
        samples = fed[name]
        first = next(iter(samples.batches(min(size, samples.num_samples))))
        feed = {key: array[np.arange(size) % len(array)] for key, array in first.items()}
        with runner_of(engines[name], stage.num_threads) as runner:
            yield candidate_of(engines[name], runner, name, feed)

    searched = []
    for name, engine in engines.items():
        with runner_of(engine, stage.num_threads) as runner:
            sizes = batch_sizes(engine, runner, next(iter(fed[name].batches(1)))).up_to(MOST_BATCH)
        searched.append(find_largest_batch(name, sizes, partial(loaded, name), bound, pairing))
    return searched


def largest_batches_from(timings: Timings) -> dict[str, LargestBatch]:
    """By engine, what was searched; empty if nothing was."""
    where = f"{timings.path}: largest_batches"
    rows = timings.read()["largest_batches"]
    return {row["name"]: record_from_data(row, LargestBatch, where, "time again") for row in rows}


def engines_together(
    stage: Benchmark, members: Mapping[str, str], engines: dict[str, Engine], fed: dict[str, Samples]
) -> TogetherTimings:
    """Run engines at once, in processes that this one starts or in its threads, at the first batch size.

    Args:
        stage: threads, batch size and protocol are its.
        members: by its name in the record, the engine that it is.
        engines: by name.
        fed: what each is fed.
    """
    loaders = {name: partial(loaded_alone, stage, name, engines[of], fed[of]) for name, of in members.items()}
    with TemporaryDirectory(prefix="trtforge-together-") as folder:
        return measure_together(Path(folder), loaders, stage.together_in, stage.protocol)


@contextmanager
def loaded_alone(stage: Benchmark, name: str, engine: Engine, samples: Samples) -> Iterator[Candidate]:
    """An engine with a batch of the first size that it takes of the stage's."""
    with runner_of(engine, stage.num_threads) as runner:
        size = sizes_for(runner, stage.batch_sizes)[0]
        candidate = candidate_of(engine, runner, name, next(iter(samples.batches(size))))
        if stage.together_in == "threads" and candidate.elsewhere is not None:
            raise ConfigError(
                "[benchmark] together_in: another Python holds the engines, and serves one query at a time; write "
                'together_in = "processes"'
            )
        yield candidate


def together_from_record(timings: Timings) -> Together | None:
    """What running engines at once did to each; None if it was not asked for."""
    where, data = f"{timings.path}: together", timings.read()["together"]
    return None if data is None else record_from_data(data, Together, where, "time again")


def _layers(stage: Benchmark, engine: Engine, samples: Samples) -> LayersRun:
    size = stage.batch_sizes[0]
    feed = feed_of(as_model_takes(next(iter(samples.batches(size))), model_ranks(samples)))
    return LayersRun(size, NUM_RUNS, backend(engine.backend).layer_times(engine.path, feed, NUM_RUNS))
