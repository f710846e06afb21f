"""TensorFlow: signatures are read, Keras files become SavedModels, SavedModels run. One import for the whole module."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.backends import tensorflow as backend
from engines.contract import DYNAMIC, BuildOptions, TensorSpec
from engines.errors import EngineError, Unavailable

if backend.why_not_run():
    pytest.skip(backend.why_not_run(), allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
"""Keras itself, where it copies a variable; nothing that can be done here."""


@pytest.fixture(scope="module")
def tf() -> Any:
    return backend._import()


@pytest.fixture(scope="module")
def two_ports(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .keras file: inputs 'image' and 'meta', outputs 'score' and 'box', in an order that is not alphabetic."""
    image, meta = tf.keras.Input((4, 4, 1), name="image"), tf.keras.Input((2,), name="meta")
    joined = tf.keras.layers.Concatenate()([tf.keras.layers.Flatten()(image), meta])
    score = tf.keras.layers.Dense(3, name="score")(joined)
    box = tf.keras.layers.Dense(4, name="box")(joined)
    path = tmp_path_factory.mktemp("keras") / "two_ports.keras"
    tf.keras.Model([meta, image], [score, box]).save(path)
    return path


@pytest.fixture(scope="module")
def saved(two_ports: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    backend.savedmodel_from_keras(two_ports, folder)
    return folder


@pytest.fixture(scope="module")
def two_signatures(tf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signatures") / "model"
    module = tf.Module()
    takes = [tf.TensorSpec([None], tf.float32, name="x")]
    functions = {
        "serving_default": tf.function(lambda x: {"y": x + 1.0}, input_signature=takes),
        "double": tf.function(lambda x: {"y": x * 2.0}, input_signature=takes),
    }
    tf.saved_model.save(module, str(folder), signatures=functions)
    return folder


def test_names_of_the_keras_model_are_kept(saved: Path) -> None:
    assert backend.signatures(saved) == {
        "serving_default": backend.Signature(
            inputs=(TensorSpec("image", "float32", (DYNAMIC, 4, 4, 1)), TensorSpec("meta", "float32", (DYNAMIC, 2))),
            outputs=(TensorSpec("box", "float32", (DYNAMIC, 4)), TensorSpec("score", "float32", (DYNAMIC, 3))),
        )
    }


def test_a_savedmodel_from_keras_computes_the_same(tf: Any, two_ports: Path, saved: Path) -> None:
    random = np.random.default_rng(0)
    image = random.standard_normal((5, 4, 4, 1)).astype(np.float32)
    meta = random.standard_normal((5, 2)).astype(np.float32)
    score, box = tf.keras.models.load_model(two_ports)([meta, image])
    with backend.load(saved, num_threads=0) as runner:
        found = runner.infer({"image": image, "meta": meta})
    np.testing.assert_array_equal(found["score"], score.numpy())
    np.testing.assert_array_equal(found["box"], box.numpy())


def test_weights_are_stored_once(tf: Any, tmp_path: Path) -> None:
    source = tmp_path / "wide.keras"
    tf.keras.Sequential([tf.keras.Input((1000,)), tf.keras.layers.Dense(1000)]).save(source)
    backend.savedmodel_from_keras(source, tmp_path / "saved")
    size = sum(file.stat().st_size for file in (tmp_path / "saved").rglob("*") if file.is_file())
    assert 4_004_000 < size < 1.1 * 4_004_000


def test_augmentation_inside_does_nothing(tf: Any, tmp_path: Path) -> None:
    layers = [tf.keras.layers.RandomFlip(), tf.keras.layers.RandomRotation(0.1), tf.keras.layers.Rescaling(0.5)]
    tf.keras.Sequential([tf.keras.Input((4, 4, 3)), *layers, tf.keras.layers.Dropout(0.5)]).save(tmp_path / "a.keras")
    backend.savedmodel_from_keras(tmp_path / "a.keras", tmp_path / "saved")
    image = np.random.default_rng(0).uniform(size=(3, 4, 4, 3)).astype(np.float32)
    with backend.load(tmp_path / "saved", num_threads=0) as runner:
        (name,) = (spec.name for spec in runner.inputs)
        (found,) = runner.infer({name: image}).values()
    np.testing.assert_array_equal(found, image / 2)


def test_a_dictionary_of_inputs_and_outputs(tf: Any, tmp_path: Path) -> None:
    ports = {"second": tf.keras.Input((1,), name="second"), "first": tf.keras.Input((1,), name="first")}
    model = tf.keras.Model(ports, {"difference": ports["first"] - ports["second"]})
    model.save(tmp_path / "dictionary.keras")
    backend.savedmodel_from_keras(tmp_path / "dictionary.keras", tmp_path / "saved")
    with backend.load(tmp_path / "saved", num_threads=0) as runner:
        feed = {"first": np.array([[5]], np.float32), "second": np.array([[3]], np.float32)}
        assert {name: value.tolist() for name, value in runner.infer(feed).items()} == {"difference": [[2.0]]}


def test_a_file_of_keras_2_is_read_by_tf_keras(tf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tf_keras = pytest.importorskip("tf_keras", reason="tf_keras is not installed")
    source = tmp_path / "old.h5"
    layers = [tf_keras.layers.InputLayer((6, 6, 2), name="image"), tf_keras.layers.DepthwiseConv2D(3, name="depth")]
    model = tf_keras.Sequential(layers)
    with pytest.warns(UserWarning, match="HDF5"):
        model.save(source)
    backend.savedmodel_from_keras(source, tmp_path / "saved")
    image = np.random.default_rng(0).standard_normal((1, 6, 6, 2)).astype(np.float32)
    with backend.load(tmp_path / "saved", num_threads=0) as runner:
        (spec,) = runner.outputs
        found = runner.infer({runner.inputs[0].name: image})[spec.name]
    assert spec.shape == (DYNAMIC, 4, 4, 2)
    np.testing.assert_allclose(found.astype(float), model(image).numpy(), rtol=1e-6, atol=1e-6)

    monkeypatch.setitem(sys.modules, "tf_keras", None)  # as if it were not installed
    with pytest.raises(Unavailable, match=r"old\.h5: was written by Keras 2, reading it takes tf_keras; pip install"):
        backend.savedmodel_from_keras(source, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_files_that_keras_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "trash.h5").write_bytes(b"trash")
    (tmp_path / "trash.keras").write_bytes(b"trash")
    with pytest.raises(EngineError, match=r"trash\.h5: cannot be read as HDF5"):
        backend.savedmodel_from_keras(tmp_path / "trash.h5", tmp_path / "saved")
    with pytest.raises(EngineError, match=r"trash\.keras: Keras 3.* cannot read it"):
        backend.savedmodel_from_keras(tmp_path / "trash.keras", tmp_path / "saved")
    with pytest.raises(EngineError, match=r"none\.keras: there is no such file"):
        backend.savedmodel_from_keras(tmp_path / "none.keras", tmp_path / "saved")


def test_one_signature_is_taken_by_name(two_signatures: Path) -> None:
    x = np.array([3], np.float32)
    with backend.load(two_signatures, num_threads=0) as runner:
        assert runner.infer({"x": x})["y"].tolist() == [4.0]
    with backend.load_signature(two_signatures, "double", num_threads=0) as runner:
        assert runner.infer({"x": x})["y"].tolist() == [6.0]


def test_a_signature_that_is_not_there(two_signatures: Path) -> None:
    runner = backend.load_signature(two_signatures, "serve", num_threads=0)
    with pytest.raises(EngineError, match="has no signature 'serve', it has 'double', 'serving_default'; name"), runner:
        pytest.fail("there is no such signature")


def test_folders_that_are_no_savedmodel(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"is not a SavedModel, there is no saved_model\.pb"):
        backend.signatures(tmp_path)
    broken = shutil.copytree(saved, tmp_path / "broken")
    (broken / "saved_model.pb").write_bytes((broken / "saved_model.pb").read_bytes()[:-7])
    with pytest.raises(EngineError, match=r"saved_model\.pb: cannot be read"):
        backend.signatures(broken)
    bare = shutil.copytree(saved, tmp_path / "bare")
    shutil.rmtree(bare / "variables")
    runner = backend.load(bare, num_threads=0)
    with pytest.raises(EngineError, match="bare: TensorFlow cannot load it"), runner:
        pytest.fail("it has no weights")


def test_it_builds_no_engines(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="tensorflow: runs trained networks only"):
        backend.build(saved, tmp_path / "engine", BuildOptions())


def test_another_number_of_threads_in_one_process_is_refused(saved: Path) -> None:
    runner = backend.load(saved, num_threads=63)
    with pytest.raises(EngineError, match="63 threads are requested, this process already runs it with"), runner:
        pytest.fail("threads cannot be changed any more")


def test_it_is_quiet_and_loads_no_more_than_it_needs(saved: Path) -> None:
    """What Keras draws and trains with is not imported with it, and nothing stands in the way of it afterwards."""
    program = (
        "import sys; from pathlib import Path; from engines.backends import tensorflow as t\n"
        "with t.load(Path(sys.argv[1]), num_threads=1) as runner: print(len(runner.inputs))\n"
        "print([name for name in t.NO_PARTS_OF_A_RUN if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program, saved], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("2\n[]\n", "")


def test_a_savedmodel_with_its_optimizer_needs_tf_keras(tf: Any, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str) -> None:
        raise AttributeError("'_UserObject' object has no attribute 'add_slot'")  # TensorFlow's words without tf_keras

    monkeypatch.setattr(tf.saved_model, "load", load)
    runner = backend.load(saved, num_threads=0)
    with pytest.raises(Unavailable, match=r"together with its optimizer, .*pip install 'tf_keras==2\.\d+\.\*'"), runner:
        pytest.fail("it cannot be loaded")
