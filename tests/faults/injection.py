"""Kills the command, or fills its disk, at a call in turn (SQLite's method); looks at what is left, and what follows.

    python -m tests.faults.injection WORK --every N [--only SCENARIO] [--kind KIND]

prints a line of JSON for each. It must run with the library of `shim.py` loaded. What it runs are forks of this
process, stages' processes included, for loading the tools takes much longer than all that is tried.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import ctypes
import errno
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from pipeline.artifact import artifact_from_record
from pipeline.command.cli import status_of
from pipeline.machine import child_process
from pipeline.store import _digest_of_files
from tests.faults import scenarios
from tests.faults.scenarios import SCENARIOS, STORE, Scenario, copied, let_pass, litter, results_in_store, state_of
from tests.faults.shim import KILL, Shim

PR_SET_CHILD_SUBREAPER = 36
FULL = errno.ENOSPC
MOST_SECONDS = 600
MOST_PAIRS = 8
"""Of writers, of each scenario."""


@dataclass(frozen=True)
class Tried:
    """One call that was made to fail."""

    scenario: str
    kind: str
    at: int
    calls: int
    where: str
    status: int
    faults: list[str]


class _Forked:
    """Stands for the process that `child_process` starts: a fork of this one."""

    def __init__(self, log: Path, sender: Connection, work: Callable[[Callable[[object], None]], object]) -> None:
        parent = os.getpid()
        with log.open("ab") as stream:
            self._pid = os.fork()
            if self._pid == 0:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
                try:
                    child_process._child(sender.fileno(), parent, work)
                finally:
                    os._exit(0)

    def wait(self) -> int:
        with contextlib.suppress(ChildProcessError):
            return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        return 0

    def terminate(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGTERM)


def load_everything() -> None:
    """What each fork would have to load, and that this process gets the processes of those that were killed."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    for name in (
        "onnxruntime", "polygraphy.comparator", "pipeline.command.verbs.plans.run", "pipeline.engine_runner",
        "pipeline.flow", "cattrs",
    ):  # fmt: skip
        importlib.import_module(name)


def run(arguments: tuple[str, ...], folder: Path, log: Path, first: Callable[[], object] = lambda: None) -> int:
    """The command in a fork, in a process group of its own; its status, or minus the signal that ended it."""
    return finished(begun(arguments, folder, log, first))[0]


def begun(arguments: tuple[str, ...], folder: Path, log: Path, first: Callable[[], object] = lambda: None) -> int:
    """The process, at work."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            signal.alarm(MOST_SECONDS)
            os.chdir(folder)
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            child_process._started = _Forked  # type: ignore[assignment]
            first()
            status = status_of(arguments)
            atexit._run_exitfuncs()
        except BaseException:  # noqa: BLE001  # It is what Python itself would print.
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return pid


def finished(*pids: int) -> list[int]:
    """The statuses of processes, when they have ended, and those that they started."""
    statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    with contextlib.suppress(ChildProcessError):
        while True:  # Those of their groups, which are this process's children now.
            os.waitpid(-1, 0)
    return statuses


def faults_in_store(folder: Path) -> Iterator[str]:
    """What in the store is not whole."""
    for entry in sorted(folder.glob(f"{STORE}/*/*")):
        if entry.parent.name in ("tmp", "baselines", "pins"):
            continue
        try:
            sealed = json.loads((entry / "result.json").read_text())
            assert artifact_from_record(sealed["artifact"], entry).digest() == sealed["content"]
            assert sealed["files"] == _digest_of_files(entry)
        except (OSError, ValueError, AssertionError) as error:
            yield f"{entry.relative_to(folder)}: {error!r}"


class Trial:
    """One scenario, with what it comes to where nothing happens."""

    def __init__(self, scenario: Scenario, base: Path, work: Path, shim: Shim) -> None:
        self.scenario, self._shim, self._folder, self._log = scenario, shim, work / "folder", work / "log"
        self._template = work / f"template of {scenario.name}"
        copied(base, self._folder)
        for arguments in scenario.before:
            self._must(arguments)
        if scenario.days_ago:
            let_pass(scenario.days_ago, self._folder)
        copied(self._folder, self._template)
        self._before = self._states()
        shim.arm(self._folder)
        self._must(scenario.arguments)
        self.num_calls, _ = shim.disarm()
        self._after, self._results = self._states(), results_in_store(self._folder)
        self._expected = {path.name for path in self._folder.iterdir()} | {STORE}

    def _must(self, arguments: tuple[str, ...]) -> None:
        status = run(arguments, self._folder, self._log)
        assert status in self.scenario.statuses or status == 0, f"{arguments}: {status}\n{self._log.read_text()}"

    def _states(self) -> list[str]:
        return [state_of(self._folder / target) for target in self.scenario.targets]

    def kill(self, at: int) -> Tried:
        """At the n-th call."""
        copied(self._template, self._folder)
        self._shim.arm(self._folder, at, KILL)
        status = run(self.scenario.arguments, self._folder, self._log)
        calls, where = self._shim.disarm()
        faults = [] if status == -signal.SIGKILL or calls < at else [f"status {status}"]
        return Tried(self.scenario.name, "kill", at, self.num_calls, where, status, faults + self._faults_after())

    def fill(self, at: int) -> Tried:
        """From the n-th call on, nothing more can be written."""
        copied(self._template, self._folder)
        self._shim.arm(self._folder, at, FULL)
        status = run(self.scenario.arguments, self._folder, self._log)
        _, where = self._shim.disarm()
        faults, text = [], self._log.read_text()
        if "Traceback" in text:
            faults.append(f"traceback: {text[-1500:]}")
        if status == 3:
            if "no more can be written" not in text and "disk is full" not in text:
                faults.append(f"no sentence: {text[-300:]}")
            faults += [f"left: {name}" for name in litter(self._folder, self._expected)]
        elif status not in self.scenario.statuses:
            faults.append(f"status {status}: {text[-300:]}")
        elif self._states() != self._after:
            faults.append(f"status {status} without a result")
        return Tried(self.scenario.name, "full disk", at, self.num_calls, where, status, faults + self._faults_after())

    def two_at_once(self, at: int) -> Tried:
        """Two processes make the same at the same time."""
        copied(self._template, self._folder)
        logs = (self._log, self._log.with_name("log of the other"))
        statuses = finished(*(begun(self.scenario.arguments, self._folder, log) for log in logs))
        faults = [
            f"status {status}: {log.read_text()[-600:]}"
            for status, log in zip(statuses, logs)
            if status not in self.scenario.statuses
        ]
        if self._states() != self._after:
            faults.append(f"neither's result: {self._states()}")
        faults += [f"left: {name}" for name in litter(self._folder, self._expected)]
        return Tried(self.scenario.name, "two writers", at, 2, "", max(statuses), faults + self._faults_after())

    def _faults_after(self) -> list[str]:
        """Of what is left, and of the next call."""
        faults = list(faults_in_store(self._folder))
        try:
            states = self._states()
            if states not in (self._before, self._after):
                faults.append(f"neither the old nor the new: {states}")
        except Exception as error:  # noqa: BLE001  # Whatever it is, a target is half.
            faults.append(f"half: {error!r}")
        status = run(self.scenario.arguments, self._folder, self._log)
        if status not in self.scenario.statuses:
            return [*faults, f"the next call ends with {status}: {self._log.read_text()[-600:]}"]
        if self._states() != self._after:
            faults.append(f"the next call makes another result: {self._states()}")
        if results_in_store(self._folder) != self._results:
            faults.append("the next call's store has other results")
        return faults + [f"left after the next call: {name}" for name in litter(self._folder, self._expected)]


KINDS = {"kill": Trial.kill, "full disk": Trial.fill, "two writers": Trial.two_at_once}


def main() -> None:
    """As the first lines say."""
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--kind", choices=tuple(KINDS), default="kill")
    options = parser.parse_args()
    work: Path = options.work.resolve()
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    load_everything()
    base = work / "base"
    scenarios.prepare(base)
    for arguments in scenarios.PREPARING:
        assert run(arguments, base, work / "log") == 0, (work / "log").read_text()
    offset = 0
    for name in options.only or SCENARIOS:
        begin = time.process_time()
        trial = Trial(SCENARIOS[name], base, work, Shim(work))
        num_calls = MOST_PAIRS if options.kind == "two writers" else trial.num_calls
        points = range(1 + offset % options.every, num_calls + 1, options.every)
        offset += num_calls
        for at in points:
            tried = KINDS[options.kind](trial, at)
            sys.stdout.write(json.dumps(asdict(tried)) + "\n")
            sys.stdout.flush()
        sys.stderr.write(f"{name}: {len(points)} of {trial.num_calls}, {time.process_time() - begin:.1f} s\n")


if __name__ == "__main__":
    main()
