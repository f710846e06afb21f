"""Files of every kind that the command reads, broken in every way of a list, by one seed: the same for everybody."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.faults.scenarios import DATA, EVALUATION, SHAPES

NPY_HEAD = "{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
DEEP = 100_000


@dataclass(frozen=True)
class Broken:
    """An input, how it comes to be in a folder that was prepared, and the call that reads it."""

    name: str
    arguments: tuple[str, ...]
    write: Callable[[Path], object]
    may_pass: str = ""
    """Why status 0 is right too; empty where it is not."""
    statuses: tuple[int, ...] = (2, 3, 4, 5, 6)


def put(name: str, data: bytes) -> Callable[[Path], object]:
    """Write these bytes to the file of that name."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return write


FILES: dict[str, tuple[str, ...]] = {
    "net.onnx": ("export", "net.onnx", "-o", "out.onnx"),
    "int8.onnx": ("build", "int8.onnx", *SHAPES, "-o", "out.onnx"),
    "data.npz": ("lint", "net.onnx", *DATA),
    "image.npy": ("lint", "net.onnx", "--data", "image.npy"),
    "ranges/ranges.json": ("quantize", "net.onnx", "--ranges", "ranges", "-o", "out.onnx"),
    "ranges/histograms.npz": ("ranges", "merge", "ranges", "other-ranges", "--method", "entropy", "-o", "out"),
    "table.cache": ("ranges", "convert", "table.cache", "--model", "net.onnx", "--to", "ranges", "-o", "out"),
    "table.flatbuffers": ("ranges", "convert", "table.flatbuffers", "--model", "net.onnx", "--to", "ranges", "-o", "o"),
    "table.json": ("ranges", "convert", "table.json", "--model", "net.onnx", "--to", "ranges", "-o", "out"),
    "engine.onnx.json": ("infer", "engine.onnx", *EVALUATION, "-o", "out.json"),
    "outputs.json": ("validate", "outputs.json", "outputs.json"),
    "tolerances.json": ("validate", "net.onnx", "net.onnx", *EVALUATION, "--tolerances", "tolerances.json"),
    "names.json": ("ranges", "convert", "ranges", "--names", "names.json", "--tensorrt", "8.5.2", "--model", "net.onnx",
                   "-o", "out.cache"),
    "plan.toml": ("export", "plan.toml"),
    "trtforge-report/report.json": ("report", "trtforge-report/report.json"),
    "bundle/manifest.json": ("build", "bundle/plan.toml"),
    "bundle/SHA256SUMS": ("build", "bundle/plan.toml"),
    "bundle/plan.toml": ("build", "bundle/plan.toml"),
    "bundle/samples.npz": ("build", "bundle/plan.toml"),
    "new-gate/gate.json": ("baseline", "set", "night", "new-gate"),
    ".trtforge/baselines/good/baseline.json": ("baseline", "show", "good"),
    ".trtforge/baselines/good/SHA256SUMS": ("baseline", "show", "good"),
    "pictures/labels.csv": ("lint", "pictures.onnx", "--data", "pictures", "--labels", "pictures/labels.csv",
                            "--preprocess", 'resize = [8, 8], layout = "nchw", dtype = "float32"'),
    "pictures/0.png": ("lint", "pictures.onnx", "--data", "pictures", "--preprocess",
                       'resize = [8, 8], layout = "nchw", dtype = "float32"'),
}  # fmt: skip
"""Each file, and the call that reads it."""

NO_SUM = {
    "net.onnx": "another byte is another weight",
    "int8.onnx": "another byte is another weight",
    "image.npy": "another byte is another pixel",
    "table.cache": "another digit is another scale",
    "table.flatbuffers": "another byte is another scale",
    "pictures/0.png": "what Pillow shows of it are pixels",
    "pictures/labels.csv": "another letter is another label",
    "data.npz": "the archive's own names and times are in no sum",
    "ranges/histograms.npz": "the archive's own names and times are in no sum",
}
"""Formats in which a changed byte can be another right value."""
EMPTY_IS_FINE = {
    "engine.onnx.json": "what is no record of ours is somebody's own file: the ONNX file is taken as it is",
}
CUT_IS_FINE = {
    "pictures/0.png": "all pixels may be there",
    "pictures/labels.csv": "fewer lines are fewer labels",
    "plan.toml": "fewer lines are fewer options",
    "bundle/plan.toml": "fewer lines are fewer options",
}


def bytes_of_everything(template: Path) -> Iterator[Broken]:
    """Cut off, empty, zeroed, scrambled, somebody else's: what happens to files of any format."""
    chance = random.Random(13)
    for name, arguments in FILES.items():
        data = (template / name).read_bytes()
        reason = EMPTY_IS_FINE.get(name, "")
        for what, changed in {
            "empty": b"",
            "a byte": data[:1],
            "a tenth": data[: len(data) // 10],
            "half": data[: len(data) // 2],
            "all but the end": data[: -max(1, len(data) // 20)],
            "zeros": bytes(len(data)),
            "chance": chance.randbytes(len(data)),
            "a picture": b"\x89PNG\r\n\x1a\n" + data,
            "a text in another script": "Größe: 三\x00\x1b[2J\n".encode("utf-16") * 40,
        }.items():
            is_cut = what in ("all but the end", "half", "a tenth")
            may_pass = CUT_IS_FINE.get(name, "") if is_cut else ""
            yield Broken(f"{name}: {what}", arguments, put(name, changed), reason or may_pass)
        for number in range(3):
            flipped = bytearray(data)
            for place in chance.sample(range(len(data)), min(5, len(data))):
                flipped[place] ^= 1 << chance.randrange(8)
            may_pass = NO_SUM.get(name, "") or reason or "a letter of a name or a digit of a number is another"
            yield Broken(f"{name}: flipped {number}", arguments, put(name, bytes(flipped)), may_pass)


WRONG_VALUES: tuple[object, ...] = (None, -1, "x", [], {"x": 1}, 1e300, True, "\x1b[2J\x00", [[[]]], 2**70)


def values_of_json(template: Path) -> Iterator[Broken]:
    """Each key left out, and each with values of other types."""
    chance = random.Random(14)
    for name, arguments in FILES.items():
        if not name.endswith(".json"):
            continue
        whole = json.loads((template / name).read_text())
        reason = EMPTY_IS_FINE.get(name, "")
        for what, text in {
            "a list": "[]", "a number": "1", "null": "null", "deep": "[" * DEEP, "NaN": "NaN",
            "not UTF-8": '{"\xff": 1}', "twice": '{"a": 1, "a": 2}',
        }.items():  # fmt: skip
            yield Broken(f"{name}: {what}", arguments, put(name, text.encode("latin-1")), reason)
        for path in _paths(whole, chance, 8):
            yield Broken(f"{name}: without {'.'.join(map(str, path))}", arguments,
                         put(name, json.dumps(_changed(whole, path)).encode()),
                         reason or "what may be absent")  # fmt: skip
            value = chance.choice(WRONG_VALUES)
            yield Broken(
                f"{name}: {'.'.join(map(str, path))} = {value!r}", arguments,
                put(name, json.dumps(_changed(whole, path, value)).encode()), reason or "a value that may be so",
            )  # fmt: skip


def _paths(whole: object, chance: random.Random, num: int) -> list[tuple[str | int, ...]]:
    def walk(value: object, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
        if path:
            yield path
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in list(items)[:4]:
            yield from walk(item, (*path, key))

    paths = list(walk(whole, ()))
    return chance.sample(paths, min(num, len(paths)))


_ABSENT = object()


def _changed(whole: object, path: tuple[str | int, ...], value: object = _ABSENT) -> object:
    copy = json.loads(json.dumps(whole))
    place = copy
    for key in path[:-1]:
        place = place[key]
    if value is _ABSENT:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return copy


def _npy(descr: str, shape: str, data: bytes = bytes(64)) -> bytes:
    head = NPY_HEAD.format(descr=descr, shape=shape).ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + data


def heads_of_arrays(_template: Path) -> Iterator[Broken]:
    """`.npy` files whose head lies, or says what no model takes."""
    arguments = ("calibrate", "net.onnx", "--data", "image.npy", "-o", "out")
    for what, data in {
        "shape below 0": _npy("'<f4'", "(-1, 4, 8, 8)"),
        "terabytes": _npy("'<f4'", "(1000000000, 4, 800, 800)"),
        "2**63": _npy("'<f4'", "(9223372036854775807, 4, 8, 8)"),
        "2**70": _npy("'<f4'", "(1180591620717411303424, 4, 8, 8)"),
        "objects": _npy("'|O'", "(2, 4, 8, 8)"),
        "texts": _npy("'<U4'", "(2, 4, 8, 8)", bytes(8192)),
        "records": _npy("[('a', '<f4')]", "(2, 4, 8, 8)", bytes(2048)),
        "complex": _npy("'<c8'", "(1, 4, 8, 8)", bytes(2048)),
        "nothing in it": _npy("'<f4'", "(0, 4, 8, 8)", b""),
        "a scalar": _npy("'<f4'", "()"),
        "no tuple": _npy("'<f4'", "[1, 4, 8, 8]", bytes(1024)),
        "a call": _npy("__import__('os').system('true')", "(1,)"),
        "deep": b"\x93NUMPY\x01\x00" + struct.pack("<H", 60000) + b"(" * 60000,
        "version 9": b"\x93NUMPY\x09\x00" + bytes(100),
        "NaN": _npy("'<f4'", "(2, 4, 8, 8)", np.full(512, np.nan, np.float32).tobytes()),
        "infinity": _npy("'<f4'", "(2, 4, 8, 8)", np.full(512, np.inf, np.float32).tobytes()),
        "too few axes": _npy("'<f4'", "(2, 4, 8)", bytes(256)),
        "too many axes": _npy("'<f4'", "(2, 4, 8, 8, 1)", bytes(2048)),
    }.items():
        yield Broken(f"image.npy: {what}", arguments, put("image.npy", data))


def _model(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        model = onnx.load(folder / "net.onnx")
        change(model)
        (folder / "net.onnx").write_bytes(model.SerializeToString())

    return write


def _external(location: str, length: str = "8") -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": "0", "length": length}.items():
            tensor.external_data.add(key=key, value=value)

    return change


def _calls_itself(model: onnx.ModelProto) -> None:
    node = helper.make_node("Again", ["x"], ["y"], domain="own")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model.functions.append(helper.make_function("own", "Again", ["x"], ["y"], [node], opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    node = helper.make_node("Again", [model.graph.output[0].name], ["more"], domain="own")
    model.graph.node.append(node)
    model.graph.output[0].name = "more"


def _field(number: int, data: bytes) -> bytes:
    """A field of a message, of bytes, as Protocol Buffers encode it."""
    head, size = bytearray([number << 3 | 2]), len(data)
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes(head) + bytes([size]) + data


def _nested(folder: Path) -> None:
    """Branches within branches, too deep for protobuf's own writer."""
    graph = b""
    for number in range(300):
        attribute = _field(1, b"then_branch") + _field(6, graph) + b"\xa0\x01\x05"
        node = _field(1, b"image") + _field(2, f"y{number}".encode()) + _field(4, b"If") + _field(5, attribute)
        graph = _field(1, node)
    with (folder / "net.onnx").open("ab") as stream:
        stream.write(_field(7, graph))  # It is merged with the graph that is there.


MODELS: dict[str, Callable[[onnx.ModelProto], object]] = {
    "no outputs": lambda model: model.graph.ClearField("output"),
    "no graph": lambda model: model.ClearField("graph"),
    "no opset": lambda model: model.ClearField("opset_import"),
    "opset 0": lambda model: setattr(model.opset_import[0], "version", 0),
    "opset 9999": lambda model: setattr(model.opset_import[0], "version", 9999),
    "opset below 0": lambda model: setattr(model.opset_import[0], "version", -(2**63)),
    "IR 9999": lambda model: setattr(model, "ir_version", 9999),
    "no weights": lambda model: model.graph.ClearField("initializer"),
    "a weight that is cut off": lambda model: setattr(model.graph.initializer[0], "raw_data", b"abc"),
    "a weight of terabytes": lambda model: model.graph.initializer[0].dims.__setitem__(0, 2**40),
    "a weight of shape below 0": lambda model: model.graph.initializer[0].dims.__setitem__(0, -1),
    "a weight of no type": lambda model: setattr(model.graph.initializer[0], "data_type", 0),
    "a weight of type 99": lambda model: setattr(model.graph.initializer[0], "data_type", 99),
    "a node of no operator": lambda model: setattr(model.graph.node[0], "op_type", ""),
    "an unknown operator": lambda model: setattr(model.graph.node[0], "op_type", "Nothing"),
    "an unknown domain": lambda model: setattr(model.graph.node[0], "domain", "nowhere\x1b[2J"),
    "a circle": lambda model: model.graph.node[0].input.__setitem__(0, model.graph.node[1].output[0]),
    "a tensor made twice": lambda model: model.graph.node[1].output.__setitem__(0, model.graph.node[0].output[0]),
    "a tensor nobody makes": lambda model: model.graph.node[1].input.__setitem__(0, "nobody"),
    "no inputs of a node": lambda model: model.graph.node[0].ClearField("input"),
    "an output nobody makes": lambda model: setattr(model.graph.output[0], "name", "nobody"),
    "an input of no type": lambda model: model.graph.input[0].ClearField("type"),
    "an input of texts": lambda model: setattr(model.graph.input[0].type.tensor_type, "elem_type", TensorProto.STRING),
    "an attribute of another type": lambda model: setattr(model.graph.node[0].attribute[0], "type", 4),
    "pads of another length": lambda model: model.graph.node[0].attribute[0].ints.append(1),
    "pads of 2**60": lambda model: model.graph.node[0].attribute[0].ints.__setitem__(0, 2**60),
    "weights outside": _external("../../../../etc/passwd"),
    "weights at an absolute path": _external("/etc/passwd"),
    "weights that are missing": _external("missing.bin"),
    "weights in itself": _external("net.onnx", str(2**62)),
    "weights with NUL": _external("a\x00b"),
    "a function that calls itself": _calls_itself,
    "a name of a megabyte": lambda model: setattr(model.graph.node[0], "name", "x" * 2**20),
    "a name with escapes": lambda model: setattr(model.graph.output[0], "name", "\x1b]0;x\x07\x00"),
}


def models(_template: Path) -> Iterator[Broken]:
    """ONNX files that can be read and are wrong."""
    fine = {"a name of a megabyte": "a name may be long", "pads of 2**60": "runs where there is memory"}
    for what, change in MODELS.items():
        write = _model(change)
        yield Broken(f"net.onnx: {what}", FILES["net.onnx"], write, fine.get(what, ""))
        if what != "a name of a megabyte":
            yield Broken(f"net.onnx, to be calibrated: {what}", ("calibrate", "net.onnx", *DATA, "-o", "out"), write)

    yield Broken("net.onnx: 300 branches in each other", FILES["net.onnx"], _nested)


def lines_of_caches(_template: Path) -> Iterator[Broken]:
    """TensorRT's calibration caches: a head, and lines of `name: hexadecimal float`."""
    for what, text in {
        "only a head": "TRT-8502-EntropyCalibration2\n",
        "another head": "TRT-x-y\nimage: 3c010a14\n",
        "no hexadecimal": "TRT-8502-EntropyCalibration2\nimage: zzzzzzzz\n",
        "nine digits": "TRT-8502-EntropyCalibration2\nimage: 3c010a14f\n",
        "NaN": "TRT-8502-EntropyCalibration2\nimage: 7fc00000\n",
        "infinity": "TRT-8502-EntropyCalibration2\nimage: 7f800000\n",
        "below 0": "TRT-8502-EntropyCalibration2\nimage: bc010a14\n",
        "twice": "TRT-8502-EntropyCalibration2\nimage: 3c010a14\nimage: 3c010a15\n",
        "no colon": "TRT-8502-EntropyCalibration2\nimage 3c010a14\n",
        "other tensors": "TRT-8502-EntropyCalibration2\nnobody: 3c010a14\n",
        "NUL": "TRT-8502-EntropyCalibration2\nima\x00ge: 3c010a14\n",
    }.items():
        yield Broken(f"table.cache: {what}", FILES["table.cache"], put("table.cache", text.encode()))


def keys_of_plans(_template: Path) -> Iterator[Broken]:
    """Plans whose TOML can be read, or cannot, and that ask for what there is not."""
    base = '[model]\nsource = "net.onnx"\n[data]\ncalibration = {{ path = "data.npz" }}\n'
    for what, text in {
        "deep": f"x = {'[' * DEEP}",
        "deep tables": f"[{'.'.join('a' * 5000)}]\n",
        "no model": "[data]\n",
        "a source with NUL": '[model]\nsource = "a\\u0000b"\n',
        "a source of 50,000 dots": f'[model]\nsource = "{"../" * 50_000}x"\n',
        "a source that is a folder": '[model]\nsource = "pictures"\n',
        "a source that is a link in a circle": '[model]\nsource = "circle.onnx"\n',
        "a number for a source": "[model]\nsource = 1\n",
        "an unknown key": '[model]\nsource = "net.onnx"\nsauce = 1\n',
        "an unknown table": '[model]\nsource = "net.onnx"\n[x]\n',
        "an unknown precision": f'{base}[variants]\nprecisions = ["fp3"]\n',
        "an unknown backend": f'{base}[variants]\nbackends = ["\\u001b[2J"]\n',
        "no precision": f"{base}[variants]\nprecisions = []\n",
        "NaN": f"{base}[validate.int8]\nmax_metric_drop = nan\n",
        "infinity": f"{base}[validate.int8]\natol = inf\n",
        "a million threads": f"{base}[benchmark]\nnum_threads = 1000000000000\n",
        "below 0": f"{base}[benchmark.protocol]\nmin_queries = -1\n",
        "2**70": f"{base}[benchmark.protocol]\nmin_queries = 1180591620717411303424\n",
        "a shape of 0": f"{base}[model.inputs.image]\nmin = [0, 4, 8, 8]\nopt = [1, 4, 8, 8]\nmax = [1, 4, 8, 8]\n",
        "shapes that fall": f"{base}[model.inputs.image]\nmin = [4, 4, 8, 8]\nopt = [2, 4, 8, 8]\nmax = [1, 4, 8, 8]\n",
        "a metric that is no module": f'{base}metric = "nowhere:x"\n',
        "a date": f"{base}[calibrate]\nmethod = 1979-05-27\n",
    }.items():
        text = text.replace("{{", "{").replace("}}", "}")
        yield Broken(f"plan.toml: {what}", ("run", "plan.toml"), put("plan.toml", text.encode()))


def sources(_template: Path) -> Iterator[Broken]:
    """Files of TensorFlow and Keras; those that need not be loaded to be seen as broken."""
    export = ("export", "{}", "-o", "out.onnx")
    for name, files in {
        "empty-savedmodel": {"variables/x": b""},
        "zeros-savedmodel": {"saved_model.pb": bytes(100)},
        "text-savedmodel": {"saved_model.pbtxt": b"{" * 100},
        "chance-savedmodel": {"saved_model.pb": random.Random(15).randbytes(1000)},
        "empty.keras": {"": b""},
        "zeros.keras": {"": bytes(100)},
        "half.keras": {"": b"PK\x03\x04" + bytes(50)},
        "empty.h5": {"": b""},
        "chance.h5": {"": b"\x89HDF\r\n\x1a\n" + random.Random(16).randbytes(2000)},
        "text.onnx": {"": b"hello"},
        "what.xyz": {"": b"hello"},
    }.items():

        def write(folder: Path, name: str = name, files: dict[str, bytes] = files) -> None:
            for file, data in files.items():
                put(f"{name}/{file}".rstrip("/"), data)(folder)

        yield Broken(f"{name}", tuple(argument.format(name) for argument in export), write)


KINDS = (bytes_of_everything, values_of_json, heads_of_arrays, models, lines_of_caches, keys_of_plans, sources)


def all_broken(template: Path) -> list[Broken]:
    """All of them, for the files of this folder."""
    return [broken for kind in KINDS for broken in kind(template)]
