"""Read from an ONNX file what its inputs take, and put it into words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.data.source import DYNAMIC, InputSpec
from calibration.errors import ModelError

if TYPE_CHECKING:
    import onnx


def input_specs_from_onnx(path: Path) -> tuple[InputSpec, ...]:
    """The inputs that a caller has to feed, in the model's order. External weights are not read.

    Raises:
        ModelError: not a whole ONNX file, no inputs, or an input that is not an array of numbers of known rank.
    """
    from calibration.graph.weightless import skeleton_from_file

    try:
        model = skeleton_from_file(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    except Exception as error:  # protobuf's DecodeError, which its versions keep in different places
        raise ModelError(f"{path}: is not a whole ONNX file ({str(error).strip()}); copy or export it again") from error
    weights = {tensor.name for tensor in model.graph.initializer}
    specs = sample_specs([_spec(info, path) for info in model.graph.input if info.name not in weights])
    if not specs:
        raise ModelError(f"{path}: has no inputs, an ONNX model with at least one is expected; export it again")
    return specs


def sample_specs(specs: Iterable[InputSpec]) -> tuple[InputSpec, ...]:
    """The inputs as samples are stored: those without a batch axis, such as a number or a state, have a 1 in front.

    They are numbers; and where the inputs' first axes differ, or one input is a number, those whose first axis is
    fixed at another size than 1.
    """
    inputs = tuple(specs)
    mixed = len({spec.shape[:1] for spec in inputs}) > 1
    return tuple(
        replace(spec, shape=(1, *spec.shape), is_whole=True)
        if not spec.shape or (mixed and spec.shape[0] not in (1, DYNAMIC))
        else spec
        for spec in inputs
    )


def _spec(info: onnx.ValueInfoProto, path: Path) -> InputSpec:
    import onnx

    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ModelError(
            f"{path}: input '{info.name}' is a {kind or 'value without a type'}, a tensor is expected; export it "
            "without"
        )
    tensor = info.type.tensor_type
    if tensor.elem_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
        name = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise ModelError(f"{path}: input '{info.name}' has elements of type {name}, numbers are expected; export it so")
    if not tensor.HasField("shape"):
        raise ModelError(f"{path}: input '{info.name}' has no shape, a known rank is expected; export it with shapes")
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else DYNAMIC for dim in tensor.shape.dim)
    return InputSpec(info.name, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)


def shape_words(spec: InputSpec) -> str:
    """A shape for a message: (N, 224, 224, 3), with ? for another dynamic dimension."""
    words = [("?" if i else "N") if size == DYNAMIC else str(size) for i, size in enumerate(spec.shape)]
    if spec.is_whole:
        words[0] = "N"
    return f"({', '.join(words)}{',' * (len(words) == 1)})"


def shape_hint(have: tuple[int, ...], spec: InputSpec) -> str:
    """What to do about samples of shape ``have`` where the model wants another."""

    def fits(shape: tuple[int, ...]) -> bool:
        return len(shape) == len(spec.shape) and all(w in (DYNAMIC, h) for h, w in zip(shape[1:], spec.shape[1:]))

    if len(have) == 4 and fits((have[0], have[3], have[1], have[2])):
        return 'set layout = "nchw" in preprocess'
    if len(have) == 4 and fits((have[0], have[2], have[3], have[1])):
        return "transpose the stored samples to (N, H, W, C)"
    if fits((1, *have)):
        return "the batch axis is missing: store (1, ...)"
    if fits((*have, 1)):
        return "the last axis is missing: store (..., 1)"
    if len(have) == len(spec.shape) == 4:
        return "set resize, crop or channels in preprocess"
    return "convert the data"
