"""The stage `quantize`: what each target gets, and what is left out."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from calibration.ranges.override import Override
from engines.cpu import cpu_name
from pipeline.accuracy.placed_words import nothing_quantized
from pipeline.artifact import OnnxModel, PlacementTimes, Ranges
from pipeline.errors import ConfigError, DataError, ModelError
from pipeline.latency.placement_times import GroupTime, MeasuredPlacement
from pipeline.machine.packages import cpu_versions
from pipeline.stages import quantize as quantize_stage
from pipeline.stages.quantize import Quantize
from pipeline.store import Store
from tests.pipeline.stages.networks import Out


def operators(model: OnnxModel) -> list[str]:
    return [node.op_type for node in onnx.load(model.path).graph.node]


def zero_points(model: OnnxModel) -> set[tuple[int, bool]]:
    """Type of every zero point of an 8-bit tensor, and whether it is zero throughout."""
    graph = onnx.load(model.path).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    pairs = [weights[n.input[2]] for n in graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    eight = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    return {(t.data_type, not numpy_helper.to_array(t).any()) for t in pairs if t.data_type in eight}


def test_for_tensorrt_int8_is_symmetric_and_weights_stay_float(net: OnnxModel, ranges: Ranges, out: Out) -> None:
    made = Quantize(target="tensorrt")(out(), net, ranges)
    assert zero_points(made) == {(onnx.TensorProto.INT8, True)}
    graph = onnx.load(made.path).graph
    assert {t.data_type for t in graph.initializer if t.name in ("kernel", "dense")} == {onnx.TensorProto.FLOAT}
    assert {value.name for value in graph.output} == {"scores", "pooled_flat"}


def test_for_onnxruntime_weights_are_stored_as_integers(net: OnnxModel, ranges: Ranges, out: Out) -> None:
    made = Quantize(target="onnxruntime", arithmetic="u8u8")(out(), net, ranges)
    assert (onnx.TensorProto.UINT8, False) in zero_points(made)
    stored = {tensor.data_type for tensor in onnx.load(made.path).graph.initializer if len(tensor.dims) == 4}
    assert stored == {onnx.TensorProto.UINT8}
    assert "arithmetic u8u8, as asked for" in made.notes()


def test_dynamic_needs_no_ranges_and_says_what_computes_in_what(net: OnnxModel, out: Out) -> None:
    stage = Quantize(target="onnxruntime").writing("dynamic")
    made = stage(out(), net)
    assert {"DynamicQuantizeLinear", "MatMulInteger"} < set(operators(made))
    notes = made.notes()
    assert notes[0].endswith("matrix products round their data to UINT8 at each run")
    assert any("have INT8 weights in the file alone and compute in FP32" in note for note in notes)
    assert stage.chosen_arithmetic()[1] in notes
    with pytest.raises(ConfigError, match="--precision dynamic: is for onnxruntime alone; give --target onnxruntime"):
        Quantize(precision="dynamic")(out(), net)
    with pytest.raises(ModelError, match="nothing can be INT8"):
        replace(stage, exclude=("Conv", "MatMul"))(out(), net)


def test_int8_without_ranges(net: OnnxModel, out: Out) -> None:
    with pytest.raises(ConfigError, match="int8: needs ranges; run `trtforge calibrate`, and give --ranges"):
        Quantize()(out(), net)


@pytest.mark.parametrize(
    ("precision", "placement", "words"),
    [
        ("dynamic", "tensorrt", "the backend takes no dynamic model; .*, or take onnxruntime or litert, which have it"),
        ("dynamic", "none", r"the backend takes no DYNAMIC model; take dynamic out of \[variants\] precisions"),
        ("int8", "none", r"the backend takes no INT8 model; take int8 out of \[variants\] precisions"),
    ],
)
def test_a_backend_that_takes_no_such_model(precision: str, placement: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Quantize().writing(precision).placed_for(placement)


def test_what_the_cpu_does_best_is_said(net: OnnxModel, ranges: Ranges, out: Out) -> None:
    stage = Quantize(target="onnxruntime")
    assert stage.chosen_arithmetic()[1] in stage(out(), net, ranges).notes()


def test_the_arithmetic_is_part_of_the_recipe(
    net: OnnxModel, ranges: Ranges, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is carried to another CPU must not serve what this one chose."""
    store = Store(tmp_path / "store")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    chosen = {}
    for flags in (("avx2",), ("avx2", "avx512_vnni")):
        monkeypatch.setattr(quantize_stage, "cpu_flags", lambda flags=flags: frozenset(flags))
        recipes = [store.recipe(Quantize(target=target), net, ranges) for target in ("onnxruntime", "tensorrt")]
        chosen[flags] = [recipe["versions"].get("arithmetic") for recipe in recipes]
    assert list(chosen.values()) == [["u8s7", None], ["u8s8", None]]


@pytest.mark.parametrize("name", ["conv", "Conv"])
@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_what_is_excluded_by_name_or_type_stays_float(
    net: OnnxModel, ranges: Ranges, out: Out, name: str, target: Any
) -> None:
    made = Quantize(target=target, exclude=(name,), small_products="int8")(out(), net, ranges)
    graph = onnx.load(made.path).graph
    conv = next(node for node in graph.node if node.op_type == "Conv")
    assert list(conv.input[:2]) == ["image", "kernel"]
    assert "DequantizeLinear" in operators(made), "the matrix product is quantized all the same"


def test_an_unknown_exclude_offers_the_nearest(net: OnnxModel, ranges: Ranges, out: Out) -> None:
    with pytest.raises(DataError, match=r"exclude: 'convv' .*the nearest is 'conv'"):
        Quantize(exclude=("convv",))(out(), net, ranges)


def test_a_model_in_which_nothing_can_be_int8_says_what_it_has() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,2,3] x, bool yes) => (float[N,2,3] y)'
        "<float[3,3] w = {1,2,3,4,5,6,7,8,9}> {"
        ' a = Einsum <equation = "bij,jk->bik"> (x, w)'
        " b = If (yes) <then_branch = one () => (float[N,2,3] t) { t = MatMul (a, w) },"
        " else_branch = two () => (float[N,2,3] e) { e = Relu (a) }> y = MatMul (b, x) }"
    )
    said = nothing_quantized(model, ["node 'm' (MatMul) stays FP32: its weight is not constant"])
    assert "it has 3 convolutions and matrix products (1 in the body of a Loop, Scan or If, 1 Einsum)" in said
    assert "; node 'm' (MatMul) stays FP32: its weight is not constant; stay with" in said


def test_everything_excluded_is_no_int8(net: OnnxModel, ranges: Ranges, out: Out) -> None:
    everything = tuple({node.op_type for node in onnx.load(net.path).graph.node})
    with pytest.raises(ModelError, match="nothing can be INT8: it has 2 convolutions and matrix products; stay"):
        Quantize(exclude=everything)(out(), net, ranges)


def scale_of(model: OnnxModel, tensor: str) -> float:
    graph = onnx.load(model.path).graph
    (node,) = (n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == tensor)
    return float(numpy_helper.to_array(next(t for t in graph.initializer if t.name == node.input[1])))


@pytest.mark.parametrize(("target", "scale"), [("tensorrt", 6 / 127), ("onnxruntime", 6 / 255)])
def test_a_range_by_pattern(net: OnnxModel, ranges: Ranges, out: Out, target: Any, scale: float) -> None:
    exceptions = (Override(tensors="ima*", range=(0.0, 6.0)), Override(tensors="scores", range=(0.0, 9.0)))
    made = Quantize(target=target, override=exceptions)(out(), net, ranges)
    assert scale_of(made, "image") == pytest.approx(scale, rel=1e-6)
    assert made.notes()[0] == "[[quantize.override]] tensors = 'ima*': range 0 to 6: 1 ('image') tensors"
    unused = f"[[quantize.override]]: 1 ('scores') tensors are not INT8 for {target}, their range is not used"
    assert unused in made.notes()


@pytest.mark.parametrize("pattern", ["conv", "Conv", "c?nv", "[c]*"])
def test_precision_and_exclude_by_pattern(net: OnnxModel, ranges: Ranges, out: Out, pattern: str) -> None:
    all_sizes = Quantize(small_products="int8")
    left_out = replace(all_sizes, exclude=("conv",))(out(), net, ranges)
    exception = Override(nodes=pattern, precision="fp32")
    for stage in (replace(all_sizes, exclude=(pattern,)), replace(all_sizes, override=(exception,))):
        assert onnx.load(stage(out(), net, ranges).path) == onnx.load(left_out.path)
    with pytest.raises(DataError, match=r"\[\[quantize.override\]\] nodes: 'convv' .*the nearest is 'conv'"):
        Quantize(override=(Override(nodes="convv", precision="fp32"),))(out(), net, ranges)


def test_with_the_rest_in_fp16_a_node_can_be_either(net: OnnxModel, ranges: Ranges, out: Out) -> None:
    types = {}
    for precision in ("fp32", "fp16"):
        exceptions = (Override(nodes="conv", precision=precision),)
        made = Quantize(rest="fp16", override=exceptions, small_products="int8")(out(), net, ranges)
        graph = onnx.shape_inference.infer_shapes(onnx.load(made.path)).graph
        types[precision] = next(v.type.tensor_type.elem_type for v in graph.value_info if v.name == "features")
    assert types == {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16}
    with pytest.raises(ConfigError, match=r"nodes = 'conv': fp16: FP16 is written with rest = \"fp16\" alone"):
        Quantize(override=(Override(nodes="conv", precision="fp16"),))


def test_exceptions_are_part_of_the_recipe(net: OnnxModel, ranges: Ranges, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stages = [Quantize(), *(Quantize(override=(Override(tensors="image", range=(0.0, b)),)) for b in (5.0, 6.0))]
    assert len({str(store.recipe(stage, net, ranges)) for stage in stages}) == 3


def measured(out: Out, made_on: dict[str, str], **changes: Any) -> PlacementTimes:
    """A record of times, as it is written."""
    record = MeasuredPlacement(made_on, ("conv",), "", 3.0, 2.5, 2.0, (GroupTime("Conv", 1, 0.8, True),))
    path = out() / "placement.json"
    path.write_text(json.dumps(asdict(replace(record, **changes))))
    return PlacementTimes(path)


def test_what_is_quicker_in_float_stays_in_float_and_the_notes_say_so(net: OnnxModel, ranges: Ranges, out: Out) -> None:
    stage = Quantize(target="onnxruntime", placement="timed")
    made = stage(out(), net, ranges, measured(out, cpu_versions()))
    assert onnx.load(made.path) == onnx.load(Quantize(target="onnxruntime", exclude=("conv",))(out(), net, ranges).path)
    assert made.notes()[-1] == (
        f"placement by time: 1 nodes are quicker in float on this CPU, {cpu_name()} (Conv): 2.00 ms, "
        "1.50 times as fast as FP32, and 1.25 times as fast as with all in INT8"
    )
    assert not any("the user excluded it" in note for note in made.notes())
    slow = stage(out(), net, ranges, measured(out, cpu_versions(), fp32_ms=1.0))
    assert slow.notes()[-1].endswith("; INT8 does not pay here: stay with FP32")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"made_on": {**cpu_versions(), "cpu": "80386"}}, "was measured with cpu 80386 (here "),
        ({"why_not": "no product is in INT8"}, "no product is in INT8, so that the"),
    ],
)
def test_another_cpu_takes_the_static_placement(
    net: OnnxModel, ranges: Ranges, out: Out, changes: dict[str, Any], words: str
) -> None:
    stage = Quantize(target="onnxruntime", placement="timed")
    made = stage(out(), net, ranges, measured(out, **{"made_on": cpu_versions(), **changes}))
    assert onnx.load(made.path) == onnx.load(Quantize(target="onnxruntime")(out(), net, ranges).path)
    assert words in made.notes()[-1]
    assert "the static one is taken" in made.notes()[-1]


def test_the_times_and_the_cpu_are_part_of_the_recipe(net: OnnxModel, ranges: Ranges, out: Out, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    stages = [Quantize(target="onnxruntime", placement=placement) for placement in ("static", "timed")]
    versions = [store.recipe(stage, net, ranges)["versions"] for stage in stages]
    assert ["cpu" in each for each in versions] == [False, True]
    assert "cpu" not in Quantize(target="tensorrt", placement="timed").versions()
    both = [measured(out, cpu_versions()), measured(out, cpu_versions(), in_float=("dense",))]
    assert len({str(store.recipe(stages[1], net, ranges, each)) for each in both}) == 2
