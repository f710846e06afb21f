"""The commands of `scripts/gpu_check`: each with a time limit, and what it said kept, so that a run can go on later.

A machine with a GPU is often lent for minutes and nobody watches: a command that hangs is ended with all it started,
everything that it said is in a file, and `--resume` takes what was done before from there.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Step:
    """One command."""

    title: str
    command: str
    seconds: float
    problem: str
    """Empty: it was done."""


@dataclass
class Steps:
    """Runs commands of this project, one after the other."""

    folder: Path
    """Of what they said: NAME.out, NAME.err, and NAME.json, which is written once it is done."""
    seconds: float = 1800.0
    """A command may take so long."""
    resume: bool = False
    """Whether what was done before is not done again."""
    after_each: Callable[[], object] = lambda: None
    steps: list[Step] = field(default_factory=list)

    def run(self, title: str, words: list[str], environment: Mapping[str, str], *, status: int = 0) -> str:
        """Run `python -m WORDS`; what it printed, empty where it failed. ``status``: fails too, but has printed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = self.folder / re.sub(r"[^\w.-]+", "-", title)
        out, record, command = Path(f"{kept}.out"), Path(f"{kept}.json"), f"python -m {shlex.join(words)}"
        step = self._before(record, command)
        if step is None:
            print(f"gpu_check: {title}", file=sys.stderr, flush=True)
            began = time.perf_counter()
            ended = _ended([sys.executable, "-m", *words], out, environment, self.seconds)
            problem = "" if ended == 0 else self._problem(ended, kept)
            step = Step(title, command, time.perf_counter() - began, problem)
            if ended in (0, status):
                record.write_text(json.dumps(asdict(step)))
        self.steps.append(step)
        if step.problem:
            print(f"gpu_check: {title}: {step.problem}", file=sys.stderr, flush=True)
        self.after_each()
        return out.read_text() if record.exists() else ""

    def failed(self, title: str, problem: str) -> None:
        """Something that should be there is not."""
        self.steps.append(Step(title, "", 0.0, problem))
        self.after_each()

    def _before(self, record: Path, command: str) -> Step | None:
        """What an earlier run has done of it; forgotten unless it is to be taken up."""
        if self.resume and record.exists():
            step = Step(**json.loads(record.read_text()))
            if step.command == command:
                return step
        record.unlink(missing_ok=True)
        return None

    def _problem(self, ended: int | None, kept: Path) -> str:
        files = [Path(f"{kept}.{end}") for end in ("err", "out")]
        if ended is None:
            return f"not done after {self.seconds:g} s, and ended ({files[0]})"
        told = [
            (line, file) for file in files for line in file.read_text(errors="replace").splitlines() if line.strip()
        ]
        own = [one for one in told if one[1] == files[0]] or told
        last, file = own[-1] if own else ("it said nothing", files[0])
        return f"exit status {ended}: {last} ({file})"


def _ended(command: list[str], out: Path, environment: Mapping[str, str], seconds: float) -> int | None:
    """The exit status; None where it was ended, with all that it had started, since its time was over."""
    with out.open("w") as printed, out.with_suffix(".err").open("w") as said:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=printed, stderr=said, start_new_session=True
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
