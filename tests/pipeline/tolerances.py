"""Tolerances derived of the tiny network, and answers to hold to them."""

from __future__ import annotations

from typing import Any

import numpy as np

from calibration.data.batches import Samples
from calibration.precision.placement import PlacementTarget
from pipeline.accuracy.comparison import write_outputs
from pipeline.artifact import Engine, OnnxModel, Outputs, Tolerances
from pipeline.engine_runner import runner_of
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.quantize import Quantize
from pipeline.stages.tolerate import Rounding, Tolerate


def derived(fp32: OnnxModel, samples: Samples, rounding: Rounding, **options: Any) -> Tolerances:
    folder = fp32.path.parent / f"derived{len(list(fp32.path.parent.glob('derived*')))}"
    folder.mkdir()
    return Tolerate(**options)(folder, fp32, samples, rounding)


def answers(model: OnnxModel, samples: Samples, name: str, scale: float = 1.0) -> Outputs:
    """Of a model, simulated, on the samples times ``scale``."""
    with runner_of(Engine(model.path, simulated=True), 1) as runner:
        batches = [
            runner.infer({"image": batch["image"].astype(np.float32) * np.float32(scale)})
            for batch in samples.batches(64)
        ]
    write_outputs(model.path.parent / name, "runner", batches)
    return Outputs(model.path.parent / name)


INT8: dict[PlacementTarget, Rounding] = {
    "tensorrt": Rounding("int8", "tensorrt", arithmetic="u8s8", method="minmax"),
    "onnxruntime": Rounding("int8", "onnxruntime", arithmetic="u8s8", method="minmax"),
}


def sound(fp32: OnnxModel, samples: Samples, target: PlacementTarget) -> OnnxModel:
    folder = fp32.path.parent / f"int8_{target}"
    folder.mkdir()
    ranges = Calibrate(method="minmax")(folder, fp32, samples)
    return Quantize(target=target, arithmetic="u8s8")(folder, fp32, ranges)
