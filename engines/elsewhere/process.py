"""This side: a process of another Python that serves a backend, and what is raised when it fails."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from engines.elsewhere import worker
from engines.elsewhere.channel import Channel
from engines.elsewhere.wire import Arena
from engines.errors import EngineError, RuntimeCrashed, Unavailable
from engines.plugin_library import NAMED

if TYPE_CHECKING:
    from typing import TypeAlias

OLDEST_PYTHON = (3, 8)
DEADLY = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
"""Signals by which a process dies that ran out of memory or crashed; others were sent by somebody."""
QUICK = frozenset(
    {
        "why_not_build", "why_not_run", "why_not_ask", "versions", "location", "refuse", "refuse_model", "device_ms",
        "facts", "device_memory_now_mib", "batch_ranges", "bind",
    }
)  # fmt: skip
"""What computes nothing, so that there is a limit to how long it may take."""
START = "start"
"""For its first message, which nobody asks for."""
FIRST_STEPS = """
import os, sys
folder, module, numbers = sys.argv[1], sys.argv[2], [int(number) for number in sys.argv[3:]]
os.write(numbers[2], bytearray(sys.version_info[:2]))
if sys.version_info < (3, 8):
    sys.exit(3)
sys.path = [entry for entry in sys.path if entry]
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("engines", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["engines"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["engines"])
from engines.elsewhere.worker import main
main(module, *numbers)
"""
"""For any Python. `python -c` puts the current folder first on the path, which may be anybody's; of this project there
is ``engines`` alone, whatever else lies beside it."""
Errors: TypeAlias = "Mapping[str, type[Exception]]"
KINDS: Errors = {kind.__name__: kind for kind in worker.ERRORS}


@dataclass(frozen=True)
class TimeLimits:
    """Seconds."""

    start: float = 300.0
    """The first import from a slow card takes a minute."""
    quick: float = 300.0
    end: float = 30.0

    def of(self, verb: str) -> float | None:
        """That of an answer; None where it may take as long as it does."""
        return self.start if verb == START else self.quick if verb in QUICK else None


class ElsewhereProcess:
    """Started with the first call, and again with the next one after it has died; ends with this process.

    Args:
        python: the interpreter.
        module: of the backend, as ``engines.backends.tensorrt``.
        name: the backend's, for sentences.
        limits: after which it is ended.
    """

    def __init__(self, python: str, module: str, name: str, limits: TimeLimits = TimeLimits()) -> None:
        self.python, self._module, self._name, self._limits = python, module, name, limits
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._lock = threading.RLock()
        self.num_starts = 0
        """What holds of one start does not hold of the next: its runners are gone."""
        self.version: tuple[int, ...] = ()

    def is_running(self) -> bool:
        """Whether it was started, and nobody has noticed that it ended."""
        return self._channel is not None

    def process_id(self) -> int:
        """Of the running process; it is started where none runs."""
        with self._lock:
            self._running()
            assert self._process is not None
            return self._process.pid

    def call(
        self, verb: str, *arguments: Any, on_progress: Callable[..., object] = lambda *_: None, **fetch: Any
    ) -> Any:
        """What the backend answers.

        Args:
            verb: a method of ``worker.Worker``, without its ``do_``.
            arguments: of it; arrays in what is returned last until the next call.
            on_progress: told what a build tells.
            fetch: by what is wanted meanwhile, such as ``batch``: a callable that gives it, or None at the end.

        Raises:
            Unavailable: the interpreter cannot be started, is too old, or lacks a package.
            EngineError, OutOfMemory: as the backend; or the process died, or did not answer.
        """
        with self._lock:
            self.begin(verb, *arguments)
            failure: BaseException | None = None
            while True:
                message = self.receive(verb)
                if "progress" in message:
                    on_progress(*message["progress"])
                elif "wanted" in message:
                    feed, failure = (None, failure) if failure else fetched(fetch[message["wanted"]])
                    self.send(fetched=feed)
                elif failure is not None:
                    raise failure
                else:
                    return message["result"]

    def begin(self, verb: str, *arguments: Any) -> None:
        """Ask for something; paths hold from this process's folder."""
        self._running()
        plugins = os.environ.get(NAMED, "")  # What may be loaded now, which may be other than when the process began.
        self.send(verb=verb, arguments=arguments, folder=os.getcwd(), plugins=plugins)  # noqa: PTH109

    def send(self, **message: Any) -> None:
        """One message; RuntimeCrashed or EngineError if the process is gone."""
        assert self._channel is not None
        try:
            self._channel.send(**message)
        except OSError:
            self._raise_death()

    def receive(self, verb: str) -> dict[str, Any]:
        """The next message that is no log record and no error; ``verb`` is for sentences."""
        assert self._channel is not None
        limit = self._limits.of(verb)
        self._channel.connection.settimeout(limit)  # Each time: between two answers another verb may be asked.
        while True:
            try:
                message = self._channel.receive()
            except EOFError:
                self._raise_death()
            except socket.timeout:
                self.close(0)
                raise EngineError(
                    f"{self._name}: the process of {self.python} has not answered '{verb}' for "
                    f"{limit:g} s, and was ended; run again, and look at dmesg if it does so again"
                ) from None
            except BaseException:  # Ctrl-C in the middle of a message.
                self.close(0)
                raise
            if "log" in message:
                level, name, text = message["log"]
                logging.getLogger(name).log(level, "%s", text)
            elif "error" in message:
                raise _as_error(message["error"])
            else:
                return message

    def close(self, seconds: float | None = None) -> None:
        """End it: it is asked to, and killed where it has not ended in so many seconds (the limit's, unless given)."""
        channel, process = self._channel, self._process
        self._channel = self._process = None
        if channel is not None:
            channel.close()
        if process is not None:
            try:
                process.wait(self._limits.end if seconds is None else seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _running(self) -> Channel:
        if self._channel is None:
            self._start()
            atexit.unregister(self.close)
            atexit.register(self.close)
        assert self._channel is not None
        return self._channel

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        arenas = [os.memfd_create(f"trtforge-{name}") for name in ("in", "out")]
        passed = (theirs.fileno(), *arenas)
        is_main = threading.current_thread() is threading.main_thread()
        level = logging.getLogger("engines").getEffectiveLevel()
        numbers = [level, int(is_main), *passed]
        folder = Path(__file__).resolve().parents[1]
        left_out = (worker.PYTHON_VARIABLE, "PYTHONHOME")
        environment = {name: value for name, value in os.environ.items() if name not in left_out}
        command = [self.python, "-X", "faulthandler", "-c", FIRST_STEPS, str(folder), self._module, *map(str, numbers)]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=passed, env=environment)
        except OSError as error:
            ours.close()
            for descriptor in arenas:
                os.close(descriptor)
            raise Unavailable(
                f"{self._name}: {self.python} cannot be started ({error.strerror}); it is named by "
                f"{worker.PYTHON_VARIABLE}, or by {worker.PYTHON_FILE} in {self._environment()}: name one that works"
            ) from error
        finally:
            theirs.close()
        ours.settimeout(self._limits.start)
        self._channel = Channel(ours, Arena(arenas[1]), Arena(arenas[0]))
        self.num_starts += 1
        self._greet(ours)

    def _greet(self, connection: socket.socket) -> None:
        """Its version first, and then whether the backend's file could be imported."""
        try:
            version = tuple(connection.recv(2))
        except OSError:
            version = ()
        if version and version < OLDEST_PYTHON:
            self.close()
            raise Unavailable(
                f"{self._name}: {self.python} is Python {'.'.join(map(str, version))}, 3.8 is the oldest that works; "
                "take JetPack 5.1 or later, whose TensorRT is made for it"
            )
        try:
            if len(version) < len(OLDEST_PYTHON):
                raise EngineError("it says nothing")
            self.version = self.receive(START)["result"]
        except Exception as error:
            self.close(0)
            if isinstance(error, Unavailable):
                raise
            raise Unavailable(
                f"{self._name}: {self.python} does not start as it has to ({error}); it needs what "
                "scripts/constraints-3.8.txt lists: pip install these for it"
            ) from error

    def _environment(self) -> str:
        return os.environ.get("VIRTUAL_ENV", "the environment")

    def _raise_death(self) -> NoReturn:
        process = self._process
        assert process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self._limits.end)
        status = process.poll()
        self.close(0)
        what = f"{self._name}: the process of {self.python}"
        if status is None:
            raise EngineError(f"{what} has closed its end, and was ended; run again")
        if status >= 0:
            raise EngineError(f"{what} ended with status {status} without an answer; see above what it said, run again")
        died = signal.Signals(-status)
        if died in DEADLY:
            hint = "; the system kills a process like this when memory runs out" if died == signal.SIGKILL else ""
            raise RuntimeCrashed(f"{what} was ended by {died.name}{hint or '; see above what it said'}")
        raise EngineError(f"{what} was ended by {died.name}; somebody sent it: run again")


def fetched(give: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """What is given; or None, and the error to raise once the other side has come to its end."""
    try:
        return give(), None
    except Exception as error:  # noqa: BLE001  # It is raised by who fetches.
        return None, error


def _as_error(words: Mapping[str, Any]) -> Exception:
    """The same kind and sentence where it is one of ours; another with its trace, as a bug has it here."""
    if words["kind"] == "OSError":
        number, text, name = words["parts"]
        return OSError(number, text, name) if name else OSError(number, text)
    if words["kind"]:
        return KINDS[words["kind"]](words["text"])
    return RuntimeError(f"{words['name']}: {words['text']}\n{words['trace']}")


@functools.lru_cache(maxsize=None)
def process_for(python: str, module: str, name: str) -> ElsewhereProcess:
    """The one of this process for that interpreter and backend."""
    return ElsewhereProcess(python, module, name)
