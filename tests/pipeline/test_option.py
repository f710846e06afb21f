"""Options: their bounds are checked where they are read, with the place in the plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.option import check_bounds
from pipeline.plan import read_plan
from pipeline.stages.benchmark import Benchmark
from pipeline.stages.build import Build
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.infer import Infer

HEAD = '[model]\nsource = "x"\n[data]\ncalibration = "c.npz"\nevaluation = "e.npz"\n'


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[calibrate]\npercentile = 200", "[calibrate] percentile is 200, but must be at least 1e-09 and at most 100"),
        ("[calibrate]\nbatch_size = 0", "[calibrate] batch_size is 0, but must be at least 1; correct it"),
        ("[build]\noptimization_level = 9", "[build] optimization_level is 9, but must be at least 0 and at most 5"),
        ("[infer]\nnum_threads = -1", "[infer] num_threads is -1, but must be at least 0 and at most 1024; correct it"),
        ("[benchmark]\nbatch_sizes = [1, 0]", "[benchmark] batch_sizes is 0, but must be at least 1; correct it"),
        ("[benchmark]\nbatch_sizes = [1, 8, 1]", "[benchmark] batch_sizes names a size twice: 1, 8, 1; leave one out"),
        (
            "[benchmark.protocol]\nmin_seconds = inf",
            "[benchmark.protocol] min_seconds is inf, but must be at least 0 and finite; correct it",
        ),
        ("[benchmark]\nbatch_sizes = []", "[benchmark] batch_sizes is empty; name at least one, such as 1"),
    ],
)
def test_a_plan_with_a_value_out_of_bounds_is_refused(tmp_path: Path, table: str, said: str) -> None:
    (tmp_path / "plan.toml").write_text(HEAD + table)
    with pytest.raises(ConfigError) as caught:
        read_plan(tmp_path / "plan.toml")
    assert said in str(caught.value)


def test_the_defaults_are_within_their_bounds() -> None:
    for stage in (Calibrate, Build, Infer, Benchmark):
        stage()


def test_not_a_number_is_out_of_every_bound() -> None:
    with pytest.raises(ConfigError, match="percentile is nan"):
        Calibrate(percentile=float("nan"))
    check_bounds(Calibrate(), percentile=(99.99, 99.99))
