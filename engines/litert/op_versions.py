"""Versions of operators of a full-integer `.tflite` file, as TensorFlow's converter writes them.

ai-edge-quantizer leaves those of the float file. LiteRT runs either; compilers that read a file by its versions, as
that of the Edge TPU, would take an operator in INT8 for one of before there was such.
"""

from __future__ import annotations

from typing import Any

from engines.litert.file_bytes import packed, unpacked

VERSIONS = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4} | dict.fromkeys(
    (
        "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "L2_NORMALIZATION", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN",
        "MINIMUM", "MUL", "PAD", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT",
        "STRIDED_SLICE", "SUB", "TANH", "TRANSPOSE", "TRANSPOSE_CONV",
    ),
    2,
)  # fmt: skip
"""In INT8, with one scale for the weights of dense layers: read from files of TensorFlow 2.21's converter."""
LARGEST_OLD_CODE = 127
"""PLACEHOLDER_FOR_GREATER_OP_CODES: of operators that readers of before 2020 do not know."""


def set_old_codes(model: Any) -> None:
    """Codes of operators stand where readers of before 2020 look for them as well; ``model``: an unpacked file."""
    for code in model.operatorCodes:
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
        code.deprecatedBuiltinCode = min(code.builtinCode, LARGEST_OLD_CODE)


def with_int8_versions(schema: Any, flatbuffers: Any, data: bytes) -> bytes:
    """The same full-integer file with those versions, and codes that old readers find.

    Args:
        schema: the module that the format's schema was compiled to.
        flatbuffers: what writes it.
        data: the file's bytes.
    """
    model = unpacked(schema, data)
    set_old_codes(model)
    kinds = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    for code in model.operatorCodes:
        code.version = max(code.version, VERSIONS.get(kinds[code.builtinCode], 1))
    return packed(flatbuffers, model, len(data))
