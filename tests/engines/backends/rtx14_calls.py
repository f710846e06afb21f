"""TensorRT for RTX 1.4, with the API of TensorRT 10, builds for real: run by test_tensorrt_rtx_14.py, prints JSON.

Usage: python rtx14_calls.py FOLDER, which has fp32.onnx, fp16.onnx (both (N, 3) x) and int8.onnx ((N, 16, 8, 8) x).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from engines.backends import tensorrt_rtx
from engines.contract import BuildOptions, GivenScales, ShapeRange
from engines.errors import EngineError, Unavailable

LINEAR = {"x": ShapeRange((1, 3), (2, 3), (8, 3))}
LARGE = {"x": ShapeRange((9, 3), (16, 3), (32, 3))}
CONV = {"x": ShapeRange((1, 16, 8, 8), (2, 16, 8, 8), (4, 16, 8, 8))}
BUILDS = {
    "fp32": ("fp32", BuildOptions(shapes=LINEAR)),
    "fp16": ("fp16", BuildOptions("fp16", LINEAR)),
    "profiles": ("fp32", BuildOptions(shapes=LINEAR, more_shapes=(LARGE,))),
    "targets": ("fp32", BuildOptions(shapes=LINEAR, compute_capabilities=("7.5", "8.6"))),
    "native": ("fp32", BuildOptions("int8", LINEAR, native=GivenScales(b""))),
    "int8": ("int8", BuildOptions("int8", CONV)),
}


def built(model: Path, options: BuildOptions) -> Any:
    """The number of bytes, or the error."""
    try:
        return tensorrt_rtx.build(model, model.with_suffix(".plan"), options).size_bytes
    except (EngineError, Unavailable) as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    folder = Path(sys.argv[1])
    said = {name: built(folder / f"{model}.onnx", options) for name, (model, options) in BUILDS.items()}
    print(json.dumps({"version": tensorrt_rtx.versions()["tensorrt_rtx"], **said}))


if __name__ == "__main__":
    main()
