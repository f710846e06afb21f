"""A network that takes 8-bit pixels and preprocesses them itself: its samples, and those of the network as it came."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from calibration.data.batches import DataSource, InputSpec, Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import FUNCTION
from calibration.errors import DataError
from engines import backend, builders
from pipeline.artifact import OnnxModel
from pipeline.errors import ConfigError
from pipeline.plan import Plan
from pipeline.stages.export import UNFOLDED, Pixels, pixels_from


def pixels_of(plan: Plan) -> tuple[Pixels, ...]:
    """What the export of a plan folds; empty where it folds nothing.

    Raises:
        ConfigError: a backend of the plan does not build from the exported model.
    """
    if not plan.export.fold_preprocess:
        return ()
    for name in plan.variants.backends:
        if backend(name).TAKES != OnnxModel.FORMAT:
            others = ", ".join(each for each in builders() if backend(each).TAKES == OnnxModel.FORMAT)
            raise ConfigError(
                f"{plan.path}: [export] fold_preprocess: {name} builds from the trained network, not from the exported "
                f"one, which does the preprocessing; take one of {others}, or leave it out"
            )
    return (pixels_from(plan.data.preprocess),)


def preprocess_of(plan: Plan) -> Preprocess:
    """What is done to a plan's samples before the exported network sees them."""
    return plan.data.preprocess.of_bytes() if plan.export.fold_preprocess else plan.data.preprocess


def samples_from(plan: Plan, source: DataSource, exported: OnnxModel) -> Samples:
    """The samples of a plan's source, for the exported network.

    Raises:
        DataError: they do not fit it; or it takes bytes, and they are stored as something else.
    """
    specs, resolved = input_specs_from_onnx(exported.path), resolved_source(plan, source)
    if plan.export.fold_preprocess:
        unfolded = open_samples(resolved, tuple(_unfolded(exported, specs)), plan.data.preprocess, plan.folder)
        _check_bytes(unfolded, list(_before(exported)))
    return open_samples(resolved, specs, preprocess_of(plan), plan.folder)


def samples_of_trained(plan: Plan, exported: OnnxModel) -> Samples | None:
    """The evaluation samples as the network took them before it was exported; None where it takes the same ones."""
    if not plan.export.fold_preprocess:
        return None
    specs = tuple(_unfolded(exported, input_specs_from_onnx(exported.path)))
    return open_samples(resolved_source(plan, plan.data.evaluation), specs, plan.data.preprocess, plan.folder)


def resolved_source(plan: Plan, source: DataSource) -> DataSource:
    """The source with its path taken from the plan's folder."""
    if FUNCTION.fullmatch(source.path):
        return source
    return replace(source, path=str(plan.resolved(source.path)))


def _before(exported: OnnxModel) -> dict[str, Any]:
    """By name, the inputs that take bytes, as they were."""
    return dict(json.loads(exported.beside(UNFOLDED).read_text()))


def _unfolded(exported: OnnxModel, specs: tuple[InputSpec, ...]) -> Iterator[InputSpec]:
    """The inputs as the network had them."""
    known = _before(exported)
    for spec in specs:
        before = known.get(spec.name)
        yield spec if before is None else replace(spec, dtype=before["dtype"], shape=tuple(before["shape"]))


def _check_bytes(samples: Samples, names: list[str]) -> None:
    """That what is stored is what a camera gives."""
    block = next(iter(samples.reader.blocks(1)))
    for name in names:
        if (dtype := block.arrays[name].dtype) != np.uint8:
            raise DataError(
                f"{block.where}: input '{name}' is stored as {dtype}, and [export] fold_preprocess is for pixels of 8 "
                "bits (uint8), as a camera gives them; store them so, or leave it out"
            )
