"""A nightly job that is killed with -9 at random moments: is the store whole each time, and does the next one go on.

    python benchmarks/night_kills.py --kills 200 --work /tmp/kills

Two plans, in FP32 for ONNX Runtime, gated; each time something of both is another, so that there is work. The job and
the processes that it started are killed at a moment drawn evenly from the time that a whole one takes. After each kill
every byte of the store is read again (`trtforge store verify`), and baselines, pins, the records of lines and the last
report. In between, and at the end, a night is left alone and has to end with 0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.compiled import compile_program
from benchmarks.nightly import make_plan
from pipeline.gate.baseline import baselines_in
from pipeline.retention.verify import verify

FLEET = """
[fleet]
plans = ["models/*/plan.toml"]
[nightly]
budgets = ["size_mib <= 1.05 x baseline"]
html = false
[device.here.set]
variants = { precisions = ["fp32"] }
gate = { candidate = "fp32@onnxruntime" }
data = { evaluation = { limit = LIMIT } }
"""
EVERY = 20
"""After so many kills a night is left alone."""


@dataclass
class Tally:
    """What was seen."""

    num_kills: int = 0
    num_in_work: int = 0
    """Of them, those that left something unfinished: a work folder, a line without a record, a night without report."""
    num_whole: int = 0
    """Nights that were left alone, and ended with 0."""


def started(work: Path) -> subprocess.Popen[bytes]:
    """A night in a session of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(work / "cache")}
    command = [sys.executable, "-m", "pipeline", "nightly", "fleet.toml"]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=work, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)


def problems_of(work: Path) -> Iterator[str]:
    """What is not whole; each record has to be JSON from its first to its last byte."""
    store = work / ".trtforge"
    if store.exists():
        yield from (f"{damage.path}: {damage.problem}" for damage in verify(store).damages)
        yield from (f"{name}: {found}" for name, found in baselines_in(store) if isinstance(found, Exception))
    for file in (work / "nightly").rglob("*.json"):
        try:
            json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            yield f"{file}: {error}"


def change(work: Path, limit: int) -> None:
    """Another number of samples: what is answered, judged and gated is made again."""
    (work / "fleet.toml").write_text(FLEET.replace("LIMIT", str(limit)))


def whole_night(work: Path, limit: int) -> float:
    """Seconds of a night that nobody stops."""
    change(work, limit)
    began = time.perf_counter()
    status = started(work).wait()
    assert status == 0, f"a night that was left alone ended with {status}"
    return time.perf_counter() - began


def killed_nights(work: Path, num: int) -> Tally:
    """Kill so many, and look each time.

    Raises:
        AssertionError: something was not whole, or a night that was left alone did not end with 0.
    """
    for seed in range(2):
        make_plan(work / f"models/m{seed}", seed)
    tally, draw = Tally(), random.Random(0)
    seconds = whole_night(work, 127)
    tally.num_whole += 1
    for number in range(num):
        change(work, 64 + number % 60)
        process = started(work)
        time.sleep(draw.uniform(0.0, seconds))
        ended = process.poll() is not None
        with suppress(ProcessLookupError):  # It was done before.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.05)  # The processes that it started die with it.
        tally.num_kills += 1
        left = any(path.is_dir() for path in (work / ".trtforge/tmp").glob("*"))
        tally.num_in_work += left and not ended
        assert not (found := list(problems_of(work))), f"after kill {number + 1}: {found}"
        print(f"kill {number + 1}: whole", file=sys.stderr)
        if number % EVERY == EVERY - 1 or number == num - 1:
            whole_night(work, 64 + number % 60)
            tally.num_whole += 1
            assert not (found := list(problems_of(work))), found
    return tally


def main() -> None:
    """Run, and print what was seen."""
    compile_program()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--work", type=Path, required=True, help="folder that is not there yet")
    options = parser.parse_args()
    sys.stdout.write(sentence(killed_nights(options.work, options.kills)))


def sentence(tally: Tally) -> str:
    """What was seen, for the results."""
    return (
        f"{tally.num_kills} nights killed with -9 at random moments, {tally.num_in_work} of them in the middle of a "
        f"result: store, baselines, pins and records whole each time; {tally.num_whole} nights were left alone in "
        "between, and all ended with 0.\n"
    )


if __name__ == "__main__":
    main()
