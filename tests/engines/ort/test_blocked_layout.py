"""Tensors given out in the blocked layout: the same values, to the bit, and only where nothing else needs the order."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.errors import EngineError
from engines.ort.blocked_layout import block_size, probe, unordered

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
from engines.backends import onnxruntime as ort

NETWORK = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, 12, 12] x) => (float[N, 20, 12, 12] y, float[N, 32, 12, 12] a, float[N, 32, 12, 12] b, float[N, 20] p)
{
    c = Conv<pads = [1, 1, 1, 1]>(x, v)
    a = Relu(c)
    d = Conv<pads = [1, 1, 1, 1]>(a, w)
    b = Add(d, a)
    y = Conv(b, u)
    m = ReduceMean<axes = [2, 3], keepdims = 0>(y)
    p = Softmax(m)
}"""


WEIGHTS = {"v": (32, 3, 3, 3), "w": (32, 32, 3, 3), "u": (20, 32, 1, 1)}


def save(text: str, path: Path) -> Path:
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(random.standard_normal(shape, np.float32), name))
    onnx.save(model, path)
    return path


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return save(NETWORK, tmp_path / "network.onnx")


def test_the_values_are_those_of_the_ordered_run_to_the_bit(network: Path) -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, 12, 12)).astype(np.float32)
    with ort.load(network, num_threads=1) as ordered:
        wanted = ordered.infer({"x": x})
    with ort.load_values(network, num_threads=1) as runner:
        found = runner.infer({"x": x})
        assert (runner.inputs, runner.outputs) == (ordered.inputs, ordered.outputs)
    assert list(found) == ["y", "a", "b", "p"]
    for name, values in wanted.items():
        assert found[name].dtype == values.dtype
        for ours, theirs in zip(found[name], values, strict=True):  # Each sample's own.
            assert np.array_equal(np.sort(ours, axis=None), np.sort(theirs, axis=None)), name
    for name in ("y", "p"):  # 20 channels do not fill blocks, and the mean reads the order.
        assert np.array_equal(found[name], wanted[name])


def test_it_tells_how_the_values_lie(network: Path) -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, 12, 12)).astype(np.float32)
    with ort.load(network, num_threads=1) as ordered:
        wanted = ordered.infer({"x": x})
    with ort.load_values(network, num_threads=1) as runner:
        values, blocks = runner.infer({"x": x}), runner.blocks  # type: ignore[attr-defined]
    assert set(blocks) <= {"a", "b"}
    for name, array in wanted.items():
        assert block_size(values[name], array) == blocks.get(name, 1)


def test_a_layout_that_is_another_is_not_taken_for_one_that_is_known() -> None:
    model, x = probe()
    onnx.checker.check_model(model)
    assert block_size(x, x) == 1
    assert block_size(x[..., ::-1], x) is None


def test_nothing_is_left_beside_the_model(network: Path) -> None:
    before = sorted(network.parent.iterdir())
    with ort.load_values(network, num_threads=1):
        assert sorted(network.parent.iterdir()) != before
    assert sorted(network.parent.iterdir()) == before


def test_a_refused_model_leaves_nothing_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"no model")
    with (
        pytest.raises(EngineError, match=r"broken\.onnx: ONNX Runtime refuses the model"),
        ort.load_values(path, num_threads=1),
    ):
        pass
    assert list(tmp_path.iterdir()) == [path]


def test_where_the_weights_find_no_room_the_system_says_so(network: Path) -> None:
    before, (soft, hard) = sorted(network.parent.iterdir()), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, hard))
    try:
        with pytest.raises(OSError, match="File too large"), ort.load_values(network, num_threads=1):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(network.parent.iterdir()) == before


def test_a_wrong_feed_is_refused_as_ever(network: Path) -> None:
    with (
        pytest.raises(EngineError, match=r"network\.onnx: input 'x' has shape \(1, 4, 12, 12\)"),
        ort.load_values(network, num_threads=1) as runner,
    ):
        runner.infer({"x": np.zeros((1, 4, 12, 12), np.float32)})


BRANCHES = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 3, 12, 12] x, bool c) => (float[N, 32, 12, 12] b, float[N, 32, 12, 12] y)
{
    b = Conv<pads = [1, 1, 1, 1]>(x, v)
    a = Sigmoid(b)
    y = If(c) <
        then_branch = yes () => (float[N, 32, 12, 12] i) { i = Conv<pads = [1, 1, 1, 1]>(a, w) },
        else_branch = no () => (float[N, 32, 12, 12] j) { k = Conv<pads = [1, 1, 1, 1]>(a, w) j = Relu(k) }
    >
}"""


def test_convolutions_in_branches_run(tmp_path: Path) -> None:
    path = save(BRANCHES, tmp_path / "branches.onnx")
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    for branch in model.graph.node[2].attribute:
        branch.g.initializer.append(weight)  # Constant for that graph, so that it is computed in blocks too.
    model.graph.initializer.remove(weight)
    onnx.save(model, path)
    x = np.random.default_rng(1).standard_normal((1, 3, 12, 12)).astype(np.float32)
    with ort.load(path, num_threads=1) as ordered, ort.load_values(path, num_threads=1) as runner:
        for c in (True, False):
            wanted, found = (each.infer({"x": x, "c": np.array(c)}) for each in (ordered, runner))
            assert all(np.array_equal(found[name], wanted[name]) for name in ("b", "y"))


def reordered(text: str) -> onnx.ModelProto:
    """A graph as ONNX Runtime saves it; `R` stands for its operator that brings blocks into order."""
    head = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft.nchwc" : 1]>'
    return onnx.parser.parse_model(head + text.replace("R<", "com.microsoft.nchwc.ReorderOutput<"))


def test_an_output_that_is_only_reordered_is_given_out_as_it_was() -> None:
    found = unordered(
        reordered("g (float[N] x) => (float[N] y, float[N] z) { t = Relu(x) y = R<channels = 32>(t) z = Abs(t) }")
    )
    assert found.source == {"y": "t", "z": "z"}
    assert found.num_reordered == 1
    assert [value.name for value in found.model.graph.output] == ["t", "z"]
    assert [node.op_type for node in found.model.graph.node] == ["Relu", "Abs"]
    assert not found.model.graph.output[0].type.tensor_type.HasField("shape")  # Blocks have a shape of their own.


@pytest.mark.parametrize(
    ("why", "text"),
    [
        ("blocks are padded", "g (float[N] x) => (float[N] y) { t = Relu(x) y = R<channels = 24>(t) }"),
        ("channels are not told", "g (float[N] x) => (float[N] y) { t = Relu(x) y = R<channels_last = 0>(t) }"),
        ("it is read", "g (float[N] x) => (float[N] y, float[N] z) { t = Relu(x) y = R<channels = 32>(t) z = Abs(y) }"),
        ("it is no output", "g (float[N] x) => (float[N] z) { t = Relu(x) y = R<channels = 32>(t) z = Abs(y) }"),
        (
            "there are graphs inside",
            "g (float[N] x, bool c) => (float[N] y, float[N] z) { t = Relu(x) y = R<channels = 32>(t) "
            "z = If(c) <then_branch = a () => (float[N] i) { i = Abs(x) }, "
            "else_branch = b () => (float[N] j) { j = Neg(x) }> }",
        ),
    ],
)  # fmt: skip
def test_what_needs_the_order_keeps_it(why: str, text: str) -> None:
    found = unordered(reordered(text))
    assert found.num_reordered == 0, why
    assert "ReorderOutput" in [node.op_type for node in found.model.graph.node]


def test_two_outputs_of_one_tensor_share_what_is_given_out() -> None:
    nodes = "{ t = Relu(x) y = R<channels = 16>(t) z = R<channels = 16>(t) }"
    found = unordered(reordered("g (float[N] x) => (float[N] y, float[N] z)" + nodes))
    assert found.source == {"y": "t", "z": "t"}
    assert [value.name for value in found.model.graph.output] == ["t"]
