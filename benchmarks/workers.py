"""What workers of a Dask scheduler cost over this machine alone: the same lines made both ways, from an empty store.

    python benchmarks/workers.py --plans 50 --work /tmp/workers

Both nights make the models, build, validate and gate, in FP32 for ONNX Runtime; the second packs each line, and has
it built by one of two workers on loopback, without TLS. CPU seconds of `trtforge nightly` and of all that works for it:
the scheduler, the workers, and the processes that they start.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.compiled import compile_program
from benchmarks.nightly import make_plan, trtforge
from tests.pipeline.workers.cluster import cluster_in

FLEET = """
[fleet]
plans = ["models/*/plan.toml"]
{scheduler}
[nightly]
budgets = ["size_mib <= 1.05 x baseline"]
report = "{report}"
html = false
[device.board.set]
pack = {{ backends = ["onnxruntime"] }}
variants = {{ precisions = ["fp32"] }}
gate = {{ candidate = "fp32@onnxruntime" }}
"""
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_of(pid: int) -> float:
    """CPU seconds of a process, of all that it waited for, and of its children's."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(int(field) for field in fields[11:15])
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    children = [child for thread in threads for child in thread.read_text().split()]
    return ticks / TICKS + sum(cpu_of(int(child)) for child in children)


@dataclass(frozen=True)
class Overhead:
    """CPU seconds of both nights."""

    num: int
    here: float
    hub: float
    workers: float

    @property
    def there(self) -> float:
        """Of all that worked for the second."""
        return self.hub + self.workers

    def sentence(self) -> str:
        """What they cost."""
        return (
            f"{self.num} lines from an empty store, CPU s a line: {self.here / self.num:.2f} on this machine, "
            f"{self.there / self.num:.2f} on two local workers (hub {self.hub / self.num:.2f}, workers "
            f"{self.workers / self.num:.2f}): {self.there / self.here:.2f} times as much, "
            f"{(self.there - self.here) / self.num:.2f} s a line more."
        )


def overhead(work: Path, num: int) -> Overhead:
    """Both nights, of so many plans, in a folder that is not there yet."""
    for seed in range(num):
        make_plan(work / f"models/m{seed:03d}", seed)
    (work / "here.toml").write_text(FLEET.format(scheduler="", report="here"))
    here = trtforge(work, "nightly", "here.toml", "--store", "store-here")
    with cluster_in(work.resolve(), {"a": "board", "b": "board"}, {}) as cluster:
        scheduler = f'scheduler = "{cluster.address}"\ndepot = "file://{cluster.depot}"'
        (work / "there.toml").write_text(FLEET.format(scheduler=scheduler, report="there"))
        processes = cluster.processes.values()
        before = sum(cpu_of(process.pid) for process in processes)
        there = trtforge(work, "nightly", "there.toml", "--store", "store-there")
        of_workers = sum(cpu_of(process.pid) for process in processes) - before
    assert (here.status, there.status) == (0, 0), "a night failed"
    return Overhead(num, here.cpu_seconds, there.cpu_seconds, of_workers)


def main() -> None:
    """Run both, and print what they cost."""
    compile_program()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plans", type=int, default=50)
    parser.add_argument("--work", type=Path, required=True, help="folder that is not there yet")
    options = parser.parse_args()
    print(overhead(options.work, options.plans).sentence())


if __name__ == "__main__":
    main()
