"""What a plan's stage asks of a model before it writes INT8 into it, made or served."""

from __future__ import annotations

from dataclasses import dataclass

from calibration.data.batches import Samples
from calibration.data.source import DYNAMIC
from calibration.ranges.ranges import TUNED
from calibration.ranges.ranges_file import ranges_from_folder
from engines.onnx_model import facts
from pipeline.accuracy.layer_noise import MeasureLayers
from pipeline.accuracy.metric_sensitivity import MeasureSensitivity
from pipeline.accuracy.mixed_precision import HeldBound, MixPrecision
from pipeline.accuracy.mixture import MixtureBound
from pipeline.accuracy.weight_rounding import RoundWeights
from pipeline.artifact import Artifact, Mixture, OnnxModel, Ranges, WeightCodes
from pipeline.latency.placement_times import TimePlacement
from pipeline.plan import Plan
from pipeline.results import Results, Variant
from pipeline.stage import Stage
from pipeline.stages.quantize import Quantize
from pipeline.store import Store


@dataclass(frozen=True)
class Int8Task:
    """INT8 that is to be written."""

    stage: Quantize
    model: OnnxModel
    ranges: Ranges


def decided_for(plan: Plan, store: Store, made: Results, variant: Variant, task: Int8Task) -> list[Artifact]:
    """Times, codes and a mixture, where the stage asks for them; a mixture is noted in ``made``."""
    decided: list[Artifact] = []
    if (measure := timing_for(task.stage, task.model, made.calibration)) is not None:
        decided.append(store.run(measure, task.model, task.ranges))
    if (codes := codes_of(plan, store, made, task)) is not None:
        decided.append(codes)
    if task.stage.is_bounded():
        made.mixtures[variant] = mixture_of(plan, store, made, task, codes)
        decided.append(made.mixtures[variant])
    return decided


def timing_for(stage: Stage, model: OnnxModel, samples: Samples | None = None) -> TimePlacement | None:
    """What measures the placement that a stage wants by time; None if it does not.

    ``samples``: the first tells the sizes that the model leaves open beside the batch.
    """
    if not isinstance(stage, Quantize) or not stage.is_timed():
        return None
    is_open = samples is not None and any(DYNAMIC in spec.shape[1:] for spec in facts(model.path).inputs)
    first = next(iter(samples.batches(1))) if samples is not None and is_open else {}
    return TimePlacement(stage.placement_options(model), {name: array.shape for name, array in first.items()})


def codes_of(plan: Plan, store: Store, made: Results, task: Int8Task) -> WeightCodes | None:
    """What the weights of a model are rounded to, where calibration samples say so and they were not trained for it."""
    if not task.stage.rounds_by_data() or ranges_from_folder(task.ranges.path).method == TUNED:
        return None
    assert made.calibration is not None
    work = RoundWeights(task.stage.placement_options(task.model), plan.tolerate.num_threads)
    return store.run(work, task.model, task.ranges, made.calibration)


def mixture_of(plan: Plan, store: Store, made: Results, task: Int8Task, codes: WeightCodes | None) -> Mixture:
    """The layers of a model that stay in float so that INT8, its weights rounded to ``codes``, holds the bound."""
    stage, model, ranges = task.stage, task.model, task.ranges
    assert made.calibration is not None
    options, num_threads = stage.placement_options(model), plan.tolerate.num_threads
    noises = store.run(MeasureLayers(options, num_threads=num_threads), model, ranges, made.calibration)
    judged_by = (plan.data.metric, plan.data.output, plan.folder, plan.data.detector)
    bound = MixtureBound(stage.min_sqnr_db, stage.max_metric_drop, *judged_by)
    held = HeldBound(bound, made.calibration, codes)
    if stage.sensitivity == "metric":
        noises = store.run(MeasureSensitivity(options, num_threads), model, ranges, noises, held)
    return store.run(MixPrecision(options, num_threads), model, ranges, noises, held)
