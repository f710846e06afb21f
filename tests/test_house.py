"""The house rules that a machine can check: arrows, giants, budgets, names."""

from __future__ import annotations

import ast
import importlib
import io
import json
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engines import BACKENDS
from engines.precision import PRECISIONS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "calibration", "engines")
PRODUCT = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

MAY_IMPORT = {
    "calibration": {"calibration"},
    "engines": {"engines"},
    "pipeline": {"pipeline", "calibration", "engines"},
    "scripts": {"pipeline"},
}
"""Who may import whom."""

GIANTS = {
    "tensorflow": "engines/backends/tensorflow.py",
    "keras": "engines/backends/tensorflow.py",
    "tf_keras": "engines/backends/tensorflow.py",
    "tf2onnx": "pipeline/sources/tf2onnx.py",
    "tensorrt": "engines/backends/tensorrt.py",
    "tensorrt_rtx": "engines/backends/tensorrt_rtx.py",
    "pycuda": "engines/cuda/device.py",
    "onnxruntime": "engines/ort/session.py",
    "ai_edge_litert": "engines/backends/litert.py",
    "ai_edge_quantizer": "engines/litert/quantizer.py",
    "torch": "engines/torch_graph/library.py",
    "polygraphy": "pipeline/accuracy/comparison.py",
    "pycocotools": "pipeline/tasks/coco.py",
    "distributed": "pipeline/workers/scheduler.py",
    "fsspec": "pipeline/workers/depot.py",
}
"""The one source file that imports each giant."""


MOST_FILE_LINES = 400
MOST_TEST_FILE_LINES = 500
MOST_FILES = 20
MOST_FUNCTION_LINES = 50
MOST_PARAMETERS = 5

SAY_NOTHING = {"found", "given", "said", "own", "one", "told", "kept"}
"""Names that tell where a value comes from, and not what it is: `interval`, `options`, `record` do."""


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module, and the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            yield node.module or "", node.lineno


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def functions(file: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.FunctionDef):
            yield node


def num_code_lines(file: Path) -> int:
    """Lines that hold code: neither blank, nor comment, nor docstring."""
    source = file.read_text(encoding="utf-8")
    prose = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - prose)


def short(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def test_the_arrows_between_packages() -> None:
    wrong = [
        f"{short(file)}:{line} imports {name}"
        for file in [*PRODUCT, *sorted((ROOT / "scripts").glob("*.py"))]
        for name, line in imports(parsed(file))
        if name.split(".")[0] in PACKAGES and name.split(".")[0] not in MAY_IMPORT[short(file).split("/")[0]]
    ]
    assert wrong == []


def test_each_giant_is_imported_in_one_file() -> None:
    found = {
        (name.split(".")[0], short(file))
        for file in PRODUCT
        for name, _ in imports(parsed(file))
        if name.split(".")[0] in GIANTS
    }
    assert found <= set(GIANTS.items())


def test_importing_the_project_loads_no_giant() -> None:
    modules = [short(file)[:-3].replace("/", ".").removesuffix(".__init__") for file in PRODUCT]
    modules.remove("pipeline.__main__")
    code = f"""
import importlib, json, sys
for name in {modules!r}:
    importlib.import_module(name)
print(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}} & set({sorted(GIANTS)!r}))))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_help_loads_nothing_heavy() -> None:
    code = """
import sys
from pipeline.command.cli import status_of
status_of(["--help"])
print(sorted(set(sys.modules) & {"numpy", "onnx", "rich", "cattrs", "PIL"}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "doctor" in done.stdout
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_generic_names_mean_this_project(package: str) -> None:
    file = importlib.import_module(package).__file__
    assert file is not None
    assert Path(file).resolve().is_relative_to(ROOT)


def test_every_file_says_what_it_does() -> None:
    silent = [short(file) for file in [*PRODUCT, *TESTS] if not ast.get_docstring(parsed(file))]
    assert silent == []


def test_files_are_short() -> None:
    long = {short(file): n for file in PRODUCT if (n := len(file.read_text().splitlines())) > MOST_FILE_LINES}
    assert long == {}


def test_test_files_are_short() -> None:
    long = {short(file): n for file in TESTS if (n := len(file.read_text().splitlines())) > MOST_TEST_FILE_LINES}
    assert long == {}


def test_folders_hold_few_files() -> None:
    written = {".py", ".pyi", ".c", ".j2", ".css", ".cpp", ".hpp", ".cmake"}
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*") if file.suffix in written]
    full = {folder: n for folder, n in Counter(short(file.parent) for file in files).items() if n > MOST_FILES}
    assert full == {}


def test_each_room_says_what_is_in_it() -> None:
    """In the first line of its `__init__.py`, as a sentence."""
    rooms = {folder for file in PRODUCT for folder in file.parents if folder.is_relative_to(ROOT) and folder != ROOT}
    first = {short(room): "" for room in rooms}
    for file in PRODUCT:
        if file.name == "__init__.py":
            first[short(file.parent)] = (ast.get_docstring(parsed(file)) or "").partition("\n")[0]
    assert {room: line for room, line in first.items() if len(line) <= 30} == {}


def test_functions_are_short() -> None:
    lengths = [(f.end_lineno or 0) - f.lineno + 1 for file in PRODUCT for f in functions(file)]
    assert np.percentile(lengths, 95) <= MOST_FUNCTION_LINES


def test_parameters_are_few_and_typed() -> None:
    wrong = []
    for file in PRODUCT:
        for function in functions(file):
            arguments = function.args
            named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            own = [a for a in named if a.arg not in ("self", "cls")]
            untyped = [a.arg for a in own if a.annotation is None]
            if untyped:
                wrong.append(f"{short(file)}:{function.lineno} {function.name}: untyped {untyped}")
            if (
                len([a for a in [*arguments.posonlyargs, *arguments.args] if a.arg not in ("self", "cls")])
                > MOST_PARAMETERS
            ):
                wrong.append(f"{short(file)}:{function.lineno} {function.name}: too many parameters")
    assert wrong == []


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every variable and parameter, wherever it is bound (loops, comprehensions and `:=` as well), and the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name, node.lineno


def test_variables_say_what_they_hold() -> None:
    wrong = [
        f"{short(file)}:{line} {name}"
        for file in PRODUCT
        for name, line in bound_names(parsed(file))
        if name in SAY_NOTHING
    ]
    assert wrong == []


def test_no_forbidden_names() -> None:
    names = {part for file in PRODUCT for part in Path(short(file)).with_suffix("").parts}
    assert not names & {"utils", "common", "helpers", "manager", "misc"}


def public_types(tree: ast.Module) -> Iterator[str]:
    """Classes and type aliases at the top level: names in capitals and small letters."""
    for node in tree.body:
        names = [node.name] if isinstance(node, ast.ClassDef) else []
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        yield from (name for name in names if name[0].isupper() and not name.isupper())


def test_a_public_type_has_one_meaning_in_the_project() -> None:
    places: dict[str, list[str]] = {}
    for file in PRODUCT:
        for name in public_types(parsed(file)):
            places.setdefault(name, []).append(short(file))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_there_is_as_much_test_as_product() -> None:
    assert sum(map(num_code_lines, TESTS)) >= sum(map(num_code_lines, PRODUCT))


def test_tests_are_no_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


CHOICES = {"placement", "target", "runner", "reference", "rest", "native_scales", "wanted", "dtype"}
"""Choices between these very words that are of no backend or precision."""
OF_ONE_BACKEND = {"pipeline/command/diagnosis.py"}
"""What JetPack brings of TensorRT, and what is known to go wrong with it."""


def test_precisions_and_backends_are_asked_and_not_compared() -> None:
    names = {*PRECISIONS, *BACKENDS}
    wrong = []
    for file in PRODUCT:
        if short(file).startswith("engines/") or short(file) in OF_ONE_BACKEND:
            continue
        for node in ast.walk(parsed(file)):
            if not isinstance(node, ast.Compare):
                continue
            sides = [node.left, *node.comparators]
            named = {getattr(side, "attr", getattr(side, "id", "")) for side in sides}
            if any(isinstance(side, ast.Constant) and side.value in names for side in sides) and not named & CHOICES:
                wrong.append(f"{short(file)}:{node.lineno} {ast.unparse(node)}")
    assert wrong == []
