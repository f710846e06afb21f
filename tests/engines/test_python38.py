"""What runs in the Python 3.8 of JetPack 5 is written for it, by its syntax and names, and really runs there."""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.python38 import ROOT, python38, with_bindings

ROOMS = ("cuda", "elsewhere", "nvinfer", "ort", "refit", "signing", "support")
BACKENDS = ("onnxruntime", "onnxruntime_cuda", "onnxruntime_tensorrt", "reference", "tensorrt")
LATER_NAMES = {
    "removeprefix", "removesuffix", "is_relative_to", "readlink", "with_stem", "bit_count", "pairwise", "cache",
    "randbytes", "lcm", "nextafter", "to_thread", "aclosing", "ParamSpec", "Concatenate", "Self", "StrEnum",
    "ExceptionGroup", "tomllib", "hardlink_to",
}  # fmt: skip
"""Of methods, functions and modules of the standard library that came after 3.8, as far as one may think of them."""
THEIR_OWN = {"source.cache", "self._source.cache"}
PROGRAM = """
import importlib, json, sys
for name in sys.argv[1:]: importlib.import_module(name)
from engines import backend
ours = sorted(name for name in sys.modules if name.partition('.')[0] == 'engines')
print(json.dumps([sys.version_info[:2], ours, backend('tensorrt').versions()]))
"""


def files() -> list[Path]:
    """Of these rooms, of these backends, and of what both import of ``engines``."""
    engines = ROOT / "engines"
    inside = [file for room in ROOMS for file in (engines / room).glob("*.py")]
    inside += [engines / "backends" / f"{name}.py" for name in BACKENDS]
    texts = [file.read_text() for file in inside]
    beside = [file for file in engines.glob("*.py") if any(f"engines.{file.stem} " in text for text in texts)]
    beside += [file for file in engines.glob("*.py") if any(f"engines import {file.stem}" in text for text in texts)]
    return sorted({*inside, *beside, engines / "__init__.py"})


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_syntax_and_names(file: Path) -> None:
    tree = ast.parse(file.read_text(), str(file), feature_version=(3, 8))
    assert list(later(tree)) == []


def later(tree: ast.AST) -> Iterator[str]:
    """What 3.8 does not have, with its line; types in annotations are never evaluated."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in LATER_NAMES and ast.unparse(node) not in THEIR_OWN:
            yield f"{node.lineno}: {node.attr}"
        elif isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} & LATER_NAMES:
            yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "zip" and node.keywords:
            yield f"{node.lineno}: zip(strict)"
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            dicts = [side for side in (node.left, node.right) if isinstance(side, ast.Dict | ast.DictComp)]
            yield from (f"{side.lineno}: dict | dict" for side in dicts)


@pytest.mark.parametrize(
    "text", ["name.removeprefix('a')", "zip(a, b, strict=True)", "{**a} | {'b': 1}", "from functools import cache"]
)
def test_the_check_notices(text: str) -> None:
    assert list(later(ast.parse(text)))


def test_a_real_one_imports_all_of_it_and_asks_the_real_bindings() -> None:
    modules = [str(file.relative_to(ROOT).with_suffix("")).replace("/", ".") for file in files()]
    modules = [name.removesuffix(".__init__") for name in modules]
    done = subprocess.run(
        [python38(), "-W", "error", "-c", PROGRAM, *modules],
        env=with_bindings(),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    version, loaded, versions = json.loads(done.stdout)
    assert version == [3, 8]
    assert set(loaded) <= {*modules, "engines.backends"}, "it imports what is not held to 3.8"
    assert versions["tensorrt"] == "8.5.3.1"
