"""TensorFlow models to ONNX by tf2onnx, which is run as a command in a process of its own."""

from __future__ import annotations

import os
import re
import runpy
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from calibration.graph.editing import nodes_of
from engines.backends import tensorflow
from pipeline.errors import ConfigError, StageError, Unavailable
from pipeline.machine import child_process
from pipeline.sources.contract import Conversion
from pipeline.sources.side_effects import check_side_effects

INSTALL = "pip install 'trtforge[tensorflow]'"
HASH_SEED = "PYTHONHASHSEED"
CONVERTED = "converted.onnx"
SAVEDMODEL = "savedmodel"
"""The folder in which a Keras file lies as a SavedModel, beside the ONNX model."""


def convert(
    path: Path, signature: str, out: Path, how: Conversion, *, is_keras: bool = False
) -> tuple[onnx.ModelProto, list[str]]:
    """The ONNX model of a SavedModel, or with ``is_keras`` of a Keras file, and notes; ``out``: a folder to work in.

    Raises:
        ConfigError: there is no such signature.
        Unavailable: TensorFlow or tf2onnx is not installed.
        StageError: tf2onnx refused the model, or crashed.
    """
    _check_installed()
    with _fixed_hashes():
        notes = child_process.call(out / "convert.log", f"{path}", _convert, path, signature, out, how, is_keras)
    return _taken(out / CONVERTED), notes


def convert_tflite(path: Path, where: Path, out: Path, how: Conversion) -> onnx.ModelProto:
    """The ONNX model of a `.tflite` file, with Q/DQ nodes where that is quantized; ``where``: its name for sentences.

    Raises:
        Unavailable: TensorFlow or tf2onnx is not installed.
        StageError: tf2onnx refused the model, or crashed.
    """
    _check_installed()
    with _fixed_hashes():
        child_process.call(out / "convert.log", f"{where}", _convert_tflite, path, where, out, how.opset)
    return _taken(out / CONVERTED)


def _check_installed() -> None:
    if reason := tensorflow.why_not_run():
        raise Unavailable(reason)
    if find_spec("tf2onnx") is None:
        raise Unavailable(f"tf2onnx: is not installed; {INSTALL}")


def _taken(made: Path) -> onnx.ModelProto:
    """The model that a process wrote, whose file is not kept."""
    model = onnx.load(made)
    made.unlink()
    _make_reproducible(model.graph)
    return model


@contextmanager
def _fixed_hashes() -> Iterator[None]:
    """For processes started meanwhile: tf2onnx numbers nodes, and merges constants, in the order of sets of names."""
    before = os.environ.get(HASH_SEED)
    os.environ[HASH_SEED] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[HASH_SEED]
        else:
            os.environ[HASH_SEED] = before


def _convert(path: Path, name: str, out: Path, how: Conversion, is_keras: bool) -> list[str]:
    """Write ``out/converted.onnx``; notes. For a process of its own, whose output goes to ``out/convert.log``."""
    where = path
    if is_keras:
        tensorflow.savedmodel_from_keras(path, out / SAVEDMODEL, allow_lambda="Lambda" in how.allow)
        path = out / SAVEDMODEL
    signatures = tensorflow.signatures(path)
    if name not in signatures:
        listed = "; ".join(f"'{n}' ({', '.join(t.name for t in s.inputs)})" for n, s in sorted(signatures.items()))
        raise ConfigError(
            f"{where}: has no signature '{name}'; it has {listed or 'none at all'}; "
            "set [model] signature, or --signature"
        )
    signature = signatures[name]
    inputs, outputs = ([tensor.name for tensor in side] for side in (signature.inputs, signature.outputs))
    if odd := [name for name in (*inputs, *outputs) if ":" in name]:
        raise ConfigError(
            f"{where}: signature '{name}' calls a tensor '{odd[0]}', a name without ':' is expected; "
            "save the model with a signature of other names"
        )
    notes = check_side_effects(path, name, how.allow)
    made = out / CONVERTED
    with tempfile.TemporaryDirectory(prefix="trtforge-") as folder:
        source = ["--saved-model", str(_inlinable(path, Path(folder))), "--signature_def", name, "--tag", "serve"]
        trouble = _run_tf2onnx(source, made, how.opset)
    log_text = (out / "convert.log").read_text(encoding="utf-8", errors="replace")
    if refused := _refused_by_tf2onnx(str(where), log_text, trouble):
        raise refused
    _check_signature_names(onnx.load(made), inputs, outputs, str(where))
    return notes


MUST_COMPILE, MAY_COMPILE = b"_XlaMustCompile\x12\x02\x28\x01", b"_XlaMustCompile\x12\x02\x28\x00"
"""An attribute of functions that is true, and that is false, as protobuf writes them."""


def _inlinable(path: Path, folder: Path) -> Path:
    """The SavedModel, or a copy in ``folder`` without functions that XLA must compile, which would not be inlined.

    Keras has such around convolutions in groups, and tf2onnx knows no calls of functions.
    """
    graph_file = path / "saved_model.pb"
    graph = graph_file.read_bytes() if graph_file.is_file() else b""
    if MUST_COMPILE not in graph:
        return path
    for entry in path.iterdir():
        if entry.name not in (graph_file.name, "fingerprint.pb"):
            (folder / entry.name).symlink_to(entry.resolve())
    (folder / graph_file.name).write_bytes(graph.replace(MUST_COMPILE, MAY_COMPILE))
    return folder


def _convert_tflite(path: Path, where: Path, out: Path, opset: int) -> None:
    """Write ``out/converted.onnx``. For a process of its own, whose output goes to ``out/convert.log``."""
    _keep_biases()
    trouble = _run_tf2onnx(["--tflite", str(path)], out / CONVERTED, opset)
    log_text = (out / "convert.log").read_text(encoding="utf-8", errors="replace")
    if refused := _refused_by_tf2onnx(str(where), log_text, trouble):
        raise refused


def _run_tf2onnx(source: list[str], made: Path, opset: int) -> str:
    """The command ``python -m tf2onnx.convert`` in this process; empty, or with what error it ended."""
    _register_erfc()
    _leave_out_optimizers()
    sys.argv = ["tf2onnx", *source, "--output", str(made), "--opset", str(opset)]
    try:
        runpy.run_module("tf2onnx.convert", run_name="__main__", alter_sys=True)
    except (Exception, SystemExit) as error:  # noqa: BLE001  # Whatever it is, it becomes one sentence.
        return f"{type(error).__name__}: {error}"
    return "" if made.is_file() else "it wrote no file"


def _register_erfc() -> None:
    """Teach tf2onnx Erfc, which Keras writes for GELU: 1 - Erf."""
    from tf2onnx import utils
    from tf2onnx.handler import tf_op

    @tf_op("Erfc")
    class _Erfc:
        @classmethod
        def version_9(cls, ctx: Any, node: Any, **_settings: Any) -> None:
            shapes, types = [ctx.get_shape(node.output[0])], [ctx.get_dtype(node.output[0])]
            ones = np.array(1, utils.map_onnx_to_numpy_type(types[0]))
            ctx.remove_node(node.name)
            erf = ctx.make_node("Erf", [node.input[0]], shapes=shapes, dtypes=types)
            held = ctx.make_const(utils.make_name("one"), ones)
            inputs = [held.output[0], erf.output[0]]
            ctx.make_node("Sub", inputs, outputs=node.output, name=node.name, shapes=shapes, dtypes=types)


def _keep_biases() -> None:
    """Of dense layers behind data of more than two dimensions: tf2onnx 1.17 flattens it, and forgets the bias."""
    from tf2onnx import utils
    from tf2onnx.handler import tfl_op
    from tf2onnx.tflite_handlers.tfl_math import TflFullyConnectedOp

    @tfl_op(["TFL_FULLY_CONNECTED"])
    class _Dense:
        @classmethod
        def to_tf(cls, ctx: Any, node: Any, **settings: Any) -> None:
            data, weight = node.input[:2]
            if not node.attr["keep_num_dims"].i and ctx.get_rank(data) != 2:  # Then there is nothing left to flatten.
                num_inputs = ctx.get_shape(weight)[1]
                shape = ctx.make_const(utils.make_name("flat_shape"), np.array([-1, num_inputs], np.int64))
                types = [ctx.get_dtype(data)]
                flat = ctx.make_node("Reshape", [data, shape.output[0]], shapes=[[-1, num_inputs]], dtypes=types)
                flat.skip_conversion = True
                ctx.replace_inputs(node, [flat.output[0], *node.input[1:]])
            TflFullyConnectedOp.to_tf(ctx, node, **settings)


def _leave_out_optimizers() -> None:
    """Those whose work ``export`` does better.

    tf2onnx takes Einsums apart with shapes that are computed at run time, and makes pools of all means, also of those
    of a layer normalization, which are no pools to be quantized.
    """
    from tf2onnx import optimizer

    for name in ("einsum_optimizer", "global_pool_optimizer"):
        optimizer._get_optimizers().pop(name, None)


def _refused_by_tf2onnx(where: str, log_text: str, trouble: str) -> Exception | None:
    """One sentence out of tf2onnx's log; it writes a file of unknown operators, and ends well, if it does not know one.

    Args:
        where: the model, for the sentence.
        log_text: all that it wrote on the terminal.
        trouble: with what error it ended; empty if it ended well.
    """
    unsupported = [
        (kind, name) for name, kind in re.findall(r"Tensorflow op \[(\S+): (\w+)\] is not supported", log_text)
    ]
    unsupported += [(op, name) for name, op in re.findall(r"Failed to convert node '(.+?)' .*\n'?OP=(\w+)", log_text)]
    if unsupported:
        unsupported = list(dict.fromkeys(unsupported))
        listed = ", ".join(f"{kind} (node '{name}')" for kind, name in unsupported[:5])
        more = f" and {len(unsupported) - 5} more" if len(unsupported) > 5 else ""
        hint = "replace these operations in the model"
        if any(kind.startswith("FakeQuant") for kind, _ in unsupported):
            hint = "train with narrow_range = false for data, or save the model without its quantization-aware wrappers"
        why = f" ({_reason(trouble)})" if trouble else ""
        return StageError(f"{where}: tf2onnx cannot convert {listed}{more}{why}; {hint}")
    if not trouble:
        return None
    if "add_slot" in trouble:
        return Unavailable(
            f"{where}: was saved by Keras 2 together with its optimizer, reading it takes tf_keras of TensorFlow's "
            f"minor version; {INSTALL}"
        )
    if "maximum protobuf size" in trouble or "exceeds 2GB" in trouble or "larger than 2GB" in trouble:
        return StageError(
            f"{where}: tf2onnx writes at most 2047 MiB, and the model has more; take a smaller model, or give it as an "
            "ONNX file with its weights in a file beside it"
        )
    return StageError(f"{where}: tf2onnx failed ({_reason(trouble)[:400]}); fix the model, and save it again")


def _reason(trouble: str) -> str:
    """What tf2onnx says that it met, without the name of the function of its own that noticed."""
    return re.sub(r"^ValueError: (make_sure failure: )?", "", " ".join(trouble.split()))


def _check_signature_names(model: onnx.ModelProto, inputs: list[str], outputs: list[str], where: str) -> None:
    """That the model's inputs and outputs are those of the signature, by name; their order is the converter's."""
    for what, wanted, values in (("input", inputs, model.graph.input), ("output", outputs, model.graph.output)):
        converted = {value.name for value in values}
        if missing := sorted(set(wanted) - converted):
            raise StageError(
                f"{where}: tf2onnx lost the signature's {what} '{missing[0]}' (it kept {', '.join(sorted(converted))});"
                f" an unused {what} cannot be converted: remove it from the signature"
            )


def _stem(name: str, readers: list[onnx.NodeProto]) -> str:
    """A constant's name without its number. Of one that several nodes read, any of the names it had was kept."""
    return readers[0].output[0] if len(readers) > 1 else re.sub(r"__[0-9]+$", "", name)


def _make_reproducible(graph: onnx.GraphProto) -> None:
    """Equal models, equal bytes: tf2onnx notes where the model lay, and numbers constants in an order that changes."""
    graph.doc_string = ""
    constants = {tensor.name for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes_of(graph):
        for name in dict.fromkeys(name for name in node.input if name in constants):
            readers.setdefault(name, []).append(node)
    numbered = [name for name in readers if re.search(r"__\d+$", name)]
    new_names = {name: f"{_stem(name, readers[name])}__c{index}" for index, name in enumerate(numbered)}
    for node in nodes_of(graph):
        node.input[:] = [new_names.get(name, name) for name in node.input]
    for value in (*graph.initializer, *graph.value_info):
        value.name = new_names.get(value.name, value.name)
    graph.initializer.sort(key=lambda tensor: tensor.name)
    graph.value_info.sort(key=lambda value: value.name)
