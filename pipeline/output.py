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
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import IO, Any, TypeVar

from calibration.file_digest import file_digest
from pipeline.artifact import Artifact, external_files, sha256_of
from pipeline.errors import FULL_DISK, ConfigError, Unavailable
from pipeline.spelling import echo

R = TypeVar("R", bound=Artifact)
LOCK = "lock"
"""In a folder to work in: held by who works there."""
RANDOM = "[a-z0-9_]{8}"
"""How the name of one ends."""
TRAINING = ".train-"
"""How the name of a folder begins that keeps what a training has reached; its lock is held by who trains."""
SHA256, REPLACED = "sha256", "replaced"
"""In the record beside an engine: of which file it is; and the record of the engine that is being replaced."""
NUM_DIGITS = 16
"""Of a digest in the name of a file of weights, hexadecimal."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of linux/fcntl.h and linux/fs.h."""


@contextmanager
def locked_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder to work in, removed at the end. Its lock says that somebody works there.

    Raises:
        OSError: it cannot be made.
    """
    work, lock = _new_locked(parent, prefix)
    with lock:
        try:
            yield work
        finally:
            _remove(work)


def _new_locked(parent: Path, prefix: str) -> tuple[Path, IO[str]]:
    """A new folder, and the open file in it that is locked."""
    while True:
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            lock = (work / LOCK).open("w")
        except BaseException as error:
            if isinstance(error, FileNotFoundError) and parent.is_dir():
                continue  # In this moment another process took it for a dead one's, and removed it.
            _remove(work)
            raise
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (work / LOCK).exists():
            return work, lock
        lock.close()  # Likewise.


def _remove(work: Path) -> None:
    """The lock goes last, so that whoever dies here leaves a folder that is still known as a dead one's."""
    remove_ending_with(work, LOCK)


def remove_ending_with(folder: Path, last: str) -> None:
    """Remove a folder, and the file of that name last: it says what the folder is, to whoever goes on with this."""
    with suppress(OSError):
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != last:
                entry.unlink()
        (folder / last).unlink(missing_ok=True)
        folder.rmdir()


def remove_unlocked(work: Path) -> bool:
    """Remove such a folder if the process that worked there is dead; whether it was.

    False too where it is not ours: has files and no lock, or is another user's.
    """
    try:
        if not (work / LOCK).exists():
            work.rmdir()  # Of one who died before there was a lock. Who is alive then makes another.
            return True
        with (work / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(work)
    except OSError:
        return False
    return not work.exists()


@contextmanager
def work_folder(target: Path) -> Iterator[Path]:
    """A folder to work in beside the target, on the same disk, removed at the end."""
    with ExitStack() as stack:
        stack.enter_context(_full_disk_told(target))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            for path in [path for path in target.parent.iterdir() if _works_for(path, target)]:
                remove_unlocked(path)
            work = stack.enter_context(locked_folder(target.parent, f".{target.name}."))
        except OSError as error:
            if error.errno in FULL_DISK:
                raise
            raise ConfigError(f"{target}: cannot be written ({error.strerror}); give another path with -o") from error
        yield work


def remove_left_work(folder: Path) -> None:
    """Remove what processes that were killed while they made something in the folder left there."""
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if re.fullmatch(rf"\..+\.{RANDOM}", path.name):
            remove_unlocked(path)


def _works_for(path: Path, target: Path) -> bool:
    """Whether it is, by its name, a folder in which somebody makes the target."""
    return re.fullmatch(rf"\.{re.escape(target.name)}\.{RANDOM}", path.name) is not None


@contextmanager
def _full_disk_told(target: Path) -> Iterator[None]:
    try:
        yield
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


def check_no_folder(target: Path) -> None:
    """Refuse (ConfigError) a folder that has the name of a file to be written: what is in it is somebody's."""
    if target.is_dir():
        raise ConfigError(f"{target}: is a folder, and a file of this name is written there; move it away")


def check_folder_target(target: Path, file: str = "ranges.json") -> None:
    """Refuse a file, or a folder that holds other things than an older one of its kind, which has ``file`` in it.

    Raises:
        ConfigError: as said.
    """
    if target.name in ("", ".."):
        raise ConfigError(f"{target}: has no name of its own; give a new path with -o")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target}: is a file; give the path of a folder with -o")
    if target.is_dir() and any(target.iterdir()) and not (target / file).is_file():
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
    printed on stderr. An ONNX file's weights, if they lie beside it, go to ``<target>.<digest>.data``.
    """
    with work_folder(target) as work:
        artifact = stage(work)
        _put_weights(artifact, target, work)
        record = artifact.beside("record.json")
        if record.is_file():
            artifact_fields = {
                field.name: getattr(artifact, field.name) for field in fields(artifact) if field.name != "path"
            }
            _put_with_record(artifact.path, target, json.loads(record.read_text()) | artifact_fields, work)
        elif _own_record(target):  # Of an engine that is now replaced by something else.
            _put_with_record(artifact.path, target, {}, work)
        else:
            put(artifact.path, target, work)
        _remove_weights(target, work)
        for note in artifact.notes():
            echo(f"trtforge: {target.name}: {note}", err=True)
    return replace(artifact, path=target)


def _put_weights(artifact: Artifact, target: Path, work: Path) -> None:
    """Put the files of weights of an ONNX file under names of their content, which the file then has.

    So no file that another model needs changes, and the rename of the ONNX file is what changes all.
    """
    if not (files := artifact.weight_files()):
        return
    from calibration.graph.external_data import rename_weight_files

    names = {file: f"{target.name}.{file_digest(file).hex()[:NUM_DIGITS]}.data" for file in files}
    folder = artifact.path.parent
    rename_weight_files(artifact.path, {file.relative_to(folder).as_posix(): name for file, name in names.items()})
    for file, name in names.items():
        put(file, target.with_name(name), work)


def _remove_weights(target: Path, work: Path) -> None:
    """Remove what `_put_weights` put for models that were here before; not while another process makes one."""
    of_target = re.compile(rf"{re.escape(target.name)}\.[0-9a-f]{{{NUM_DIGITS}}}\.data")
    before = [path for path in target.parent.iterdir() if of_target.fullmatch(path.name)]
    if before and not any(_works_for(path, target) and path != work for path in target.parent.iterdir()):
        for path in set(before) - set(external_files(target)):
            path.unlink(missing_ok=True)


def _put_with_record(made: Path, target: Path, record: dict[str, Any], work: Path) -> None:
    """Put an engine and its record as one, which two renames are not.

    First the record is put, with that of the engine which is still there: each says of which file it is. So the rename
    of the engine is what changes both.
    """
    beside = target.with_name(f"{target.name}.json")
    before = record_of(target)
    new = record | {SHA256: sha256_of(made)}
    _put_record(new | ({REPLACED: before} if before else {}), beside, work)
    put(made, target, work)
    if not record:
        beside.unlink()
    elif before:
        _put_record(new, beside, work)


def _put_record(record: dict[str, Any], beside: Path, work: Path) -> None:
    (work / "record").write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
    put(work / "record", beside, work)


def put(made: Path, target: Path, aside: Path) -> None:
    """Rename to the target, all on disk; a folder there changes places with the new one at once, if the system can.

    Elsewhere it goes aside first, also one that another process puts there meanwhile. A file takes no folder's place.
    """
    if not made.is_dir():
        check_no_folder(target)
    sync(made)
    for number in itertools.count():
        if target.is_dir():
            if exchanged(made, target):
                break
            with suppress(FileNotFoundError):
                target.rename(aside / f"replaced{number}")
        try:
            made.replace(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            break
    sync_one(target.parent)


def sync(path: Path) -> None:
    """All of a file, or of a folder, is on disk when this returns."""
    for part in [*path.rglob("*"), path] if path.is_dir() else [path]:
        sync_one(part)


def sync_one(path: Path) -> None:
    """A file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def alone(folder: Path, store: Path, *, shared: bool = False) -> Iterator[None]:
    """Wait until nobody else changes the folder, one of a store, which its group may do; it is made if need be.

    Those who ask for it ``shared`` do not wait for each other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    share_one(folder, store)
    with (folder / f".{LOCK}").open("w") as lock:
        share_one(folder / f".{LOCK}", store)
        fcntl.flock(lock, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield


def share(path: Path, store: Path) -> None:
    """Give all of a file or a folder the modes of the store's folder: who may use that may use all in it."""
    for part in [*path.rglob("*"), path] if path.is_dir() else [path]:
        share_one(part, store)


def share_one(path: Path, store: Path) -> None:
    """As ``share``, of a folder without what is in it."""
    modes = stat.S_IMODE(store.stat().st_mode)
    with suppress(PermissionError):  # Somebody else made it, and shared it.
        path.chmod(modes if path.is_dir() else modes & 0o666)


def exchanged(made: Path, target: Path) -> bool:
    """Whether the two changed places, by Linux's renameat2(2)."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = os.fsencode(made), os.fsencode(target)
    return renameat2 is not None and renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE) == 0


def record_of(engine: Path) -> dict[str, Any]:
    """What `make` wrote beside an engine: empty if there is nothing of ours, or nothing of this very file."""
    whole = _own_record(engine)
    if not whole or not engine.exists():
        return {}
    new = {key: value for key, value in whole.items() if key != REPLACED}
    candidates = [new, *([whole[REPLACED]] if isinstance(whole.get(REPLACED), dict) else [])]
    digest = sha256_of(engine)  # Earlier versions did not write of which file a record is.
    return next((record for record in candidates if record.get(SHA256, digest) == digest), {})


def checked_record(engine: Path) -> dict[str, Any]:
    """As ``record_of``, of an engine beside which there is not the record of another.

    Raises:
        ConfigError: there is.
    """
    record = record_of(engine)
    if not record and engine.exists() and _own_record(engine):
        raise ConfigError(
            f"{engine}: {engine.name}.json beside it is the record of another file (SHA-256 differs); build the engine "
            "again, or copy both"
        )
    return record


def record_to_keep(engine: Path) -> dict[str, Any]:
    """The record of an engine in a store or beside one that a verb made, with the digest of the file that it is of.

    Empty for an engine that neither made.

    Raises:
        ConfigError: beside it is the record of another engine.
    """
    in_store = engine.with_name("record.json")
    record = json.loads(in_store.read_text(encoding="utf-8")) if in_store.is_file() else checked_record(engine)
    return record | {SHA256: sha256_of(engine)} if record else {}


def _own_record(engine: Path) -> dict[str, Any]:
    """As it was written; empty if it is none of ours."""
    try:
        record = json.loads(engine.with_name(f"{engine.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) and record.keys() & {"backend", REPLACED} else {}
