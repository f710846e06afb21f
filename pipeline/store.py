"""Recipe -> digest -> folder: each result is made once, and published whole or not at all.

Layout of a store (``.trtforge/`` by default)::

    <stage>/<digest>/recipe.json    what it was made from (canonical JSON; its SHA-256 is <digest>)
    <stage>/<digest>/result.json    which artifact it is, the content digest it had when it was published, that of all
                                    files beside it, the seconds it took, and a few words on each input; its time is
                                    that of the last use
    <stage>/<digest>/...            the artifact and what the stage left beside it
    tmp/<random>/                   a stage at work; its lock says that somebody still works there

Looked up by recipe, passed on by content. A stage works in ``tmp/`` and the folder is renamed when all is on disk,
so that a crash, a kill or a full disk leaves nothing that could be taken for a result. Two processes may make the
same result at once: the first rename wins, the other throws its own away, and both are right. All in a store has the
modes of its folder, so that a group can share one (``chmod 2775 .trtforge``).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from calibration.data.batches import Samples
from calibration.data.source import FUNCTION
from pipeline.artifact import Artifact, artifact_from_record, digest_of_file, files_below, plain, record_from_artifact
from pipeline.errors import FULL_DISK, ConfigError, Unavailable
from pipeline.output import (
    LOCK,
    RANDOM,
    alone,
    locked_folder,
    remove_ending_with,
    remove_unlocked,
    share,
    share_one,
    sync,
    sync_one,
)
from pipeline.source_digest import check_unchanged, source_digest

log = logging.getLogger(__name__)

RESULT, RECIPE = "result.json", "recipe.json"
"""In the folder of a result."""
NOTED_SECONDS = 3600
"""Its use is not noted again for so long; `trtforge store gc` leaves what was used within a day."""

P = ParamSpec("P")
R = TypeVar("R", bound=Artifact)


@dataclass(frozen=True)
class Entry:
    """One line of the account of a run: which result, and whether the store served it."""

    stage: str
    digest: str
    served: bool
    seconds: float
    cpu_seconds: float = 0.0
    """Of this process and of those that it waited for."""
    variant: str = ""
    """What it was made for; empty where it is for several."""
    made_seconds: float | None = None
    """What making it took, in this run or an earlier one; None where an earlier release made it."""


@dataclass(frozen=True)
class Missing:
    """A result that the store does not have."""

    stage: str
    digest: str
    """Of its recipe."""
    variant: str
    """As of ``Entry``."""
    recipe: Mapping[str, Any]
    inputs: Sequence[str]
    """A few words on each."""


def canonical(data: Any) -> str:
    """JSON with sorted keys and no spaces: equal data, equal bytes."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of_data(data: Any) -> str:
    """SHA-256 (hex) of plain data as ``canonical`` writes it; a recipe's names its result."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()


def described(inputs: Sequence[object]) -> list[str]:
    """A few words on each input, for people: where it lies, of data also how many samples; empty for other values."""
    return [_words(value) for value in inputs]


def _words(value: object) -> str:
    if isinstance(value, Samples):
        place = value.source.path if FUNCTION.fullmatch(value.source.path) else Path(value.source.path).absolute()
        return f"{place} ({value.num_samples} samples)"
    return str(value.path.absolute()) if isinstance(value, Artifact) else ""


def stage_name(stage: object) -> str:
    """The stage's word: the name of its module."""
    return type(stage).__module__.rpartition(".")[2]


def modules_of(stage: object, *inputs: object) -> tuple[str, ...]:
    """The stage's module, and those that it loads by name for these inputs."""
    named: Callable[..., tuple[str, ...]] = getattr(stage, "modules", lambda *_inputs: ())
    return type(stage).__module__, *named(*inputs)


class Store:
    """A folder of results. Safe for several processes at once."""

    def __init__(
        self,
        folder: Path,
        on_entry: Callable[[Entry], object] = lambda _entry: None,
        working: Callable[[str], AbstractContextManager[None]] = lambda _what: nullcontext(),
    ) -> None:
        """Open the store; work folders of dead processes are removed.

        ``on_entry`` is told each result as it comes; a stage works within ``working``, which is told its name.

        Raises:
            ConfigError: the folder cannot be made or written.
            Unavailable: the disk is full.
        """
        self.folder = folder
        self.account: list[Entry] = []
        self._on_entry, self._working = on_entry, working
        self._variant = ""
        try:
            with self._full_disk_told():
                (folder / "tmp").mkdir(parents=True, exist_ok=True)
            share_one(folder / "tmp", folder)
        except OSError as error:
            raise ConfigError(
                f"{folder}: cannot be used as a store ({error.strerror}); name another with --store"
            ) from error
        if not os.access(folder / "tmp", os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(f"{folder}: the store cannot be written; name another with --store")
        self._remove_stale_work()

    def run(self, stage: Callable[Concatenate[Path, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The stage's result: from the store if its recipe is there, else made now and kept.

        A result whose bytes are no longer those that were published is thrown away, said aloud, and made again.

        Raises:
            Unavailable: the disk is full; or the program was changed while it ran.
        """
        stopwatch, name = Stopwatch(), stage_name(stage)
        recipe = self.recipe(stage, *args, **kwargs)
        digest = digest_of_data(recipe)
        final = self.folder / name / digest
        served = self._read(final)
        if not (is_served := served is not None):
            self.on_missing(Missing(name, digest, self._variant, recipe, described(args)))
            with self._work_folder() as work, self._working(f"{name} {self._variant}".rstrip()):
                artifact = stage(work, *args, **kwargs)
                check_unchanged(*modules_of(stage, *args))
                self._seal(work, recipe, artifact, {"inputs": described(args), "seconds": stopwatch.spent().seconds})
                self._publish(work, final)
            served = self._read(final)
        self._note(Entry(name, digest, is_served, *stopwatch.spent(), self._variant, _made_seconds(final)))
        if served is None:
            raise ConfigError(f"{final}: vanished while it was published; does something clean this store?")
        return served  # type: ignore[return-value]  # the type that was sealed is the type that comes back

    def on_missing(self, missing: Missing) -> None:
        """What happens before a result is made; here nothing."""

    def recipe(self, stage: object, *args: object, **kwargs: object) -> dict[str, Any]:
        """All that the result depends on, as plain data."""
        versions: Callable[..., dict[str, str]] = getattr(stage, "versions", lambda *_inputs: {})
        return {
            "stage": stage_name(stage),
            "options": plain(stage),
            "inputs": [plain(arg) for arg in args],
            "named_inputs": {key: plain(arg) for key, arg in kwargs.items()},
            "source": source_digest(*modules_of(stage, *args)),
            "versions": versions(*args),
        }

    def measure(self, stage: Callable[Concatenate[Path, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a stage that measures: never served, always added, in a folder named by the time and a random part."""
        stopwatch, name = Stopwatch(), stage_name(stage)
        recipe = self.recipe(stage, *args, **kwargs)
        with self._work_folder() as work, self._working(name):
            artifact = stage(work, *args, **kwargs)
            check_unchanged(*modules_of(stage, *args))
            self._seal(work, recipe, artifact, {"inputs": described(args), "seconds": stopwatch.spent().seconds})
            final = self.folder / name / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{work.name[-6:]}"
            self._publish(work, final)
        self._note(Entry(name, final.name, False, *stopwatch.spent()))
        return artifact_from_record(_sealed(final)["artifact"], final)  # type: ignore[return-value]

    @contextmanager
    def about(self, variant: str) -> Iterator[None]:
        """What is made meanwhile is made for this variant; it stands in the account, not in the recipe."""
        self._variant = variant
        try:
            yield
        finally:
            self._variant = ""

    def find(self, prefix: str) -> Path:
        """The folder of the one result whose digest, of recipe or of content, begins with ``prefix``.

        Raises:
            ConfigError: none, or several.
        """
        matches = sorted({
            entry for entry in self._entries()
            if entry.name.startswith(prefix) or self._content(entry).startswith(prefix)
        })  # fmt: skip
        if len(matches) == 1:
            return matches[0]
        what = "no result" if not matches else f"{len(matches)} results"
        raise ConfigError(f"digest '{prefix}': {what} in {self.folder}; give one that `trtforge run` printed")

    def makers(self) -> dict[str, Path]:
        """Content digest -> the folder of the result that has it."""
        return {content: entry for entry in self._entries() if (content := self._content(entry))}

    def _note(self, entry: Entry) -> None:
        self.account.append(entry)
        self._on_entry(entry)

    def _entries(self) -> Iterator[Path]:
        for file in sorted(self.folder.glob("*/*/result.json")):
            if file.parent.parent.name != "tmp":
                yield file.parent

    def _content(self, entry: Path) -> str:
        """The content digest of a result; empty if its record is damaged, which `run` mends."""
        try:
            return str(_sealed(entry)["content"])
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            log.warning("%s: damaged, it cannot be read (%s); it is skipped", entry, error)
            return ""

    def _read(self, final: Path) -> Artifact | None:
        if not self._noted_as_used(final):
            return None
        artifact, problem = checked_result(final)
        if artifact is None:
            log.warning("%s: damaged, %s; making it again", final, problem)
            with self._work_folder() as work, contextlib.suppress(FileNotFoundError):  # Another process was faster.
                final.rename(work / "damaged")
        return artifact

    def _noted_as_used(self, final: Path) -> bool:
        """Whether the result is there; if so, its record's time says that it is used now, and it is not removed."""
        record = final / RESULT
        try:
            if time.time() - record.stat().st_mtime > NOTED_SECONDS:
                with alone(self.folder, self.folder, shared=True), contextlib.suppress(PermissionError):
                    os.utime(record)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return record.is_file()

    def _seal(self, work: Path, recipe: dict[str, Any], artifact: Artifact, beside: Mapping[str, Any]) -> None:
        (work / RECIPE).write_text(json.dumps(recipe, indent=2, sort_keys=True), encoding="utf-8")
        result = {
            "artifact": record_from_artifact(artifact, work),
            "content": artifact.digest(),
            "files": _digest_of_files(work),
            **beside,
        }
        (work / RESULT).write_text(json.dumps(result, indent=2, sort_keys=True), encoding="utf-8")

    def _publish(self, work: Path, final: Path) -> None:
        share(work, self.folder)
        sync(work)
        final.parent.mkdir(exist_ok=True)
        share_one(final.parent, self.folder)
        try:
            work.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            log.info("%s: another process made the same result first; its own is used", final)
        sync_one(final.parent)
        sync_one(self.folder)
        (final / LOCK).unlink(missing_ok=True)  # Not before: without it, what a kill left would be nobody's.

    @contextmanager
    def _work_folder(self) -> Iterator[Path]:
        """A folder of one's own under ``tmp/``, locked while this process lives, removed at the end."""
        with self._full_disk_told(), locked_folder(self.folder / "tmp", "") as work:
            yield work

    @contextmanager
    def _full_disk_told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            there = next(folder for folder in (self.folder, *self.folder.absolute().parents) if folder.exists())
            raise Unavailable(
                f"{self.folder}: the disk is full ({shutil.disk_usage(there).free >> 20} MiB free); "
                "free some space and run again: finished results are kept"
            ) from error

    def _remove_stale_work(self) -> None:
        for work in (self.folder / "tmp").iterdir():
            if not re.fullmatch(RANDOM, work.name):
                continue
            if (work / RESULT).exists() and not (work / LOCK).exists():  # Of one who removed a result.
                remove_ending_with(work, RESULT)
            elif remove_unlocked(work):
                log.info("%s: left by a process that died; removed", work)


class Spent(NamedTuple):
    """Wall time, and CPU time with that of the processes that were waited for."""

    seconds: float
    cpu_seconds: float


class Stopwatch:
    """Tells the time since it was made."""

    def __init__(self) -> None:
        """Begin."""
        self._begin = _now()

    def spent(self) -> Spent:
        """Since then."""
        now = _now()
        return Spent(now.seconds - self._begin.seconds, now.cpu_seconds - self._begin.cpu_seconds)


def _now() -> Spent:
    return Spent(time.perf_counter(), sum(os.times()[:4]))


def checked_result(folder: Path) -> tuple[Artifact | None, str]:
    """A result whose bytes are those that were published; None, and what is wrong with it, of one that is damaged."""
    try:
        sealed = _sealed(folder)
        artifact = artifact_from_record(sealed["artifact"], folder)
        if artifact.digest() != sealed["content"]:
            return None, "its bytes are not those that were published"
        if sealed.get("files", files := _digest_of_files(folder)) != files:  # Earlier versions did not seal them.
            return None, "a file beside it is not as it was published"
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        return None, f"it cannot be read ({error})"
    return artifact, ""


def _sealed(entry: Path) -> dict[str, Any]:
    return dict(json.loads((entry / RESULT).read_text(encoding="utf-8")))


def _made_seconds(entry: Path) -> float | None:
    """What making a result took; None where that does not stand there."""
    with contextlib.suppress(ValueError, OSError):
        seconds = _sealed(entry).get("seconds")
        return float(seconds) if isinstance(seconds, (int, float)) else None
    return None


def _digest_of_files(folder: Path) -> str:
    """SHA-256 (hex) of all that a stage left, the records beside its artifact and the recipe included."""
    apart = (RESULT, LOCK)
    digests = {name: digest_of_file(path) for name, path in files_below(folder).items() if name not in apart}
    return digest_of_data(digests)
