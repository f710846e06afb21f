"""What a ``.pt2`` file holds, read with ``zipfile`` and ``json`` alone, and a copy of it that runs nothing when read.

``torch.export.load`` unpickles sample inputs and marked weights, evaluates the expressions of shapes and the guards as
Python, looks operators up by any dotted name, and loads compiled code. The copy has none of it: it is written anew from
the parts that are known, each of which is checked.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engines.errors import EngineError

SAVE = "torch.export.save(torch.export.export(model, (example,)), 'model.pt2')"
"""The line that writes such a file."""
MODEL, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
TENSORS = re.compile(r"data/(weights/weight|constants/tensor)_\d+")
MARKS = ("archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id")
IGNORED = ("extra/",)
"""Parts that are left out of the copy: nothing of the network is in them."""

OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed)\.(?!__)\w+\.(?!_)\w+"
    r"|torch\.ops\.torchvision\.(nms|roi_align|roi_pool|ps_roi_align|ps_roi_pool|deform_conv2d)\.default"
    r"|torch\.ops\.aten\.__(and|or|xor|lshift|rshift)__\.(Tensor|Scalar)"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|map_impl|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|abs|pos)"
    r"|math\.\w+|torch\.(_sym|sym)_\w+"
)
TORCHVISION = "torch.ops.torchvision."
TOUCH_FILES = ("torch.ops.aten.from_file.",)
FUNCTIONS = frozenset({
    "Abs", "Add", "And", "BooleanFalse", "BooleanTrue", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Equality", "Float",
    "FloatPow", "FloatTrueDiv", "FloorDiv", "FloorToInt", "Ge", "GreaterThan", "Gt", "Identity", "IntTrueDiv",
    "Integer", "IsNonOverlappingAndDenseIndicator", "LShift", "Le", "LessThan", "Lt", "Max", "Min", "Mod",
    "ModularIndexing", "Mul", "Ne", "Not", "Or", "Pow", "PowByNatural", "PythonMod", "RShift", "Rational",
    "RoundDecimal", "RoundToInt", "StrictGreaterThan", "StrictLessThan", "Symbol", "ToFloat", "TruncToFloat",
    "TruncToInt", "Unequality", "Where",
})  # fmt: skip
"""SymPy's and torch's, by which the expressions of shapes are written."""
PLAIN = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.keyword, ast.Constant, ast.UnaryOp, ast.USub, ast.UAdd, ast.BinOp,
    ast.Add, ast.Sub, ast.Mult, ast.Pow, ast.Div, ast.FloorDiv, ast.Mod, ast.Compare, ast.Eq, ast.NotEq, ast.Lt,
    ast.LtE, ast.Gt, ast.GtE,
)  # fmt: skip
"""What such an expression may be made of."""
CONTAINERS = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
"""In which inputs and outputs may be arranged."""


class UnsafeArchive(EngineError):
    """The file is no program of torch's, or holds what would be run when it is read."""


def is_program(path: Path) -> bool:
    """Whether a file is a zip archive of the form that ``torch.export.save`` writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/archive_format") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def check_archive(path: Path) -> str:
    """Check a ``.pt2`` file, and tell the version of torch that wrote it; nothing of it is run.

    Raises:
        UnsafeArchive: it is none, or holds a pickle or code.
    """
    with _opened(path) as archive:
        return str(_checked_model(archive, path).get("torch_version", ""))


def write_plain_copy(path: Path, copy: Path) -> bool:
    """Write a copy of the file that ``torch.export.load`` reads without running anything of it.

    Returns whether the program calls operators of torchvision, without which torch cannot read it.

    Raises:
        UnsafeArchive: as ``check_archive``.
    """
    with _opened(path) as archive, zipfile.ZipFile(copy, "w") as written:
        model = _checked_model(archive, path)
        parts = _parts(archive, path)
        for name, entry in parts.items():
            if name in MARKS or name in CONFIGS or TENSORS.fullmatch(name):
                with archive.open(entry) as source, written.open(f"program/{name}", "w", force_zip64=True) as target:
                    while block := source.read(1 << 24):
                        target.write(block)
        written.writestr(f"program/{MODEL}", json.dumps(model))
        written.writestr(f"program/{SAMPLES}", b"")
    return any(key == "target" and str(value).startswith(TORCHVISION) for key, value in _pairs(model))


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UnsafeArchive(f"{path}: is no .pt2 file ({error}); save it again: {SAVE}") from error


def _parts(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The entries by their names below the archive's only folder."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names) or len({name.partition("/")[0] for name in names}) != 1:
        raise UnsafeArchive(f"{path}: is no .pt2 file: its parts are not in one folder, once each; {_again()}")
    return {entry.filename.partition("/")[2]: entry for entry in entries}


def _again() -> str:
    return f"save it again with torch 2.9 or later: {SAVE}"


def _checked_model(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    """The program as plain data, without what is evaluated when it is read."""
    parts = _parts(archive, path)
    if missing := [name for name in (MODEL, *CONFIGS) if name not in parts]:
        raise UnsafeArchive(f"{path}: has no '{missing[0]}', so torch 2.9 or later did not save it; {_again()}")
    for name in parts:
        known = name in (MODEL, SAMPLES, *CONFIGS, *MARKS) or TENSORS.fullmatch(name) or name.startswith(IGNORED)
        if not known:
            what = "compiled code" if name.startswith("data/aotinductor") else "a pickle or the like"
            raise UnsafeArchive(f"{path}: holds {what}, '{name}', which reading it may run; {_again()}")
    for name in CONFIGS:
        _check_config(_json(archive, parts[name], path), f"{path}: '{name}'")
    model = _json(archive, parts[MODEL], path)
    if not isinstance(model, dict):
        raise UnsafeArchive(f"{path}: '{MODEL}' is no program; {_again()}")
    program = _without_notes(model)
    for key, value in _pairs(program):
        _check_pair(key, value, path)
    return program


def _json(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> Any:
    try:
        return json.loads(archive.read(entry))
    except (ValueError, RecursionError, zipfile.BadZipFile) as error:
        raise UnsafeArchive(f"{path}: its part '{entry.filename}' is damaged ({error}); {_again()}") from error


def _check_config(config: Any, where: str) -> None:
    """That no tensor is pickled, and each lies in a part of its own."""
    tensors = config.get("config") if isinstance(config, dict) else None
    if not isinstance(tensors, dict):
        raise UnsafeArchive(f"{where} lists no tensors; {_again()}")
    for name, entry in tensors.items():
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
            raise UnsafeArchive(
                f"{where} says that '{name}' is a pickle, which runs code when it is read; make it a plain tensor on "
                "the CPU, and save the program again"
            )
        if not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
            raise UnsafeArchive(f"{where} names the part '{entry.get('path_name')}', which is no tensor; {_again()}")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key and its value, at any depth."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key, inner
            yield from _pairs(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _pairs(inner)


def _check_pair(key: str, value: Any, path: Path) -> None:
    """That a value of the program is one that is read, and not run."""
    if key == "target" and isinstance(value, str):
        if not OPERATORS.fullmatch(value) or value.startswith(TOUCH_FILES):
            raise UnsafeArchive(
                f"{path}: calls '{value:.80}', operators of torch.ops.aten or torchvision's are expected; "
                "write the network without it, and save it again"
            )
    elif key == "expr_str" and not _is_expression(value):
        raise UnsafeArchive(f"{path}: a shape is {value!r:.80}, which is no expression of sizes; {_again()}")
    elif key in ("in_spec", "out_spec") and not _is_arrangement(value):
        raise UnsafeArchive(
            f"{path}: its inputs or outputs are arranged in a type of its own; take tuples, lists and dicts of tensors"
        )
    elif key in ("min_val", "max_val") and not (value is None or isinstance(value, int)):
        raise UnsafeArchive(f"{path}: a bound of a size is {value!r:.60}, a number is expected; {_again()}")
    elif key == "hint" and value is not None and not _is_hint(value):
        raise UnsafeArchive(f"{path}: an example of a size is {value!r:.60}, a number is expected; {_again()}")
    elif key == "custom_obj_values" and value:
        raise UnsafeArchive(f"{path}: holds an object of a class of its own, which is a pickle; save it without")


def _is_hint(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(number, (int, float)) for number in value.values())


def _is_expression(text: Any) -> bool:
    """Whether a text is made of sums, products and the like of sizes alone: SymPy evaluates it as Python."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, PLAIN):
            return False
        if isinstance(node, ast.Name) and node.id not in FUNCTIONS and not re.fullmatch(r"z?[suf]\d+", node.id):
            return False
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if not re.fullmatch(r"[A-Za-z_]\w*|[-+.\deE]+", node.value):
                return False
        elif isinstance(node, ast.Constant) and not isinstance(node.value, (int, float)):
            return False
    return True


def _is_arrangement(text: Any) -> bool:
    """Whether inputs or outputs are arranged in tuples, lists and dictionaries by words or numbers."""
    try:
        _, tree = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return False
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict) or not isinstance(node.get("children_spec"), list):
            return False
        if node.get("type") not in (None, *CONTAINERS):
            return False
        try:
            context = json.loads(node["context"]) if node.get("context") is not None else None
        except (TypeError, ValueError):
            return False
        keys = context if isinstance(context, list) else [context]
        if not all(key is None or isinstance(key, (str, int)) for key in keys):
            return False
        waiting += node["children_spec"]
    return True


def _without_notes(model: dict[str, Any]) -> dict[str, Any]:
    """The program without guards, which are Python, and without notes of where its nodes come from."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: {} if key == "metadata" else cleaned(inner) for key, inner in value.items()}
        return [cleaned(inner) for inner in value] if isinstance(value, list) else value

    result: dict[str, Any] = cleaned(model)
    result["guards_code"] = []
    return result
