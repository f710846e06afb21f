"""An ONNX file read without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.graph.weightless import skeleton_from_file

TEXT = """<ir_version: 8, opset_import: ["" : 17, "own" : 1], producer_name: "somebody">
    g (float[N,3,8,8] x) => (float[N,8,6,6] y) <int64[2] shape = {1, 2}> { y = Conv <group = 1> (x, w) }"""


def model_with(weights: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return model


WEIGHT = np.arange(8 * 3 * 3 * 3, dtype=np.float32).reshape(8, 3, 3, 3)


def test_only_the_values_of_large_initializers_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = model_with({"w": np.concatenate([WEIGHT, WEIGHT]), "small": np.ones(4, np.float32)})
    onnx.save(model, path)
    found = skeleton_from_file(path)
    weight = next(tensor for tensor in found.graph.initializer if tensor.name == "w")
    assert (list(weight.dims), weight.data_type, weight.raw_data) == ([16, 3, 3, 3], onnx.TensorProto.FLOAT, b"")
    weight.raw_data = next(tensor for tensor in model.graph.initializer if tensor.name == "w").raw_data
    assert found == model


def test_values_that_are_not_raw_are_left_out_too(tmp_path: Path) -> None:
    model = model_with({})
    model.graph.initializer.append(onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [600], [0.5] * 600))
    onnx.save(model, tmp_path / "model.onnx")
    weight = skeleton_from_file(tmp_path / "model.onnx").graph.initializer[-1]
    assert (weight.name, list(weight.dims), len(weight.float_data)) == ("w", [600], 0)


def test_external_weights_are_named_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model_with({"w": WEIGHT}), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    (tmp_path / "w.bin").unlink()
    weight = skeleton_from_file(path).graph.initializer[-1]
    assert {entry.key: entry.value for entry in weight.external_data}["location"] == "w.bin"


@settings(max_examples=40)
@given(share=st.floats(0.0, 0.999))
def test_a_file_that_was_cut_off_is_refused(share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("cut") / "model.onnx"
    whole = model_with({"w": np.concatenate([WEIGHT] * 4)}).SerializeToString()
    path.write_bytes(whole[: int(share * len(whole))])
    try:
        expected = onnx.load_from_string(path.read_bytes())
    except DecodeError:
        with pytest.raises(DecodeError):
            skeleton_from_file(path)
    else:  # Between two fields: protobuf cannot tell, and so the model is the same.
        assert skeleton_from_file(path).graph.node == expected.graph.node


@pytest.mark.parametrize("data", [b"\xff" * 40, b"\x07", b"not an ONNX file", b"\x0a\xff\xff\xff\xff\x0f"])
def test_what_is_no_onnx_file_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(DecodeError):
        skeleton_from_file(tmp_path / "model.onnx")


def test_an_empty_file_is_an_empty_model(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    assert skeleton_from_file(tmp_path / "model.onnx") == onnx.ModelProto()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: setattr(t, "raw_data", b"\0" * 7),
            "initializer 'w' has 7 bytes, 864 are expected of FLOAT 8x3",
        ),
        (lambda t: setattr(t, "raw_data", b"\0" * 70_000), "has 70000 bytes, 864 are expected"),
        (lambda t: t.dims.__setitem__(0, 0), "has 864 bytes, 0 are expected of FLOAT 0x3x3x3"),
        (lambda t: t.dims.__setitem__(0, -1), "has 864 bytes, "),
        (lambda t: t.external_data.add(key="offset", value="-5"), "has the offset '-5' in its file"),
        (lambda t: t.external_data.add(key="length", value="abc"), "has the length 'abc' in its file"),
        (lambda t: t.external_data.add(key="location", value="e" * 5000), "a file whose name has more than 255 bytes"),
    ],
)
def test_weights_that_do_not_fit_are_named(change: Any, said: str, tmp_path: Path) -> None:
    model = model_with({"w": WEIGHT})
    change(model.graph.initializer[-1])
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DecodeError, match=said):
        skeleton_from_file(tmp_path / "model.onnx")


def test_values_of_less_than_a_byte_fit(tmp_path: Path) -> None:
    model = model_with({"w": WEIGHT})
    model.graph.initializer.append(onnx.helper.make_tensor("four", onnx.TensorProto.INT4, [3], b"\x21\x03", raw=True))
    onnx.save(model, tmp_path / "model.onnx")
    assert skeleton_from_file(tmp_path / "model.onnx").graph.initializer[-1].name == "four"


def test_a_file_of_zeros_is_no_model(tmp_path: Path) -> None:
    with (tmp_path / "zeros.onnx").open("wb") as stream:
        stream.truncate(3 << 30)
    with pytest.raises(DecodeError, match="field number 0 at byte 0"):
        skeleton_from_file(tmp_path / "zeros.onnx")
