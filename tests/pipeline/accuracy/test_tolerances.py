"""Ranges that are unlike those of the samples that an engine is judged on."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.data.batches import Samples, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from calibration.ranges.ranges_file import ranges_from_folder
from pipeline.accuracy.tolerances import unlike_ranges
from pipeline.artifact import OnnxModel, Ranges
from pipeline.stages.calibrate import Calibrate
from tests.pipeline.tolerances import INT8, derived


def ranges_of(fp32: OnnxModel, samples: Samples, factor: float) -> Ranges:
    """Min-max ranges, found on the samples times a factor."""
    with np.load(fp32.path.with_name("many.npz")) as stored:
        np.savez(fp32.path.with_name("other.npz"), image=stored["image"] * np.float32(factor))
    other = open_samples(DataSource("other.npz"), samples.specs, Preprocess())
    folder = fp32.path.with_name(f"ranges_of_{factor}")
    folder.mkdir()
    return Calibrate(method="minmax")(folder, fp32, other)


@pytest.mark.parametrize(("factor", "is_told"), [(1.0, False), (1.2, False), (0.5, True), (2.0, True)])
def test_ranges_of_other_data_are_told(fp32: OnnxModel, samples: Samples, factor: float, is_told: bool) -> None:
    record = derived(fp32, samples, INT8["onnxruntime"]).read()
    ranges = ranges_from_folder(ranges_of(fp32, samples, factor).path)
    said = unlike_ranges(record, ranges)
    assert bool(said) is is_told
    if said:
        assert float(said[0].split()[2]) == pytest.approx(factor, rel=0.3)
        assert "calibrate again on samples like the evaluation samples" in said[0]
    assert unlike_ranges(record | {"method": "entropy"}, ranges) == [], "another method's are no measure"
