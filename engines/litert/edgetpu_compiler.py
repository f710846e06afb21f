"""The Edge TPU's own compiler, where it is on the PATH: run on a file, and its words read."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from engines.errors import EngineError

COMPILER = "edgetpu_compiler"
LONGEST_S = 600
ON_TPU = re.compile(r"^Number of operations that will run on Edge TPU: (\d+)", re.MULTILINE)
ON_CPU = re.compile(r"^Number of operations that will run on CPU: (\d+)", re.MULTILINE)
VERSION = re.compile(r"Edge TPU Compiler version (\S+)")
STATUS = re.compile(r"^([A-Z0-9_]+)\s+(\d+)\s+(\S.*)$", re.MULTILINE)
"""A line of the operation log: the operator, how many of it, and what became of them."""
MAPPED = "Mapped to Edge TPU"


@dataclass(frozen=True)
class Compiled:
    """What the compiler text."""

    version: str
    num_on_tpu: int
    num_on_cpu: int
    left: tuple[str, ...]
    """Of the operators that stay on the CPU: which, how many, why."""

    def sentence(self) -> str:
        """For the record."""
        left = f": {'; '.join(self.left)}" if self.left else ""
        num = self.num_on_tpu + self.num_on_cpu
        return f"{COMPILER} {self.version} compiles it: {self.num_on_tpu} of {num} operators run on the Edge TPU{left}."


def compiler() -> str:
    """Its path; empty where it is not installed."""
    return shutil.which(COMPILER) or ""


def compiler_version() -> str:
    """As it says; empty where it is not installed."""
    if not compiler():
        return ""
    text = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=False).stdout
    return match[1] if (match := VERSION.search(text)) else text.strip()[:40]


def compiled(model: Path) -> Compiled:
    """Compile a file, and say what became of its operators; what it writes is not kept.

    Raises:
        EngineError: the compiler refuses it, or takes longer than ten minutes.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [compiler(), "-s", "-o", folder, str(model)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST_S)
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"{model}: {COMPILER} took more than {LONGEST_S} s; make the network smaller") from error
        logs = "\n".join(log.read_text(errors="replace") for log in sorted(Path(folder).glob("*.log")))
    text = f"{done.stdout}\n{logs}"
    on_tpu = ON_TPU.search(text)
    if done.returncode or "compiled successfully" not in text:
        words = " ".join(f"{done.stdout} {done.stderr}".split())[-300:]
        raise EngineError(f"{model}: {COMPILER} refuses it ({words}); replace what it names")
    rows = dict.fromkeys((kind, int(number), status.strip()) for kind, number, status in STATUS.findall(text))
    on_cpu = ON_CPU.search(text)
    version = VERSION.search(text)
    return Compiled(
        version[1] if version else "",
        int(on_tpu[1]) if on_tpu else sum(number for _, number, status in rows if status == MAPPED),
        int(on_cpu[1]) if on_cpu else sum(number for _, number, status in rows if status != MAPPED),
        tuple(f"{number} {kind} ({status})" for kind, number, status in rows if status != MAPPED),
    )
