"""Run an engine on all samples and keep what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from calibration.data.batches import Samples
from engines import backend, module_of
from engines.contract import DYNAMIC, Array, Runner
from pipeline.accuracy.comparison import write_outputs
from pipeline.artifact import Engine, Outputs
from pipeline.engine_runner import SIMULATION, SIMULATOR, BatchSizes, batch_sizes, fixed_batch, padded, runner_of
from pipeline.errors import EngineError, Unavailable
from pipeline.machine import child_process
from pipeline.machine.child_process import SendProgress
from pipeline.machine.packages import distribution_versions
from pipeline.machine.progress import counting
from pipeline.option import MOST_THREADS, check_bounds, option
from pipeline.stage import Stage

MOST_BYTES, MOST_SAMPLES = 3 << 20, 32
"""Of inputs in one run, and of samples, where the plan says nothing."""


@dataclass(frozen=True)
class Infer(Stage):
    """Run an engine on all samples, in a process of its own, and keep what it answers.

    The outputs are saved as Polygraphy's RunResults, so that `validate` and `polygraphy` can read them again.
    """

    NEEDS_ENGINES: ClassVar[bool] = True
    RESULT: ClassVar[str] = "outputs"

    batch_size: int = option(
        0,
        "samples per run, fewer if the engine's maximum batch size is smaller; 0: as many as have 3 MiB of inputs, "
        "at most 32",
    )
    num_threads: int = option(0, "threads of a CPU runtime; 0: the runtime's default")

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(self, batch_size=(0, math.inf), num_threads=(0, MOST_THREADS))

    def versions(self, engine: Engine, _samples: object) -> dict[str, str]:
        """Everything below that the answers depend on."""
        return backend(engine.backend).versions() | distribution_versions("polygraphy", "numpy")

    def modules(self, engine: Engine, _samples: object) -> tuple[str, ...]:
        """What is loaded by name."""
        return (module_of(engine.backend), *([module_of(SIMULATOR)] if engine.simulated else []))

    def __call__(self, out: Path, engine: Engine, samples: Samples) -> Outputs:
        """Write ``out/outputs.json``.

        Raises:
            Unavailable: the engine cannot run on this machine.
            EngineError: it refused a batch.
            StageError: it crashed.
        """
        if reason := backend(engine.backend).why_not_run():
            raise Unavailable(reason)
        what = f"infer {engine.path.name} with {SIMULATION if engine.simulated else engine.backend}"
        with counting(what, samples.num_samples) as on_sample:
            child_process.call_with_progress(
                out / "infer.log", what, on_sample, _infer, self, engine, samples, out / "outputs.json"
            )
        return Outputs(out / "outputs.json")


def _infer(on_sample: SendProgress, stage: Infer, engine: Engine, samples: Samples, path: Path) -> None:
    with runner_of(engine, stage.num_threads) as runner:
        batches = answers(runner, engine, samples, stage.batch_size, on_sample)
    write_outputs(path, SIMULATION if engine.simulated else engine.backend, batches)


def answers(
    runner: Runner, engine: Engine, samples: Samples, batch_size: int, on_sample: SendProgress
) -> list[dict[str, Array]]:
    """What an engine, loaded in ``runner``, answers to all samples, up to ``batch_size`` of them at once."""
    fixed = samples.fixed_batch or fixed_batch(runner)
    sizes, at_once = BatchSizes(((1, 1),)), batch_size
    if fixed != 1:
        feed = next(iter(samples.batches(fixed or 1)))
        sizes, at_once = batch_sizes(engine, runner, feed), batch_size or usual_batch_size(feed, fixed or 1)
    batches = _by_batch(runner, engine, samples, (at_once, sizes), on_sample)
    if batches is None:
        return _by_sample(runner, samples, on_sample)
    return batches if batch_size else _joined(batches)


def usual_batch_size(feed: Mapping[str, Array], num_samples: int) -> int:
    """How many samples such as the ``num_samples`` in ``feed`` are run at once where nobody says it: 1, 2, 4 … 32.

    A CPU takes up to 1.7 times as long for each of 32 pictures of 240 x 240 as for each of 4, whose activations stay in
    its caches; of small samples, 32 spread what a run costs by itself (benchmarks/results/batch_size.md).
    """
    num_bytes = sum(array.nbytes for array in feed.values())
    fitting = min(max(MOST_BYTES * num_samples // max(num_bytes, 1), 1), MOST_SAMPLES)
    return int(2 ** (fitting.bit_length() - 1))


def _joined(batches: list[dict[str, Array]]) -> list[dict[str, Array]]:
    """Neighbours together, up to ``MOST_SAMPLES``: how many were run at once is no part of what is compared."""
    num_together = max(MOST_SAMPLES // max(map(_num_in, batches), default=1), 1)
    groups = [batches[start : start + num_together] for start in range(0, len(batches), num_together)]
    if any(len({batch[name].shape[1:] for batch in group}) > 1 for group in groups for name in group[0]):
        return batches
    return [{name: np.concatenate([batch[name] for batch in group]) for name in group[0]} for group in groups]


def _num_in(batch: Mapping[str, Array]) -> int:
    return len(next(iter(batch.values())))


def _by_batch(
    runner: Runner, engine: Engine, samples: Samples, batching: tuple[int, BatchSizes], on_sample: SendProgress
) -> list[dict[str, Array]] | None:
    """What a runner answers; None where its outputs do not have the batch first, and samples can be run by themselves.

    ``batching``: how many samples are to be run at once, and what the engine takes.
    """
    wanted, sizes = batching
    batches: list[dict[str, Array]] = []
    num_done = 0
    takes_one = 1 in sizes
    if takes_one and _has_fixed_rows(runner):
        return None
    for feed in samples.batches(sizes.at_most(wanted)):
        num_samples = len(next(iter(feed.values())))
        size = sizes.at_least(num_samples)
        if takes_one and num_samples > 1 and not batches and not _is_one_row(runner, feed):
            return None
        answer = runner.infer(padded(feed, size))
        for name, array in answer.items():
            if array.ndim == 0 or len(array) != size:
                if takes_one:
                    return None
                raise EngineError(
                    f"{engine.path.name}: output '{name}' is {array.shape} for a batch of {size}, so it cannot be "
                    "told which sample it belongs to; export the model with a batch of 1, or a dynamic one"
                )
        batches.append({name: np.array(array[:num_samples]) for name, array in answer.items()})
        num_done += num_samples
        on_sample(num_done)
    return batches


def _has_fixed_rows(runner: Runner) -> bool:
    """Whether an output has so many rows whatever the batch, which is dynamic: it may have them by chance as well."""
    dynamic = any(spec.shape and spec.shape[0] == DYNAMIC for spec in runner.inputs)
    return dynamic and any(spec.shape[:1] not in ((), (DYNAMIC,)) for spec in runner.outputs)


def _is_one_row(runner: Runner, feed: Mapping[str, Array]) -> bool:
    """Whether the first sample by itself has one row of each output; a whole batch may have its rows by chance."""
    alone = {name: array[:1] if array.ndim else array for name, array in feed.items()}
    return all(array.ndim and len(array) == 1 for array in runner.infer(alone).values())


def _by_sample(runner: Runner, samples: Samples, on_sample: SendProgress) -> list[dict[str, Array]]:
    """What a runner answers to each sample by itself, so that an output belongs to it whatever its shape.

    Outputs that are not of one row on every sample, such as a detector's rows, get the batch's dimension in front.
    """
    answers: list[dict[str, Array]] = []
    for num_done, feed in enumerate(samples.batches(1), start=1):
        answers.append({name: np.array(array) for name, array in runner.infer(feed).items()})
        on_sample(num_done)
    apart = {name for answer in answers for name, array in answer.items() if array.ndim == 0 or len(array) != 1}
    return [{name: array[np.newaxis] if name in apart else array for name, array in each.items()} for each in answers]
