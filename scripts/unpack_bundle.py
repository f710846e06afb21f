"""Unpack what `trtforge pack` wrote: nothing is written before the whole archive is held to its SHA256SUMS.

Usage: python -I unpack_bundle.py BUNDLE.tar FOLDER. It is run before anything is installed: the standard library alone.

Regular files of one folder are unpacked, with modes and an owner of this process; a link, a device, a FIFO, a name that
leads elsewhere, a file that no sum names, and what only runs write there are refused. Exit status: 2 if the bundle is
at fault, or the folder is something else; 3 if the disk is full.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

SUMS, NEEDED = "SHA256SUMS", ("plan.toml", "manifest.json")
WRITTEN_BY_RUNS = (".trtforge", "trtforge-report", ".trtforge-report", "trtforge-gate", ".trtforge-gate")
"""How the name of what runs write into the folder begins: results that would be served, which no bundle brings."""
CACHE = "__pycache__"
"""What Python would run instead of the source beside it."""
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SUM_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
MOST_MEMBERS, MOST_SUMS_BYTES, BLOCK_BYTES = 100_000, 1 << 24, 1 << 20
AGAIN = "copy it again, or pack it again with `trtforge pack`"


class Refused(Exception):
    """The bundle is not what `trtforge pack` writes."""


def main(bundle: Path, folder: Path) -> int:
    """Unpack, and say on stderr why not."""
    try:
        digests = checked(bundle)
    except (Refused, tarfile.TarError, OSError, ValueError, EOFError, OverflowError, RecursionError) as error:
        print(f"{bundle}: cannot be unpacked: {printable(str(error))}; {AGAIN}", file=sys.stderr)
        return 2
    try:
        unpack(bundle, folder, digests)
    except Refused as error:
        print(printable(str(error)), file=sys.stderr)
        return 2
    except (tarfile.TarError, OSError) as error:
        print(f"{folder}: cannot be written: {printable(str(error))}; make room, or move it away", file=sys.stderr)
        return 3 if getattr(error, "errno", None) in FULL_DISK else 2
    return 0


def checked(bundle: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file; the archive is read as a whole, and nothing is written.

    Raises:
        Refused: it holds what it must not, or is not what its sums say.
    """
    digests: dict[str, str] = {}
    sums = None
    for name, stream, num_bytes in files(bundle):
        if name in digests or (name == SUMS and sums is not None):
            raise Refused(f"it has '{name}' twice")
        if name != SUMS:
            digests[name] = digest_of(stream)
        elif num_bytes > MOST_SUMS_BYTES:
            raise Refused(f"{SUMS} has {num_bytes} bytes")
        else:
            sums = stream.read().decode("utf-8")
    if sums is None:
        raise Refused(f"it has no {SUMS}")
    expected = sums_from_text(sums)
    for name in digests:
        if name not in expected:
            raise Refused(f"{SUMS} does not name its file '{name}'")
    for name, digest in expected.items():
        if name not in digests:
            raise Refused(f"its file '{name}' is missing")
        if digests[name] != digest:
            raise Refused(f"it is damaged: '{name}' is not what was packed (SHA-256 differs)")
    for name in NEEDED:
        if name not in digests:
            raise Refused(f"it has no '{name}'")
    return digests


def sums_from_text(text: str) -> dict[str, str]:
    """Name -> SHA-256 (hex), as `sha256sum` reads it.

    Raises:
        Refused: a line is none of it, or a name stands there twice.
    """
    digests: dict[str, str] = {}
    for line in text.splitlines():
        parts = SUM_LINE.fullmatch(line)
        if parts is None or parts[2] in digests:
            raise Refused(f"{SUMS} has the line '{line[:200]}'")
        digests[parts[2]] = parts[1]
    return digests


def files(bundle: Path) -> Iterator[tuple[str, IO[bytes], int]]:
    """Every file of the archive: its name in the one folder there, its content, its size.

    Raises:
        Refused: a member is no regular file, or its name leads elsewhere or is one that a bundle never has.
    """
    folder = ""
    with bundle.open("rb") as raw, tarfile.open(fileobj=raw, mode="r:") as archive:
        for count, member in enumerate(archive):
            if count == MOST_MEMBERS:
                raise Refused(f"it has more than {MOST_MEMBERS} files")
            parts = member.name.split("/")
            if member.size < 0 or member.issparse() or not (member.isreg() or member.isdir()):
                raise Refused(f"'{member.name}' is no regular file")
            if {"", ".", ".."} & set(parts) or not member.name.isprintable() or "\\" in member.name:
                raise Refused(f"'{member.name}' is no name of a file in a bundle")
            folder = folder or parts[0]
            if parts[0] != folder:
                raise Refused(f"'{member.name}' is not in its folder '{folder}'")
            if member.isdir():
                continue
            if len(parts) < 2 or parts[1].startswith(WRITTEN_BY_RUNS) or CACHE in parts:
                raise Refused(f"'{member.name}' is no name of a file in a bundle")
            stream = archive.extractfile(member)
            assert stream is not None
            yield "/".join(parts[1:]), stream, member.size


def unpack(bundle: Path, folder: Path, digests: dict[str, str]) -> None:
    """Write the files; what is there of another unpacking is replaced, and what runs wrote stays.

    Raises:
        Refused: the folder is there and is no unpacked bundle, leads elsewhere, or the archive was changed meanwhile.
    """
    folder.mkdir(exist_ok=True)
    root = folder.resolve()
    if not (root / SUMS).is_file() and next(root.iterdir(), None) is not None:
        raise Refused(f"{folder}: is there already and is no unpacked bundle; move it away, or rename the bundle")
    for name, stream, _ in files(bundle):
        target = root / name
        if target.parent.resolve() != target.parent:
            raise Refused(f"{target.parent}: leads through a link to another place; move it away")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        with target.open("xb") as out:
            digest = digest_of(stream, out)
        if name != SUMS and digest != digests.get(name):
            raise Refused(f"{bundle}: was changed while it was unpacked; {AGAIN}")


def digest_of(stream: IO[bytes], copy: IO[bytes] | None = None) -> str:
    """SHA-256 (hex) of what is left of a stream, copied on the way."""
    digest = hashlib.sha256()
    while block := stream.read(BLOCK_BYTES):
        digest.update(block)
        if copy is not None:
            copy.write(block)
    return digest.hexdigest()


def printable(text: str) -> str:
    """Control characters spelt out, so that no name reaches a terminal as a command to it."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} BUNDLE.tar FOLDER")
    sys.exit(main(Path(os.fsdecode(sys.argv[1])), Path(os.fsdecode(sys.argv[2]))))
