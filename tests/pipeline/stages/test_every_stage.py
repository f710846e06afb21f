"""What holds of every stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from pipeline.errors import ConfigError
from pipeline.stages.benchmark import Benchmark
from pipeline.stages.build import Build
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.cast import Cast
from pipeline.stages.infer import Infer
from pipeline.stages.lint import Lint
from pipeline.stages.prune import Prune
from pipeline.stages.quantize import Quantize
from pipeline.stages.tolerate import Tolerate
from pipeline.stages.tune import Tune
from pipeline.stages.validate import Validate


def test_stages_are_records_that_cannot_change() -> None:
    for stage in (Benchmark(), Build(), Calibrate(), Cast(), Infer(), Quantize(), Validate()):
        name = dataclasses.fields(stage)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(stage, name, None)


@pytest.mark.parametrize("stage", [Benchmark, Calibrate, Infer, Lint, Prune, Tolerate, Tune])
def test_a_million_threads_are_refused(stage: Callable[..., object]) -> None:
    """ONNX Runtime takes minutes to begin them, or they end in an error of the system."""
    stage(num_threads=1024)
    with pytest.raises(ConfigError, match="num_threads is 1000000, but must be at least 0 and at most 1024"):
        stage(num_threads=1_000_000)


def test_a_million_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_workers is 1000000, but must be at least 1 and at most 1024"):
        Calibrate(num_workers=1_000_000)


def test_a_number_of_400_digits_is_refused_in_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"num_threads is 9{40}, but must be at least 0 and at most 1024; correct it"):
        Infer(num_threads=int("9" * 400))
