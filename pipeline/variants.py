"""Which model, target and rounding a variant means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Concatenate, Literal, TypeAlias, cast

from calibration.data.batches import Samples
from calibration.graph.weightless import skeleton_from_file
from calibration.precision.place import block_size
from calibration.precision.placement import FULL_BITS, PlacementOptions
from calibration.quantized.grids import is_told_by_tensor
from calibration.ranges.ranges import IMPORTED, RangeMethod, methods_of_tensors
from calibration.ranges.ranges import TUNED as TUNED_RANGES
from calibration.ranges.ranges_file import ranges_from_folder
from engines import backend
from engines.model_format import ModelFormat
from engines.precision import precision_named
from pipeline.accuracy.bisection import Evidence, TfliteEvidence
from pipeline.accuracy.weight_codes import codes_from_folder
from pipeline.artifact import (
    PRUNED,
    TRAINED,
    TUNED,
    Artifact,
    Engine,
    ModelFile,
    OnnxModel,
    Ranges,
    TfliteModel,
    Tuned,
    Verdict,
)
from pipeline.engine_runner import SIMULATOR
from pipeline.errors import ConfigError, Unavailable
from pipeline.latency.frontier_times import TimeFrontier
from pipeline.placing.decided import Int8Task, codes_of, decided_for
from pipeline.plan import Plan
from pipeline.refitting.engines import built_or_refitted
from pipeline.results import Form, Network, Results, Variant
from pipeline.sources.contract import source_kind
from pipeline.stage import Stage
from pipeline.stages.build import BuildTarget
from pipeline.stages.ptq import Ptq
from pipeline.stages.quantize import Quantize
from pipeline.stages.tolerate import Rounding, rounding_with_ranges
from pipeline.stages.validate import Judge, Judged
from pipeline.store import Store
from pipeline.training.options import Training, TrainingAim

ModelStage: TypeAlias = Callable[Concatenate[Path, ModelFile, ...], ModelFile]
"""A stage that writes a precision: from the FP32 model, and the ranges where the precision needs them."""


def target_of(plan: Plan, variant: Variant) -> BuildTarget:
    """What a variant's engine is built for."""
    return BuildTarget(variant.backend, variant.precision.name, plan.model.inputs, plan.model.profiles)


def variants(plan: Plan, until: str) -> Iterator[Variant]:
    """Every network in every precision for every backend; for a verb that writes models, those it writes."""
    stage = plan.stage(until)
    for network in plan.variants.networks:
        for backend_name in plan.variants.backends:
            for precision in plan.variants.precisions:
                variant = Variant(precision_named(precision), backend_name, network)
                takes = backend(backend_name).TAKES
                if is_made(variant) and (not stage.WRITES or (precision in stage.WRITES and takes == stage.FORMAT)):
                    yield variant


def is_made(variant: Variant) -> bool:
    """Whether there is such a variant: other networks than the trained one are in ONNX, the tuned one in INT8 alone."""
    if variant.network == TRAINED:
        return True
    if backend(variant.backend).TAKES != OnnxModel.FORMAT:
        return False
    return variant.network != TUNED or variant.precision.has_scales


def formats_of(plan: Plan) -> set[ModelFormat]:
    """Of the files that the plan's backends take."""
    return {backend(name).TAKES for name in plan.variants.backends}


def check_networks(plan: Plan) -> None:
    """That each network of the plan has a variant.

    Raises:
        ConfigError: one has none, or native INT8 is asked for of a network that was tuned for Q/DQ.
    """
    for network in plan.variants.networks:
        these = [variant for variant in variants(plan, "benchmark") if variant.network == network]
        if not these:
            needs = "int8 among the precisions and " if network == TUNED else ""
            raise ConfigError(
                f"{plan.path}: [variants] networks: of '{network}' nothing is made; it needs {needs}a backend that "
                "takes an ONNX model, such as onnxruntime"
            )
        for variant in these:
            if network == TUNED and is_native(plan, variant):
                raise ConfigError(
                    f"{variant.name}: native INT8 places its rounding elsewhere than it was trained for; write int8 = "
                    '"qdq" in [build], or take tuned out of [variants] networks'
                )


def stage_for(plan: Plan, variant: Variant) -> Stage | None:
    """The stage that writes the variant's precision, as its backend wants it; None where FP32 is what it takes.

    Raises:
        ConfigError: none writes it for that backend.
    """
    precision, runtime = variant.precision, backend(variant.backend)
    if is_native(plan, variant) and plan.quantize.weight_bits != FULL_BITS:
        raise ConfigError(
            f"{variant.name}: native INT8 has weights of 8 bits, and [quantize] weight_bits is "
            f'{plan.quantize.weight_bits}; write int8 = "qdq" in [build], or take 8'
        )
    if precision.is_full or is_native(plan, variant):
        return None
    try:
        stage = plan.stage_writing(precision.name, runtime.TAKES)
        if isinstance(stage, Ptq) and plan.build.edgetpu:
            stage = replace(stage, edgetpu=True)
        return stage.writing(precision.name).placed_for(runtime.PLACEMENT)
    except ConfigError as error:
        raise ConfigError(f"{variant.name}: {error}") from error


def written_model(plan: Plan, store: Store, made: Results, variant: Variant) -> ModelFile:
    """The model with the variant's precision written in it, placed as its backend wants it."""
    form = made.network_of(variant).form(backend(variant.backend).TAKES)
    if (stage := stage_for(plan, variant)) is None:
        return form.fp32
    if isinstance(form, Network) and form.quantized is not None and variant.precision.has_scales:
        return store.run(cast(ModelStage, stage), form.quantized)
    if variant.network == TUNED and isinstance(stage, Quantize):
        stage = stage.as_trained()
    if not stage.reads_ranges(variant.precision):
        return store.run(cast(ModelStage, stage), form.fp32)
    if form.ranges is None:
        raise ConfigError(f"{variant.name}: needs ranges; run `calibrate` first")
    decided: list[Artifact] = []
    if isinstance(stage, Quantize) and isinstance(form.fp32, OnnxModel):
        decided = decided_for(plan, store, made, variant, Int8Task(stage, form.fp32, form.ranges))
    return store.run(cast(ModelStage, stage), form.fp32, form.ranges, *decided)


def time_frontiers(plan: Plan, store: Store, made: Results) -> None:
    """How fast each set is that mixed precision judged, where INT8 is for a CPU."""
    for variant, mixture in made.mixtures.items():
        stage, network = stage_for(plan, variant), made.network_of(variant)
        if isinstance(stage, Quantize) and stage.is_for_cpu() and network.ranges is not None:
            work = TimeFrontier(stage.placement_options(network.fp32))
            with store.about(variant.name):
                made.frontiers[variant] = store.measure(work, network.fp32, network.ranges, made.evaluation, mixture)


def tuned_network(plan: Plan, store: Store, made: Results, variant: Variant) -> Tuned:
    """The network that is trained for the variant's INT8: the pruned one, where there is one, or else the trained one.

    Its weights and ranges are ``made.network_of(variant)`` from then on.
    """
    begin = made.networks.get(PRUNED, made.networks[TRAINED])
    stage = stage_for(plan, variant)
    assert isinstance(stage, Quantize), "is_made knows"
    assert begin.ranges is not None
    options = stage.placement_options(begin.fp32)
    if (codes := codes_of(plan, store, made, Int8Task(stage, begin.fp32, begin.ranges))) is not None:
        options = replace(options, chosen=codes_from_folder(codes))
    aim = training_aim(plan, made, plan.tune, options)
    tune = plan.tune.placed_for(backend(variant.backend).PLACEMENT)
    tuned = store.run(tune, begin.fp32, begin.ranges, tuning_samples(plan, made), aim)
    network = made.networks.setdefault(TUNED, Network(begin.fp32, begin.ranges))
    network.placed[backend(variant.backend).PLACEMENT] = Network(tuned.model, tuned.ranges)
    return tuned


def training_aim(plan: Plan, made: Results, stage: Training, placement: PlacementOptions | None = None) -> TrainingAim:
    """What networks are trained towards."""
    return TrainingAim(made.fp32, plan.data.metric, plan.data.output, plan.folder, placement, stage.loss)


def tuning_samples(plan: Plan, made: Results) -> Samples:
    """What networks are trained on."""
    assert made.calibration is not None
    return made.tuning or made.calibration


def needs_ranges(plan: Plan, form: Network | Form, until: str) -> bool:
    """Whether a run up to there reads the ranges of a model; ``calibrate`` and ``pack`` are for them.

    Of a network that came quantized INT8 does not.
    """
    stage = plan.stage(until)
    came_quantized = isinstance(form, Network) and form.quantized is not None
    if not (stage.WRITES or stage.NEEDS_ENGINES or came_quantized):
        return True
    for variant in variants(plan, until):
        if came_quantized and variant.precision.has_scales:
            continue
        if form.fp32.FORMAT == backend(variant.backend).TAKES and not variant.precision.is_full:
            writer = stage_for(plan, variant)
            if writer is None or writer.reads_ranges(variant.precision):
                return True
    return False


def ranges_of(plan: Plan, store: Store, fp32: ModelFile, samples: Samples) -> Ranges:
    """The ranges of a network, those that [[quantize.override]] sets included: in ONNX, by whose names it goes."""
    ranges = store.run(plan.calibrate, fp32, samples)
    overrides = plan.quantize.overrides_of_ranges()
    return store.run(overrides, fp32, ranges) if overrides and isinstance(fp32, OnnxModel) else ranges


def built_engine(plan: Plan, store: Store, made: Results, variant: Variant) -> Engine:
    """The engine of the variant's model, which is made already."""
    return built_or_refitted(store, plan.build, made, variant, target_of(plan, variant))


def verdict_of(plan: Plan, store: Store, made: Results, variant: Variant) -> Verdict:
    """The verdict on the variant's outputs, which are made already, by the tolerances that were derived for it."""
    assert made.reference is not None
    evidence = evidence_of(plan, made, variant)
    is_retrained = variant.network != TRAINED
    judged = Judged(judge_of(plan), variant.precision.name, evidence, made.tolerances.get(variant), is_retrained)
    return store.run(plan.validate, made.reference, made.outputs[variant], made.evaluation, judged)


def is_native(plan: Plan, variant: Variant) -> bool:
    """Whether the variant's INT8 comes from TensorRT's own calibrator."""
    return plan.build.is_native(variant.backend, variant.precision.name)


def is_reference(plan: Plan, variant: Variant) -> bool:
    """Whether its answers are compared with themselves: FP32 of the trained network, run as the reference is."""
    runtime = SIMULATOR if backend(variant.backend).why_not_run() else variant.backend
    return variant.precision.is_full and variant.network == TRAINED and runtime == plan.validate.reference


def judged_engine(plan: Plan, made: Results, variant: Variant, engine: Engine) -> Engine:
    """What answers for the engine's accuracy: itself, or where it cannot run, the simulation of its model.

    Of what is the reference the model itself: the store then serves what that answered.

    Raises:
        Unavailable: it cannot run, and its model is no simulation of it, as with native INT8.
    """
    if is_reference(plan, variant):
        return Engine(made.models[variant].path, plan.validate.reference)
    reason = backend(variant.backend).why_not_run()
    if not reason:
        return engine
    if backend(variant.backend).TAKES != OnnxModel.FORMAT:
        raise Unavailable(f"{reason}; nothing else computes what its kernels do, so it must run to be validated")
    if is_native(plan, variant):
        raise Unavailable(
            f"{variant.name}: native INT8 is in the engine alone, so that it must run to be validated ({reason}); "
            'validate it on the device, or take int8 = "qdq"'
        )
    return Engine(made.models[variant].path, SIMULATOR, simulated=True)


def evidence_of(plan: Plan, made: Results, variant: Variant) -> Evidence | TfliteEvidence | None:
    """The models behind a variant's engine; None for FP32, which is all there is, and for what no simulation follows.

    That is what has weights of 4 bits with Q/DQ, what came with operators on integers or in FP16, and a network with
    other weights, whose answers differ by more than rounding; of a bundle's `.tflite` files the float one is not there.
    """
    written, network = made.models[variant], made.network_of(variant)
    if variant.precision.is_full or variant.network != TRAINED:
        return None
    if isinstance(written, TfliteModel):
        form = network.forms.get(TfliteModel.FORMAT)
        if form is None or not isinstance(form.fp32, TfliteModel):
            return None
        return TfliteEvidence(form.fp32, written, made.evaluation, form.ranges)
    if variant.precision.is_dynamic:
        return Evidence(network.fp32, written, made.evaluation, None) if network.quantized is None else None
    if plan.quantize.weight_bits != FULL_BITS:
        return None
    model = None if is_native(plan, variant) else written
    has_its_scales = network.quantized is not None and variant.precision.has_scales
    if has_its_scales and not is_told_by_tensor(skeleton_from_file(written.path)):
        return None
    return Evidence(network.fp32, model, made.evaluation, None if has_its_scales else network.ranges)


def rounding_of(plan: Plan, made: Results, variant: Variant) -> Rounding | None:
    """What engines of this kind round, and how their ranges are read.

    None where no rules say so: scales of a network that came quantized are nobody's here, and other networks than the
    trained one differ from it by more than rounding.
    """
    if variant.network != TRAINED:
        return None
    placement = backend(variant.backend).PLACEMENT
    if not variant.precision.is_full and backend(variant.backend).TAKES != OnnxModel.FORMAT:
        return _rounding_of_tflite(plan, made, variant)
    name, network = variant.precision.name, made.network_of(variant)
    if variant.precision.is_dynamic:
        stage = stage_for(plan, variant)
        if network.quantized is not None or not isinstance(stage, Quantize) or placement == "none":
            return None
        options = stage.placement_options(network.fp32)
        bits, block = options.weight_bits, 0 if options.weight_bits == FULL_BITS else block_size(options)
        return Rounding(name, placement, options.exclude, options.arithmetic, weight_bits=bits, block_size=block)
    if not variant.precision.is_integer:
        # Of the formats only FP32's depends on the library: TensorRT's may be TF32.
        return Rounding(name, "tensorrt" if variant.precision.is_full and placement == "tensorrt" else "none")
    if network.quantized is not None or network.ranges is None:
        return None
    assert placement != "none"
    ranges = ranges_from_folder(network.ranges.path)
    assert ranges.method != TUNED_RANGES, "a tuned network is not the trained one"
    method: RangeMethod | Literal["any"] = "any" if ranges.method == IMPORTED else ranges.method
    rounding = Rounding(
        name,
        placement,
        (*plan.quantize.excluded(network.fp32), *left_in_float(made, variant)),
        "s8s8",
        method,
        ranges.percentile,
        methods_of_tensors(ranges.read_for(placement)),
    )
    if is_native(plan, variant):  # TensorRT rounds outputs too, as ONNX Runtime does.
        rounding = replace(rounding, target="onnxruntime", exclude=())  # With the ranges for TensorRT.
        by_tensorrt = plan.build.native_scales == "tensorrt"
        return replace(rounding, method="entropy", methods={}) if by_tensorrt else rounding
    corrects = any(tensor.channel_means for tensor in ranges.tensors.values())
    asked = plan.quantize
    rounding = replace(
        rounding, corrects_biases=corrects, attention=asked.attention, small_products=asked.small_products
    )
    rounding = replace(rounding, weight_bits=asked.weight_bits, block_size=asked.block_size)
    if placement == "onnxruntime":
        return replace(rounding, arithmetic=plan.quantize.chosen_arithmetic()[0])
    return rounding


def _rounding_of_tflite(plan: Plan, made: Results, variant: Variant) -> Rounding | None:
    """Of a file whose tensors are not ONNX's: which of the FP32 model's it rounds, and how its ranges were read."""
    stage, network = stage_for(plan, variant), made.network_of(variant)
    form = network.form(backend(variant.backend).TAKES)
    if not isinstance(stage, Ptq) or network.quantized is not None:
        return None
    bits, one_scale = stage.weight_bits, stage.operators_of_one_scale()
    rounding = Rounding(variant.precision.name, "tflite", weight_bits=bits, one_scale=one_scale)
    if not stage.reads_ranges(variant.precision):
        return rounding
    return None if form.ranges is None else rounding_with_ranges(rounding, form.ranges)


def left_in_float(made: Results, variant: Variant) -> tuple[str, ...]:
    """The nodes that the variant's bound keeps out of INT8."""
    return tuple(made.mixtures[variant].read()["in_float"]) if variant in made.mixtures else ()


def trained_network(plan: Plan, made: Results) -> Engine:
    """What the user brought, ready to be run."""
    return source_kind(made.source.KIND).trained(made.source, made.exported, plan.validate.reference)


def judge_of(plan: Plan) -> Judge:
    """The plan's task metric."""
    return Judge(plan.data.metric, plan.data.output, plan.folder, plan.data.detector)
