"""Engines run on samples: a batch that was filled up is cut again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.data.batches import open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource, InputSpec
from pipeline.artifact import Engine
from pipeline.engine_runner import BatchSizes, batch_sizes, unpadded
from pipeline.errors import ConfigError
from pipeline.latency.candidates import candidate_of
from pipeline.stages.infer import answers
from tests.engines.nvinfer.pretended import PretendedContext, PretendedGpu, feed, pretended_trt, runner_of


def test_only_what_was_padded_is_cut() -> None:
    four, scalar = np.arange(4.0), np.array(1.0)
    assert unpadded(four, 3, 4).tolist() == [0, 1, 2]
    assert unpadded(four, 4, 4) is four
    assert unpadded(four, 3, 8) is four, "its first dimension is not the batch"
    assert unpadded(scalar, 3, 4) is scalar


TWO = BatchSizes(((1, 4), (9, 16)))


def test_batches_of_several_profiles() -> None:
    assert [size in TWO for size in (0, 1, 4, 5, 9, 16, 17)] == [False, True, True, False, True, True, False]
    assert [TWO.at_most(size) for size in (1, 4, 6, 9, 12, 32)] == [1, 4, 4, 9, 12, 16]
    assert [TWO.at_least(size) for size in (1, 4, 6, 9, 17)] == [1, 4, 9, 9, 17]
    assert BatchSizes(((4, 8),)).at_most(1) == 4
    assert BatchSizes(((2, 0),)).at_most(64) == 64
    assert str(TWO) == "from 1 to 4 and from 9 to 16"


PROFILES = (((1, 2), (2, 2), (4, 2)), ((9, 2), (9, 2), (16, 2)), ((1, 3), (2, 3), (64, 3)))


@pytest.mark.parametrize(
    ("batch_size", "runs"),
    [(16, ["(16, 2)", "(16, 2)", "(9, 2)"]), (8, ["(4, 2)"] * 9 + ["(2, 2)"]), (10, ["(10, 2)"] * 3 + ["(9, 2)"])],
)
def test_samples_run_in_the_profile_that_holds_their_batch(tmp_path: Path, batch_size: int, runs: list[str]) -> None:
    """The last eight of 40 and of 38 are filled up to nine; batches of 5 to 8 no profile holds."""
    gpu = PretendedGpu()
    trt = pretended_trt(gpu, lambda: PretendedContext(gpu), PROFILES, get_tensor_shape=lambda name: (-1, -1))
    x = np.arange(76 if batch_size != 16 else 80, dtype=np.float32).reshape(-1, 2)
    engine = Engine(tmp_path / "engine.plan", "tensorrt", min_batch=1, max_batch=4)
    np.savez(tmp_path / "x.npz", x=x)
    source, specs = DataSource(str(tmp_path / "x.npz")), (InputSpec("x", "float32", (-1, 2)),)
    samples = open_samples(source, specs, Preprocess())
    with runner_of(gpu, tmp_path, trt) as runner:
        batches = answers(runner, engine, samples, batch_size, lambda _: None)
    np.testing.assert_array_equal(np.concatenate([batch["y"] for batch in batches]), 2 * x)
    assert [call.removeprefix("in ") for call in gpu.calls if call.startswith("in ")][1:] == runs, "after a single one"


def test_a_benchmark_times_the_batches_of_each_profile(tmp_path: Path) -> None:
    gpu = PretendedGpu()
    trt = pretended_trt(gpu, lambda: PretendedContext(gpu), PROFILES, get_tensor_shape=lambda name: (-1, -1))
    engine = Engine(tmp_path / "engine.plan", "tensorrt", min_batch=1, max_batch=4)
    with runner_of(gpu, tmp_path, trt) as runner:
        for size in (1, 4, 16):
            candidate_of(engine, runner, "int8@tensorrt", feed(size)).call()
        with pytest.raises(
            ConfigError, match=r"int8@tensorrt: takes batches from 1 to 4 and from 9 to 16, but .* has 5;"
        ):
            candidate_of(engine, runner, "int8@tensorrt", feed(5))
        assert batch_sizes(engine, runner, {"x": np.zeros((1, 3), np.float32)}) == BatchSizes(((1, 64),))
