"""The benchmark of LiteRT's techniques: what its table says, and that times are of all engines in turns."""

from __future__ import annotations

from pathlib import Path

from benchmarks.litert import Engine, Row, cpu_ms, table


def row(name: str, size_bytes: int, top1: float, ms: float) -> Row:
    return Row(Engine(name, Path(name), name.partition("@")[2], size_bytes), top1, 0.99, ms, "0.5")


def test_the_table_is_beside_fp32_and_the_best_int8() -> None:
    rows = [
        row("fp32@litert", 2048, 0.9, 0.5),
        row("int8@litert", 1024, 0.89, 0.25),
        row("upstream's INT8", 1024, 0.892, 1),
        row("int8@litert, depthwise in FP32", 1024, 0.95, 1),
    ]
    lines = table(rows, 800)
    assert lines[2] == "| fp32@litert | 2.0 | +0% | 0.9000 | 0.9900 | 1.00 (0.5000 ms) | 0.5 |"
    assert lines[3] == "| int8@litert | 1.0 | -50% | 0.8900 | 0.9900 | 0.50 | 0.5 |"
    assert lines[-1] == "800 evaluation samples. int8@litert is 0.20 points behind the best INT8 of any tool."


def test_each_round_calls_all_and_the_slow_ones_in_fewer() -> None:
    calls: list[str] = []
    medians = cpu_ms({name: lambda name=name: calls.append(name) for name in ("fast", "slow")}, 50, {"slow"})  # type: ignore[misc]
    assert (calls.count("fast"), calls.count("slow")) == (60, 30)
    assert set(calls[:2]) == {"fast", "slow"}
    assert all(ms >= 0 for ms in medians.values())
