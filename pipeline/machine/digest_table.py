"""What files' contents told, by the files' state, kept in the user's cache folder from one process to the next.

An SQLite file. Whatever is wrong with it (damaged, locked, not to be written, the disk full), it is as if it were not
there: everything in it can be found out anew.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import sqlite3
import zlib
from pathlib import Path

VERSION = 1
"""Of the file's form; each has a file of its own."""
MOST_ROWS = 200_000
"""Some 40 MB; the oldest go first."""
PATIENCE_SECONDS = 0.2
"""So long another process is waited for."""

log = logging.getLogger(__name__)


class DigestTable:
    """Text by key. What is new is written when the process ends, or ``save`` is called."""

    def __init__(self, file: Path) -> None:
        """Nothing is read yet."""
        self._file = file
        self._known: dict[str, str] = {}
        self._new: dict[str, str] = {}
        self._connection: sqlite3.Connection | None = None
        self._is_read = True
        self._owner = os.getpid()

    def get(self, key: str, /) -> str | None:
        """The text; None where it is not known."""
        if key not in self._known and (text := self._read(key)) is not None:
            self._known[key] = text
        return self._known.get(key)

    def __setitem__(self, key: str, text: str, /) -> None:
        """Keep it."""
        self._known[key] = self._new[key] = text

    def save(self) -> None:
        """Write what is new. Several processes may; of one key, all of them write the same."""
        rows = [(key, text, _sum(key, text)) for key, text in self._new.items()]
        if not rows or os.getpid() != self._owner:
            return
        self._new.clear()
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(self._file, timeout=PATIENCE_SECONDS)) as connection, connection:
                connection.execute("CREATE TABLE IF NOT EXISTS texts (key TEXT PRIMARY KEY, text TEXT, sum INTEGER)")
                connection.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?, ?)", rows)
                connection.execute("DELETE FROM texts WHERE rowid <= (SELECT max(rowid) FROM texts) - ?", (MOST_ROWS,))
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)

    def _read(self, key: str) -> str | None:
        if not self._is_read or os.getpid() != self._owner:  # A connection must not be used beyond a fork.
            return None
        try:
            if self._connection is None:
                if not self._file.is_file():
                    return None
                self._connection = sqlite3.connect(
                    f"{self._file.absolute().as_uri()}?mode=ro", uri=True, timeout=PATIENCE_SECONDS,
                    check_same_thread=False,
                )  # fmt: skip
                self._connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")
            row = self._connection.execute("SELECT text, sum FROM texts WHERE key = ?", (key,)).fetchone()
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
            return None
        return str(row[0]) if row is not None and row[1] == _sum(key, str(row[0])) else None

    def _give_up(self, error: Exception) -> None:
        """Go on without the file; one that is no database is removed, for the next process to begin anew."""
        log.info("%s: %s; continuing without it", self._file, error)
        self._is_read = False
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            with contextlib.suppress(OSError):
                self._file.unlink()


def _sum(key: str, text: str) -> int:
    return zlib.crc32(f"{key}\0{text}".encode())


@functools.cache
def digest_table(file: Path) -> DigestTable:
    """The one table of that file in this process, which is saved when the process ends."""
    table = DigestTable(file)
    atexit.register(table.save)
    return table
