"""Weights in files beside a model: read strictly, and left there where they do not fit one ONNX file."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.errors import ModelError
from calibration.graph import external_data
from calibration.graph.attention import scale_queries
from calibration.graph.constants import fold_constants
from calibration.graph.external_data import array_of, check_model, model_from_file, rename_weight_files, save_model
from calibration.graph.fold import fold_batch_norm, portable_names
from calibration.graph.opset import brought_to
from calibration.graph.tensor_digests import tensor_digests
from calibration.graph.watched_outputs import write_watched
from calibration.precision.fp16 import fp16_from_onnx
from tests.made import model_with_weights

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 20] x) => (float[N, 20] y)
{
    t = Transpose <perm = [1, 0]> (w)
    [first] a = MatMul (x, t)
    b = BatchNormalization (a, s, s, s, v)
    [second] c = MatMul (b, u)
    y = Relu (c)
}
"""
SMALL = '<ir_version: 8, opset_import: ["" : 17]> net (float[N, 1] x) => (float[N, M] y) { y = Mul (x, w) }'


def network() -> onnx.ModelProto:
    model = model_with_weights(NET, 5, w=(20, 20), u=(20, 20), s=(20,), v=(20,))
    model.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(np.ones(20, np.float32), "v"))
    return model


@pytest.fixture
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if one ONNX file held a kibibyte."""
    monkeypatch.setattr(external_data, "MOST_BYTES", 1024)


def saved(folder: Path, shape: tuple[int, ...] = (2000,), location: str = "w.bin") -> Path:
    """A model whose weights lie in ``w.bin``, or say that they have another shape or place."""
    folder.mkdir()
    model = onnx.parser.parse_model(SMALL)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2000, np.float32), "w"))
    path = folder / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    weight = onnx.load(path, load_external_data=False)
    weight.graph.initializer[0].dims[:] = shape
    weight.graph.initializer[0].external_data[0].value = location
    onnx.save(weight, path)
    return path


def test_weights_in_files_beside_the_model_are_read(tmp_path: Path) -> None:
    (weight,) = model_from_file(saved(tmp_path / "net")).graph.initializer
    assert np.array_equal(onnx.numpy_helper.to_array(weight), np.ones(2000, np.float32))
    assert not weight.external_data


@pytest.mark.parametrize("most", [1 << 20, 1 << 10])
def test_weights_that_cannot_be_read_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(external_data, "MOST_BYTES", most)
    missing, short = (saved(tmp_path / name) for name in ("missing", "short"))
    missing.with_name("w.bin").unlink()
    short.with_name("w.bin").write_bytes(b"half")
    shutil.copytree(tmp_path / "short", tmp_path / "else")
    outside = saved(tmp_path / "outside", location="../else/w.bin")
    absolute = saved(tmp_path / "absolute", location=str(tmp_path / "else" / "w.bin"))
    small = saved(tmp_path / "small", shape=(8,), location=str(tmp_path / "else" / "w.bin"))
    larger = saved(tmp_path / "larger", shape=(2001,))
    for path in (
        *(missing, short, outside, absolute, small, tmp_path / "nowhere.onnx"),
        *([larger] if most < 8000 else []),
    ):
        with pytest.raises(ModelError, match=rf"^{path}: cannot be read with all its weights \([^\n]+\); copy"):
            model_from_file(path)


@pytest.mark.usefixtures("few_bytes")
def test_what_does_not_fit_one_file_stays_beside_it(tmp_path: Path) -> None:
    model = model_from_file(saved(tmp_path / "net"))
    (weight,) = model.graph.initializer
    assert not weight.HasField("raw_data")
    assert np.array_equal(array_of(weight), np.ones(2000, np.float32))
    save_model(model, tmp_path / "new.onnx")
    shutil.rmtree(tmp_path / "net")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.onnx", "new.onnx.data"]
    assert np.array_equal(
        onnx.numpy_helper.to_array(onnx.load(tmp_path / "new.onnx").graph.initializer[0]), np.ones(2000)
    )
    onnx.checker.check_model(str(tmp_path / "new.onnx"), full_check=True)


def test_large_weights_begin_at_pages_and_small_ones_stay_inside(tmp_path: Path, few_bytes: None) -> None:
    save_model(network(), tmp_path / "a.onnx")
    save_model(network(), tmp_path / "b.onnx")
    first = onnx.load(tmp_path / "a.onnx", load_external_data=False)
    where = {t.name: {e.key: e.value for e in t.external_data} for t in first.graph.initializer}
    assert [where[name].get("offset") for name in ("w", "u", "s", "v")] == ["0", "4096", None, None]
    assert (tmp_path / "a.onnx.data").read_bytes() == (tmp_path / "b.onnx.data").read_bytes()
    assert tensor_digests(onnx.load(tmp_path / "a.onnx")) == tensor_digests(network())


def test_what_fits_is_one_plain_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_bytes: None) -> None:
    model = model_from_file(saved(tmp_path / "net"))
    monkeypatch.undo()
    save_model(model, tmp_path / "plain.onnx")
    shutil.rmtree(tmp_path / "net")
    assert [path.name for path in tmp_path.iterdir()] == ["plain.onnx"]
    assert onnx.load(tmp_path / "plain.onnx").graph.initializer[0].raw_data == np.ones(2000, np.float32).tobytes()


def test_small_weights_and_constants_that_do_not_fit_are_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_data, "LARGEST_BYTES", 2000)
    model = network()
    model.graph.node[0].doc_string = "x" * 2000
    with pytest.raises(ModelError, match=r"n\.onnx: constants of nodes and small weights alone have 0 MiB"):
        save_model(model, tmp_path / "n.onnx")


def test_files_of_weights_can_have_other_names(tmp_path: Path, few_bytes: None) -> None:
    save_model(network(), tmp_path / "a.onnx")
    (tmp_path / "a.onnx.data").rename(tmp_path / "other")
    rename_weight_files(tmp_path / "a.onnx", {"a.onnx.data": "other"})
    assert tensor_digests(onnx.load(tmp_path / "a.onnx")) == tensor_digests(network())


def test_the_checker_does_not_miss_large_weights() -> None:
    model = network()
    check_model(model, full_check=True)
    del model.graph.initializer[0]
    with pytest.raises(onnx.checker.ValidationError, match="'w'"):
        check_model(model)


def with_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """It is written out by every pass."""
    text = '<opset_import: ["" : 17], domain: "of.mine"> twice (p) => (q) { q = Add (p, p) }'
    model.functions.append(onnx.parser.parse_function(text))
    model.opset_import.append(onnx.helper.make_opsetid("of.mine", 1))
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "twice", "of.mine"
    return model


REWRITES: dict[str, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    "export": lambda m: portable_names(scale_queries(fold_batch_norm(fold_constants(m)[0])[0])[0])[0],
    "functions": lambda m: fold_batch_norm(with_function(m))[0],
    "up": lambda m: brought_to(m, 18),
    "down": lambda m: brought_to(m, 16),
    "fp16": lambda m: fp16_from_onnx(m, keep_fp32=["second"]),
}


@pytest.mark.parametrize("name", REWRITES)
def test_rewriting_gives_the_same_model_wherever_its_weights_lie(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = REWRITES[name](network())
    monkeypatch.setattr(external_data, "MOST_BYTES", 1024)
    save_model(network(), tmp_path / "net.onnx")
    rewritten = REWRITES[name](model_from_file(tmp_path / "net.onnx"))
    assert tensor_digests(rewritten) == tensor_digests(plain)
    monkeypatch.undo()
    save_model(rewritten, tmp_path / "rewritten.onnx")
    save_model(plain, tmp_path / "plain.onnx")
    assert (tmp_path / "rewritten.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


def test_watched_tensors_of_a_model_with_weights_beside_it(tmp_path: Path, few_bytes: None) -> None:
    save_model(network(), tmp_path / "net.onnx")
    write_watched(tmp_path / "net.onnx", model_from_file(tmp_path / "net.onnx"), ["a"], tmp_path / "watched.onnx")
    watched = onnx.load(tmp_path / "watched.onnx")
    assert [value.name for value in watched.graph.output] == ["y", "a"]
    assert tensor_digests(watched) == tensor_digests(network())
