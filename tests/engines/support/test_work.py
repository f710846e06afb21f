"""FLOPs of nodes, from shapes."""

from __future__ import annotations

import onnx.parser
import pytest

from engines.support.work import dims_of, flops_of, with_shapes


def work(text: str, **shapes: tuple[int, ...]) -> list[int]:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    graph = with_shapes(model, shapes).graph
    return [flops_of(node, dims_of(graph)) for node in graph.node]


@pytest.mark.parametrize(
    ("text", "flops"),
    [
        ("(float[1, 4, 8, 8] x, float[16, 4, 3, 3] w) => (float[1, 16, 6, 6] y) { y = Conv(x, w) }",
         2 * 16 * 36 * 4 * 9),
        ("(float[1, 4, 8, 8] x, float[4, 1, 3, 3] w) => (float[1, 4, 6, 6] y) { y = Conv<group = 4>(x, w) }",
         2 * 4 * 36 * 9),
        ("(float[1, 4, 8, 8] x, float[4, 2, 3, 3] w) => (float[1, 2, 10, 10] y) { y = ConvTranspose(x, w) }",
         2 * 4 * 64 * 2 * 9),
        ("(float[5, 3] x, float[3, 7] w) => (float[5, 7] y) { y = MatMul(x, w) }", 2 * 5 * 3 * 7),
        ("(float[2, 5, 3] x, float[2, 3, 7] w) => (float[2, 5, 7] y) { y = MatMul(x, w) }", 2 * 2 * 5 * 3 * 7),
        ("(float[3, 5] x, float[3, 7] w) => (float[5, 7] y) { y = Gemm<transA = 1>(x, w) }", 2 * 5 * 3 * 7),
        ('(float[2, 3] x, float[3, 4] w) => (float[2, 4] y) { y = Einsum<equation = "ij,jk->ik">(x, w) }', 2 * 24),
        ("(float[6, 2, 3] x, float[1, 12, 3] w, float[1, 12, 4] r) => (float[6, 1, 2, 4] y) "
         "{ y = GRU<hidden_size = 4>(x, w, r) }", 2 * 6 * 2 * 12 * (3 + 4)),
        ("(float[1, 4, 8, 8] x) => (float[1, 4, 1, 1] y) { y = GlobalAveragePool(x) }", 256),
        ("(float[2, 8] x) => (float[2, 1] y) { y = ReduceMean<axes = [1]>(x) }", 16),
        ("(float[2, 8] x) => (float[2, 8] y) { y = Relu(x) }", 16),
        ("(float[2, 8] x) => (float[8, 2] y) { y = Transpose(x) }", 0),
    ],
)  # fmt: skip
def test_each_kind(text: str, flops: int) -> None:
    assert work(text) == [flops]


def test_dynamic_dimensions_count_as_1_or_as_they_are_wanted() -> None:
    text = "(float[N, 3, S] x) => (float[N, 3, S] y) { y = Relu(x) }"
    assert work(text) == [3]
    assert work(text, x=(2, 3, 5)) == [30]


def test_a_branch_counts_by_its_larger_side_and_what_is_not_known_as_little() -> None:
    bodies = (
        "then_branch = t () => (float[8] a) { a = Relu(x) }, else_branch = e () => (float[8] b) { b = Identity(x) }"
    )
    assert work(f"(bool c, float[8] x) => (float[8] y) {{ y = If<{bodies}>(c) }}") == [8]


def test_a_shape_that_is_computed_from_constants_is_known() -> None:
    text = """(float[N, 2, 12] x, float[4, 7] w) => (float[N, 6, 7] y) <int64[3] s = {-1, 6, 4}>
    { r = Reshape(x, s) y = MatMul(r, w) }"""
    assert work(text) == [0, 2 * 6 * 7 * 4]
