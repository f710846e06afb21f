"""Small matrix products stay in float for TensorRT, unless a network has no others or the user wants them in INT8."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.numpy_helper import from_array

from calibration.precision.placement import PlacementOptions, PlacementTarget, QdqPlacement, SmallProductChoice
from calibration.precision.qdq import qdq_from_onnx
from calibration.ranges.span import Span

BODY = "hidden = Gemm (x, a)"
HEADS = {
    "few outputs": ("y = Gemm (hidden, b)", (32, 4)),
    "few outputs, turned": ("y = Gemm <transB = 1> (hidden, b)", (4, 32)),
    "few outputs of a MatMul": ("y = MatMul (hidden, b)", (32, 15)),
    "enough": ("y = Gemm (hidden, b)", (32, 16)),
    "enough, turned": ("y = Gemm <transB = 1> (hidden, b)", (16, 32)),
}


def network(body: str, head: str, **weights: tuple[int, ...]) -> onnx.ModelProto:
    """Two products, of which the second gives the answers."""
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> net (float[2, 32] x) => (float[M, N] y) {{ {body} {head} }}'
    )
    random = np.random.default_rng(0)
    for name, shape in weights.items():
        model.graph.initializer.append(from_array(random.normal(size=shape).astype(np.float32), name))
    for node in model.graph.node:
        node.name = node.output[0]
    return onnx.shape_inference.infer_shapes(model)


def placed(
    model: onnx.ModelProto,
    choice: SmallProductChoice = "rest",
    target: PlacementTarget = "tensorrt",
    exclude: tuple[str, ...] = (),
) -> QdqPlacement:
    spans = {name: Span(2.0, -2.0, 2.0) for name in ("x", "hidden", "y", "turned", "low")}
    return qdq_from_onnx(model, spans, PlacementOptions(target, exclude, small_products=choice)).placement


@pytest.mark.parametrize("case", HEADS)
def test_a_head_of_few_outputs_stays_in_float(case: str) -> None:
    head, shape = HEADS[case]
    placement = placed(network(BODY, head, a=(32, 32), b=shape))
    is_small = "enough" not in case
    assert placement.nodes == (("hidden",) if is_small else ("hidden", "y"))
    assert [note for note in placement.notes if "'y'" in note] == [
        f"node 'y' ({'MatMul' if 'MatMul' in head else 'Gemm'}) stays FP32: 32 terms and {min(shape)} outputs are too "
        "few for INT8 kernels; small_products = int8 takes it too"
    ] * is_small


def test_few_terms_are_too_few_as_well() -> None:
    """As between the two halves of a matrix that was split for size."""
    head = "low = MatMul (hidden, b) y = MatMul (low, c)"
    placement = placed(network(BODY, head, a=(32, 32), b=(32, 8), c=(8, 32)))
    assert placement.nodes == ("hidden",)
    assert [note.partition(": ")[2][:24] for note in placement.notes] == [
        "32 terms and 8 outputs a",
        "8 terms and 32 outputs a",
    ]


def test_the_user_has_them_in_int8_and_onnx_runtime_always() -> None:
    model = network(BODY, "y = Gemm (hidden, b)", a=(32, 32), b=(32, 4))
    assert placed(model, "int8").nodes == ("hidden", "y")
    assert placed(model, target="onnxruntime").nodes == ("hidden", "y")


def test_a_network_of_small_products_alone_is_in_int8() -> None:
    """INT8 was asked for; but what the user excludes does not bring another product into it."""
    assert placed(network("hidden = Relu (x)", "y = Gemm (hidden, b)", b=(32, 4))).nodes == ("y",)
    model = network(BODY, "y = Gemm (hidden, b)", a=(32, 32), b=(32, 4))
    assert placed(model, exclude=("hidden",)).nodes == ()


def test_products_of_data_are_judged_by_their_shapes() -> None:
    model = network(f"{BODY} turned = Transpose <perm = [1, 0]> (hidden)", "y = MatMul (turned, hidden)", a=(32, 32))
    placement = placed(model)
    assert placement.nodes == ("hidden",)
    assert "2 terms and 32 outputs are too few" in placement.notes[0]
