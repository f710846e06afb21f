"""Try what would hold where an INT8 engine is out of bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from calibration.ranges.ranges import IMPORTED
from calibration.ranges.ranges_file import ranges_from_folder
from engines import backend
from engines.backends import litert
from engines.onnx_model import facts
from pipeline.advice.recommendation import is_within
from pipeline.artifact import TRAINED, ModelFile, TfliteModel
from pipeline.errors import NothingQuantized
from pipeline.json_record import finite
from pipeline.plan import Plan
from pipeline.record import Remedy
from pipeline.remedies.tflite_trials import TfliteTrial, tflite_trials
from pipeline.remedies.trials import Trial, trials
from pipeline.results import Results, Variant
from pipeline.store import Store
from pipeline.variants import (
    built_engine,
    is_native,
    judged_engine,
    rounding_of,
    verdict_of,
    written_model,
)


def find_remedies(plan: Plan, store: Store, made: Results) -> None:
    """For each INT8 variant that is out of bounds, set ``made.remedies``: the first trial that holds, or that none did.

    Out of bounds is what failed validation, or dropped by more than the report accepts.
    """
    for variant, verdict in made.verdicts.items():
        if plan.report.num_remedies and _can_be_tried(plan, made, variant) and not _holds(plan, verdict.read()):
            with store.about(f"{variant.name}, what would hold"):
                made.remedies[variant] = _remedy(plan, store, made, variant)


def _can_be_tried(plan: Plan, made: Results, variant: Variant) -> bool:
    """Whether INT8 is written into a model here, from ranges that were measured here."""
    if not variant.precision.has_scales or is_native(plan, variant) or made.calibration is None:
        return False
    if variant.network != TRAINED:
        return False
    ranges = made.network_of(variant).form(backend(variant.backend).TAKES).ranges
    return ranges is not None and ranges_from_folder(ranges.path).method != IMPORTED


def _holds(plan: Plan, verdict: Mapping[str, Any]) -> bool:
    drop = finite(verdict["metric_drop"])
    return bool(verdict["passed"]) and (drop is None or is_within(drop, plan.report.max_metric_drop))


def _remedy(plan: Plan, store: Store, made: Results, variant: Variant) -> Remedy:
    tried: list[str] = []
    for trial in islice(_ways(plan, store, made, variant), plan.report.num_remedies):
        try:
            model, verdict = _judged(plan, store, made, variant, trial)
        except NothingQuantized:
            break
        result = f"{trial.words()}: {_result(plan, verdict)}"
        if _holds(plan, verdict):
            num_left, num_now = (_num_in_integers(each) for each in (model, made.models[variant]))
            sentence = (
                f"{variant.name} would hold with {result}; INT8 then computes {num_left} of the convolutions and "
                f"matrix products, {num_now} now. Write into the plan:"
            )
            return Remedy(True, sentence, trial.toml(), tuple(tried), finite(verdict["metric"]))
        tried.append(result)
    if not tried:
        return Remedy(False, f"{variant.name}: there is no other way to try.", "", (), None)
    sentence = (
        f"{variant.name} is still out of bounds with {'; with '.join(tried)}. Look at its layers with `trtforge "
        "bisect`, calibrate on more samples like those it will see, or stay with a higher precision."
    )
    return Remedy(False, sentence, "", tuple(tried), None)


def _ways(plan: Plan, store: Store, made: Results, variant: Variant) -> Iterator[Trial | TfliteTrial]:
    """By the format of its file."""
    if isinstance(made.models[variant], TfliteModel):
        return tflite_trials(plan, store, made, variant)
    return trials(plan, store, made, variant)


def _result(plan: Plan, verdict: Mapping[str, Any]) -> str:
    """The numbers of a trial."""
    parts = []
    if finite(verdict["metric"]) is not None:
        parts.append(f"{plan.data.metric} {verdict['metric']:.4f} against {verdict['reference_metric']:.4f} of FP32")
    ratios = {name: finite(row["sqnr_db"]) for name, row in verdict["comparison"].items()}
    known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    if known:
        worst = min(known, key=lambda name: known[name])
        parts.append(f"output '{worst}' has an SQNR of {known[worst]:.1f} dB")
    return ", ".join(parts) or ("passed" if verdict["passed"] else "failed")


def _num_in_integers(model: ModelFile) -> int:
    """Convolutions and matrix products."""
    if isinstance(model, TfliteModel):
        return len(litert.tflite_facts(model.path).in_integers())
    return facts(model.path).num_quantized


def _judged(
    plan: Plan, store: Store, made: Results, variant: Variant, trial: Trial | TfliteTrial
) -> tuple[ModelFile, Mapping[str, Any]]:
    """The trial's model and verdict, by the plan with its changes; tolerances are derived for it as well.

    Raises:
        NothingQuantized: it leaves nothing in INT8.
    """
    tried_plan = replace(trial.plan(plan), validate=replace(plan.validate, num_bisected=0))
    network = trial.network(made.network_of(variant))
    tried = replace(made, networks={**made.networks, variant.network: network}, models={}, outputs={}, tolerances={})
    model = written_model(tried_plan, store, tried, variant)
    tried.models[variant] = model
    engine = made.engines[variant]
    if not backend(variant.backend).why_not_run():  # Else it is judged by a simulation of its model.
        engine = built_engine(tried_plan, store, tried, variant)
    judged = judged_engine(tried_plan, tried, variant, engine)
    tried.outputs[variant] = store.run(plan.infer, judged, made.evaluation)
    verdict = verdict_of(tried_plan, store, tried, variant).read()
    if _holds(plan, verdict) and variant in made.tolerances:
        rounding = rounding_of(tried_plan, tried, variant)
        assert rounding is not None, "tolerances were derived for it before"
        tried.tolerances[variant] = store.run(plan.tolerate, network.fp32, made.evaluation, rounding)
        verdict = verdict_of(tried_plan, store, tried, variant).read()
    return model, verdict
