"""The records of the nightly job: one line (a model on a device), and the whole night.

Documented key by key in ``docs/nightly.md``. ``None`` (null in JSON) means that there is no such number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.machine.identity import Machine
from pipeline.stats.intervals import Outcome

SCHEMA_VERSION = 1
RECORD = "nightly.json"
"""The file of a night, in the report's folder."""

LineState = Literal["made", "served", "failed", "left out"]
"""Something was made or measured; nothing had changed; an error stopped it before it was judged; not asked for."""


@dataclass(frozen=True)
class Figures:
    """What the gate measured of one engine."""

    engine: str
    """Its name: a variant of the plan, such as ``int8@onnxruntime``."""
    digest: str
    """SHA-256 (hex) of its file."""
    size_bytes: int
    p50_ms: float | None
    """At the first batch size that was timed; None where no budget asks for a latency."""
    metric: float | None
    """None where there is no metric."""


@dataclass(frozen=True)
class LineRecord:
    """One plan on one device, when it was last looked at."""

    schema_version: int
    model: str
    device: str
    plan: str
    """Its path, from the folder of the fleet file."""
    night: int
    """The number of the night in which it was last made or tried."""
    state: LineState
    status: int
    """Exit status by the project's table."""
    outcome: Outcome | None
    """Of the gate; None without one."""
    sentence: str
    """What became of it; for an error what the command said."""
    why: tuple[str, ...]
    """What had changed; empty where nothing was made."""
    command: str
    """Does it again."""
    log: str
    """File of what the command printed, from the report's folder; empty where none ran."""
    gate: str
    """Folder of the gate's files, from the report's folder; empty without one."""
    began: str
    """ISO 8601, with the offset from UTC."""
    seconds: float
    candidate: Figures | None
    """None where it came to no gate."""
    baseline: str
    """SHA-256 (hex) of the last good engine that it was held against; empty where there was none."""
    promoted: bool
    """Whether it became the last good engine."""
    recipes: tuple[str, ...]
    """Digests of the recipes of all results that it was judged by."""
    depends_on: dict[str, str]
    """SHA-256 (hex) of all that the judgement depends on, by what it is; empty after an error."""
    versions: dict[str, str]
    """Of what may have changed since the line was made before."""
    delivered: str = ""
    """SHA-256 (hex) of the engines that lie where they are delivered to, and of how; empty where none does."""

    @property
    def name(self) -> str:
        """As ``pipeline.nightly.fleet.Line.name``."""
        return f"{self.model}.{self.device}"


@dataclass(frozen=True)
class NightRecord:
    """nightly.json: one night."""

    schema_version: int
    night: int
    """Counted from 1."""
    fleet: str
    """The fleet file."""
    began: str
    ended: str
    exit_status: int
    """Of the worst line."""
    machine: Machine
    versions: dict[str, str]
    lines: tuple[LineRecord, ...]
    """All lines of the fleet, also those of which nothing was made."""
    notes: tuple[str, ...]
