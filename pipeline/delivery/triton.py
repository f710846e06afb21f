"""A Triton model repository: ``NAME/config.pbtxt`` and ``NAME/VERSION/model.plan``.

The fields are those of ``model_config.proto`` (triton-inference-server/common); what the TensorRT backend checks is in
``src/model_state.cc`` of triton-inference-server/tensorrt_backend: ``max_batch_size`` may be at most the largest over
the profiles that ``instance_group`` names, of each the smallest first dimension of its inputs' largest shapes.

The version's folder comes first, by one rename, and the configuration last, by another: a server that polls sees the
old version or the new one. Rolling back is ``specific { versions: N }`` of an older one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.contract import TensorSpec
from pipeline.artifact import digest_of_path
from pipeline.delivery.contents import Delivered, make_folder
from pipeline.errors import ConfigError
from pipeline.gate.generations import NAME
from pipeline.output import put, sync, work_folder

CONFIG = "config.pbtxt"
TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}
"""Name of a numpy type -> Triton's."""
SERVED_BY = {
    "tensorrt": ("tensorrt", "model.plan", "KIND_GPU"),
    "onnxruntime": ("onnxruntime", "model.onnx", "KIND_AUTO"),
}
"""Backend -> Triton's, the name of its file, and where its instances run."""


@dataclass(frozen=True)
class TritonModel:
    """What is written: one version, in which each GPU of a mixed fleet has its own engine."""

    name: str
    engines: tuple[Delivered, ...]
    max_batch_size: int


def triton_model(name: str, engines: Sequence[Delivered], max_batch: int) -> TritonModel:
    """What is to be delivered, checked.

    Args:
        name: of the model in the repository.
        engines: one for each compute capability, or only one.
        max_batch: 0 for the largest that the engines take.

    Raises:
        ConfigError: Triton has no backend for one, they do not take the same tensors, two are for one GPU, or the
            largest batch is not known, or is beyond what an engine takes.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"--as '{name}': is no name for a model; use letters, digits, '.', '_' and '-'")
    first = engines[0]
    for engine in engines:
        if engine.backend not in SERVED_BY:
            raise ConfigError(f"{engine.name}: Triton has no backend for an engine of {engine.backend}")
        if engine.backend != first.backend or _tensors(engine) != _tensors(first):
            raise ConfigError(
                f"{engine.name}: is not of the same backend, or does not take and give the tensors that {first.name} "
                "does; one model of Triton has one configuration"
            )
    gpus = [engine.compute_capability for engine in engines]
    if len(set(gpus)) < len(gpus):
        twice = next(gpu for gpu in gpus if gpus.count(gpu) > 1)
        raise ConfigError(
            f"{', '.join(engine.name for engine in engines)}: two are for compute capability '{twice}', and Triton "
            "chooses by that alone; deliver one of them"
        )
    return TritonModel(name, tuple(engines), _batch_size(engines, max_batch))


def deliver_to_triton(model: TritonModel, repository: Path) -> Path:
    """Write the next version, and the configuration that names it; returns the version's folder.

    A version that holds the very same files is not written again.

    Raises:
        ConfigError: the repository cannot be written.
        Unavailable: the disk is full.
    """
    folder = repository / model.name
    make_folder(folder, [CONFIG])
    with work_folder(folder / CONFIG) as work:
        new = work / "version"
        new.mkdir()
        for engine in model.engines:
            target = new / _file_name(model, engine)
            shutil.copyfile(engine.path, target)
            for weights in engine.files()[1:]:
                shutil.copyfile(weights, new / weights.relative_to(engine.path.parent))
        version = _same(folder, new) or max(_versions(folder), default=0) + 1
        final = folder / str(version)
        if not final.exists():
            sync(new)
            new.rename(final)
        (work / CONFIG).write_text(config_text(model, version), encoding="utf-8")
        put(work / CONFIG, folder / CONFIG, work)
    return final


def config_text(model: TritonModel, version: int) -> str:
    """The text of config.pbtxt."""
    return "\n".join(_config(model, version)) + "\n"


def _config(model: TritonModel, version: int) -> Iterator[str]:
    first = model.engines[0]
    backend, file, kind = SERVED_BY[first.backend]
    yield f"name: {_quoted(model.name)}"
    yield f"backend: {_quoted(backend)}"
    yield f"max_batch_size: {model.max_batch_size}"
    for field, specs in (("input", first.inputs), ("output", first.outputs)):
        for spec in specs:
            yield f"{field} {{"
            yield f"  name: {_quoted(spec.name)}"
            yield f"  data_type: {_type(spec)}"
            yield from (f"  {line}" for line in _dims(spec, model.max_batch_size > 0))
            yield "}"
    yield "instance_group {"
    yield f"  kind: {kind}"
    yield "  count: 1"
    yield from (f"  profile: {_quoted(str(index))}" for index in _profiles(model))
    yield "}"
    yield f"version_policy {{ specific {{ versions: {version} }} }}"
    if len(model.engines) > 1:
        for engine in model.engines:
            yield "cc_model_filenames {"
            yield f"  key: {_quoted(engine.compute_capability)}"
            yield f"  value: {_quoted(_file_name(model, engine))}"
            yield "}"
    else:
        yield f"default_model_filename: {_quoted(file)}"


def _profiles(model: TritonModel) -> list[int]:
    """Those that take the largest batch: Triton gives any batch to any profile of a group."""
    first, least = model.engines[0], max(model.max_batch_size, 1)
    if len(first.profiles) < 2:
        return []
    return [index for index, profile in enumerate(first.profiles) if first.batch_of(profile) >= least]


def _batch_size(engines: Sequence[Delivered], max_batch: int) -> int:
    if not all(engine.has_batch for engine in engines):
        if max_batch:
            raise ConfigError(
                f"--max-batch {max_batch}: {engines[0].name} has a fixed batch, or none, in its first dimensions, so "
                "that Triton is told no batch size; drop it"
            )
        return 0
    largest = min((engine.max_batch for engine in engines if engine.max_batch), default=0)
    if not (largest or max_batch):
        raise ConfigError(
            f"{engines[0].name}: takes batches of any size, and Triton must be told the largest; give --max-batch"
        )
    if largest and max_batch > largest:
        raise ConfigError(f"--max-batch {max_batch}: the engine takes at most {largest}; give a smaller one")
    return max_batch or largest


def _dims(spec: TensorSpec, without_batch: bool) -> Iterator[str]:
    shape = spec.shape[1:] if without_batch else spec.shape
    yield f"dims: [ {', '.join(map(str, shape or (1,)))} ]"
    if not shape:  # Triton has no empty list of dimensions: one of size 1, which it leaves out again.
        yield "reshape { shape: [ ] }"


def _type(spec: TensorSpec) -> str:
    if spec.dtype not in TYPES:
        raise ConfigError(f"'{spec.name}': is of type {spec.dtype}, which Triton does not have")
    return TYPES[spec.dtype]


def _file_name(model: TritonModel, engine: Delivered) -> str:
    _, file, _ = SERVED_BY[engine.backend]
    if len(model.engines) == 1:
        return file
    stem, dot, suffix = file.rpartition(".")
    return f"{stem}.sm{engine.compute_capability.replace('.', '')}{dot}{suffix}"


def _tensors(engine: Delivered) -> tuple[object, ...]:
    return engine.inputs, engine.outputs, engine.has_batch


def _versions(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if re.fullmatch(r"[1-9]\d*", path.name))


def _same(folder: Path, new: Path) -> int:
    """The newest version with the very same files; 0 if there is none."""
    digest = digest_of_path(new)
    return next((v for v in reversed(_versions(folder)) if digest_of_path(folder / str(v)) == digest), 0)


def _quoted(text: str) -> str:
    """A string of protobuf's text format, which takes JSON's escapes of ASCII."""
    return json.dumps(text, ensure_ascii=False)
