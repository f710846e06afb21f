"""The stage `export`: what a source is, and ONNX sources, for which no TensorFlow is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from engines.backends import onnxruntime
from pipeline.artifact import OnnxModel
from pipeline.errors import ConfigError, ModelError, StageError
from pipeline.stages.export import Export
from tests.pipeline.stages.networks import Arrays, operators

CONV = """
<ir_version: 8, opset_import: ["" : OPSET]>
net (float[N, 2, 4, 4] image) => (float[N, 4, 4, 4] y)
<float[4, 2, 3, 3] w, float[4] gamma, float[4] beta, float[4] mean, float[4] variance>
{
    features = Conv <pads = [1, 1, 1, 1]> (image, w)
    y = BatchNormalization (features, gamma, beta, mean, variance)
}
"""


EXPORT = Export()


def conv_model(opset: int) -> onnx.ModelProto:
    model = onnx.parser.parse_model(CONV.replace("OPSET", str(opset)))
    random = np.random.default_rng(3)
    for name, shape in {"w": (4, 2, 3, 3), **dict.fromkeys(("gamma", "beta", "mean", "variance"), (4,))}.items():
        values = random.uniform(0.5, 1.5, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model


def export_onnx(model: onnx.ModelProto, folder: Path, stage: Export = EXPORT) -> OnnxModel:
    onnx.save(model, folder / "source.onnx")
    out = folder / "out"
    out.mkdir()
    return stage(out, OnnxModel(folder / "source.onnx"))


def answer(path: Path, feed: Arrays) -> Arrays:
    with onnxruntime.load(path, num_threads=1) as runner:
        return runner.infer(feed)


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_an_onnx_source_is_upgraded_and_its_batch_norm_folded(tmp_path: Path, opset: int) -> None:
    made = export_onnx(conv_model(opset), tmp_path)
    model = onnx.load(made.path)
    assert operators(model) == ["Conv"]
    assert model.opset_import[0].version == 17
    feed = {"image": np.random.default_rng(4).normal(size=(5, 2, 4, 4)).astype(np.float32)}
    expected = answer(tmp_path / "source.onnx", feed)
    np.testing.assert_allclose(answer(made.path, feed)["y"], expected["y"], rtol=1e-4, atol=1e-5)
    upgraded = ["export: converted from opset 11 to 17"] if opset == 11 else []
    assert made.notes()[: len(upgraded)] == upgraded
    assert any("folded into weights" in note for note in made.notes())


def test_folding_can_be_left_out(tmp_path: Path) -> None:
    made = export_onnx(conv_model(17), tmp_path, Export(fold=False))
    assert operators(onnx.load(made.path)) == ["Conv", "BatchNormalization"]
    assert made.notes() == []


def test_a_later_opset_is_brought_down_with_the_same_answers(tmp_path: Path) -> None:
    made = export_onnx(conv_model(19), tmp_path, Export(fold=False))
    assert onnx.load(made.path).opset_import[0].version == 17
    assert made.notes() == ["export: converted from opset 19 to 17"]


def test_a_later_opset_that_cannot_be_brought_down_is_kept_and_noted(tmp_path: Path) -> None:
    text = '<ir_version: 9, opset_import: ["" : 20]> net (float[N] x) => (float[N] y) { y = Gelu (x) }'
    made = export_onnx(onnx.parser.parse_model(text), tmp_path, Export())
    assert onnx.load(made.path).opset_import[0].version == 20
    (note,) = made.notes()
    assert note.startswith("export: opset 20 is kept: onnx cannot convert it from opset 20 to 17 (")


@pytest.mark.parametrize("opset", [12, 19])
def test_an_opset_that_cannot_be_had_is_refused(tmp_path: Path, opset: int) -> None:
    with pytest.raises(ConfigError, match=rf"opset is {opset}, but tf2onnx and Q/DQ take 13 to 18"):
        export_onnx(conv_model(17), tmp_path, Export(opset=opset))


def test_opset_18_works(tmp_path: Path) -> None:
    made = export_onnx(conv_model(13), tmp_path, Export(opset=18))
    assert onnx.load(made.path).opset_import[0].version == 18


COLON = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 2] x) => (float[N, 2] y) { hidden = Relu (x) y = Neg (hidden) }
"""


def test_colons_in_an_onnx_source_go_and_the_old_names_are_kept(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(COLON)
    model.graph.input[0].name = model.graph.node[0].input[0] = "x:0"
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "scope/hidden:1"
    model.graph.output[0].name = model.graph.node[1].output[0] = "y:0"
    made = export_onnx(model, tmp_path)
    graph = onnx.load(made.path).graph
    assert [node.output[0] for node in graph.node] == ["scope/hidden_1", "y"]
    names = json.loads(made.beside("names.json").read_text())
    assert names == {"x": "x:0", "y": "y:0", "scope/hidden_1": "scope/hidden:1"}

    feed = {"x": np.array([[1, -2]], np.float32)}
    np.testing.assert_array_equal(answer(made.beside("source.onnx"), feed)["y"], answer(made.path, feed)["y"])


def test_an_onnx_source_with_good_names_is_not_copied(tmp_path: Path) -> None:
    assert not export_onnx(conv_model(17), tmp_path).beside("source.onnx").exists()


def test_weights_beside_the_onnx_file_come_into_it(tmp_path: Path) -> None:
    model = conv_model(17)
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="big.data", size_threshold=0)
    (tmp_path / "out").mkdir()
    made = Export()(tmp_path / "out", OnnxModel(tmp_path / "big.onnx"))
    feed = {"image": np.ones((1, 2, 4, 4), np.float32)}
    expected = answer(tmp_path / "big.onnx", feed)["y"]
    (tmp_path / "big.data").unlink()
    np.testing.assert_allclose(answer(made.path, feed)["y"], expected, rtol=1e-4)


def test_other_weights_beside_the_same_onnx_file_are_another_model(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    onnx.save(conv_model(17), path, save_as_external_data=True, location="big.data", size_threshold=0)
    before, bytes_before = OnnxModel(path).digest(), path.read_bytes()
    weights = bytearray((tmp_path / "big.data").read_bytes())
    weights[0] ^= 1
    (tmp_path / "big.data").write_bytes(weights)
    assert path.read_bytes() == bytes_before
    assert OnnxModel(path).digest() != before


CUSTOM = """
<ir_version: 8, opset_import: ["" : 17, "com.example" : 1]>
net (float[N, 2] x) => (float[N, 2] y) { y = com.example.Sharpen (x) }
"""


LOCAL_FUNCTION = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
net (float[N, 2] x) => (float[N, 2] y) { y = local.twice (x) }
<domain: "local", opset_import: ["" : 17]>
twice (a) => (b) { b = Add (a, a) }
"""


def test_an_operator_of_another_domain_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"node 'y' is Sharpen of the domain 'com\.example', operators of ONNX itself"):
        export_onnx(onnx.parser.parse_model(CUSTOM), tmp_path)


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ("SimplifiedLayerNormalization (x, x)", "is SimplifiedLayerNormalization, which is no operator of ONNX itself"),
        ("Dropout (x, x, yes)", r"\(Dropout\) is in training mode, .*; export the network in evaluation mode"),
    ],
)
def test_what_is_refused_before_anything_is_done_is_one_sentence(tmp_path: Path, new: str, words: str) -> None:
    text = CUSTOM.replace("com.example.Sharpen (x)", new).replace("{ y", "<bool yes = {1}> { y")
    with pytest.raises(StageError, match=rf"source\.onnx: node 'y' {words}"):
        export_onnx(onnx.parser.parse_model(text), tmp_path)


def test_sparse_constants_become_dense(tmp_path: Path) -> None:
    indices = onnx.helper.make_tensor("i", onnx.TensorProto.INT64, [1], [2])
    sparse = onnx.helper.make_sparse_tensor(onnx.helper.make_tensor("s", 1, [1], [3.0]), indices, [4])
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 4] x) => (float[N, 4] y)'
        " { a = Add (x, s)  y = Mul (a, c) }"
    )
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["c"], sparse_value=sparse))
    model.graph.sparse_initializer.append(sparse)
    made = export_onnx(model, tmp_path)
    assert answer(made.path, {"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[0.0, 0.0, 12.0, 0.0]]


def test_a_plugin_of_tensorrt_is_named(tmp_path: Path) -> None:
    words = r"node 'y': BatchedNMS_TRT is a TensorRT plugin: nothing but TensorRT runs it; cut the model in front of it"
    with pytest.raises(StageError, match=words):
        export_onnx(onnx.parser.parse_model(CUSTOM.replace("com.example.Sharpen", "BatchedNMS_TRT")), tmp_path)


def test_a_function_inside_the_file_is_no_foreign_operator(tmp_path: Path) -> None:
    made = export_onnx(onnx.parser.parse_model(LOCAL_FUNCTION), tmp_path)
    assert operators(onnx.load(made.path)) == ["Add"]


def test_a_truncated_onnx_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(conv_model(17).SerializeToString()[:300])
    with pytest.raises(StageError, match=r"cut\.onnx: is not a whole ONNX model .*; export it again") as caught:
        Export()(tmp_path, OnnxModel(path))
    assert "\n" not in str(caught.value)


def test_an_invalid_onnx_file_is_one_sentence(tmp_path: Path) -> None:
    model = conv_model(17)
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match=r"source\.onnx: is not a valid ONNX model .*nowhere"):
        export_onnx(model, tmp_path)


def test_an_empty_onnx_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ModelError, match=r"empty\.onnx: the model has no outputs"):
        Export()(tmp_path, OnnxModel(tmp_path / "empty.onnx"))


def test_an_onnx_source_needs_no_tensorflow(tmp_path: Path) -> None:
    onnx.save(conv_model(11), tmp_path / "source.onnx")
    code = """
import sys
from pathlib import Path
sys.modules["tensorflow"] = sys.modules["tf2onnx"] = None  # As if they were not installed.
from pipeline.artifact import OnnxModel
from pipeline.stages.export import Export
print(Export()(Path(sys.argv[1]), OnnxModel(Path(sys.argv[1], "source.onnx"))).path.name)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "model.onnx\n"


def test_dimensions_without_a_meaning_are_told_apart(tmp_path: Path) -> None:
    """As Paddle's exporter writes them: TensorRT takes two of one name for one and the same."""
    shape: list[str | int | None] = ["?", 3, "?", "?"]
    named: list[str | int | None] = ["N", 3, "H", "H"]
    values = [onnx.helper.make_tensor_value_info(name, 1, s) for name, s in (("x", shape), ("z", named))]
    outputs = [onnx.helper.make_tensor_value_info(name, 1, s) for name, s in (("y", shape), ("v", named))]
    nodes = [onnx.helper.make_node("Relu", [a], [b]) for a, b in (("x", "y"), ("z", "v"))]
    graph = onnx.helper.make_graph(nodes, "net", values, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    made = onnx.load(export_onnx(model, tmp_path, Export()).path).graph
    dims = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*made.input, *made.output)
    }
    assert dims["x"] == ["batch", 3, "x_2", "x_3"]
    assert dims["z"] == dims["v"] == named
    assert dims["y"] in ([0, 3, 0, 0], ["batch", 3, "x_2", "x_3"])


@pytest.mark.parametrize("opset", [11, 17, 18, 20])
def test_local_functions_are_written_out(tmp_path: Path, opset: int) -> None:
    """As exporters of PyTorch write them; onnx's converter would drop them."""
    helper = onnx.helper
    own = [helper.make_opsetid("", opset)]
    function = helper.make_function("mine", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], own)
    x, y = (helper.make_tensor_value_info(name, 1, ["N", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("F", ["x"], ["y"], domain="mine")], "net", [x], [y])
    imports = [*own, helper.make_opsetid("mine", 1)]
    model = helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8)
    made = onnx.load(export_onnx(model, tmp_path, Export()).path)
    assert [node.op_type for node in made.graph.node] == ["Relu"]
    assert made.opset_import[0].version == 17
