"""The other process dies, hangs, prints, or does not start: one sentence, and nothing of it is left."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.contract import BuildOptions
from engines.elsewhere.backend import ElsewhereBackend, backend_elsewhere
from engines.elsewhere.process import ElsewhereProcess, TimeLimits
from engines.elsewhere.worker import PYTHON_VARIABLE
from engines.errors import EngineError, OutOfMemory, RuntimeCrashed, Unavailable
from tests.engines.python38 import ROOT, other_python, python38

BROKEN = "tests.engines.elsewhere.broken_backend"


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[ElsewhereProcess]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    made = ElsewhereProcess(str(python38()), BROKEN, "broken", TimeLimits(quick=1.0))
    yield made
    made.close()


def is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{process_id}/status").read_text()


@pytest.fixture
def before() -> list[str]:
    return shared_memory()


def shared_memory() -> list[str]:
    """What this process has open of it: of processes that other tests share, too."""
    gc.collect()
    names = []
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # The one that lists them.
            names.append(str(file.readlink()))
    return [name for name in names if "memfd:trtforge" in name]


def test_what_a_library_prints_is_no_answer(process: ElsewhereProcess, capfd: pytest.CaptureFixture[str]) -> None:
    assert ElsewhereBackend(process).why_not_build() == "broken: it is made so"
    assert process.version[:2] == (3, 8)
    process.close()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == "this library greets everybody on stdout\nso does this one\n"


def test_a_crash_is_one_sentence_after_which_a_build_is_tried_again(
    before: list[str], process: ElsewhereProcess
) -> None:
    process_id = process.process_id()
    with pytest.raises(RuntimeCrashed, match=r"broken: the process of .*python was ended by SIGSEGV; see above what"):
        ElsewhereBackend(process).versions()
    assert not is_alive(process_id)
    assert shared_memory() == before
    assert ElsewhereBackend(process).why_not_build().startswith("broken"), "the next call starts another"
    assert process.process_id() != process_id


def test_it_was_killed(process: ElsewhereProcess) -> None:
    os.kill(process.process_id(), signal.SIGKILL)
    words = "was ended by SIGKILL; the system kills a process like this when memory runs out"
    with pytest.raises(OutOfMemory, match=words):
        ElsewhereBackend(process).versions()
    os.kill(process.process_id(), signal.SIGTERM)
    with pytest.raises(EngineError, match=r"was ended by SIGTERM; somebody sent it: run again"):
        ElsewhereBackend(process).versions()


def test_it_left_by_itself(process: ElsewhereProcess) -> None:
    with pytest.raises(EngineError, match=r"ended with status 7 without an answer; see above what it said, run again"):
        ElsewhereBackend(process).refuse(BuildOptions())


def test_it_hangs(before: list[str], process: ElsewhereProcess) -> None:
    process_id = process.process_id()
    reason = ElsewhereBackend(process).why_not_run()
    assert "has not answered 'why_not_run' for 1 s, and was ended; run again, and look at dmesg" in reason
    assert not is_alive(process_id)
    assert shared_memory() == before


@pytest.mark.parametrize(("name", "kind"), [("memory", OutOfMemory), ("engine", EngineError)])
def test_errors_come_as_they_are(process: ElsewhereProcess, name: str, kind: type[Exception]) -> None:
    with pytest.raises(EngineError, match="broken: ") as caught:
        ElsewhereBackend(process).refuse_model(Path(name))
    assert type(caught.value) is kind


def test_other_errors_keep_their_trace_or_their_number(process: ElsewhereProcess) -> None:
    with pytest.raises(RuntimeError, match=r"KeyError: 'lost'\nTraceback [^§]*in refuse_model"):
        ElsewhereBackend(process).refuse_model(Path("bug"))
    with pytest.raises(OSError, match="No space left on device: 'disk'") as caught:
        ElsewhereBackend(process).refuse_model(Path("disk"))
    assert caught.value.errno == 28


@pytest.mark.parametrize("version", ["3.6", "3.7"])
def test_an_older_python(before: list[str], version: str) -> None:
    process = ElsewhereProcess(other_python(version), BROKEN, "broken")
    with pytest.raises(Unavailable, match=rf"is Python {version}, 3\.8 is the oldest that works; take JetPack 5\.1 or"):
        process.call("versions")
    assert not process.is_running()
    assert shared_memory() == before


def test_a_python_without_numpy(capfd: pytest.CaptureFixture[str]) -> None:
    process = ElsewhereProcess(other_python("3.8"), BROKEN, "broken")
    with pytest.raises(Unavailable, match=r"does not start as it has to .*scripts/constraints-3\.8\.txt lists: pip i"):
        process.call("versions")
    assert "No module named 'numpy'" in capfd.readouterr().err


def test_no_such_python(before: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, "/nowhere/python3")
    there = backend_elsewhere("engines.backends.reference", "reference")
    assert there is not None
    assert there.why_not_build().startswith(
        f"reference: /nowhere/python3 cannot be started (No such file or directory); it is named by {PYTHON_VARIABLE}, "
    )
    with pytest.raises(Unavailable):
        there.versions()
    assert shared_memory() == before


def test_it_goes_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import sys, time; from engines.elsewhere.process import ElsewhereProcess\n"
        f"process = ElsewhereProcess({str(python38())!r}, 'engines.backends.reference', 'reference')\n"
        "print(process.process_id(), flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout as stream:
        process_id = int(stream.readline())
    parent.kill()
    parent.wait()
    until = time.monotonic() + 60
    while Path(f"/proc/{process_id}").exists() and is_alive(process_id):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_it_outlives_the_thread_that_started_it() -> None:
    process = ElsewhereProcess(str(python38()), "engines.backends.reference", "reference")
    starter = threading.Thread(target=process.process_id)
    starter.start()
    starter.join()
    assert process.call("versions")["numpy"] == "1.24.4"
    process.close()
