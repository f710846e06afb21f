"""The depot: a place that the hub and all workers reach, by fsspec; whatever is fetched is held to its SHA-256."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import IO, Any, TypeVar

from pipeline.errors import FULL_DISK, ConfigError, DataError, Unavailable

R = TypeVar("R")

BLOCK_BYTES = 1 << 20
WITH_FOLDERS = {"file", "local", "sftp", "ssh", "smb"}
"""Protocols of which the folder must be there: one that is not mounted is not made."""
BUNDLES, TASKS = "bundles", "tasks"


class Depot:
    """Files under names that the hub and the workers agree on.

    Every method raises Unavailable where the depot is away, full, or refuses; the message says which.
    """

    def __init__(self, url: str) -> None:
        """``url``: as fsspec reads it, such as ``file:///mnt/share`` or ``sftp://hub/depot``."""
        self.url = url

    def check(self) -> None:
        """See that it is there.

        Raises:
            ConfigError: no such protocol.
            Unavailable: it is away, or its protocol needs a package.
        """
        files, root = self._place
        protocols = {files.protocol} if isinstance(files.protocol, str) else set(files.protocol)
        if protocols & WITH_FOLDERS and not self._done(root, lambda: files.isdir(root)):
            raise Unavailable(f"{self.url}: the depot is not there; mount it, or make that folder")

    def has(self, name: str, num_bytes: int) -> bool:
        """Whether a file of that size is there; its content is looked at by whoever fetches it."""
        files, root = self._place

        def size() -> int:
            try:
                return int(files.info(f"{root}/{name}")["size"])
            except FileNotFoundError:
                return -1

        return self._done(name, size) == num_bytes

    def put(self, source: Path, name: str) -> None:
        """Put a file there, whole or not at all."""
        files, root = self._place
        part, final = f"{root}/{name}.{secrets.token_hex(4)}.part", f"{root}/{name}"

        def copied() -> None:
            files.makedirs(final.rpartition("/")[0], exist_ok=True)
            try:
                files.put_file(str(source), part)
                files.mv(part, final)
            except BaseException:
                if files.exists(part):
                    files.rm_file(part)
                raise

        self._done(name, copied)

    def get(self, name: str, expected: tuple[int, str], target: Path) -> None:
        """Fetch a file.

        Args:
            name: of it there.
            expected: its bytes, and its SHA-256 (hex).
            target: a file that is not there yet.

        Raises:
            DataError: it is not what is expected; nothing is left of it.
        """
        files, root = self._place
        digest = hashlib.sha256()

        def copied() -> int:
            num_bytes = 0
            with files.open(f"{root}/{name}", "rb") as stream, target.open("xb") as out:
                while num_bytes <= expected[0] and (block := stream.read(BLOCK_BYTES)):
                    digest.update(block)
                    num_bytes += _written(out, block, target)
            return num_bytes

        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            num_bytes = self._done(name, copied)
            if (num_bytes, digest.hexdigest()) != expected:
                raise DataError(
                    f"{self.url}/{name}: is not what was put there (SHA-256 differs); nothing of it is taken; run again"
                )
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def count(self, folder: str, prefix: str) -> int:
        """How many files of a folder have names that begin so."""
        files, root = self._place

        def names() -> list[str]:
            files.invalidate_cache()
            try:
                return [str(path) for path in files.ls(f"{root}/{folder}", detail=False)]
            except FileNotFoundError:
                return []

        return sum(name.rpartition("/")[2].startswith(prefix) for name in self._done(folder, names))

    def remove(self, folder: str) -> None:
        """Remove a folder, if it is there."""
        files, root = self._place

        def removed() -> None:
            files.invalidate_cache()
            if files.exists(f"{root}/{folder}"):
                files.rm(f"{root}/{folder}", recursive=True)

        self._done(folder, removed)

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system, and the path in it."""
        try:
            import fsspec
        except ImportError as error:
            raise Unavailable("a depot needs fsspec, which is not installed; pip install 'trtforge[fleet]'") from error
        try:
            files, root = fsspec.core.url_to_fs(self.url)
        except ImportError as error:
            raise Unavailable(f"{self.url}: {str(error).rstrip('.')}; install it on the hub and all workers") from error
        except ValueError as error:
            raise ConfigError(f"[fleet] depot '{self.url}': {str(error).rstrip('.')}; correct it") from error
        except Exception as error:  # Each protocol has errors of its own.
            raise self._away("", error) from error
        return files, root.rstrip("/")

    def _done(self, name: str, work: Callable[[], R]) -> R:
        try:
            return work()
        except (ConfigError, DataError, Unavailable):
            raise
        except Exception as error:  # Each protocol has errors of its own.
            raise self._away(name, error) from error

    def _away(self, name: str, error: Exception) -> Unavailable:
        where = f"{self.url}: the depot"
        number = error.errno if isinstance(error, OSError) else None
        if number in FULL_DISK:
            return Unavailable(f"{where} is full ({os.strerror(number or 0)}); free some space and run again")
        if isinstance(error, FileNotFoundError) or number == errno.ENOENT:
            return Unavailable(f"{where} has no {name}; see that the hub and all workers reach the same one")
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
        return Unavailable(f"{where} cannot be used ({reason}); see that it is there and may be written")


def _written(out: IO[bytes], block: bytes, target: Path) -> int:
    try:
        return out.write(block)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise Unavailable(f"{target.parent}: the disk is full; free some space and run again") from error
        raise
