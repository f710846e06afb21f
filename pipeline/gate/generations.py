"""Where the generations of a kept baseline lie, and which of them is the current one: a link that one rename changes.

Layout, in the store's folder::

    baselines/NAME -> .generations/NAME/3          the current one; a folder where an earlier version set it
    baselines/.generations/NAME/3/...              one generation, see ``pipeline.gate.baseline``
    baselines/.generations/NAME/withdrawn.json     the engines that were rolled back from (``WithdrawnRecord``)
    baselines/.generations/NAME/current            a link that is about to be NAME, while a folder makes room for it

A generation is never changed; whoever reads one is not disturbed by whoever sets or rolls back. Numbers only grow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ConfigError, DataError
from pipeline.json_record import record_from_json, write_json
from pipeline.output import exchanged, put, share_one, sync_one
from pipeline.spelling import nearest

SCHEMA_VERSION = 1
FOLDER, GENERATIONS, WITHDRAWN, NEXT = "baselines", ".generations", "withdrawn.json", "current"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class WithdrawnRecord:
    """withdrawn.json."""

    schema_version: int
    engines: Mapping[str, str]
    """Digest of an engine, as in gate.json -> when it was rolled back from (ISO 8601)."""


def check_name(name: str) -> None:
    """Raise ConfigError unless the name can be that of a kept baseline."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"baseline '{name}': is not a valid name; use letters, digits, '.', '_' and '-', such as last-good"
        )


def check_stored(name: str, store: Path) -> None:
    """Raise ConfigError unless there is a baseline of that name."""
    if name not in (names := names_in(store)):
        close = nearest(name, names) if names else "; set one with `trtforge baseline set`, or name its --store"
        raise ConfigError(f"baseline '{name}': is not stored in {store}{close}")


def names_in(store: Path) -> list[str]:
    """Of all baselines that are kept, sorted."""
    names = {path.name for path in (store / FOLDER).glob("*") if path.is_dir() or path.is_symlink()}
    names |= {path.name for path in (store / FOLDER / GENERATIONS).glob("*") if (path / NEXT).is_symlink()}
    return sorted(name for name in names if NAME.fullmatch(name))


def generations_folder(name: str, store: Path) -> Path:
    """Where the generations of a name lie."""
    return store / FOLDER / GENERATIONS / name


def folder_of(name: str, number: int, store: Path) -> Path:
    """A generation's folder; of a baseline that an earlier version set, its own."""
    folder = generations_folder(name, store) / str(number)
    return folder if folder.is_dir() or number != current_number(name, store) else store / FOLDER / name


def current_folder(name: str, store: Path) -> Path | None:
    """The folder of the current one, which stays what it is when another is set; None if there is none."""
    link = _current_link(name, store)
    if link.is_symlink():
        return store / FOLDER / link.readlink()
    return link if link.exists() else None


def current_number(name: str, store: Path) -> int:
    """The current one's; 0 if there is none."""
    link = _current_link(name, store)
    if link.is_symlink():
        number = link.readlink().name
        return int(number) if number.isdigit() else 0
    return _next_number(name, store) if link.is_dir() else 0


def numbers_of(name: str, store: Path) -> list[int]:
    """Of all its generations, the current one's too, ascending."""
    return sorted({*_numbers(name, store), *filter(None, [current_number(name, store)])})


def add_generation(name: str, new: Path, store: Path) -> int:
    """Put a folder that is whole and on disk among the generations, by one rename; its number. It is not current yet.

    The number is above all others, those that were withdrawn included.
    """
    folder = _made(name, store) / str(number := _next_number(name, store))
    new.rename(folder)
    sync_one(folder.parent)
    return number


def make_current(name: str, number: int, store: Path, work: Path) -> None:
    """Make this generation the current one, by one rename."""
    link = work / NEXT
    link.symlink_to(_target(name, number))
    link.rename(store / FOLDER / name)
    sync_one(store / FOLDER)


def settle(name: str, store: Path) -> None:
    """Make a folder that an earlier version set, or a copy without links, a generation; finish what a kill stopped."""
    final, link = store / FOLDER / name, generations_folder(name, store) / NEXT
    if final.is_dir() and not final.is_symlink():
        folder = _made(name, store) / str(number := _next_number(name, store))
        folder.unlink(missing_ok=True)  # The link of one who was killed.
        folder.symlink_to(_target(name, number))
        if not exchanged(folder, final):
            folder.replace(link)
            final.rename(folder)
    if link.is_symlink():
        if final.is_symlink():
            link.unlink()
        else:
            link.rename(final)
    if final.exists():
        sync_one(final.parent)


def withdrawn(name: str, store: Path) -> dict[str, str]:
    """The engines that were rolled back from: digest, as in gate.json, -> when.

    Raises:
        DataError: the file is damaged.
    """
    file = generations_folder(name, store) / WITHDRAWN
    if not file.exists():
        return {}
    try:
        again = "delete it if no engine is to be held back"
        return dict(record_from_json(file, WithdrawnRecord, SCHEMA_VERSION, again).engines)
    except ConfigError as error:
        raise DataError(f"baseline '{name}': {error}") from error


def write_withdrawn(name: str, engines: Mapping[str, str], store: Path, work: Path) -> None:
    """Remember these instead, by one rename."""
    write_json(WithdrawnRecord(SCHEMA_VERSION, engines), work / WITHDRAWN)
    share_one(work / WITHDRAWN, store)
    put(work / WITHDRAWN, _made(name, store) / WITHDRAWN, work)


def _target(name: str, number: int) -> Path:
    return Path(GENERATIONS, name, str(number))


def _current_link(name: str, store: Path) -> Path:
    """The link, or the folder, that says which one is current."""
    final, link = store / FOLDER / name, generations_folder(name, store) / NEXT
    return link if link.is_symlink() and not os.path.lexists(final) else final


def _numbers(name: str, store: Path) -> Iterator[int]:
    for path in generations_folder(name, store).glob("*"):
        if path.name.isdigit() and path.is_dir() and not path.is_symlink():
            yield int(path.name)


def _next_number(name: str, store: Path) -> int:
    return max(_numbers(name, store), default=0) + 1


def _made(name: str, store: Path) -> Path:
    folder = generations_folder(name, store)
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder.parent, folder):
        share_one(path, store)
    return folder
