"""What became of a machine: each field that an upgrade, a setting or another machine changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.machine.identity import Gpu, Machine
from pipeline.machine.upgrade import change_since
from tests.made import MACHINE

GPU = Gpu("Example GPU", "535.1", 24_000, 300.0)
PC = replace(MACHINE, gpus=(GPU,))
JETSON = replace(
    PC, architecture="aarch64", board="NVIDIA Jetson AGX Orin", cpu="ARMv8 Processor", gpus=(),
    jetson_release="# R35 (release)", power_mode="MAXN",
)  # fmt: skip


@pytest.mark.parametrize(
    ("then", "changes", "kind", "differences"),
    [
        (PC, {}, "none", ()),
        (PC, {"kernel": "6.8.0"}, "upgrade", ("kernel 6.1.0 -> 6.8.0",)),
        (PC, {"gpus": (replace(GPU, driver="550.2"),)}, "upgrade", ("driver 535.1 -> 550.2",)),
        (PC, {"gpus": (replace(GPU, memory_mib=23_900),)}, "upgrade", ("memory_mib 24000 -> 23900",)),
        (PC, {"isa": ("avx2", "fma")}, "upgrade", (f"isa {', '.join(PC.isa)} -> avx2, fma",)),
        (JETSON, {"jetson_release": "# R36"}, "upgrade", ("jetson_release # R35 (release) -> # R36",)),
        (JETSON, {"cpu": "ARM implementer 0x41"}, "upgrade", ("cpu ARMv8 Processor -> ARM implementer 0x41",)),
        (
            JETSON,
            {"kernel": "5.15", "power_mode": "15W", "governor": "", "memory_mib": round(0.97 * JETSON.memory_mib)},
            "upgrade",
            (
                "kernel 6.1.0 -> 5.15",
                f"memory_mib {JETSON.memory_mib} -> {round(0.97 * JETSON.memory_mib)}",
                f"governor {JETSON.governor} -> none",
                "power_mode MAXN -> 15W",
            ),
        ),
        (JETSON, {"power_mode": "15W", "num_cores": 4}, "settings", None),
        (PC, {"governor": "powersave"}, "settings", None),
        (PC, {"cpu_quota_cores": 3.0}, "settings", None),
        (PC, {"gpus": (replace(GPU, power_limit_w=200.0),)}, "settings", ("power_limit_w 300.0 -> 200.0",)),
        (PC, {"cpu": "Other CPU"}, "other machine", None),
        (PC, {"architecture": "aarch64", "kernel": "6.8.0"}, "other machine", None),
        (PC, {"system": "Other"}, "other machine", None),
        (PC, {"memory_mib": PC.memory_mib // 2}, "other machine", None),
        (PC, {"gpus": (replace(GPU, name="Other GPU", driver="550.2"),)}, "other machine", None),
        (PC, {"gpus": ()}, "other machine", ("gpus Example GPU -> none",)),
        (PC, {"gpus": (GPU, GPU)}, "other machine", ("gpus Example GPU -> Example GPU, Example GPU",)),
        (JETSON, {"board": "NVIDIA Jetson Orin Nano", "cpu": "Other"}, "other machine", None),
    ],
)
def test_the_kind_of_each_change(
    then: Machine, changes: dict[str, Any], kind: str, differences: tuple[str, ...] | None
) -> None:
    change = change_since(then, replace(then, **changes))
    assert change.kind == kind
    assert bool(change.differences) == bool(changes)
    assert differences is None or change.differences == differences
