"""Models whose weights are too large for one ONNX file: they stay in files beside it, and are read where needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy.typing as npt
import onnx
import onnx_ir as ir

from calibration.errors import ModelError
from calibration.graph.weightless import HEAVY_BYTES, VALUES

LARGEST_BYTES = 2**31 - 1
"""Of one ONNX file, which is a message of protobuf."""
MOST_BYTES = 1900 << 20
"""Of weights in one ONNX file; of more, all large ones lie in a file beside it."""
PAGE_BYTES = 4096
"""Large weights begin at a multiple of it, so that they can be mapped (ONNX, "External Data")."""
CHUNK_BYTES = 1 << 20


def model_from_file(path: Path) -> onnx.ModelProto:
    """The model with all its weights, those that lie in files beside it too.

    Where these do not fit one ONNX file, the large ones stay where they are: the location of each is the absolute path
    of its file. ``array_of`` and ``opened`` read them, and ``save_model`` writes them.

    Raises:
        ModelError: it is not a whole ONNX file, or a file of weights is missing, cut off or outside the model's folder.
    """
    try:
        model = onnx.load(path, load_external_data=False)
        is_large = path.stat().st_size + num_weight_bytes(model) > MOST_BYTES
        located = [t for t in model.graph.initializer if is_large and t.external_data and is_heavy(t)]
        for tensor in located:
            _locate(tensor, path.parent)
            tensor.data_location = onnx.TensorProto.DEFAULT  # So that onnx reads the others alone.
        onnx.load_external_data_for_model(model, str(path.parent))
        for tensor in located:
            tensor.data_location = onnx.TensorProto.EXTERNAL
    except Exception as error:  # onnx, protobuf and the system raise half a dozen kinds.
        raise ModelError(
            f"{path}: cannot be read with all its weights ({' '.join(str(error).split())}); copy the model and the "
            "files of weights beside it again"
        ) from error
    return model


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write the model into one ONNX file; if that is too small, its large weights into ``<name>.data`` beside it.

    Raises:
        ModelError: what is not a weight of the main graph does not fit either.
    """
    light = without_weights(model)
    if num_weight_bytes(model) <= MOST_BYTES and light.ByteSize() <= LARGEST_BYTES - MOST_BYTES:
        has_located = any(map(_is_located, model.graph.initializer))
        onnx.save(with_weights_of(model, light, inside=True) if has_located else model, path)
        return
    if light.ByteSize() > LARGEST_BYTES:
        raise ModelError(
            f"{path.name}: constants of nodes and small weights alone have {light.ByteSize() >> 20} MiB, at most "
            f"{LARGEST_BYTES >> 20} MiB fit one ONNX file; make initializers of them"
        )
    location = f"{path.name}.data"
    with path.with_name(location).open("wb") as stream:
        for tensor, weight in zip(light.graph.initializer, model.graph.initializer, strict=True):
            if is_heavy(weight):
                stream.write(bytes(-stream.tell() % PAGE_BYTES))
                offset = stream.tell()
                _write_values(weight, stream)
                _set_external(tensor, location, offset, stream.tell() - offset)
    onnx.save(light, path)


def rename_weight_files(path: Path, names: Mapping[str, str]) -> None:
    """Let an ONNX file look for its weights in files of other names (present -> new); the files stay as they are."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = names[Path(entry.value).as_posix()]
    onnx.save(model, path)


def array_of(tensor: onnx.TensorProto) -> npt.NDArray[Any]:
    """The values of an initializer of a model that ``model_from_file`` gave; large ones are mapped, not read."""
    if _is_located(tensor):
        return ir.serde.deserialize_tensor(tensor).numpy()
    return onnx.numpy_helper.to_array(tensor)


def num_weight_bytes(model: onnx.ModelProto) -> int:
    """Of all initializers of the main graph, wherever they lie."""
    return sum(map(_num_bytes, model.graph.initializer))


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large initializers have type and shape but no values: quick to copy, enough to infer shapes from."""
    light = onnx.ModelProto()
    _copy_fields(model, light, "graph")
    _copy_fields(model.graph, light.graph, "initializer")
    for tensor in model.graph.initializer:
        if is_heavy(tensor):
            light.graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        else:
            light.graph.initializer.add().CopyFrom(tensor)
    return light


def with_weights_of(model: onnx.ModelProto, light: onnx.ModelProto, *, inside: bool = False) -> onnx.ModelProto:
    """``light``, which came of ``without_weights``, with the values of the model; ``inside``: all are read."""
    values = {tensor.name: tensor for tensor in model.graph.initializer if is_heavy(tensor)}
    for tensor in light.graph.initializer:
        weight = values.get(tensor.name)
        if weight is None:
            continue
        if _is_located(weight) and not inside:
            tensor.data_location = weight.data_location
            tensor.external_data.extend(weight.external_data)
        else:
            tensor.raw_data = ir.serde.deserialize_tensor(weight).tobytes() if _is_located(weight) else weight.raw_data
    return light


def check_model(model: onnx.ModelProto, *, full_check: bool = False) -> None:
    """onnx's checker, without reading large weights, which are taken for inputs.

    Raises what that raises.
    """
    light = without_weights(model)
    initializers = list(light.graph.initializer)
    inputs = {value.name for value in light.graph.input}
    del light.graph.initializer[:]
    for tensor in initializers:
        if any(field.number in VALUES for field, _ in tensor.ListFields()) or not math.prod(tensor.dims):
            light.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in inputs:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.checker.check_model(light, full_check=full_check)


def is_heavy(tensor: onnx.TensorProto) -> bool:
    """By its shape, as reading ``raw_data`` copies it; an element has at most eight bytes."""
    has_bytes = tensor.HasField("raw_data") or bool(tensor.external_data)
    return has_bytes and math.prod(tensor.dims) > HEAVY_BYTES // 8


def _num_bytes(tensor: onnx.TensorProto) -> int:
    return int(math.prod(tensor.dims)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _is_located(tensor: onnx.TensorProto) -> bool:
    """Whether its values stayed in a file, see ``model_from_file``."""
    return any(entry.key == "location" and Path(entry.value).is_absolute() for entry in tensor.external_data)


def _locate(tensor: onnx.TensorProto, folder: Path) -> None:
    """Give the absolute path of the file in which an initializer lies.

    Raises:
        ValueError: it is outside the folder, not there, or too short.
    """
    info = onnx.external_data_helper.ExternalDataInfo(tensor)
    file = (folder / info.location).resolve()
    if Path(info.location).is_absolute() or not file.is_relative_to(folder.resolve()):
        raise ValueError(f"the file of weight '{tensor.name}', {info.location}, is outside the model's folder")
    if not file.is_file():
        raise ValueError(f"the file of weight '{tensor.name}', {info.location}, is not there")
    offset, expected = info.offset or 0, ir.serde.deserialize_tensor(tensor).nbytes
    if info.length not in (None, expected) or offset + expected > file.stat().st_size:
        raise ValueError(f"weight '{tensor.name}' has {expected} bytes, {info.location} holds others for it")
    _set_external(tensor, str(file), offset, expected)


def _set_external(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _write_values(tensor: onnx.TensorProto, stream: IO[bytes]) -> None:
    """The bytes of a large initializer."""
    if not _is_located(tensor):
        stream.write(tensor.raw_data)
        return
    info = onnx.external_data_helper.ExternalDataInfo(tensor)
    with Path(info.location).open("rb") as source:
        source.seek(info.offset or 0)
        left = info.length or 0
        while left:
            piece = source.read(min(left, CHUNK_BYTES))
            if not piece:
                raise ModelError(f"{info.location}: was cut off while it was read; copy the file of weights again")
            stream.write(piece)
            left -= len(piece)


def _copy_fields(source: Any, target: Any, leave_out: str) -> None:
    """Copy all fields of a protobuf message that are set, but one."""
    for field, value in source.ListFields():
        if field.name == leave_out:
            continue
        if isinstance(value, (str, bytes, int, float)):
            setattr(target, field.name, value)
        else:
            getattr(target, field.name).MergeFrom(value)
