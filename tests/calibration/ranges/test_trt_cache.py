"""TensorRT's calibration caches are read and written to the bit; damaged ones are refused with their line."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.errors import DataError
from calibration.ranges.trt_cache import Cache, algorithm_of, bytes_from_cache, cache_from_bytes, header_for

MNIST = b"""TRT-7000-EntropyCalibration2
data: 3c008912
conv1: 3c88edfc
pool1: 3c88edfc
conv2: 3ddc858b
pool2: 3ddc858b
ip1: 3db6bd6e
ip2: 3e691968
prob: 3c010a14
"""
"""NVIDIA's published sample: README of samples/sampleINT8, TensorRT 7."""
TENSORFLOW = b"TRT-100300-EntropyCalibration2\ninput_1:0: 3c010a14\nStatefulPartitionedCall/dense: 4000890a\n"
"""Names as tf2onnx makes them, in a cache of TensorRT 10.3."""
GOOD = "TRT-8502-EntropyCalibration2\nx: 3c010a14\n"


def refusal(text: str | bytes) -> str:
    with pytest.raises(DataError) as caught:
        cache_from_bytes(text.encode() if isinstance(text, str) else text, "a.cache")
    return str(caught.value)


@pytest.mark.parametrize("sample", [MNIST, TENSORFLOW])
def test_a_published_cache_comes_back_byte_by_byte(sample: bytes) -> None:
    assert bytes_from_cache(cache_from_bytes(sample, "a.cache")) == sample


def test_the_published_scales_are_tensorrts_thresholds() -> None:
    """(m + 0.5) / 2048 of the largest |x|: 1 for images in 0..1, 255 for bytes."""
    amax = {name: 127 * scale for name, scale in cache_from_bytes(MNIST, "a.cache").scales.items()}
    assert amax["data"] == pytest.approx(2040.5 / 2048, rel=1e-7)
    assert amax["prob"] == pytest.approx(2048.5 / 2048, rel=1e-7)
    photo = cache_from_bytes(TENSORFLOW, "a.cache").scales["StatefulPartitionedCall/dense"]
    assert 127 * photo == pytest.approx(255 * 2048.5 / 2048, rel=1e-7)


def test_a_name_may_have_colons() -> None:
    found = cache_from_bytes(b"TRT-8601-MinMaxCalibration\na:0: b: 1: 3f800000\n", "a.cache")
    assert found == Cache("TRT-8601-MinMaxCalibration", {"a:0: b: 1": 1.0})


SCALES = st.floats(min_value=2.0**-149, max_value=float(np.finfo(np.float32).max), width=32)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda name: "".join(name.splitlines()) == name)


@given(st.dictionaries(NAMES, SCALES))
def test_any_name_and_any_scale_comes_back_to_the_bit(scales: dict[str, float]) -> None:
    made = Cache("TRT-8502-EntropyCalibration2", scales)
    assert cache_from_bytes(bytes_from_cache(made), "a.cache") == made


@given(SCALES)
def test_amax_gives_the_scale_back_to_the_bit(scale: float) -> None:
    """What ranges keep is amax = 127 * scale."""
    assert np.float32(127 * scale / 127).tobytes() == struct.pack("<f", scale)


def test_windows_line_ends_blank_lines_and_a_missing_last_line_end_are_taken() -> None:
    assert cache_from_bytes(GOOD.replace("\n", "\r\n\r\n").rstrip().encode(), "a") == cache_from_bytes(
        GOOD.encode(), "a"
    )


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_cut_line_is_refused(cut: int) -> None:
    said = refusal(MNIST[: -1 - cut])
    assert said.startswith(f"a.cache, line 9: is 'prob: {'3c010a14'[: 8 - cut]}', a tensor's name, a colon and eight")


def test_every_other_cut_is_refused_or_loses_whole_lines_only() -> None:
    whole = cache_from_bytes(MNIST, "a.cache").scales
    for length in range(len(MNIST)):
        try:
            found = cache_from_bytes(MNIST[:length], "a.cache").scales
        except DataError:
            continue
        assert found == dict(list(whole.items())[: len(found)])


DAMAGE = {
    "": "a.cache, line 1: is '', a header such as TRT-8502-EntropyCalibration2 is expected",
    "x: 3c010a14\n": "a.cache, line 1: is 'x: 3c010a14', a header",
    "TRT-85-EntropyCalibration2\n": "a.cache, line 1: is 'TRT-85-EntropyCalibration2', a header",
    "TRT-8502-Entropy\n": "a.cache, line 1: is 'TRT-8502-Entropy', a header",
    GOOD + "y 3c010a14": "a.cache, line 3: is 'y 3c010a14', a tensor's name, a colon and eight hex digits",
    GOOD + ": 3c010a14": "a.cache, line 3: is ': 3c010a14', a tensor's name",
    GOOD + "y: 3c010a1g": "a.cache, line 3: is 'y: 3c010a1g', a tensor's name",
    GOOD + "y: 0x3c010a": "a.cache, line 3: is 'y: 0x3c010a', a tensor's name",
    GOOD + "x: 3c010a15": "a.cache, line 3: has tensor 'x' again; remove one of the two lines",
    GOOD + "y: 00000000": "a.cache, line 3: the scale of tensor 'y' is 0.0, a positive finite number is expected",
    GOOD + "y: bc010a14": "a.cache, line 3: the scale of tensor 'y' is -0.00787",
    GOOD + "y: 7fc00000": "a.cache, line 3: the scale of tensor 'y' is nan, a positive",
    GOOD + "y: 7f800000": "a.cache, line 3: the scale of tensor 'y' is inf, a positive",
}


@pytest.mark.parametrize("text", DAMAGE)
def test_a_damaged_cache_is_refused_with_its_line(text: str) -> None:
    assert refusal(text).startswith(DAMAGE[text])


def test_bytes_that_are_no_text_are_refused_with_their_line() -> None:
    assert refusal(GOOD.encode() + b"\xff: 3c010a14") == (
        "a.cache, line 3: is not UTF-8 text; restore the file, or calibrate again"
    )


@pytest.mark.parametrize(
    ("version", "number"),
    [
        ("8.4.1", 8401), ("8.5.2", 8502), ("8.5.2.2", 8502), ("8.5.10", 8510), ("8.6.1", 8601), ("9.3.0", 9300),
        ("10.0.1", 100001), ("10.3.0", 100300), ("10.3.0.30", 100300), ("10.13.3.9", 101303), ("10.16.2", 101602),
    ],
)  # fmt: skip
def test_the_header_is_that_of_the_version(version: str, number: int) -> None:
    header = header_for(version, "EntropyCalibration2")
    assert header == f"TRT-{number}-EntropyCalibration2"
    assert cache_from_bytes(f"{header}\n".encode(), "a").header == header


def test_the_header_names_the_calibrator() -> None:
    assert header_for("8.6.1", "MinMaxCalibration") == "TRT-8601-MinMaxCalibration"
    assert algorithm_of("TRT-8601-MinMaxCalibration") == "MinMaxCalibration"
    assert algorithm_of("TRT-8601-EntropyCalibration") == "EntropyCalibration"
    assert algorithm_of("TRT-8601-EntropyCalibration2") == "EntropyCalibration2"


@pytest.mark.parametrize("version", ["8", "8.5", "8.5.x", "", "v8.5.2", "8.5.2-1+cuda11"])
def test_a_version_that_is_not_exact_is_refused(version: str) -> None:
    with pytest.raises(DataError, match=r"^TensorRT version '.*': three numbers such as 8\.5\.2 are expected"):
        header_for(version, "EntropyCalibration2")


def test_a_version_without_calibrators_is_refused() -> None:
    with pytest.raises(DataError, match=r"^TensorRT version 11\.0\.0: reads no calibration caches, 10 was the last"):
        header_for("11.0.0", "EntropyCalibration2")


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 0.1])
def test_a_scale_that_would_not_come_back_is_not_written(scale: float) -> None:
    with pytest.raises(DataError, match=r"^tensor 'x': its scale is .*, a positive float32 is expected"):
        bytes_from_cache(Cache("TRT-8502-EntropyCalibration2", {"x": scale}))


@pytest.mark.parametrize("name", ["", "a\nb", "a\r"])
def test_a_name_that_would_not_come_back_is_not_written(name: str) -> None:
    with pytest.raises(DataError, match="has no name that fits a line of a calibration cache"):
        bytes_from_cache(Cache("TRT-8502-EntropyCalibration2", {name: 1.0}))
