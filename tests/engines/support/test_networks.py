"""Networks such as people bring: what each release's list and a real parser take of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines.backends import tensorrt_rtx
from engines.support.answers import SupportAnswer
from engines.support.by_list import answer_by_list
from engines.support.operator_lists import generation_named

SaveModel = Callable[[str], Path]
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'

ATTENTION = f"""{HEAD} g (float[N, 16, 32] x, float[32, 32] q, float[32, 32] k, float[32, 32] v) => (float[N, 16, 32] y)
<float s = {{0.25}}, float[32] one = {{{", ".join(["1"] * 32)}}}, int64[4] heads = {{0, 0, 4, 8}},
 int64[3] whole = {{0, 0, 32}}>
{{
    [norm] n = LayerNormalization(x, one)
    [q] a = MatMul(n, q)  [k] b = MatMul(n, k)  [v] c = MatMul(n, v)
    [qh] d = Reshape(a, heads)  [kh] e = Reshape(b, heads)  [vh] f = Reshape(c, heads)
    [qt] g1 = Transpose<perm = [0, 2, 1, 3]>(d)  [kt] h = Transpose<perm = [0, 2, 3, 1]>(e)
    [vt] i = Transpose<perm = [0, 2, 1, 3]>(f)
    [scores] j = MatMul(g1, h)  [scale] l = Mul(j, s)  [soft] m = Softmax<axis = 3>(l)  [mix] o = MatMul(m, i)
    [back] p = Transpose<perm = [0, 2, 1, 3]>(o)  [flat] r = Reshape(p, whole)  [sum] y = Add(r, x)
}}"""
RECURRENT = f"""{HEAD} g (float[12, N, 8] x, float[1, 64, 8] w, float[1, 64, 16] r) => (float[N, 16] y)
<int64[1] zero = {{0}}>
{{ [lstm] s, h = LSTM<hidden_size = 16>(x, w, r)  [last] y = Squeeze(h, zero) }}"""
DETECTOR = f"""{HEAD} g (float[1, 20, 4] boxes, float[1, 1, 20] scores) => (int64[M, 3] kept)
<int64 most = {{5}}, float overlap = {{0.5}}, float least = {{0.1}}>
{{ [nms] kept = NonMaxSuppression(boxes, scores, most, overlap, least) }}"""
SEGMENTER = f"""{HEAD} g (float[N, 8, 16, 16] x, float[8, 4, 2, 2] w) => (float[N, 4, 64, 64] y)
<float[4] scales = {{1, 1, 2, 2}}>
{{
    [up] u = ConvTranspose<strides = [2, 2]>(x, w)
    [larger] y = Resize<mode = "linear", coordinate_transformation_mode = "half_pixel">(u, , scales)
}}"""
LOOP = f"""{HEAD} g (float[2] x, int64 n) => (float[2] y) <bool go = {{1}}>
{{
    [loop] y = Loop<body = b (int64 i, bool c, float[2] a) => (bool d, float[2] s)
    {{ d = Identity(c) s = Add(a, x) }}>(n, go, x)
}}"""
NETWORKS = {"attention": ATTENTION, "recurrent": RECURRENT, "detector": DETECTOR, "segmenter": SEGMENTER, "loop": LOOP}


def listed(model: Path, version: str) -> SupportAnswer:
    return answer_by_list(model, generation_named(version), {})


@pytest.mark.parametrize("name", NETWORKS)
def test_the_newest_list_and_the_parser_take_them(save_model: SaveModel, name: str) -> None:
    model = save_model(NETWORKS[name])
    assert listed(model, "10.15").sentence() == ""
    if tensorrt_rtx.why_not_ask():
        pytest.skip(tensorrt_rtx.why_not_ask())
    refused = ["nms"] if name == "detector" else []  # Its parser takes that too; its builder has nothing that runs it.
    assert [node.name for node in tensorrt_rtx.ask(model, {}).unsupported] == refused


def test_8_5_has_no_layer_normalization(save_model: SaveModel) -> None:
    answer = listed(save_model(ATTENTION), "8.5")
    assert [node.name for node in answer.unsupported] == ["norm"]
    assert len(answer.partition.segments) == 1
    assert answer.partition.num_crossings == 1, "its input is the model's, its output is read by one segment"
    assert answer.partition.flops_share > 0.99
    assert listed(save_model(ATTENTION), "8.6").is_whole


@pytest.mark.parametrize(
    ("name", "node", "flops"),
    [
        ("attention", "scores", 2 * 4 * 16 * 16 * 8),
        ("attention", "q", 2 * 16 * 32 * 32),
        ("recurrent", "lstm", 2 * 12 * 64 * (8 + 16)),
        ("segmenter", "up", 2 * 8 * 16 * 16 * 4 * 4),
        ("loop", "loop", 2),
    ],
)
def test_what_they_compute(save_model: SaveModel, name: str, node: str, flops: int) -> None:
    answer = listed(save_model(NETWORKS[name]), "10.15")
    assert {each.name: each.flops for each in answer.nodes}[node] == flops
