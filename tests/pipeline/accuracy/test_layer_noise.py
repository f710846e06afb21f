"""Which layers bring the noise: a layer that was spoilt comes first, with the nodes without which it is not INT8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.data.batches import Samples, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from calibration.precision.placement import PlacementOptions
from pipeline.accuracy.layer_noise import InputNoise, MeasureLayers, noises_from_file, noisiest_nodes
from pipeline.artifact import OnnxModel, Ranges
from pipeline.stages.calibrate import Calibrate


def measured(target: Any, path: Path, samples: Samples, out: Path) -> list[InputNoise]:
    """With the widest ranges that the samples have."""
    ranges, noise = out / "ranges-of-all", out / "noise"
    ranges.mkdir()
    noise.mkdir()
    found: Ranges = Calibrate(method="minmax")(ranges, OnnxModel(path), samples)
    stage = MeasureLayers(PlacementOptions(target=target, small_products="int8"))
    return noises_from_file(stage(noise, OnnxModel(path), found, samples).path)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_shares_are_of_all_noise_the_noisiest_first(
    target: Any, fp32: OnnxModel, samples: Samples, tmp_path: Path
) -> None:
    noises = measured(target, fp32.path, samples, tmp_path)
    assert {noise.name for noise in noises} >= {"image", "flat", "weight of Conv_convolved", "weight of Gemm_scores"}
    shares = [noise.share for noise in noises]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    nodes = {noise.name: set(noise.nodes) for noise in noises}
    assert nodes["image"] == nodes["weight of Conv_convolved"] == {"Conv_convolved"}
    assert nodes["flat"] == {"Gemm_scores"}
    if target == "onnxruntime":  # What a convolution makes is rounded for its integer kernel.
        assert nodes["active"] == {"Conv_convolved", "GlobalAveragePool_pooled"}


def test_a_weight_that_int8_cannot_hold_comes_first(fp32: OnnxModel, samples: Samples, tmp_path: Path) -> None:
    model = onnx.load(fp32.path)
    kernel = next(tensor for tensor in model.graph.initializer if tensor.name == "kernel")
    array = numpy_helper.to_array(kernel).copy()
    array[:, 3] *= 200
    kernel.CopyFrom(numpy_helper.from_array(array, "kernel"))
    onnx.save(model, tmp_path / "spoilt.onnx")
    images = np.random.default_rng(9).normal(size=(32, 4, 8, 8)).astype(np.float32)
    images[:, 3] = 0
    np.savez(tmp_path / "without.npz", image=images)
    without = open_samples(DataSource(str(tmp_path / "without.npz")), samples.specs, Preprocess())
    noises = measured("tensorrt", tmp_path / "spoilt.onnx", without, tmp_path)
    assert noises[0].name == "weight of Conv_convolved"
    assert noises[0].share > 0.9
    assert noisiest_nodes(noises, 0.5) == ("Conv_convolved",)


def test_nodes_are_taken_until_what_vanishes_with_them_is_enough() -> None:
    noises = [
        InputNoise("always there", (), 0.4),
        InputNoise("a", ("reader", "maker"), 0.3),
        InputNoise("weight of maker", ("maker",), 0.2),
        InputNoise("b", ("other",), 0.1),
    ]
    assert noisiest_nodes(noises, 0.0) == ()
    assert noisiest_nodes(noises, 0.5) == ("reader", "maker")
    assert noisiest_nodes(noises, 0.55) == ("reader", "maker", "other")
    assert noisiest_nodes(noises, 0.9) == ("reader", "maker", "other")
