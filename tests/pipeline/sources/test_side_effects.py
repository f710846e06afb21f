"""A signature that does more than compute: updates, files, Python; and what Keras writes for GELU and Lambda layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import backend
from engines.backends import tensorflow
from engines.errors import EngineError
from pipeline.artifact import OnnxModel
from pipeline.errors import ConfigError, StageError
from pipeline.sources.contract import source_from_path
from pipeline.sources.side_effects import check_side_effects
from pipeline.stages.export import Export

if tensorflow.why_not_run():
    pytest.skip(tensorflow.why_not_run(), allow_module_level=True)
tf: Any = tensorflow._import()
pytestmark = pytest.mark.slow

TAKES = [tf.TensorSpec([None, 4], tf.float32, name="x")]


class Counting(tf.Module):  # type: ignore[misc]
    """Counts its calls; how many does not count for the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = tf.Variable(0.0)

    @tf.function(input_signature=TAKES)  # type: ignore[untyped-decorator]
    def f(self, x: Any) -> Any:
        self.num_calls.assign_add(1.0)
        return {"y": x * 2}


class RunningMean(tf.Module):  # type: ignore[misc]
    """Subtracts a mean that each call moves, in a function of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = tf.Variable(tf.zeros([4]))

    @tf.function  # type: ignore[untyped-decorator]
    def move(self, x: Any) -> Any:
        self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(x, 0))

    @tf.function(input_signature=TAKES)  # type: ignore[untyped-decorator]
    def f(self, x: Any) -> Any:
        self.move(x)
        return {"y": x - self.mean}


class Resource(tf.saved_model.experimental.TrackableResource):  # type: ignore[misc]
    """What TensorFlow initializes as it loads a model, by whatever function the model has for that."""

    def _create_resource(self) -> Any:
        return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], shared_name="r", container="")

    def _initialize(self) -> None:
        tf.io.write_file("RAN", "x")


class Initialized(tf.Module):  # type: ignore[misc]
    """Computes, and has something to initialize on which the answer does not depend."""

    def __init__(self) -> None:
        super().__init__()
        self.resource = Resource()
        self.weight = tf.Variable(tf.ones([4, 3]))

    @tf.function(input_signature=TAKES)  # type: ignore[untyped-decorator]
    def f(self, x: Any) -> Any:
        return {"y": tf.matmul(x, self.weight)}


def saved(module: Any, folder: Path) -> Path:
    tf.saved_model.save(module, str(folder / "model"), signatures=module.f)
    return folder / "model"


def of(function: Callable[[Any], Any]) -> Any:
    module = tf.Module()
    module.f = tf.function(lambda x: {"y": function(x)}, input_signature=TAKES)
    return module


def writing_a_file(x: Any) -> Any:
    tf.io.write_file("RAN", "x")
    return x


def exported(path: Path, out: Path, allow: tuple[str, ...] = ()) -> OnnxModel:
    out.mkdir()
    return Export(allow=allow)(out, source_from_path(path, "serving_default"))


def test_an_update_that_no_output_reads_is_told(tmp_path: Path) -> None:
    (note,) = check_side_effects(saved(Counting(), tmp_path), "serving_default", ())
    assert "(AssignAddVariableOp) updates a variable, which ONNX cannot; no output depends on it" in note


def test_an_update_that_an_output_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"updates a variable .* and reads it again .* inference mode"):
        check_side_effects(saved(RunningMean(), tmp_path), "serving_default", ())


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (writing_a_file, "WriteFile"),
        (lambda x: x + tf.reshape(tf.strings.to_number(tf.io.read_file("/etc/hostname")), []), "ReadFile"),
        (lambda x: tf.ensure_shape(tf.py_function(lambda v: v, [x], tf.float32), [None, 4]), "EagerPyFunc"),
    ],
)
def test_files_and_python_are_refused_unless_allowed(
    function: Callable[[Any], Any], operator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(of(function), tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"has the operator {operator} .*--allow {operator}"):
        check_side_effects(path, "serving_default", ())
    assert not (tmp_path / "RAN").exists()
    check_side_effects(path, "serving_default", (operator,))


def test_what_runs_as_the_model_is_loaded_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(Initialized(), tmp_path)
    (tmp_path / "RAN").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match=r"the SavedModel has the operator WriteFile .* when the model is loaded"):
        exported(path, tmp_path / "out")
    assert not (tmp_path / "RAN").exists()
    check_side_effects(path, "serving_default", ("WriteFile",))


def test_erfc_is_one_minus_erf(tmp_path: Path) -> None:
    model = exported(saved(of(lambda x: x * tf.math.erfc(-x / np.sqrt(2)) / 2), tmp_path), tmp_path / "out")
    x = np.linspace(-6, 6, 400, dtype=np.float32).reshape(100, 4)
    with backend("onnxruntime").load(model.path, num_threads=1) as runner:
        found = runner.infer({"x": x})["y"]
    expected = x * tf.math.erfc(-x / np.sqrt(2)).numpy() / 2
    assert np.allclose(found, expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_lambda_layer_of_an_hdf5_file_runs_only_if_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keras = pytest.importorskip("tf_keras")
    monkeypatch.chdir(tmp_path)

    def evil(x: Any) -> Any:
        with open("RAN", "a") as stream:  # noqa: PTH123  # Bytecode knows no Path.
            stream.write("x")
        return x

    inner = keras.Sequential([keras.layers.Input((8,)), keras.layers.Lambda(evil, name="inside")])
    keras.Sequential([keras.layers.Input((8,)), inner]).save("evil.h5")
    (tmp_path / "RAN").unlink()
    with pytest.raises(EngineError, match=r"layer 'inside' is a Lambda, .*--allow Lambda"):
        tensorflow.savedmodel_from_keras(tmp_path / "evil.h5", tmp_path / "out")
    assert not (tmp_path / "RAN").exists()
    tensorflow.savedmodel_from_keras(tmp_path / "evil.h5", tmp_path / "out", allow_lambda=True)
    assert (tmp_path / "RAN").exists()
