"""Convert a trained network to an FP32 ONNX model that every later stage can rely on."""

from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import onnx

from calibration.graph.editing import nodes_of
from calibration.graph.fold import fold_batch_norm, portable_names
from engines import backend
from pipeline.artifact import KerasFile, OnnxModel, SavedModel, Source
from pipeline.errors import ConfigError, StageError, Unavailable
from pipeline.machine import child_process
from pipeline.machine.packages import distribution_versions
from pipeline.option import option

LARGEST_OPSET = 18
"""tf2onnx 1.17 says of 19: `Opset 19 is not supported yet`."""
SMALLEST_OPSET = 13
"""The first with per-channel QuantizeLinear."""
LARGEST_BYTES = 2**31 - 1
"""Protobuf's limit for one message, and so for an ONNX file without external data."""
OWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
"""Domains of ONNX's own operators."""
INSTALL = "pip install 'trtforge[tensorflow]'"


@dataclass(frozen=True)
class Export:
    """Convert a SavedModel, a Keras file or an ONNX file to the FP32 ONNX model that later stages rely on.

    TensorFlow models are converted by tf2onnx in a process of its own. After it, batch norms that tf2onnx left
    behind biased or depthwise convolutions are folded into their weights, tensor names lose their `:`, and onnx's
    checker reads the model in full. Input and output names are the signature's.
    """

    opset: int = option(17, "ONNX opset of the model; tf2onnx takes 13 to 18")
    fold: bool = option(True, "fold batch norms into the weights before them")

    def versions(self, *_inputs: object) -> dict[str, str]:
        """Versions of the tools that the result depends on."""
        return distribution_versions("tensorflow", "tf2onnx", "keras", "tf_keras", "onnx", "onnx-ir")

    def __call__(self, out: Path, source: Source) -> OnnxModel:
        """Write ``out/model.onnx`` and, beside it, ``notes.json`` and ``names.json`` (new name -> old name).

        Beside it, too, lies what it can be compared with: ``savedmodel``, made of a Keras file, or ``source.onnx``,
        an ONNX source whose tensors had to be renamed.

        Raises:
            ConfigError: no such file or signature, or an opset that cannot be had.
            Unavailable: TensorFlow or tf2onnx is not installed.
            StageError: the converter refused the model, or what it made is not valid ONNX.
        """
        if not SMALLEST_OPSET <= self.opset <= LARGEST_OPSET:
            raise ConfigError(
                f"[export] opset is {self.opset}, but tf2onnx and Q/DQ take {SMALLEST_OPSET} to {LARGEST_OPSET}"
            )
        notes: list[str] = []
        if isinstance(source, OnnxModel):
            original = _read_onnx(source.path)
            model = _upgraded(original, source.path, self.opset, notes)
        else:
            original = model = self._converted(out, source)
        _check_size(model, source.path)
        if self.fold:
            model, num_folded = fold_batch_norm(model)
            if num_folded:
                notes.append(f"export: {num_folded} multiplications and additions of batch norms folded into weights")
        model, names = portable_names(model)
        _name_batch_dimension(model)
        path = out / "model.onnx"
        _write_checked(model, path)
        if names and isinstance(source, OnnxModel):
            onnx.save(portable_names(original)[0], out / "source.onnx")
        (out / "names.json").write_text(json.dumps(names, indent=1))
        (out / "notes.json").write_text(json.dumps(notes))
        return OnnxModel(path)

    def _converted(self, out: Path, source: SavedModel | KerasFile) -> onnx.ModelProto:
        if reason := backend("tensorflow").why_not_run():
            raise Unavailable(reason)
        if find_spec("tf2onnx") is None:
            raise Unavailable(f"tf2onnx: is not installed; {INSTALL}")
        child_process.call(out / "convert.log", f"{source.path}", _convert, source, out, self.opset)
        made = out / "converted.onnx"
        model = onnx.load(made)
        made.unlink()
        _make_reproducible(model.graph)
        return model


def source_from_path(path: Path, signature: str) -> Source:
    """What a user's path is, by its ending and content.

    Raises:
        ConfigError: there is nothing, or nothing that can be converted.
    """
    if not path.exists():
        raise ConfigError(f"{path}: does not exist; give a SavedModel folder, a .keras, .h5 or .onnx file")
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            raise ConfigError(f"{path}: is a folder without saved_model.pb; a SavedModel has that file")
        return SavedModel(path, signature)
    if path.suffix in (".keras", ".h5", ".hdf5"):
        return KerasFile(path)
    if path.suffix == ".onnx":
        return OnnxModel(path)
    raise ConfigError(f"{path}: is none of SavedModel folder, .keras, .h5, .onnx; convert it to one of these first")


def _convert(source: SavedModel | KerasFile, out: Path, opset: int) -> None:
    """Write ``out/converted.onnx``. For a process of its own, whose output goes to ``out/convert.log``."""
    from engines import tensorflow

    where = source.path
    if isinstance(source, KerasFile):
        tensorflow.savedmodel_from_keras(source.path, out / "savedmodel")
        source = SavedModel(out / "savedmodel")
    found = tensorflow.signatures(source.path)
    if source.signature not in found:
        listed = "; ".join(f"'{n}' ({', '.join(t.name for t in s.inputs)})" for n, s in sorted(found.items()))
        raise ConfigError(
            f"{where}: has no signature '{source.signature}'; it has {listed or 'none at all'}; "
            "set [model] signature, or --signature"
        )
    signature = found[source.signature]
    inputs, outputs = ([tensor.name for tensor in side] for side in (signature.inputs, signature.outputs))
    if odd := [name for name in (*inputs, *outputs) if ":" in name]:
        raise ConfigError(
            f"{where}: signature '{source.signature}' calls a tensor '{odd[0]}', a name without ':' is expected; "
            "save the model with a signature of other names"
        )
    made = out / "converted.onnx"
    trouble = _run_tf2onnx(source, made, opset)
    said = (out / "convert.log").read_text(encoding="utf-8", errors="replace")
    if refused := _refused_by_tf2onnx(str(where), said, trouble):
        raise refused
    _check_signature_names(onnx.load(made), inputs, outputs, str(where))


def _run_tf2onnx(source: SavedModel, made: Path, opset: int) -> str:
    """The command ``python -m tf2onnx.convert`` in this process; empty, or with what error it ended."""
    arguments = ["--saved-model", str(source.path), "--output", str(made), "--signature_def", source.signature]
    sys.argv = ["tf2onnx", *arguments, "--tag", "serve", "--opset", str(opset)]
    try:
        runpy.run_module("tf2onnx.convert", run_name="__main__", alter_sys=True)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # Whatever it is, it becomes one sentence.
        return f"{type(error).__name__}: {error}"
    return "" if made.is_file() else "it wrote no file"


def _refused_by_tf2onnx(where: str, said: str, trouble: str) -> Exception | None:
    """One sentence out of tf2onnx's log; it writes a file of unknown operators, and ends well, if it does not know one.

    Args:
        where: the model, for the sentence.
        said: all that it wrote on the terminal.
        trouble: with what error it ended; empty if it ended well.
    """
    unsupported = [(kind, name) for name, kind in re.findall(r"Tensorflow op \[(\S+): (\w+)\] is not supported", said)]
    unsupported += [(op, name) for name, op in re.findall(r"Failed to convert node '(.+?)' .*\n'?OP=(\w+)", said)]
    if unsupported:
        unsupported = list(dict.fromkeys(unsupported))
        listed = ", ".join(f"{kind} (node '{name}')" for kind, name in unsupported[:5])
        more = f" and {len(unsupported) - 5} more" if len(unsupported) > 5 else ""
        hint = "replace these operations in the model"
        if any(kind.startswith("FakeQuant") for kind, _ in unsupported):
            hint = "save the model without its quantization-aware wrappers and let `quantize` place Q/DQ"
        why = f" ({trouble})" if trouble else ""
        return StageError(f"{where}: tf2onnx cannot convert {listed}{more}{why}; {hint}")
    if not trouble:
        return None
    if "add_slot" in trouble:
        return Unavailable(
            f"{where}: was saved by Keras 2 together with its optimizer, reading it takes tf_keras of TensorFlow's "
            f"minor version; {INSTALL}"
        )
    if "maximum protobuf size" in trouble or "exceeds 2GB" in trouble or "larger than 2GB" in trouble:
        return StageError(_too_large(where))
    return StageError(f"{where}: tf2onnx failed ({' '.join(trouble.split())[:400]}); mend the model, and save it again")


def _check_signature_names(model: onnx.ModelProto, inputs: list[str], outputs: list[str], where: str) -> None:
    """That the model's inputs and outputs are those of the signature, by name; their order is the converter's."""
    for what, wanted, values in (("input", inputs, model.graph.input), ("output", outputs, model.graph.output)):
        found = {value.name for value in values}
        if missing := sorted(set(wanted) - found):
            raise StageError(
                f"{where}: tf2onnx lost the signature's {what} '{missing[0]}' (it kept {', '.join(sorted(found))}); "
                f"an unused {what} cannot be converted: remove it from the signature"
            )


def _read_onnx(path: Path) -> onnx.ModelProto:
    """A user's ONNX model, weights included, of operators that every runtime knows."""
    try:
        model = onnx.load(path)
    except Exception as error:
        raise StageError(f"{path}: is not a whole ONNX model ({_first_line(error)}); export it again") from error
    _check_size(model, path)
    try:
        onnx.checker.check_model(model)
    except Exception as error:
        raise StageError(f"{path}: is not a valid ONNX model ({_first_line(error)}); export it again") from error
    local = {(function.domain, function.name) for function in model.functions}
    for node in nodes_of(model.graph):
        if node.domain not in OWN_DOMAINS and (node.domain, node.op_type) not in local:
            raise StageError(
                f"{path}: node '{node.name or node.output[0]}' is {node.op_type} of the domain '{node.domain}', "
                "operators of ONNX itself are expected; export the model without it"
            )
    return model


def _upgraded(model: onnx.ModelProto, path: Path, opset: int, notes: list[str]) -> onnx.ModelProto:
    """The model in ``opset`` at least; ``notes`` are added to."""
    found = next((entry.version for entry in model.opset_import if entry.domain in OWN_DOMAINS[:2]), 0)
    if found < opset:
        try:
            model = onnx.version_converter.convert_version(model, opset)
        except Exception as error:
            raise StageError(
                f"{path}: is opset {found}, and onnx cannot convert it to {opset} ({_first_line(error)}); "
                f"export it with {opset}"
            ) from error
        notes.append(f"export: converted from opset {found} to {opset}")
    elif found > opset:
        notes.append(f"export: opset {found} is kept, as nothing converts it back to {opset}")
    return model


def _make_reproducible(graph: onnx.GraphProto) -> None:
    """Equal models, equal bytes: tf2onnx notes where the model lay, and numbers constants in an order that changes."""
    graph.doc_string = ""
    constants = {tensor.name for tensor in graph.initializer}
    read = dict.fromkeys(name for node in nodes_of(graph) for name in node.input if name in constants)
    numbered = [name for name in read if re.search(r"__\d+$", name)]
    new_names = {name: f"{re.sub(r'__[0-9]+$', '', name)}__c{index}" for index, name in enumerate(numbered)}
    for node in nodes_of(graph):
        node.input[:] = [new_names.get(name, name) for name in node.input]
    for value in (*graph.initializer, *graph.value_info):
        value.name = new_names.get(value.name, value.name)
    graph.initializer.sort(key=lambda tensor: tensor.name)
    graph.value_info.sort(key=lambda value: value.name)


def _name_batch_dimension(model: onnx.ModelProto) -> None:
    """tf2onnx calls a dynamic first dimension `unk__149`; it is the batch, and gets that name wherever it stands."""
    first = [value.type.tensor_type.shape.dim[:1] for value in (*model.graph.input, *model.graph.output)]
    is_dynamic = any(dims and not dims[0].HasField("dim_value") for dims in first[: len(model.graph.input)])
    unknown = {dims[0].dim_param for dims in first if dims and is_dynamic and dims[0].dim_param.startswith("unk__")}
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in unknown:
                dimension.dim_param = "batch"


def _check_size(model: onnx.ModelProto, path: Path) -> None:
    if model.ByteSize() > LARGEST_BYTES:
        raise StageError(_too_large(f"{path}", model.ByteSize()))


def _too_large(where: str, num_bytes: int = 0) -> str:
    size = f"has {num_bytes >> 20} MiB" if num_bytes else "is too large"
    return (
        f"{where}: the model {size}, at most {LARGEST_BYTES >> 20} MiB fit one ONNX file, and weights in files of "
        "their own are not supported; take a smaller model"
    )


def _write_checked(model: onnx.ModelProto, path: Path) -> None:
    onnx.save(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise StageError(
            f"{path.name}: onnx's checker refuses the converted model ({_first_line(error)}); report it"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
