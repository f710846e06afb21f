"""Networks in ONNX text as files, and samples for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser

from calibration.data.batches import Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from pipeline.artifact import OnnxModel
from tests.made import model_with_weights

Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = Mapping[str, Array]
Out: TypeAlias = Callable[[], Path]


def save(text: str, path: Path, **weights: tuple[int, ...]) -> OnnxModel:
    """The ONNX text as a file, with weights drawn once and for all."""
    onnx.save(model_with_weights(text, 5, **weights), path)
    return OnnxModel(path)


def samples_for(model: OnnxModel, num_samples: int = 10, scale: float = 1.0) -> Samples:
    """Normal noise for every input, in an ``.npz`` beside the model, with labels ``y``."""
    random = np.random.default_rng(6)
    specs = input_specs_from_onnx(model.path)
    arrays = {s.name: scale * random.normal(size=(num_samples, *s.shape[1:])).astype(np.float32) for s in specs}
    path = model.path.with_name(f"{model.path.stem}{num_samples}.npz")
    np.savez(path, y=np.arange(num_samples) % 3, **arrays)  # type: ignore[arg-type]
    return open_samples(DataSource(str(path), labels="y"), specs, Preprocess())


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor that onnx can infer."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}


ELEMENTWISE = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[BATCH, 5] x) => (float[BATCH, 5] y) { a = Relu (x) b = Add (a, x) y = Mul (b, b) }
"""
