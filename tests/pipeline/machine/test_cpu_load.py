"""What other programs take of the CPU time: from made-up /proc trees, and from this machine."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.machine.cpu_load import TICKS_PER_S, CpuTimes, cpu_times, load_from_others


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    times = cpu_times(tmp_path)
    assert load_from_others(times, replace(times, at_s=times.at_s + 1)) is None


def test_cpu_time_is_all_but_idle_and_waiting(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    columns = [100, 20, 30, 5000, 400, 0, 6, 44, 70, 0]  # The last two are in the first two already.
    row = " ".join(map(str, columns))
    (tmp_path / "proc/stat").write_text(f"cpu  {row}\ncpu0 {row}\ncpu1 {row}\nintr 12 0\n")
    times = cpu_times(tmp_path)
    assert times.busy_s == pytest.approx((100 + 20 + 30 + 6 + 44) / TICKS_PER_S)
    assert times.num_cores == 2


@pytest.mark.parametrize(
    ("busy_s", "own_s", "share"),
    [(10.0, 10.0, 0.0), (20.0, 10.0, 0.5), (12.0, 10.0, 0.1), (9.0, 10.0, 0.0), (99.0, 10.0, 1.0)],
)
def test_load_is_what_others_took_of_all_cores(busy_s: float, own_s: float, share: float) -> None:
    before = CpuTimes(100.0, 5.0, 2, 50.0)
    after = CpuTimes(100.0 + busy_s, 5.0 + own_s, 2, 60.0)
    assert load_from_others(before, after) == pytest.approx(share)


def test_this_process_is_not_among_the_others() -> None:
    before, own = cpu_times(Path("/")), os.times()
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        pass
    after, spent = cpu_times(Path("/")), os.times()
    assert after.own_s - before.own_s >= 0.9 * (spent.user - own.user)
    share = load_from_others(before, after)
    assert share is not None
    assert 0 <= share <= 1
