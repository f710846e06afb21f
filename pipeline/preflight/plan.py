"""What is bound to fail fails before anything is made: a plan beside this machine, its model and its samples."""

from __future__ import annotations

from calibration.data.batches import Samples
from calibration.precision.placement import FULL_BITS
from engines import backend
from engines.model_format import ModelFormat
from engines.torch_graph import library
from pipeline.artifact import PRUNED, TUNED, OnnxModel, TfliteModel
from pipeline.errors import ConfigError, Unavailable
from pipeline.latency.together import members_from
from pipeline.machine.power_mode import asked_models
from pipeline.plan import STAGES, Plan
from pipeline.preflight.shape_ranges import check_shape_ranges
from pipeline.results import Variant
from pipeline.spelling import nearest
from pipeline.stages import benchmark
from pipeline.variants import check_networks, formats_of, judge_of, stage_for, target_of, variants


def check_plan(plan: Plan, until: str) -> None:
    """What is bound to fail fails now, not after an hour of work.

    Raises:
        Unavailable: a backend cannot build on this machine, or not what [build] asks for; or nobody here may change
            the power mode that [benchmark] asks for.
        ConfigError: the models of a bundle are requested, there is no such metric, a backend takes no model of a
            precision, [build] has what no backend takes, the device has no such power mode, or the report's folder
            holds something else.
    """
    if plan.packed.manifest and not plan.stage(until).NEEDS_ENGINES:
        raise ConfigError(
            f"{plan.path}: is the plan of a bundle, its models are already made: there is nothing to {until}"
        )
    if plan.data.metric:
        judge_of(plan).metric()
    plan.build.check_backends(plan.variants.backends)
    check_networks(plan)
    if plan.trains() and (reason := library.why_not()):
        raise Unavailable(f"{plan.path}: networks are to be trained, and {reason}; or drop [tune] and [prune] epochs")
    for verb, network in (("prune", PRUNED), ("tune", TUNED)):
        if until == verb and network not in plan.variants.networks:
            raise ConfigError(f"{plan.path}: has no table [{verb}]; add it, empty if its defaults will do")
    if plan.build.edgetpu and plan.convert.batch_size != 1:
        raise ConfigError(
            f"{plan.path}: [build] edgetpu is true, but [convert] batch_size is {plan.convert.batch_size}: the Edge "
            "TPU takes one sample at a time; set it to 1"
        )
    if until == "convert" and TfliteModel.FORMAT not in formats_of(plan):
        raise ConfigError(f"{plan.path}: no backend of [variants] takes a .tflite file; add one, such as litert")
    if OnnxModel.FORMAT not in formats_of(plan):
        _check_nothing_of_onnx(plan)
    _check_precisions(plan, until)
    if plan.stage(until).NEEDS_ENGINES:
        _check_engines(plan, until)
    members_from(plan.benchmark.together, [variant.name for variant in variants(plan, "benchmark")])
    if until == "benchmark":
        plan.report.check_folder(plan.output_folder(plan.report))


def _check_nothing_of_onnx(plan: Plan) -> None:
    """That nothing of [quantize] is asked for that has no effect on other files."""
    excludes = "list operators of the .tflite file in [ptq] exclude"
    asked = (
        ("[[quantize.override]]", plan.quantize.override, "leave it out"),
        ("[quantize] exclude", plan.quantize.exclude, excludes),
        ("[quantize] weight_bits", plan.quantize.weight_bits != FULL_BITS, "write it in [ptq]"),
        ("[quantize] min_sqnr_db and max_metric_drop", plan.quantize.is_bounded(), excludes),
    )
    for key, is_asked, what_to_do in asked:
        if is_asked:
            raise ConfigError(
                f"{plan.path}: {key} goes by the nodes of an ONNX model, and no backend of [variants] takes one; "
                f"{what_to_do}"
            )


def _check_precisions(plan: Plan, until: str) -> None:
    """That each backend has each precision, and that a verb which writes models writes one."""
    stage, these = plan.stage(until), list(variants(plan, until))
    if stage.WRITES:
        these += [each for each in variants(plan, "benchmark") if _is_of_nobody(plan, each, stage.FORMAT)]
    for variant in these:
        try:
            stage_for(plan, variant)
        except ConfigError as error:
            of_bundle = f"; a bundle is for [pack] backends, {', '.join(plan.variants.backends)}" * (until == "pack")
            raise ConfigError(f"{error}{of_bundle}") from error
    if stage.WRITES and not these:
        raise ConfigError(
            f"{plan.path}: [variants] has nothing that `{until}` writes, which is {', '.join(stage.WRITES)} in "
            f"{stage.FORMAT} files; add such a precision and backend, or take another verb"
        )


def _is_of_nobody(plan: Plan, variant: Variant, wanted: ModelFormat) -> bool:
    """Whether no stage writes the precision into files of that format, which its backend takes."""
    if variant.precision.is_full or wanted != backend(variant.backend).TAKES:
        return False
    return not any(
        variant.precision.name in stage.WRITES and wanted == stage.FORMAT for stage in map(plan.stage, STAGES)
    )


def _check_engines(plan: Plan, until: str) -> None:
    """That they can be built here, and timed as the plan asks for it."""
    for variant in variants(plan, until):
        if reason := backend(variant.backend).why_not_build():
            raise Unavailable(reason)
        plan.build.refuse(target_of(plan, variant))
    if plan.times_engines(until):
        asked_models(benchmark.ROOT, plan.benchmark.power_mode)


def check_labels(plan: Plan, samples: Samples) -> None:
    """That the metric can read the labels.

    Raises:
        ConfigError, DataError: there are none, or of another kind.
    """
    judge = judge_of(plan)
    if judge.name:
        judge.metric().check_labels(None if samples.reader.labels() is None else samples.labels())


def check_shapes(plan: Plan, samples: Samples, until: str) -> None:
    """That [model.inputs] and [[model.profiles]] fit the model.

    Raises:
        ConfigError: they name an input that the model does not have, or lack one that an engine cannot be built
            without.
    """
    known = [spec.name for spec in samples.specs]
    tables = [("model.inputs", plan.model.inputs), *(("model.profiles", shapes) for shapes in plan.model.profiles)]
    for table, shapes in tables:
        for name in shapes:
            if name not in known:
                raise ConfigError(f"{plan.path}: [{table}] the model has no input '{name}'{nearest(name, known)}")
    if plan.stage(until).NEEDS_ENGINES:
        check_shape_ranges(plan, samples)
