"""How TensorRT and TensorRT-RTX load their engines: what a backend's ``load`` and ``layer_times`` are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.contract import Array, GpuUse, LayerTimes
from engines.cuda import device
from engines.nvinfer.plan_header import check_plan_here, check_weights_inside, record_beside
from engines.nvinfer.runner import AS_USUAL, TO_PROFILE, NvinferRunner, PlanChecks
from engines.signing.trust import check_bytes, check_record, expected


@dataclass(frozen=True)
class EngineLoader:
    """Of one of the two."""

    name: str
    """The backend's."""
    import_trt: Callable[[], Any]
    versions: Callable[[], Mapping[str, str]]
    """What a plan is compared with before anything of the library sees it."""

    def load(self, engine: Path, *, num_threads: int, use: GpuUse = AS_USUAL) -> NvinferRunner:
        """A runner on GPU 0. ``num_threads`` is for runtimes on the CPU.

        Raises:
            NotTrusted: keys are named that engines have to be signed by, and none of them signed this one.
        """
        return NvinferRunner(engine, self.import_trt, device.Device, self.checks_of(engine), use)

    def checks_of(self, engine: Path, *, can_be_stripped: bool = False) -> PlanChecks:
        """What is asked of an engine before it is loaded, ``can_be_stripped``: to be filled with weights.

        Raises:
            NotTrusted: keys are named that engines have to be signed by, and none of them signed this one.
        """
        signed = expected(engine)

        def check(plan: Path) -> Mapping[str, Any]:
            record = record_beside(plan)  # Once: what is compared with the signature is what is gone by.
            check_record(plan, record, signed)
            check_plan_here(plan, record, self.name, self.versions())
            if not can_be_stripped:
                check_weights_inside(plan, record)
            return record

        def check_data(data: bytes) -> None:
            check_bytes(engine, data, signed)

        return PlanChecks(check, check_data)

    def layer_times(self, engine: Path, feed: Mapping[str, Array], num_runs: int) -> LayerTimes:
        """By TensorRT's profiler, without CUDA graphs; memory by an allocator that counts."""
        with self.load(engine, num_threads=0, use=TO_PROFILE) as runner:
            return runner.layer_times(feed, num_runs)
