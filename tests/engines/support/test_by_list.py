"""What a release's list says of models that a reader sees whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engines.plugin_library import NAMED
from engines.support.answers import SupportAnswer
from engines.support.by_list import answer_by_list
from engines.support.operator_lists import generation_named
from tests.engines.plugins import GIVES, for_another_processor, plugin_library

SaveModel = Callable[[str], Path]
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def asked(model: Path, version: str = "8.6") -> SupportAnswer:
    return answer_by_list(model, generation_named(version), {})


def reason(save_model: SaveModel, body: str, version: str = "8.6", head: str = HEAD) -> str:
    """Why the one node of it that does not run does not; empty if all do."""
    answer = asked(save_model(f"{head} g {body}"), version)
    assert len(answer.unsupported) <= 1
    return answer.unsupported[0].reason if answer.unsupported else ""


def test_what_runs_is_folded_and_does_not_run(save_model: SaveModel) -> None:
    answer = asked(
        save_model(
            f"""{HEAD} g (float[2, 3, 3] x) => (float[2] y) <float[2] w = {{1, 2}}>
            {{ [double] v = Add(w, w) [norm] d = Det(x) [scale] y = Mul(d, v) }}"""
        )
    )
    assert [(node.name, node.state) for node in answer.nodes] == [
        ("double", "folded"),
        ("norm", "unsupported"),
        ("scale", "runs"),
    ]
    assert not answer.is_whole
    assert answer.sentence() == (
        "node 'norm', Det: TensorRT 8.6 does not read this operator; replace it in the network, or build for a backend "
        "that has it"
    )
    assert answer.source == "NVIDIA's list of the operators of TensorRT 8.6"


def test_a_later_release_that_reads_it_is_named(save_model: SaveModel) -> None:
    body = "(float[2, 4] x, float[4] s) => (float[2, 4] y) { y = LayerNormalization(x, s) }"
    assert reason(save_model, body, "8.5").startswith(
        "TensorRT 8.5 does not read this operator; TensorRT 8.6 is the first that does; update it, or replace it"
    )
    assert reason(save_model, body, "8.6") == ""


def test_what_depends_on_constants_alone_is_better_computed_beforehand(save_model: SaveModel) -> None:
    words = reason(save_model, "(float[2] x) => (float[2] y) <float[2,1,1] w = {1,2}> { v = Det(w) y = Mul(x, v) }")
    assert words.endswith("what it reads does not vary: `trtforge export` computes it beforehand")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("(float[2, 8] x, int64[1] a) => (float[2, 8] y) { y = Slice(x, a, a, a, a) }", "its list of axes is computed"),
        ("(float[2, 8] x, int64[1] k) => (float[2, 1] y, int64[2, 1] i) { y, i = TopK(x, k) }", "its K is computed"),
        ("(float[1, 4, 8, 8] x) => (float[1, 4, 6, 6] y) { y, i = MaxPool<kernel_shape=[3, 3]>(x) }", "more than its"),
        ("(float[1, 4, 8, 8] x) => (float[1, 4, 4, 4] y) "
         "{ y = MaxPool<kernel_shape=[3, 3], dilations=[2, 2]>(x) }", "it is dilated"),
        ("(float[2, 8] x) => (uint8[2, 8] y) <float s = {0.5}, uint8 z = {3}> { y = QuantizeLinear(x, s, z) }",
         "its zero point is not 0"),
        ("(int32[8] x) => (float[8] y) <float s = {0.5}> { y = DequantizeLinear(x, s) }", "it restores INT32"),
        ("(float[1, 1, 4, 4] x) => (float[1, 1, 8, 8] y) <float[4] s = {1, 1, 2, 2}> "
         '{ y = Resize<mode = "cubic">(x, , s) }', "its mode is cubic"),
        ("(float[1, 1, 4, 4] x) => (float[1, 1, 8, 8] y) <float[4] s = {1, 1, 2, 2}> "
         '{ y = Resize<coordinate_transformation_mode = "tf_crop_and_resize">(x, , s) }', "its coordinates are"),
        ('(float[2, 3] x) => (float[2, 3] y) { y = Einsum<equation = "...i->...i">(x) }', "its equation ...i->...i"),
        ("(int32[2, 8] x) => (int64[2, 1] y) { y = ArgMax<axis = 1>(x) }", "it compares integers"),
        ("(float[2, 8] x, int64[2, 1] i, float[2, 8] u) => (float[2, 8] y) "
         '{ y = ScatterND<reduction = "add">(x, i, u) }', "its reduction is add"),
        ("(uint8[2] x, uint8[2] z) => (uint8[2] y) { y = Add(x, z) }", "it computes in UINT8"),
        ("(float[2, 4] x, float[4] s, float[4] b, float[4] m, float[4] v) => (float[2, 4] y, float[4] n, float[4] w) "
         "{ y, n, w = BatchNormalization<training_mode = 1>(x, s, b, m, v) }", "more than its first output"),
        ("(float[2, 4] x, bool t) => (float[2, 4] y) <float r = {0.5}> { y = Dropout(x, r, t) }", "its training mode"),
        ("(float[6, 2, 3] x, float[2, 12, 3] w, float[2, 12, 4] r) => (float[6, 2, 2, 4] y) "
         '{ y = GRU<hidden_size = 4, direction = "bidirectional", activations = ["Sigmoid", "Tanh", "Tanh", "Sigmoid"]>'
         "(x, w, r) }", "its two directions have different activations"),
        ("(float[2, 6, 3] x, float[1, 16, 3] w, float[1, 16, 4] r) => (float[2, 6, 1, 4] y) "
         "{ y = LSTM<hidden_size = 4, layout = 1>(x, w, r) }", "its layout or input_forget is not 0"),
        ("(float[2, 8] x) => (float[2, 3] y, int64[2, 3] i) <int64[1] k = {3}> { y, i = TopK<sorted = 0>(x, k) }",
         "its values are not sorted"),
        ("(float[1, 1, 2, 4, 4] x, float[1, 2, 3, 3, 3] g) => (float[1, 1, 2, 3, 3] y) { y = GridSample(x, g) }",
         "its input has 5 dimensions"),
        ('() => (string[1] y) { y = Constant<value_strings = ["a"]>() }', "it has to do with strings"),
        ("(float[1, 1, 4, 4] x) => (float[1, 1, 8, 8] y) <float[4] s = {1, 1, 2, 2}> "
         '{ y = Resize<nearest_mode = "odd">(x, , s) }', "it rounds by odd"),
        ("(uint16[2] x) => (uint16[2] y) { y = Identity(x) }", "it has to do with UINT16"),
        ("(string[2] x) => (string[2] y) { y = Identity(x) }", "it has to do with strings"),
        ("(float[2, 9000] x) => (float[2, 4000] y, int64[2, 4000] i) <int64[1] k = {4000}> { y, i = TopK(x, k) }",
         "it takes 4000 values"),
    ],
)  # fmt: skip
def test_restrictions_of_operators_that_are_read(save_model: SaveModel, body: str, words: str) -> None:
    assert reason(save_model, body, "8.5").startswith(words)


@pytest.mark.parametrize(
    ("body", "version"),
    [
        ("(float[2, 8] x, int64[1] a) => (float[2, 8] y) { y = Slice(x, a, a, a, a) }", "10.3"),
        ("(float[2, 8] x, int64[1] k) => (float[2, 1] y, int64[2, 1] i) { y, i = TopK(x, k) }", "8.6"),
        ("(float[2, 8] x) => (int8[2, 8] y) <float s = {0.5}, int8 z = {0}> { y = QuantizeLinear(x, s, z) }", "8.5"),
        ("(int32[2, 8] x) => (int64[2, 1] y) { y = ArgMax<axis = 1>(x) }", "8.6"),
        ('(float[2, 3] x) => (float[2, 3] y) { y = Einsum<equation = "...i->...i">(x) }', "10.12"),
        ("(float[2, 8] x) => (float[2, 8] y) "
         "<int64[1] a = {1}, int64[1] b = {0}> { c = Add(a, b) y = Slice(x, b, c, c, a) }", "8.5"),
    ],
)  # fmt: skip
def test_what_a_release_takes_after_all(save_model: SaveModel, body: str, version: str) -> None:
    assert reason(save_model, body, version) == ""


def test_reductions_over_an_input(save_model: SaveModel) -> None:
    head = '<ir_version: 8, opset_import: ["" : 18]>'
    fixed = "(float[2, 8] x) => (float[2, 1] y) <int64[1] a = {1}> { y = ReduceMean(x, a) }"
    assert reason(save_model, fixed, "8.6", head).startswith("its axes are an input, of which this version takes no")
    assert reason(save_model, fixed, "10.0", head) == ""
    varying = "(float[2, 8] x, int64[1] a) => (float[2, 1] y) { y = ReduceMean(x, a) }"
    assert reason(save_model, varying, "10.3", head).startswith("its axes are computed")


def test_bodies_functions_and_other_domains(save_model: SaveModel) -> None:
    branch = "then_branch = t () => (float[2] a) { a = Det(x) }, else_branch = e () => (float[2] b) { b = Celu(z) }"
    body = f"(bool c, float[2, 3, 3] x, float[2] z) => (float[2] y) {{ y = If<{branch}>(c) }}"
    assert reason(save_model, body).startswith("in its body, node 'a', Det: TensorRT 8.6 does not read this operator")
    assert reason(save_model, body.replace("Det(x)", "Relu(z)")) == ""
    head = '<ir_version: 8, opset_import: ["" : 17, "own" : 1]>'
    custom = "(float[2] x) => (float[2] y) { y = own.Twice(x) }"
    assert reason(save_model, custom, "8.6", head).startswith("TensorRT has no operators of the domain own, but for")
    function = '\n<domain: "own", opset_import: ["" : 17]> Twice (a) => (b) { b = Add(a, a) }'
    assert reason(save_model, custom + function, "8.6", head).startswith("it is a function of the model")
    assert reason(save_model, custom + function, "10.0", head) == ""
    assert reason(save_model, custom + function.replace("Add(a, a)", "Det(a)"), "10.0", head).startswith(
        "in its function, node 'b', Det"
    )


def test_plugins_are_left_to_the_parser(save_model: SaveModel) -> None:
    head = '<ir_version: 8, opset_import: ["" : 17, "TRT" : 1]>'
    assert reason(save_model, "(float[2] x) => (float[2] y) { y = TRT.EfficientNMS_TRT(x) }", "8.5", head) == ""


def test_operators_of_a_library_of_plugins_count_as_taken(save_model: SaveModel) -> None:
    head = '<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]>'
    model = save_model(f"{head} g (float[2, 2] x) => (float y) {{ h = com.example.Sharpen(x) y = Det(h) }}")
    release = generation_named("8.5")
    assert len(answer_by_list(model, release, {}).unsupported) == 2
    assert answer_by_list(model, release, {}, ("Sharpen", "Det")).is_whole


def test_operators_whose_names_stand_in_a_named_library_count_as_taken_and_it_is_said(
    save_model: SaveModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in one for another processor: nothing is loaded."""
    head = '<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]>'
    model = save_model(f"{head} g (float[2, 2] x) => (float y) {{ h = com.example.Sharpen(x) y = Det(h) }}")
    library = for_another_processor(plugin_library(tmp_path / "libs", GIVES, plugin="Sharpen"))
    monkeypatch.setenv(NAMED, str(library))
    answer = answer_by_list(model, generation_named("8.5"), {})
    assert [node.operator for node in answer.unsupported] == ["Det"]
    note = "Sharpen is taken for a plugin of libmy.so, where its name stands; TensorRT knows as it loads it."
    assert note in answer.notes
    assert note not in answer_by_list(model, generation_named("8.5"), {}, ("Sharpen",)).notes


def test_a_plugin_does_not_stand_in_for_what_tensorrt_reads(save_model: SaveModel) -> None:
    model = save_model(f"{HEAD} g (int32[2] x) => (bool[2] y) {{ y = Less(x, x) }}")
    assert answer_by_list(model, generation_named("8.5"), {}, ("Less",)) == asked(model, "8.5")


def test_opsets(save_model: SaveModel) -> None:
    model = save_model('<ir_version: 10, opset_import: ["" : 21]> g (float[3] x) => (float[3] y) { y = Relu(x) }')
    assert asked(model, "8.6").sentence() == (
        "is in opset 21, TensorRT 8.6 reads up to 17; write it in opset 17 (`trtforge export --opset 17`, or [export] "
        "opset)"
    )
    between = asked(model, "10.3")
    assert between.is_whole
    assert between.notes[0].startswith("Whether TensorRT 10.3 reads opset 21 is not listed")
    assert asked(model, "10.15").notes == (
        "Plugins and what depends on shapes are not in the list: the parser of that version has the last word.",
    )
