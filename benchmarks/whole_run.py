"""What a whole run costs, stage by stage: CPU seconds of this process and its children, and the peak of memory.

Runs the stages of a plan in an empty store, all in one process, as `trtforge run` does, so its sum is that
command's but for the report. Usage::

    python benchmarks/whole_run.py PLAN.toml --output benchmarks/results/whole_run.md
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # So that it runs as a script, from anywhere.

from benchmarks.calibration import cpu_name
from pipeline.flow import run
from pipeline.plan import read_plan
from pipeline.store import Store

T = TypeVar("T")


def cpu_seconds() -> float:
    """Of this process and of its children that have ended, user's and system's."""
    return sum(os.times()[:4])


def peak_mb() -> float:
    """The largest that this process or one of its children has been so far."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024


class TimedStore(Store):
    """Notes what each stage costs."""

    def __init__(self, folder: Path) -> None:
        """An empty folder."""
        super().__init__(folder)
        self.costs: list[tuple[str, float, float]] = []

    def run(self, stage: Any, *inputs: Any, **named: Any) -> Any:
        """As ``Store.run``."""
        return self._noted(stage, lambda: super(TimedStore, self).run(stage, *inputs, **named))

    def measure(self, stage: Any, *inputs: Any, **named: Any) -> Any:
        """As ``Store.measure``."""
        return self._noted(stage, lambda: super(TimedStore, self).measure(stage, *inputs, **named))

    def _noted(self, stage: Any, make: Callable[[], T]) -> T:
        start = cpu_seconds()
        made = make()
        self.costs.append((type(stage).__name__.lower(), cpu_seconds() - start, peak_mb()))
        return made


def page(plan: Path, costs: list[tuple[str, float, float]], total: float) -> str:
    """The table by stage, in order of the first run of each."""
    lines = ["# What a whole run costs", "", f"`python {' '.join(['benchmarks/whole_run.py', *sys.argv[1:]])}`", ""]
    lines += [
        f"{plan.name}; {cpu_name()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} at the end.",
        "",
    ]
    lines += ["| stage | times | CPU s | peak of memory so far, MB |", "|---|---:|---:|---:|"]
    for name in dict.fromkeys(name for name, _, _ in costs):
        own = [(seconds, peak) for stage, seconds, peak in costs if stage == name]
        lines.append(f"| {name} | {len(own)} | {sum(s for s, _ in own):.1f} | {max(peak for _, peak in own):.0f} |")
    lines += [f"| all, with reading the plan and imports | | {total:.1f} | {peak_mb():.0f} |", ""]
    return "\n".join(lines)


def main() -> None:
    """Run a plan and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = TimedStore(Path(folder) / "store")
        run(read_plan(options.plan), store, "benchmark")
    text = page(options.plan, store.costs, cpu_seconds())
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
