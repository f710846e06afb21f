"""Write what a run found as a table, `report.json` and one self-contained `report.html`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pipeline.option import FINITE, check_bounds, option
from pipeline.output import check_replaceable
from pipeline.stage import Stage

OWN_FILES = ("report.json", "report.html", "samples")
"""All that a report's folder may hold."""
DEFAULT_FOLDER = "trtforge-report"


@dataclass(frozen=True)
class Report(Stage):
    """Write what a run found as a table, `report.json` and one self-contained `report.html`."""

    NEEDS_ENGINES: ClassVar[bool] = True
    NEEDS_TOLERANCES: ClassVar[bool] = True

    folder: str = option(
        "", "output folder of the report, relative to the plan's folder; empty: trtforge-report[-NAME of the plan]"
    )
    html: bool = option(True, "write report.html (needs the extra `report`)")
    max_metric_drop: float = option(0.01, "largest drop of the metric that the recommendation accepts")
    num_remedies: int = option(4, "other ways to INT8 that are tried where it is out of bounds, at most; 0: none")

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(self, max_metric_drop=(-FINITE, FINITE), num_remedies=(0, math.inf))

    def check_folder(self, folder: Path, table: str = "[report]") -> None:
        """That a report's folder is new, empty, or an older report: it is going to be replaced as a whole.

        ``table`` is the plan's that names the folder.

        Raises:
            ConfigError: it is a file, or holds anything else.
        """
        check_replaceable(folder, OWN_FILES, f"{table} folder: {{}} exists, but a report replaces its whole folder")
