"""May this engine ship? Held to budgets beside its baseline: pass, fail, or not decided."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from pipeline.errors import ConfigError
from pipeline.latency.intervals import STATISTICS, THROUGHPUT
from pipeline.latency.protocol import Pairing
from pipeline.option import check_bounds, option
from pipeline.stage import Stage

DEFAULT_FOLDER = "trtforge-gate"


@dataclass(frozen=True)
class Gate(Stage):
    """Hold an engine to budgets, beside a baseline: pass, fail, or say that it cannot be decided here."""

    NEEDS_ENGINES: ClassVar[bool] = True
    NEEDS_TOLERANCES: ClassVar[bool] = True

    candidate: str = option("", "variant to ship, such as int8@onnxruntime; empty: the only reduced-precision one")
    baseline: str = option("", "name of a stored baseline, or of a variant of the plan; empty: none")
    budgets: tuple[str, ...] = option((), "such as 'p99_ms at batch 8 <= 12' or 'p50_ms <= 1.03 x baseline'")
    folder: str = option(
        "", "output folder of the gate, relative to the plan's folder; empty: trtforge-gate[-NAME of the plan]"
    )
    html: bool = option(True, "write gate.html (needs the extra `report`)")
    pays: bool = option(True, "also report whether each precision is worthwhile compared with the next higher one")
    cold_starts: int = option(8, "new processes started per engine, for cold_start_ms and peak_memory_mib")
    max_other_load: float = option(
        0.25, "timings are not decided if other processes used a larger share of the CPU time"
    )
    max_other_load_relative: float = option(
        0.9, "... but p50, mean and throughput relative to the baseline are, up to this share"
    )
    max_drift: float = option(
        0.1, "latency is not decided if the engine became slower or faster by a larger fraction during the run"
    )
    sampled: bool = option(True, "evaluation samples represent a larger population; no: they are the whole population")
    pairing: Pairing = field(default=Pairing())

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        self._check_scenario()
        check_bounds(
            self, cold_starts=(1, 1000), max_other_load=(0, 1), max_other_load_relative=(0, 1), max_drift=(0, math.inf)
        )

    def _check_scenario(self) -> None:
        """That each budget has a meaning in it."""
        quantities = [text.split()[0] for text in self.budgets if text.split()]
        if self.pairing.scenario == "server" and THROUGHPUT in quantities:
            raise ConfigError(
                "throughput_per_s of a server is what arrives; bound a latency, or take scenario single_stream"
            )
        latency = next((name for name in quantities if name in STATISTICS), "")
        if self.pairing.scenario == "offline" and latency:
            raise ConfigError(
                f"{latency}: scenario offline has no latency, as several batches may be in flight; bound "
                "throughput_per_s, or take scenario single_stream"
            )
