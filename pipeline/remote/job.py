"""Several devices at once: connect, send, run, fetch; none waits for another, and one that fails stops no other."""

from __future__ import annotations

import codecs
import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import EXIT_STATUS, StageError, Unavailable, exit_status
from pipeline.output import check_replaceable, put, work_folder
from pipeline.remote.archive import SentArchive
from pipeline.remote.device_files import is_version
from pipeline.remote.fetched import TOPS, FetchedFiles, files_from_answer, settle, taken_from_before
from pipeline.remote.outcome import DeviceOutcome
from pipeline.remote.session import Session
from pipeline.remote.ssh import Destination
from pipeline.spelling import shown

MIB = 1 << 20
MOST_LINE = 2000
"""Characters of a line that a device prints."""
TOLD_BYTES = 32 << 20
"""Between two lines on how far copying is."""
UNFETCHED = (1, 2, 3, 4)
"""Exit statuses of a run there that wrote no report."""
STATES = {"started": "", "at work": "is at work on it already", "done": "has done it already"}

Say = Callable[[str], object]


@dataclass(frozen=True)
class Terms:
    """How devices are used."""

    python: str = ""
    """An interpreter there that has all that is needed; empty: an environment is made there."""
    tensorrt: str = ""
    """The version of TensorRT that is expected, or how it begins; empty: any."""
    clean: bool = False
    """Whether all that is there of ours is removed at the end."""
    ask: bool = False
    """Whether ssh may ask for a password."""


@dataclass(frozen=True)
class Cargo:
    """What goes to each device, and what is done with it there."""

    program: SentArchive
    bundle: SentArchive
    arguments: tuple[str, ...]
    """Of scripts/build_on_jetson, after the bundle."""
    writes: str
    """The folder in the bundle that the run writes: ``trtforge-report`` or ``trtforge-gate``."""


class PrintedLines:
    """Bytes that a device prints, as lines; what would move a cursor or colour a terminal is spelt out."""

    def __init__(self, say: Say) -> None:
        """``say`` gets each line."""
        self._say, self._rest = say, ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, data: bytes, *, final: bool = False) -> None:
        """The next bytes."""
        *lines, self._rest = (self._rest + self._decoder.decode(data, final)).split("\n")
        if len(self._rest) > MOST_LINE or (final and self._rest):
            lines, self._rest = [*lines, self._rest], ""
        for line in lines:
            self._say(shown(line)[:MOST_LINE])


def on_devices(
    folders: Mapping[Destination, Path],
    terms: Terms,
    prepared: Callable[[], contextlib.AbstractContextManager[Cargo]],
    say: Say,
) -> list[DeviceOutcome]:
    """Do it on all of them at once. Ctrl-C stops what runs there, too.

    Args:
        folders: the devices, and the folder on this machine for what each makes.
        terms: how they are used.
        prepared: makes what is sent, after the first of them is connected; not called if none is.
        say: gets each line that is printed, with the device's address before it.

    Raises:
        Whatever ``prepared`` raises. What goes wrong with a device is its outcome.
    """
    sessions = {where: Session(where, terms.python, ask=terms.ask) for where in folders}
    outcomes: dict[Destination, DeviceOutcome] = {}

    def told(where: Destination, work: Callable[[], DeviceOutcome | None]) -> None:
        try:
            outcome = work()
        except tuple(EXIT_STATUS) as error:
            outcome = DeviceOutcome(where, exit_status(error), str(error), folders[where])
        if outcome is not None:
            outcomes[where] = outcome

    def at_once(work: Callable[[Destination], DeviceOutcome | None]) -> None:
        rest = [where for where in folders if where not in outcomes]
        with ThreadPoolExecutor(max(len(rest), 1)) as executor, _stopped(sessions):
            futures = [executor.submit(told, where, lambda where=where: work(where)) for where in rest]  # type: ignore[misc]
            for future in futures:
                future.result()

    def do(where: Destination, cargo: Cargo) -> DeviceOutcome:
        return on_device(sessions[where], terms, cargo, folders[where], lambda line: say(f"[{where.address}] {line}"))

    try:
        at_once(lambda where: connect(sessions[where], terms))
        if len(outcomes) < len(folders):
            with prepared() as cargo:
                at_once(lambda where: do(where, cargo))
    finally:
        for session in sessions.values():
            session.close()
    return [outcomes[where] for where in folders]


@contextlib.contextmanager
def _stopped(sessions: Mapping[Destination, Session]) -> Iterator[None]:
    """Whatever ends the wait for them ends what runs there."""
    try:
        yield
    except BaseException:
        stops = [threading.Thread(target=session.stop) for session in sessions.values()]
        for stop in stops:
            stop.start()
        raise


def connect(session: Session, terms: Terms) -> None:
    """Connect.

    Raises:
        Unavailable: it cannot be reached, or has another TensorRT than is expected.
    """
    version = str(session.connect().get("tensorrt", ""))
    expected = terms.tensorrt.rstrip(".")
    if not is_version(version, expected):
        session.close()
        has = f"has TensorRT {shown(version)[:40]}" if version else "has no TensorRT that its packages tell of"
        raise Unavailable(
            f"{session.destination.address}: {has}, {expected} is expected ([support] generation); write what it has, "
            "or install what is expected"
        )


def on_device(session: Session, terms: Terms, cargo: Cargo, final: Path, say: Say) -> DeviceOutcome:
    """Send what is lacking, run it, and put what it made into ``final`` by one rename.

    Raises:
        ConfigError, DataError, Unavailable, StageError: it came to nothing; ``final`` is as it was.
    """
    for kind, what, archive in (("program", "the program", cargo.program), ("work", "the bundle", cargo.bundle)):
        session.phase = f"{what} was copied"
        send(session, kind, archive, lambda line, what=what: say(f"trtforge: copies {what}: {line}"))  # type: ignore[misc]
    session.phase = "the run was started"
    state = session.ask(
        "start",
        digest=cargo.bundle.digest,
        program=cargo.program.digest,
        arguments=list(cargo.arguments),
        environment={"READY": terms.python} if terms.python else {},
        writes=cargo.writes,
    )
    if words := STATES.get(str(state.get("state")), ""):
        say(f"trtforge: {words}, from before the connection broke; it printed:")
    session.phase = "it ran there, where it goes on"
    lines = PrintedLines(say)
    end = session.follow(cargo.bundle.digest, lines.take)
    lines.take(b"", final=True)
    status, is_stopped = end.get("status"), bool(end.get("stopped"))
    if not isinstance(status, int) or not 0 <= status <= 255:
        raise StageError(f"{session.destination.address}: says no exit status of its run; see what runs there")
    if status in UNFETCHED:
        for line in shown(str(end.get("out", ""))).splitlines():
            say(line[:MOST_LINE])
    session.phase = "results were fetched"
    is_fetched = status not in UNFETCHED and not is_stopped
    engines = fetch(session, cargo, final) if is_fetched else {}
    session.ask("done", digest=cargo.bundle.digest, clean=terms.clean)
    session.phase = "ended"
    sentence = "the run there was stopped" if is_stopped else ""
    return DeviceOutcome(session.destination, status, sentence, final, is_fetched, engines)


def send(session: Session, kind: str, archive: SentArchive, say: Say) -> None:
    """Send the parts that are lacking there."""
    parts = [[part.num_bytes, part.digest] for part in archive.parts]
    offer = session.ask("offer", kind=kind, digest=archive.digest, parts=parts, room=archive.num_bytes)
    lacks = [archive.parts[number] for number in numbers_from(offer.get("lacks"), len(parts), session)]
    total, sent, said_bytes = sum(part.num_bytes for part in lacks), 0, 0
    if lacks:
        there = archive.num_bytes - total
        say(f"{total / MIB:.1f} MiB" + (f", {there / MIB:.1f} MiB are there" if there else ""))
    for part in lacks:
        session.send(archive.data(part))
        sent += part.num_bytes
        if sent - said_bytes >= TOLD_BYTES and sent < total:
            said_bytes = sent
            say(f"{sent / MIB:.0f} of {total / MIB:.0f} MiB")
    session.answer()


def numbers_from(numbers: object, below: int, session: Session) -> list[int]:
    """What a device says that it lacks.

    Raises:
        StageError: it is no list of parts.
    """
    is_list = isinstance(numbers, list) and all(type(number) is int and 0 <= number < below for number in numbers)
    if not is_list or not isinstance(numbers, list) or len(set(numbers)) < len(numbers):
        raise StageError(f"{session.destination.address}: lacks parts that there are not; see what runs there")
    return numbers


def fetch(session: Session, cargo: Cargo, final: Path) -> dict[str, Path]:
    """Bring what the run made into ``final``; the engines there by variant.

    Raises:
        DataError, StageError: it is not what a run makes.
        Unavailable: the connection broke, or there is no room here.
    """
    address, request = session.destination.address, {"digest": cargo.bundle.digest, "writes": cargo.writes}
    files = files_from_answer(session.ask("results", **request), address)
    with work_folder(final) as work:
        new = work / "new"
        new.mkdir()
        lacking = taken_from_before(files, final, new)
        fetched = FetchedFiles(lacking, new, address)
        try:
            session.begin("get", names=[file.name for file in lacking], **request)
            session.answer(fetched.take)
        finally:
            fetched.close()
        fetched.check_whole()
        engines = settle(new, final, address)
        for folder in keep_from_before(new, final):
            shutil.copytree(final / folder, new / folder)
        put(new, final, work)
    return engines


def keep_from_before(new: Path, final: Path) -> Iterator[str]:
    """What an earlier run of another verb brought, and stays: its report or gate, and engines of other variants."""
    for what in TOPS[1:3]:
        if (final / what).is_dir() and not (new / what).exists():
            yield what
    if (final / "engines").is_dir():
        yield from (
            f"engines/{path.name}"
            for path in (final / "engines").iterdir()
            if path.is_dir() and not (new / "engines" / path.name).exists()
        )


def check_folder(folder: Path) -> None:
    """That what is going to be replaced is what an earlier call brought.

    Raises:
        ConfigError: it holds anything else.
    """
    check_replaceable(folder, TOPS, "--on: {} exists, but the folder of a device is replaced as a whole")
