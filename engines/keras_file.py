"""What a Keras file says of itself, without Keras: which Keras wrote it, and in which layers the user's code stands."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from engines.errors import EngineError

UNKNOWN = re.compile(
    r"(?:Could not locate (?:class|function) |Unknown [\w ]+: |Cannot deserialize object of type |Received: layer=)"
    r"['`]?(?P<name>[^'`\s]+?)(?:['`.]| of type <class 'str'>)"
)
"""What Keras 3 and Keras 2 say of a class or function that they do not have."""
FUNCTION = re.compile(r"'class_name': 'function', 'config': '(?P<name>[^']+)'")
"""A function, in the configuration that Keras 2 quotes."""


def is_hdf5(source: Path) -> bool:
    """By its ending; a ``.keras`` file is a zip file."""
    return source.suffix in (".h5", ".hdf5")


def is_keras_2(source: Path) -> bool:
    """Whether Keras 2 wrote it."""
    if is_hdf5(source):
        return not _hdf5_text(source, "keras_version", "2").startswith("3")
    return bool(re.search(r'"keras_version": *"2', _zip_text(source, "metadata.json")))


def custom_code(source: Path, refusal: str) -> str:
    """The sentence about a class or function of the user's that is not in the file; empty where it is not about one.

    ``refusal`` is what Keras said.
    """
    unknown = UNKNOWN.search(refusal)
    if unknown is None or unknown["name"] in ("function", "{"):
        unknown = FUNCTION.search(refusal)
    if unknown is None:
        return ""
    name = unknown["name"].rpartition(">")[2]
    layer = _layer_with(_config(source), name, "")
    whose = f"layer '{layer}' is or uses" if layer else "it uses"
    return (
        f"{source}: {whose} '{name}', code that is not in the file; where it is defined, load the model, write a "
        "SavedModel with model.export('FOLDER'), and export that: trtforge export FOLDER"
    )


def lambda_layer(source: Path) -> str:
    """The name of a Lambda layer in the configuration of an HDF5 file, of nested models too; empty without one."""
    waiting: list[Any] = [json.loads(_hdf5_text(source, "model_config", "null"))]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if item.get("class_name") == "Lambda":
                config = item.get("config")
                return str(config.get("name", "?") if isinstance(config, dict) else "?")
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return ""


def _layer_with(item: Any, name: str, layer: str) -> str:
    """The name of the innermost layer of a configuration in which a class or function stands; empty without one."""
    if isinstance(item, dict):
        config = item.get("config")
        if "class_name" in item and isinstance(config, dict) and isinstance(config.get("name"), str):
            layer = config["name"]
        if name in (item.get("class_name"), str(item.get("class_name")).rpartition(">")[2], config):
            return layer
    parts = list(item.values()) if isinstance(item, dict) else item if isinstance(item, list) else []
    if any(part == name for part in parts):
        return layer
    return next((inner for part in parts if (inner := _layer_with(part, name, layer))), "")


def _config(source: Path) -> Any:
    """The model's configuration; None where the file has none that can be read."""
    try:
        return json.loads(
            _hdf5_text(source, "model_config", "null") if is_hdf5(source) else _zip_text(source, "config.json")
        )
    except (ValueError, RecursionError):
        return None


def _zip_text(source: Path, name: str) -> str:
    """A file in a ``.keras`` file; ``null`` where there is none."""
    try:
        with zipfile.ZipFile(source) as archive:
            return archive.read(name).decode(errors="replace")
    except (OSError, KeyError, zipfile.BadZipFile):
        return "null"


def _hdf5_text(source: Path, name: str, default: str) -> str:
    """An attribute of a Keras HDF5 file."""
    import h5py

    try:
        with h5py.File(source) as file:
            value = file.attrs.get(name, default)
    except OSError as error:
        raise EngineError(
            f"{source}: cannot be read as HDF5 ({' '.join(str(error).split())}); save the model again"
        ) from error
    return value.decode() if isinstance(value, bytes) else str(value)
