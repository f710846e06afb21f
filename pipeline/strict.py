"""Records from and to plain data (TOML, JSON), strictly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import cattrs
from cattrs.errors import AttributeValidationNote, ClassValidationError, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from calibration.data.source import DataSource
from pipeline.errors import EXIT_STATUS, ConfigError
from pipeline.spelling import nearest

T = TypeVar("T")


def record_from_table(table: Mapping[str, Any], kind: type[T], where: str) -> T:
    """A dataclass from plain data, strictly: no unknown key, no value of another type.

    A table within a table starts from the default of its field: ``[validate.int8] max_metric_drop = 0.02`` leaves the
    other tolerances for INT8 as they are.

    Raises:
        ConfigError: names the key, as in ``plan.toml: [quantize] unknown key 'metod'; did you mean 'method'?``.
    """
    try:
        return _CONVERTER.structure(table, kind)
    except Exception as error:
        place, message = _first_fault(error)
        inside = f" [{'.'.join(place)}]" if place else ""
        for word in (*place, where.lstrip("-")):  # A record that checks itself may begin with its own name.
            message = message.removeprefix(f"{word}: ")
        raise ConfigError(f"{where}:{inside} {message}") from error


NO_KEY = {"key": False}
"""Metadata of a field that is filled by the reader and cannot be written by users."""


def names_in_file(kind: type[Any]) -> list[str]:
    """The keys of a table that a dataclass is read from: its fields, but for those marked ``NO_KEY``.

    A field with the metadata ``keys``, a function, is a mapping: it takes the keys of the mapping that the function
    returns, which is also its default.
    """
    names: list[str] = []
    for field in fields(kind):
        if "keys" in field.metadata:
            names += field.metadata["keys"]()
        elif field.metadata.get("key", True):
            names.append(field.name)
    return names


class _Misfit(ValueError):
    """A value that does not fit, and the keys that lead to it."""

    def __init__(self, place: list[str], message: str) -> None:
        super().__init__(message)
        self.place = place


def _first_fault(error: Exception) -> tuple[list[str], str]:
    """The path to the innermost fault, and what it is, out of cattrs's tree of errors.

    What is neither a value's fault nor one of our sentences is a bug of ours, and raised as it is.
    """
    if isinstance(error, ClassValidationError):
        inner = next((e for e in error.exceptions if isinstance(e, ForbiddenExtraKeysError)), error.exceptions[0])
        place, message = _first_fault(inner)
        notes = [note for note in getattr(inner, "__notes__", []) if isinstance(note, AttributeValidationNote)]
        shown = notes and not isinstance(inner, KeyError) and not _is_collecting(error.cl, notes[0].name)
        return ([notes[0].name, *place] if shown else place), message
    if isinstance(error, ForbiddenExtraKeysError):
        extra = sorted(error.extra_fields)[0]
        known = names_in_file(error.cl)
        return [], f"unknown key '{extra}'{nearest(extra, known)}"
    if isinstance(error, _Misfit):
        return error.place, str(error)
    if isinstance(error, KeyError):
        return [], f"the key '{error.args[0]}' is missing; write {error.args[0]} = …"
    if isinstance(error, (ValueError, *EXIT_STATUS)):
        return [], str(error)
    raise error


def _is_collecting(kind: type[Any], name: str) -> bool:
    """Whether that field is a mapping whose keys stand in the table itself."""
    return any(field.name == name and "keys" in field.metadata for field in fields(kind))


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, _strict)
    converter.register_structure_hook(Path, lambda value, _: Path(value))
    converter.register_structure_hook_func(_made_of(Literal), _literal)
    converter.register_structure_hook_func(_made_of(tuple), partial(_list, converter))
    converter.register_structure_hook_func(_made_of(Mapping), partial(_mapping, converter))
    converter.register_structure_hook_factory(is_dataclass, partial(_record, converter))
    return converter


def _made_of(origin: object) -> Callable[[Any], bool]:
    """Whether a type is, say, some ``tuple[...]``."""
    return lambda kind: get_origin(kind) is origin


def _record(converter: cattrs.Converter, kind: type[Any]) -> Callable[[Any, Any], Any]:
    """The hook for one dataclass: a table, or for a data set its path alone."""
    plain = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)
    begun = {f.name: _plain_fields(f.default) for f in fields(kind) if is_dataclass(f.default)}
    collecting = next((f for f in fields(kind) if "keys" in f.metadata), None)

    def structure(value: Any, _: Any) -> Any:
        if kind is DataSource and isinstance(value, str):
            return DataSource(path=value)
        if not isinstance(value, Mapping):
            raise ValueError(_misfit(value, "a table of " + ", ".join(f.name for f in fields(kind))))
        whole = {
            key: {**begun.get(key, {}), **item} if isinstance(item, Mapping) else item for key, item in value.items()
        }
        if collecting is not None:
            whole = _collected(whole, kind, collecting.name, collecting.metadata["keys"]())
        return plain(whole, kind)

    return structure


def _collected(table: Mapping[str, Any], kind: type[Any], name: str, begun: Mapping[str, Any]) -> dict[str, Any]:
    """The table with the keys that belong to its mapping ``name`` in there, each over what it has by default."""
    if name in table:
        raise ForbiddenExtraKeysError("", kind, {name})
    tables = {key: table.get(key, {}) for key in begun}
    completed = {key: {**_plain_fields(begun[key]), **i} if isinstance(i, Mapping) else i for key, i in tables.items()}
    return {key: item for key, item in table.items() if key not in begun} | {name: completed}


def _plain_fields(record: Any) -> dict[str, Any]:
    """The fields of a dataclass that are no dataclasses themselves, nor a mapping of such."""
    plain = (field.name for field in fields(record) if "keys" not in field.metadata)
    return {name: value for name in plain if not is_dataclass(value := getattr(record, name))}


def _list(converter: cattrs.Converter, value: Any, kind: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(_misfit(value, "a list in [brackets]"))
    return tuple(converter.structure(item, get_args(kind)[0]) for item in value)


def _mapping(converter: cattrs.Converter, value: Any, kind: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(_misfit(value, "a table"))
    structured = {}
    for key, item in value.items():
        try:
            structured[key] = converter.structure(item, get_args(kind)[1])
        except Exception as error:
            place, message = _first_fault(error)
            raise _Misfit([key, *place], message) from error
    return structured


def _literal(value: object, kind: object) -> object:
    allowed = get_args(kind)
    if value not in allowed:
        words = [str(word) or '""' for word in allowed]
        raise ValueError(f"is {value!r}{nearest(str(value), words)}")
    return value


def _strict(value: Any, kind: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        words: dict[object, str] = {int: "a whole number", float: "a number", bool: "true or false"}
        raise ValueError(_misfit(value, words.get(kind, "a text in quotes")))
    if kind is str and "\0" in value:
        raise ValueError(f"is {value!r}, which has a NUL character; no name or path has one")
    if kind is float and math.isnan(value):
        raise ValueError("is nan, but takes a number; nothing is above or below nan")
    return value


def _misfit(value: object, wanted: str) -> str:
    """What a value of a plan is, in TOML's words, against what was expected."""
    if value == "?":  # As `trtforge init` writes it.
        return f"is still the question '?'; answer it with {wanted}, the comments of the plan say what is known"
    kinds: dict[type, str] = {bool: "a truth value", int: "a whole number", float: "a number", str: "a text"}
    kinds |= {list: "a list", dict: "a table"}
    shown = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return f"is {shown}, {kinds.get(type(value), 'a date or time')}, but takes {wanted}"


_CONVERTER = _converter()
