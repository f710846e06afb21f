"""The stage `calibrate`: ranges of every value once, whatever the batch, and what it refuses."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from calibration.data.batches import Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from calibration.histogram.histogram import histogram_from_values
from calibration.ranges import checkpoint
from calibration.ranges.ranges_file import histograms_from_folder, ranges_from_folder
from engines.backends import onnxruntime
from pipeline.artifact import OnnxModel
from pipeline.errors import DataError, EngineError, ModelError
from pipeline.stages.calibrate import Calibrate, check_float
from tests.pipeline.stages.networks import ELEMENTWISE, Out, samples_for, save


def test_the_ranges_do_not_depend_on_the_batch_size(tmp_path: Path, out: Out) -> None:
    model = save(ELEMENTWISE.replace("BATCH", "N"), tmp_path / "net.onnx")
    samples = samples_for(model, 11)
    files = [Calibrate(batch_size=size)(out(), model, samples).path / "ranges.json" for size in (1, 4, 11, 64)]
    assert len({file.read_bytes() for file in files}) == 1


def test_a_fixed_batch_with_a_remainder_counts_every_sample_once(tmp_path: Path, out: Out) -> None:
    free = save(ELEMENTWISE.replace("BATCH", "N"), tmp_path / "free.onnx")
    fixed = save(ELEMENTWISE.replace("BATCH", "4"), tmp_path / "fixed.onnx")
    found = [ranges_from_folder(Calibrate()(out(), model, samples_for(model, 10)).path) for model in (free, fixed)]
    assert found[0].tensors == found[1].tensors
    assert found[1].tensors["y"].num_values == 50


SCALAR = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[4, 5] x) => (float[4, 5] y) { largest = ReduceMax <keepdims = 0> (x) y = Div (x, largest) }
"""


def test_what_a_whole_batch_shares_is_found_of_each_sample_that_is_left_over(tmp_path: Path, out: Out) -> None:
    model = save(SCALAR, tmp_path / "net.onnx")
    found = ranges_from_folder(Calibrate()(out(), model, samples_for(model, 6)).path)
    assert found.tensors["largest"].num_values == 3


BATCH_IN_ANOTHER_AXIS = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[4, 6, 5] x) => (float[24, 5] y, float[6, 4, 5] z, float[4, 6, 5] x)
  <int64[2] rows = {-1, 5}> { y = Reshape (x, rows) t = Transpose <perm = [1, 0, 2]> (x) z = Exp (t) }
"""


@pytest.mark.parametrize("runner", ["onnxruntime", "reference"])
@pytest.mark.parametrize("num_samples", [4, 10, 11])
def test_a_fixed_batch_counts_every_value_once_whatever_axis_it_is_in(
    tmp_path: Path, out: Out, num_samples: int, runner: Literal["onnxruntime", "reference"]
) -> None:
    model = save(BATCH_IN_ANOTHER_AXIS, tmp_path / "net.onnx")
    samples = samples_for(model, num_samples)
    folder = Calibrate(watch="all", runner=runner)(out(), model, samples).path
    histograms = histograms_from_folder(folder)
    x = np.load(samples.source.path)["x"]
    for name, values in {"x": x, "y": x, "t": x, "z": np.exp(x)}.items():
        expected = histogram_from_values(values, name)
        assert histograms[name].num_values == values.size
        assert np.abs(histograms[name].counts - expected.counts).sum() <= 2  # Exp may round otherwise.


HALF = """<ir_version: 8, opset_import: ["" : 17]>
net (TYPE[N, 5] x) => (TYPE[N, 3] y) { a = Cast <to = 10> (x) b = MatMul (a, w) y = Cast <to = CODE> (b) }"""


MASKED = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 4, 8] x, bool[N, 4, 4] mask) => (float[N, 4, 8] y)
<float ninf = {-inf}, float zero = {0}>
{
  turned = Transpose <perm = [0, 2, 1]> (x)
  scores = MatMul (x, turned)
  masked = Where (mask, scores, ninf)
  p = Softmax (masked)
  none = IsNaN (p)
  q = Where (none, zero, p)
  y = MatMul (q, x)
}
"""


@pytest.mark.parametrize("watch", ["placements", "all"])
def test_nan_that_the_model_replaces_is_left_out(tmp_path: Path, out: Out, watch: Literal["placements", "all"]) -> None:
    """As PyTorch's exporter writes attention: a row that is all masked is NaN behind the Softmax, and then 0."""
    random = np.random.default_rng(0)
    mask = random.random((6, 4, 4)) < 0.5
    mask[:, 1], mask[:, 2] = False, True
    np.savez(tmp_path / "d.npz", x=random.normal(size=(6, 4, 8)).astype(np.float32), mask=mask)
    path = tmp_path / "masked.onnx"
    onnx.save(onnx.parser.parse_model(MASKED), path)
    samples = open_samples(DataSource(str(tmp_path / "d.npz")), input_specs_from_onnx(path), Preprocess())
    stage = Calibrate(method="minmax", watch=watch)
    tensors = ranges_from_folder(stage(out(), OnnxModel(path), samples).path).tensors
    assert tensors["q"].num_infinite == 0
    if watch == "all":
        num_empty = int((~mask.any(axis=2)).sum())
        assert tensors["p"].num_infinite == 4 * num_empty
    left = onnx.parser.parse_model(MASKED.replace("q = Where (none, zero, p)", "q = Where (none, p, p)"))
    onnx.save(left, path)
    with pytest.raises(DataError, match=r"tensor '[qy]' on samples 0 to 0: .* values are NaN"):
        stage(out(), OnnxModel(path), samples)


@pytest.mark.parametrize(("dtype", "code"), [("float", "1"), ("float16", "10")])
def test_a_model_in_fp16_is_told(tmp_path: Path, out: Out, dtype: str, code: str) -> None:
    model = onnx.parser.parse_model(HALF.replace("TYPE", dtype).replace("CODE", code))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((5, 3), np.float16), "w"))
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "x.npz", x=np.ones((20, 5), np.float32 if dtype == "float" else np.float16))
    opened = OnnxModel(tmp_path / "net.onnx")
    samples = open_samples(DataSource(str(tmp_path / "x.npz")), input_specs_from_onnx(opened.path), Preprocess())
    if dtype == "float16":
        with pytest.raises(
            ModelError, match=r"net\.onnx: no FP32 tensor depends on its inputs, .*; give the FP32 model"
        ):
            Calibrate()(out(), opened, samples)
    else:
        notes = Calibrate()(out(), opened, samples).notes()
        assert notes[0] == "1 weights, the first 'w', are in half precision; INT8 is made of FP32: give the FP32 model"


def test_an_error_names_the_users_model(tmp_path: Path, out: Out) -> None:
    model = save(
        """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 5] x) => (float[M, 7] y) <int64[2] shape = {-1, 7}> { y = Reshape (x, shape) }""",
        tmp_path / "net.onnx",
    )
    with pytest.raises(EngineError, match=re.escape(f"{model.path}: ONNX Runtime failed (")):
        Calibrate()(out(), model, samples_for(model))


def test_the_reference_runner_finds_the_same_ranges(net: OnnxModel, out: Out) -> None:
    samples = samples_for(net)
    everything = Calibrate(method="minmax", watch="all")
    runners = [everything, replace(everything, runner="reference")]
    ours, theirs = (ranges_from_folder(stage(out(), net, samples).path).tensors for stage in runners)
    assert set(ours) == set(theirs) >= {"image", "active", "pooled_flat"}
    for name, tensor in ours.items():
        assert tensor.amax == pytest.approx(theirs[name].amax, rel=1e-5)
        assert tensor.num_values == theirs[name].num_values


def test_the_ranges_say_what_they_were_found_on(net: OnnxModel, out: Out) -> None:
    samples = samples_for(net)
    found = ranges_from_folder(Calibrate(method="percentile", percentile=99.0)(out(), net, samples).path)
    assert (found.method, found.percentile) == ("percentile", 99.0)
    assert found.origin.model_digest == net.digest()
    assert found.origin.data_digest == samples.digest()
    assert found.origin.num_samples == 10


def test_calibration_leaves_no_watched_model_behind(net: OnnxModel, out: Out) -> None:
    folder = out()
    Calibrate()(folder, net, samples_for(net))
    assert {path.name for path in folder.iterdir()} == {"ranges", "notes.json"}


def test_no_samples_are_an_error(net: OnnxModel) -> None:
    with pytest.raises(DataError, match=r"net0\.npz"):
        samples_for(net, 0)


def test_an_engine_that_cannot_take_the_samples_is_said(net: OnnxModel, out: Out, tmp_path: Path) -> None:
    other = save(ELEMENTWISE.replace("BATCH", "N"), tmp_path / "other.onnx")
    with pytest.raises(EngineError, match="'x'"):
        Calibrate()(out(), net, samples_for(other))


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ("q = QuantizeLinear (x, s) y = DequantizeLinear (q, s)", "has Q/DQ nodes already"),
        ("q, s1, z = DynamicQuantizeLinear (x) y = MatMulInteger (q, w, z)", "multiplies integers already"),
        ("q, s1, z = DynamicQuantizeLinear (x) h = MatMulInteger (q, w, z) y = MatMul (x, v)", ""),
        ("y = MatMul (x, v)", ""),
    ],
)
def test_what_is_int8_already(tmp_path: Path, nodes: str, words: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 17]> net (float[N, 1] x) => (float[N, 1] y)
    <float s = {{0.1}}, int8[1, 1] w = {{1}}, float[1, 1] v = {{1}}> {{ {nodes} }}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    if words:
        with pytest.raises(ModelError, match=rf"net\.onnx: {words}, .*; give the FP32 model"):
            check_float(OnnxModel(tmp_path / "net.onnx"))
    else:
        check_float(OnnxModel(tmp_path / "net.onnx"))


def shuffled(samples: Samples, seed: int, folder: Path) -> Samples:
    """The same samples in another order."""
    with np.load(samples.source.path) as stored:
        order = np.random.default_rng(seed).permutation(samples.num_samples)
        np.savez(folder / f"shuffled{seed}.npz", **{name: stored[name][order] for name in stored.files})
    return replace(samples, reader=_opened(folder / f"shuffled{seed}.npz", samples).reader)


def _opened(path: Path, samples: Samples) -> Samples:
    return open_samples(DataSource(str(path)), samples.specs, Preprocess())


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("method", ["auto", "mse"])
def test_with_a_stop_neither_order_nor_batches_nor_workers_show(
    net: OnnxModel, out: Out, tmp_path: Path, method: Literal["auto", "mse"]
) -> None:
    samples = samples_for(net, 256)
    stage = Calibrate(stop=0.5, method=method, num_threads=1)
    whole = out()
    ours = content(stage(whole, net, samples).path)
    assert json.loads(ours["stop.json"])["num_used"] < 256
    assert json.loads(ours["ranges.json"])["num_samples"] == json.loads(ours["stop.json"])["num_used"]
    assert json.loads((whole / "notes.json").read_text())[-1].startswith("calibration stopped after ")
    for seed, other in enumerate((stage, replace(stage, batch_size=3), replace(stage, num_workers=3))):
        assert content(other(out(), net, shuffled(samples, seed, tmp_path)).path) == ours


def test_a_stop_that_is_not_reached_gives_what_all_samples_give(net: OnnxModel, out: Out, tmp_path: Path) -> None:
    samples = samples_for(net, 256)
    stage = Calibrate(stop=1e-6, method="mse", num_threads=1)
    ours = stage(out(), net, samples).path
    expected = replace(stage, stop=0.0)(out(), net, samples).path
    assert json.loads((ours / "stop.json").read_text())["num_used"] == 256
    assert (ours / "histograms.npz").read_bytes() == (expected / "histograms.npz").read_bytes()
    amaxes = [[each.amax for each in ranges_from_folder(folder).tensors.values()] for folder in (ours, expected)]
    assert amaxes[0] == amaxes[1]


def test_with_a_stop_the_fixed_batch_of_a_model_is_kept_together(tmp_path: Path, out: Out) -> None:
    fixed = save(ELEMENTWISE.replace("BATCH", "4"), tmp_path / "fixed.onnx")
    samples = samples_for(fixed, 301)
    ours = [
        content(Calibrate(stop=0.9, method="mse")(out(), fixed, each).path)
        for each in (samples, shuffled(samples, 1, tmp_path))
    ]
    assert ours[0] == ours[1]
    assert json.loads(ours[0]["stop.json"])["num_used"] == 64


class Killed(BaseException):
    """As Ctrl-C."""


@pytest.mark.parametrize("stop", [0.0, 0.5])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_interrupted_calibration_goes_on_to_the_same_bytes(
    net: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: float, num_workers: int
) -> None:
    samples = samples_for(net, 80)
    stage = Calibrate(stop=stop, num_threads=1, num_workers=num_workers)
    (tmp_path / "whole").mkdir()
    expected = content(stage(tmp_path / "whole", net, samples).path)
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "TIMES_ITS_OWN", 0)
    ran, infer = [], onnxruntime._ValuesRunner.infer

    def counted(self: Any, feed: Any) -> Any:
        ran.append(1)
        if len(ran) in (10, 40):
            raise Killed
        return infer(self, feed)

    monkeypatch.setattr(onnxruntime._ValuesRunner, "infer", counted)
    for attempt in range(2):
        (tmp_path / f"out{attempt}").mkdir()
        with pytest.raises(Killed):
            stage(tmp_path / f"out{attempt}", net, samples)
        assert len(list(tmp_path.glob(".calibrate-*"))) == 1
    (tmp_path / "last").mkdir()
    assert content(stage(tmp_path / "last", net, samples).path) == expected
    num_used = json.loads(expected["ranges.json"])["num_samples"]
    assert len(ran) <= num_used + 2 * num_workers, "no sample that was counted is run again"
    assert not list(tmp_path.glob(".calibrate-*"))


KILLED = """
import os, signal, sys
from pathlib import Path
from calibration.ranges import checkpoint
from engines.backends import onnxruntime
from pipeline.__main__ import main
checkpoint.SECONDS = checkpoint.TIMES_ITS_OWN = 0
ran, infer = [], onnxruntime._ValuesRunner.infer
def counted(self, feed):
    ran.append(1)
    if len(ran) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return infer(self, feed)
onnxruntime._ValuesRunner.infer = counted
main()
"""


def test_kill_9_leaves_what_the_command_goes_on_from(net: OnnxModel, tmp_path: Path) -> None:
    samples_for(net, 40)
    command = ["calibrate", str(net.path), "--data", str(tmp_path / "net40.npz"), "--num-threads", "1"]
    ours = [*command, "-o", str(tmp_path / "ours")]
    assert subprocess.run([sys.executable, "-c", KILLED, *ours], capture_output=True).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".calibrate-*"))) == 1
    for target in ("ours", "whole"):
        done = subprocess.run([sys.executable, "-m", "pipeline", "-v", *command, "-o", str(tmp_path / target)],
                              capture_output=True, text=True, check=True)  # fmt: skip
        assert ("goes on after 19 samples" in done.stderr) == (target == "ours")
    assert content(tmp_path / "ours") == content(tmp_path / "whole")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_another_calibration_does_not_go_on_from_it(
    net: OnnxModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "TIMES_ITS_OWN", 0)
    samples, stage, infer = samples_for(net, 20), Calibrate(), onnxruntime._ValuesRunner.infer
    ran: list[int] = []

    def counted(self: Any, feed: Any) -> Any:
        ran.append(1)
        if len(ran) == 15:
            raise Killed
        return infer(self, feed)

    monkeypatch.setattr(onnxruntime._ValuesRunner, "infer", counted)
    (tmp_path / "first").mkdir()
    with pytest.raises(Killed):
        stage(tmp_path / "first", net, samples)
    for other, data in ((replace(stage, method="mse"), samples), (stage, samples_for(net, 21))):
        (work := tmp_path / f"{len(ran)}").mkdir()
        before = len(ran)
        other(work, net, data)
        assert len(ran) - before == data.num_samples


RESIDUAL = """<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 16, 9, 9] x) => (float[N, 16, 9, 9] y)
<float[16, 16, 3, 3] v, float[16, 16, 3, 3] w, float[16, 16, 1, 1] u>
{
    c = Conv<pads = [1, 1, 1, 1]>(x, v) a = Relu(c) d = Conv<pads = [1, 1, 1, 1]>(a, w) e = Add(d, a) b = Relu(e)
    y = Conv(b, u)
}"""


@pytest.mark.parametrize("stop", [0.0, 0.5])
def test_means_of_channels_that_were_met_on_the_way_are_met_after_an_interruption_too(
    tmp_path: Path, out: Out, monkeypatch: pytest.MonkeyPatch, stop: float
) -> None:
    model = save(RESIDUAL, tmp_path / "residual.onnx", v=(16, 16, 3, 3), w=(16, 16, 3, 3), u=(16, 16, 1, 1))
    samples, stage = samples_for(model, 128), Calibrate(method="entropy", stop=stop, num_threads=1)
    expected = content(stage(out(), model, samples).path)
    means = {name: each["channel_means"] for name, each in json.loads(expected["ranges.json"])["tensors"].items()}
    assert {name for name, values in means.items() if len(values) == 16} == {"x", "a", "b"}
    monkeypatch.setattr(checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "TIMES_ITS_OWN", 0)
    ran, infer = [], onnxruntime._ValuesRunner.infer

    def counted(self: Any, feed: Any) -> Any:
        ran.append(1)
        if len(ran) == 60:
            raise Killed
        return infer(self, feed)

    monkeypatch.setattr(onnxruntime._ValuesRunner, "infer", counted)
    with pytest.raises(Killed):
        stage(out(), model, samples)
    assert content(stage(out(), model, samples).path) == expected
    num_used = json.loads(expected["ranges.json"])["num_samples"]
    assert num_used < len(ran) - 1 <= num_used + 2 + 16, "those of them that were counted before are run once more"
