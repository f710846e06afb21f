"""TensorRT-RTX, for real: engines are built here, without a GPU, by the code that TensorRT is built with too.

Their bytes are not reproducible; sizes, counts and sentences are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.backends import tensorrt_rtx
from engines.contract import BuildOptions, GivenScales, LayerFacts, ShapeRange
from engines.errors import EngineError, Unavailable
from engines.nvinfer import rtx_plan

if tensorrt_rtx.why_not_build():
    pytest.skip(tensorrt_rtx.why_not_build(), allow_module_level=True)

SaveModel = Callable[[str], Path]
SaveConv = Callable[[int], Path]

LINEAR = {"x": ShapeRange((1, 3), (2, 3), (8, 3))}
CONV = {"x": ShapeRange((1, 16, 8, 8), (2, 16, 8, 8), (4, 16, 8, 8))}


def test_int8_convolution(save_quantized_conv: SaveConv, tmp_path: Path) -> None:
    record = tensorrt_rtx.build(save_quantized_conv(1), tmp_path / "engine", BuildOptions("int8", CONV))
    assert (record.num_quantizable, record.num_int8) == (1, 1)
    assert not any("multiply" in note for note in record.notes)
    assert record.layers == (LayerFacts("conv", "product", "INT8", ("conv",)),)
    assert record.layers_from == "the plan's text, products alone"
    assert record.num_layers_by_precision == {"INT8": 1}
    assert (tmp_path / "engine").read_bytes()[:4] == b"vtrt"


def test_grouped_int8_convolutions_are_remarked_on(save_quantized_conv: SaveConv, tmp_path: Path) -> None:
    record = tensorrt_rtx.build(save_quantized_conv(16), tmp_path / "engine", BuildOptions("int8", CONV))
    assert any(
        note.startswith("1 quantized depthwise or grouped convolutions, such as 'conv'") for note in record.notes
    )


def test_fp16(save_model: SaveModel, tmp_path: Path) -> None:
    model = save_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 2] y)
        <float16[3, 2] w = {1, 2, 3, 4, 5, 6}> { h = Cast<to = 10>(x)  p = MatMul(h, w)  y = Cast<to = 1>(p) }"""
    )
    record = tensorrt_rtx.build(model, tmp_path / "engine", BuildOptions("fp16", LINEAR))
    assert (record.precision, record.num_quantizable, record.num_int8, record.notes) == ("fp16", 1, 0, ())


@pytest.mark.parametrize("operator", ["Det", "Wobble"])
def test_an_operator_that_tensorrt_lacks_is_named_with_its_node(
    save_model: SaveModel, tmp_path: Path, operator: str
) -> None:
    domain = "" if operator == "Det" else "my."
    model = save_model(
        f"""<ir_version: 8, opset_import: ["" : 17, "my" : 1]> g (float[3, 3] x) => (float[N] y)
        {{ [first] h = Relu(x)  [odd] y = {domain}{operator}(h) }}"""
    )
    words = rf"TensorRT has no such operator; replace it in the network, .* \(node 'odd', {operator}: "
    with pytest.raises(EngineError, match=words):
        tensorrt_rtx.build(model, tmp_path / "engine", BuildOptions())


@pytest.mark.parametrize("operator", ["EfficientNMS_TRT", "TRT.TRTBatchedNMS"])
def test_a_plugin_of_tensorrt_that_it_lacks_is_named(save_model: SaveModel, tmp_path: Path, operator: str) -> None:
    model = save_model(
        f"""<ir_version: 8, opset_import: ["" : 17, "TRT" : 1]> g (float[3, 3] x) => (float[3, 3] y)
        {{ [first] h = Relu(x)  [odd] y = {operator}(h) }}"""
    )
    words = rf"it is a plugin of TensorRT that this library does not have .* \(node 'odd', {operator.split('.')[-1]}: "
    with pytest.raises(EngineError, match=words):
        tensorrt_rtx.build(model, tmp_path / "engine", BuildOptions())


def test_compute_capabilities_are_written_into_the_engine(linear: Path, tmp_path: Path) -> None:
    # Found by reading plans: a bit mask of targets at byte 0x20; 8.6 is bit 2, 8.9 is bit 3.
    options = BuildOptions(shapes=LINEAR, compute_capabilities=("8.6", "8.9"))
    tensorrt_rtx.build(linear, tmp_path / "engine", options)
    mask = int.from_bytes((tmp_path / "engine").read_bytes()[0x20:0x24], "little")
    assert mask & 0b111111 == 0b001100


@pytest.mark.parametrize("text", ["9.0", "8.7", "86", "sm_86", ""])
def test_unknown_compute_capabilities(linear: Path, tmp_path: Path, text: str) -> None:
    options = BuildOptions(shapes=LINEAR, compute_capabilities=(text,))
    with pytest.raises(
        Unavailable, match=rf"compute capability '{text}' is requested, version .* 8\.0, 8\.6, 8\.9, 12\.0"
    ):
        tensorrt_rtx.build(linear, tmp_path / "engine", options)


def test_one_compute_capability_twice(linear: Path, tmp_path: Path) -> None:
    options = BuildOptions(shapes=LINEAR, compute_capabilities=("8.6", "8.6"))
    with pytest.raises(EngineError, match=r"8\.6, 8\.6 name one twice"):
        tensorrt_rtx.build(linear, tmp_path / "engine", options)


def test_a_dynamic_input_without_a_shape_range(linear: Path, tmp_path: Path) -> None:
    words = (
        r"model\.onnx: input 'x' is \(\?, 3\), and no shape range is given for it; give its min, opt and max shape, "
        r"such as \(1, 3\), \(4, 3\) and \(16, 3\)"
    )
    with pytest.raises(EngineError, match=words):
        tensorrt_rtx.build(linear, tmp_path / "engine", BuildOptions())
    assert not (tmp_path / "engine").exists()


def test_a_model_with_fixed_shapes_needs_no_shape_range(save_model: SaveModel, tmp_path: Path) -> None:
    model = save_model('<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }')
    assert tensorrt_rtx.build(model, tmp_path / "engine", BuildOptions()).size_bytes > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BuildOptions(shapes=LINEAR, optimization_level=6), "optimization level 6 is requested, it goes from 0 to 5"),
        (BuildOptions(shapes=LINEAR, workspace_mib=0), "workspace is 0 MiB; give at least 1"),
    ],
)
def test_options_out_of_bounds(linear: Path, tmp_path: Path, options: BuildOptions, words: str) -> None:
    with pytest.raises(EngineError, match=words):
        tensorrt_rtx.build(linear, tmp_path / "engine", options)


def test_asymmetric_quantization_is_refused_with_the_node(save_model: SaveModel, tmp_path: Path) -> None:
    model = save_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y) <float s = {0.1}, int8 z = {3}>
        { [first] q = QuantizeLinear(x, s, z)  [second] y = DequantizeLinear(q, s, z) }"""
    )
    with pytest.raises(
        EngineError, match=r"zero point other than 0, .* \(node 'first', QuantizeLinear: .*Non-zero zero"
    ):
        tensorrt_rtx.build(model, tmp_path / "engine", BuildOptions("int8", LINEAR))


def test_a_quantized_bias_is_refused(save_model: SaveModel, tmp_path: Path) -> None:
    # What ONNX Runtime's own quantizer writes by default.
    model = save_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y)
        <float s = {0.1}, int8 z = {0}, int32[3] b = {1, 2, 3}>
        { q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  f = DequantizeLinear(b, s)  y = Add(d, f) }"""
    )
    with pytest.raises(EngineError, match=r"dequantizes INT32, as of a quantized bias, .* has type Int32 but must"):
        tensorrt_rtx.build(model, tmp_path / "engine", BuildOptions("int8", LINEAR))


def test_a_failed_build_does_not_spoil_the_next_sentence(linear: Path, save_model: SaveModel, tmp_path: Path) -> None:
    linear_copy = tmp_path / "linear.onnx"
    linear_copy.write_bytes(linear.read_bytes())
    bad = save_model(
        '<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[3] x) => (float[3] y) { y = own.Odd(x) }'
    )
    with pytest.raises(EngineError, match=r"TensorRT has no such operator; .*Odd"):
        tensorrt_rtx.build(bad, tmp_path / "engine", BuildOptions())
    assert tensorrt_rtx.build(linear_copy, tmp_path / "engine", BuildOptions(shapes=LINEAR)).size_bytes > 0


def test_several_profiles(linear: Path, tmp_path: Path) -> None:
    large = {"x": ShapeRange((9, 3), (16, 3), (32, 3))}
    record = tensorrt_rtx.build(linear, tmp_path / "engine", BuildOptions(shapes=LINEAR, more_shapes=(large, large)))
    single = tensorrt_rtx.build(linear, tmp_path / "engine", BuildOptions(shapes=LINEAR))
    assert record.size_bytes > single.size_bytes


def test_products_are_counted_in_one_profile(save_quantized_conv: SaveConv, tmp_path: Path) -> None:
    large = {"x": ShapeRange((9, 16, 8, 8), (16, 16, 8, 8), (32, 16, 8, 8))}
    options = BuildOptions("int8", CONV, more_shapes=(large, large))
    record = tensorrt_rtx.build(save_quantized_conv(1), tmp_path / "engine", options)
    assert (record.num_quantizable, record.num_int8) == (1, 1)
    assert [(layer.name, layer.nodes, layer.profile) for layer in record.layers] == [
        ("conv", ("conv",), 0),
        ("conv [profile 1]", ("conv",), 1),
        ("conv [profile 2]", ("conv",), 2),
    ]
    assert record.num_layers_by_precision == {"INT8": 1}


ATTENTION = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 16, 64] x) => (float[N, 16, 64] y)
<int64[4] heads = {0, 16, 4, 16}, int64[3] merged = {0, 16, 64}> {
    h = Cast<to = TYPE>(x)
    [q] q1 = MatMul(h, wq)  q2 = Reshape(q1, heads)  q3 = Transpose<perm = [0, 2, 1, 3]>(q2)
    [k] k1 = MatMul(h, wk)  k2 = Reshape(k1, heads)  k3 = Transpose<perm = [0, 2, 3, 1]>(k2)
    [v] v1 = MatMul(h, wv)  v2 = Reshape(v1, heads)  v3 = Transpose<perm = [0, 2, 1, 3]>(v2)
    [scores] s = MatMul(q3, k3)  p = Softmax(s)  [mix] m = MatMul(p, v3)
    t = Transpose<perm = [0, 2, 1, 3]>(m)  r = Reshape(t, merged)  [out] o = MatMul(r, wo)  y = Cast<to = 1>(o)
}"""


def attention(path: Path, precision: str) -> Path:
    """Self-attention of four heads; in INT8 with Q/DQ in front of all six products, weights and both of attention."""
    is_half = precision == "fp16"
    model = onnx.parser.parse_model(
        ATTENTION.replace("TYPE", str(TensorProto.FLOAT16 if is_half else TensorProto.FLOAT))
    )
    graph, random = model.graph, np.random.default_rng(0)
    weights = {name: (random.standard_normal((64, 64)) / 8).astype("float16" if is_half else "float32")
               for name in ("wq", "wk", "wv", "wo")}  # fmt: skip
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    graph.initializer.append(numpy_helper.from_array(np.array(0.02, np.float32), "scale"))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "zero"))
    nodes: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        for index, name in enumerate(node.input if precision == "int8" and node.op_type == "MatMul" else ()):
            for word, source, target in (("Quantize", name, f"{name}_q"), ("Dequantize", f"{name}_q", f"{name}_d")):
                nodes[target] = helper.make_node(f"{word}Linear", [source, "scale", "zero"], [target], target)
            node.input[index] = f"{name}_d"
        nodes[node.output[0]] = node
    ordered = list(nodes.values())
    graph.ClearField("node")
    graph.node.extend(ordered)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("precision", "num_int8"), [("fp32", 0), ("fp16", 0), ("int8", 6)])
def test_of_attention_what_the_plan_tells_is_counted(tmp_path: Path, precision: str, num_int8: int) -> None:
    """q, k and v are one product there, and the two of attention one kernel."""
    usual, large = ({"x": ShapeRange(*((size, 16, 64) for size in sizes))} for sizes in ((1, 4, 8), (9, 16, 16)))
    model = attention(tmp_path / "model.onnx", precision)
    record = tensorrt_rtx.build(model, tmp_path / "engine", BuildOptions(precision, usual, (large,)))
    assert (record.num_quantizable, record.num_int8) == (6, num_int8)
    assert not any("multiply" in note for note in record.notes)
    fused = {layer.nodes for layer in record.layers if len(layer.nodes) > 1 and layer.profile == 1}
    assert fused == {("v", "k", "q")} | ({("mix", "scores")} if num_int8 else set())


def test_what_the_plan_does_not_tell_of_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where attention is in a kernel without its source."""
    monkeypatch.setattr(rtx_plan, "_IS_INTEGER", b"of a later version")
    options = BuildOptions("int8", {"x": ShapeRange((1, 16, 64), (4, 16, 64), (8, 16, 64))})
    record = tensorrt_rtx.build(attention(tmp_path / "model.onnx", "int8"), tmp_path / "engine", options)
    assert record.num_int8 == -1
    assert (
        "4 of 6 quantized convolutions and matrix products multiply integers, going by the plan's text, which does not "
        "tell of 2, such as 'scores'."
    ) in record.notes


def test_each_profile_names_each_dynamic_input(linear: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"input 'x' is \(\?, 3\), and no shape range is given for it"):
        tensorrt_rtx.build(linear, tmp_path / "engine", BuildOptions(shapes=LINEAR, more_shapes=({},)))


def test_progress_is_told_step_by_step(linear: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    options = BuildOptions(shapes=LINEAR, progress=lambda *what: told.append(what))
    tensorrt_rtx.build(linear, tmp_path / "engine", options)
    assert told[0][1] == 0
    assert told[-1][1] == told[-1][2] > 1
    assert len({phase for phase, _, _ in told}) == 1, "inner phases are not told"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BuildOptions("int8", LINEAR, native=GivenScales(b"")), 'has no calibrators; take int8 = "qdq"'),
        (BuildOptions(shapes=LINEAR, version_compatible=True), "a version-compatible engine is requested"),
        (BuildOptions("fp16", LINEAR, dla_core=0), "has no DLA; leave dla_core at -1"),
    ],
)
def test_what_it_does_not_have(linear: Path, tmp_path: Path, options: BuildOptions, words: str) -> None:
    with pytest.raises(Unavailable, match=words):
        tensorrt_rtx.build(linear, tmp_path / "engine", options)
    assert not (tmp_path / "engine").exists()
