"""Records to JSON and back, strictly, with what is not finite as null."""

from __future__ import annotations

import functools
import json
import math
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_origin

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import cattrs


def now_text() -> str:
    """The time as records have it: ISO 8601 to the second, with the offset from UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def finite(value: float | None) -> float | None:
    """The number if it is finite, else None: JSON has neither NaN nor infinity."""
    return None if value is None or not math.isfinite(value) else value


T = TypeVar("T")


def json_from_record(record: object) -> str:
    """The text of report.json, or of another record; ``docs/report-schema.md`` describes every key.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold; the record wants None there.
    """
    return json.dumps(_converter().unstructure(record), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(record: object, path: Path) -> None:
    """Write report.json, or another record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json_from_record(record), encoding="utf-8")


def record_from_json(path: Path, kind: type[T], version: int, again: str) -> T:
    """Read a record back, strictly: every key there, none unknown, each value of its type.

    Args:
        path: the file.
        kind: the record's class, whose first field is the version.
        version: the one that this program reads.
        again: what to do about a file that does not fit.

    Raises:
        ConfigError: the file cannot be read, is of another version, or does not fit; names the key.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not JSON ({error}); {again}") from error
    key = next(iter(kind.__annotations__))
    file_version = data.get(key) if isinstance(data, dict) else None
    if file_version != version:
        raise ConfigError(f"{path}: {key} is {file_version!r}, this program reads {version}; {again}")
    return record_from_data(data, kind, str(path), again)


def record_from_data(data: object, kind: type[T], where: str, again: str) -> T:
    """A record from what JSON made of it, as strictly; arguments as of ``record_from_json``.

    Raises:
        ConfigError: it does not fit; names the key.
    """
    try:
        return _converter().structure(data, kind)
    except Exception as error:
        from cattrs import transform_error

        message, _, place = transform_error(error, format_exception=_words)[0].rpartition(" @ $")
        inside = f" {place.removeprefix('.')}:" if place else ""
        raise ConfigError(f"{where}:{inside} {message}; {again}") from error


@functools.cache
def _converter() -> cattrs.Converter:
    """Plain data from the record and back, without cattrs's friendly conversions."""
    import cattrs

    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (int, float, str, bool):
        converter.register_structure_hook(kind, _strict)
    items = converter.get_structure_hook(tuple[Any, ...])

    def whole(value: object, kind: Any) -> Any:
        return items(_strict(value, list), kind)  # It would take a text letter by letter.

    converter.register_structure_hook_func(_is_tuple, whole)
    return converter


def _is_tuple(kind: Any) -> bool:
    origin: object = get_origin(kind)
    return origin is tuple


def _words(error: BaseException, kind: type | None) -> str:
    from cattrs.v import format_exception

    if isinstance(error, TypeError):
        return str(error)
    return "is no table of keys" if isinstance(error, AttributeError) else format_exception(error, kind)


def _strict(value: Any, kind: type[T]) -> T:
    if kind is float and type(value) is int:
        return float(value)  # type: ignore[return-value]  # A whole number is a number.
    if type(value) is not kind:
        raise TypeError(f"is {value!r}, expected {kind.__name__}")
    return value
