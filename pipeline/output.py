"""A result where the user wants it, whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from pipeline.artifact import Artifact
from pipeline.errors import FULL_DISK, ConfigError, Unavailable
from pipeline.spelling import echo

R = TypeVar("R", bound=Artifact)
LOCK = "lock"
"""In a folder to work in: held by who works there."""
UNLOCKED = ".new-"
"""How the name of one begins that is being made."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of linux/fcntl.h and linux/fs.h."""


@contextmanager
def locked_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder to work in, removed at the end. Its lock says that somebody works there, from its first moment on.

    Until the lock is held it has another name, which ``remove_unlocked`` leaves alone.

    Raises:
        OSError: it cannot be made.
    """
    work = Path(tempfile.mkdtemp(prefix=f"{UNLOCKED}{prefix}", dir=parent))
    try:
        with (work / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            work = work.rename(parent / work.name.removeprefix(UNLOCKED))
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def remove_unlocked(work: Path) -> bool:
    """Remove such a folder if the process that worked there is dead; whether it was.

    False too where it is not ours: has no lock, or is another user's; or has just begun.
    """
    if work.name.startswith(UNLOCKED):
        return False
    try:
        with (work / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(work, ignore_errors=True)
    except OSError:
        return False
    return True


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """A folder to work in beside the target, on the same disk, removed at the end."""
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            leaving = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}")
            for path in [path for path in target.parent.iterdir() if leaving.fullmatch(path.name)]:
                remove_unlocked(path)
            work = stack.enter_context(locked_folder(target.parent, f".{target.name}."))
        except OSError as error:
            raise ConfigError(f"{target}: cannot be written ({error.strerror}); give another path with -o") from error
        try:
            yield work
        except OSError as error:
            if error.errno in FULL_DISK:
                raise Unavailable(f"{target}: the disk is full; free some space and run again") from error
            raise


@contextmanager
def passing_folder(output: Path | None) -> Iterator[Path]:
    """A folder to work in for a result that the user may want kept: beside ``output``, or if None, the system's."""
    if output is None:
        with tempfile.TemporaryDirectory(prefix="trtforge-") as work:
            yield Path(work)
    else:
        check_file_target(output)
        with work_folder(output) as beside:
            yield beside


def check_file_target(target: Path) -> None:
    """Refuse a folder or a device where a file is to be written, before any work is done.

    Raises:
        ConfigError: as said.
    """
    if target.exists() and not target.is_file():
        what = "a folder" if target.is_dir() else "not a plain file, and would be replaced by one"
        raise ConfigError(f"{target}: is {what}; give the path of a file with -o")


def check_folder_target(target: Path) -> None:
    """Refuse a file, or a folder that holds other things than ranges, where ranges are to be written.

    Raises:
        ConfigError: as said.
    """
    if target.name in ("", ".."):
        raise ConfigError(f"{target}: has no name of its own; give a new path with -o")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: is a file; give the path of a folder with -o")
    if target.is_dir() and any(target.iterdir()) and not (target / "ranges.json").is_file():
        raise ConfigError(f"{target}: is a folder with other files in it; give a new path with -o")


def check_replaceable(folder: Path, expected: Sequence[str], sentence: str) -> None:
    """That a folder which is going to be replaced as a whole is new, empty, or an older one of its kind.

    Args:
        folder: the folder.
        expected: the files and folders that it may hold; where there is any, the first of them must be there.
        sentence: what to say of another, with ``{}`` for it.

    Raises:
        ConfigError: it is a file, or holds anything else, or has no name of its own.
    """
    if folder.name in ("", ".."):
        raise ConfigError(f"{folder}: has no name of its own, and could not be replaced; name a folder of its own")
    if not folder.exists():
        return
    entries = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    is_own = (folder / expected[0]).is_file()
    if foreign := [path for path in entries if path.name not in expected or not is_own]:
        raise ConfigError(f"{sentence.format(foreign[0])}; name a folder of its own")


def make(target: Path, stage: Callable[[Path], R]) -> R:
    """Run a stage and put its artifact, by one rename, where the user wants it.

    The stage's record, if it left one, goes to ``<target>.json``, with the artifact's own fields; its notes are
    printed on stderr.
    """
    with work_folder(target) as work:
        artifact = stage(work)
        record = artifact.beside("record.json")
        beside = target.with_name(f"{target.name}.json")
        if record.is_file():
            artifact_fields = {
                field.name: getattr(artifact, field.name) for field in fields(artifact) if field.name != "path"
            }
            record.write_text(json.dumps(json.loads(record.read_text()) | artifact_fields, indent=1, sort_keys=True))
        elif "backend" in record_of(target):
            beside.unlink()  # Of an engine that is now replaced by something else.
        put(artifact.path, target, work)
        if record.is_file():
            record.replace(beside)
        for note in artifact.notes():
            echo(f"trtforge: {target.name}: {note}", err=True)
    return replace(artifact, path=target)


def put(made: Path, target: Path, aside: Path) -> None:
    """Rename to the target; a folder there changes places with the new one at once, where the system can do so.

    Elsewhere it goes aside first, also one that another process puts there meanwhile.
    """
    for number in itertools.count():
        if target.is_dir():
            if _exchanged(made, target):
                return
            with suppress(FileNotFoundError):
                target.rename(aside / f"replaced{number}")
        try:
            made.replace(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return


def _exchanged(made: Path, target: Path) -> bool:
    """Whether the two changed places, by Linux's renameat2(2)."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = os.fsencode(made), os.fsencode(target)
    return renameat2 is not None and renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE) == 0


def record_of(engine: Path) -> dict[str, Any]:
    """What `make` wrote beside an engine: empty if there is nothing of ours."""
    try:
        record = json.loads(engine.with_name(f"{engine.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}
