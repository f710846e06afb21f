"""The stage `infer`: an engine's answers to all samples, whatever its batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.data.batches import Samples
from engines import backend
from engines.backends import reference
from pipeline import record
from pipeline.accuracy.comparison import read_outputs
from pipeline.artifact import Engine, OnnxModel, Ranges
from pipeline.engine_runner import SIMULATION, runner_of
from pipeline.errors import EngineError, Unavailable
from pipeline.stages.infer import Infer
from pipeline.stages.quantize import Quantize
from tests.pipeline.stages.networks import ELEMENTWISE, Array, Out, samples_for, save


def fed(samples: Samples) -> Mapping[str, Array]:
    return next(samples.batches(samples.num_samples))


def test_the_answers_are_those_of_the_runner_by_name(net: OnnxModel, out: Out) -> None:
    samples = samples_for(net)
    outputs = read_outputs(Infer(batch_size=3)(out(), Engine(net.path), samples).path)
    with backend("reference").load(net.path, num_threads=0) as runner:
        expected = runner.infer(fed(samples))
    assert list(outputs) == ["scores", "pooled_flat"]
    for name, array in expected.items():
        np.testing.assert_allclose(outputs[name], array, rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]


def test_a_fixed_batch_is_filled_up_and_cut_again(tmp_path: Path, out: Out) -> None:
    model = save(ELEMENTWISE.replace("BATCH", "4"), tmp_path / "net.onnx")
    samples = samples_for(model, 10)
    outputs = read_outputs(Infer(batch_size=32)(out(), Engine(model.path), samples).path)["y"]
    path = save(ELEMENTWISE.replace("BATCH", "N"), tmp_path / "free.onnx").path
    with backend("onnxruntime").load(path, num_threads=1) as runner:
        expected = runner.infer({"x": np.load(samples.source.path)["x"]})["y"]
    np.testing.assert_array_equal(outputs, expected)


@pytest.mark.parametrize(("bounds", "batch_size"), [((4, 8), 32), ((4, 8), 1), ((0, 3), 32)])
def test_an_engines_batch_bounds_are_kept(net: OnnxModel, out: Out, bounds: tuple[int, int], batch_size: int) -> None:
    engine = Engine(net.path, min_batch=bounds[0], max_batch=bounds[1])
    outputs = read_outputs(Infer(batch_size=batch_size)(out(), engine, samples_for(net)).path)
    assert len(outputs["scores"]) == 10


WITHOUT_BATCH = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 5] x) => (float total) { total = ReduceSum <keepdims = 0> (x) }
"""


def test_an_output_without_the_batch_is_refused_by_name(tmp_path: Path, out: Out) -> None:
    model = save(WITHOUT_BATCH, tmp_path / "net.onnx")
    with pytest.raises(EngineError, match=r"output 'total' is \(\) for a batch of 10; its first dimension must be"):
        Infer()(out(), Engine(model.path), samples_for(model))


def test_a_simulated_engine_is_said_to_be_one(net: OnnxModel, ranges: Ranges, out: Out) -> None:
    quantized = Quantize(target="tensorrt")(out(), net, ranges)
    engine = Engine(quantized.path, simulated=True)
    outputs = Infer()(out(), engine, samples_for(net))
    assert SIMULATION in outputs.path.read_text()
    assert record.SIMULATION == SIMULATION, "the report says it in the same words"
    assert engine.digest() != Engine(quantized.path).digest(), "never mistaken for the engine itself"
    with runner_of(engine, 1) as simulation, backend("reference").load(quantized.path, num_threads=1) as right:
        feed = fed(samples_for(net))
        for name, array in right.infer(feed).items():
            np.testing.assert_allclose(simulation.infer(feed)[name], array, rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]


def test_an_engine_that_cannot_run_here_is_unavailable(net: OnnxModel, out: Out, monkeypatch: Any) -> None:
    monkeypatch.setattr(reference, "why_not_run", lambda: "reference: is asleep; wake it")
    with pytest.raises(Unavailable, match="is asleep; wake it"):
        Infer()(out(), Engine(net.path, "reference"), samples_for(net))
