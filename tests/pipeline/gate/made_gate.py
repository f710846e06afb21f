"""A made-up gate with every case that its files must show: nothing in it was measured."""

from __future__ import annotations

from dataclasses import replace

from pipeline.advice.precision_steps import Step
from pipeline.gate.record import (
    SCHEMA_VERSION,
    Accuracy,
    Check,
    EngineInfo,
    Estimate,
    GateRecord,
    LatencyMeasurement,
    Percentile,
)
from pipeline.gate.steadiness import Conditions, MachineState
from pipeline.machine.monitor import MonitorSummary, ReadingSummary
from pipeline.record import DataInfo, MetricInfo
from tests.made import MACHINE as MACHINE_WITH_GPU

MACHINE = replace(MACHINE_WITH_GPU, cpu_quota_cores=0.0, isa=("avx2",), gpus=())

PASSED = Check(
    budget="p99_ms at batch 8 <= 12",
    quantity="p99_ms",
    variant="int8@onnxruntime",
    batch_size=8,
    outcome="pass",
    estimate=11.25,
    low=11.0,
    high=11.5,
    bound=12.0,
    at_most=True,
    relative=False,
    sentence="p99_ms at batch 8 is 11.25 ms (99 % interval 11.00 to 11.50), within <= 12",
    advice="",
)
FAILED = Check(
    budget="p50_ms at batch 1 <= 1.03 x baseline",
    quantity="p50_ms",
    variant="int8@onnxruntime",
    batch_size=1,
    outcome="fail",
    estimate=1.12,
    low=1.1,
    high=1.14,
    bound=1.03,
    at_most=True,
    relative=True,
    sentence="p50_ms at batch 1 is 1.120 x the baseline's (99 % interval 1.100 to 1.140), above 1.03",
    advice="",
)
OPEN = Check(
    budget="energy_mj at batch 1 <= 30",
    quantity="energy_mj",
    variant="int8@onnxruntime",
    batch_size=1,
    outcome="not decided",
    estimate=None,
    low=None,
    high=None,
    bound=30.0,
    at_most=True,
    relative=False,
    sentence="energy_mj at batch 1 is not known: this machine has no power monitor that can be read",
    advice="leave it out, or gate where power is measured",
)
MOMENT = MachineState("performance", "off", "", 0.25, {"cpu policy0": 2400.0}, {"x86_pkg_temp": 51.0})
WATCHED = MonitorSummary(
    period_ms=100,
    num_readings=60,
    power_mode="",
    clocks_mhz=(ReadingSummary("cpu policy0", 2399.0, 2400.0, 2401.0),),
    temperatures_c=(ReadingSummary("x86_pkg_temp", 51.0, 52.5, 54.0),),
    rails_mw=(),
    total_rails=(),
    num_throttles=0,
    notes=(),
)


def made_gate(*checks: Check) -> GateRecord:
    """A gate with these checks; its outcome follows from them."""
    outcomes = {check.outcome for check in checks}
    outcome = "fail" if "fail" in outcomes else "not decided" if "not decided" in outcomes else "pass"
    rows = (
        Percentile("p50", Estimate(0.28, 0.279, 0.281), 0.25, Estimate(1.12, 1.1, 1.14)),
        Percentile("p99", Estimate(0.36, 0.35, None), 0.31, Estimate(1.16, 1.1, None)),
    )
    return GateRecord(
        schema_version=SCHEMA_VERSION,
        created="2026-01-02T03:04:05+00:00",
        outcome=outcome,  # type: ignore[arg-type]
        exit_status={"pass": 0, "fail": 5, "not decided": 6}[outcome],
        candidate="int8@onnxruntime",
        baseline="last-good",
        baseline_set="2025-12-24T10:00:00+00:00",
        plan=None,
        evaluation=DataInfo("data/<eval>.npz", 240, "as it is", "bb" * 32),
        metric=MetricInfo("top1", "fraction of samples", True, None),
        engines=(
            EngineInfo("int8@onnxruntime", "/store/int8", "ab" * 32, "onnxruntime", 210_000, 0, 0),
            EngineInfo("baseline last-good", "/store/good", "cd" * 32, "onnxruntime", 220_000, 0, 0),
        ),
        machine=MACHINE,
        conditions=Conditions(MOMENT, MOMENT, 0.02, WATCHED, ()),
        protocol="Candidate and baseline in turns.",
        num_threads=1,
        seconds=12.5,
        checks=checks,
        measured=(
            LatencyMeasurement(
                "int8@onnxruntime", 1, 400, 10, 20, 6.5, 0.0,
                "samples/int8@onnxruntime-batch1.npz", "samples/int8@onnxruntime-batch1-baseline.npz", rows,
            ),
        ),
        accuracy=(Accuracy("int8@onnxruntime", 0.9875, 0.99, 0.9875, 0.995),),
        steps=(
            Step(
                "int8@onnxruntime", "fp32@onnxruntime", 1, 0.9, 0.88, 0.92, 0.3, None, ("size",),
                "int8@onnxruntime pays in size, not in speed against fp32@onnxruntime: 0.90× as fast (95 % interval "
                "0.88 to 0.92), 0.30× the size, energy not measured.",
            ),
        ),
        advice="Stay with fp32@onnxruntime: 0.250 ms (p50, batch 1), top1 99.00 %.",
        notes=("a note with a | in it",),
    )  # fmt: skip
