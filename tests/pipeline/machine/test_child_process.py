"""A function in a process of its own: its result, its errors, and its death in one sentence."""

from __future__ import annotations

import copyreg
import ctypes
import errno
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, ProcessDied, StageError
from pipeline.machine import child_process


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def double(value: int) -> int:
    print("working")
    return 2 * value


def refuse() -> None:
    raise ConfigError("plan.toml: wrong; fix it")


def restored(args: tuple[str, ...], cause: BaseException | None) -> ConfigError:
    error = ConfigError(*args)
    error.__cause__ = cause
    return error


def reduced(error: ConfigError) -> tuple[object, ...]:
    return restored, (error.args, error.__cause__)


def refuse_as_beside_tensorflow() -> None:
    """TensorFlow installs tblib, by which errors are pickled with those that led to them."""
    copyreg.pickle(ConfigError, reduced)  # type: ignore[arg-type]
    raise ConfigError("plan.toml: wrong; fix it") from ValueError("of a giant")


def bug() -> None:
    raise ZeroDivisionError("by nought")


def crash() -> None:
    print("about to crash", flush=True)
    ctypes.string_at(0)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def unpicklable() -> object:
    return lambda: None


def leave() -> None:
    os._exit(7)


def test_the_result_comes_back_and_the_output_goes_to_the_log(log: Path) -> None:
    assert child_process.call(log, "double", double, 21) == 42
    assert log.read_text() == "working\n"


def test_one_of_our_errors_is_raised_as_it_was(log: Path) -> None:
    with pytest.raises(ConfigError, match=r"plan\.toml: wrong; fix it"):
        child_process.call(log, "refuse", refuse)


def test_what_led_to_one_of_our_errors_is_left_in_the_log(log: Path) -> None:
    with pytest.raises(ConfigError, match=r"plan\.toml: wrong; fix it") as caught:
        child_process.call(log, "refuse", refuse_as_beside_tensorflow)
    assert caught.value.__cause__ is None
    assert "ValueError: of a giant" in log.read_text()


def test_another_error_is_a_stage_error_with_its_cause(log: Path) -> None:
    with pytest.raises(StageError, match="bug: ZeroDivisionError: by nought") as caught:
        child_process.call(log, "bug", bug)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "Traceback" in log.read_text()


def test_a_crash_in_native_code_is_one_sentence_with_the_last_words(log: Path) -> None:
    with pytest.raises(
        StageError,
        match=r"crash: the process was ended by SIGSEGV\nIts last output:\n  about to "
        r"crash",
    ):
        child_process.call(log, "crash", crash)


def test_a_kill_hints_at_memory(log: Path) -> None:
    with pytest.raises(StageError, match="ended by SIGKILL; the system kills a process like this when memory runs out"):
        child_process.call(log, "killed", killed)


def test_a_silent_end_is_said(log: Path) -> None:
    with pytest.raises(StageError, match="ended with status 7 before it answered"):
        child_process.call(log, "leave", leave)


def test_a_result_that_cannot_travel_is_said(log: Path) -> None:
    with pytest.raises(StageError, match="unpicklable: "):
        child_process.call(log, "unpicklable", unpicklable)


def knows_parent() -> bool:
    return "only_in_parent" in sys.modules


class TwoArgumentsError(Exception):
    """Can be pickled, but not read again: pickle calls it with the message alone."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}, as {why}")


def refuse_twice() -> None:
    raise TwoArgumentsError("no", "it is late")


def test_an_error_that_cannot_be_read_again_is_told_in_words(log: Path) -> None:
    with pytest.raises(StageError, match=r"refuse: .*TwoArgumentsError: no, as it is late"):
        child_process.call(log, "refuse", refuse_twice)


def test_the_child_loads_none_of_the_parents_state(log: Path) -> None:
    sys.modules["only_in_parent"] = sys
    try:
        assert child_process.call(log, "look", knows_parent) is False
    finally:
        del sys.modules["only_in_parent"]


def fill_the_disk() -> None:
    Path("/dev/full").write_text("x")


def blocked_signals() -> list[int]:
    return [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]


def test_a_full_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught:
        child_process.call(tmp_path / "log", "fill", fill_the_disk)
    assert caught.value.errno == errno.ENOSPC


def test_ctrl_c_is_for_the_parent_alone(tmp_path: Path) -> None:
    assert signal.SIGINT in child_process.call(tmp_path / "log", "ask", blocked_signals)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def count(send_progress: child_process.SendProgress, last: int) -> int:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(send_progress, range(last)))
    return last


def tell_and_die(send_progress: child_process.SendProgress) -> None:
    send_progress("still well")
    os.kill(os.getpid(), signal.SIGABRT)


def test_news_are_heard_before_the_answer(log: Path) -> None:
    heard: list[int] = []
    assert child_process.call_with_progress(log, "count", heard.append, count, 50) == 50
    assert sorted(heard) == list(range(50))


def test_news_of_a_process_that_dies_are_heard(log: Path) -> None:
    heard: list[str] = []
    with pytest.raises(ProcessDied, match="ended by SIGABRT") as caught:
        child_process.call_with_progress(log, "die", heard.append, tell_and_die)
    assert heard == ["still well"]
    assert caught.value.may_be_memory


@pytest.mark.parametrize(("function", "may_be"), [(killed, True), (leave, False)])
def test_which_deaths_may_be_for_lack_of_memory(log: Path, function: Callable[[], None], may_be: bool) -> None:
    with pytest.raises(ProcessDied) as caught:
        child_process.call(log, "it", function)
    assert caught.value.may_be_memory == may_be


def test_nothing_of_the_current_folder_runs(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("selectors", "struct", "pickle", "socket", "signal", "multiprocessing", "site", "usercustomize"):
        (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'a').write('x')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert child_process.call(log, "double", double, 21) == 42
    assert not (tmp_path / "RAN").exists()


def module_path() -> list[str]:
    return sys.path


def test_the_child_imports_from_where_its_parent_does(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert child_process.call(log, "look", module_path) == sys.path


def test_a_child_that_cannot_begin_says_why(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])  # Not even the standard library.
    with pytest.raises(
        ProcessDied, match=r"len: the process ended with status 1 before it answered\n[\s\S]*No module named"
    ):
        child_process.call(log, "len", partial(len, bytearray(1 << 24)))
