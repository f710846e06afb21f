"""Load a user's own function, given as ``module:function``: a source of batches, or a metric."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from calibration.data.source import FUNCTION
from calibration.errors import DataError


def load_function(spec: str, folder: Path) -> Callable[..., Any]:
    """The callable that ``module:function`` names. The module may lie in ``folder`` or be installed.

    ``folder`` stands first on ``sys.path`` during the import, and last from then on, for what the module imports
    later, inside a function.

    Raises:
        DataError: no such module or function, or the module fails while it is imported (``__cause__`` has the
            traceback).
    """
    if not FUNCTION.fullmatch(spec):
        raise DataError(f"'{spec}': is not of the form module:function; write for example my_data:batches")
    name, attribute = spec.split(":")
    module = _imported(name, folder.resolve(), spec)
    function = getattr(module, attribute, None)
    if function is None:
        near = difflib.get_close_matches(attribute, vars(module), n=1)
        hint = f"did you mean '{near[0]}'?" if near else "correct the name"
        raise DataError(f"{spec}: the module {_place(module)} has no '{attribute}'; {hint}")
    if not callable(function):
        raise DataError(f"{spec}: is a {type(function).__name__}, a function is expected; correct the name")
    return function  # type: ignore[no-any-return]


def module_file(spec: str, folder: Path) -> Path:
    """The source file of the module that ``module:function`` names, for a digest of the user's code.

    Raises:
        DataError: as ``load_function``, or the module has no file.
    """
    load_function(spec, folder)
    file: str | None = getattr(sys.modules[spec.split(":")[0]], "__file__", None)
    if file is None:
        raise DataError(f"{spec}: the module has no source file; put the function into a .py file")
    return Path(file)


def local_file(spec: str, folder: Path) -> Path | None:
    """The file in ``folder`` that ``module:function`` would be loaded from, or None; nothing is loaded."""
    places: Sequence[str] = [str(folder.resolve())]
    parts = spec.split(":")[0].split(".")
    origin = None
    for count in range(1, len(parts) + 1):
        importlib.invalidate_caches()
        module = PathFinder.find_spec(".".join(parts[:count]), places)
        if module is None:
            return None
        origin, places = module.origin, module.submodule_search_locations or ()
    return None if origin is None else Path(origin)


def module_sources(spec: str, folder: Path) -> list[Path]:
    """The module's file and all files in ``folder`` that it imports, in functions too: what a digest must see.

    Raises:
        DataError: as ``module_file``.
    """
    root = folder.resolve()
    sources: set[Path] = set()
    queue = [module_file(spec, folder).resolve()]
    while queue:
        file = queue.pop()
        if file in sources:
            continue
        sources.add(file)
        for name in _imported_names(file, root):
            base = root.joinpath(*name.split("."))
            queue += [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]
    return sorted(sources)


def source_code(spec: str, folder: Path) -> bytes:
    """The source of a user's ``module:function`` and of what it imports from ``folder``; empty for a name of ours.

    Raises:
        DataError: as ``module_file``.
    """
    return b"\0".join(file.read_bytes() for file in module_sources(spec, folder)) if ":" in spec else b""


@contextmanager
def forgotten_modules(folder: Path) -> Iterator[None]:
    """Forget after it what is imported from ``folder`` meanwhile: another folder may have files of these names."""
    before, path = set(sys.modules), sys.path[:]
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and folder.resolve() in Path(file).resolve().parents:
                del sys.modules[name]


def _imported_names(file: Path, root: Path) -> list[str]:
    """Every module that a file may import, as dotted names from the folder ``root``."""
    package = file.relative_to(root).parent.parts if file.is_relative_to(root) else ()
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = package[: len(package) - (node.level - 1)] if node.level else ()
            base = ".".join([*inside, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}".strip(".") for alias in node.names)]
    return names


def _imported(name: str, folder: Path, spec: str) -> ModuleType:
    """The module; one that lies in ``folder`` is never mistaken for another of the same name."""
    local = folder.joinpath(*name.split("."))
    candidates = [path for path in (local.with_suffix(".py"), local / "__init__.py") if path.is_file()]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise DataError(
                f"{spec}: there is no module '{name}' in {folder}, nor is one installed; correct the name"
            ) from error
        raise DataError(
            f"{spec}: the module raised {type(error).__name__} while it was imported ({error}); fix it"
        ) from error
    finally:
        sys.path.remove(str(folder))
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    if candidates and Path(_place(module)).resolve() not in candidates:
        raise DataError(
            f"{spec}: '{name}' is already the name of the module {_place(module)}, not of "
            f"{candidates[0]}; rename that file"
        )
    return module


def _place(module: ModuleType) -> str:
    """Where a module lies, for a message."""
    return getattr(module, "__file__", None) or "built into Python"
