"""Which operators of a `.tflite` file bring INT8's noise: one that was spoilt comes first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.litert.quantizer import TfliteFormat
from engines.precision import INT8
from pipeline.accuracy.layer_noise import InputNoise, noises_from_file
from pipeline.artifact import TfliteModel
from pipeline.remedies.operator_noise import MeasureOperators
from pipeline.stages.calibrate import Calibrate
from tests.pipeline.stages.tflite_samples import residual, samples_of
from tests.tflite_files import TfliteWriter

pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")


def measured(model: TfliteModel, folder: Path) -> list[InputNoise]:
    """With the widest ranges that the samples have."""
    samples, out = samples_of(folder, 32), folder / f"{model.path.stem}-noise"
    out.mkdir()
    ranges = Calibrate(method="minmax")(out, model, samples)
    return noises_from_file(MeasureOperators(TfliteFormat(INT8))(out, model, ranges, samples).path)


def test_shares_are_of_all_noise_the_noisiest_first(tmp_path: Path) -> None:
    noises = measured(residual(tmp_path), tmp_path)
    assert {noise.name for noise in noises} == {"first", "active", "second", "added", "y"}
    assert all(noise.nodes == (noise.name,) for noise in noises)
    shares = [noise.share for noise in noises]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0


def test_a_batch_that_is_fixed_tells_the_same(tmp_path: Path) -> None:
    alone, four = (measured(residual(tmp_path, batch), tmp_path) for batch in (1, 4))
    assert [noise.name for noise in alone] == [noise.name for noise in four]
    assert [noise.share for noise in alone] == pytest.approx([noise.share for noise in four], rel=1e-3)


def test_weights_that_lose_their_bits_come_first_and_a_softmax_hides_nothing(tmp_path: Path) -> None:
    """One weight of each row is 1000 times the others: those have one level or none; what it reads is always 0."""
    random = np.random.default_rng(0)
    writer = TfliteWriter()
    x, sound, spoilt, scores = (writer.tensor(name, (1, 8)) for name in ("x", "sound", "spoilt", "scores"))
    first, second = random.normal(size=(2, 8, 8)).astype(np.float32)
    first[0], second[:, 0] = 0.0, 1000.0
    w, v = writer.constant("w", first), writer.constant("v", second)
    b = writer.constant("b", np.zeros(8, np.float32))
    writer.operator("FULLY_CONNECTED", [x, w, b], [sound], "FullyConnectedOptions")
    writer.operator("FULLY_CONNECTED", [sound, v, b], [spoilt], "FullyConnectedOptions")
    writer.operator("SOFTMAX", [spoilt], [scores], "SoftmaxOptions")
    noises = measured(TfliteModel(writer.save(tmp_path / "m.tflite", [x], [scores])), tmp_path)
    assert noises[0].name == "spoilt"
    assert noises[0].share > 0.95
    assert {noise.name: noise.share for noise in noises}["scores"] == pytest.approx(0, abs=1e-3)
