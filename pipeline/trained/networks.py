"""A network that came quantized: what is compared with it, and what a plan cannot ask of it."""

from __future__ import annotations

from calibration.data.batches import input_specs_from_onnx
from calibration.errors import ModelError
from calibration.graph.external_data import model_from_file
from calibration.graph.weightless import skeleton_from_file
from calibration.quantized.grids import check_quantized, is_quantized
from engines import backend, builders
from engines.precision import precision_named
from pipeline.accuracy.unrounded import RemoveRounding
from pipeline.artifact import TRAINED, OnnxModel, Source
from pipeline.errors import ConfigError
from pipeline.plan import Plan
from pipeline.results import Network
from pipeline.sources.contract import source_from_path
from pipeline.stages.quantize import Quantize
from pipeline.store import Store
from pipeline.variants import stage_for, variants


def network_from(plan: Plan, store: Store, exported: OnnxModel, until: str) -> tuple[Network, Source | None]:
    """The trained network in FP32, and quantized where it came so; and the source of FP32 where the plan names one.

    INT8 is written before anything is run, as it is known by then whether it can be.

    Raises:
        ConfigError: the plan asks for what has no meaning for such a network, or for one in FP32.
        ModelError: it has no FP32 behind it, or its INT8 is none that a backend takes.
    """
    if not is_quantized(skeleton_from_file(exported.path)):
        if plan.model.float_source:
            raise ConfigError(
                f"{plan.path}: [model] float_source: {plan.model.source} did not come quantized, so that it has no "
                "effect; leave it out"
            )
        plan.quantize.check_for_float(plan.model.source)
        return Network(exported), None
    check_plan_of_quantized(plan, until)
    try:
        check_quantized(model_from_file(exported.path))
    except ModelError as error:
        raise ModelError(f"{plan.model.source}: {error}") from error
    _write_int8(plan, store, exported, until)
    if not plan.model.float_source:
        return Network(store.run(RemoveRounding(), exported), quantized=exported), None
    source = source_from_path(plan.resolved(plan.model.float_source), plan.model.signature)
    with store.about("float_source"):
        fp32 = store.run(plan.export, source)
    if is_quantized(skeleton_from_file(fp32.path)):
        raise ConfigError(f"{source.path}: [model] float_source came quantized itself; name the FP32 network")
    _check_alike(exported, fp32, source)
    return Network(fp32, quantized=exported), source


def model_for_backend(plan: Plan, store: Store, network: Network, name: str, until: str) -> OnnxModel:
    """What is asked of a backend: of a network that came quantized its INT8, placed as it is built; else FP32."""
    for each in variants(plan, until):
        if network.quantized is not None and each.backend == name and each.precision.has_scales:
            stage = stage_for(plan, each)
            assert isinstance(stage, Quantize), "check_plan_of_quantized knows"
            with store.about(each.name):
                return store.run(stage, network.quantized)
    return network.fp32


def notes_on(plan: Plan, network: Network) -> list[str]:
    """What a reader of the results has to know of a network that came quantized."""
    if network.quantized is None:
        return []
    head = f"The network came quantized ({plan.model.source}): INT8 is that file, and nothing was calibrated for it."
    if plan.model.float_source:
        return [f"{head} FP32, with which it is compared, is [model] float_source ({plan.model.float_source})."]
    return [
        f"{head} What is called FP32 is the file without its rounding, weights and bounds as they are in the file: the "
        "FP32 network that it was made of was not compared, and what rounding its weights and bounding its data cost "
        "is not seen; name it as [model] float_source."
    ]


def _write_int8(plan: Plan, store: Store, exported: OnnxModel, until: str) -> None:
    """For each backend; served when it is asked for again."""
    stages = {stage_for(plan, each): each for each in variants(plan, until) if each.precision.has_scales}
    for stage, variant in stages.items() if until not in ("export", "lint") else ():
        assert isinstance(stage, Quantize), "check_plan_of_quantized knows"
        try:
            with store.about(variant.name):
                store.run(stage, exported)
        except ModelError as error:
            raise ModelError(str(error).replace(str(exported.path), plan.model.source)) from error


def check_plan_of_quantized(plan: Plan, until: str) -> None:
    """That a plan asks of a network that came quantized what can be made of it.

    Raises:
        ConfigError: it does not.
    """
    where, source = plan.path, plan.model.source
    give = "give the FP32 network as [model] source"
    for network in plan.variants.networks:
        if network != TRAINED:
            raise ConfigError(
                f"{where}: [variants] networks: '{network}' is made of FP32 weights, and {source} came quantized; take "
                f"it out, and its table, or {give}"
            )
    takers = [name for name in builders() if backend(name).TAKES == OnnxModel.FORMAT]
    for name in plan.variants.backends:
        if name not in takers:
            raise ConfigError(
                f"{where}: [variants] backends: {name} takes no ONNX file, and {source} came quantized, which is built "
                f"as it is; take one of {', '.join(takers)}, or {give}"
            )
    for precision in map(precision_named, plan.variants.precisions):
        if precision.is_integer and not precision.has_scales:
            raise ConfigError(
                f"{where}: [variants] precisions: {precision.name} is made of FP32 weights, and {source} came "
                f"quantized; take it out, or {give}"
            )
        for name in plan.variants.backends:
            if plan.build.is_native(name, precision.name):
                raise ConfigError(
                    f"{where}: [build] int8 is native, by which TensorRT finds scales anew, and {source} came "
                    'quantized; write int8 = "qdq", or ' + give
                )
    if plan.export.equalize:
        raise ConfigError(f"{where}: [export] equalize: {source} came quantized, its weights stay; leave it out")
    plan.quantize.check_for_quantized(source)
    if plan.pack.caches and until == "pack":
        raise ConfigError(
            f"{where}: [pack] caches: are made of calibrated ranges, and {source} came quantized; leave them out"
        )
    precisions = map(precision_named, plan.variants.precisions)
    has_float = any(precision.needs_ranges and not precision.has_scales for precision in precisions)
    if until == "calibrate" and not has_float:
        raise ConfigError(
            f"{where}: there is nothing to calibrate: {source} came quantized, and its scales stay; `trtforge run` "
            "builds it"
        )


def _check_alike(quantized: OnnxModel, fp32: OnnxModel, source: Source) -> None:
    """That both networks take and give the same tensors."""
    theirs, ours = (
        {spec.name: (spec.dtype, len(spec.shape)) for spec in input_specs_from_onnx(model.path)}
        for model in (quantized, fp32)
    )
    outputs = [[value.name for value in skeleton_from_file(m.path).graph.output] for m in (quantized, fp32)]
    sides = (("input", list(theirs), list(ours)), ("output", *outputs))
    for what, wanted, names in sides:
        if sorted(wanted) != sorted(names):
            raise ConfigError(
                f"{source.path}: [model] float_source has the {what}s {', '.join(names)}, those of the quantized "
                f"network are {', '.join(wanted)}; name the network that it was made of"
            )
    if different := [name for name in theirs if theirs[name] != ours[name]]:
        raise ConfigError(
            f"{source.path}: [model] float_source takes '{different[0]}' as {ours[different[0]][0]} of "
            f"{ours[different[0]][1]} dimensions, the quantized network as {theirs[different[0]][0]} of "
            f"{theirs[different[0]][1]}; name the network that it was made of"
        )
