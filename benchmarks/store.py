"""What it costs to see which results of a large store may go: CPU time beside that of `trtforge show`'s first step.

    python benchmarks/store.py --results 10000 --output benchmarks/results/store.md

Makes a store of plans with 20 results each, made from each other, in files as small as those of small networks, since
it is their number that costs; half of the results were last used a month ago, and every tenth plan is pinned. Then, in
turns in one process: the inventory (`trtforge store size`), the inventory with all that stays (`trtforge store gc`),
and the content digests of all results (``Store.makers``), which is the least that a walk from content to maker reads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.calibration import cpu_name
from pipeline.retention.gc import Rules, plan_gc
from pipeline.retention.inventory import inventory_of
from pipeline.retention.pins import pin
from pipeline.store import Store

STAGES = ("export", "calibrate", "cast", "quantize", "build", "build", "build", "tolerate", "tolerate", "tolerate",
          "infer", "infer", "infer", "infer", "infer", "validate", "validate", "validate", "validate",
          "lint")  # fmt: skip
"""Of one plan; each result is made from the one before."""
FILES = {"artifact": 64, "record.json": 200, "notes.json": 2}
"""Beside result.json and recipe.json: name -> bytes."""
MONTH_SECONDS = 30 * 86_400
GOAL_SECONDS = 1.0
"""For 10,000 results."""


def sha(text: str) -> str:
    """SHA-256 (hex)."""
    return hashlib.sha256(text.encode()).hexdigest()


def make_store(folder: Path, num: int) -> None:
    """So many results; those of every second plan were last used a month ago."""
    for plan in range(-(-num // len(STAGES))):
        names = []
        for number, stage in enumerate(STAGES):
            entry = folder / stage / sha(f"recipe {plan} {number}")
            entry.mkdir(parents=True)
            names.append(entry.name)
            for name, size in FILES.items():
                (entry / name).write_text("x" * size)
            inputs = [{"digest": sha(f"content {plan} {number - 1}")}]
            recipe = {"stage": stage, "options": {}, "inputs": inputs, "named_inputs": {}, "source": sha(stage)}
            (entry / "recipe.json").write_text(json.dumps(recipe, indent=2))
            artifact = {"type": "OnnxModel", "path": "artifact"}
            result = {"artifact": artifact, "content": sha(f"content {plan} {number}"), "files": sha("files")}
            (entry / "result.json").write_text(json.dumps(result, indent=2))
            if plan % 2:
                then = time.time() - MONTH_SECONDS
                os.utime(entry / "result.json", (then, then))
        if plan % 10 == 1:
            pin(folder, f"m{plan}", names[-1:])


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process, user's and system's."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", type=int, default=10_000, help="how many")
    parser.add_argument("--runs", type=int, default=5, help="of each measurement, in turns")
    parser.add_argument("--output", type=Path, help="write the page here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="store-") as temporary:
        folder = Path(temporary)
        make_store(folder, options.results)
        store = Store(folder)
        works: dict[str, Callable[[], object]] = {
            "content digests of all (`Store.makers`)": store.makers,
            "inventory (`trtforge store size`)": lambda: inventory_of(folder),
            "what may go (`trtforge store gc`)": lambda: plan_gc(folder, Rules()),
        }
        seconds: dict[str, list[float]] = {what: [] for what in works}
        for _ in range(options.runs):
            for what, work in works.items():
                seconds[what].append(cpu_seconds(work))
        plan = plan_gc(folder, Rules())
    medians = [statistics.median(values) for values in seconds.values()]
    rows = [f"| {what} | {median:.2f} | {median / medians[0]:.1f} |" for what, median in zip(seconds, medians)]
    text = "\n".join([
        "# What it costs to see which results of a large store may go", "",
        f"`python {' '.join(['benchmarks/store.py', *sys.argv[1:]])}`", "",
        f"{len(plan.inventory.results):,} results in {len(plan.inventory.sizes):,} files, of which {plan.num_used:,} "
        f"were used lately, {plan.num_held:,} older ones are held, and {len(plan.going):,} may go. CPU time of user "
        f"and system in one process, medians of {options.runs} runs in turns; the files' states are in the system's "
        f"cache. {cpu_name()}, {os.cpu_count()} cores, Python {platform.python_version()}. Goal for 10,000 results: "
        f"{GOAL_SECONDS:g} s.", "",
        "| | CPU seconds | ratio |", "|---|---:|---:|", *rows, "",
    ])  # fmt: skip
    sys.stdout.write(text)
    if options.output:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
