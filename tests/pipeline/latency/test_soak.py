"""A soak's windows: latency beside what was read in the same stretch of time."""

import math

import numpy as np
import pytest

from calibration.arrays import Floats
from pipeline.latency.benchmark import Queries, Timing, latency_from_ms
from pipeline.latency.soak import trace
from pipeline.machine.monitor import Readings
from pipeline.machine.sensors import Sensor, SensorKind

BEGAN_NS = 5_000_000_000


def timing_of(latency_ms: Floats, started_ms: Floats) -> Timing:
    nothing = np.full(len(latency_ms), math.nan)
    queries = Queries(latency_ms, np.zeros(len(latency_ms), dtype=np.int64), started_ms, nothing)
    latency = latency_from_ms(latency_ms)
    return Timing("a", 4, latency, 1.0, None, len(latency_ms), True, "", queries)


def readings_of(every_s: float, **values: list[float]) -> Readings:
    """Readings by name, of sensors whose kind is the part of the name before two underscores."""
    kinds: dict[str, SensorKind] = {"temperature": "temperature_c", "clock": "clock_mhz", "throttle": "num_throttles"}
    sensors = tuple(Sensor(kinds[name.split("__")[0]], name.split("__")[1], lambda: math.nan) for name in values)
    table = np.array(list(values.values())).T
    times_ns = BEGAN_NS + (np.arange(len(table)) * every_s * 1e9).astype(np.int64)
    return Readings(sensors, times_ns, table)


def nothing_read() -> Readings:
    return Readings((), np.zeros(0, dtype=np.int64), np.zeros((0, 0)))


def test_a_window_has_its_own_queries_and_readings() -> None:
    timing = timing_of(np.array([1.0, 3.0, 2.0, 5.0, 5.0]), np.array([0.0, 400.0, 999.0, 2000.0, 2500.0]))
    readings = readings_of(
        0.5, temperature__cpu=[40.0, 42.0, 41.0, 50.0, 60.0], clock__gpu=[1000, 900, 800, 700, 600.0]
    )
    found = trace(timing, readings, BEGAN_NS, 1.0)
    assert (found.name, found.batch_size, found.window_seconds) == ("a", 4, 1.0)
    assert [window.begin_s for window in found.windows] == [0.0, 2.0], "no query was due in the second window"
    assert [window.num_queries for window in found.windows] == [3, 2]
    assert [(window.p50_ms, window.p99_ms) for window in found.windows] == [(2.0, 3.0), (5.0, 5.0)]
    assert [window.temperatures_c for window in found.windows] == [{"cpu": 42.0}, {"cpu": 60.0}]
    assert [window.clocks_mhz for window in found.windows] == [{"gpu": 950.0}, {"gpu": 600.0}]


def test_an_engine_that_grows_slower_as_it_grows_hot_is_said_to() -> None:
    started_ms = np.arange(0, 20_000, 10.0)
    timing = timing_of(1.0 + started_ms / 20_000 * 0.5, started_ms)
    hot = np.linspace(45, 85, 41).tolist()
    counts = [0.0] * 30 + [3.0] * 11
    found = trace(timing, readings_of(0.5, temperature__tj=hot, throttle__soc=counts), BEGAN_NS, 1.0)
    assert len(found.windows) == 20
    assert found.sentence.startswith(
        "a at batch 4: p50 1.02 ms at first, 1.47 ms in the end, 44% slower; tj from 46 to 84"
    )


def test_a_steady_engine_is_said_to_be_and_what_was_not_read_is_left_out() -> None:
    started_ms = np.arange(0, 5000, 5.0)
    steady = timing_of(np.full(1000, 2.0), started_ms)
    assert trace(steady, nothing_read(), BEGAN_NS, 1.0).sentence == (
        "a at batch 4: p50 2 ms at first, 2 ms in the end, steady"
    )
    gap = readings_of(1.0, temperature__cpu=[50.0, math.nan, 51.0, 52.0, 53.0])
    windows = trace(steady, gap, BEGAN_NS, 1.0).windows
    assert [window.temperatures_c.get("cpu") for window in windows] == [50.0, None, 51.0, 52.0, 53.0]


def test_throttling_is_counted_from_the_reading_before_the_window() -> None:
    steady = timing_of(np.full(400, 2.0), np.arange(0, 4000, 10.0))
    found = trace(steady, readings_of(0.5, throttle__soc=[0, 0, 2, 5, 5, 5, 5, 6.0]), BEGAN_NS, 1.0)
    assert [window.num_throttles["soc"] for window in found.windows] == [0.0, 5.0, 0.0, 1.0]
    assert found.sentence.endswith("; throttled 6 times")


def test_the_engine_that_pauses_while_another_runs_has_windows_of_its_own_blocks() -> None:
    timing = timing_of(np.full(4, 1.0), np.array([100.0, 200.0, 7100.0, 7200.0]))
    assert [window.begin_s for window in trace(timing, nothing_read(), BEGAN_NS, 2.0).windows] == pytest.approx(
        [0.0, 6.0]
    )
