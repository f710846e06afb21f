"""The stage `convert`: a SavedModel as a float `.tflite` file with a fixed batch, whose tensors have short names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.backends import litert, tensorflow
from engines.contract import TensorSpec
from pipeline.artifact import Engine, OnnxModel, TfliteModel
from pipeline.errors import ConfigError, EngineError
from pipeline.sources.contract import check_convertible, source_from_path
from pipeline.stages.convert import Convert
from tests.pipeline.stages.networks import Out

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(tensorflow.why_not_run()), reason="needs TensorFlow")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SavedModel with a signature that becomes a `.tflite` file, and two that do not."""
    tf = tensorflow._import()
    weights = tf.Variable(np.arange(24, dtype=np.float32).reshape(8, 3) / 24)

    def dense(row: Any) -> dict[str, Any]:
        return {"scores": tf.nn.relu(row @ weights), "sum": tf.reduce_sum(row, axis=1)}

    functions = {
        "serving_default": (dense, [None, 8]),
        "open": (lambda row: {"y": row + 1.0}, [None, None]),
        "determinant": (lambda row: {"y": tf.linalg.det(row)}, [None, 2, 2]),
    }
    module = tf.Module()
    module.weights = weights
    folder = tmp_path_factory.mktemp("networks") / "saved"
    signatures = {
        name: tf.function(function, input_signature=[tf.TensorSpec(shape, tf.float32, name="row")])
        for name, (function, shape) in functions.items()
    }
    tf.saved_model.save(module, str(folder), signatures)
    return folder


@pytest.fixture(scope="module")
def converted(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> TfliteModel:
    return Convert(batch_size=4)(tmp_path_factory.mktemp("converted"), trained(saved))


def trained(saved: Path, signature: str = "serving_default") -> Engine:
    return Engine(saved, tensorflow.NAME, signature=signature)


def test_the_batch_is_fixed_and_the_names_are_the_signatures(converted: TfliteModel) -> None:
    facts = litert.tflite_facts(converted.path)
    assert facts.specs(facts.inputs) == (TensorSpec("row", "float32", (4, 8)),)
    assert {spec.name: spec.shape for spec in facts.specs(facts.outputs)} == {"scores": (4, 3), "sum": (4,)}
    assert facts.inputs[0][1].name == "row", "ranges go by the tensors' names"
    rows = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    with litert.load(converted.path, num_threads=1) as runner:
        answers = runner.infer({"row": rows})
    weights = (np.arange(24, dtype=np.float32) / 24).reshape(8, 3)
    np.testing.assert_allclose(
        answers["scores"].astype(np.float64), np.maximum(rows @ weights, 0), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(answers["sum"].astype(np.float64), rows.sum(axis=1), rtol=1e-5, atol=1e-6)


def test_equal_networks_give_equal_bytes(converted: TfliteModel, saved: Path, out: Out) -> None:
    """In another process."""
    assert Convert(batch_size=4)(out(), trained(saved)).path.read_bytes() == converted.path.read_bytes()


def test_what_tensorflow_lite_does_not_have_is_named(saved: Path, out: Out) -> None:
    with pytest.raises(EngineError, match=r"TensorFlow Lite has no MatrixDeterminant; replace that in the network"):
        Convert()(out(), trained(saved, "determinant"))


def test_another_dynamic_dimension_than_the_batch(saved: Path) -> None:
    with pytest.raises(EngineError, match=r"input 'row' is \(-1, -1\), .*save the network with fixed shapes"):
        tensorflow.tflite_from_savedmodel(saved, "open", 1)


def test_from_onnx_there_is_no_way(saved: Path, tmp_path: Path) -> None:
    check_convertible(source_from_path(saved, "serving_default"))
    with pytest.raises(ConfigError, match=r"m\.onnx: a \.tflite file is made of a SavedModel or a Keras file"):
        check_convertible(OnnxModel(tmp_path / "m.onnx"))
