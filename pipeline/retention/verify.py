"""Every byte of a store read again and held to what was recorded; what is damaged is set aside, never served."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from calibration.file_digest import remember_in, remembered_in
from pipeline.errors import DataError
from pipeline.gate.baseline import read_baseline
from pipeline.gate.generations import WITHDRAWN, folder_of, generations_folder, names_in, numbers_of, withdrawn
from pipeline.output import alone, share_one
from pipeline.retention.inventory import APART, DAMAGED
from pipeline.retention.pins import FOLDER as PINS
from pipeline.retention.pins import read_pins
from pipeline.store import RECIPE, RESULT, checked_result, digest_of_data

NAME = re.compile(r"[0-9a-f]{64}|\d{8}T\d{6}Z-\w{6}")
"""How a result's folder is called: by the digest of its recipe, or a measurement's by its time."""
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was published."""

    path: Path
    problem: str
    aside: Path | None
    """Where it lies now; None where it stays, as a baseline does, without which gates would go on as if none were."""


@dataclass(frozen=True)
class Verified:
    """What was read."""

    num_results: int
    num_generations: int
    damages: tuple[Damage, ...]


class _Nothing:
    """A table that remembers nothing, so that every file is read."""

    def get(self, key: str, /) -> str | None:
        return None

    def __setitem__(self, key: str, text: str, /) -> None:
        pass


def verify(store: Path) -> Verified:
    """Read all results, baselines and pins, and set aside the results that are damaged.

    What others remove or make again meanwhile is no damage.
    """
    before = remembered_in()
    remember_in(_Nothing())
    try:
        folders = sorted(path for path in store.glob("*/*") if path.parent.name not in APART and _is_ours(path))
        damages = [damage for folder in folders if (damage := _damage_of(folder, store))]
        stored = [
            (name, folder_of(name, number, store)) for name in names_in(store) for number in numbers_of(name, store)
        ]
        damages += [damage for name, folder in stored if (damage := _damage_of_baseline(name, folder))]
        damages += _damages_beside(store)
    finally:
        remember_in(before)
    return Verified(len(folders), len(stored), tuple(damages))


def _is_ours(folder: Path) -> bool:
    return NAME.fullmatch(folder.name) is not None and folder.is_dir()


def _damage_of(folder: Path, store: Path) -> Damage | None:
    """What is wrong with a result, which then lies elsewhere; None if nothing is, or it is no longer there."""
    try:
        inode = folder.stat().st_ino
        if not (problem := _problem_of(folder)):
            return None
        parent = store / DAMAGED / folder.parent.name
        parent.mkdir(parents=True, exist_ok=True)
        for path in (parent.parent, parent):
            share_one(path, store)
        names = itertools.chain([folder.name], (f"{folder.name}-{number}" for number in itertools.count(2)))
        with alone(store, store):
            if folder.stat().st_ino != inode:
                return None  # It was made again.
            aside = next(parent / name for name in names if not (parent / name).exists())
            folder.rename(aside)
    except FileNotFoundError:
        return None
    return Damage(folder, problem, aside)


def _problem_of(folder: Path) -> str:
    if not (folder / RESULT).is_file():
        return f"it has no {RESULT}"
    artifact, problem = checked_result(folder)
    if artifact is not None and DIGEST.fullmatch(folder.name):
        recipe = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        if digest_of_data(recipe) != folder.name:
            return "its recipe is that of another"
    return problem


def _damage_of_baseline(name: str, folder: Path) -> Damage | None:
    try:
        read_baseline(folder, name)
    except DataError as error:
        return Damage(folder, str(error), None)
    return None


def _damages_beside(store: Path) -> Iterator[Damage]:
    """Of the records of what was withdrawn, and of pins."""
    readers: list[tuple[Path, Callable[[], object]]] = [
        (generations_folder(name, store) / WITHDRAWN, functools.partial(withdrawn, name, store))
        for name in names_in(store)
    ]
    readers += [(file, functools.partial(read_pins, file)) for file in sorted((store / PINS).glob("*.json"))]
    for file, read in readers:
        try:
            read()
        except DataError as error:
            yield Damage(file, str(error), None)
