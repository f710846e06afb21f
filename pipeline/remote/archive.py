"""What is sent: archives in parts that each have a digest, so that what is there already is not sent again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pipeline
from pipeline.errors import Unavailable

PART_BYTES = 4 << 20
PACKAGES = ("calibration", "engines", "pipeline")
BESIDE = ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "trtforge.py")
SCRIPTS = "scripts"
LEFT_OUT = {"__pycache__"}
NOT_SOURCE = (".pyc", ".so", ".orig", ".rej", ".swp")
SHARED = "share/trtforge"
"""Where a wheel has what only a checkout has: the scripts, and what pip makes an environment from."""
SCRIPT = f"{SCRIPTS}/build_on_jetson"


@dataclass(frozen=True)
class Part:
    """A piece of an archive."""

    begin: int
    num_bytes: int
    digest: str
    """SHA-256 (hex)."""


@dataclass(frozen=True)
class SentArchive:
    """A tar file and its parts."""

    path: Path
    digest: str
    """SHA-256 (hex) of the whole."""
    parts: tuple[Part, ...]

    @property
    def num_bytes(self) -> int:
        """Of the whole."""
        return sum(part.num_bytes for part in self.parts)

    def data(self, part: Part) -> bytes:
        """The bytes of a part."""
        with self.path.open("rb") as stream:
            stream.seek(part.begin)
            return stream.read(part.num_bytes)


def archive_from_tar(path: Path) -> SentArchive:
    """An archive, whose parts begin where its files begin: equal files are equal parts."""
    begins = {0}
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            begins.update(range(member.offset_data, member.offset_data + member.size, PART_BYTES))
            begins.add(member.offset_data + member.size)
    ends = [*sorted(begins)[1:], path.stat().st_size]
    whole, parts = hashlib.sha256(), []
    with path.open("rb") as stream:
        for begin, end in zip(sorted(begins), ends):
            data = stream.read(end - begin)
            whole.update(data)
            if data:
                parts.append(Part(begin, len(data), hashlib.sha256(data).hexdigest()))
    return SentArchive(path, whole.hexdigest(), tuple(parts))


def write_program(path: Path) -> None:
    """This very program, as an archive that is the same for the same files.

    Raises:
        Unavailable: it was installed without its scripts.
    """
    root = Path(pipeline.__file__).resolve().parent.parent
    shared = root if (root / SCRIPT).is_file() else shared_folder()
    files = {file.relative_to(root).as_posix(): file for name in PACKAGES for file in source_files(root / name)}
    files |= {f"{SCRIPTS}/{file.name}": file for file in source_files(shared / SCRIPTS)}
    files |= {name: (root if (root / name).is_file() else shared) / name for name in BESIDE}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, file in sorted(files.items()):
            data = file.read_bytes()
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755 if data.startswith(b"#!") else 0o644
            archive.addfile(member, io.BytesIO(data))


def source_files(folder: Path) -> Iterator[Path]:
    """The files below a folder, without what was compiled from them."""
    for file in sorted(folder.rglob("*")):
        is_source = file.is_file() and not file.name.startswith(".") and file.suffix not in NOT_SOURCE
        if is_source and not LEFT_OUT & set(file.parts):
            yield file


def shared_folder() -> Path:
    """Where the installed program has its scripts.

    Raises:
        Unavailable: nowhere.
    """
    try:
        files = importlib.metadata.files("trtforge") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix().endswith(f"{SHARED}/{SCRIPT}"):
            return Path(str(file.locate())).resolve().parent.parent
    raise Unavailable(
        f"--on: this installation of trtforge has no {SCRIPT}; run it from a checkout, or install it again from one"
    )
