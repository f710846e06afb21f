"""Libraries of TensorRT's plugins that a plan or a command line names: which files they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from engines.plugin_library import libraries_named, name_libraries
from pipeline.errors import ConfigError


def name_plugins(files: Sequence[Path]) -> None:
    """From now on this process, and those that it starts, may load these libraries; those named before no more.

    Raises:
        ConfigError: one is no file, or two have one name.
    """
    for file in files:
        if not file.is_file():
            raise ConfigError(f"plugins: {file} does not exist, or is no file; name the shared library of a plugin")
    check_names([str(file) for file in files])
    name_libraries(files)


def check_names(names: Sequence[str]) -> None:
    """That libraries can be told apart by the names of their files, as records do; ConfigError."""
    files = [Path(name).name for name in names]
    if twice := next((file for file in files if files.count(file) > 1), ""):
        raise ConfigError(f"plugins: two libraries are called {twice}; rename one, or name it once")


def plugin_files(names: Sequence[str]) -> tuple[Path, ...]:
    """The files that are meant, wherever the plan lies: those that are named now, else as a path from here."""
    named = {file.name: file for file in libraries_named()}
    return tuple(named.get(Path(name).name, Path(name).resolve()) for name in names)
