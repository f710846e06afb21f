"""What an ONNX file says of itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.parser
import pytest

from engines.contract import DYNAMIC, BuildOptions, TensorSpec
from engines.errors import EngineError
from engines.onnx_model import check_options, facts, is_qdq_in_fp32, plugin_words, shape_text

SaveModel = Callable[[str], Path]

HALF = """<ir_version: 8, opset_import: ["" : 17]>
half (float[N, 3] x) => (float[N, 3] y)
{
    h = Cast<to = 10>(x)
    s = Add(h, h)
    y = Cast<to = 1>(s)
}"""


def test_facts_of_a_float_model(linear: Path) -> None:
    found = facts(linear)
    assert found.inputs == (TensorSpec("x", "float32", (DYNAMIC, 3)),)
    assert found.outputs == (TensorSpec("y", "float32", (DYNAMIC, 2)),)
    assert (found.num_quantizable, found.num_quantized, found.depthwise_quantized) == (1, 0, ())
    assert not found.has_quantize
    assert not found.has_float16


def test_facts_of_a_quantized_model(save_quantized_conv: Callable[[int], Path]) -> None:
    found = facts(save_quantized_conv(1))
    assert (found.num_quantizable, found.num_quantized, found.depthwise_quantized) == (1, 1, ())
    assert found.has_quantize
    assert facts(save_quantized_conv(16)).depthwise_quantized == ("conv",)


ISLAND = """<ir_version: 8, opset_import: ["" : 17]> island (float[2, 3] x) => (float[2, 3] y) {
  [in] a = Cast <to = 10> (x)
  [relu] b = Relu (a)
  [up] c = Cast <to = 1> (b)
  [soft] d = Softmax (c)
  [soft_1] e = Exp (d)
  [down] f = Cast <to = 10> (e)
  [relu_1] g = Relu (f)
  [out] y = Cast <to = 1> (g)
}"""
"""FP16, but for a Softmax and an Exp."""


def test_nodes_that_an_fp16_model_has_in_fp32(save_model: SaveModel, linear: Path) -> None:
    assert facts(linear).full_names == frozenset(), "without FP16 there is nothing to keep"
    found = facts(save_model(ISLAND))
    assert found.full_names == {"soft", "soft_1"}
    layers = ("in", "relu", "relu_1", "soft", "soft_1", "soft_2", "relu_2", "(Unnamed Layer* 3) [Shuffle]")
    assert [layer for layer in layers if found.is_full(layer)] == ["soft", "soft_1", "soft_2"]


def test_a_product_is_quantized_only_with_both_operands(save_model: SaveModel) -> None:
    found = facts(
        save_model(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}, float s = {0.5}, int8 z = {0}>
            { q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  y = MatMul(d, w) }"""
        )
    )
    assert (found.num_quantizable, found.num_quantized) == (1, 0)


def test_a_dynamically_quantized_model_is_quantized(save_model: SaveModel) -> None:
    found = facts(
        save_model(
            """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (int32[N, 2] y)
            <int8[3, 2] w = {1, 2, 3, 4, 5, 6}> { q, s, z = DynamicQuantizeLinear(x)  y = MatMulInteger(q, w, z) }"""
        )
    )
    assert (found.num_quantizable, found.num_quantized, found.has_quantize) == (1, 1, True)
    assert found.quantized_names == found.product_names == ("node_of_y",)
    assert found.is_dynamic


STORED = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 2] y)
<int8[3, 2] w = {1, 2, 3, 4, 5, 6}, float s = {0.5}> { c = Cast <to = 1> (w)  r = Mul (c, s)  y = MatMul (x, r) }"""
MASK = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => (float[N, 2] y)
<uint8[2, 2] m = {1, 0, 1, 1}, float s = {0.5}>
{ c = Cast <to = 1> (m)  r = Mul (c, s)  p = Add (x, r)  y = MatMul (p, p) }"""


def test_a_weight_that_is_restored_makes_a_model_dynamic_and_a_mask_does_not(save_model: SaveModel) -> None:
    assert facts(save_model(STORED)).is_dynamic
    assert not facts(save_model(MASK)).is_dynamic


def test_a_model_with_dynamic_ranges_is_built_as_such_alone(save_model: SaveModel, linear: Path) -> None:
    path = save_model(STORED)
    check_options(facts(path), BuildOptions("dynamic"), path)
    for precision in ("fp32", "int8"):
        words = f"precision {precision} is requested, the model finds its scales at each run; ask for dynamic"
        with pytest.raises(EngineError, match=words):
            check_options(facts(path), BuildOptions(precision), path)


def test_dynamic_of_another_model_is_refused(linear: Path) -> None:
    with pytest.raises(EngineError, match=r"has no DynamicQuantizeLinear, .*; write it with `trtforge quantize --pre"):
        check_options(facts(linear), BuildOptions("dynamic"), linear)
    with pytest.raises(EngineError, match="precision int16x8 is requested, which no ONNX file is written in here"):
        check_options(facts(linear), BuildOptions("int16x8"), linear)


def test_products_in_subgraphs_count(save_model: SaveModel) -> None:
    found = facts(
        save_model(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[2, 2] x, bool c) => (float[2, 2] y)
            { y = If (c) <
                then_branch = a () => (float[2, 2] p) { p = MatMul(x, x) },
                else_branch = b () => (float[2, 2] q) { q = Identity(x) }
              > }"""
        )
    )
    assert found.num_quantizable == 1


def test_weights_that_are_listed_as_inputs_are_no_inputs(save_model: SaveModel) -> None:
    path = save_model(
        """<ir_version: 3, opset_import: ["" : 7]>
        g (float[N, 2] x, float[2] b) => (float[N, 2] y) <float[2] b = {1, 2}> { y = Add(x, b) }"""
    )
    assert [spec.name for spec in facts(path).inputs] == ["x"]


def test_a_missing_output_shape_is_inferred(save_model: SaveModel) -> None:
    path = save_model('<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }')
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    assert facts(path).outputs == (TensorSpec("y", "float32", (DYNAMIC, 3)),)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    with pytest.raises(EngineError, match=r"model\.onnx: 'x' has no type or no shape; run onnx shape inference"):
        facts(path)


def test_fp16_is_seen_in_casts(save_model: SaveModel) -> None:
    path = save_model(HALF)
    assert facts(path).has_float16
    check_options(facts(path), BuildOptions("fp16"), path)
    with pytest.raises(EngineError, match="precision fp32 is requested, the model has FP16 tensors; ask for fp16"):
        check_options(facts(path), BuildOptions("fp32"), path)


def test_a_quantized_model_is_int8_and_nothing_else(save_quantized_conv: Callable[[int], Path]) -> None:
    path = save_quantized_conv(1)
    check_options(facts(path), BuildOptions("int8"), path)
    for precision in ("fp32", "fp16"):
        with pytest.raises(EngineError, match=f"precision {precision} is requested, the model has QuantizeLinear"):
            check_options(facts(path), BuildOptions(precision), path)


def test_shape_text() -> None:
    assert shape_text((DYNAMIC, 3, 8)) == "(?, 3, 8)"
    assert shape_text(()) == "()"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)", True),
        ("y = Relu(x)", False),
        (
            "h = Cast<to = 10>(x)  f = Cast<to = 1>(h)  q = QuantizeLinear(f, s, z)  y = DequantizeLinear(q, s, z)",
            False,
        ),
    ],
)
def test_which_models_are_simulated_with_graph_optimizations(nodes: str, expected: bool) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) <float s = {0.5}, int8 z = {0}>'
    assert is_qdq_in_fp32(onnx.parser.parse_model(f"{text} {{ {nodes} }}")) is expected


@pytest.mark.parametrize(
    ("operator", "is_plugin"),
    [
        ("EfficientNMS_TRT", True),
        ("TRT.ROIAlign", True),
        ("mmdeploy.TRTBatchedNMS", True),
        ("CustomSkipLayerNormPluginDynamic", True),
        ("com.microsoft.Gelu", False),
        ("Relu", False),
    ],
)
def test_plugins_of_tensorrt_are_named(operator: str, is_plugin: bool) -> None:
    domain, _, name = operator.rpartition(".")
    node = onnx.helper.make_node(name, ["x"], ["y"], "last", domain=domain)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    words = f"node 'last': {name} is a TensorRT plugin: nothing but TensorRT runs it; cut the model in front of it, or "
    assert plugin_words(model).startswith(words) == is_plugin
    assert bool(plugin_words(model)) == is_plugin
