"""A real sshd: what is sent, what a job says, and what comes back; connections that break in each phase go on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError
from pipeline.remote import job
from pipeline.remote.agent import KEEP_WORK
from pipeline.remote.archive import Part, SentArchive, archive_from_tar
from pipeline.remote.fetched import FetchedFiles, files_from_answer
from pipeline.remote.job import on_devices
from pipeline.remote.session import Session
from pipeline.remote.ssh import VARIABLE, Destination
from tests.engines.python38 import python38
from tests.pipeline.bundles import bundle_of, member, sums
from tests.pipeline.remote.conftest import ORIN, Desk
from tests.pipeline.remote.devices import SECONDS, Device, client_of, device_in, needs_sshd

pytestmark = needs_sshd

BIG = {f"models/{name}/model.onnx": bytes([number]) * 300_000 for number, name in enumerate(("a", "b", "c"))}


def big_bundle(path: Path, **changes: bytes) -> SentArchive:
    """Three models of 300,000 bytes, which another text may take the place of."""
    files = {name: changes.get(name.split("/")[1], data) for name, data in BIG.items()}
    more = [member(f"top/{name}", data) for name, data in files.items()]
    listed = {"plan.toml": b"[model]\n", "manifest.json": b"{}", "models/fp32/model.onnx": b"\x08\x08" * 4000}
    return archive_from_tar(bundle_of(path, *more, listed=listed | files))


def works(device: Device) -> set[str]:
    """The folders of bundles there."""
    return {path.name for path in (device.ours / "work").iterdir()} if (device.ours / "work").exists() else set()


def group_of(record: Path) -> int:
    """The process group of a job, which is never one that this process is in."""
    pid = int(json.loads(record.read_text())["pid"])
    assert pid > 1
    assert pid != os.getpgrp()
    return pid


def living(group: int) -> list[str]:
    """The processes of a group, without those that only wait to be asked how they ended."""
    states = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, process_group = file.read_text().rpartition(")")[2].split()[:3]
            states += [file.parent.name] if int(process_group) == group and state not in "ZX" else []
    return states


def until(what: str, condition: Any) -> None:
    """Wait for it."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < SECONDS, what
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _is_up(orin: Device) -> Iterator[None]:
    yield
    if orin.server is None or orin.server.poll() is not None:
        orin.start()


def test_it_is_sent_once_run_and_fetched(orin: Device, desk: Desk, tmp_path: Path) -> None:
    desk.cargo = replace(desk.cargo, bundle=big_bundle(tmp_path / "big.tar"))
    (outcome,) = desk.call()
    assert (outcome.status, outcome.sentence, outcome.is_fetched) == (0, "", True), desk.lines
    assert [line.split(":")[0] for line in desk.copied()] == ["the program", "the bundle"]
    assert "[orin] trtforge: copies the bundle: 0.9 MiB" in desk.lines
    assert sorted(path.name for path in outcome.folder.iterdir()) == ["log.txt"]
    folder = orin.ours / "work" / desk.cargo.bundle.digest[:16]
    assert (folder / "bundle/models/b/model.onnx").read_bytes() == BIG["models/b/model.onnx"]
    assert (folder / "out").read_text().startswith("trtforge, version ")
    assert oct(orin.ours.stat().st_mode)[-3:] == "700"
    # The same again: nothing is sent, and it is run again, for somebody asks for it again.
    (folder / "out").write_text("")
    (again,) = desk.call()
    assert (again.status, desk.copied()) == (0, [])
    assert (folder / "out").read_text().startswith("trtforge, version ")
    # One model is another: what is there is not sent again.
    desk.cargo = replace(desk.cargo, bundle=big_bundle(tmp_path / "other.tar", b=b"z" * 300_000))
    (other,) = desk.call()
    assert (other.status, desk.copied()) == (0, ["the bundle: 0.3 MiB, 0.6 MiB are there"])
    assert (orin.home / ".trtforge").is_dir()
    assert {path.name for path in orin.home.iterdir()} == {".trtforge"}, "nothing lies beside our own folder"


def test_the_agent_is_that_of_another_python(orin: Device, desk: Desk, tmp_path: Path) -> None:
    """Python 3.8 is the oldest that the agent works with: it copies, and starts a job."""
    session = Session(ORIN, str(python38()), ask=False)
    assert session.connect()["python"] == [3, 8]
    try:
        bundle = big_bundle(tmp_path / "b.tar", a=b"q" * 300_000)
        job.send(session, "program", desk.cargo.program, desk.say)
        job.send(session, "work", bundle, desk.say)
        environment = {"READY": sys.executable}
        job_there = {"program": desk.cargo.program.digest, "arguments": list(desk.cargo.arguments), "writes": ""}
        answer = session.ask("start", digest=bundle.digest, environment=environment, **job_there)
        assert answer == {"state": "started"}
        printed = bytearray()
        end = session.follow(bundle.digest, printed.extend)
        assert end["stopped"] is False, printed
        files = session.ask("results", digest=bundle.digest, writes="trtforge-report")["files"]
        assert list(files) == ["log.txt"]
        session.begin("get", digest=bundle.digest, writes="trtforge-report", names=["log.txt"])
        fetched = bytearray()
        session.answer(fetched.extend)
        assert fetched == printed
        session.ask("done", digest=bundle.digest, clean=False)
    finally:
        session.close()


def test_a_connection_that_breaks_while_copying(
    orin: Device, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.call()
    models = {name: number * 300_000 for name, number in (("a", b"1"), ("b", b"2"), ("c", b"3"))}
    desk.cargo = replace(desk.cargo, bundle=big_bundle(tmp_path / "b.tar", **models))
    read, num_sent = SentArchive.data, 0

    def data(self: SentArchive, part: Part) -> bytes:
        nonlocal num_sent
        num_sent += 1
        folder = orin.ours / "work" / desk.cargo.bundle.digest[:16]
        if part.digest == self.parts[-4].digest:
            first = next(part for part in self.parts if part.num_bytes == 300_000)
            until("the first model is there", lambda: (folder / "part").read_bytes()[first.begin :][:9] == b"1" * 9)
            orin.cut()
        return read(self, part)

    monkeypatch.setattr(SentArchive, "data", data)
    (outcome,) = desk.call()
    assert (outcome.status, outcome.is_fetched) == (3, False)
    assert outcome.sentence.startswith("orin: the connection broke while the bundle was copied")
    assert outcome.sentence.endswith("; the same command goes on where this ended")
    assert not outcome.folder.joinpath("report").exists()
    monkeypatch.undo()
    monkeypatch.setenv(VARIABLE, client_of(orin))
    (again,) = desk.call()
    assert again.status == 0, desk.lines
    (line,) = desk.copied()
    there = float(line.partition(", ")[2].split()[0])
    assert there >= 0.3, f"what had come was not sent again: {line}"


def test_a_connection_that_breaks_while_it_runs(orin: Device, desk: Desk, waiting: Path, tmp_path: Path) -> None:
    """The work there goes on; the same command waits for its end, or finds it done."""
    desk.terms = replace(desk.terms, python=str(waiting))
    desk.on_line = lambda line: orin.cut() if "waits for go" in line else None
    (outcome,) = desk.call()
    assert outcome.status == 3
    assert outcome.sentence.startswith("orin: the connection broke while it ran there, where it goes on")
    (again,) = desk.call()  # It is found at work, and the connection breaks again.
    assert again.status == 3
    assert desk.lines[0] == "[orin] trtforge: is at work on it already, from before the connection broke; it printed:"
    desk.on_line = lambda _line: None
    (tmp_path / "go").touch()
    end = orin.ours / "work" / desk.cargo.bundle.digest[:16] / "end.json"
    until("the job has ended", end.exists)
    (done,) = desk.call()
    assert (done.status, done.is_fetched) == (0, True), desk.lines
    assert desk.lines[0] == "[orin] trtforge: has done it already, from before the connection broke; it printed:"
    assert "[orin] waits for go" in desk.lines
    assert (done.folder / "report/samples/a.npz").stat().st_size == 3_000_000
    assert (done.folder / "report/samples/empty.npz").stat().st_size == 0
    assert json.loads(end.read_text())["fetched"] is True


def test_a_connection_that_breaks_while_fetching(
    orin: Device, desk: Desk, waiting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "go").touch()
    desk.terms = replace(desk.terms, python=str(waiting))
    listed = files_from_answer

    def cut(*arguments: Any) -> Any:
        orin.cut()
        return listed(*arguments)

    monkeypatch.setattr(job, "files_from_answer", cut)
    (outcome,) = desk.call()
    assert (outcome.status, outcome.is_fetched) == (3, False)
    assert "orin: the connection broke while results were fetched" in outcome.sentence
    assert not outcome.folder.exists()
    assert list(desk.folder.glob(".on-orin*")) == [], "nothing half-made"
    monkeypatch.setattr(job, "files_from_answer", listed)
    (again,) = desk.call()
    assert (again.status, again.is_fetched) == (0, True), desk.lines
    assert desk.lines[0] == "[orin] trtforge: has done it already, from before the connection broke; it printed:"
    # What is here already is not fetched again.
    taken: list[int] = []
    take = FetchedFiles.take

    def counted(self: FetchedFiles, data: bytes) -> None:
        taken.append(len(data))
        take(self, data)

    monkeypatch.setattr(FetchedFiles, "take", counted)
    (third,) = desk.call()
    assert (third.status, third.is_fetched) == (0, True)
    assert sum(taken) < 10_000, "the log alone may be another"
    assert (third.folder / "report/samples/a.npz").stat().st_size == 3_000_000


def test_a_bundle_that_is_altered_on_the_way(
    orin: Device, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.call()
    desk.cargo = replace(desk.cargo, bundle=big_bundle(tmp_path / "b.tar", a=b"7" * 300_000))
    read, before = SentArchive.data, works(orin)

    def data(self: SentArchive, part: Part) -> bytes:
        content = read(self, part)
        return content.replace(b"7", b"8", 1) if part.num_bytes == 300_000 else content

    monkeypatch.setattr(SentArchive, "data", data)
    (outcome,) = desk.call()
    assert outcome.status == 2
    assert outcome.sentence.endswith("a part was changed on the way (SHA-256 differs); run again")
    monkeypatch.setattr(SentArchive, "data", read)
    assert works(orin) - before == {desk.cargo.bundle.digest[:16]}
    assert not (orin.ours / "work" / desk.cargo.bundle.digest[:16] / "bundle.tar").exists()
    (again,) = desk.call()
    assert again.status == 0, desk.lines


def test_a_bundle_whose_own_sums_do_not_fit_is_refused_there(orin: Device, desk: Desk, tmp_path: Path) -> None:
    files = {"plan.toml": b"[model]\n", "manifest.json": b"{ }", "models/fp32/model.onnx": b"\x08\x08" * 4000}
    assert sums(files)
    desk.cargo = replace(desk.cargo, bundle=archive_from_tar(bundle_of(tmp_path / "b.tar", listed=files)))
    (outcome,) = desk.call()
    assert (outcome.status, outcome.sentence, outcome.is_fetched) == (2, "", False)
    assert any("'manifest.json' is not what was packed (SHA-256 differs)" in line for line in desk.lines)
    assert not (orin.ours / "work" / desk.cargo.bundle.digest[:16] / "bundle").exists()


def test_two_jobs_do_not_run_at_once(orin: Device, desk: Desk, waiting: Path, tmp_path: Path) -> None:
    """Else each would disturb what the other times."""
    holder = replace(desk.terms, python=str(waiting))
    desk.terms = holder
    desk.on_line = lambda line: orin.cut() if "waits for go" in line else None
    (first,) = desk.call()
    assert first.status == 3
    desk.on_line = lambda line: (tmp_path / "go").touch() if "another job is at work" in line else None
    other = replace(desk.cargo, bundle=big_bundle(tmp_path / "b.tar", a=b"x" * 300_000))
    (second,) = desk.call(cargo=other)
    assert second.status == 0, desk.lines
    assert "[orin] trtforge: another job is at work on this device; this one waits for its end" in desk.lines


def test_another_command_on_the_same_bundle_is_refused_while_one_runs(
    orin: Device, desk: Desk, waiting: Path, tmp_path: Path
) -> None:
    desk.terms = replace(desk.terms, python=str(waiting))
    desk.on_line = lambda line: orin.cut() if "waits for go" in line else None
    desk.call()
    desk.on_line = lambda _line: None
    (outcome,) = desk.call(cargo=replace(desk.cargo, arguments=("--backend", "reference", "--", "--help")))
    (tmp_path / "go").touch()
    assert outcome.status == 3
    assert outcome.sentence.endswith("another command is at work on this bundle there; wait for its end")
    assert desk.call()[0].status == 0


def test_a_job_that_dies_is_told_and_made_again(orin: Device, desk: Desk, waiting: Path, tmp_path: Path) -> None:
    """As where the device is switched off: there is no end, and nobody at work."""
    desk.terms = replace(desk.terms, python=str(waiting))
    record = orin.ours / "work" / desk.cargo.bundle.digest[:16] / "job.json"

    def kill(line: str) -> None:
        if "waits for go" in line:
            os.killpg(group_of(record), signal.SIGKILL)

    desk.on_line = kill
    (outcome,) = desk.call()
    assert outcome.status == 4
    assert outcome.sentence.endswith("the job died without an end (out of memory, or a restart); run again")
    desk.on_line = lambda _line: None
    (tmp_path / "go").touch()
    assert desk.call()[0].status == 0


def test_whoever_stops_stops_the_work_there(orin: Device, desk: Desk, waiting: Path) -> None:
    desk.terms = replace(desk.terms, python=str(waiting))

    def interrupt(line: str) -> None:
        if "waits for go" in line:
            session.stop()

    session = Session(ORIN, str(waiting), ask=False)
    job.connect(session, desk.terms)
    outcome = job.on_device(session, desk.terms, desk.cargo, desk.folder / "on-orin", interrupt)
    session.close()
    assert (outcome.status, outcome.sentence, outcome.is_fetched) == (143, "the run there was stopped", False)
    folder = orin.ours / "work" / desk.cargo.bundle.digest[:16]
    assert json.loads((folder / "end.json").read_text())["stopped"] is True
    until("all of the job has ended", lambda: not living(group_of(folder / "job.json")))


def test_what_nobody_uses_goes_and_clean_removes_all(orin: Device, desk: Desk, tmp_path: Path) -> None:
    for number in range(KEEP_WORK + 2):
        old = orin.ours / f"work/{number}"
        old.mkdir(parents=True)
        os.utime(old, (number + 1, number + 1))
    unused = orin.ours / "program/unused"
    unused.mkdir(parents=True)
    os.utime(unused, (1, 1))
    bundle = big_bundle(tmp_path / "b.tar", c=b"n" * 300_000)
    assert desk.call(cargo=replace(desk.cargo, bundle=bundle))[0].status == 0
    assert len(works(orin)) == KEEP_WORK
    assert bundle.digest[:16] in works(orin)
    assert "0" not in works(orin)
    assert not unused.exists()
    assert (orin.ours / "program" / desk.cargo.program.digest[:16]).is_dir()
    desk.terms = replace(desk.terms, clean=True)
    (outcome,) = desk.call()
    assert (outcome.status, outcome.is_fetched) == (0, True)
    assert list(orin.home.iterdir()) == []


def test_a_shell_that_prints_at_login(orin: Device, desk: Desk) -> None:
    (orin.home / ".bashrc").write_text("echo welcome; echo to the device\n")
    try:
        assert desk.call()[0].status == 0, desk.lines
    finally:
        (orin.home / ".bashrc").unlink()


def test_one_that_fails_stops_no_other(
    orin: Device, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xavier").mkdir()
    with device_in(tmp_path / "xavier") as second:
        config = second.folder / "ssh_config"
        config.write_text(
            config.read_text().replace("Host orin", "Host xavier")
            + (orin.folder / "ssh_config").read_text()
            + "Host off\nHostName 127.0.0.1\nPort 1\n"
        )
        monkeypatch.setenv(VARIABLE, client_of(second))
        destinations = ORIN, Destination("off"), Destination("xavier")
        outcomes = desk.call(*destinations)
        assert [outcome.status for outcome in outcomes] == [0, 3, 0], desk.lines
        assert outcomes[1].sentence.startswith("off: cannot be reached (ssh: connect to host 127.0.0.1 port 1: ")
        assert {line.split()[0] for line in desk.lines} - {"[orin]"} == {"[xavier]"}
        assert (second.ours / "work" / desk.cargo.bundle.digest[:16] / "bundle").is_dir()
        assert desk.num_prepared == 1


def test_where_none_is_reached_nothing_is_packed(desk: Desk, orin: Device) -> None:
    orin.stop()
    (outcome,) = desk.call()
    assert (outcome.status, desk.num_prepared) == (3, 0)
    assert "cannot be reached" in outcome.sentence
    orin.start()


def test_an_error_while_packing_ends_the_connections(orin: Device, desk: Desk) -> None:
    def prepared() -> Any:
        raise DataError("the data is damaged")

    with pytest.raises(DataError, match="the data is damaged"):
        on_devices({ORIN: desk.folder / "on-orin"}, desk.terms, prepared, desk.say)
    assert not (desk.folder / "on-orin").exists()


def test_a_full_disk_there(program: SentArchive, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound on the size of files stands in for it: the system says EFBIG, as ENOSPC of a disk."""
    (tmp_path / "full").mkdir()
    with device_in(tmp_path / "full") as device:
        monkeypatch.setenv(VARIABLE, client_of(device))
        assert desk.call()[0].status == 0
        device.stop()
        device.start(most_file_kib=512)
        bundle = big_bundle(tmp_path / "b.tar", a=b"f" * 300_000)
        (outcome,) = desk.call(cargo=replace(desk.cargo, bundle=bundle))
        assert outcome.status == 3
        assert "the disk is full; free some space there; then run again" in outcome.sentence
        assert bundle.digest[:16] not in works(device), "nothing half-made is left"
        device.stop()
        device.start()
        assert desk.call(cargo=replace(desk.cargo, bundle=bundle))[0].status == 0


def test_a_device_without_that_python(desk: Desk) -> None:
    desk.terms = replace(desk.terms, python="/nowhere/python3")
    (outcome,) = desk.call()
    assert (outcome.status, desk.num_prepared) == (3, 0)
    assert outcome.sentence == (
        "orin: has no /nowhere/python3; sudo apt install python3 there, or name one with --on-python"
    )


def test_a_device_with_an_old_python(desk: Desk, tmp_path: Path) -> None:
    """A Python that says of itself to be 3.6, as that of JetPack 4."""
    old = tmp_path / "python3.6"
    code = "import sys; code = sys.argv.pop(1); sys.version_info = (3, 6, 9); exec(code)"
    old.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -c "{code}" "$@"\n')
    old.chmod(0o755)
    desk.terms = replace(desk.terms, python=str(old))
    (outcome,) = desk.call()
    assert (outcome.status, desk.num_prepared) == (3, 0)
    assert outcome.sentence == (
        f"orin: its {old} is 3.6, 3.8 is the oldest that works; name a newer one with --on-python (docs/jetson.md says "
        "which JetPack has which)"
    )


def test_a_device_with_another_tensorrt(desk: Desk, orin: Device) -> None:
    desk.terms = replace(desk.terms, tensorrt="10.3", python="/usr/bin/python3")
    (outcome,) = desk.call()
    assert (outcome.status, desk.num_prepared) == (3, 0)
    assert "[support] generation" in outcome.sentence
    assert "10.3 is expected" in outcome.sentence
