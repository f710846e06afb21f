"""Layers out of EngineInspector's JSON, in the shape of each generation.

The shape of 8: tools/experimental/trt-engine-explorer/tests/inputs/mobilenet.qat.onnx.engine.graph.json in NVIDIA's
TensorRT repository. Of 10, with ``Metadata``: docs/trt_profiling of users' repositories, as Torch-TensorRT's
``trt_engine_info.json``. Of 11: NVIDIA's page *Migrating IEngineInspector Usage from TensorRT 10.x to 11.x*.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from engines.contract import LayerFacts, LayerTime
from engines.errors import EngineError
from engines.layers import (
    layer_times_from,
    layers_from_inspector,
    layers_from_record,
    num_layers_by_precision,
    summary,
)
from engines.nvinfer.inspection import inspection_from
from engines.onnx_model import OnnxModelFacts

INT8 = "Thirty-two wide channel vectorized row major Int8 format"
HALF = "Thirty-two wide channel vectorized row major FP16 format"
FACTS = OnnxModelFacts((), (), 2, 2, (), True, False, False, ("Conv_12", "Conv_46"), frozenset({"Conv_12", "Conv_46"}))


def tensor(name: str, kind: str) -> dict[str, Any]:
    return {"Name": name, "Location": "Device", "Dimensions": [1, 32, 112, 112], "Format/Datatype": kind}


OF_8: dict[str, Any] = {
    "Layers": [
        {
            "Name": "QuantizeLinear_2",
            "LayerType": "Reformat",
            "Inputs": [tensor("input1", "Row major linear FP32")],
            "Outputs": [tensor("317", "Four wide channel vectorized row major Int8 format")],
            "ParameterType": "Reformat",
            "Origin": "QDQ",
            "TacticValue": "0x0000000000000000",
        },
        {
            "Name": "features.0.0.weight + QuantizeLinear_8 + Conv_12 + PWN(Clip_16)",
            "LayerType": "CaskConvolution",
            "Inputs": [tensor("317", "Four wide channel vectorized row major Int8 format")],
            "Outputs": [tensor("334", INT8)],
            "ParameterType": "Convolution",
            "Weights": {"Type": "Int8", "Count": 864},
            "Bias": {"Type": "Float", "Count": 32},
            "TacticName": "volta_int8x4_icudnn_int8x4_128x32_relu_xregs_medium_c32_nn_v1",
        },
        {
            "Name": "features.2.conv.2.weight + QuantizeLinear_42 + Conv_46 + Add_48",
            "LayerType": "CaskConvolution",
            "Inputs": [tensor("399", HALF), tensor("410", HALF)],
            "Outputs": [tensor("410", HALF)],
            "Weights": {"Type": "Half", "Count": 2304},
            "TacticName": "turing_h1688cudnn_128x128_ldg8_relu_exp_small_nhwc_tn_v1",
        },
    ],
    "Bindings": ["input1", "output1"],
}
NODES = {"QuantizeLinear_2", "QuantizeLinear_8", "Conv_12", "Clip_16", "QuantizeLinear_42", "Conv_46", "Add_48"}


def test_metadata_of_fused_layers_may_have_control_characters() -> None:
    text = '{"Layers": [{"Name": "conv1 + relu1", "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]"}]}'
    (layer,) = layers_from_inspector(text, ())
    assert layer.nodes == ("conv1", "relu1")


def test_of_8() -> None:
    assert layers_from_inspector(json.dumps(OF_8), NODES) == (
        LayerFacts("QuantizeLinear_2", "reformat", "", ("QuantizeLinear_2",)),
        LayerFacts(OF_8["Layers"][1]["Name"], "CaskConvolution", "INT8", ("QuantizeLinear_8", "Conv_12", "Clip_16")),
        LayerFacts(OF_8["Layers"][2]["Name"], "CaskConvolution", "FP16", ("QuantizeLinear_42", "Conv_46", "Add_48")),
    )


def of_11(kind: dict[str, str]) -> str:
    """A layer whose tensors tell their type as ``kind`` does, in an engine with ``I/O Tensors``."""
    layer = {
        "Name": "/stem/Conv + /stem/Relu",
        "LayerType": "CaskGemmConvolution",
        "Inputs": [{"Name": "x", "Dimensions": [1, 3, 8, 8], **kind}],
        "Outputs": [{"Name": "y", "Dimensions": [1, 8, 8, 8], **kind}],
        "TacticName": "sm80_xmma_fprop",
        "Metadata": "[ONNX Layer: /stem/weight_QuantizeLinear]\x1e[ONNX Layer: /stem/Conv]\x1f[ONNX Layer: /stem/Relu]",
    }
    return json.dumps({"Layers": [layer], "I/O Tensors": [{"Name": "x", "IOMode": "Input", "DataType": "Float"}]})


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ({"Format/Datatype": "Int8"}, "INT8"),
        ({"Format": "LINEAR", "DataType": "Int8"}, "INT8"),
        ({"Format": "Row major linear FP32 format (kLINEAR)", "Datatype": "Half"}, "FP16"),
        ({"Format": "Row major linear FP16 format (kLINEAR)"}, "FP16"),
        ({"DataType": "Float"}, "FP32"),
        ({"DataType": "BF16"}, "BF16"),
        ({"DataType": "FP8"}, "FP8"),
        ({"Format/Datatype": "N/A due to dynamic shapes"}, ""),
    ],
)
def test_of_11(kind: dict[str, str], precision: str) -> None:
    (layer,) = layers_from_inspector(of_11(kind), ())
    assert layer.precision == precision
    assert layer.nodes == ("/stem/weight_QuantizeLinear", "/stem/Conv", "/stem/Relu")


def test_dynamic_shapes_leave_the_weights_and_the_kernels_name() -> None:
    unknown = [tensor("x", "N/A due to dynamic shapes")]
    weighted = {"Name": "a", "LayerType": "CaskConvolution", "Inputs": unknown, "Weights": {"Type": "Int8", "Count": 9}}
    named = {"Name": "b", "LayerType": "MatMul", "Inputs": unknown, "TacticName": "sm80_xmma_gemm_i8i8_i8i32_f32_tn"}
    copied = {"Name": "Reformatting CopyNode for Input Tensor 0 to a", "LayerType": "NoOp", "Inputs": unknown}
    found = layers_from_inspector(json.dumps({"Layers": [weighted, named, copied]}), ())
    assert [layer.precision for layer in found] == ["INT8", "INT8", ""]
    assert found[2].kind == "reformat"


def test_layers_that_are_names_alone() -> None:
    """As an engine of other verbosity tells them."""
    (layer,) = layers_from_inspector(json.dumps({"Layers": ["conv1 + relu1"]}), {"conv1"})
    assert layer == LayerFacts("conv1 + relu1", "", "", ("conv1",))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"Bindings": []}', "null"])
def test_what_is_no_inspectors_json(text: str) -> None:
    with pytest.raises(EngineError, match=r"^EngineInspector: gave no JSON with Layers \("):
        layers_from_inspector(text, ())


def test_counts_and_shares() -> None:
    layers = layers_from_inspector(json.dumps(OF_8), NODES)
    assert num_layers_by_precision(layers) == {"FP16": 1, "INT8": 1, "reformat": 1}
    assert summary(layers) == "Of 2 layers that compute, 1 in FP16 (50 %), 1 in INT8 (50 %); 1 more only reformat."
    found = inspection_from(layers, FACTS, "EngineInspector")
    assert (found.num_int8, found.notes) == (1, (summary(layers),))


def of_profile(number: int, kind: str) -> dict[str, Any]:
    """A layer of 8, without metadata, in its second profile as its binding's name there tells."""
    suffix = f" [profile {number}]" if number else ""
    return {"Name": f"w + Conv_12 + Relu_13{suffix}", "LayerType": "CaskConvolution", "Inputs": [tensor("x", kind)]}


def test_each_profile_is_counted_by_itself() -> None:
    layers = layers_from_inspector(json.dumps({"Layers": [of_profile(0, INT8), of_profile(1, HALF)]}), NODES)
    assert [(layer.nodes, layer.profile) for layer in layers] == [(("Conv_12",), 0), (("Conv_12",), 1)]
    assert num_layers_by_precision(layers) == {"INT8": 1}
    found = inspection_from(layers, replace(FACTS, product_names=("Conv_12",), quantized_names=("Conv_12",)), "it")
    words = "1 of 1 quantized convolutions and matrix products multiply integers, going by it."
    assert (found.num_int8, found.notes) == (1, (summary(layers), words, "In optimization profile 1, 0 do."))


def test_products_that_no_layer_tells_of_are_not_guessed() -> None:
    layers = layers_from_inspector(json.dumps({"Layers": [of_profile(0, INT8), "{ForeignNode[a...b]}"]}), NODES)
    found = inspection_from(layers, replace(FACTS, quantized_names=("Conv_12", "Conv_46")), "EngineInspector")
    assert found.num_int8 == -1
    assert found.notes[1] == (
        "1 of 2 quantized convolutions and matrix products multiply integers, going by EngineInspector, which does not "
        "tell of 1, such as 'Conv_46'."
    )
    assert inspection_from(layers, replace(FACTS, has_quantize=False), "EngineInspector").num_int8 == 1
    assert inspection_from(layers, replace(FACTS, has_quantize=False), "EngineInspector", is_native=True).num_int8 == -1


def test_precisions_that_are_not_told_are_not_made_up() -> None:
    names = layers_from_inspector('{"Layers": ["conv1"]}', {"conv1"})
    assert inspection_from(names, FACTS, "EngineInspector").num_int8 == -1
    without = replace(FACTS, has_quantize=False)
    assert inspection_from(names, without, "EngineInspector").num_int8 == 0
    assert inspection_from(names, without, "EngineInspector", is_native=True).num_int8 == -1


def test_layers_come_back_from_a_record() -> None:
    layers = layers_from_inspector(json.dumps(OF_8), NODES)
    assert layers_from_record(json.loads(json.dumps({"layers": [asdict(layer) for layer in layers]}))) == layers
    assert layers_from_record({}) == ()


def test_times_of_layers_are_medians_and_shares() -> None:
    conv = LayerFacts("conv", "product", "INT8", ("Conv_12",))
    assert layer_times_from({"conv": [9.0, 0.5, 1.5], "copy": [0.5, 0.5]}, (conv,)) == (
        LayerTime(conv, 1.5, 0.75),
        LayerTime(LayerFacts("copy", "", "", ()), 0.5, 0.25),
    )
    assert layer_times_from({"conv": [0.0]}, ()) == (LayerTime(LayerFacts("conv", "", "", ()), 0.0, 0.0),)
    assert layer_times_from({}, (conv,)) == ()
