"""What `cast` and `quantize` have in common: a model and ranges in, a model out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibration.data.batches import Samples, input_specs_from_onnx
from calibration.graph.weightless import skeleton_from_file
from calibration.quantized.grids import is_quantized
from calibration.ranges.ranges import AUTO, RangeMethod
from calibration.ranges.ranges_file import histograms_from_folder, ranges_from_folder, write_ranges
from pipeline.accuracy.weight_rounding import RoundWeights
from pipeline.artifact import OnnxModel, PlacementTimes, Ranges, WeightCodes
from pipeline.command.options import (
    DATA_FLAGS,
    given_options,
    is_plan,
    model_from,
    needed,
    samples_from,
)
from pipeline.command.outcomes import Made, VerbOutcome
from pipeline.command.plan_run import by_plan
from pipeline.command.sample_check import check_samples
from pipeline.command.stage_options import stage_from_options
from pipeline.errors import ConfigError
from pipeline.output import check_file_target, make, work_folder
from pipeline.placing.decided import timing_for
from pipeline.stages.calibrate import Calibrate, check_float
from pipeline.stages.cast import Cast
from pipeline.stages.quantize import Quantize


def ranges_for(model: OnnxModel, options: dict[str, Any], work: Path) -> tuple[Ranges, Samples | None]:
    """The ranges that were given, or found now from the data that was given, which is the second.

    Raises:
        ConfigError: both were given; one would have no effect.
    """
    if options["ranges"]:
        if beside := [flag for flag in given_options() if flag in (*DATA_FLAGS, "--allow") and flag != "--method"]:
            raise ConfigError(f"{beside[0]}: has no effect together with --ranges; drop one of the two")
        if "--method" in given_options():
            return reread(options["ranges"], options["method"], work), None
        return Ranges(options["ranges"]), None
    samples = samples_from(options, input_specs_from_onnx(model.path))
    check_samples(model, samples, options["allow"])
    return Calibrate(method=options["method"])(work, model, samples), samples


def reread(folder: Path, method: RangeMethod, work: Path) -> Ranges:
    """Ranges by another method, from the same histograms.

    Raises:
        ConfigError: auto was asked for, which needs samples; DataError: the ranges are damaged, or were imported.
    """
    if method == AUTO:
        raise ConfigError("--method auto: runs the model on samples; give --data instead of --ranges")
    ranges = ranges_from_folder(folder)
    (work / "ranges").mkdir()
    by_method = ranges.read_by(method, dict.fromkeys(ranges.tensors, method))
    write_ranges(by_method, histograms_from_folder(folder), work / "ranges")
    return Ranges(work / "ranges")


def refuse_data(stage: Quantize, why: str) -> None:
    """That nothing is named which what needs no ranges has no use for.

    Raises:
        ConfigError: something is.
    """
    idle = [flag for flag in given_options() if flag in (*DATA_FLAGS, "--allow", "--ranges")]
    idle += ["--override of ranges"] * bool(stage.overrides_of_ranges())
    if idle:
        raise ConfigError(f"{idle[0]}: has no effect {why} and needs no data; drop it")


def rewrite(verb: str, stage: Cast | Quantize, model: Path, options: dict[str, Any]) -> VerbOutcome:
    """What `cast` and `quantize` have in common: a model and ranges in, a model out."""
    if is_plan(model):
        return by_plan(model, options["store"], verb, options["beside_plan"])
    opened = model_from(model)
    stage = stage_from_options(stage, options)
    output = needed(options["output"], "-o", "name the ONNX file to write")
    check_file_target(output)
    if isinstance(stage, Quantize) and is_quantized(skeleton_from_file(opened.path)):
        refuse_data(stage, f"for {model}, which came quantized")
        return Made(make(output, lambda out: stage(out, opened)))
    if isinstance(stage, Quantize) and not options["ranges"]:  # Else it is said at once, by the stage.
        check_float(opened)
    if isinstance(stage, Quantize) and stage.is_dynamic():
        refuse_data(stage, f"with --precision {stage.precision}, which is written without ranges")
        return Made(make(output, lambda out: stage(out, opened)))
    if isinstance(stage, Quantize) and stage.rounds_by_data() and options["ranges"]:
        raise ConfigError(
            f"--rounding {stage.rounding}: weights are rounded by samples; give --data instead of --ranges"
        )
    with work_folder(output) as work:
        ranges, samples = ranges_for(opened, options, work)
        measure = timing_for(stage, opened, samples)
        decided: list[PlacementTimes | WeightCodes] = [] if measure is None else [measure(work, opened, ranges)]
        if isinstance(stage, Quantize) and stage.rounds_by_data() and samples is not None:
            decided.append(RoundWeights(stage.placement_options(opened))(work, opened, ranges, samples))
        return Made(make(output, lambda out: stage(out, opened, ranges, *decided)))
