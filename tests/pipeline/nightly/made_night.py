"""A made-up night: a line in each state."""

from __future__ import annotations

from dataclasses import replace

from pipeline.nightly.record import SCHEMA_VERSION, Figures, LineRecord, NightRecord
from tests.made import MACHINE

MADE = LineRecord(
    schema_version=SCHEMA_VERSION,
    model="resnet",
    device="orin",
    plan="resnet/plan.toml",
    night=14,
    state="made",
    status=0,
    outcome="pass",
    sentence="int8@tensorrt may ship",
    why=("tensorrt 10.3.0 -> 10.7.0",),
    command="trtforge gate resnet/plan.toml",
    log="lines/resnet.orin/log.txt",
    gate="lines/resnet.orin/gate",
    began="2026-11-29T02:00:00+00:00",
    seconds=61.5,
    candidate=Figures("int8@tensorrt", "ab" * 32, 3 << 20, 1.25, 0.75),
    baseline="cd" * 32,
    promoted=True,
    recipes=("ef" * 32,),
    depends_on={"results": "12" * 32},
    versions={"tensorrt": "10.7.0"},
)
SERVED = replace(MADE, model="mobilenet", night=12, state="served", why=())
FAILED = replace(
    MADE, model="yolo", status=5, outcome="fail", sentence="p50_ms of <b> is 1.2 x baseline", promoted=False
)
BROKEN = replace(
    MADE, model="new|one", device="x86", state="failed", status=2, outcome=None,
    sentence="plan.toml: [quantise] unknown", candidate=None, gate="", why=(),
)  # fmt: skip
OPEN = replace(
    MADE, model="noisy", status=6, outcome="not decided", sentence="this machine was too noisy", promoted=False
)
LEFT_OUT = replace(MADE, model="other", state="left out", status=5)


def made_night(*lines: LineRecord, night: int = 14) -> NightRecord:
    return NightRecord(
        schema_version=SCHEMA_VERSION,
        night=night,
        fleet="fleet.toml",
        began="2026-11-29T02:00:00+00:00",
        ended="2026-11-29T03:00:00+00:00",
        exit_status=max((line.status for line in lines), default=0),
        machine=MACHINE,
        versions={"trtforge": "0.1.0"},
        lines=lines,
        notes=("The clock went backwards.",),
    )
