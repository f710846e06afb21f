"""An engine fails, and the verdict says the layer; or that its model is right, and the engine is not."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.data.batches import Samples, input_specs_from_onnx, open_samples
from calibration.data.preprocess import Preprocess
from calibration.data.source import DataSource
from engines.backends import onnxruntime
from pipeline.accuracy import bisection
from pipeline.accuracy.bisection import NUM_KEPT, Evidence, run_bisection
from pipeline.accuracy.comparison import Tolerance, read_outputs
from pipeline.artifact import Engine, OnnxModel, Ranges
from pipeline.engine_runner import few, num_values_of_sample
from pipeline.flow import run
from pipeline.plan import read_plan, tomllib
from pipeline.stages.calibrate import Calibrate
from pipeline.stages.infer import Infer
from pipeline.stages.quantize import Quantize
from pipeline.stages.validate import Judge, Judged, Validate
from pipeline.store import Store

Command = Callable[..., Any]
STRICT = Tolerance(min_cosine=0.999999)


def scaled(model: OnnxModel, name: str, factor: float, target: Path) -> OnnxModel:
    """The same model with a constant multiplied."""
    proto = onnx.load(model.path)
    (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    onnx.save(proto, target)
    return OnnxModel(target)


@pytest.fixture
def samples(tiny: Path) -> Samples:
    specs = input_specs_from_onnx(tiny / "tiny.onnx")
    return open_samples(DataSource("data.npz", labels="y"), specs, Preprocess())


@pytest.fixture
def evidence(tiny: Path, samples: Samples) -> Evidence:
    """The tiny network in FP32 and, sound, in INT8, with its ranges."""
    fp32 = OnnxModel(tiny / "tiny.onnx")
    for name in ("calibrated", "quantized"):
        (tiny / name).mkdir()
    ranges = Calibrate(method="minmax")(tiny / "calibrated", fp32, samples)
    model = Quantize(target="onnxruntime")(tiny / "quantized", fp32, ranges)
    return Evidence(fp32, model, samples, ranges)


def model_of(evidence: Evidence) -> OnnxModel:
    assert evidence.model is not None
    return evidence.model


def with_model(evidence: Evidence, model: OnnxModel) -> Evidence:
    return Evidence(evidence.fp32, model, evidence.samples, evidence.ranges)


def test_a_sound_model_has_nothing_to_name(evidence: Evidence) -> None:
    found = run_bisection(evidence, 8, "onnxruntime")
    assert found.num_samples == 8
    assert found.suspicion({}) == "no single layer stands out on 8 samples: the loss is spread over many"
    assert evidence.scale_mismatches() == []
    assert found.sqnrs_db["scores"] > 20


@pytest.mark.parametrize("runner", ["onnxruntime", "reference"])
def test_a_wrong_scale_is_named(evidence: Evidence, tiny: Path, runner: Any) -> None:
    bad = with_model(evidence, scaled(model_of(evidence), "active_scale", 0.25, tiny / "bad.onnx"))
    found = run_bisection(bad, 0, runner)
    assert found.num_samples == 24, "0: all"
    assert found.suspicion({}).startswith(
        "the likely layer, on 24 samples: node 'active_DequantizeLinear' (QuantizeLinear and DequantizeLinear), the "
        "rounding of 'active': SQNR "
    )
    (row, *_) = found.rows()
    assert (row["tensor"], row["scale"]["fits"]) == ("active", False)
    json.dumps(found.rows(99), allow_nan=False)
    (said,) = bad.scale_mismatches()
    assert said.startswith("tensor 'active' is quantized (node 'active_DequantizeLinear') with scale ")


def test_an_engine_that_is_not_its_model(evidence: Evidence) -> None:
    result = run_bisection(evidence, 8, "onnxruntime")
    said = result.suspicion({"scores": 3.0})
    assert "and the engine 3.0 dB: the engine does not compute what its model says" in said
    optimized = result.suspicion({"scores": 3.0}, "onnxruntime")
    assert "and the engine 3.0 dB: ONNX Runtime's graph optimizations on this CPU compute it otherwise" in optimized
    assert "does not compute what" not in optimized


def test_a_fixed_batch(tiny: Path) -> None:
    """The batch of the model is 5: samples are filled up, and what was filled up does not count."""
    proto = onnx.load(tiny / "tiny.onnx")
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 5
    onnx.save(proto, tiny / "fixed.onnx")
    ratios = []
    for name in ("tiny", "fixed"):
        fp32 = OnnxModel(tiny / f"{name}.onnx")
        samples = open_samples(DataSource("data.npz"), input_specs_from_onnx(fp32.path), Preprocess())
        (tiny / f"of_{name}").mkdir()
        ranges = Calibrate(method="minmax")(tiny / f"of_{name}", fp32, samples)
        model = Quantize(target="onnxruntime")(tiny / f"of_{name}", fp32, ranges)
        ratios.append(run_bisection(Evidence(fp32, model, samples, None), 8, "onnxruntime").sqnrs_db["scores"])
    assert ratios[0] == pytest.approx(ratios[1], abs=0.5)


def test_samples_are_spread_evenly_and_come_one_by_one(samples: Samples) -> None:
    every = [batch["image"] for batch in samples.batches(1)]
    found = [feed["image"] for feed in few(samples, 6)]
    assert [array.shape[0] for array in found] == [1] * 6
    assert all(np.array_equal(got, every[4 * index]) for index, got in enumerate(found))


def judged(tiny: Path, evidence: Evidence, samples: Samples, stage: Validate) -> dict[str, Any]:
    """The verdict on the evidence's model, simulated."""
    for name in ("a", "b"):
        (tiny / name).mkdir()
    theirs = Infer()(tiny / "a", Engine(evidence.fp32.path), samples)
    ours = Infer()(tiny / "b", Engine(model_of(evidence).path, simulated=True), samples)
    return stage(tiny, theirs, ours, samples, Judged(Judge("", "", tiny), "int8", evidence)).read()


def test_a_verdict_that_fails_says_the_layer_last(evidence: Evidence, tiny: Path, samples: Samples) -> None:
    bad = with_model(evidence, scaled(model_of(evidence), "active_scale", 0.25, tiny / "bad.onnx"))
    found = judged(tiny, bad, samples, Validate().with_tolerance("int8", STRICT))
    first, scale, layer = found["failures"]
    assert first.startswith("output 'scores' has cosine 0.")
    assert " it is " in first
    assert scale.startswith("tensor 'active' is quantized")
    assert layer.startswith("the likely layer, on 24 samples: node 'active_DequantizeLinear'")
    assert len(found["suspects"]) == NUM_KEPT


def test_a_wrong_scale_fails_though_the_outputs_pass(evidence: Evidence, tiny: Path, samples: Samples) -> None:
    bad = with_model(evidence, scaled(model_of(evidence), "active_scale", 1.05, tiny / "bad.onnx"))
    found = judged(tiny, bad, samples, Validate())
    assert found["passed"] is False
    assert found["failures"][0].startswith("tensor 'active' is quantized")


def test_of_large_samples_fewer_are_searched(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evidence.affordable(32) == 32
    monkeypatch.setattr(bisection, "MOST_VALUES", 6 * num_values_of_sample(evidence.fp32.path, evidence.samples))
    assert (evidence.affordable(32), evidence.affordable(5)) == (6, 5)
    monkeypatch.setattr(bisection, "MOST_VALUES", 1)
    assert (evidence.affordable(32), evidence.affordable(2)) == (4, 2), "four tell more than one"


def test_nothing_is_searched_where_all_passes_or_nothing_is_asked(
    evidence: Evidence, tiny: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judged(tiny, evidence, samples, Validate())["failures"] == []
    bad = with_model(evidence, scaled(model_of(evidence), "active_scale", 0.25, tiny / "bad.onnx"))
    for name in ("a", "b"):
        (tiny / name).rename(tiny / f"old_{name}")
    assert len(judged(tiny, bad, samples, Validate(num_bisected=0).with_tolerance("int8", STRICT))["failures"]) == 2
    for name in ("a", "b"):
        (tiny / name).rename(tiny / f"older_{name}")
    real = onnxruntime.why_not_run
    calls = iter([True, True, False])
    monkeypatch.setattr(onnxruntime, "why_not_run", lambda: real() if next(calls) else "onnxruntime: is away")
    last = judged(tiny, bad, samples, Validate().with_tolerance("int8", STRICT))["failures"][-1]
    assert last == "the layer was not searched for: onnxruntime: is away"


def test_many_wrong_scales_are_counted(evidence: Evidence, tiny: Path) -> None:
    proto = onnx.load(model_of(evidence).path)
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("_scale"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / np.float32(2), tensor.name))
    onnx.save(proto, tiny / "bad.onnx")
    said = with_model(evidence, OnnxModel(tiny / "bad.onnx")).scale_mismatches()
    makers = {name: node.op_type for node in proto.graph.node for name in node.output}
    quantized = [node.input[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    num = sum(makers.get(name) != "Flatten" for name in quantized)  # That gives back what its data has.
    assert len(said) == min(num, NUM_KEPT + 1)
    assert num <= NUM_KEPT or said[-1] == f"so are {num - NUM_KEPT} further tensors"


def test_the_whole_pipeline_names_the_layer(plan: Path) -> None:
    """Shrinking a range makes ONNX Runtime clip: the ranges are changed after they were found."""
    store = Store(plan.parent / "store")
    made = run(read_plan(plan), store, "validate")
    assert [verdict.read()["failures"] for verdict in made.verdicts.values()] == [[], []]
    plan.write_text(plan.read_text() + "\n[validate.int8]\nmin_psnr_db = 200.0\n")
    made = run(read_plan(plan), store, "validate")
    (failed,) = (verdict.read() for verdict in made.verdicts.values() if not verdict.read()["passed"])
    assert failed["precision"] == "int8"
    assert " it is " in failed["failures"][0]
    assert "on 24 samples" in failed["failures"][-1]
    assert failed["suspects"]


def test_the_outputs_worst_element_is_the_outputs(evidence: Evidence, tiny: Path, samples: Samples) -> None:
    bad = with_model(evidence, scaled(model_of(evidence), "active_scale", 0.25, tiny / "bad.onnx"))
    found = judged(tiny, bad, samples, Validate().with_tolerance("int8", STRICT))
    worst = found["comparison"]["scores"]["worst"]
    theirs, ours = (read_outputs(tiny / name / "outputs.json")["scores"] for name in ("a", "b"))
    at = np.unravel_index(np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).argmax(), ours.shape)
    assert worst["index"] == list(at)
    assert (worst["reference"], worst["candidate"]) == (float(theirs[at]), float(ours[at]))


def test_ranges_of_evidence_are_optional(evidence: Evidence) -> None:
    unknown = Evidence(evidence.fp32, evidence.model, evidence.samples, None)
    assert (unknown.spans(), unknown.scale_mismatches()) == ({}, [])
    native = Evidence(evidence.fp32, None, evidence.samples, evidence.ranges)
    assert native.scale_mismatches() == [], "the precision is in the engine alone"
    assert native.digest() != evidence.digest()
    assert isinstance(evidence.ranges, Ranges)
    assert evidence.digest() != unknown.digest()


def test_the_verb_prints_nodes_and_the_likely_layer(evidence: Evidence, tiny: Path, command: Command) -> None:
    assert isinstance(evidence.ranges, Ranges)
    scaled(model_of(evidence), "active_scale", 0.25, tiny / "bad.onnx")
    options = ("--data", "data.npz", "--num-bisected", 4)
    said = command("bisect", "tiny.onnx", "bad.onnx", *options, "--ranges", evidence.ranges.path, "-o", "found.json")
    assert (said.status, said.err) == (0, "")
    assert "bad.onnx: SQNR, dB, on 4 samples" in said.out
    assert "the likely layer, on 4 samples: node 'active_DequantizeLinear'" in said.out
    assert "tensor 'active' is quantized" in said.out
    assert max(len(line) for line in said.out.splitlines() if "--override" not in line) <= 80
    record = json.loads((tiny / "found.json").read_text())
    assert (record["num_samples"], record["suspects"][0]["tensor"]) == (4, "active")
    assert len(record["suspects"]) > NUM_KEPT


def test_the_verb_ends_with_lines_to_paste_that_mend_a_range(tiny: Path, command: Command) -> None:
    narrow = "tensors = 'active', range = [0.0, 0.01]"
    options = ("--data", "data.npz", "--method", "minmax", "--target", "onnxruntime")
    assert command("quantize", "tiny.onnx", *options, "--override", narrow, "-o", "bad.onnx").status == 0
    said = command("bisect", "tiny.onnx", "bad.onnx", "--data", "data.npz")
    heading, *toml, flag = said.out.splitlines()[-5:]
    assert heading == "To except it, write into the plan:"
    (override,) = tomllib.loads("\n".join(toml))["quantize"]["override"]
    assert override["tensors"] == "active"
    low, high = override["range"]
    assert low == 0.0
    assert high > 0.01
    line = shlex.split(flag)
    assert line[:4] == ["or:", "trtforge", "quantize", "…"]
    assert command("quantize", "tiny.onnx", *options, *line[4:], "-o", "good.onnx").status == 0
    assert command("quantize", "tiny.onnx", *options, "-o", "plain.onnx").status == 0
    quality = [command("bisect", "tiny.onnx", name, "--data", "data.npz").out for name in ("good.onnx", "plain.onnx")]
    assert all("no single layer stands out" in text and "--override" not in text for text in quality)


def test_the_verb_ends_with_the_node_that_fp16_loses(tmp_path: Path, command: Command) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[N, 4] x) => (float[N, 4] y) <float k = {300.0}>
        { [grow] large = Mul (x, k) [square] huge = Mul (large, large) [root] y = Sqrt (huge) }"""
    model = onnx.parser.parse_model(text)
    onnx.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "small.npz", x=np.full((16, 4), 0.1, np.float32))
    np.savez(tmp_path / "large.npz", x=np.random.default_rng(0).uniform(1, 4, (16, 4)).astype(np.float32))
    cast = ("cast", tmp_path / "net.onnx", "--data", tmp_path / "small.npz", "--allow", "duplicates,few,constant")
    said = command(*cast, "-o", tmp_path / "bad.onnx")
    assert said.status == 0, said.err
    bisect = ("bisect", tmp_path / "net.onnx", tmp_path / "bad.onnx", "--data", tmp_path / "large.npz")
    said = command(*bisect)
    *_, first, second, third, flag = said.out.splitlines()
    assert [first, second, third] == ["[[cast.override]]", 'nodes = "square"', 'precision = "fp32"'], said
    assert command(*cast, *shlex.split(flag)[4:], "-o", tmp_path / "bad.onnx").status == 0
    said = command(*bisect)
    assert said.out.splitlines()[-3:-1] == ['nodes = "root"', 'precision = "fp32"'], "it reads what is large"
    both = [*shlex.split(flag)[4:], *shlex.split(said.out.splitlines()[-1])[4:]]
    assert command(*cast, *both, "-o", tmp_path / "good.onnx").status == 0
    good = command("bisect", tmp_path / "net.onnx", tmp_path / "good.onnx", "--data", tmp_path / "large.npz")
    assert "--override" not in good.out


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("plan.toml", "tiny.onnx"), 2, "plan.toml: is a plan; `trtforge validate plan.toml` reports the layer of"),
        (("none.onnx", "tiny.onnx", "--data", "data.npz"), 2, "none.onnx: does not exist; give an ONNX file"),
        (("tiny.onnx", "data.npz", "--data", "data.npz"), 4, "data.npz: "),
        (("tiny.onnx", "tiny.onnx"), 2, "--data is missing: "),
        (("tiny.onnx", "tiny.onnx", "--data", "data.npz", "--num-bisected", -1), 2, "num_bisected is -1, but must be"),
        (("tiny.onnx", "tiny.onnx", "--data", "data.npz", "--ranges", "none"), 2, "none/ranges.json: cannot be read"),
    ],
)
def test_what_the_verb_refuses(
    tiny: Path, command: Command, arguments: tuple[object, ...], status: int, words: str
) -> None:
    said = command("bisect", *arguments)
    assert said.status == status, said
    assert said.err.startswith(f"trtforge: {words}"), said.err
    assert len(said.err.splitlines()) == 1


def test_the_same_model_twice(tiny: Path, command: Command) -> None:
    said = command("bisect", "tiny.onnx", "tiny.onnx", "--data", "data.npz")
    assert said.status == 0, said.err
    assert "nothing is lost on 24 samples: all outputs are those of FP32 to the bit" in " ".join(said.out.split())


def test_the_two_files_swapped(evidence: Evidence, command: Command) -> None:
    said = command("bisect", model_of(evidence).path, "tiny.onnx", "--data", "data.npz")
    assert (said.status, said.out) == (2, "")
    assert "is in a reduced precision itself, the network in FP32 is expected; name that first, and then" in said.err


def test_two_networks_have_nothing_in_common(tiny: Path, command: Command) -> None:
    other = onnx.load(tiny / "tiny.onnx")
    for node in other.graph.node:
        stay = ("kernel", "bias", "weight", "offset", "image")
        node.input[:] = [name if name in stay else f"{name}_x" for name in node.input]
        node.output[:] = [f"{name}_x" for name in node.output]
    other.graph.output[0].name = "scores_x"
    onnx.save(other, tiny / "other.onnx")
    said = command("bisect", "tiny.onnx", "other.onnx", "--data", "data.npz")
    assert said.status == 2, said
    assert said.err.startswith("trtforge: other.onnx: has no tensor of tiny.onnx")
    onnx.save(onnx.compose.add_prefix(other, "x_"), tiny / "other.onnx")
    said = command("bisect", "tiny.onnx", "other.onnx", "--data", "data.npz")
    assert said.status == 2, said
    assert said.err.startswith(
        "trtforge: other.onnx: has not the inputs of tiny.onnx ('image' is of one of them alone)"
    )


def test_validate_on_files_says_the_layer(evidence: Evidence, tiny: Path, command: Command) -> None:
    assert isinstance(evidence.ranges, Ranges)
    scaled(model_of(evidence), "active_scale", 0.25, tiny / "bad.onnx")
    options = ("--simulate", "--precision", "int8", "--data", "data.npz", "--min-cosine", 0.999999)
    said = command("validate", "tiny.onnx", "bad.onnx", *options, "--ranges", evidence.ranges.path)
    assert said.status == 5
    assert "bad.onnx: tensor 'active' is quantized (node 'active_DequantizeLinear') with scale " in said.err
    assert "bad.onnx: the likely layer, on 24 samples: node 'active_DequantizeLinear'" in said.err
    sound = ("tiny.onnx", model_of(evidence).path, *options[:-1], 0.9)
    assert command("validate", *sound, "--model", model_of(evidence).path).status == 0
    said = command("validate", *sound, "--model", "bad.onnx", "--ranges", evidence.ranges.path)
    assert said.status == 5
    assert "the engine does not compute" not in said.err


def test_a_model_without_data_has_no_effect(evidence: Evidence, tiny: Path, command: Command) -> None:
    for name, model in (("a", "tiny.onnx"), ("b", model_of(evidence).path)):
        assert command("infer", model, "--data", "data.npz", "-o", f"{name}.json").status == 0
    said = command("validate", "a.json", "b.json", "--precision", "int8", "--model", model_of(evidence).path)
    assert said.status == 2
    assert said.err.startswith("trtforge: --model: has an effect only if REFERENCE is an ONNX file and --data is given")
