"""The stage `infer`: an engine's answers to all samples, whatever its batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from calibration.data.batches import DataSource, Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from engines import backend
from engines.backends import reference
from engines.contract import Runner
from pipeline import record
from pipeline.accuracy.comparison import SavedOutputs, Tolerance, compare, read_outputs, write_outputs
from pipeline.artifact import Engine, OnnxModel, Ranges
from pipeline.engine_runner import SIMULATION, runner_of
from pipeline.errors import EngineError, Unavailable
from pipeline.stages import infer
from pipeline.stages.infer import Infer
from pipeline.stages.quantize import Quantize
from pipeline.stages.tolerate import Rounding, Tolerate
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


class Counting:
    """A runner that notes how many samples it is given at once."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self.sizes = runner, list[int]()

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        self.sizes.append(len(next(iter(feed.values()))))
        return self._runner.infer(feed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


def counted(net: OnnxModel, num: int, engine: Engine | None = None) -> tuple[list[int], list[dict[str, Array]]]:
    """How many samples were run at once, and the answers."""
    with backend("onnxruntime").load(net.path, num_threads=1) as runner:
        counting = Counting(runner)
        runs = cast("Runner", counting)
        batches = infer.answers(runs, engine or Engine(net.path), samples_for(net, num), 0, lambda _: None)
    return counting.sizes, batches


@pytest.mark.parametrize(
    ("kib", "sizes"),
    [(1, [1, 32, 8]), (96, [1, 32, 8]), (97, [1, 16, 16, 8]), (700, [1, *[4] * 10]), (4096, [1] * 40)],
)
def test_large_samples_are_run_few_at_once(
    net: OnnxModel, monkeypatch: pytest.MonkeyPatch, kib: int, sizes: list[int]
) -> None:
    """By their bytes: of a network's inputs 3 MiB are run at once; what is compared later stays batches of 32.

    A first sample is run by itself, to see whose its rows are.
    """
    _, expected = counted(net, 40)
    size = sum(array.nbytes for array in fed(samples_for(net, 1)).values())
    monkeypatch.setattr(infer, "MOST_BYTES", infer.MOST_BYTES * size // (kib << 10))
    run, batches = counted(net, 40)
    assert run == sizes
    assert [len(batch["scores"]) for batch in batches] == [32, 8]
    for batch, same in zip(batches, expected, strict=True):
        np.testing.assert_allclose(batch["scores"], same["scores"], rtol=1e-5)


def test_what_an_engine_takes_at_most_is_no_part_of_what_is_compared(net: OnnxModel) -> None:
    run, batches = counted(net, 40, Engine(net.path, max_batch=16))
    assert run[1:] == [16, 16, 8]
    assert [len(batch["scores"]) for batch in batches] == [32, 8]


def test_a_model_of_one_sample_is_compared_in_batches_too(tmp_path: Path) -> None:
    """A cosine of one number, such as whether there is a face, would be its sign."""
    model = save(ELEMENTWISE.replace("BATCH", "1"), tmp_path / "one.onnx")
    run, batches = counted(model, 40)
    assert set(run) == {1}
    assert [len(batch["y"]) for batch in batches] == [32, 8]


WITHOUT_BATCH = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 5] x) => (float total) { total = ReduceSum <keepdims = 0> (x) }
"""


def test_an_output_without_the_batch_is_each_samples_own(tmp_path: Path, out: Out) -> None:
    model = save(WITHOUT_BATCH, tmp_path / "net.onnx")
    samples = samples_for(model)
    total = read_outputs(Infer()(out(), Engine(model.path), samples).path)["total"].astype(np.float64)
    np.testing.assert_allclose(total, np.load(samples.source.path)["x"].sum(axis=1), rtol=1e-5)


def test_a_fixed_batch_of_several_and_an_output_without_it_is_refused(tmp_path: Path, out: Out) -> None:
    model = save(WITHOUT_BATCH.replace("N, 5", "4, 5"), tmp_path / "net.onnx")
    with pytest.raises(EngineError, match=r"output 'total' is \(\) for a batch of 4, so it cannot be told"):
        Infer()(out(), Engine(model.path), samples_for(model))


ROWS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1, 5] x) => (int64[K, 2] picked, float[3, 1] late)
<int64[2] turn = {1, 0}, int64[1] three = {3}, int64[1] first = {1}, int64[2] shape = {3, 1}>
{
  above = Relu (x)  indices = NonZero (above)  picked = Transpose <perm = [1, 0]> (indices)
  zero = Sub (x, x)  sum = ReduceSum (zero)  late = Expand (sum, shape)
}
"""


def test_outputs_whose_rows_differ_by_sample(tmp_path: Path, out: Out) -> None:
    model = save(ROWS, tmp_path / "net.onnx")
    samples = samples_for(model)
    x = np.load(samples.source.path)["x"]
    answer = Infer()(out(), Engine(model.path), samples)
    outputs = read_outputs(answer.path)
    assert [len(rows) for rows in outputs["picked"]] == (x > 0).sum(axis=1).tolist()
    assert outputs["picked"].dtype.kind == "O"
    assert (outputs["picked"].shape, outputs["late"].shape) == ((10,), (10, 3, 1))
    same = compare(SavedOutputs(answer.path), SavedOutputs(answer.path), Tolerance(atol=0.0))
    assert {name: (each.passed, each.max_abs) for name, each in same.items()} == {
        "picked": (True, 0.0), "late": (True, 0.0),
    }  # fmt: skip
    rows = [{"picked": outputs["picked"][row][None], "late": outputs["late"][row][None]} for row in range(10)]
    rows[3]["picked"] = np.zeros((1, 0, 2), np.int64)
    write_outputs(tmp_path / "other.json", "onnxruntime", rows)
    other = SavedOutputs(tmp_path / "other.json")
    (failure,) = compare(SavedOutputs(answer.path), other, Tolerance(atol=99.0))["picked"].failures
    assert failure.startswith("output 'picked' has another shape than FP32's on 1 of 10 samples, such as (0, 2) inst")
    assert failure.endswith("on sample 3")


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


def test_rows_that_are_as_many_as_samples_by_chance_are_not_the_batch(tmp_path: Path, out: Out) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 1] x) => (int64[K, 2] picked, float[3, 1] fixed) <float[3, 1] three = {1, 2, 3}>
    {
      above = Relu (x)  indices = NonZero (above)  picked = Transpose <perm = [1, 0]> (indices)
      fixed = Identity (three)
    }
    """
    model = save(text, tmp_path / "net.onnx")
    x = np.array([[1], [-1], [1], [-1], [1], [1]], np.float32)
    np.savez(tmp_path / "x.npz", x=np.repeat(x, 5, axis=0)[:6])
    samples = open_samples(DataSource(str(tmp_path / "x.npz")), input_specs_from_onnx(model.path), Preprocess())
    for batch_size in (1, 3, 6):
        outputs = read_outputs(Infer(batch_size=batch_size)(out(), Engine(model.path), samples).path)
        assert outputs["fixed"].shape == (6, 3, 1)
        assert [len(rows) for rows in outputs["picked"]] == [1, 1, 1, 1, 1, 0]


def test_a_scalar_is_drawn_and_judged(tmp_path: Path, out: Out) -> None:
    model = save(WITHOUT_BATCH, tmp_path / "net.onnx")
    samples = samples_for(model, 70)
    bounds = Tolerate(num_samples=8)(out(), model, samples, Rounding("fp16", "none")).read()["outputs"]
    assert bounds["total"]["min_sqnr_db"] > 40
