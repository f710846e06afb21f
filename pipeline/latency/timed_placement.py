"""What times that were measured say of a placement: which nodes stay in float, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.artifact import PlacementTimes
from pipeline.machine.packages import cpu_versions


def quicker_in_float(measured: PlacementTimes | None) -> tuple[tuple[str, ...], list[str]]:
    """The nodes that are quicker in float by what was measured, if it was on this machine; and sentences on it."""
    if measured is None:
        return (), []
    record = measured.read()
    made_on, here = record["made_on"], cpu_versions()
    if made_on != here:
        named = " and ".join(
            f"{name} {made_on.get(name)} (here {here[name]})" for name in here if made_on.get(name) != here[name]
        )
        return (), [f"placement by time: was measured with {named}, so that the static one is taken; measure it here"]
    if record["why_not"]:
        return (), [f"placement by time: {record['why_not']}, so that the static one is taken"]
    tried = record["tried"] if record["in_float"] else []
    by_int8 = [each["group"] for each in tried if each["group"].startswith("in INT8") and not each["is_float"]]
    groups = by_int8 or [each["group"] for each in tried if each["is_float"] and each["num_nodes"]]
    return tuple(record["in_float"]), [time_sentence(record, groups)]


def time_sentence(record: Mapping[str, Any], groups: Sequence[str]) -> str:
    """What the times say."""
    ms, fp32_ms, static_ms = record["ms"], record["fp32_ms"], record["static_ms"]
    where = f"{record['made_on']['cpu']} ({', '.join(groups) or 'no group'})"
    sentence = (
        f"placement by time: {len(record['in_float'])} nodes are quicker in float on this CPU, {where}: {ms:.2f} ms, "
        f"{fp32_ms / ms:.2f} times as fast as FP32, and {static_ms / ms:.2f} times as fast as with all in INT8"
    )
    return sentence if ms <= fp32_ms else f"{sentence}; INT8 does not pay here: stay with FP32"
