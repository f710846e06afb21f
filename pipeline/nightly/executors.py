"""Where lines are made: one after another on this machine, or each on a worker of its device; both are executors."""

from __future__ import annotations

import hashlib
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from pipeline.errors import StageError, Unavailable
from pipeline.flow import run
from pipeline.gate.baseline import gate_from_folder, is_variant_name
from pipeline.gate.files import check_html
from pipeline.gate.generations import current_folder
from pipeline.machine import child_process
from pipeline.nightly.fleet import FleetFile, Line
from pipeline.nightly.line import GATE, LOG, Job, command_of, gate_words
from pipeline.page.whole_text import put_text
from pipeline.plan import Plan
from pipeline.release.bundle_writer import code_allowed, narrowed, write_bundle
from pipeline.remote.device_files import GATE_FOLDER, REPORT_FOLDER
from pipeline.store import Store
from pipeline.workers.census import DeviceState, census
from pipeline.workers.depot import TASKS, Depot
from pipeline.workers.dispatch import Shipment, bring, ship
from pipeline.workers.scheduler import Hub, connected, is_killed
from pipeline.workers.task import Request

P = ParamSpec("P")
R = TypeVar("R")

MOST_ROUNDS = 10
"""So often a line is handed to the scheduler again that gave it up since other lines' workers died."""


class SerialExecutor(Executor):
    """Runs what it gets in this thread, before ``submit`` returns: two builds on one machine spoil their times."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run it now; an error of it is that of the future, and Ctrl-C is none."""
        future: Future[R] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  # Whoever asks the future gets it.
            future.set_exception(error)
        return future


def run_here(job: Job, line: Line, arguments: list[str]) -> int:
    """The line's command, in a process of its own; its exit status.

    Raises:
        StageError: the process died.
    """
    log = job.folder(line) / LOG
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    return child_process.call(log, line.name, job.run_command, arguments)


@contextmanager
def hub_of(fleet_file: FleetFile, lines: list[Line]) -> Iterator[tuple[Hub | None, dict[str, DeviceState]]]:
    """A connection to the fleet's scheduler if one of the lines needs it, and what the census says of their devices.

    Raises:
        ConfigError, Unavailable: it cannot be reached.
    """
    address = fleet_file.scheduler()
    devices = {line.device: fleet_file.device[line.device].expects for line in lines if line.is_scheduled}
    if address is None or not devices:
        yield None, {}
        return
    with connected(address) as hub:
        yield hub, census(hub, devices)


@dataclass(frozen=True)
class Sent:
    """A line that a worker has been asked for."""

    line: Line
    request: Request


@dataclass(frozen=True)
class Workers:
    """The workers of a fleet."""

    hub: Hub
    depot: Depot
    job: Job

    def send(self, line: Line) -> tuple[Future[str], Sent]:
        """Pack a line, put it into the depot, and ask a worker of its device.

        Raises:
            ConfigError, DataError, Unavailable, StageError, CheckFailed: it cannot be packed, or the depot is away.
        """
        plan, folder = line.plan(), self.job.folder(line)
        check_html(job_html(self.job, plan))
        self.depot.check()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOG).unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="trtforge-") as work:
            bundle = child_process.call(folder / LOG, line.name, packed, line, self.job.store, Path(work))
            retries = self.job.fleet_file.fleet.retries
            sent = Sent(line, ship(shipment_of(self.job, line, plan), bundle, self.depot, retries))
        return self.submit(sent), sent

    def submit(self, sent: Sent) -> Future[str]:
        """Ask a worker of the line's device."""
        return self.hub.submit(sent.line.device, sent.request)

    def ended(self, futures: Mapping[Future[str], Sent]) -> Iterator[tuple[Line, Callable[[], int]]]:
        """Each line as it is done, with what brings its files here and returns its exit status.

        A line that the scheduler gave up because its worker died is handed to it again, up to the fleet's retries.
        """
        pending, patience_s = dict(futures), self.job.fleet_file.fleet.wait_s
        for _ in range(MOST_ROUNDS):
            again: dict[Future[str], Sent] = {}
            devices = {future: sent.line.device for future, sent in pending.items()}
            for future, is_away in self.hub.as_done(devices, patience_s):
                sent = pending[future]
                if not is_away and self._is_innocent(future, sent):
                    again[self.submit(sent)] = sent
                else:
                    yield sent.line, lambda f=future, s=sent, a=is_away: self._brought(f, s, a)  # type: ignore[misc]
            if not (pending := again):
                return
        for future, sent in pending.items():
            future.cancel()
            yield sent.line, lambda f=future, s=sent: self._brought(f, s, False)  # type: ignore[misc]

    def _is_innocent(self, future: Future[str], sent: Sent) -> bool:
        error = None if future.cancelled() else future.exception()
        if error is None or not is_killed(error):
            return False
        begun = self.depot.count(f"{TASKS}/{sent.request['task']}", "begun-")
        return begun <= int(sent.request["retries"])

    def _brought(self, future: Future[str], sent: Sent, is_away: bool) -> int:
        """The exit status of the command there; its files are in the line's folder.

        Raises:
            DataError, Unavailable, StageError: it came to none.
        """
        device, final = sent.line.device, self.job.folder(sent.line)
        if is_away:
            wait_s = self.job.fleet_file.fleet.wait_s
            raise Unavailable(f"device {device}: no worker has had its tag for {wait_s:g} s; start it, and run again")
        try:
            text = future.result(timeout=0)
        except (CancelledError, TimeoutError) as error:
            raise Unavailable(f"device {device}: the scheduler lost this line; run again") from error
        except Exception as error:
            words = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            what = "its worker died while it was at work on this" if is_killed(error) else "its worker failed"
            raise StageError(f"device {device}: {what} ({words}); see the worker's log") from error
        (final / LOG).unlink(missing_ok=True)
        status = bring(text, sent.request, self.depot, final)
        if job_html(self.job, sent.line.plan()) and (final / GATE / "gate.json").is_file():
            _draw(final / GATE)
        return status


def start_here(job: Job, line: Line, executor: Executor) -> Future[int]:
    """The line's command on this machine, or by ssh from it."""
    plan = line.plan()
    return executor.submit(run_here, job, line, command_of(job, line, plan))


def job_html(job: Job, plan: Plan) -> bool:
    """Whether a gate's page is drawn."""
    return job.gates and plan.gate.html


def packed(line: Line, store: Path, out: Path) -> Path:
    """Make a line's models, in the half of the work that needs no device, and pack them into ``out``.

    Raises:
        ConfigError, DataError, Unavailable, StageError, CheckFailed: as a run.
    """
    plan = narrowed(line.plan())
    return write_bundle(out, plan, run(plan, Store(store), "pack")).path


def shipment_of(job: Job, line: Line, plan: Plan) -> Shipment:
    """What a worker does for a line: judge it beside the last good engine of this store, or build and time it."""
    is_own = job.gates and not is_variant_name(plan.gate.baseline)
    where = f"{socket.gethostname()} {job.fleet_file.report_folder.resolve()} {line.name}"
    verb = ("gate", *gate_words(job, line, plan)) if job.gates else ("run",)
    return Shipment(
        task=hashlib.sha256(where.encode()).hexdigest()[:32],
        words=(*verb, *code_allowed(plan)),
        writes=GATE_FOLDER if job.gates else REPORT_FOLDER,
        baseline=(line.name, current_folder(line.name, job.store) if is_own else None),
    )


def _draw(gate: Path) -> None:
    """gate.html of a gate that was held where no page can be drawn."""
    from pipeline.gate.page import html_from_gate

    put_text(html_from_gate(gate_from_folder(gate), gate), gate / "gate.html")
