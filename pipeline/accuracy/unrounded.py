"""What a network that came quantized is compared with where nobody has its FP32: itself, without its rounding."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from calibration.errors import ModelError
from calibration.graph.external_data import model_from_file, save_model
from calibration.quantized.unrounded import unrounded
from pipeline.artifact import OnnxModel
from pipeline.machine.packages import distribution_versions


@dataclass(frozen=True)
class RemoveRounding:
    """The quantized network in FP32 without Q/DQ nodes; the store can keep it."""

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        return distribution_versions("onnx", "onnx-ir", "numpy")

    def __call__(self, out: Path, model: OnnxModel) -> OnnxModel:
        """Write ``out/model.onnx``.

        Raises:
            ModelError: it is quantized in a way that has no FP32 behind it.
        """
        try:
            proto = unrounded(model_from_file(model.path))
        except ModelError as error:
            raise ModelError(f"{model.path}: {error}") from error
        save_model(proto, out / "model.onnx")
        (out / "notes.json").write_text(json.dumps([]))
        return OnnxModel(out / "model.onnx")
