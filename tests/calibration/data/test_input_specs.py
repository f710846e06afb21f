"""Reading an ONNX file's inputs: names, dtypes, dynamic dimensions; and files that are no whole model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from calibration.data.input_specs import input_specs_from_onnx, sample_specs, shape_hint, shape_words
from calibration.data.source import InputSpec
from calibration.errors import ModelError


def saved(text: str, path: Path) -> Path:
    """An ONNX file of a graph's text."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    path.write_bytes(model.SerializeToString())
    return path


def test_names_dtypes_and_dynamic_dimensions(tmp_path: Path) -> None:
    path = saved("g (float[N, 224, W, 3] image, int64[1, 4] ids) => (float y) { y = Abs(image) }", tmp_path / "m.onnx")
    assert input_specs_from_onnx(path) == (
        InputSpec("image", "float32", (-1, 224, -1, 3)),
        InputSpec("ids", "int64", (1, 4)),
    )


def test_weights_listed_among_the_inputs_need_no_data(tmp_path: Path) -> None:
    path = saved(
        "g (float[N, 2] x, float[2] w) => (float[N, 2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }", tmp_path / "m.onnx"
    )
    assert [spec.name for spec in input_specs_from_onnx(path)] == ["x"]


def test_external_weights_are_not_needed(tmp_path: Path) -> None:
    path = saved("g (float[N, 2] x) => (float[N, 2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }", tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones(2000, np.float32), "w"))
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    assert input_specs_from_onnx(path) == (InputSpec("x", "float32", (-1, 2)),)


@pytest.mark.parametrize("num_kept", [0, 10, 60])
def test_a_truncated_file(tmp_path: Path, num_kept: int) -> None:
    path = saved(
        "g (float[N, 2] first_input) => (float[N, 2] some_output) { some_output = Abs(first_input) }",
        tmp_path / "m.onnx",
    )
    path.write_bytes(path.read_bytes()[:num_kept])
    with pytest.raises(ModelError, match=r"m\.onnx: (is not a whole ONNX file|has no inputs)"):
        input_specs_from_onnx(path)


def test_text_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("version https://example.org/spec\noid sha256:0000\n")
    with pytest.raises(ModelError, match="is not a whole ONNX file"):
        input_specs_from_onnx(tmp_path / "m.onnx")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.onnx: cannot be read \(No such file or directory\)"):
        input_specs_from_onnx(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("string[N, 2] x", "input 'x' has elements of type STRING, numbers are expected"),
        ("seq(float[N, 2]) x", "input 'x' is a sequence_type, a tensor is expected"),
        ("float x", "input 'x' has no shape"),
    ],
)
def test_inputs_that_no_array_can_feed(tmp_path: Path, inputs: str, message: str) -> None:
    path = saved(f"g ({inputs}) => (float y) {{ y = Identity(x) }}", tmp_path / "m.onnx")
    if "no shape" in message:
        model = onnx.load(path)
        model.graph.input[0].type.tensor_type.ClearField("shape")
        onnx.save(model, path)
    with pytest.raises(ModelError, match=message):
        input_specs_from_onnx(path)


def test_shapes_in_words() -> None:
    assert shape_words(InputSpec("x", "float32", (-1, 3, -1))) == "(N, 3, ?)"
    assert shape_words(InputSpec("x", "float32", (-1,))) == "(N,)"
    assert shape_words(InputSpec("x", "float32", (8, 2))) == "(8, 2)"


@pytest.mark.parametrize(
    ("have", "want", "hint"),
    [
        ((1, 8, 9, 3), (-1, 3, 8, 9), 'set layout = "nchw" in preprocess'),
        ((1, 3, 8, 9), (-1, 8, 9, 3), r"transpose the stored samples to (N, H, W, C)"),
        ((28, 28, 1), (-1, 28, 28, 1), "the batch axis is missing: store (1, ...)"),
        ((5, 28, 28), (-1, 28, 28, 1), "the last axis is missing: store (..., 1)"),
        ((5, 32, 32, 3), (-1, 28, 28, 3), "set resize, crop or channels in preprocess"),
        ((5, 7), (-1, 3, 4), "convert the data"),
    ],
)
def test_what_to_do_about_another_shape(have: tuple[int, ...], want: tuple[int, ...], hint: str) -> None:
    assert shape_hint(have, InputSpec("x", "float32", want)) == hint


@pytest.mark.parametrize(
    ("shapes", "whole"),
    [
        ([(-1, 3), (-1, 5)], []),
        ([(4, 3), (4, 5)], []),
        ([(2, 3)], []),
        ([(-1, 64), (2, 1, 16), ()], [1, 2]),
        ([(1, 64), (2, 1, 16), ()], [1, 2]),
        ([(1, 64), (2, -1, 16)], [1]),
        ([(-1, 64), (1, 2)], []),
        ([(-1, 64), ()], [1]),
        ([(4, 64), ()], [0, 1]),
        ([()], [0]),
    ],
)
def test_inputs_without_a_batch_axis(shapes: list[tuple[int, ...]], whole: list[int]) -> None:
    specs = sample_specs(InputSpec(str(number), "float32", shape) for number, shape in enumerate(shapes))
    assert [number for number, spec in enumerate(specs) if spec.is_whole] == whole
    expected = [(1, *shape) if number in whole else shape for number, shape in enumerate(shapes)]
    assert [spec.shape for spec in specs] == expected
