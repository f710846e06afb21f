"""The real runner on the pretended TensorRT of its tests, loaded as a backend; it runs in the other process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engines.contract import (
    Array,
    BuildOptions,
    EngineRecord,
    GivenBatches,
    GpuUse,
    LayerFacts,
    LayerTimes,
    TensorSpec,
)  # fmt: skip
from engines.errors import EngineError
from engines.nvinfer.calibrator import CalibrationFeed
from engines.nvinfer.runner import AS_USUAL, TO_PROFILE, NvinferRunner, PlanChecks
from engines.refitting import ChangedWeights, RefitOutcome
from engines.signing.trust import check_bytes, expected
from tests.engines.nvinfer.pretended import PretendedContext, PretendedGpu, pretended_trt, runner_of

SPEC = TensorSpec("x", "float32", (-1, 2))


def versions() -> dict[str, str]:
    return {"tensorrt": "0.1"}


def build(model: Path, engine: Path, options: BuildOptions) -> EngineRecord:
    """An engine that doubles; what its calibrator would be fed is in the notes."""
    notes = [f"workspace {options.workspace_mib}, {options.native}"]
    if isinstance(options.native, GivenBatches):
        source = options.native
        feed = CalibrationFeed(source.batches(), source.batch_size, PretendedGpu())
        notes = [f"{source.cache.name}: {batch['x'].tolist()}" for batch in feed.batches]
    options.progress("Building", 1, 2)
    options.progress("Building", 2, 2)
    engine.write_bytes(b"plan")
    return EngineRecord("tensorrt", options.precision, 4, 0.5, versions(), (SPEC,), (SPEC,), 0, -1, notes=tuple(notes))


def refit(engine: Path, model: Path, target: Path, changed: ChangedWeights) -> RefitOutcome:
    """The engine again, if it is what was signed; what came is in the notes."""
    if "folded" in changed:
        raise EngineError(f"{engine}: weights 'folded' have changed, which it does not let be replaced")
    data = engine.read_bytes()
    check_bytes(engine, data, expected(engine))
    target.write_bytes(data)
    layers = (LayerFacts("a", "product", "INT8", ("a", "b"), 1),)
    return RefitOutcome(len(data), 0.5, len(changed), True, 1, layers, "it", (f"{model.name}: {dict(changed)}",))


def load(engine: Path, *, num_threads: int, use: GpuUse = AS_USUAL) -> NvinferRunner:
    gpu, signed = PretendedGpu(), expected(engine)
    runner = runner_of(gpu, engine.parent, pretended_trt(gpu, lambda: PretendedContext(gpu)), use)
    runner._checks = PlanChecks(of_data=lambda data: check_bytes(engine, data, signed))
    return runner


def layer_times(engine: Path, feed: Mapping[str, Array], num_runs: int) -> LayerTimes:
    use = GpuUse(cuda_graph=TO_PROFILE.cuda_graph)
    with load(engine, num_threads=0, use=use) as runner:
        return runner.layer_times(feed, num_runs)
