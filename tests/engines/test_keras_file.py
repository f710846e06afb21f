"""Files of Keras with code of the user's: the layer and the class are named, whichever Keras wrote them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from engines.backends import tensorflow
from engines.errors import EngineError
from engines.keras_file import custom_code, is_keras_2

pytestmark = pytest.mark.skipif(bool(tensorflow.why_not_run()), reason="needs TensorFlow")

WAY_OUT = "where it is defined, load the model, write a SavedModel with model.export('FOLDER'), and export that"


def saved(keras: Any, path: Path, *, of_a_function: bool) -> Path:
    """A model with a layer of a class, or an activation, that nobody has registered."""

    class Twice(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x * 2

    def twice(x: Any) -> Any:
        return x * 2

    last = keras.layers.Dense(3, activation=twice, name="mine") if of_a_function else Twice(name="mine")
    keras.Sequential([keras.layers.Input((4,)), keras.layers.Dense(3), last]).save(path)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
@pytest.mark.parametrize(("of_a_function", "name"), [(False, "Twice"), (True, "twice")])
def test_the_layer_and_its_code_are_named(
    tmp_path: Path, library: str, suffix: str, of_a_function: bool, name: str
) -> None:
    tensorflow._import()
    keras = pytest.importorskip(library)
    file = saved(keras, tmp_path / f"net{suffix}", of_a_function=of_a_function)
    assert is_keras_2(file) is (library == "tf_keras")
    with pytest.raises(EngineError) as refused:
        tensorflow.savedmodel_from_keras(file, tmp_path / "savedmodel", allow_lambda=False)
    assert str(refused.value).startswith(
        f"{file}: layer 'mine' is or uses '{name}', code that is not in the file; {WAY_OUT}"
    )


def test_a_registered_class_of_a_package_is_found_by_its_own_name(tmp_path: Path) -> None:
    layer = {"class_name": "mine>Twice", "config": {"name": "inner"}, "registered_name": "mine>Twice"}
    config = {
        "class_name": "Sequential",
        "config": {"name": "net", "layers": [{"class_name": "Dense", "config": {}}, layer]},
    }
    with zipfile.ZipFile(tmp_path / "net.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config))
    sentence = custom_code(tmp_path / "net.keras", "Unknown layer: 'mine>Twice'. Please ensure you are using")
    assert sentence.startswith(f"{tmp_path / 'net.keras'}: layer 'inner' is or uses 'Twice', code that is not in")
    assert custom_code(tmp_path / "net.keras", "the file is cut short") == ""


def test_without_a_configuration_the_code_is_named_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "net.keras").write_bytes(b"no zip")
    assert "it uses 'Twice'," in custom_code(tmp_path / "net.keras", "Could not locate class 'Twice'. Make sure")
