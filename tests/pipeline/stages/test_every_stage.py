"""What holds of every stage."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.stages.benchmark import Benchmark
from pipeline.stages.build import Build
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.cast import Cast
from pipeline.stages.infer import Infer
from pipeline.stages.quantize import Quantize
from pipeline.stages.validate import Validate


def test_stages_are_records_that_cannot_change() -> None:
    for stage in (Benchmark(), Build(), Calibrate(), Cast(), Infer(), Quantize(), Validate()):
        name = dataclasses.fields(stage)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(stage, name, None)
