"""Run an engine on all samples and keep what it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from calibration.data.batches import Samples
from engines import backend, module_of
from engines.contract import Array
from pipeline.accuracy.comparison import write_outputs
from pipeline.artifact import Engine, Outputs
from pipeline.engine_runner import SIMULATION, SIMULATOR, batch_bounds, padded, runner_of
from pipeline.errors import EngineError, Unavailable
from pipeline.machine import child_process
from pipeline.machine.child_process import SendProgress
from pipeline.machine.packages import distribution_versions
from pipeline.machine.progress import counting
from pipeline.option import check_bounds, option
from pipeline.stage import Stage


@dataclass(frozen=True)
class Infer(Stage):
    """Run an engine on all samples, in a process of its own, and keep what it answers.

    The outputs are saved as Polygraphy's RunResults, so that `validate` and `polygraphy` can read them again.
    """

    NEEDS_ENGINES: ClassVar[bool] = True
    RESULT: ClassVar[str] = "outputs"

    batch_size: int = option(32, "samples per run; fewer if the engine's maximum batch size is smaller")
    num_threads: int = option(0, "threads of a CPU runtime; 0: the runtime's default")

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(self, batch_size=(1, math.inf), num_threads=(0, math.inf))

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
    batches: list[dict[str, Array]] = []
    num_done = 0
    with runner_of(engine, stage.num_threads) as runner:
        smallest, largest = batch_bounds(engine, runner)
        batch_size = max(min(stage.batch_size, largest or stage.batch_size), smallest)
        for feed in samples.batches(batch_size):
            num_samples = len(next(iter(feed.values())))
            answer = runner.infer(padded(feed, smallest))
            for name, array in answer.items():
                if array.ndim == 0 or len(array) != max(num_samples, smallest):
                    raise EngineError(
                        f"{engine.path.name}: output '{name}' is {array.shape} for a batch of {num_samples}; "
                        "its first dimension must be the batch"
                    )
            batches.append({name: np.array(array[:num_samples]) for name, array in answer.items()})
            num_done += num_samples
            on_sample(num_done)
    write_outputs(path, SIMULATION if engine.simulated else engine.backend, batches)
