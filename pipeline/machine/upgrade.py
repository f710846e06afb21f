"""What became of a machine since something was measured on it: the same, set otherwise, upgraded, or another one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

from pipeline.machine.identity import Gpu, Machine

ChangeKind: TypeAlias = Literal["none", "settings", "upgrade", "other machine"]

SETTINGS = frozenset({"governor", "power_mode", "num_cores", "cpu_quota_cores", "power_limit_w"})
"""What whoever runs a machine sets; a kernel, a driver or a JetPack that is installed anew sets it too."""
UPGRADES = frozenset({"kernel", "driver", "jetson_release", "isa"})
"""What another version of the system changes; the flags of a CPU are those that kernel and firmware let through."""
MEMORY = "memory_mib"
MOST_MEMORY_CHANGE = 0.1
"""As a share: kernel and firmware reserve some, and each version another amount."""
CPU = "cpu"
"""Of Arm the kernel decides what it calls it; where both name the board, that tells which machine it is."""


@dataclass(frozen=True)
class MachineChange:
    """What differs."""

    kind: ChangeKind
    differences: tuple[str, ...]
    """A phrase for each field, such as ``kernel 5.10.104 -> 5.15.136``: then and now."""


def change_since(then: Machine, now: Machine) -> MachineChange:
    """What became of a machine."""
    differences = list(_differences(then, now))
    kinds = {_kind_of(name, before, after, bool(now.board)) for name, before, after in differences}
    order: tuple[ChangeKind, ...] = ("other machine", "upgrade", "settings", "none")
    words = (f"{name} {_word(before)} -> {_word(after)}" for name, before, after in differences)
    return MachineChange(next(kind for kind in order if kind in kinds | {"none"}), tuple(words))


def _differences(then: Machine, now: Machine) -> Iterator[tuple[str, object, object]]:
    """Each field that differs, and those of the GPUs one by one where there are as many."""
    records: list[tuple[Machine, Machine] | tuple[Gpu, Gpu]] = [(then, now)]
    same_number = len(then.gpus) == len(now.gpus)
    records += zip(then.gpus, now.gpus) if same_number else ()
    for before, after in records:
        for field in fields(before):
            values = getattr(before, field.name), getattr(after, field.name)
            if values[0] != values[1] and not (field.name == "gpus" and same_number):
                yield field.name, *values


def _kind_of(name: str, before: object, after: object, has_board: bool) -> ChangeKind:
    """What one field says of the machine."""
    if name in SETTINGS:
        return "settings"
    if name in UPGRADES or (name == CPU and has_board):
        return "upgrade"
    if name == MEMORY and isinstance(before, int) and isinstance(after, int):
        return "upgrade" if abs(after - before) <= MOST_MEMORY_CHANGE * max(before, after) else "other machine"
    return "other machine"


def _word(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(item.name if isinstance(item, Gpu) else str(item) for item in value) or "none"
    return str(value) or "none"
