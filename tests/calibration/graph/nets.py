"""What the tests of passes share: a network with the arrays that it reads, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.numpy_helper import from_array

from engines.backends import onnxruntime


def with_arrays(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray[Any, Any]]) -> onnx.ModelProto:
    """The model with those of the arrays that its nodes read."""
    read = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(from_array(array, name) for name, array in arrays.items() if name in read)
    return model


def answer_to(x: np.ndarray[Any, Any], model: onnx.ModelProto, folder: Path) -> np.ndarray[Any, Any]:
    """What a network with the input `x` gives as `y`, without the runtime's own optimizations."""
    onnx.save(model, folder / "model.onnx")
    with onnxruntime.load_simulation(folder / "model.onnx", num_threads=1) as runner:
        return runner.infer({"x": x})["y"]
