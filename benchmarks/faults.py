"""What is left after kills, on a full disk, of two writers at once, and what broken inputs come to: all counted.

    python benchmarks/faults.py --work /dev/shm/faults --every-run 8 --output benchmarks/results/faults.md

Runs the harness of `tests/faults/` at every n-th point and prints a table; a fault is printed with what it was. Under
the table stands what is right in each row. A kill of a run takes 3 s of CPU, others a tenth of that. What was tried is
kept in the folder, a file for each row, and taken from there if the folder is given again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.faults.scenarios import SCENARIOS
from tests.faults.shim import Shim, built

SLOW = ("run", "pack", "gate")
WHAT = {
    "verbs": "verbs that make one file or folder, new and in the place of an older one",
    "runs": "`run`, `pack` and `gate`, new and again",
}

RIGHT = {
    "kill": "The old or the new is there and whole, each result in the store verifies, the next call makes the same "
    "results, and nothing is left beside.",
    "full disk": "Status 3 and a sentence, or all is there nevertheless; nothing is left beside; the next call is as "
    "after a kill.",
    "two writers": "Both end well on one store and one target; the rest as after a kill.",
    "input": "A sentence within 30 s of CPU and 6 GiB of address space, a status of the table other than 0, no "
    "traceback, no control characters, nothing left beside. Status 0 only where the format cannot show the change.",
}


@dataclass(frozen=True)
class Row:
    """One kind, counted."""

    kind: str
    what: str
    places: str
    num: int
    num_right: int


def lines_of(name: str, module: str, work: Path, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """What a driver of the harness prints; from the file of that name, if it is there."""
    file = work / f"{name}.jsonl"
    if not file.is_file():
        inner = work / "inner"
        shutil.rmtree(inner, ignore_errors=True)
        inner.mkdir(parents=True)
        built(inner)
        environment = Shim(inner).environment() | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", f"tests.faults.{module}", str(inner), *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        file.write_text(done.stdout)
    return [json.loads(line) for line in file.read_text().splitlines()]


def row_of(kind: str, what: str, places: str, lines: Sequence[dict[str, Any]]) -> Row:
    """The count."""
    return Row(kind, what, places, len(lines), sum(not line["faults"] for line in lines))


def text_of(rows: Sequence[Row], excuses: Sequence[str], num_passed: int) -> str:
    """The page."""
    lines = [
        "# Kills, full disks, two writers, broken inputs",
        "",
        "By `python benchmarks/faults.py`; the harness is in `tests/faults/`. A library that is loaded before all else",
        "counts the calls that change files (open to write, write, rename, link, unlink, mkdir, rmdir, chmod, fsync,",
        "ftruncate; those of the processes of stages included) and, at the n-th, sends SIGKILL to all processes of the",
        "command (half of a write is done before), or answers from it on that the disk is full. Broken inputs are cut",
        "off, scrambled, changed key by key or made to lie, in every kind of file that the command reads.",
        "",
        "| what happens | to | at | tried | right |",
        "|---|---|---|---|---|",
        *(f"| {row.kind} | {row.what} | {row.places} | {row.num} | {row.num_right} |" for row in rows),
        "",
        "Right is:",
        "",
        *(f"- **{kind}**: {sentence}" for kind, sentence in RIGHT.items()),
        "",
        f"{num_passed} of the inputs end with 0, which is right for these reasons:",
        "",
        *(f"- {excuse}" for excuse in excuses),
        "",
        "Not shown: what a power cut loses that was written and is not yet on the disk. Files and folders are synced",
        "before they are renamed, and the folder after it, which no kill can check.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """As the first lines say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder to work in, best in memory")
    parser.add_argument("--every-run", type=int, default=1, help="every so many-th call of `trtforge run`")
    parser.add_argument("--every", type=int, default=1, help="every so many-th call of other verbs, and input")
    parser.add_argument("--output", type=Path, help="also write the table here")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    tried: list[dict[str, Any]] = []
    for kind in ("kill", "full disk", "two writers"):
        for part, every in (("verbs", options.every), ("runs", options.every_run)):
            names = [name for name in SCENARIOS if name.startswith(SLOW) == (part == "runs")]
            only = [argument for name in names for argument in ("--only", name)]
            every = {"kill": every, "full disk": 3 * every, "two writers": 4 if part == "runs" else 1}[kind]
            arguments = ["--kind", kind, "--every", str(every), *only]
            lines = lines_of(f"{kind}, {part}", "injection", options.work, arguments)
            calls = sum({line["scenario"]: line["calls"] for line in lines}.values())
            places = "the same time" if kind == "two writers" else f"every {every}. of {calls} calls"
            rows.append(row_of(kind, WHAT[part], places, lines))
            tried += lines
    lines = lines_of("inputs", "feeding", options.work, ["--every", str(options.every)])
    rows.append(row_of("input", "every kind of file that is read", "", lines))
    excuses = sorted({line["excuse"] for line in lines if line["excuse"]})
    text = text_of(rows, excuses, sum(line["status"] == 0 for line in lines))
    wrong = [line for line in tried + lines if line["faults"]]
    sys.stdout.write("".join(json.dumps(line) + "\n" for line in wrong) + text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
