"""What lies in a store: its results with their sizes and when they were last used; files with several names count once.

It reads names and states of files alone, and of each result its ``result.json``: ten thousand take under a second.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from engines.signing.trust import IN_STORE
from pipeline.gate.generations import FOLDER as BASELINES
from pipeline.retention.pins import FOLDER as PINS
from pipeline.store import RESULT

TMP, DAMAGED = "tmp", "damaged"
APART = (BASELINES, PINS, TMP, DAMAGED, IN_STORE)
"""Folders of a store that are no stage's."""


FileId: TypeAlias = tuple[int, int]
"""Which file it is, whatever its name: its device and its inode."""


@dataclass(frozen=True)
class StoredResult:
    """One folder of results, or one that was set aside."""

    stage: str
    name: str
    """Its folder's: the digest of its recipe, or of a measurement the time and a random part."""
    folder: Path
    used_s: float
    """When it was made or last served, in seconds since 1970."""
    files: tuple[FileId, ...]

    def content(self) -> str:
        """The content digest; empty where the record is damaged."""
        try:
            with open(f"{self.folder}/{RESULT}", "rb") as stream:  # noqa: PTH123  # A path takes longer than the file.
                return str(json.load(stream)["content"])
        except (ValueError, KeyError, TypeError, OSError, RecursionError):
            return ""


@dataclass
class Inventory:
    """What lies in a store."""

    folder: Path
    results: list[StoredResult] = field(default_factory=list)
    damaged: list[StoredResult] = field(default_factory=list)
    apart: dict[str, list[FileId]] = field(default_factory=dict)
    """Files of baselines, pins, signatures and stages at work, by folder; others under an empty name."""
    sizes: dict[FileId, int] = field(default_factory=dict)
    """In bytes."""
    num_names: dict[FileId, int] = field(default_factory=dict)
    """How many names the file has, in this store and elsewhere."""

    def num_bytes(self, files: Iterable[FileId] | None = None) -> int:
        """Of these files, each once; without, of all."""
        return sum(self.sizes[file] for file in (self.sizes if files is None else set(files)))

    def num_bytes_freed(self, results: Iterable[StoredResult]) -> int:
        """What removing these frees: files that have no other name."""
        gone = Counter(file for result in results for file in result.files)
        return sum(self.sizes[file] for file, num in gone.items() if num >= self.num_names[file])


def inventory_of(store: Path) -> Inventory:
    """All that lies in a store now; what others remove meanwhile is left out."""
    inventory = Inventory(store)
    for stage in _folders(store):
        if stage in (BASELINES, PINS, TMP, IN_STORE):
            inventory.apart[stage], _ = _files_below(store / stage, inventory)
        elif stage == DAMAGED:
            for origin in _folders(store / DAMAGED):
                inventory.damaged += _results_of(origin, store / DAMAGED / origin, inventory)
        else:
            inventory.results += _results_of(stage, store / stage, inventory)
    return inventory


def _results_of(stage: str, folder: Path, inventory: Inventory) -> Iterator[StoredResult]:
    for name in _folders(folder):
        entry = folder / name
        files, used_s = _files_below(entry, inventory)
        if used_s is None:
            inventory.apart.setdefault("", []).extend(files)
        else:
            yield StoredResult(stage, name, entry, used_s, tuple(files))


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _files_below(folder: Path, inventory: Inventory) -> tuple[list[FileId], float | None]:
    """The files, which are entered into the inventory, and when the folder's result was last used, if it is one."""
    files: list[FileId] = []
    used_s, root = None, str(folder)
    waiting = [root]
    while waiting:
        parent = waiting.pop()
        try:
            with os.scandir(parent) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                        continue
                    state = entry.stat(follow_symlinks=False)
                    file = state.st_dev, state.st_ino
                    files.append(file)
                    inventory.sizes[file], inventory.num_names[file] = state.st_size, state.st_nlink
                    if entry.name == RESULT and parent == root:
                        used_s = state.st_mtime
        except FileNotFoundError:
            continue
    return files, used_s
