"""The extras of this package: what each brings, in which version it is here, and the line that installs it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement

from pipeline.machine.packages import ABSENT, distribution_versions

PACKAGE = "trtforge"


@dataclass(frozen=True)
class Extra:
    """One extra."""

    name: str
    versions: dict[str, str]
    """What of it is installed: distribution -> version."""
    lacking: tuple[str, ...]
    """What is not, or too old, as it is asked for: ``torch>=2.4``."""

    def line(self) -> str:
        """As it is printed."""
        here = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        if not self.lacking:
            return f"extra {self.name}: {here}"
        beside = f" (here: {here})" if here else ""
        return (
            f"extra {self.name}: {', '.join(self.lacking)} not installed{beside}; pip install '{PACKAGE}[{self.name}]'"
        )


def extras() -> tuple[Extra, ...]:
    """Those that the installed package declares; none where it runs from a folder that was never installed."""
    try:
        return extras_from(requires(PACKAGE) or ())
    except PackageNotFoundError:
        return ()


def extras_from(lines: Iterable[str]) -> tuple[Extra, ...]:
    """The extras of a package's requirements, such as ``torch>=2.4; extra == "tune"``, in their order."""
    wanted: dict[str, list[Requirement]] = {}
    for requirement in map(Requirement, lines):
        if requirement.marker is not None:
            for name in _names_in(str(requirement.marker)):
                if requirement.marker.evaluate({"extra": name}) and not requirement.marker.evaluate({"extra": ""}):
                    wanted.setdefault(name, []).append(requirement)
    return tuple(_extra(name, requirements) for name, requirements in wanted.items())


def _names_in(marker: str) -> list[str]:
    """What an extra is compared with in a marker."""
    words = marker.replace("(", " ").replace(")", " ").split()
    return [words[at + 2].strip("\"'") for at, word in enumerate(words[:-2]) if word == "extra"]


def _extra(name: str, requirements: list[Requirement]) -> Extra:
    versions, lacking = {}, []
    for requirement in requirements:
        number = distribution_versions(requirement.name)[requirement.name]
        if number != ABSENT and requirement.specifier.contains(number, prereleases=True):
            versions[requirement.name] = number
        else:
            here = "" if number == ABSENT else f", not {number},"
            lacking.append(f"{requirement.name}{requirement.specifier}{here}")
    return Extra(name, versions, tuple(lacking))
