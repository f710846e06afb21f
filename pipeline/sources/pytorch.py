"""A PyTorch network: what a function of the user's returns, or a ``.pt2`` file; exported by torch, and run by it.

Files that are pickles (``.pt``, ``.pth``) are never read: reading one runs what it says.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import pickle
import pickletools
import re
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import onnx

from calibration.data.source import FUNCTION
from calibration.data.user_function import load_function, module_sources
from calibration.errors import DataError, ModelError
from calibration.graph.editing import nodes_of
from calibration.graph.external_data import model_from_file, save_model
from calibration.graph.opset import brought_to, opset_of
from engines.backends.pytorch import NAME as PYTORCH
from engines.errors import EngineError
from engines.torch_graph.archive import SAVE, UnsafeArchive, check_archive, is_program
from engines.torch_graph.exporter import (
    Traceable,
    WrongModule,
    describe_tensor,
    onnx_from_program,
    program_from_module,
    sizes_in_steps,
    traceable,
)
from engines.torch_graph.library import DISTRIBUTION, EXPORTER, why_not_export
from engines.torch_graph.program import load_program, save_program
from pipeline.artifact import Engine, OnnxModel, Source
from pipeline.errors import ConfigError, StageError, Unavailable
from pipeline.machine import child_process
from pipeline.sources.contract import Conversion, Converted, first_line

WHAT = ".pt2, module:function (PyTorch)"
PROGRAM_SUFFIX = ".pt2"
PICKLES = (".pt", ".pth")
LEGACY_MARK, NUM_BEFORE_OBJECT = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2), 3
"""How a file begins that torch.save wrote before torch 1.6, and the pickles in front of what was saved."""
PROGRAM = "trained.pt2"
"""Beside the exported model: the program that torch made of a function's module."""


class TorchProgram(Source):
    """A ``.pt2`` file: an ``ExportedProgram`` as ``torch.export.save`` writes it."""

    KIND: ClassVar[str] = "pytorch"
    DISTRIBUTIONS: ClassVar[tuple[str, ...]] = (DISTRIBUTION, EXPORTER)


@dataclass(frozen=True)
class TorchFunction(Source):
    """A function of the user's that returns a module and example inputs; the path is ``folder/module:function``."""

    KIND: ClassVar[str] = "pytorch"
    DISTRIBUTIONS: ClassVar[tuple[str, ...]] = (DISTRIBUTION, EXPORTER)

    @functools.cached_property
    def content(self) -> str:
        """SHA-256 (hex) of the code, and of all that the function returns: it is called for it, in its own process."""
        check_exporter()
        with tempfile.TemporaryDirectory(prefix="trtforge-") as folder:
            return child_process.call(Path(folder) / "torch.log", f"{self.path.name}", _content_of, self.path)

    def digest(self) -> str:
        """Of what the function returns and the code it is written in; not of where that lies."""
        return hashlib.sha256(f"{type(self).__name__}\0{self.content}".encode()).hexdigest()


def recognises(path: Path) -> bool:
    """By its ending, or as ``module:function``, of which no file is there."""
    if path.is_file():
        return path.suffix in (PROGRAM_SUFFIX, *PICKLES)
    return FUNCTION.fullmatch(path.name) is not None and not path.exists()


def source(path: Path, _signature: str) -> Source:
    """The file or the function, of which nothing is run yet.

    Raises:
        ConfigError: the file is a pickle, or holds what would be run when it is read.
    """
    if not path.is_file():
        return TorchFunction(path)
    if not is_program(path):
        raise ConfigError(f"{path}: {_not_taken(path)}")
    try:
        check_archive(path)
    except UnsafeArchive as error:
        raise ConfigError(str(error)) from error
    return TorchProgram(path)


def to_onnx(source: Source, out: Path, how: Conversion) -> Converted:
    """By ``torch.onnx.export``, in a process of its own, and brought to the opset. See ``contract.SourceKind``."""
    check_exporter()
    made = out / "converted.onnx"
    where = str(source.path) if isinstance(source, TorchProgram) else source.path.name
    notes = child_process.call(out / "convert.log", where, _convert, source, made, how)
    model = model_from_file(made)
    made.unlink()  # Not so weights in a file beside it, which the model in memory may only point to.
    return Converted(_in_opset(model, where, how.opset), notes=notes)


def trained(source: Source, exported: OnnxModel, runner: str) -> Engine:
    """The program in the file, or the one that was made of the function's module, run by torch."""
    return Engine(source.path if isinstance(source, TorchProgram) else exported.beside(PROGRAM), PYTORCH)


def check_exporter() -> None:
    """That networks can be exported here.

    Raises:
        Unavailable: torch or onnxscript is not installed.
    """
    if reason := why_not_export():
        raise Unavailable(reason)


def _network(path: Path) -> tuple[Traceable, list[str]]:
    """What the function returned, and notes.

    Raises:
        ConfigError, DataError: there is none, it raises, or returns something else.
    """
    function = load_function(path.name, path.parent)
    try:
        value = function()
    except Exception as error:
        raise DataError(f"{path.name}: raised {type(error).__name__} ({first_line(error)}); fix it") from error
    try:
        return traceable(value)
    except WrongModule as error:
        raise ConfigError(f"{path.name}: {error}") from error


def _content_of(path: Path) -> str:
    """For a process of its own."""
    return _digest_of(path, _network(path)[0])


def _digest_of(path: Path, network: Traceable) -> str:
    """Of the code, of how the module is built, and of all tensors: weights come from files that nobody names here."""
    digest = hashlib.sha256()
    for file in module_sources(path.name, path.parent):
        digest.update(file.read_bytes() + b"\0")
    digest.update(f"{path.name}\0{network.module!r}\0{sorted(network.axes.items())!r}".encode())
    tensors = [*network.inputs().items(), *network.module.named_parameters(), *network.module.named_buffers()]
    for name, tensor in tensors:
        dtype, shape, values = describe_tensor(tensor)
        digest.update(f"\0{name}\0{dtype}{shape}".encode() + values)
    return digest.hexdigest()


def _convert(source: Source, made: Path, how: Conversion) -> list[str]:
    """Write the ONNX file ``made``, and for a function the program beside it; notes. For a process of its own."""
    if isinstance(source, TorchProgram):
        return _convert_program(source.path, made, how)
    network, notes = _network(source.path)
    if source.__dict__.get("content", _digest_of(source.path, network)) != _digest_of(source.path, network):
        raise ConfigError(
            f"{source.path.name}: returns other weights or inputs each time; load the weights from a file, or call "
            "torch.manual_seed first"
        )
    try:
        program = program_from_module(network)
        model = onnx_from_program(program, network.axes, how.opset)
    except WrongModule as error:
        raise ConfigError(f"{source.path.name}: {error}") from error
    except EngineError as error:
        raise StageError(f"{source.path.name}: {error}") from error
    save_program(program, made.with_name(PROGRAM))
    save_model(model, made)
    return [*notes, *sizes_in_steps(program, network.axes)]


def _convert_program(path: Path, made: Path, how: Conversion) -> list[str]:
    program = load_program(path)
    try:
        model = onnx_from_program(program, {}, how.opset)
    except EngineError as error:
        raise StageError(f"{path}: {error}") from error
    save_model(model, made)
    return sizes_in_steps(program, {})


def _in_opset(model: onnx.ModelProto, where: str, opset: int) -> onnx.ModelProto:
    """The model in that opset; torch writes 18 at least.

    Raises:
        StageError: an operator has no such form there.
    """
    before = opset_of(model)
    try:
        return brought_to(model, opset)
    except ModelError as error:
        named = [node for node in nodes_of(model.graph) if re.search(rf"\b{node.op_type}\b", str(error))]
        node = f"node '{named[0].name}' ({named[0].op_type})" if named else "the model"
        raise StageError(
            f"{where}: {node} cannot be brought from opset {before} to {opset} ({first_line(error)}); set [export] "
            f"opset = {before}, or --opset {before}"
        ) from error


def _not_taken(path: Path) -> str:
    """What a file is that torch wrote and that is no program, and how to make one of it; it is not unpickled."""
    stem = path.stem if path.stem.isidentifier() else "model"
    function = '[model] source = "my_model:network"'
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickled = [archive.read(name) for name in names if name.endswith("/data.pkl")]
    except (OSError, zipfile.BadZipFile):
        names, pickled = [], [_legacy_object(path)]
    if any(name.endswith("/constants.pkl") for name in names):
        return (
            "is TorchScript, which torch's exporter does not take; write the module that it was made of as a .pt2 "
            f"file: {SAVE}, or give a function that returns the module: {function}"
        )
    if pickled and all(map(_has_tensors_alone, pickled)):
        return (
            "holds weights (a state_dict) and no network; give a function that puts them into one: def network(): "
            f"model = Net(); model.load_state_dict(torch.load('{path.name}', weights_only=True)); return model.eval(), "
            f"(example,), and {function}"
        )
    if (names and not pickled) or (not names and path.suffix == PROGRAM_SUFFIX):
        return f"is no program that torch.export.save wrote with torch 2.9 or later; save it again: {SAVE}"
    return (
        "is a pickle, which runs code when it is read, so that it is not; if you trust it, model = "
        f"torch.load('{path.name}', weights_only=False); {SAVE.replace('model.pt2', f'{stem}.pt2')}"
    )


def _legacy_object(path: Path) -> bytes:
    """The pickle of what ``torch.save`` wrote before torch 1.6 had zip files, as far as it begins like such a file.

    Three short ones come before it: a number that marks the file, the version of the form, sizes of types.
    """
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(1 << 20))
    ends = [0]
    with contextlib.suppress(ValueError, IndexError):
        for _ in range(NUM_BEFORE_OBJECT):
            for _opcode in pickletools.genops(stream):
                pass  # It is looked at, not run.
            ends.append(stream.tell())
    content = stream.getvalue()
    return content[ends[-1] :] if len(ends) > NUM_BEFORE_OBJECT and content.startswith(LEGACY_MARK) else content


def _has_tensors_alone(pickled: bytes) -> bool:
    """Whether a pickle names nothing but torch's tensors and dictionaries; it is looked at, not run."""
    names = []
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "GLOBAL":
                names.append(str(argument))
            elif opcode.name in ("STACK_GLOBAL", "INST"):
                return False
    except (ValueError, IndexError):
        return False
    return bool(names) and all(
        name.startswith(("torch._utils _rebuild", "collections OrderedDict", "torch ")) for name in names
    )
