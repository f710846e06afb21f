"""A Jetson's power modes: what each allows, and another one for a while, which is put back whatever happens.

`nvpmodel -m NUMBER` changes the mode, as root, and keeps it over a restart. Some modes need a restart: it asks for one
("Reboot required for changing to this power mode", "DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm"), is told
nothing here, and then leaves the mode as it is. The table of modes is ``etc/nvpmodel.conf``: `< POWER_MODEL ID=0
NAME=MAXN >` and below it lines such as `CPU_ONLINE CORE_7 0`, `CPU_A78_0 MAX_FREQ 1728000` (kHz), `GPU MAX_FREQ
1300500000` and `EMC MAX_FREQ 3199000000` (Hz), -1 where nothing is capped.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pipeline.errors import ConfigError, StageError, Unavailable
from pipeline.machine.jetson import clocks, power_mode
from pipeline.machine.system_files import text_of

SETTLE_SECONDS = 1.0
"""From the change of a mode until anything is measured."""
NVPMODEL_SECONDS = 60
PLACES = ("/usr/sbin", "/sbin")
"""Beside ``PATH``, which has these not for everybody."""
NEEDS_RESTART = "Reboot required"
RESTORE = 'read -r word; [ "$word" = done ] || exec "$@" </dev/null >/dev/null 2>&1'
"""Waits beside this process, and puts the mode back where it dies without a word."""


@dataclass(frozen=True)
class PowerModel:
    """One mode of the table; None where it caps nothing, or does not say."""

    number: int
    name: str
    num_cores: int | None
    """Of the CPU."""
    cpu_mhz: float | None
    """The highest of its clusters."""
    gpu_mhz: float | None
    memory_mhz: float | None
    """Of the external memory controller (EMC)."""

    def words(self, now: PowerModel) -> str:
        """What it allows beside another mode, such as ``GPU up to 918 MHz instead of 612``; empty if the same."""
        pairs = (
            ("GPU up to {} MHz instead of {}", self.gpu_mhz, now.gpu_mhz),
            ("{} cores instead of {}", self.num_cores, now.num_cores),
            ("CPU up to {} MHz instead of {}", self.cpu_mhz, now.cpu_mhz),
            ("memory up to {} MHz instead of {}", self.memory_mhz, now.memory_mhz),
        )
        return ", ".join(text.format(_of(there), _of(here)) for text, there, here in pairs if there != here)


def power_models(root: Path) -> tuple[PowerModel, ...]:
    """All modes of the table below ``root``; none where this is no Jetson."""
    parts = re.split(r"^<\s*POWER_MODEL\s+", text_of(root / "etc/nvpmodel.conf"), flags=re.MULTILINE)[1:]
    return tuple(model for part in parts if (model := _model(part)) is not None)


def model_named(models: Sequence[PowerModel], name: str) -> PowerModel | None:
    """By its name, or its number."""
    return next((model for model in models if name in (model.name, str(model.number))), None)


def asked_models(root: Path, asked: Sequence[str]) -> tuple[PowerModel, ...]:
    """The modes that were asked for; nothing is changed.

    Raises:
        ConfigError: the device has no such mode, or is in it.
        Unavailable: there is no nvpmodel, nobody here may use it, or clocks are fixed, which a change would undo.
    """
    if not asked:
        return ()
    models, now = power_models(root), power_mode(root)
    nvpmodel = Nvpmodel(root)
    if not models or not now:
        raise Unavailable("[benchmark] power_mode: this machine has no table of power modes (nvpmodel); leave it out")
    wanted = [model_named(models, name) for name in asked]
    for name, model in zip(asked, wanted):
        if model is None or model.name == now:
            why = "is the mode that it is in" if model else "is no mode of this device"
            known = ", ".join(f"{each.number} {each.name}" for each in models)
            raise ConfigError(f"[benchmark] power_mode: '{name}' {why}, there are {known}; name another")
    if fixed := [clock.name for clock in clocks(root) if clock.is_fixed()]:
        raise Unavailable(
            f"[benchmark] power_mode: {', '.join(fixed)} cannot move (jetson_clocks), which another mode would undo; "
            "run sudo jetson_clocks --restore first"
        )
    nvpmodel.check()
    return tuple(model for model in wanted if model is not None)


class Nvpmodel:
    """The program: what it says, and a mode that it is to set."""

    def __init__(self, root: Path) -> None:
        """``root``: where the device's files lie; nothing is run."""
        self._root = root
        self.program = shutil.which("nvpmodel") or shutil.which("nvpmodel", path=os.pathsep.join(PLACES)) or ""

    def command(self, *options: str) -> list[str]:
        """As root already, or by sudo, which is never asked for a password."""
        return [*([] if os.geteuid() == 0 else ["sudo", "-n"]), self.program, *options]

    def check(self) -> None:
        """That it is there and can be used without a password, also much later; Unavailable."""
        if not self.program:
            raise Unavailable("[benchmark] power_mode: nvpmodel is not found; leave it out on this machine")
        if os.geteuid() == 0:
            return
        with suppress(OSError, subprocess.TimeoutExpired):  # -k: not by a password that was given a while ago.
            if _ran(["sudo", "-k", "-n", self.program, "-q"]).returncode == 0:
                return
        raise Unavailable(
            f"[benchmark] power_mode: {self.program} needs root, and sudo asks for a password; run as root, or let "
            f"sudo run it without (in /etc/sudoers.d: USER ALL=(root) NOPASSWD: {self.program})"
        )

    def set(self, model: PowerModel) -> str:
        """Change the mode; empty, or why it is not changed: half a sentence."""
        try:
            done = _ran(self.command("-m", str(model.number)))
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"nvpmodel did not answer ({error})"
        words = " ".join((done.stdout + done.stderr).split())
        if NEEDS_RESTART in words:
            return "it needs a restart of the device, which is not done here"
        if done.returncode or power_mode(self._root) != model.name:
            return f"nvpmodel -m {model.number} gives status {done.returncode} ({words:.200})"
        return ""


class ModesPutBack:
    """A context manager in which modes can be changed; on leaving, the mode is that from before."""

    def __init__(self, root: Path) -> None:
        """Nothing is done before ``__enter__``."""
        self._nvpmodel, self._root = Nvpmodel(root), root
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ModesPutBack:
        now = model_named(power_models(self._root), power_mode(self._root))
        assert now is not None, "see asked_models"
        self.before = now
        command = self._nvpmodel.command("-m", str(now.number))
        # A session of its own: Ctrl-C is not for it. It acts when this process is gone, killed too.
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", RESTORE, "sh", *command], stdin=subprocess.PIPE, start_new_session=True
        )
        return self

    def change_to(self, model: PowerModel) -> str:
        """Change the mode and let it settle; empty, or why it is not changed."""
        if not (why := self._nvpmodel.set(model)):
            time.sleep(SETTLE_SECONDS)
        return why

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            why = "" if power_mode(self._root) == self.before.name else self._nvpmodel.set(self.before)
            assert self._guard is not None, "it was entered"
            assert self._guard.stdin is not None
            with suppress(BrokenPipeError):
                self._guard.stdin.write(b"done\n")
                self._guard.stdin.close()
            self._guard.wait()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        if why:
            raise StageError(
                f"the power mode could not be put back to {self.before.name}, it is {power_mode(self._root)}: {why}; "
                f"run sudo nvpmodel -m {self.before.number}"
            ) from error


def _ran(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Where it asks a question it reads the end of a file."""
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=NVPMODEL_SECONDS, check=False
    )


def _model(part: str) -> PowerModel | None:
    head = re.match(r"ID=(\d+)\s+NAME=(\S+)", part)
    if head is None:
        return None
    body = re.split(r"^<", part[head.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    online = re.findall(r"^CPU_ONLINE\s+CORE_\d+\s+(\d)", body, re.MULTILINE)
    return PowerModel(
        number=int(head[1]),
        name=head[2],
        num_cores=online.count("1") if online else None,
        cpu_mhz=_most(r"CPU_(?!ONLINE)\S+", body, 1e3),
        gpu_mhz=_most("GPU", body, 1e6),
        memory_mhz=_most("EMC", body, 1e6),
    )


def _most(clock: str, body: str, per_mhz: float) -> float | None:
    """The highest cap of such clocks, MHz; None where one of them is not capped, or there are none."""
    caps = [int(cap) for cap in re.findall(rf"^{clock}\s+MAX_FREQ\s+(-?\d+)", body, re.MULTILINE)]
    return max(caps) / per_mhz if caps and min(caps) > 0 else None


def _of(value: float | None) -> str:
    return "any" if value is None else f"{value:.0f}"
