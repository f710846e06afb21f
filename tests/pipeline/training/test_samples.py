"""Which samples train, and which are held out."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from calibration.data.batches import Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from calibration.errors import DataError
from calibration.precision.placement import PlacementOptions
from pipeline.artifact import OnnxModel
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.tune import Tune
from pipeline.training.options import TrainingAim
from pipeline.training.samples import training_samples


@pytest.fixture(scope="module")
def fixed(place: Path) -> OnnxModel:
    """The network with a batch of four."""
    proto = onnx.load(place / "net.onnx")
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(proto, place / "fixed.onnx")
    return OnnxModel(place / "fixed.onnx")


def samples_of_fixed(place: Path, limit: int) -> Samples:
    source = DataSource(str(place / "data.npz"), limit=limit)
    return open_samples(source, input_specs_from_onnx(place / "fixed.onnx"), Preprocess())


def test_a_fixed_batch_gets_whole_batches_alone(place: Path, fixed: OnnxModel) -> None:
    split = training_samples(samples_of_fixed(place, 62), Tune(held_out=0.3))
    assert (len(split.train), len(split.held_out), len(split.arrays["x"])) == (44, 16, 60)
    assert [split.step_size(asked) for asked in (1, 4, 7, 32)] == [4, 4, 4, 32]
    with pytest.raises(DataError, match="has 7 samples, of which 4 would be held out; at least 8 are needed to train"):
        training_samples(samples_of_fixed(place, 7), Tune())


@pytest.mark.parametrize("batch_size", [2, 6])
def test_a_network_of_a_fixed_batch_trains_on_what_does_not_divide(
    tmp_path: Path, place: Path, fixed: OnnxModel, batch_size: int
) -> None:
    samples = samples_of_fixed(place, 62)
    ranges = Calibrate(method="minmax")(tmp_path, fixed, samples)
    work = tmp_path / "work"
    work.mkdir()
    aim = TrainingAim(fixed, "", "", Path(), PlacementOptions("tensorrt"))
    tuned = Tune(epochs=1, batch_size=batch_size, num_threads=1)(work, fixed, ranges, samples, aim)
    record = tuned.read()
    assert (record["num_train"], record["num_held_out"]) == (44, 16)
    assert record["epochs"][1]["train_loss"] > 0, "something was learned from"
