"""A `.tflite` file is broken at one place, and the bisection names the operator; sound ones have nothing to name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.data.batches import open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource, InputSpec
from calibration.ranges.ranges import RangeMethod
from engines.backends import litert
from engines.litert.quantizer import TfliteFormat, quantized
from engines.precision import DYNAMIC
from pipeline.accuracy.bisection import TfliteEvidence
from pipeline.accuracy.comparison import Tolerance
from pipeline.artifact import Engine, TfliteModel
from pipeline.errors import ConfigError
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.infer import Infer
from pipeline.stages.ptq import Ptq
from pipeline.stages.validate import Judge, Judged, Validate
from tests.pipeline.stages.tflite_samples import residual, samples_of
from tests.tflite_files import TfliteWriter, save_separable

pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")
Command = Callable[..., Any]


def made(folder: Path, precision: str = "int8") -> TfliteEvidence:
    """The residual network in a precision, by the ranges of the samples that it is compared on."""
    samples, model = samples_of(folder, 64), residual(folder)
    for name in ("ranges", "written"):
        (folder / name).mkdir()
    ranges = Calibrate(method="minmax")(folder / "ranges", model, samples)
    written = Ptq().writing(precision)(folder / "written", model, ranges)
    return TfliteEvidence(model, written, samples, ranges)


def changed(evidence: TfliteEvidence, tensor: str, factor: float) -> TfliteEvidence:
    """The file with the scales of a tensor multiplied."""
    import flatbuffers

    schema = litert.schema()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(evidence.model.path.read_bytes(), 0))
    (one,) = (each for each in model.subgraphs[0].tensors if each.name.decode() == tensor)
    one.quantization.scale = [scale * factor for scale in one.quantization.scale]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = evidence.model.path.with_name("changed.tflite")
    path.write_bytes(bytes(builder.Output()))
    return TfliteEvidence(evidence.fp32, TfliteModel(path), evidence.samples, evidence.ranges)


@pytest.mark.parametrize("method", ["minmax", "entropy", "auto"])
def test_ranges_are_held_to_those_of_the_evaluation_samples(method: RangeMethod, tmp_path: Path) -> None:
    evidence = made(tmp_path)
    ranges = tmp_path / f"ranges-{method}"
    ranges.mkdir()
    same = replace(evidence, ranges=Calibrate(method=method)(ranges, evidence.fp32, samples_of(tmp_path, 48)))
    assert same.unlike_ranges({"indices": range(0, 64, 2)}) == []
    assert replace(same, ranges=None).unlike_ranges({"indices": [0]}) == []
    (sentence,) = replace(same, samples=samples_of(tmp_path, 8, 30.0)).unlike_ranges({"indices": [0]})
    assert sentence.startswith("ranges are 0.0")
    assert f"times those of the evaluation samples by the same method, {method} (median of 6 tensors; '" in sentence


@pytest.mark.parametrize("precision", ["fp16", "dynamic", "int8", "int16x8"])
def test_in_a_sound_file_nothing_stands_out(tmp_path: Path, precision: str) -> None:
    evidence = made(tmp_path, precision)
    assert evidence.scale_mismatches() == []
    found = evidence.bisect(16, "onnxruntime")
    assert [suspect for suspect in found.suspects if suspect.is_clear()] == []
    assert {"first", "second", "y"} <= {suspect.tensor for suspect in found.suspects}
    assert found.num_samples == 16
    assert found.sqnrs_db["y"] > 15
    assert found.suspicion({}) == "no single layer stands out on 16 samples: the loss is spread over many"
    assert found.override() is None


def test_a_scale_that_is_not_its_ranges_is_named_whatever_it_costs(tmp_path: Path) -> None:
    """Of one that is read again: what it holds is another number on both sides of it."""
    evidence = changed(made(tmp_path), "active", 2.0)
    (sentence,) = evidence.scale_mismatches()
    assert sentence.startswith("tensor 'active' is quantized (operator 'active', RELU) with scale 0.")
    assert "2 times the 0." in sentence
    first = evidence.bisect(16, "onnxruntime").suspects[0]
    assert (first.node, first.operator, first.tensor) == ("active", "RELU", "active")
    assert first.is_misfit()
    assert evidence.bisect(16, "onnxruntime").override() is None, "a plan has no lines for it"


@pytest.mark.parametrize(("weight", "operator"), [("first_w", "first"), ("second_w", "second"), ("y_w", "y")])
def test_a_wrong_weight_is_found_at_the_operator_that_reads_it(tmp_path: Path, weight: str, operator: str) -> None:
    evidence = changed(made(tmp_path, "dynamic"), weight, 1.3)
    assert evidence.scale_mismatches() == []
    found = evidence.bisect(16, "onnxruntime")
    assert (found.suspects[0].node, found.suspects[0].operator) == (operator, "FULLY_CONNECTED")
    assert found.suspects[0].is_clear()
    assert found.suspicion({}).startswith(f"the likely layer, on 16 samples: node '{operator}' (FULLY_CONNECTED), ")


def test_what_was_left_in_float_is_left_so_in_what_it_is_compared_with(tmp_path: Path) -> None:
    evidence = made(tmp_path)
    (tmp_path / "excluded").mkdir()
    written = Ptq(exclude=("second",))(tmp_path / "excluded", evidence.fp32, evidence.ranges)
    evidence = replace(evidence, model=written)
    assert evidence.scale_mismatches() == []
    suspects = {suspect.node: suspect for suspect in evidence.bisect(16, "onnxruntime").suspects}
    assert suspects["second"].sqnr_out_db == pytest.approx(suspects["second"].sound_db, abs=1.0)
    assert [suspect for suspect in suspects.values() if suspect.is_clear()] == []


@pytest.mark.parametrize("rounds_all_data", [False, True])
def test_what_is_rounded_in_front_of_depthwise_convolutions_is_rounded_in_both(
    rounds_all_data: bool, tmp_path: Path
) -> None:
    """In a file of others as in ours: what is judged is compared with a file of its own kind."""
    model = TfliteModel(save_separable(tmp_path / "float.tflite"))
    rows = np.random.default_rng(2).uniform(-1, 1, (8, 6, 6, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=rows)
    samples = open_samples(
        DataSource(str(tmp_path / "x.npz")), (InputSpec("x", "float32", (-1, 6, 6, 4)),), Preprocess(), tmp_path
    )
    written = tmp_path / "written.tflite"
    written.write_bytes(quantized(model.path, TfliteFormat(DYNAMIC, rounds_all_data=rounds_all_data), {}))
    evidence = TfliteEvidence(model, TfliteModel(written), samples, None)
    found = {suspect.node: suspect for suspect in evidence.bisect(8, "onnxruntime").suspects}
    assert set(found) == {"depth", "y"}
    assert all(each.sqnr_out_db == pytest.approx(each.sound_db, abs=1e-6) for each in found.values())
    assert [suspect for suspect in found.values() if suspect.is_clear()] == []


def test_two_networks_have_nothing_in_common(tmp_path: Path) -> None:
    evidence = made(tmp_path)
    writer = TfliteWriter()
    q, z = writer.tensor("q", (1, 8)), writer.tensor("z", (1, 8))
    writer.operator("RELU", [q], [z])
    other = TfliteModel(writer.save(tmp_path / "other.tflite", [q], [z]))
    with pytest.raises(ConfigError, match=r"has no tensor of .*; give two files of one network"):
        TfliteEvidence(evidence.fp32, other, evidence.samples, None).bisect(4, "onnxruntime")


def test_a_verdict_that_fails_says_the_operator_last(tmp_path: Path) -> None:
    evidence = changed(made(tmp_path, "dynamic"), "second_w", 1.3)
    for name in ("a", "b", "verdict"):
        (tmp_path / name).mkdir()
    reference = Infer()(tmp_path / "a", Engine(evidence.fp32.path, "litert"), evidence.samples)
    ours = Infer()(tmp_path / "b", Engine(evidence.model.path, "litert"), evidence.samples)
    judged = Judged(Judge("", "", tmp_path), "dynamic", evidence)
    stage = Validate(num_bisected=8).with_tolerance("dynamic", Tolerance(min_cosine=0.999999))
    verdict = stage(tmp_path / "verdict", reference, ours, None, judged).read()
    assert not verdict["passed"]
    assert verdict["failures"][-1].startswith("the likely layer, on 8 samples: node 'second' (FULLY_CONNECTED)")
    assert verdict["suspects"][0]["node"] == "second"
    assert "pipeline.accuracy.tflite_bisection" in stage.modules(reference, ours, None, judged)
    assert "pipeline.accuracy.tflite_bisection" not in stage.modules(reference, ours, None)


def test_the_verb(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = changed(made(tmp_path), "active", 2.0)
    monkeypatch.chdir(tmp_path)
    np.savez("s.npz", x=np.random.default_rng(4).uniform(-1, 1, (16, 8)).astype(np.float32))
    said = command("bisect", evidence.fp32.path, evidence.model.path, "--data", "s.npz", "--ranges", "ranges/ranges")
    assert said.status == 0, said.err
    assert "RELU" in said.out
    assert "the likely layer, on 16 samples: node 'active' (RELU)" in " ".join(said.out.split())
    said = command("bisect", evidence.model.path, evidence.fp32.path, "--data", "s.npz")
    assert said.status == 2
    assert "is in a reduced precision itself, the network in FP32 is expected; name that first, and then" in said.err
    (tmp_path / "m.onnx").write_bytes(b"")
    said = command("bisect", "m.onnx", evidence.model.path, "--data", "s.npz")
    assert said.status == 2
    assert "is a .tflite file and m.onnx is not; give two files of one format" in said.err
