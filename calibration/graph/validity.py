"""Whether a user's ONNX model is one: by onnx's checker, and by what that lets pass."""

from __future__ import annotations

from pathlib import Path

import onnx

from calibration.errors import ModelError
from calibration.graph.external_data import check_model
from calibration.graph.opset import opset_of
from calibration.graph.weightless import skeleton_from_file

TYPES = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}


def check_file(path: Path) -> None:
    """As ``check_valid``, without reading large weights.

    Raises:
        ModelError: it is not valid.
    """
    check_valid(skeleton_from_file(path), path)


def check_valid(model: onnx.ModelProto, path: Path) -> None:
    """Refuse what is not valid ONNX, has no outputs, or is of an opset that is not known here.

    Raises:
        ModelError: as said.
    """
    if not model.graph.output:
        raise ModelError(f"{path}: the model has no outputs; export it again")
    if (opset := opset_of(model)) > onnx.defs.onnx_opset_version():
        raise ModelError(
            f"{path}: is of opset {opset}, the onnx that is installed knows {onnx.defs.onnx_opset_version()}; "
            "update onnx, or export the model in an older one"
        )
    for tensor in model.graph.initializer:
        _check_type(tensor, path)
    try:
        check_model(model)
    except Exception as error:  # onnx raises half a dozen kinds.
        words = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"{path}: is not a valid ONNX model ({words}); export it again") from error


def _check_type(tensor: onnx.TensorProto, path: Path) -> None:
    if tensor.data_type not in TYPES:
        raise ModelError(f"{path}: the weight '{tensor.name}' has no type that ONNX knows; export it again")
