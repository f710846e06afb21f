"""An older engine, signed as rightly as the newest, does not take its place: when each was signed is remembered.

A signature says who vouches for an engine, and when it was signed, and not that there is none newer. So whoever
delivers or loads engines may remember the newest of each place: in a file that the environment variable
``TRTFORGE_NEWEST`` names, and where engines are delivered, in the signature of the last one. Who wants an older one all
the same, and has the key, signs it again: its signature is the newest then.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engines.errors import NotTrusted
from engines.whole_file import write_whole

NEWEST = "TRTFORGE_NEWEST"
SCHEMA_VERSION = 1
UNKNOWN = "at no time that it says"


def signed_on(statement: Mapping[str, Any]) -> str:
    """When a statement was signed (UTC, ISO 8601, to the second); empty where it does not say."""
    try:
        return str(statement["predicate"]["runDetails"]["metadata"]["finishedOn"])
    except (KeyError, TypeError):
        return ""


def check_newest(engine: Path, sha256: str, when: str) -> None:
    """That no newer engine was loaded from this place, and remember this one; nothing where no file is named.

    Args:
        engine: its path, by which the place is known.
        sha256: of its bytes, as they were signed.
        when: it was signed.

    Raises:
        NotTrusted: a newer one was, or the file cannot be read or written.
    """
    if not (name := os.environ.get(NEWEST, "")):
        return
    file, place = Path(name), str(engine.resolve())
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file):
            engines = _read(file)
            last = engines.get(place, {"signed_on": "", "sha256": ""})
            if last["sha256"] != sha256 and when < last["signed_on"]:
                raise NotTrusted(
                    f"{engine}: was signed {when or UNKNOWN}, and one that was signed {last['signed_on']} was loaded "
                    f"from this place before ({file}); it was not loaded: copy the newest, or sign this one again"
                )
            if {"signed_on": when, "sha256": sha256} != last and when >= last["signed_on"]:
                engines[place] = {"signed_on": when, "sha256": sha256}
                record = {"schema_version": SCHEMA_VERSION, "engines": engines}
                write_whole(file, json.dumps(record, indent=1, sort_keys=True).encode() + b"\n")
    except OSError as error:
        raise NotTrusted(
            f"{NEWEST}: {file} cannot be read and written ({error.strerror}); name a file in a folder of this user's"
        ) from error


def _read(file: Path) -> dict[str, dict[str, str]]:
    if not file.exists():
        return {}
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {record['schema_version']}")
        return {
            str(place): {key: str(entry[key]) for key in ("signed_on", "sha256")}
            for place, entry in record["engines"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotTrusted(
            f"{file}: cannot be read as what {NEWEST} names ({error}); put it back, or delete it if its engines are "
            "known to be the newest"
        ) from error


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """While it lasts no other process changes the file."""
    with file.with_name(f"{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
