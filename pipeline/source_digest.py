"""SHA-256 of the code that a stage runs: what of this program stands in a recipe.

Statements count; comments, docstrings and formatting do not. Of a module's imports all count, those in functions too;
what is loaded by name, as a backend is, the stage names (``modules``).

It is the code that this process *runs*: where a source file has changed since the process began, nothing is said of it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from calibration.file_digest import SETTLED_NS, remembered_in
from pipeline.errors import Unavailable
from pipeline.source_files import AT_START, PACKAGES, ROOT, TAKEN_NS, state_of

NOT_IN_RECIPES = (
    "pipeline",  # The program's version.
    "engines",  # Which backends there are: a stage names the module of the one that it runs.
    "calibration.file_digest",  # What it finds stands in the recipe.
    "pipeline.machine.packages",  # Likewise.
    "pipeline.machine.child_process",
    "pipeline.machine.progress",
    "pipeline.machine.user_cache",
    "engines.nvinfer.progress",
    "engines.signing",
    "engines.signing.envelope",
    "engines.signing.trust",
)
"""Modules that cannot change a result's bytes; of a package its ``__init__`` alone is meant."""

SILENT_FIELDS = frozenset({"ctx", "kind", "type_comment"})
"""Fields of syntax trees: the first follows from where a node stands, the others do nothing."""

C_WORDS = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|//[^\n]*|/\*.*?\*/""", re.DOTALL)
"""Strings and characters of C, which are kept, and comments, which are not."""


@dataclass(frozen=True)
class Code:
    """One source file."""

    digest: str
    """SHA-256 (hex) of its statements."""
    imports: tuple[str, ...] = ()
    """Dotted names; of ``from a import b`` both ``a`` and ``a.b``, which may be a module."""


@functools.cache
def code_from_python(source: bytes) -> Code:
    """What Python source says.

    The tree is written out here and not by ``ast.dump``, whose form differs between the versions of Python: one store
    may be used by several.
    """
    tree = ast.parse(source)
    words: list[str] = []
    _write(tree, words.append)
    return Code(hashlib.sha256("\n".join(words).encode("utf-8", "surrogatepass")).hexdigest(), tuple(_imports(tree)))


@functools.cache
def code_from_c(source: bytes) -> Code:
    """What C source says: its lines without comments and indentation."""
    text = C_WORDS.sub(lambda match: match[1] or " ", source.decode())
    lines = (" ".join(line.split()) for line in text.splitlines())
    return Code(hashlib.sha256("\n".join(filter(None, lines)).encode()).hexdigest())


def _write(value: object, add: Callable[[str], object]) -> None:
    """The words of a syntax tree, each node's with a closing one; empty fields and docstrings are left out."""
    if isinstance(value, ast.AST):
        add(type(value).__name__)
        for name in value._fields:
            field = getattr(value, name, None)
            if name not in SILENT_FIELDS and field is not None and field != []:
                add(name)
                _write(field, add)
        add(")")
    elif isinstance(value, list):
        add("[")
        for item in value:
            if not _is_docstring(item):
                _write(item, add)
        add("]")
    else:
        add(repr(value))


def _is_docstring(item: object) -> bool:
    """Whether it is a statement that is a text, which does nothing wherever it stands."""
    return isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources_of(*modules: str, root: Path = ROOT, there: Collection[str] = AT_START.keys()) -> dict[str, Code]:
    """The source files that these modules run, by path below ``root``: their own, and those of all that they import.

    A package's ``__init__`` counts with each of its modules. A module that is compiled has a ``.pyi`` file; what counts
    are the C files of its folder. A name of a package that is no module is defined in what the package imports.

    Args:
        modules: dotted names.
        root: the folder of the packages.
        there: the files that there are.
    """
    sources: dict[str, Code] = {}
    queue, seen = list(modules), set[str]()
    while queue:
        name = queue.pop()
        if name in seen or name.split(".")[0] not in PACKAGES:
            continue
        seen.add(name)
        queue += [package] if (package := name.rpartition(".")[0]) else []
        if name in NOT_IN_RECIPES:
            continue
        for file in _files_of(name, there):
            sources[file] = _code_of(root / file)
            queue += sources[file].imports
    return dict(sorted(sources.items()))


def _files_of(module: str, there: Collection[str]) -> list[str]:
    """Those in which a module is written; none where the name is no module's."""
    base = module.replace(".", "/")
    if f"{base}.pyi" in there:
        folder = base.rpartition("/")[0]
        return [file for file in there if file.endswith(".c") and file.rpartition("/")[0] == folder]
    return [file for file in (f"{base}.py", f"{base}/__init__.py") if file in there]


def _code_of(file: Path) -> Code:
    return (code_from_c if file.suffix == ".c" else code_from_python)(file.read_bytes())


def digest_of(sources: Mapping[str, Code]) -> str:
    """SHA-256 (hex) of source files' names and statements."""
    named = "".join(f"{file}\0{code.digest}\0" for file, code in sources.items())
    return hashlib.sha256(named.encode()).hexdigest()


def source_digest(*modules: str) -> str:
    """SHA-256 (hex) of the source that these modules run in this process.

    Raises:
        Unavailable: a file of it has changed since this process began.
    """
    return _running(modules)[0]


def check_unchanged(*modules: str) -> None:
    """That what was loaded meanwhile, here or by processes that this one started, is still what it was at the start.

    Raises:
        Unavailable: it is not.
    """
    _check_as_at_start(_running(modules)[1])


def _check_as_at_start(files: Iterable[str]) -> None:
    for file in files:
        if state_of(ROOT / file) != AT_START.get(file):
            raise Unavailable(
                f"{ROOT / file}: was changed after this process began, so that it runs neither the old program nor the "
                "new one; run again: what was finished is kept"
            )


@functools.cache
def _running(modules: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The digest, once for a process, and the files."""
    state = hashlib.sha256(repr(sorted(AT_START.items())).encode()).hexdigest()
    key = f"source {state} {' '.join(modules)}"
    if (known := remembered_in().get(key)) is not None:
        digest, *files = known.split("\n")
        return digest, tuple(files)
    try:
        sources = sources_of(*modules)
    except (OSError, SyntaxError):  # Gone, or half written.
        _check_as_at_start(AT_START)
        raise
    _check_as_at_start(sources)
    digest = digest_of(sources)
    if TAKEN_NS - max(max(state[-2:]) for state in AT_START.values()) >= SETTLED_NS:
        remembered_in()[key] = "\n".join((digest, *sources))
    return digest, tuple(sources)
