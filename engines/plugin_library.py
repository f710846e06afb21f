"""Shared libraries with plugins of TensorRT: which are named, what they are, and whether an engine was built with them.

A library is code. It is loaded only if whoever runs this names it: a plan's [build] plugins, or ``--plugins``; the
environment variable hands the names on to the processes that load engines. Nothing is loaded here.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.elf import machine_of
from engines.errors import EngineError, NotTrusted, Unavailable
from engines.signing.trust import TRUSTED

NAMED = "TRTFORGE_PLUGINS"
"""The environment variable with the paths of the libraries, with colons between them."""
FIELD = "plugins"
"""Of ``BuildOptions``, and of the options in an engine's record."""


@dataclass(frozen=True)
class PluginLibrary:
    """A library that may be loaded on this machine."""

    path: Path
    sha256: str

    def record(self, *, is_inside: bool) -> dict[str, Any]:
        """What an engine's record has of it. ``is_inside``: whether the engine has a copy in it."""
        return {"name": self.path.name, "sha256": self.sha256, "is_inside": is_inside}


def libraries_named() -> tuple[Path, ...]:
    """Those that the environment names."""
    return tuple(Path(name) for name in os.environ.get(NAMED, "").split(os.pathsep) if name)


def name_libraries(files: Iterable[Path]) -> None:
    """From now on this process, and those that it starts, may load these libraries, and no others."""
    names = os.pathsep.join(str(file.resolve()) for file in files)
    if names:
        os.environ[NAMED] = names
    else:
        os.environ.pop(NAMED, None)


def operators_in(files: Iterable[Path], operators: Iterable[str]) -> dict[str, Path]:
    """Which of these operators have their names in a library: a plugin is registered by its name, a string of its own.

    Nothing is loaded, so that a library for a device can be asked on any machine. It is a sign, not a proof: a name may
    stand there for something else, or be put together as the library is loaded; TensorRT alone knows, as it loads it.

    Raises:
        EngineError: a library cannot be read.
    """
    texts = {file: _content(file) for file in files}
    places = ((name, file) for name in dict.fromkeys(operators) for file, text in texts.items() if _holds(text, name))
    holders: dict[str, Path] = {}
    for name, file in places:
        holders.setdefault(name, file)
    return holders


def _holds(content: bytes, name: str) -> bool:
    return b"\0" + name.encode() + b"\0" in content


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise EngineError(f"{file}: cannot be read ({error.strerror}); name the shared library of a plugin") from error


def sha256_of_library(file: Path) -> str:
    """SHA-256 (hex) of a library's content.

    Raises:
        EngineError: it cannot be read.
    """
    return hashlib.sha256(_content(file)).hexdigest()


def check_library(file: Path) -> None:
    """That a library is for this machine's processor.

    Raises:
        EngineError: it cannot be read, or is no shared library.
        Unavailable: it is for another processor.
    """
    machine = machine_of(file)
    if machine != platform.machine():
        raise Unavailable(
            f"{file}: is compiled for {machine}, this machine is {platform.machine()}; name the library that was "
            "compiled for it"
        )


def library_at(file: Path) -> PluginLibrary:
    """A library that is for this machine's processor.

    Raises:
        EngineError, Unavailable: as ``check_library``.
    """
    check_library(file)
    return PluginLibrary(file, sha256_of_library(file))


def libraries_for(engine: Path, record: Mapping[str, Any]) -> tuple[PluginLibrary, ...]:
    """Those that an engine needs: of the libraries that are named, the very files that its record has.

    Without a record, as of an engine of trtexec, all that are named. Not those whose copy the engine has in it.

    Args:
        engine: its file, for sentences.
        record: what lies beside it; empty where nothing does.

    Raises:
        EngineError: one is not named, or the one that is named is another file.
        NotTrusted: keys are named, and no record that they signed says which libraries belong to the engine.
        Unavailable: one is for another processor.
    """
    files = libraries_named()
    if not record:
        if files and os.environ.get(TRUSTED):
            raise NotTrusted(
                f"{engine}: has no record that was signed with it and says which plugins it needs; {files[0]} was not "
                "loaded: sign the engine with its record beside it, or name no plugins"
            )
        return tuple(map(library_at, files))
    return tuple(_recorded(engine, entry, files) for entry in plugins_in(record) if not entry.get("is_inside"))


def plugins_in(record: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What an engine's record has of each library that it was built with; see ``PluginLibrary.record``."""
    return record.get("options", {}).get(FIELD) or ()


def _recorded(engine: Path, entry: Mapping[str, Any], files: Iterable[Path]) -> PluginLibrary:
    name, sha256 = str(entry["name"]), str(entry["sha256"])
    alike = [file for file in files if file.name == name]
    if not alike:
        raise EngineError(
            f"{engine}: was built with the plugins of {name}, which is not loaded unasked; name it with --plugins, or "
            "in [build] plugins"
        )
    libraries = [library_at(file) for file in alike]
    match = next((library for library in libraries if library.sha256 == sha256), None)
    if match is None:
        raise EngineError(
            f"{alike[0]}: is another file than {engine} was built with (SHA-256 {libraries[0].sha256[:12]}… instead of "
            f"{sha256[:12]}…); it was not loaded: name that one, or build the engine again"
        )
    return match
