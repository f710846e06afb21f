"""A device to build on, of one test file, and what is sent to it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pipeline.remote.archive import SentArchive, archive_from_tar, write_program
from pipeline.remote.job import Cargo, Terms, on_devices
from pipeline.remote.outcome import DeviceOutcome
from pipeline.remote.ssh import VARIABLE, Destination
from tests.pipeline.bundles import bundle_of
from tests.pipeline.remote.devices import Device, client_of, device_in

ORIN = Destination("orin")


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> SentArchive:
    """This very program."""
    path = tmp_path_factory.mktemp("program") / "program.tar"
    write_program(path)
    return archive_from_tar(path)


@pytest.fixture(scope="module")
def orin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """A device that is reached as `orin`, and as `nano`."""
    with device_in(tmp_path_factory.mktemp("orin"), "nano") as device:
        yield device


@dataclass
class Desk:
    """Calls `on_devices` with one small bundle, and has what it printed."""

    folder: Path
    cargo: Cargo
    terms: Terms
    lines: list[str] = field(default_factory=list)
    on_line: Callable[[str], object] = lambda _line: None
    num_prepared: int = 0

    def say(self, line: str) -> None:
        self.lines.append(line)
        self.on_line(line)

    def call(self, *destinations: Destination, cargo: Cargo | None = None) -> list[DeviceOutcome]:
        """The outcome of each, `orin` if none is named."""

        @contextmanager
        def prepared() -> Iterator[Cargo]:
            self.num_prepared += 1
            yield cargo or self.cargo

        self.lines = []
        folders = {where: self.folder / f"on-{where.name}" for where in destinations or (ORIN,)}
        return on_devices(folders, self.terms, prepared, self.say)

    def copied(self) -> list[str]:
        """What was told of copying."""
        return [line.partition("copies ")[2] for line in self.lines if "copies " in line]


WAITING = """#!/bin/sh
# An interpreter that waits, where it is to run the program, until the file `go` is there; then it writes a report.
case "$*" in
*pipeline.__main__*)
    echo "waits for go" >&2
    while [ ! -e "{folder}/go" ]; do sleep 0.02; done
    mkdir -p trtforge-report/samples
    echo '{{"variants": []}}' > trtforge-report/report.json
    head -c 3000000 /dev/zero > trtforge-report/samples/a.npz
    : > trtforge-report/samples/empty.npz
    ;;
esac
exec {python} "$@"
"""


@pytest.fixture
def waiting(tmp_path: Path) -> Path:
    """The path of an interpreter that waits for the file `go` beside it, when it is to run the program."""
    script = tmp_path / "waiting-python"
    script.write_text(WAITING.format(folder=tmp_path, python=sys.executable))
    script.chmod(0o755)
    return script


@pytest.fixture
def desk(orin: Device, program: SentArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """A desk whose bundle is tiny, and whose job prints the program's version."""
    monkeypatch.setenv(VARIABLE, client_of(orin))
    (tmp_path / "desk").mkdir()
    bundle = archive_from_tar(bundle_of(tmp_path / "desk" / f"{os.urandom(4).hex()}.tar"))
    cargo = Cargo(program, bundle, ("--backend", "reference", "--", "--version"), "trtforge-report")
    return Desk(tmp_path / "desk", cargo, Terms(python=sys.executable))
