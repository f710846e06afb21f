"""The whole pipeline in one function: what is made from what.

The store does the remembering: each line either makes its result or is served it, and the lines after it never know.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from calibration.data.batches import Samples, input_specs_from_onnx, open_samples
from calibration.lint.findings import raise_errors
from engines import backend
from pipeline.artifact import (
    PRUNED,
    TRAINED,
    TUNED,
    Engine,
    Findings,
    OnnxModel,
    TfliteModel,
)
from pipeline.builder.plugins import name_plugins
from pipeline.bundle import open_bundle, tolerance_key
from pipeline.engine_runner import SIMULATOR
from pipeline.errors import ConfigError, Unavailable
from pipeline.latency.together import those_timed
from pipeline.placing.channels import ScaleChannels
from pipeline.plan import Plan
from pipeline.preflight.operators import ask_all, check_operators
from pipeline.preflight.plan import check_labels, check_plan, check_shapes
from pipeline.refitting.engines import fill_engines
from pipeline.results import Form, Network, Results
from pipeline.signing.options import signing_notes, trust
from pipeline.signing.statement import sign_in_store
from pipeline.sources.contract import check_convertible, source_from_path
from pipeline.stages.calibrate import check_float
from pipeline.stages.lint import Evaluated
from pipeline.stages.tolerate import LEAST_SAMPLES
from pipeline.store import Store
from pipeline.trained.export_check import check_export
from pipeline.trained.networks import network_from, notes_on
from pipeline.trained.pixels import pixels_of, resolved_source, samples_from, samples_of_trained
from pipeline.variants import (
    built_engine,
    formats_of,
    is_reference,
    judged_engine,
    needs_ranges,
    ranges_of,
    rounding_of,
    time_frontiers,
    trained_network,
    training_aim,
    tuned_network,
    tuning_samples,
    variants,
    verdict_of,
    written_model,
)

log = logging.getLogger(__name__)


def run(plan: Plan, store: Store, until: str) -> Results:
    """Run the plan's stages, in order, up to and with the stage ``until``; only what changed is made.

    Raises:
        CheckFailed: the exported model does not answer as the trained network does. Nothing is built on it.
        ConfigError, DataError, Unavailable, StageError, ModelError, EngineError: see the stages.
    """
    name_plugins([plan.resolved(name) for name in plan.build.plugins])
    check_plan(plan, until)
    trust([plan.resolved(key) for key in plan.sign.trusted])
    signing_key = plan.sign.key()
    made = models_of_bundle(plan, store) if plan.packed.manifest else models_of(plan, store, until)
    made.notes += map(changed_key, plan.settings)
    if not plan.stage(until).NEEDS_ENGINES:
        return made
    for variant in made.models:
        with store.about(variant.name):
            made.engines[variant] = built_engine(plan, store, made, variant)
            if signing_key is not None:
                sign_in_store(made.engines[variant].path, signing_key, store.folder)
    made.notes += signing_notes([variant.name for variant in made.engines if backend(variant.backend).GPU], signing_key)
    if until == "build":
        return made
    fill_engines(store, plan.build, made, signing_key)

    for variant, engine in made.engines.items():
        with store.about(variant.name):
            made.outputs[variant] = store.run(plan.infer, judged_engine(plan, made, variant, engine), made.evaluation)
    if until == "infer":
        return made

    for variant in made.outputs:
        with store.about(variant.name):
            made.verdicts[variant] = verdict_of(plan, store, made, variant)
    if plan.times_engines(until):
        time_engines(plan, store, made)
    return made


def changed_key(setting: str) -> str:
    """The note on a key that the command line gave another value."""
    return f"The command line changed a key of the plan: --set {setting}"


def models_of(plan: Plan, store: Store, until: str) -> Results:
    """The first half of a run: from the trained network to the ONNX models, or as far as ``until``."""
    source = source_from_path(plan.resolved(plan.model.source), plan.model.signature)
    pixels = pixels_of(plan)
    if TfliteModel.FORMAT in formats_of(plan):
        check_convertible(source)
    exported = store.run(plan.export, source, *pixels)
    network, float_source = network_from(plan, store, exported, until)
    fp32 = network.fp32
    calibration, evaluation = _samples(plan, network, until)
    check_shapes(plan, evaluation, until)
    is_all = until == "support"
    support = ask_all(plan, store, network) if is_all else check_operators(plan, store, network, until)
    if until not in ("export", "support", "lint"):
        check_float(fp32, source.path)
    check_labels(plan, evaluation)
    if until in ("benchmark", "gate"):
        plan.benchmark.check_samples(evaluation)
    if plan.export.equalize and calibration is not None and until != "support":
        network.as_exported = fp32
        network.fp32 = fp32 = store.run(ScaleChannels(plan.tolerate.num_threads), fp32, calibration)
    made = Results(source, {TRAINED: network}, calibration, evaluation, _tuning_samples(plan, fp32))
    made.float_source, made.support = float_source, support
    made.trained_evaluation = samples_of_trained(plan, exported)
    if until == "support":
        return made
    made.notes += notes_on(plan, network)
    with store.about("the reference"):
        made.reference = store.run(plan.infer, Engine(fp32.path, plan.validate.reference), made.evaluation)
    check_export(plan, store, made)
    if until == "export":
        return made

    evaluated = Evaluated(made.evaluation, made.reference, plan.data.output) if calibration else None
    made.findings = store.run(plan.lint, fp32, calibration or evaluation, evaluated, made.tuning)
    if until == "lint":
        return made

    check_findings(plan, made.findings)
    write_models(plan, store, made, until)
    return made


def write_models(plan: Plan, store: Store, made: Results, until: str) -> None:
    """From the FP32 model and samples that were checked to all models, or as far as ``until``."""
    convert_networks(plan, store, made)
    if until == "convert":
        return
    if PRUNED in plan.variants.networks:
        pruned = store.run(plan.prune, made.fp32, tuning_samples(plan, made), training_aim(plan, made, plan.prune))
        made.networks[PRUNED] = Network(pruned)
    if until == "prune":
        return
    for form in [form for network in made.networks.values() for form in network.all_forms()]:
        if not needs_ranges(plan, form, until):
            continue
        assert made.calibration is not None, "_samples has seen to it"
        form.ranges = ranges_of(plan, store, form.fp32, made.calibration)
        for note in form.ranges.notes():
            log.warning("%s", note)
    if until == "calibrate":
        return

    for variant in variants(plan, until):
        with store.about(variant.name):
            if variant.network == TUNED:
                made.tuned[variant] = tuned_network(plan, store, made, variant)
            if until != "tune":
                made.models[variant] = written_model(plan, store, made, variant)
    if plan.stage(until).NEEDS_TOLERANCES:
        derive(plan, store, made, until)


def convert_networks(plan: Plan, store: Store, made: Results) -> None:
    """Make the `.tflite` file of the trained network, where a backend takes such."""
    if TfliteModel.FORMAT in formats_of(plan):
        converted = store.run(plan.convert, trained_network(plan, made))
        made.networks[TRAINED].forms[TfliteModel.FORMAT] = Form(converted)


def models_of_bundle(plan: Plan, store: Store) -> Results:
    """The first half of a run, done by another machine and packed: checked, and used as it is.

    Raises:
        ConfigError: the bundle lacks a model that the plan asks for, or the samples that native INT8 asks for.
        DataError: a file of it is not what was packed.
        Unavailable: an engine could neither be run here nor simulated.
    """
    bundle = open_bundle(plan.resolved(plan.packed.manifest), plan.output_folders())
    fp32 = bundle.fp32()
    specs = input_specs_from_onnx(fp32.path)
    evaluation = open_samples(resolved_source(plan, plan.data.evaluation), specs, plan.data.preprocess, plan.folder)
    check_shapes(plan, evaluation, "build")
    support = check_operators(plan, store, Network(fp32, bundle.ranges()), "build")
    check_labels(plan, evaluation)
    plan.benchmark.check_samples(evaluation)
    networks = {name: Network(fp32, bundle.ranges()) for name in (TRAINED, *plan.variants.networks)}
    made = Results(fp32, networks, None, evaluation, None, bundle, bundle.verdict(), bundle.reference())
    made.support, made.findings = support, bundle.findings()
    made.notes += bundle.manifest.notes
    for variant in variants(plan, "benchmark"):
        native = plan.build.is_native(variant.backend, variant.precision.name)
        if native and plan.build.native_scales == "tensorrt":
            raise ConfigError(
                f"{plan.path}: [build] native_scales is tensorrt, but a bundle has no calibration samples; use ranges"
            )
        if native and bundle.ranges() is None:
            raise ConfigError(
                f"{plan.path}: [build] int8 is native, but the network came quantized, and its scales stay; write int8 "
                '= "qdq"'
            )
        runtime, network = backend(variant.backend), variant.network
        placement, name = runtime.PLACEMENT, variant.precision.name
        made.models[variant] = fp32 if native else bundle.model(name, placement, network, runtime.TAKES)
        if network == TRAINED and plan.validate.tolerance(name).derived:
            if (tolerances := bundle.tolerances(tolerance_key(variant.precision.name, runtime, native))) is not None:
                made.tolerances[variant] = tolerances
            elif bundle.manifest.tolerances:
                made.notes.append(
                    f"{variant.name}: is validated without derived tolerances: the bundle has none for it"
                )
        reason = runtime.why_not_run()
        if reason and backend(SIMULATOR).why_not_run():
            raise Unavailable(f"{reason}; and without onnxruntime its accuracy cannot be simulated either")
    return made


def time_engines(plan: Plan, store: Store, made: Results) -> None:
    """Time the engines that run on this machine, all in one measurement; say of the others why not."""
    timed = {}
    for variant, engine in made.engines.items():
        if reason := backend(variant.backend).why_not_run():
            made.not_timed[variant] = reason
        else:
            timed[variant.name] = engine
    if timed:
        together, note = those_timed(plan.benchmark.together, list(timed))
        made.notes += [note] * bool(note)
        made.timings = store.measure(replace(plan.benchmark, together=together), timed, made.evaluation)
    time_frontiers(plan, store, made)


def derive(plan: Plan, store: Store, made: Results, until: str) -> None:
    """Derive tolerances for the variants that the plan holds to them, from enough samples.

    None for what will be compared with itself here.
    """
    wanted = [
        variant
        for variant in made.models
        if variant.network == TRAINED
        and plan.validate.tolerance(variant.precision.name).derived
        and not (plan.stage(until).NEEDS_ENGINES and is_reference(plan, variant))
    ]
    num = made.evaluation.num_samples
    if wanted and num < LEAST_SAMPLES:
        made.notes.append(
            f"Tolerances are not derived: {num} evaluation samples are too few to determine ranges, at least "
            f"{LEAST_SAMPLES} are needed."
        )
        return
    unknown = [variant.name for variant in wanted if rounding_of(plan, made, variant) is None]
    if unknown:
        made.notes.append(
            f"Tolerances are not derived for {', '.join(unknown)}: what is rounded there is not known from the ONNX "
            "model; [validate] alone holds them."
        )
    for variant in wanted:
        if (rounding := rounding_of(plan, made, variant)) is None:
            continue
        fp32 = made.network_of(variant).fp32
        with store.about(variant.name):
            made.tolerances[variant] = store.run(plan.tolerate, fp32, made.evaluation, rounding)


def _samples(plan: Plan, network: Network, until: str) -> tuple[Samples | None, Samples]:
    """Calibration samples, where the plan names some, and evaluation samples, checked against the model's inputs.

    Raises:
        ConfigError: it names none, and something is to be calibrated.
    """
    calibration, evaluation = (
        None if source is None else samples_from(plan, source, network.fp32)
        for source in (plan.data.calibration, plan.data.evaluation)
    )
    assert evaluation is not None, "a plan names some"
    if calibration is None and (network.quantized is None or needs_ranges(plan, network, until)):
        raise ConfigError(
            f"{plan.path}: [data] names no calibration samples, and only INT8 of a network that came quantized needs "
            'none; add calibration = { path = "..." }, samples like those that it will see'
        )
    return calibration, evaluation


def _tuning_samples(plan: Plan, fp32: OnnxModel) -> Samples | None:
    """What [data.tuning] names, where a network is trained on it."""
    source = plan.data.tuning
    if source is None or {PRUNED, TUNED}.isdisjoint(plan.variants.networks):
        return None
    return samples_from(plan, source, fp32)


def check_findings(plan: Plan, findings: Findings) -> None:
    """Say on stderr what the lint found, before the samples are run for an hour.

    Raises:
        DataError: an error that [lint] allow does not name.
    """
    all_findings = findings.read()
    raise_errors(all_findings, plan.lint.allow)
    for finding in all_findings:
        log.warning("%s: %s", finding.code, finding.sentence)
