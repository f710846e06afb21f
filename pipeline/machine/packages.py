"""Versions of the installed distributions that a result depends on."""

from __future__ import annotations

import functools
from importlib.metadata import PackageNotFoundError, version

from engines import cpu

ABSENT = "absent"


def distribution_versions(*names: str) -> dict[str, str]:
    """Versions of installed distributions by name; ``absent`` for one that is not installed."""
    return {name: _version(name) for name in names}


def cpu_versions() -> dict[str, str]:
    """What times on the CPU depend on: its name and instructions, and ONNX Runtime's version."""
    return {**cpu.versions(), **distribution_versions("onnxruntime")}


@functools.cache  # What was installed when the process first asked, as what it has loaded is.
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ABSENT
