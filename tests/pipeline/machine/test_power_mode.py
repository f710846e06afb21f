"""Power modes: what the table says, who may change them, and that the one from before comes back whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, StageError, Unavailable
from pipeline.machine import power_mode as module
from pipeline.machine.jetson import power_mode
from pipeline.machine.power_mode import ModesPutBack, PowerModel, asked_models, power_models
from tests.pipeline.machine.jetsons import tree
from tests.pipeline.machine.nvpmodels import add_nvpmodel, add_sudo, device_in

MAXN = PowerModel(0, "MAXN", 3, None, 1300.5, 3199.0)
W30 = PowerModel(2, "MODE_30W", 2, 1728.0, 612.0, 3199.0)
W7 = PowerModel(3, "MODE_7W", 1, None, 420.0, None)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A device in MODE_30W with its nvpmodel."""
    add_nvpmodel(tree(tmp_path, device_in(tmp_path, 2)), monkeypatch)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tmp_path


def calls(root: Path) -> list[str]:
    return (root / "calls").read_text().splitlines()


def test_the_table_says_what_each_mode_allows(root: Path) -> None:
    assert power_models(root) == (MAXN, W30, W7)
    assert MAXN.words(W30) == (
        "GPU up to 1300 MHz instead of 612, 3 cores instead of 2, CPU up to any MHz instead of 1728"
    )
    assert W30.words(W30) == ""


def test_elsewhere_there_is_no_table(tmp_path: Path) -> None:
    assert power_models(tmp_path) == ()
    assert asked_models(tmp_path, ()) == ()
    with pytest.raises(Unavailable, match="this machine has no table of power modes"):
        asked_models(tmp_path, ("MAXN",))


def test_modes_are_named_or_numbered_and_nothing_is_changed_by_that(root: Path) -> None:
    assert asked_models(root, ("MAXN", "3")) == (MAXN, W7)
    for name, words in (("15W", "is no mode of this device"), ("MODE_30W", "is the mode that it is in")):
        with pytest.raises(ConfigError, match=rf"'{name}' {words}, there are 0 MAXN, 2 MODE_30W, 3 MODE_7W"):
            asked_models(root, (name,))
    assert calls(root) == []


def test_clocks_that_are_fixed_are_left_alone(root: Path) -> None:
    (root / "sys/devices/system/cpu/cpufreq/policy0/scaling_min_freq").write_text("1728000\n")
    with pytest.raises(Unavailable, match=r"cpu policy0 cannot move \(jetson_clocks\), .* --restore first"):
        asked_models(root, ("MAXN",))


def test_without_nvpmodel(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "bin" / "nvpmodel").unlink()
    monkeypatch.setattr(module, "PLACES", ())
    with pytest.raises(Unavailable, match="nvpmodel is not found; leave it out on this machine"):
        asked_models(root, ("MAXN",))


def test_who_is_not_root_needs_sudo_without_a_password(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    add_sudo(root, asks=True)
    with pytest.raises(Unavailable, match=r"nvpmodel needs root, and sudo asks for a password; run as root, or let"):
        asked_models(root, ("MAXN",))
    add_sudo(root, asks=False)
    (model,) = asked_models(root, ("MAXN",))
    with ModesPutBack(root) as modes:
        assert modes.change_to(model) == ""
        assert power_mode(root) == "MAXN"
    assert power_mode(root) == "MODE_30W"
    program = root / "bin" / "nvpmodel"
    assert f"sudo -k -n {program} -q" in calls(root)
    assert calls(root)[-4:] == [f"sudo -n {program} -m 0", "-m 0", f"sudo -n {program} -m 2", "-m 2"]


def fail_in_maxn(root: Path, error: type[BaseException]) -> None:
    with ModesPutBack(root) as modes:
        modes.change_to(MAXN)
        raise error


def test_the_mode_is_put_back_after_an_error_and_after_ctrl_c(root: Path) -> None:
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error):
            fail_in_maxn(root, error)
        assert power_mode(root) == "MODE_30W"
    assert calls(root) == ["-m 0", "-m 2"] * 2


def test_where_nothing_was_changed_nothing_is_put_back(root: Path) -> None:
    with ModesPutBack(root):
        pass
    assert calls(root) == []


def test_a_mode_that_needs_a_restart_is_not_set_and_nothing_is_confirmed(root: Path) -> None:
    with ModesPutBack(root) as modes:
        assert modes.change_to(W7) == "it needs a restart of the device, which is not done here"
        assert power_mode(root) == "MODE_30W"
    assert calls(root) == ["-m 3"]


def break_in_maxn(root: Path) -> None:
    with ModesPutBack(root) as modes:
        modes.change_to(MAXN)
        (root / "broken").touch()


def test_a_mode_that_cannot_be_put_back_is_an_error_that_says_how(root: Path) -> None:
    words = r"could not be put back to MODE_30W, it is MAXN: nvpmodel -m 2 gives status 255 .*run sudo nvpmodel -m 2"
    with pytest.raises(StageError, match=words):
        break_in_maxn(root)


KILLED = """
import sys, time
from pathlib import Path
from pipeline.machine import power_mode
power_mode.SETTLE_SECONDS = 0.0
power_mode.os.geteuid = lambda: 0
root = Path(sys.argv[1])
with power_mode.ModesPutBack(root) as modes:
    modes.change_to(power_mode.power_models(root)[0])
    print("changed", flush=True)
    time.sleep(600)
"""


def test_the_mode_is_put_back_when_the_process_is_killed(root: Path) -> None:
    """By SIGKILL, after which nothing of its own runs any more."""
    with subprocess.Popen([sys.executable, "-c", KILLED, str(root)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "changed\n"
        assert power_mode(root) == "MAXN"
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + 60
    while power_mode(root) != "MODE_30W" and time.monotonic() < until:
        time.sleep(0.01)
    assert power_mode(root) == "MODE_30W"
