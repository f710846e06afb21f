"""Which model, target and rounding a variant means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from calibration.histogram.methods import Method
from calibration.ranges.ranges import ranges_from_folder
from engines import backend
from pipeline.accuracy.bisection import Evidence
from pipeline.artifact import (
    Engine,
    OnnxModel,
    SavedModel,
)
from pipeline.errors import ConfigError, Unavailable
from pipeline.plan import Plan
from pipeline.results import Results, Variant
from pipeline.stages.build import Target
from pipeline.stages.tolerate import Rounding
from pipeline.stages.validate import Judge
from pipeline.store import Store


def target_of(plan: Plan, variant: Variant) -> Target:
    """What a variant's engine is built for."""
    return Target(variant.backend, variant.precision, plan.model.inputs, plan.model.profiles)


def variants(plan: Plan, until: str) -> Iterator[Variant]:
    """Every precision for every backend; for a single verb only the precisions that it writes."""
    wanted = {"cast": ("fp16",), "quantize": ("int8",)}.get(until, plan.variants.precisions)
    for name in plan.variants.backends:
        for precision in plan.variants.precisions:
            if precision in wanted:
                yield Variant(precision, name)


def written_model(plan: Plan, store: Store, made: Results, variant: Variant) -> OnnxModel:
    """The ONNX model with the variant's precision written in it, placed as its backend wants it."""
    if variant.precision == "fp32" or plan.build.is_native(variant.backend, variant.precision):
        return made.fp32
    if made.ranges is None:
        raise ConfigError(f"{variant.name}: needs ranges; run `calibrate` first")
    if variant.precision == "fp16":
        return store.run(plan.cast, made.fp32, made.ranges)
    placement = backend(variant.backend).PLACEMENT
    assert placement != "none", "check_plan refuses it"
    return store.run(replace(plan.quantize, target=placement), made.fp32, made.ranges)


def judged_engine(plan: Plan, made: Results, variant: Variant, engine: Engine) -> Engine:
    """What answers for the engine's accuracy: itself, or where it cannot run, the simulation of its model.

    Raises:
        Unavailable: it cannot run, and its model is no simulation of it, as with native INT8.
    """
    reason = backend(variant.backend).why_not_run()
    if not reason:
        return engine
    if plan.build.is_native(variant.backend, variant.precision):
        raise Unavailable(
            f"{variant.name}: native INT8 is in the engine alone, so that it must run to be judged ({reason}); judge "
            'it on the device, or take int8 = "qdq"'
        )
    return Engine(made.models[variant].path, "onnxruntime", simulated=True)


def evidence_of(plan: Plan, made: Results, variant: Variant) -> Evidence | None:
    """The models behind a variant's engine; None for FP32, which is all there is."""
    if variant.precision == "fp32":
        return None
    model = None if plan.build.is_native(variant.backend, variant.precision) else made.models[variant]
    return Evidence(made.fp32, model, made.evaluation, made.ranges)


def rounding_of(plan: Plan, made: Results, variant: Variant) -> Rounding:
    """What engines of this kind round, and how their ranges are read."""
    placement = backend(variant.backend).PLACEMENT
    if variant.precision != "int8":
        return Rounding(variant.precision, "tensorrt" if placement == "tensorrt" else "none")
    assert made.ranges is not None
    assert placement != "none"
    ranges = ranges_from_folder(made.ranges.path)
    method: Method | Literal["any"] = "any" if ranges.method == "imported" else ranges.method
    rounding = Rounding("int8", placement, plan.quantize.exclude, "s8s8", method, ranges.percentile)
    if plan.build.is_native(variant.backend, variant.precision):  # TensorRT rounds outputs too, as ONNX Runtime does.
        own = "entropy" if plan.build.native_scales == "tensorrt" else method
        return replace(rounding, target="onnxruntime", exclude=(), method=own)
    if placement == "onnxruntime":
        return replace(rounding, arithmetic=plan.quantize.chosen_arithmetic()[0])
    return rounding


def trained_network(plan: Plan, made: Results) -> Engine:
    """What the user brought, ready to be run: by TensorFlow, or an ONNX source by what runs the FP32 model."""
    if isinstance(made.source, SavedModel):
        return Engine(made.source.path, "tensorflow", signature=made.source.signature)
    if isinstance(made.source, OnnxModel):
        renamed = made.fp32.beside("source.onnx")
        return Engine(renamed if renamed.is_file() else made.source.path, plan.validate.reference)
    return Engine(made.fp32.beside("savedmodel"), "tensorflow", signature="serving_default")


def judge_of(plan: Plan) -> Judge:
    """The plan's task metric."""
    return Judge(plan.data.metric, plan.data.output, plan.folder)
