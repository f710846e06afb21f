"""Which technique for this network? Each in turn, held to bounds, until one holds them all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.errors import ConfigError
from pipeline.option import check_bounds, option
from pipeline.spelling import nearest
from pipeline.stage import Stage
from pipeline.techniques.catalogue import TECHNIQUES

DEFAULT_FOLDER = "trtforge-advice"


@dataclass(frozen=True)
class Advise(Stage):
    """Try one technique after another on the plan's network, until one holds all bounds."""

    NEEDS_ENGINES: ClassVar[bool] = True
    NEEDS_TOLERANCES: ClassVar[bool] = True

    bounds: tuple[str, ...] = option(
        (), "such as 'metric_drop <= 0.01', 'p50_ms <= 0.5 x baseline' (of FP32) or 'size_compressed_mib <= 2'"
    )
    techniques: tuple[str, ...] = option((), f"which are tried, of {', '.join(TECHNIQUES)}; empty: all")
    hardware: Literal["", "cpu", "tensorrt", "edgetpu"] = option(
        "", "where the engine is to run: cpu, tensorrt (a GPU) or edgetpu; empty: wherever a backend of the plan does"
    )
    minutes: float = option(math.inf, "no further technique is begun after so many minutes")
    folder: str = option(
        "", "output folder of the report, relative to the plan's folder; empty: trtforge-advice[-NAME of the plan]"
    )

    def __post_init__(self) -> None:
        """Check the names and bounds; ConfigError."""
        check_bounds(self, minutes=(0, math.inf))
        for name in self.techniques:
            if name not in TECHNIQUES:
                raise ConfigError(f"techniques: there is no technique '{name}'{nearest(name, tuple(TECHNIQUES))}")
