"""The stage `convert`: a SavedModel as a float `.tflite` file with a fixed batch, whose tensors have short names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engines.backends import litert, tensorflow
from engines.contract import TensorSpec
from pipeline.artifact import Engine, OnnxModel
from pipeline.errors import ConfigError, EngineError
from pipeline.sources.contract import check_convertible, source_from_path
from pipeline.stages.convert import Convert
from tests.pipeline.stages.networks import Out

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

NETWORKS = """
import sys
import tensorflow as tf

class Net(tf.Module):
    def __init__(self):
        self.w = tf.Variable(tf.reshape(tf.range(24, dtype=tf.float32), [8, 3]) / 24)

    @tf.function(input_signature=[tf.TensorSpec([None, 8], tf.float32, name="row")])
    def dense(self, row):
        return {"scores": tf.nn.relu(row @ self.w), "sum": tf.reduce_sum(row, axis=1)}

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, name="row")])
    def open(self, row):
        return {"y": row + 1.0}

    @tf.function(input_signature=[tf.TensorSpec([None, 2, 2], tf.float32, name="row")])
    def determinant(self, row):
        return {"y": tf.linalg.det(row)}

net = Net()
tf.saved_model.save(net, sys.argv[1], {"serving_default": net.dense, "open": net.open, "determinant": net.determinant})
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks") / "saved"
    subprocess.run([sys.executable, "-c", NETWORKS, str(folder)], check=True, capture_output=True)
    return folder


def trained(saved: Path, signature: str = "serving_default") -> Engine:
    return Engine(saved, tensorflow.NAME, signature=signature)


def test_the_batch_is_fixed_and_the_names_are_the_signatures(saved: Path, out: Out) -> None:
    model = Convert(batch_size=4)(out(), trained(saved))
    facts = litert.tflite_facts(model.path)
    assert facts.specs(facts.inputs) == (TensorSpec("row", "float32", (4, 8)),)
    assert {spec.name: spec.shape for spec in facts.specs(facts.outputs)} == {"scores": (4, 3), "sum": (4,)}
    assert facts.inputs[0][1].name == "row", "ranges go by the tensors' names"
    rows = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    with litert.load(model.path, num_threads=1) as runner:
        answers = runner.infer({"row": rows})
    weights = (np.arange(24, dtype=np.float32) / 24).reshape(8, 3)
    np.testing.assert_allclose(
        answers["scores"].astype(np.float64), np.maximum(rows @ weights, 0), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(answers["sum"].astype(np.float64), rows.sum(axis=1), rtol=1e-5, atol=1e-6)


def test_equal_networks_give_equal_bytes(saved: Path, out: Out) -> None:
    first, second = (Convert()(out(), trained(saved)).path.read_bytes() for _ in range(2))
    assert first == second


def test_what_tensorflow_lite_does_not_have_is_named(saved: Path, out: Out) -> None:
    with pytest.raises(EngineError, match=r"TensorFlow Lite has no MatrixDeterminant; replace that in the network"):
        Convert()(out(), trained(saved, "determinant"))


def test_another_dynamic_dimension_than_the_batch(saved: Path, out: Out) -> None:
    with pytest.raises(EngineError, match=r"input 'row' is \(-1, -1\), .*save the network with fixed shapes"):
        Convert()(out(), trained(saved, "open"))


def test_from_onnx_there_is_no_way(saved: Path, tmp_path: Path) -> None:
    check_convertible(source_from_path(saved, "serving_default"))
    with pytest.raises(ConfigError, match=r"m\.onnx: a \.tflite file is made of a SavedModel or a Keras file"):
        check_convertible(OnnxModel(tmp_path / "m.onnx"))
