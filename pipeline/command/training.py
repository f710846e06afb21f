"""What the verbs that train have in common: what a network is trained towards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from calibration.precision.placement import PlacementOptions
from engines.torch_graph import library
from pipeline.artifact import OnnxModel
from pipeline.command.options import model_from
from pipeline.errors import Unavailable
from pipeline.training.options import TrainingAim

F = TypeVar("F", bound=Callable[..., Any])


def aim_options(function: F) -> F:
    """--teacher, --metric and --metric-output."""
    for option in (
        click.option("--metric-output", default="", help="output that metric and labels are for, if there are several"),
        click.option("--metric", default="", help="accuracy metric that chooses the epoch, where labels train"),
        click.option("--teacher", type=Path, help="FP32 ONNX model whose answers are learned; default: MODEL itself"),
    ):
        function = option(function)
    return function


def aim_from(model: OnnxModel, options: dict[str, Any], placement: PlacementOptions | None) -> TrainingAim:
    """What these options name; takes them out of ``options``."""
    teacher = options.pop("teacher")
    metric, output = options.pop("metric"), options.pop("metric_output")
    taught = model if teacher is None else model_from(teacher)
    return TrainingAim(taught, metric, output, Path(), placement, options["loss"] or "")


def check_torch(verb: str) -> None:
    """Before samples are read.

    Raises:
        Unavailable: torch is not installed.
    """
    if reason := library.why_not():
        raise Unavailable(f"{verb}: {reason}")
