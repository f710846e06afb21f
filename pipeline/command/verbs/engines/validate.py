"""Compare an engine's outputs with those of the FP32 model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from calibration.data.batches import Samples
from pipeline.accuracy.bisection import Evidence
from pipeline.accuracy.comparison import Tolerance
from pipeline.artifact import Engine, OnnxModel, Outputs, Ranges, Tolerances
from pipeline.command.options import (
    BACKEND,
    PRECISION,
    SIMULATE,
    STORE,
    data_options,
    engine_from,
    is_plan,
    model_from,
    needed,
    output_option,
    plan_options,
    refuse_plan_options,
    samples_from,
    specs_of,
)
from pipeline.command.outcomes import ComparedOutputs, VerbOutcome
from pipeline.command.plan_run import by_plan
from pipeline.command.stage_options import NUMBER
from pipeline.errors import ConfigError
from pipeline.output import passing_folder, put
from pipeline.stages.infer import Infer
from pipeline.stages.validate import Judge, Judged, LabelFile, Labelled, Validate


@click.command()
@click.argument("reference", type=Path)
@click.argument("candidate", type=Path, required=False)
@data_options
@click.option("--metric", default="", help="accuracy metric, such as top1, f1, rmse, miou, map or module:function")
@click.option("--metric-output", default="", help="output that the metric is computed from, if there are several")
@click.option("--atol", type=NUMBER, help="largest absolute difference of an element")
@click.option("--rtol", type=NUMBER, help="largest relative difference of an element, where --atol does not hold")
@click.option("--min-cosine", type=NUMBER, help="smallest cosine similarity of the outputs")
@click.option("--min-psnr-db", type=NUMBER, help="smallest peak signal-to-noise ratio (PSNR), in dB")
@click.option("--min-sqnr-db", type=NUMBER, help="smallest signal-to-quantization-noise ratio (SQNR), in dB")
@click.option("--max-metric-drop", type=NUMBER, help="largest drop of the metric")
@click.option(
    "--tolerances", type=Path, help="file written by `trtforge tolerate` for such engines, on the same samples"
)
@click.option("--model", type=Path, help="ONNX model that CANDIDATE was built from, unless CANDIDATE is ONNX itself")
@click.option("--ranges", type=Path, help="folder written by `trtforge calibrate`, to check the model's scales against")
@BACKEND
@SIMULATE
@PRECISION
@output_option("also write the verdict to this JSON file")
@plan_options
@STORE
def validate(reference: Path, candidate: Path | None, **options: Any) -> VerbOutcome:
    """Compare the outputs of CANDIDATE with those of REFERENCE, or all engines of PLAN.toml with its FP32 model.

    Each of the two is a file of outputs (.json from `trtforge infer` or `polygraphy run --save-outputs`), or a model to
    run on --data: REFERENCE is an ONNX file run by ONNX Runtime, CANDIDATE an engine of --backend. Saved outputs can be
    compared again with other tolerances without running anything. Exit status 5 if out of tolerance; if both models
    are known, the likely layer is reported.
    """

    if is_plan(reference):
        return by_plan(reference, options["store"], "validate", options["beside_plan"])
    refuse_plan_options(options)
    return judge_files(reference, needed(candidate, "CANDIDATE", "name outputs or an engine to validate"), options)


TOLERANCES = ("atol", "rtol", "min_cosine", "min_psnr_db", "min_sqnr_db", "max_metric_drop")


def tolerance_from(precision: str, options: dict[str, Any]) -> Tolerance:
    """The tolerances for a precision, with those that were given on the command line."""
    changes = {name: options.pop(name) for name in TOLERANCES if options[name] is not None}
    return replace(Validate().tolerance(precision), **changes)


def judge_files(reference: Path, candidate: Path, options: dict[str, Any]) -> ComparedOutputs:
    """Compare a candidate with a reference."""
    precision: str = options["precision"]
    tolerance = tolerance_from(precision, options)
    stage = Validate().with_tolerance(precision, tolerance)
    judge = Judge(options["metric"], options["metric_output"], Path())
    engines = [
        None if path.suffix == ".json" else engine_from(path, backend, simulate)
        for path, backend, simulate in (
            (reference, "onnxruntime", False),
            (candidate, options["backend"], options["simulate"]),
        )
    ]
    to_run = [engine for engine in engines if engine is not None]
    with passing_folder(options["output"]) as work:
        samples = samples_from(options, specs_of(to_run[0])) if to_run else None
        labelled: Labelled | None = samples
        if samples is None and judge.name:
            labelled = _label_file(options)
        outputs = []
        for index, (path, engine) in enumerate(zip((reference, candidate), engines)):
            folder = work / str(index)
            folder.mkdir()
            outputs.append(Outputs(path) if engine is None or samples is None else Infer()(folder, engine, samples))
        evidence = evidence_from(engines, samples, options)
        tolerances = tolerances_from(options["tolerances"])
        judged = Judged(judge, precision, evidence, tolerances)
        verdict = stage(work, outputs[0], outputs[1], labelled, judged)
        record = verdict.read()
        if options["output"]:
            put(verdict.path, options["output"], work)
    return ComparedOutputs(candidate.name, record)


def evidence_from(
    engines: Sequence[Engine | None], samples: Samples | None, options: dict[str, Any]
) -> Evidence | None:
    """The models behind a candidate: its own ONNX file, or the one that was named beside it, and the reference's.

    Raises:
        ConfigError: a model or ranges are named that nothing can be done with.
    """
    reference, candidate = engines
    named: Path | None = options["model"]
    ranges: Path | None = options["ranges"]
    candidate_model = candidate.path if candidate is not None and candidate.is_onnx else None
    model = named or candidate_model
    if reference is None or not reference.is_onnx or samples is None or model is None:
        for flag, path in (("--model", named), ("--ranges", ranges)):
            if path is not None:
                raise ConfigError(
                    f"{flag}: has an effect only if REFERENCE is an ONNX file and --data is given; give both"
                )
        return None
    if model_from(model).digest() == OnnxModel(reference.path).digest():
        return None
    return Evidence(OnnxModel(reference.path), OnnxModel(model), samples, None if ranges is None else Ranges(ranges))


def tolerances_from(path: Path | None) -> Tolerances | None:
    """What `trtforge tolerate` wrote, if it was named.

    Raises:
        ConfigError: it cannot be read, or is something else.
    """
    if path is None:
        return None
    try:
        whole = {"precision", "outputs", "num_samples", "num_given", "indices", "method", "amaxes"} <= Tolerances(
            path
        ).read().keys()
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path}: cannot be read as tolerances ({error}); make them with `trtforge tolerate`"
        ) from error
    if not whole:
        raise ConfigError(f"{path}: was not written by `trtforge tolerate`; make it with that")
    return Tolerances(path)


def _label_file(options: dict[str, Any]) -> LabelFile:
    """Where labels lie for outputs that were saved."""
    path = Path(
        needed(options["data"], "--data", "the metric compares with labels; name the .npz or .npy that has them")
    )
    if path.suffix == ".npz":
        needed(options["labels"], "--labels", f"name the key of the labels in {path}")
    return LabelFile(path, options["labels"])
