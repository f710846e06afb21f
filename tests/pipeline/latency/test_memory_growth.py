"""Memory over time: made-up series, and real processes of which one leaks."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from engines.contract import Array, Runner
from pipeline.artifact import Engine
from pipeline.engine_runner import runner_of
from pipeline.errors import ConfigError, Unavailable
from pipeline.latency import memory_growth
from pipeline.latency.memory_growth import (
    MOST_READINGS,
    GrowthLimit,
    MemorySoak,
    MemoryTrace,
    is_kept,
    soak_memory,
    soaked,
)
from pipeline.machine import child_process
from pipeline.machine.resident import give_back_free_memory, grow_by_pages, resident_mib

FEEDS = [{"image": np.full((1, 4, 8, 8), value, dtype=np.float32)} for value in (0.0, 1.0)]
LEAK_MIB_PER_S = 8.0
"""By the clock, for a leak by the query grows as unevenly as a busy machine runs it."""
LEAK_VALUES = 1 << 10
"""Of 8 bytes, at a time."""
SECONDS = 5.0


def soak(*limits: GrowthLimit, max_seconds: float = SECONDS, min_seconds: float = 0.0) -> MemorySoak:
    return MemorySoak(limits or (GrowthLimit("process", 1.0),), 0.99, min_seconds, max_seconds, 2, 0.0)


def made_up(mib_per_h: float, seconds: float, begin_mib: float = 300.0) -> MemoryTrace:
    """Half of the growth comes in the first fifth of the time, which does not count."""
    times_s = np.linspace(0, seconds, 2000)
    warm_up = np.minimum(times_s / seconds, 0.2) * 40
    memory = begin_mib + warm_up + mib_per_h * times_s / 3600
    return MemoryTrace(times_s, memory, np.full(2000, math.nan), 100)


def test_the_warm_up_does_not_count() -> None:
    growth = made_up(5.0, 3600).growth_per_h("process", 0.005)
    assert growth is not None
    assert growth.slope == pytest.approx(5.0)


@pytest.mark.parametrize(("seconds", "kept"), [(60, False), (600, False), (2400, True)])
def test_a_level_memory_keeps_one_mib_per_hour_after_a_while(seconds: float, kept: bool) -> None:
    assert is_kept(soak(max_seconds=seconds), made_up(0.0, seconds)) is kept


def test_a_device_that_is_not_told_delays_nothing() -> None:
    process, device = GrowthLimit("process", 1.0), GrowthLimit("device", 1.0)
    assert is_kept(soak(process, device), made_up(0.0, 36_000))
    assert not is_kept(soak(process, device), made_up(2.0, 36_000))
    assert made_up(0.0, 36_000).growth_per_h("device", 0.005) is None
    both = made_up(0.0, 36_000)
    leaking = MemoryTrace(both.times_s, both.process_mib, 100 + both.times_s, 100)
    assert not is_kept(soak(process, device), leaking)


def test_when_it_is_asked() -> None:
    assert soak(max_seconds=60).looks_s() == [10, 15, 22.5, 33.75, 50.625, 60]
    assert soak(max_seconds=4).looks_s() == [4]
    assert soak(max_seconds=60, min_seconds=50).looks_s() == [50, 60]
    assert soak(max_seconds=60).tail == pytest.approx(0.005 / 6)


def leak(engine: Engine, memory_soak: MemorySoak, mib_per_s: float) -> MemoryTrace:
    """In a process of its own: the real runner, which keeps so much of each second's queries for ever."""
    kept_for_ever: list[Array] = []
    grow_by_pages()
    begin, pieces_per_s = time.monotonic(), mib_per_s * 2**20 / (8 * LEAK_VALUES)
    with runner_of(engine, 1) as runner:

        def infer(feed: Mapping[str, Array]) -> dict[str, Array]:
            num_due = int(pieces_per_s * (time.monotonic() - begin))
            kept_for_ever.extend(np.ones(LEAK_VALUES) for _ in range(num_due - len(kept_for_ever)))
            return runner.infer(feed)

        return soaked(cast(Runner, SimpleNamespace(infer=infer)), FEEDS, memory_soak)


def test_a_process_that_leaks_and_one_that_does_not(tiny: Path) -> None:
    engine, one_gib = Engine(tiny / "tiny.onnx"), GrowthLimit("process", 1024.0)
    leaking = child_process.call(tiny / "a.log", "leak", leak, engine, soak(one_gib), LEAK_MIB_PER_S)
    growth = leaking.growth_per_h("process", 0.005)
    assert growth is not None, "about a hundred readings, of which 36 are needed"
    assert growth.low > 1024, growth
    assert leaking.process_mib[-1] > leaking.process_mib[0]

    tight = child_process.call(tiny / "b.log", "soak", soak_memory, engine, FEEDS, 1, soak(one_gib))
    level = tight.growth_per_h("process", 0.005)
    assert level is not None
    assert level.slope < growth.low
    assert 10 < tight.process_mib[-1] < 2000
    assert tight.num_queries > 1
    assert (np.diff(tight.times_s) > 0).all()
    assert not tight.tells("device")
    tight.write(tiny / "out" / "memory.npz")
    with np.load(tiny / "out" / "memory.npz") as arrays:
        assert set(arrays) == {"times_s", "process_mib", "device_mib"}


class Device:
    """A runner whose device loses one MiB with each query."""

    inputs = outputs = ()

    def __init__(self) -> None:
        self.num = 0

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        self.num += 1
        return {}

    def device_memory_now_mib(self) -> float:
        return float(self.num)

    def __enter__(self) -> Any: ...
    def __exit__(self, *error: object) -> None: ...
    def device_ms(self) -> None: ...
    def facts(self) -> Any: ...


def test_the_devices_memory_is_read_where_the_runner_tells() -> None:
    memory = soaked(cast(Runner, Device()), FEEDS, soak(GrowthLimit("device", 1.0), max_seconds=0.2))
    assert memory.tells("device")
    assert memory.device_mib[-1] == memory.num_queries + 2, "two of warm-up"


def test_a_full_table_keeps_every_second_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_growth, "resident_mib", lambda: 5.0)
    readings = memory_growth._Readings(1e9)
    for now_s in range(3 * MOST_READINGS):
        readings.add(float(now_s), math.nan)
    times: Sequence[float] = readings.trace(1).times_s.tolist()
    assert len(times) < MOST_READINGS
    assert times == sorted(times)
    assert (times[0], times[-1]) == (0, 3 * MOST_READINGS - 2), "the very last was one to be dropped"
    assert readings.due_s >= times[-1] + 4 * memory_growth.LEAST_INTERVAL_S


def test_a_batch_that_the_engine_does_not_take(tiny: Path) -> None:
    engine = Engine(tiny / "tiny.onnx", max_batch=1)
    feeds = [{"image": np.zeros((3, 4, 8, 8), dtype=np.float32)}]
    with pytest.raises(ConfigError, match="but its memory is to be watched at 3"):
        soak_memory(engine, feeds, 1, soak())


def test_what_the_system_tells(tmp_path: Path) -> None:
    folder = tmp_path / "proc/self"
    folder.mkdir(parents=True)
    with pytest.raises(Unavailable, match="leave out memory_growth_mib_per_h"):
        resident_mib(tmp_path)
    (folder / "status").write_text("Name:\tpython\nVmHWM:\t9999 kB\nVmRSS:\t 2048 kB\nVmSwap:\t 1024 kB\n")
    assert resident_mib(tmp_path) == 3
    (folder / "smaps_rollup").write_text("00-7f [rollup]\nRss:  4096 kB\nPss: 77 kB\nSwap: 512 kB\nSwapPss: 5 kB\n")
    assert resident_mib(tmp_path) == 4.5
    child = folder.parent / "123"
    child.mkdir()
    (child / "smaps_rollup").write_text("Rss:  1024 kB\nSwap: 0 kB\n")
    task = folder / "task" / "77"
    task.mkdir(parents=True)
    (task / "children").write_text("123 124 ")
    assert resident_mib(tmp_path) == 5.5, "124 has ended"
    give_back_free_memory()


def test_a_runtime_in_a_process_of_its_own_is_counted() -> None:
    """As TensorRT where another Python has its bindings."""
    alone = resident_mib()
    code = "block = bytearray(b'x' * (64 << 20)); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        together = resident_mib()
        process.kill()
    assert together > alone + 64
