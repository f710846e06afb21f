"""A plan packed, and a bundle unpacked."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.conftest import Command


def packed(command: Command, plan: Path, output: str = "bundle.tar", store: str = ".trtforge") -> Path:
    said = command("pack", plan, "-o", plan.parent / output, "--store", store)
    assert (said.status, said.out) == (0, f"{plan.parent / output}\n"), said.err
    return plan.parent / output


def unpacked(bundle: Path) -> Path:
    """The folder of an unpacked bundle, and nothing of what it was made from."""
    folder = bundle.parent / "device"
    with tarfile.open(bundle) as archive:
        # As of Python 3.10.12 and 3.11.4; Debian's are older.
        safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(folder, **safely)
    return folder / "trtforge-bundle"
