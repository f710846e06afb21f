"""Run one function in a process of its own, so that a crash in native code is one clear error.

The process is started fresh, not forked: it inherits no runtime's state. What it prints goes to a log file. It imports
from where this process does, and nothing from the current folder, which may be anybody's: `multiprocessing` starts its
own with that folder first on the module path, and Python before 3.11 has no switch for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar, cast

from pipeline.errors import EXIT_STATUS, FULL_DISK, ProcessDied, StageError

P = ParamSpec("P")
R = TypeVar("R")
SendProgress: TypeAlias = Callable[[Any], None]

FIRST_STEPS = (
    "import sys; sys.path = [entry for entry in sys.path if entry]; import pickle; read = sys.stdin.buffer; "
    "sys.path = pickle.load(read); work, arguments = pickle.load(read); work(*arguments)"
)
"""`python -c` puts an empty entry, the current folder, first on the path; it has imported nothing by then."""
PROGRESS, ANSWER = "news", "answer"
DEADLY = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
"""Signals by which a process dies that ran out of memory or crashed; others were sent by somebody."""

NUM_LAST_LINES = 8
"""An error with one of these is raised again as it was, for whoever owns the folder to say so."""


def call(log: Path, what: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """``function(*args, **kwargs)`` in a process of its own; its output goes to the file ``log``.

    Arguments, result and errors are pickled. One of our own errors is raised again as it was.

    Raises:
        ProcessDied: the process ended without an answer; the message says ``what`` was done and quotes the last lines
            of the output.
        StageError: an error that is not ours was raised there; likewise.
    """
    return cast(R, _call(log, what, _ignore, partial(_without_progress, function, args, kwargs)))


def call_with_progress(
    log: Path,
    what: str,
    on_progress: Callable[[Any], object],
    function: Callable[Concatenate[SendProgress, P], R],
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """As ``call``; the function's first argument is a callable that sends its argument to ``on_progress`` here.

    The argument is pickled; the callable may be called from any thread.
    """
    return cast(R, _call(log, what, on_progress, partial(_with_progress, function, args, kwargs)))


def _ignore(_news: object) -> None:
    """Nobody listens."""


def _without_progress(function: Callable[..., object], args: Any, kwargs: Any, _send_progress: SendProgress) -> object:
    return function(*args, **kwargs)


def _with_progress(function: Callable[..., object], args: Any, kwargs: Any, send_progress: SendProgress) -> object:
    return function(send_progress, *args, **kwargs)


def _call(log: Path, what: str, on_progress: Callable[[Any], object], work: Callable[[SendProgress], object]) -> object:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    try:
        process = _started(log, sender, work)
    finally:
        sender.close()
    try:
        while (received := receiver.recv())[0] == PROGRESS:
            on_progress(received[1])
        result, error, trace = received[1]
    except EOFError:
        exit_status = process.wait()
        died = ProcessDied(f"{what}: {_death(exit_status)}{_quoted(log)}")
        died.may_be_memory = -exit_status in DEADLY
        raise died from None
    except BaseException:
        process.terminate()
        raise
    finally:
        receiver.close()
        process.wait()
    if error is None:
        return result
    if isinstance(error, tuple(EXIT_STATUS)) or (isinstance(error, OSError) and error.errno in FULL_DISK):
        raise cast(Exception, error)
    raise StageError(f"{what}: {trace.strip().splitlines()[-1]}{_quoted(log)}") from error


def _started(log: Path, sender: Connection, work: Callable[[SendProgress], object]) -> subprocess.Popen[bytes]:
    """A process at work, whose module path is this one's."""
    # Ctrl-C reaches all processes of a terminal: the child never sees it, this one ends the child.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with log.open("ab") as stream:
            process = subprocess.Popen(
                (sys.executable, "-c", FIRST_STEPS),
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=stream,
                pass_fds=(sender.fileno(),),
            )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert process.stdin is not None
    try:
        pickle.dump(sys.path, process.stdin)
        pickle.dump((_child, (sender.fileno(), os.getpid(), work)), process.stdin)
        process.stdin.close()
    except BrokenPipeError:  # It has died already, which is seen by its answer that does not come.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


def _child(sender_fd: int, parent_pid: int, work: Callable[[SendProgress], object]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(parent_pid)
    sender, lock = Connection(sender_fd, readable=False), threading.Lock()

    def send(kind: str, item: object) -> None:
        with lock:
            sender.send((kind, item))

    try:
        answer: tuple[object, BaseException | None, str] = (work(partial(send, PROGRESS)), None, "")
    except BaseException as error:  # noqa: BLE001  # All of it is handed to the parent, which raises it.
        trace = traceback.format_exc()
        with contextlib.suppress(OSError):  # The disk may be full.
            print(trace, file=sys.stderr, flush=True)  # noqa: T201  # Into the log.
        answer = (None, _alone(error), trace)
    try:
        pickle.loads(pickle.dumps(answer[1]))  # Some errors can be pickled, but not read again.
        send(ANSWER, answer)
    except Exception as error:  # noqa: BLE001  # What cannot be pickled is told in words.
        send(ANSWER, (None, RuntimeError(f"{type(error).__name__}: {error}"), answer[2] or str(error)))
    sender.close()


def _alone(error: BaseException) -> BaseException:
    """The error without those that led to it, which stand in the log.

    TensorFlow makes pickle carry them, and whoever reads them again then loads TensorFlow for their types.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def die_with_parent(parent_pid: int) -> None:
    """Ask Linux to kill this process when its parent is killed, so that nothing works on for nobody."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)
    if os.getppid() != parent_pid:
        os._exit(1)  # It was killed before the line above.


def _death(exit_status: int) -> str:
    if exit_status < 0:
        name = signal.Signals(-exit_status).name
        hint = "; the system kills a process like this when memory runs out" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}"
    return f"the process ended with status {exit_status} before it answered"


def _quoted(log: Path) -> str:
    if not log.is_file():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-NUM_LAST_LINES:]
    return "\nIts last output:\n  " + "\n  ".join(lines) if lines else ""
