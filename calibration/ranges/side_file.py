"""Files beside the ranges that say how they came about, such as ``choice.json``: no digest covers them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from calibration.errors import DataError

T = TypeVar("T")


def write_side_file(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON.

    Raises:
        ValueError: it has a number that is not finite.
    """
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def read_side_file(path: Path, build: Callable[[Any], T]) -> T | None:
    """What ``build`` makes of the record; None where there is no file.

    Raises:
        DataError: the file is damaged: it is no JSON, or ``build`` raises ValueError, KeyError or TypeError.
    """
    if not path.is_file():
        return None
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: is damaged ({error}); delete it, or calibrate again") from error
