"""A page or another text where the user wants it, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from pipeline.output import put, work_folder


def put_text(text: str, target: Path) -> None:
    """Write it by one rename.

    Raises:
        ConfigError: it cannot be written there.
        Unavailable: the disk is full.
    """
    with work_folder(target) as work:
        (work / target.name).write_text(text, encoding="utf-8")
        put(work / target.name, target, work)
