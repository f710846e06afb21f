"""The stage `export` on TensorFlow's networks: their answers, and what the converter says, in words."""

from __future__ import annotations

import importlib.util
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import numpy_helper

from calibration.graph.attention import attentions
from calibration.graph.editing import opened
from calibration.graph.watched_outputs import watchable
from calibration.precision.placement import PlacementOptions
from calibration.precision.qdq import qdq_from_onnx
from calibration.ranges.span import Span
from engines.backends import onnxruntime, tensorflow
from pipeline.artifact import OnnxModel, Source
from pipeline.errors import ConfigError, EngineError, StageError, Unavailable, exit_status
from pipeline.machine import child_process
from pipeline.sources import tf2onnx
from pipeline.sources.contract import source_from_path
from pipeline.sources.keras import KerasFile
from pipeline.sources.savedmodel import SavedModel
from pipeline.stages.export import Export
from tests.pipeline.stages.networks import Arrays, operators

needs_tensorflow = pytest.mark.skipif(
    bool(tensorflow.why_not_run()) or importlib.util.find_spec("tf2onnx") is None, reason="needs TensorFlow and tf2onnx"
)


NUM_SAMPLES = 3


@dataclass(frozen=True)
class Exported:
    """What became of one source: a model with a feed and TensorFlow's answers, or an error."""

    model: OnnxModel | None
    error: Exception | None
    feed: Arrays
    answers: Arrays
    """By name, as the signature calls them."""

    def made(self) -> onnx.ModelProto:
        assert self.model is not None, self.error
        return onnx.load(self.model.path)


JOBS: dict[str, tuple[str, str, int]] = {
    # name: (path below the folder, signature, opset)
    "two ports": ("saved", "serving_default", 17),
    "opset 18": ("saved", "serving_default", 18),
    "fixed batch": ("saved", "fixed", 17),
    "python function": ("saved", "python", 17),
    "unknown operators": ("saved", "bessel", 17),
    "narrow range": ("saved", "narrow", 17),
    "unused input": ("saved", "unused", 17),
    "no signature": ("saved", "predict", 17),
    "colon": ("colon", "serving_default", 17),
    "keras": ("model.keras", "", 17),
    "h5": ("model.h5", "", 17),
    "attention": ("attention.keras", "", 17),
    "groups": ("groups", "serving_default", 17),
    "keras export": ("exported", "serving_default", 17),
    "keras 2 with optimizer": ("keras2", "serving_default", 17),
    "keras 2 h5": ("keras2.h5", "", 17),
    "keras 2 hdf5": ("keras2.hdf5", "", 17),
    "truncated keras": ("cut.keras", "", 17),
    "truncated h5": ("cut.h5", "", 17),
    "truncated savedmodel": ("cut", "serving_default", 17),
}


def signatures(tf: Any) -> tuple[Any, dict[str, Any]]:
    """A module and its signatures: a depthwise convolution with what is left of a batch norm, and some traps."""
    module = tf.Module()
    random = np.random.default_rng(0)
    module.kernel = tf.Variable(random.normal(size=(3, 3, 2, 1)), dtype=tf.float32)
    module.weight = tf.Variable(random.normal(size=(2, 3)), dtype=tf.float32)

    def two_ports(zoom: Any, image: Any) -> dict[str, Any]:
        features = tf.nn.depthwise_conv2d(image, module.kernel, [1, 1, 1, 1], "SAME")
        pooled = tf.reduce_mean(tf.nn.relu(features * [1.5, 0.5] + [0.25, -0.25]), [1, 2])
        return {"zeta": pooled @ module.weight, "alpha": tf.nn.softmax(pooled @ module.weight + zoom)}

    def python(x: Any) -> dict[str, Any]:
        doubled = tf.numpy_function(lambda value: 2 * value, [x], tf.float32)
        return {"y": tf.ensure_shape(doubled, (None, 2))}

    def narrow(x: Any) -> dict[str, Any]:
        return {"y": tf.quantization.fake_quant_with_min_max_args(x, -6, 6, 8, narrow_range=True) @ module.weight}

    image, pair = tf.TensorSpec((None, 8, 8, 2), tf.float32), tf.TensorSpec((None, 2), tf.float32)
    fixed = tf.TensorSpec((4, 8, 8, 2), tf.float32, name="image")

    def named(spec: Any, name: str) -> Any:
        return tf.TensorSpec(spec.shape, spec.dtype, name=name)

    row = tf.TensorSpec((None, 3), tf.float32, name="zoom")
    takes: dict[str, tuple[Callable[..., Any], list[Any]]] = {
        "serving_default": (two_ports, [row, named(image, "image")]),
        "fixed": (lambda image: {"mean": tf.reduce_mean(image, [1, 2]) @ module.weight}, [fixed]),
        "python": (python, [named(pair, "x")]),
        "bessel": (lambda x: {"y": tf.math.bessel_i0(x) + tf.math.lgamma(x)}, [named(pair, "x")]),
        "narrow": (narrow, [named(pair, "x")]),
        "unused": (lambda x, spare: {"y": x @ module.weight}, [named(pair, "x"), named(pair, "spare")]),
    }
    return module, {name: tf.function(f, input_signature=specs) for name, (f, specs) in takes.items()}


def keras_model(keras: Any) -> Any:
    """A depthwise and a plain convolution, each with its batch norm, as in a MobileNet."""
    layers = keras.layers
    image = keras.Input((8, 8, 2), name="picture")
    x = layers.DepthwiseConv2D(3, use_bias=True)(image)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(4, 1, use_bias=True)(x)))
    scores = layers.Dense(3, activation="softmax", name="scores")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, scores)
    random = np.random.default_rng(1)
    model.set_weights([random.uniform(0.5, 1.5, weight.shape) for weight in model.get_weights()])
    return model


def attention_model(keras: Any) -> Any:
    """A layer of a transformer: Keras's own attention of two heads, normalizations and GELU."""
    layers = keras.layers
    steps = keras.Input((5, 8), name="steps")
    x = steps + layers.MultiHeadAttention(2, 16)(*[layers.LayerNormalization()(steps)] * 2)
    x = x + layers.Dense(8)(layers.Dense(16, activation="gelu")(layers.LayerNormalization()(x)))
    model = keras.Model(steps, layers.Dense(3, name="scores")(x))
    random = np.random.default_rng(3)
    model.set_weights([random.normal(size=weight.shape) for weight in model.get_weights()])
    return model


def save_all(folder: Path) -> None:
    """Everything that ``JOBS`` names."""
    tf = tensorflow._import()
    import tf_keras

    module, functions = signatures(tf)
    tf.saved_model.save(module, str(folder / "saved"), signatures=functions)
    save_with_colon(tf.compat.v1, folder / "colon")

    model = keras_model(tf.keras)
    model.save(folder / "model.keras")
    model.save(folder / "model.h5")
    model.export(str(folder / "exported"))
    attention_model(tf.keras).save(folder / "attention.keras")
    save_with_groups(tf.keras, folder / "groups")

    old = keras_model(tf_keras)
    old.compile(optimizer="adam", loss="mse")
    old.fit(np.zeros((2, 8, 8, 2)), np.zeros((2, 3)), verbose=0)
    old.save(folder / "keras2", save_format="tf")
    old.save(folder / "keras2.h5")
    (folder / "keras2.hdf5").write_bytes((folder / "keras2.h5").read_bytes())

    for whole, cut in (("model.keras", "cut.keras"), ("model.h5", "cut.h5")):
        (folder / cut).write_bytes((folder / whole).read_bytes()[:3000])
    (folder / "cut").mkdir()
    (folder / "cut" / "saved_model.pb").write_bytes((folder / "saved" / "saved_model.pb").read_bytes()[:1501])


def save_with_groups(keras: Any, folder: Path) -> None:
    """A convolution in groups, which Keras calls in a function that XLA has to compile, as ConvNeXt's are."""
    image = keras.Input((8, 8, 4), name="picture")
    x = keras.layers.Conv2D(4, 3, groups=4)(keras.layers.Conv2D(8, 3, groups=2)(image))
    keras.utils.set_random_seed(4)
    keras.Model(image, keras.layers.GlobalAveragePooling2D(name="scores")(x)).export(str(folder))


def save_with_colon(v1: Any, folder: Path) -> None:
    """A SavedModel of TensorFlow 1 whose signature has tensor names for keys."""
    with v1.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder("float32", (None, 3), name="x")
        v1.saved_model.simple_save(session, str(folder), inputs={"x:0": x}, outputs={"y:0": x + 1.0})


def in_this_process(log: Path, _what: str, function: Callable[..., Any], *args: Any) -> Any:
    """``child_process.call`` without a further process: the one that exports everything is isolated already."""
    screen = os.dup(2)
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 2)
    try:
        return function(*args)
    finally:
        os.dup2(screen, 2)
        os.close(screen)


def export_all(folder: Path) -> dict[str, Exported]:
    """Make, export and run every model of ``JOBS``."""
    save_all(folder)
    child_process.call = in_this_process  # type: ignore[assignment]
    found = {}
    for index, (job, (path, signature, opset)) in enumerate(JOBS.items()):
        out = folder / f"out{index}"
        out.mkdir()
        source = source_from_path(folder / path, signature)
        try:
            model = Export(opset=opset)(out, source)
        except Exception as error:  # noqa: BLE001  # The tests look at it.
            found[job] = Exported(None, error, {}, {})
        else:
            found[job] = Exported(model, None, *asked(source, out))
    return found


def asked(source: Source, out: Path) -> tuple[Arrays, Arrays]:
    """A feed, and what TensorFlow says to it."""
    folder, signature = (out / "savedmodel", "serving_default") if isinstance(source, KerasFile) else (source.path, "")
    signature = source.signature if isinstance(source, SavedModel) else signature
    random = np.random.default_rng(2)
    with tensorflow.load_signature(folder, signature, num_threads=0) as runner:
        shapes = {spec.name: [NUM_SAMPLES if size < 0 else size for size in spec.shape] for spec in runner.inputs}
        feed = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
        return feed, runner.infer(feed)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    folder = tmp_path_factory.mktemp("exported")
    return child_process.call(folder / "log", "export everything", export_all, folder)


def error_of(exported: Mapping[str, Exported], job: str) -> Exception:
    error = exported[job].error
    assert error is not None, f"{job} was exported"
    return error


def dimensions(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@needs_tensorflow
@pytest.mark.slow
@pytest.mark.parametrize(
    "job",
    [
        "two ports",
        "opset 18",
        "fixed batch",
        "unused input",
        "keras",
        "h5",
        "attention",
        "groups",
        "keras export",
        "keras 2 with optimizer",
        "keras 2 h5",
        "keras 2 hdf5",
    ],
)
def test_the_onnx_model_answers_as_tensorflow_does(exported: dict[str, Exported], job: str) -> None:
    found = exported[job]
    assert found.model is not None, found.error
    with onnxruntime.load(found.model.path, num_threads=1) as runner:
        answers: Arrays = runner.infer(found.feed)
    assert set(answers) == set(found.answers), "matched by name: converters order outputs each in its own way"
    for name, expected in found.answers.items():
        np.testing.assert_allclose(answers[name], expected, rtol=1e-4, atol=1e-5)
        assert np.ptp(expected) > 1e-3, "an answer that is the same for all samples would prove nothing"


@needs_tensorflow
@pytest.mark.slow
class TestTensorFlow:
    """Details of what was exported, and each refusal."""

    def test_every_name_of_the_signature_is_kept(self, exported: dict[str, Exported]) -> None:
        graph = exported["two ports"].made().graph
        assert {value.name for value in graph.input} == {"image", "zoom"}
        assert {value.name for value in graph.output} == {"alpha", "zeta"}

    def test_keras_s_attention_is_plain_products_that_are_recognized(self, exported: dict[str, Exported]) -> None:
        model = exported["attention"].made()
        counts = Counter(operators(model))
        assert (counts["MatMul"], counts["Einsum"], counts["GlobalAveragePool"], counts["ReduceProd"]) == (9, 0, 0, 0)
        (attention,) = attentions(opened(model).graph)
        assert (attention.head_size, attention.lengths) == (16, (5, 5))
        ranges = {name: Span(1.0, -1.0, 1.0) for name in watchable(model)}
        made = qdq_from_onnx(model, ranges, PlacementOptions("tensorrt", attention="int8", small_products="int8"))
        assert {attention.scores.name, attention.mixed.name} < set(made.placement.nodes)

    def test_no_tensor_name_has_a_colon(self, exported: dict[str, Exported]) -> None:
        for job in ("two ports", "keras", "keras 2 h5"):
            model = exported[job].made()
            names = [name for node in model.graph.node for name in (*node.input, *node.output)]
            assert [name for name in names if ":" in name] == []

    def test_the_renamed_tensors_are_kept_on_record(self, exported: dict[str, Exported]) -> None:
        made = exported["two ports"].model
        assert made is not None
        names = json.loads(made.beside("names.json").read_text())
        assert names
        assert all(":" in old and ":" not in new for new, old in names.items())

    def test_the_dynamic_batch_is_called_batch(self, exported: dict[str, Exported]) -> None:
        graph = exported["two ports"].made().graph
        assert {value.name: dimensions(value) for value in (*graph.input, *graph.output)} == {
            "image": ["batch", 8, 8, 2],
            "zoom": ["batch", 3],
            "alpha": ["batch", 3],
            "zeta": ["batch", 3],
        }

    def test_a_static_batch_stays(self, exported: dict[str, Exported]) -> None:
        graph = exported["fixed batch"].made().graph
        assert [dimensions(value) for value in (*graph.input, *graph.output)] == [[4, 8, 8, 2], [4, 3]]

    @pytest.mark.parametrize("job", ["two ports", "keras", "h5", "keras 2 with optimizer", "keras 2 h5"])
    def test_batch_norms_behind_depthwise_convolutions_are_folded(
        self, exported: dict[str, Exported], job: str
    ) -> None:
        found = operators(exported[job].made())
        assert "Conv" in found
        assert not {"Mul", "Sub", "Div", "BatchNormalization"} & set(found)
        if job != "two ports":  # That one adds its second input.
            assert found.count("Add") <= 1, "the bias of the dense layer alone"

    def test_folding_is_noted(self, exported: dict[str, Exported]) -> None:
        made = exported["two ports"].model
        assert made is not None
        assert made.notes() == [
            "export: means over all positions are written as GlobalAveragePool: 1",
            "export: 2 multiplications and additions of batch norms folded into weights",
        ]

    @pytest.mark.parametrize(("job", "opset"), [("two ports", 17), ("opset 18", 18)])
    def test_the_opset_is_the_one_asked_for(self, exported: dict[str, Exported], job: str, opset: int) -> None:
        assert {entry.domain: entry.version for entry in exported[job].made().opset_import}[""] == opset

    def test_keras_exports_two_signatures_and_the_one_asked_for_is_taken_once(
        self, exported: dict[str, Exported]
    ) -> None:
        model = exported["keras export"].made()
        floats = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
        num_weights = sum(array.size for array in floats if array.ndim)  # The bounds of ReLU6 have no dimension.
        assert num_weights == 9 * 2 + 2 + 2 * 4 + 4 + 4 * 3 + 3, "every weight once"

    def test_a_missing_signature_lists_those_that_there_are(self, exported: dict[str, Exported]) -> None:
        error = error_of(exported, "no signature")
        assert isinstance(error, ConfigError)
        assert "has no signature 'predict'; it has 'bessel' (x); 'fixed' (image); 'narrow' (x)" in str(error)
        assert "'serving_default' (image, zoom)" in str(error)

    def test_a_python_function_is_named_with_its_node(self, exported: dict[str, Exported]) -> None:
        error = error_of(exported, "python function")
        assert isinstance(error, ConfigError)
        assert exit_status(error) == 2
        assert "has the operator PyFunc (node 'PyFunc'), which reads or writes files, or runs Python" in str(error)

    def test_all_unknown_operators_are_listed(self, exported: dict[str, Exported]) -> None:
        said = str(error_of(exported, "unknown operators"))
        assert "BesselI0 (node 'PartitionedCall/bessel_i0/BesselI0')" in said
        assert "Lgamma (node 'PartitionedCall/Lgamma')" in said
        assert said.endswith("replace these operations in the model")

    def test_symmetric_fake_quantization_is_refused_with_advice(self, exported: dict[str, Exported]) -> None:
        error = error_of(exported, "narrow range")
        assert isinstance(error, StageError)
        assert "FakeQuantWithMinMaxArgs (node 'StatefulPartitionedCall/FakeQuantWithMinMaxArgs')" in str(error)
        assert "narrow_range=1" in str(error)
        assert "without its quantization-aware wrappers" in str(error)

    def test_a_colon_in_a_signature_is_refused(self, exported: dict[str, Exported]) -> None:
        error = error_of(exported, "colon")
        assert isinstance(error, ConfigError)
        assert "calls a tensor 'x:0', a name without ':' is expected" in str(error)

    @pytest.mark.parametrize(
        ("job", "words"),
        [
            ("truncated keras", "cut.keras: Keras 3.* cannot read it .*save it again"),
            ("truncated h5", "cut.h5: cannot be read as HDF5 .*save the model again"),
            ("truncated savedmodel", r"saved_model\.pb: cannot be read .*save the model again"),
        ],
    )
    def test_a_truncated_file_is_one_sentence(self, exported: dict[str, Exported], job: str, words: str) -> None:
        error = error_of(exported, job)
        assert isinstance(error, EngineError)
        with pytest.raises(EngineError, match=words):
            raise error


def without(*packages: str) -> Callable[[str], object]:
    real = importlib.util.find_spec
    return lambda name, *args: None if name in packages else real(name, *args)


def test_without_tensorflow_the_install_line_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", without("tensorflow"))
    with pytest.raises(Unavailable, match=r"tensorflow: is not installed; pip install 'trtforge\[tensorflow\]'"):
        Export()(tmp_path, SavedModel(tmp_path))


@needs_tensorflow
def test_without_tf2onnx_the_install_line_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf2onnx, "find_spec", without("tf2onnx"))
    with pytest.raises(Unavailable, match=r"tf2onnx: is not installed; pip install 'trtforge\[tensorflow\]'") as caught:
        Export()(tmp_path, SavedModel(tmp_path))
    assert exit_status(caught.value) == 3


@needs_tensorflow
@pytest.mark.slow
def test_a_conversion_runs_in_a_process_of_its_own(
    exported: dict[str, Exported], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As a user has it; everything above shared one process."""
    found = exported["two ports"].model
    assert found is not None
    capfd.readouterr()
    made = Export()(tmp_path, SavedModel(found.path.parent.parent / "saved"))
    assert operators(onnx.load(made.path)) == operators(onnx.load(found.path))
    assert str(found.path.parent.parent).encode() not in made.path.read_bytes(), "where it lay is not part of it"
    assert capfd.readouterr() == ("", ""), "the converter's chatter goes to convert.log"
    assert "Successfully converted" in (tmp_path / "convert.log").read_text()
    assert not (tmp_path / "converted.onnx").exists()
