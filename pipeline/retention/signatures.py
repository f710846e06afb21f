"""Signatures in a store whose engines are gone: each is of the bytes of an engine, and goes with the last of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from engines.errors import NotTrusted
from engines.signing.trust import ENDING, IN_STORE, sha256_of
from pipeline.gate.baseline import Baseline, generations
from pipeline.gate.generations import names_in
from pipeline.retention.inventory import StoredResult
from pipeline.store import RESULT


def needless_signatures(store: Path, staying: Iterable[StoredResult], used_after: float) -> Iterator[Path]:
    """Signatures from before that time whose engines are neither among the staying results nor baselines."""
    old = {}
    for file in (store / IN_STORE).glob(f"*{ENDING}"):
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_mtime <= used_after:
                old[file.name] = file
    if not old:
        return
    for engine in (*map(_engine_of, staying), *_engines_of_baselines(store)):
        if engine is not None:
            with contextlib.suppress(NotTrusted):  # It was removed meanwhile.
                old.pop(f"{sha256_of(engine)}{ENDING}", None)
    yield from old.values()


def _engine_of(result: StoredResult) -> Path | None:
    """The engine that a result is; None if it is something else."""
    try:
        artifact = json.loads((result.folder / RESULT).read_text(encoding="utf-8"))["artifact"]
        return result.folder / artifact["path"] if artifact["type"] == "Engine" else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _engines_of_baselines(store: Path) -> Iterator[Path]:
    for name in names_in(store):
        for generation in generations(name, store):
            yield Baseline(generation.folder, generation.record).engine.path
