"""Which backends work on this machine, with which versions, and why the others do not."""

from __future__ import annotations

from dataclasses import dataclass

from engines import BACKENDS, backend
from engines.errors import Unavailable


@dataclass(frozen=True)
class BackendState:
    """One backend on this machine."""

    name: str
    can_build: bool
    can_run: bool
    versions: dict[str, str]
    """Empty if the runtime is not installed."""
    why_not_build: str
    """Empty if it can."""
    why_not_run: str
    """Empty if it can."""
    install: str
    """The line that installs the runtime."""


def survey() -> list[BackendState]:
    """All backends. Loads each installed runtime to ask for its version, which takes seconds for tensorflow."""
    return [_state(name) for name in BACKENDS]


def _state(name: str) -> BackendState:
    module = backend(name)
    why_not_build, why_not_run = module.why_not_build(), module.why_not_run()
    try:
        versions = module.versions()
    except Unavailable as error:  # it may be installed and yet not load
        versions = {}
        why_not_build, why_not_run = why_not_build or str(error), why_not_run or str(error)
    return BackendState(
        name=module.NAME,
        can_build=not why_not_build,
        can_run=not why_not_run,
        versions=versions,
        why_not_build=why_not_build,
        why_not_run=why_not_run,
        install=module.INSTALL,
    )
