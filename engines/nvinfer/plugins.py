"""Libraries of plugins are loaded into the registry of TensorRT, by the way that the library and the generation have.

A library registers its plugins as it is loaded (``REGISTER_TENSORRT_PLUGIN``), in every generation, or TensorRT asks it
for them: ``load_library``, from 8.6 on, calls its ``getPluginCreators`` or ``getCreators``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engines.errors import EngineError, Unavailable
from engines.nvinfer.capability import has_load_library, has_one_kind_of_plugin
from engines.plugin_library import PluginLibrary

GETTERS = ("getCreators", "getPluginCreators")
"""What a library has to export so that TensorRT can ask it for its plugins: from 10 on, and from 8.6 on."""
_LOADED: dict[tuple[str, str], tuple[PluginLibrary, Any]] = {}
"""By module and file name: what is loaded once and stays for as long as this process lives."""


def load_plugins(trt: Any, libraries: Sequence[PluginLibrary], errors: Callable[[], str]) -> None:
    """Load each library, unless this process has it already. ``errors``: what the library said last.

    Raises:
        EngineError: it cannot be loaded, has no plugins, or another of that name is loaded in this process.
        Unavailable: this generation has no way to load it.
    """
    for library in libraries:
        key = trt.__name__, library.path.name
        loaded, _ = _LOADED.get(key, (library, None))
        if loaded.sha256 != library.sha256:
            raise EngineError(
                f"{library.path}: another {library.path.name} is loaded in this process ({loaded.path}), and TensorRT "
                "keeps the first plugins of a name; run the two engines one by one, or build both with one library"
            )
        if key not in _LOADED:
            _LOADED[key] = library, _load(trt, library.path, errors)


def can_be_inside(library: PluginLibrary) -> bool:
    """Whether an engine can have a copy of a loaded library in it: TensorRT must be able to ask it for its plugins."""
    handle = ctypes.CDLL(str(library.path))
    return any(hasattr(handle, getter) for getter in GETTERS)


def _load(trt: Any, path: Path, errors: Callable[[], str]) -> Any:
    """The handle, which has to be kept."""
    registry = trt.get_plugin_registry()
    before = _creators(trt, registry)
    try:
        handle = ctypes.CDLL(str(path))  # All symbols now: what is missing is said here, not in the midst of a build.
    except OSError as error:
        words = " ".join(str(error).split())
        raise EngineError(
            f"{path}: cannot be loaded ({words}); link what it misses, for the TensorRT that is installed here"
        ) from error
    if _creators(trt, registry) != before:
        return handle
    if not any(hasattr(handle, getter) for getter in GETTERS):
        raise EngineError(
            f"{path}: registers no plugin as it is loaded, and exports neither {' nor '.join(GETTERS)}; name the "
            "library that has REGISTER_TENSORRT_PLUGIN for its creators"
        )
    if not has_load_library(trt):
        raise Unavailable(
            f"{path}: registers no plugin as it is loaded, and {trt.__name__} {trt.__version__} cannot ask it for them "
            "as 8.6 and later do; compile it with REGISTER_TENSORRT_PLUGIN"
        )
    loaded = registry.load_library(str(path))
    if loaded is None or _creators(trt, registry) == before:
        reason = errors() if loaded is None else "it has none"
        raise EngineError(
            f"{path}: gives {trt.__name__} {trt.__version__} no plugins ({reason}); compile it for this version, and "
            "give its plugins names of their own"
        )
    return handle, loaded


def _creators(trt: Any, registry: Any) -> list[tuple[str, str, str]]:
    """Name, version and namespace of each plugin that the registry has."""
    creators = registry.plugin_creator_list if has_one_kind_of_plugin(trt) else registry.all_creators
    return sorted((each.name, each.plugin_version, each.plugin_namespace) for each in creators)
