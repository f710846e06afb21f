"""Pins: results that a job used and that the store therefore keeps, under a name and for so many generations.

Layout, in the store's folder::

    pins/NAME.json   what NAME used, the newest generation last (``PinsRecord``)

It is replaced by one rename. That a pinned result is missing is no error: it would be made again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from pipeline.errors import ConfigError, DataError
from pipeline.json_record import now_text, record_from_json, write_json
from pipeline.output import alone, put, share_one, work_folder

SCHEMA_VERSION = 1
FOLDER = "pins"
KEEP = 3
"""Generations."""
AGAIN = "delete it, or run again the job that pins its results"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PinGeneration:
    """What was used at one time."""

    pinned_on: str
    """ISO 8601, with the offset from UTC: when this was pinned first."""
    digests: tuple[str, ...]
    """The names of the results' folders, sorted."""


@dataclass(frozen=True)
class PinsRecord:
    """pins/NAME.json."""

    schema_version: int
    generations: tuple[PinGeneration, ...]
    """The newest last; no two that follow each other hold the same."""


def pin(store: Path, name: str, digests: Iterable[str], keep: int = KEEP) -> None:
    """Hold what the named job used now, and what it used in the ``keep - 1`` generations before.

    A generation is what differs from the one before: whoever pins the same again changes nothing.

    Args:
        store: the store's folder.
        name: of the job, such as a model on a device; any text.
        digests: of the recipes, which results' folders are named by.
        keep: how many generations are held, at least 1.

    Raises:
        ConfigError: the store cannot be written, or the name is empty or too long.
        Unavailable: the disk is full.
    """
    used = tuple(sorted(set(digests)))
    file = _file_of(store, name)
    before = _generations(file)
    if before and before[-1].digests == used and len(before) <= keep:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with alone(file.parent, store), work_folder(file) as work:
        before = _generations(file)
        if not before or before[-1].digests != used:
            before = (*before, PinGeneration(now_text(), used))
        write_json(PinsRecord(SCHEMA_VERSION, before[-keep:]), work / file.name)
        share_one(work / file.name, store)
        put(work / file.name, file, work)


def unpin(store: Path, name: str) -> None:
    """Hold nothing under this name any more."""
    _file_of(store, name).unlink(missing_ok=True)


def pins_in(store: Path) -> Iterator[tuple[str, tuple[PinGeneration, ...]]]:
    """Every name, in their order, with its generations, the newest last.

    Raises:
        DataError: a file of them is damaged, so that nobody knows what it holds.
    """
    for file in sorted((store / FOLDER).glob("*.json")):
        yield unquote(file.stem), read_pins(file)


def pinned(store: Path, newest: int = 0) -> set[str]:
    """The folders' names of all results that are held; with ``newest``, by so many generations of each name alone.

    Raises:
        DataError: as of ``pins_in``.
    """
    held = (generation for _, generations in pins_in(store) for generation in generations[-newest:])
    return {digest for generation in held for digest in generation.digests}


def _file_of(store: Path, name: str) -> Path:
    if not name:
        raise ConfigError("pins: a name is empty; give the results a name under which they are held")
    encoded = quote(name, safe="@+")
    return store / FOLDER / f"{'%2E' + encoded[1:] if encoded.startswith('.') else encoded}.json"


def _generations(file: Path) -> tuple[PinGeneration, ...]:
    """Those that are there; none of a damaged file, which is written anew."""
    if not file.exists():
        return ()
    try:
        return read_pins(file)
    except DataError as error:
        log.warning("%s", error)
        return ()


def read_pins(file: Path) -> tuple[PinGeneration, ...]:
    """The generations in a file of pins; DataError if it is damaged."""
    try:
        return record_from_json(file, PinsRecord, SCHEMA_VERSION, AGAIN).generations
    except ConfigError as error:
        raise DataError(f"{error}, for nobody knows which results it holds") from error
