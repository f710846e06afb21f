"""Convert a trained network to an FP32 ONNX model that every later stage can rely on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import onnx

from calibration.fold import fold_batch_norm, portable_names
from engines import backend
from pipeline import isolate
from pipeline.artifact import KerasFile, OnnxModel, SavedModel, Source
from pipeline.errors import ConfigError, StageError, Unavailable
from pipeline.option import option
from pipeline.store import distribution_versions

LARGEST_OPSET = 18
"""tf2onnx 1.17 says of 19: `Opset 19 is not supported yet`."""
SMALLEST_OPSET = 13
"""The first with per-channel QuantizeLinear."""
LARGEST_BYTES = 2**31 - 1
"""Protobuf's limit for one message, and so for an ONNX file without external data."""


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

        Raises:
            ConfigError: no such file or signature, or an opset that cannot be had.
            Unavailable: TensorFlow or tf2onnx is not installed.
            StageError: the converter refused the model, or what it made is not valid ONNX.
        """
        if not SMALLEST_OPSET <= self.opset <= LARGEST_OPSET:
            raise ConfigError(
                f"[export] opset is {self.opset}, but tf2onnx and Q/DQ take {SMALLEST_OPSET} to {LARGEST_OPSET}"
            )
        model = _read_onnx(source.path, self.opset) if isinstance(source, OnnxModel) else self._converted(out, source)
        num_folded = 0
        if self.fold:
            model, num_folded = fold_batch_norm(model)
        model, names = portable_names(model)
        _name_batch_dimension(model)
        path = out / "model.onnx"
        _write_checked(model, path)
        (out / "names.json").write_text(json.dumps(names, indent=1))
        notes = [f"export: {num_folded} multiplications and additions of batch norms folded into weights"]
        (out / "notes.json").write_text(json.dumps(notes if num_folded else []))
        return OnnxModel(path)

    def _converted(self, out: Path, source: SavedModel | KerasFile) -> onnx.ModelProto:
        tensorflow = backend("tensorflow")
        if reason := tensorflow.why_not_run():
            raise Unavailable(reason)
        log = out / "convert.log"
        if isinstance(source, KerasFile):
            isolate.call(log, f"{source.path}", _savedmodel_from_keras, source.path, out / "savedmodel")
            source = SavedModel(out / "savedmodel")
        found = isolate.call(log, f"{source.path}", _signatures, source.path)
        if source.signature not in found:
            listed = "; ".join(f"'{name}' ({', '.join(inputs)})" for name, (inputs, _) in sorted(found.items()))
            raise ConfigError(
                f"{source.path}: has no signature '{source.signature}'; it has {listed or 'none at all'}; "
                "set [model] signature, or --signature"
            )
        made = out / "converted.onnx"
        _tf2onnx(source, made, self.opset, log)
        model = onnx.load(made)
        made.unlink()
        return _with_signature_names(model, *found[source.signature], str(source.path))


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


def _signatures(path: Path) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    from engines import tensorflow

    return {
        name: (tuple(t.name for t in found.inputs), tuple(t.name for t in found.outputs))
        for name, found in tensorflow.signatures(path).items()
    }


def _savedmodel_from_keras(source: Path, folder: Path) -> None:
    from engines import tensorflow

    tensorflow.savedmodel_from_keras(source, folder)


def _tf2onnx(source: SavedModel, made: Path, opset: int, log: Path) -> None:
    command = [sys.executable, "-m", "tf2onnx.convert", "--saved-model", str(source.path), "--output", str(made)]
    command += ["--signature_def", source.signature, "--tag", "serve", "--opset", str(opset)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=False)
    said = done.stdout + done.stderr
    with log.open("a", encoding="utf-8") as stream:
        stream.write(said)
    if done.returncode or not made.is_file():
        raise StageError(f"{source.path}: {_why_tf2onnx_failed(said)}")


def _why_tf2onnx_failed(said: str) -> str:
    """One sentence out of tf2onnx's log."""
    if "No module named" in said and "tf2onnx" in said:
        return "tf2onnx is not installed; pip install 'trtforge[tensorflow]'"
    if "add_slot" in said:
        return "was saved with its optimizer by Keras 2, which needs tf_keras to load; pip install tf_keras"
    unsupported = sorted(set(re.findall(r"Tensorflow op \[(\S+): (\w+)\] is not supported", said)))
    if unsupported:
        listed = ", ".join(f"{kind} (node '{name}')" for name, kind in unsupported[:5])
        more = f" and {len(unsupported) - 5} more" if len(unsupported) > 5 else ""
        hint = ""
        if any(kind.startswith("FakeQuant") for _, kind in unsupported):
            hint = "; export the model without its quantization-aware wrappers and let `quantize` place Q/DQ"
        return f"tf2onnx cannot convert {listed}{more}; replace these operations in the model{hint}"
    lines = [line for line in said.strip().splitlines() if line.strip()]
    return f"tf2onnx failed: {lines[-1].strip() if lines else 'it said nothing'}"


def _with_signature_names(
    model: onnx.ModelProto, inputs: tuple[str, ...], outputs: tuple[str, ...], where: str
) -> onnx.ModelProto:
    """The model, after a check that its inputs and outputs are those of the signature, by name."""
    for what, wanted, values in (("input", inputs, model.graph.input), ("output", outputs, model.graph.output)):
        found = {value.name.removesuffix(":0") for value in values}
        if missing := sorted(set(wanted) - found):
            raise StageError(
                f"{where}: tf2onnx lost the signature's {what} '{missing[0]}' (it kept {', '.join(sorted(found))}); "
                f"an unused {what} cannot be converted: remove it from the signature"
            )
    return model


def _read_onnx(path: Path, opset: int) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:
        raise StageError(
            f"{path}: is not a whole, valid ONNX model ({str(error).strip().splitlines()[0]}); export it again"
        ) from error
    found = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if found < opset:
        try:
            model = onnx.version_converter.convert_version(model, opset)
        except Exception as error:
            raise StageError(
                f"{path}: is opset {found}, and onnx cannot convert it to {opset}: {error}; export it with {opset}"
            ) from error
    return model


def _name_batch_dimension(model: onnx.ModelProto) -> None:
    """tf2onnx calls a dynamic first dimension `unk__149`; it is the batch, and gets that name wherever it stands."""
    unknown = {
        value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input if value.type.tensor_type.shape.dim
    }
    for value in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param and dimension.dim_param in unknown and dimension.dim_param.startswith("unk__"):
                dimension.dim_param = "batch"


def _write_checked(model: onnx.ModelProto, path: Path) -> None:
    if model.ByteSize() > LARGEST_BYTES:
        raise StageError(
            f"{path.name}: the model has {model.ByteSize() >> 20} MiB, more than the 2 GiB of one ONNX file; "
            "external data is not supported yet"
        )
    onnx.save(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise StageError(f"{path.name}: onnx's checker refuses the converted model: {error}") from error
