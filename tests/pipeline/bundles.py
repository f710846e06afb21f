"""A plan packed, a bundle unpacked, and an archive made up that looks like one."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.bundle import SUMS

if TYPE_CHECKING:
    from tests.conftest import Command


def packed(command: Command, plan: Path, output: str = "bundle.tar", store: str | Path = ".trtforge") -> Path:
    said = command("pack", plan, "-o", plan.parent / output, "--store", store)
    assert (said.status, said.out) == (0, f"{plan.parent / output}\n"), said.err
    return plan.parent / output


def unpacked(bundle: Path, beside: Path | None = None) -> Path:
    """The folder of an unpacked bundle, below ``beside`` or else beside the bundle."""
    folder = (beside or bundle.parent) / "device"
    with tarfile.open(bundle) as archive:
        # As of Python 3.10.12 and 3.11.4; Debian's are older.
        safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **safely)
    return folder / "trtforge-bundle"


FILES = {"plan.toml": b"[model]\n", "manifest.json": b"{}", "models/fp32/model.onnx": b"\x08\x08" * 4000}


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **more: object
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def sums(files: Mapping[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items()).encode()


def bundle_of(path: Path, *more: tuple[tarfile.TarInfo, bytes], listed: Mapping[str, bytes] = FILES) -> Path:
    """The files above with sums of ``listed``, and whatever else stands in the archive."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        whole = [member(f"top/{name}", content) for name, content in ({SUMS: sums(listed)} | FILES).items()]
        for info, content in (*whole, *more):
            archive.addfile(info, io.BytesIO(content))
    return path
