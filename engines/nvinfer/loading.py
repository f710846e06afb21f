"""How TensorRT and TensorRT-RTX load their engines: what a backend's ``load`` and ``layer_times`` are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.contract import Array, GpuUse, LayerTimes
from engines.cuda import device
from engines.nvinfer.plan_header import check_plan_here
from engines.nvinfer.runner import AS_USUAL, TO_PROFILE, NvinferRunner


@dataclass(frozen=True)
class EngineLoader:
    """Of one of the two."""

    name: str
    """The backend's."""
    import_trt: Callable[[], Any]
    versions: Callable[[], Mapping[str, str]]
    """What a plan is compared with before anything of the library sees it."""

    def load(self, engine: Path, *, num_threads: int, use: GpuUse = AS_USUAL) -> NvinferRunner:
        """A runner on GPU 0. ``num_threads`` is for runtimes on the CPU."""
        return NvinferRunner(
            engine, self.import_trt, device.Device, lambda plan: check_plan_here(plan, self.name, self.versions()), use
        )

    def layer_times(self, engine: Path, feed: Mapping[str, Array], num_runs: int) -> LayerTimes:
        """By TensorRT's profiler, without CUDA graphs; memory by an allocator that counts."""
        with self.load(engine, num_threads=0, use=TO_PROFILE) as runner:
            return runner.layer_times(feed, num_runs)
