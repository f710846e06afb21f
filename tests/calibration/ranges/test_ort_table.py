"""ONNX Runtime's calibration tables: we read what it writes, it reads what we write, scales come back to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.errors import DataError
from calibration.ranges.ort_table import (
    flatbuffers_from_scales,
    json_from_scales,
    scales_from_flatbuffers,
    scales_from_json,
    scales_from_text,
)

NORMAL = st.floats(min_value=2.0**-126, max_value=float(np.finfo(np.float32).max) / 128, width=32)
SCALES = st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), NORMAL)
BOUNDS = {"image": (-1.0, 2.54), "relu/输出": (0.0, 6.0), "a b:0": (-3.81, 0.5)}
"""What ONNX Runtime found: lowest and highest of each tensor."""
AMAX = {"image": 2.54, "relu/输出": 6.0, "a b:0": 3.81}
EXPECTED = {name: float(np.float32(np.float32(amax) / np.float32(127))) for name, amax in AMAX.items()}


@given(SCALES)
def test_any_scale_comes_back_from_each_table_to_the_bit(scales: dict[str, float]) -> None:
    assert scales_from_flatbuffers(flatbuffers_from_scales(scales), "t") == scales
    assert scales_from_json(json_from_scales(scales, "entropy"), "t") == scales


def test_equal_scales_give_equal_bytes() -> None:
    backwards = dict(reversed(EXPECTED.items()))
    assert flatbuffers_from_scales(backwards) == flatbuffers_from_scales(EXPECTED)
    assert json_from_scales(backwards, "mse") == json_from_scales(EXPECTED, "mse")


# With ONNX Runtime's own code.


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with the three tables of ``write_calibration_table``."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    from onnxruntime.quantization import write_calibration_table
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorsData

    data = {name: tuple(np.array(bound, np.float32) for bound in bounds) for name, bounds in BOUNDS.items()}
    write_calibration_table(TensorsData(CalibrationMethod.MinMax, data), dir=str(tmp_path))
    return tmp_path


def test_onnxruntimes_json_is_read_with_both_bounds(written: Path) -> None:
    assert scales_from_json((written / "calibration.json").read_bytes(), "t") == EXPECTED


def test_onnxruntimes_other_tables_have_the_largest_value_as_amax(written: Path) -> None:
    """Where the lowest has the larger magnitude that is ONNX Runtime's mistake, and its file says nothing of it."""
    expected = {**EXPECTED, "a b:0": float(np.float32(0.5 / 127))}
    assert scales_from_flatbuffers((written / "calibration.flatbuffers").read_bytes(), "t") == expected
    assert scales_from_text((written / "calibration.cache").read_bytes(), "t") == expected


def test_onnxruntime_reads_our_flatbuffers() -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    from onnxruntime.quantization.CalTableFlatBuffers.TrtTable import TrtTable

    table = TrtTable.GetRootAs(bytearray(flatbuffers_from_scales(EXPECTED)), 0)
    entries = [table.Dict(index) for index in range(table.DictLength())]
    found = {entry.Key().decode(): float(entry.Value()) for entry in entries}
    assert found == {name: 127 * scale for name, scale in EXPECTED.items()}
    assert list(found) == sorted(found)


def test_onnxruntime_reads_our_json(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    if not hasattr(calibrate, "load_tensors_data"):
        pytest.skip("this ONNX Runtime cannot read its JSON back")
    path = tmp_path / "calibration.json"
    path.write_bytes(json_from_scales(EXPECTED, "entropy"))
    found = calibrate.load_tensors_data(path)
    assert found.calibration_method == calibrate.CalibrationMethod.Entropy
    bounds = {name: tuple(map(float, found[name].range_value)) for name in found}
    assert bounds == {name: (-float(np.float32(amax)), float(np.float32(amax))) for name, amax in AMAX.items()}


# Tables that are not right.


def table_of(**bounds: object) -> bytes:
    return json.dumps({"x": {**bounds, "CLS": "TensorData"}}).encode()


def array(*values: float) -> dict[str, Any]:
    return {"data": list(values), "dtype": "float32", "CLS": "numpy.array"}


def test_a_dead_tensor_has_scale_0_in_json() -> None:
    assert scales_from_json(table_of(lowest=0.0, highest=array(0.0)), "t") == {"x": 0.0}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"{", "^t: is truncated or not JSON"),
        (b"[]", "^t: is not a table of ONNX Runtime"),
        (b'{"x": 3}', "^t: is not a table of ONNX Runtime"),
        (b'{"x": {}, "x": {}}', "^t: has 'x' twice"),
        (table_of(lowest=array(-1.0)), "^t, tensor 'x': highest is None, one finite number for the whole tensor"),
        (table_of(lowest=0.0, highest=array(1.0, 2.0)), r"^t, tensor 'x': highest is \[1\.0, 2\.0\], .*per tensor"),
        (table_of(lowest=float("nan"), highest=1.0), "^t, tensor 'x': lowest is nan"),
        (table_of(lowest=0.0, highest=1e39), "^t, tensor 'x': highest is 1e[+]39"),
        (table_of(avg=0.0, std=1.0), "^t, tensor 'x': lowest is None"),
    ],
)
def test_a_wrong_json_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        scales_from_json(data, "t")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"x 1.0\nx 2.0\n", "^t: has tensor 'x' twice"),
        (b"x 1.0\nx\n", "^t, line 2: is 'x', a name and an amax are expected"),
        (b"input: 40008912\n", "^t, line 1: is 'input: 40008912', .* the header of TensorRT's cache"),
        (b"x nan\n", "^t, line 1, tensor 'x': amax is nan"),
        (b"x -1.0\n", "^t, line 1, tensor 'x': amax is -1.0, .* never positive: give its calibration.json"),
        (b"x 1e39\n", "^t, line 1, tensor 'x': amax is 1e[+]39"),
        (b"x one\n", "^t, line 1, tensor 'x': amax is 'one', a number is expected"),
        (b"", "^t: is empty"),
        (b"\xff 1.0", "^t: is neither a calibration cache nor a table"),
    ],
)
def test_a_wrong_text_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        scales_from_text(data, "t")


def test_a_flatbuffer_cut_anywhere_is_refused_or_has_the_same_scales() -> None:
    whole = flatbuffers_from_scales(EXPECTED)
    num_refused = 0
    for length in range(len(whole)):
        try:
            assert scales_from_flatbuffers(whole[:length], "t") == EXPECTED
        except DataError:
            num_refused += 1
    assert num_refused > len(whole) - 8  # All but the padding behind the last text.


@given(st.integers(0, 1 << 16), st.integers(0, 255))
def test_a_damaged_flatbuffer_is_refused_or_read_but_never_a_crash(place: int, value: int) -> None:
    data = bytearray(flatbuffers_from_scales(EXPECTED))
    data[place % len(data)] = value
    try:
        found = scales_from_flatbuffers(bytes(data), "t")
    except DataError:
        return
    assert all(0.0 <= scale < np.inf for scale in found.values())


@pytest.mark.parametrize("amax", ["0.0", "-1.0", "nan", "inf", "six"])
def test_a_flatbuffer_with_an_impossible_amax_is_refused(amax: str) -> None:
    good = flatbuffers_from_scales({"x": float(np.float32(6 / 127))})
    text = repr(127 * float(np.float32(6 / 127))).encode()
    data = good.replace(text, amax.encode().ljust(len(text)))
    with pytest.raises(DataError, match=r"^t, tensor 'x': amax is "):
        scales_from_flatbuffers(data, "t")


def test_texts_that_are_more_than_the_file_are_refused() -> None:
    """A thousand tensors of one long name: they need not be read to the end."""
    builder = flatbuffers.Builder(1024)
    key, value = builder.CreateString("x" * 10_000), builder.CreateString("1.0")
    entries = []
    for _ in range(1000):
        builder.StartObject(2)
        builder.PrependUOffsetTRelativeSlot(0, key, 0)
        builder.PrependUOffsetTRelativeSlot(1, value, 0)
        entries.append(builder.EndObject())
    builder.StartVector(4, len(entries), 4)
    for entry in entries:
        builder.PrependUOffsetTRelative(entry)
    vector = builder.EndVector()
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, vector, 0)
    builder.Finish(builder.EndObject())
    with pytest.raises(DataError, match="its texts overlap, and would be more than the file"):
        scales_from_flatbuffers(bytes(builder.Output()), "t")
