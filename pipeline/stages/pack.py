"""A plan's models, ranges, samples and reference answers in one file, for a device that has nothing of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from calibration.ranges.trt_cache import header_for
from pipeline.errors import ConfigError, DataError
from pipeline.option import check_bounds, option
from pipeline.stage import Stage


@dataclass(frozen=True)
class Pack(Stage):
    """Put a plan's models, ranges, evaluation samples and reference answers into one file, for a device.

    The device needs neither the trained network nor what reads it. Equal inputs give equal bytes.
    """

    NEEDS_TOLERANCES: ClassVar[bool] = True

    backends: tuple[str, ...] = option(("tensorrt",), "backends to write models for")
    caches: tuple[str, ...] = option((), "TensorRT versions to add a calibration cache for, such as 8.5.2")
    limit: int = option(0, "number of evaluation samples to include, evenly spread; 0: all")

    def __post_init__(self) -> None:
        """Check the bounds; ConfigError."""
        check_bounds(self, limit=(0, float("inf")))
        for version in self.caches:
            try:
                header_for(version, "EntropyCalibration2")
            except DataError as error:
                raise ConfigError(f"caches: {error}") from error
