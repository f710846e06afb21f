"""One connection to a device, with the agent at its other end: requests, answers, and bytes beside them."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import StageError, Unavailable
from pipeline.remote.outcome import error_from_status
from pipeline.remote.ssh import Destination, broken, command_for
from pipeline.spelling import shown

MARK = b"trtforge-agent-1"
OLDEST = (3, 8)
"""Python there."""
MOST_LINE_BYTES, MOST_CHATTER_BYTES = 1 << 24, 1 << 16
"""Of an answer; of what a login shell prints before the agent begins."""
MOST_STDERR = 1 << 16
BLOCK_BYTES = 1 << 20
END_SECONDS = 10.0
STOP_SECONDS = 40.0

BOOTSTRAP = (
    "import sys; v=sys.version_info; i=sys.stdin.buffer; n=i.readline(); "
    "v[:2]>=(3,8) or sys.exit(print(sys.argv[1], v[0], v[1])); "
    "s=i.read(int(n)).decode(); print(sys.argv[1], flush=True); "
    "g={sys.argv[2]: sys.argv[3]}; exec(compile(s, *sys.argv[3:5]), g); g[sys.argv[5]](s)"
)
"""Run by `python -c` there, of whatever version; without quotes or anything that a shell would change."""
SHELL = 'command -v "$0" >/dev/null 2>&1 && exec "$0" -c "$@"; echo "$2" 0 0'
DEFAULT_PYTHON = "python3"


AGENT = ("pipeline.remote.device_files", "pipeline.remote.device_job", "pipeline.remote.agent")
"""What is sent of this program for the agent; each imports those before it."""
LOADER = """
import pathlib, sys, types
for name, text in SOURCES.items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
main = module.main
if __name__ == "__main__":
    sys.modules["pipeline.remote.device_job"].run_job(pathlib.Path(sys.argv[1]))
"""


def agent_source() -> str:
    """The agent as one text: modules that find each other, and nothing of theirs on a disk."""
    folder = Path(__file__).parent
    texts = {name: (folder / f"{name.rpartition('.')[2]}.py").read_text(encoding="utf-8") for name in AGENT}
    return f"SOURCES = {texts!r}\n{LOADER}"


class ConnectionBroken(Unavailable):
    """The connection ended; the work there does not."""


class Session:
    """A connection. Methods raise ConnectionBroken when it breaks, and what the device refuses as our own errors."""

    def __init__(self, destination: Destination, python: str, *, ask: bool) -> None:
        """Nothing is connected yet.

        Args:
            destination: where.
            python: the interpreter there; empty: ``python3``.
            ask: whether ssh may ask for a password.
        """
        self.destination, self.python, self.ask_user = destination, python, ask
        self.phase = ""
        self.can_stop = False
        self._stderr = bytearray()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def connect(self) -> dict[str, Any]:
        """Connect, start the agent, and ask what that machine is."""
        arguments = [BOOTSTRAP, MARK.decode(), "__name__", "agent", "exec", "main"]
        words = ["sh", "-c", SHELL, self.python or DEFAULT_PYTHON, *arguments]
        command = command_for(self.destination, shlex.join(words), ask=self.ask_user)
        # Ctrl-C reaches all processes of a terminal: ssh never sees it, this process stops the far side and ends it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._reader = threading.Thread(target=self._read_stderr, daemon=True)
        self._reader.start()
        try:
            source = agent_source().encode()
            with contextlib.suppress(BrokenPipeError):  # Seen by what it does not answer.
                self._write(b"%d\n" % len(source) + source)
            self._meet()
            return self.ask("hello")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the connection; a job there goes on."""
        if (process := self._process) is None:
            return
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(END_SECONDS if process.returncode is None and self.phase == "ended" else 0.5)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        self._reader.join(END_SECONDS)
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()

    def stop(self) -> None:
        """End the job there, if there is one, or the connection; called by another thread."""
        with self._lock:
            if self.can_stop:
                self.can_stop = False
                with contextlib.suppress(OSError):
                    self._write(b'{"ask": "stop"}\n')
                timer = threading.Timer(STOP_SECONDS, self._end)
                timer.daemon = True
                timer.start()
            else:
                self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def begin(self, what: str, **request: Any) -> None:
        """Ask, and leave the answer for later."""
        with self._broken_told():
            self._write(json.dumps({"ask": what, **request}).encode() + b"\n")

    def ask(self, what: str, **request: Any) -> dict[str, Any]:
        """The answer to one request."""
        self.begin(what, **request)
        return self.answer()

    def answer(self, on_data: Callable[[bytes], object] | None = None) -> dict[str, Any]:
        """The next answer; bytes before it go to ``on_data``."""
        while True:
            answer = self._line()
            num_bytes = answer.get("data")
            if on_data is None or not isinstance(num_bytes, int):
                break
            if not 0 <= num_bytes <= BLOCK_BYTES:
                raise self._nonsense()
            on_data(self._exactly(num_bytes))
        if "error" in answer:
            raise self._refusal(answer)
        return answer

    def send(self, data: bytes) -> None:
        """Bytes that the far side waits for."""
        try:
            self._write(data)
        except BrokenPipeError:
            self.answer()  # It said why, or the connection broke.
            raise self._nonsense() from None

    def follow(self, digest: str, on_data: Callable[[bytes], object]) -> dict[str, Any]:
        """Hand on what the job of that bundle prints until it ends; how it ended."""
        with self._lock, self._broken_told():
            self._write(json.dumps({"ask": "follow", "digest": digest}).encode() + b"\n")
            self.can_stop = True
        try:
            return self.answer(on_data)
        finally:
            with self._lock:
                self.can_stop = False

    def _refusal(self, answer: Mapping[str, Any]) -> Exception:
        sentence = f"{self.destination.address}: {shown(str(answer['error']))[:2000]}"
        return error_from_status(answer.get("status"), sentence)

    def _meet(self) -> None:
        """Read up to the agent's first line: some login shells print before that."""
        process, chatter = self._process, 0
        assert process is not None
        assert process.stdout is not None
        while chatter < MOST_CHATTER_BYTES:
            line = process.stdout.readline(MOST_CHATTER_BYTES)
            chatter += len(line)
            words = line.split()
            if words[:1] == [MARK]:
                break
            if not line:
                raise self._broken()
        else:
            raise self._nonsense()
        address = self.destination.address
        if words[1:] == [b"0", b"0"]:
            name = self.python or DEFAULT_PYTHON
            raise Unavailable(f"{address}: has no {name}; sudo apt install python3 there, or name one with --on-python")
        if len(words) > 1:
            version = b".".join(words[1:3]).decode("ascii", "replace")
            name, oldest = self.python or DEFAULT_PYTHON, ".".join(map(str, OLDEST))
            raise Unavailable(
                f"{address}: its {name} is {shown(version)}, {oldest} is the oldest that works; name a newer one with "
                "--on-python (docs/jetson.md says which JetPack has which)"
            )

    def _write(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        for begin in range(0, len(data), BLOCK_BYTES):
            self._process.stdin.write(data[begin : begin + BLOCK_BYTES])
        self._process.stdin.flush()

    def _line(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline(MOST_LINE_BYTES)
        if not line:
            raise self._broken()
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            raise (self._nonsense() if line.endswith(b"\n") else self._broken()) from None
        if not isinstance(answer, dict):
            raise self._nonsense()
        return answer

    def _exactly(self, num_bytes: int) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        data = self._process.stdout.read(num_bytes)
        if len(data) < num_bytes:
            raise self._broken()
        return data

    @contextlib.contextmanager
    def _broken_told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise self._broken() from None

    def _broken(self) -> Exception:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        self._reader.join(END_SECONDS)
        why = broken(self.destination, self._stderr.decode("utf-8", "replace"), self.phase)
        return ConnectionBroken(*why.args) if self.phase else why

    def _nonsense(self) -> StageError:
        return StageError(
            f"{self.destination.address}: answers what the agent of trtforge never does; see what runs there"
        )

    def _read_stderr(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        while data := self._process.stderr.read1(BLOCK_BYTES):  # type: ignore[attr-defined]
            self._stderr += data
            del self._stderr[:-MOST_STDERR]
