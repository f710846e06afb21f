"""Ranges of a `.tflite` file: of every tensor that it computes, each value once, and the reading that INT8 asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.analysis.range_choice import choice_from_folder
from calibration.ranges.convergence import convergence_from_folder
from calibration.ranges.ranges_file import ranges_from_folder
from engines.backends import litert
from pipeline.artifact import TfliteModel
from pipeline.errors import EngineError
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.lint import Lint
from tests.pipeline.stages.networks import Out
from tests.pipeline.stages.tflite_samples import residual, samples_of
from tests.tflite_files import save_dense_in_int8

pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")

TENSORS = ["active", "added", "first", "second", "x", "y"]


def test_ranges_are_those_of_the_values_that_it_computes(tmp_path: Path, out: Out) -> None:
    model, samples = residual(tmp_path), samples_of(tmp_path, 20)
    ranges = ranges_from_folder(Calibrate(method="minmax")(out(), model, samples).path)
    assert list(ranges.tensors) == TENSORS
    with litert.load_values(model.path, num_threads=1) as runner:
        values = [runner.infer(feed) for feed in samples.batches(1)]
    for name, tensor in ranges.tensors.items():
        seen = np.concatenate([each[name] for each in values])
        assert (tensor.min, tensor.max, tensor.num_values) == (seen.min(), seen.max(), seen.size)
    assert ranges.origin.model_digest == model.digest()
    assert {"ai-edge-litert", "ai-edge-quantizer"} <= ranges.origin.versions.keys()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_fixed_batch_with_a_remainder_counts_every_sample_once(tmp_path: Path, out: Out, num_workers: int) -> None:
    samples = samples_of(tmp_path, 10)
    alone, fours = (
        ranges_from_folder(
            Calibrate(method="minmax", num_workers=num_workers)(out(), residual(tmp_path, batch), samples).path
        )
        for batch in (1, 4)
    )
    assert [each.num_values for each in fours.tensors.values()] == [each.num_values for each in alone.tensors.values()]
    for name, tensor in fours.tensors.items():
        assert tensor.max == pytest.approx(alone.tensors[name].max, rel=1e-5)


def test_auto_is_chosen_by_files_that_are_really_in_int8(tmp_path: Path, out: Out) -> None:
    """One sample in 64 is 30 times as large: to hold it costs all others their precision."""
    folder = Calibrate()(out(), residual(tmp_path), samples_of(tmp_path, 64, 30.0)).path
    choice = choice_from_folder(folder)
    assert choice is not None
    assert choice.outputs == ("y",)
    (placement,) = choice.placements
    assert placement.target == "litert"
    by_name = {result.name: result.sqnr_db for result in placement.results}
    assert by_name[placement.winner] >= by_name["entropy"] - 0.25
    assert by_name["percentile"] < by_name[placement.winner], "of so few values, 99.99 percent are all of them"
    assert convergence_from_folder(folder) is not None


def test_equal_input_gives_equal_bytes(tmp_path: Path, out: Out) -> None:
    model, samples = residual(tmp_path), samples_of(tmp_path, 16)
    files = [Calibrate()(out(), model, samples).path / "ranges.json" for _ in range(2)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_file_in_int8_cannot_be_calibrated(tmp_path: Path, out: Out) -> None:
    model = TfliteModel(save_dense_in_int8(tmp_path / "m.tflite"))
    with pytest.raises(
        EngineError, match="is in int8 already, so that there is nothing to calibrate or to write; give"
    ):
        Calibrate()(out(), model, samples_of(tmp_path, 4))


def test_the_lint_reads_the_samples_for_it(tmp_path: Path, out: Out) -> None:
    findings = Lint()(out(), residual(tmp_path), samples_of(tmp_path, 4)).read()
    assert "few" in {finding.code for finding in findings}
