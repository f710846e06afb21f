"""What passed its gate becomes the last good engine of a name; one that lacks nothing but a baseline is the first."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import ConfigError, DataError
from pipeline.gate.baseline import gate_from_folder, set_baseline, stored_baseline
from pipeline.gate.generations import withdrawn

PROMOTED = "is the last good engine now"
FIRST = f"it passed all that needs no baseline, and {PROMOTED}"


def promote(name: str, gate_folder: Path, store: Path) -> str:
    """Set the baseline of that name from a gate; what became of it, empty where nothing was to be done.

    Raises:
        ConfigError, DataError: it passed, and cannot be set.
    """
    gate = gate_from_folder(gate_folder)
    engine = next((engine.digest for engine in gate.engines if engine.name == gate.candidate), "")
    before = stored_baseline(name, store)
    if gate.outcome == "fail" or (before is not None and before.record.engine.digest == engine):
        return ""
    if date := withdrawn(name, store).get(engine):
        return f"not promoted: this engine was withdrawn on {date}"
    try:
        set_baseline(name, gate_folder, store, first=before is None)
    except (ConfigError, DataError):
        if gate.outcome == "pass":
            raise
        return ""
    return PROMOTED if gate.outcome == "pass" else FIRST
