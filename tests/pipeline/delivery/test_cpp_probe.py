"""The sources that each delivered program has: preprocessing as Python does it, to the bit, and the reader of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.data.preprocess import Interpolation, Preprocess
from calibration.errors import DataError
from pipeline.delivery.cpp import SOURCES
from pipeline.delivery.cpp_text import preprocess_lines
from tests.pipeline.delivery.cpp_building import WARNINGS, called, needs_compiler

INTERPOLATIONS: tuple[Interpolation, ...] = ("nearest", "bilinear", "bicubic", "area", "hamming", "lanczos")
IMAGENET: dict[str, Any] = {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
PIXELS = ["uint8", "uint16", "float32"]
NUMBERS = [
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
]  # fmt: skip
SHAPES = ((2, 37, 53, 3), (1, 9, 8, 1), (1, 20, 41, 4))


def cases() -> Iterator[tuple[Preprocess, list[str], tuple[tuple[int, ...], ...]]]:
    """Steps, the types of samples and their shapes."""
    for interpolation in INTERPOLATIONS:
        for sizes in ((16, 24), (64, 61), (37, 20)):
            yield Preprocess(resize=sizes, interpolation=interpolation), PIXELS, SHAPES
    yield Preprocess(resize=(20,), crop=(16, 15)), PIXELS, SHAPES
    for fill in (114.0, 7.9):
        yield Preprocess(resize=(31, 32), fit="letterbox", fill=fill, **IMAGENET, layout="nchw"), PIXELS, SHAPES[:1]
    yield Preprocess(resize=(30, 40), fit="letterbox", interpolation="bicubic"), PIXELS, SHAPES
    for channels in ("rgb", "bgr", "gray"):
        yield Preprocess(channels=channels, crop=(8, 7)), NUMBERS[1:], SHAPES[:2]
    yield Preprocess(**IMAGENET), NUMBERS, SHAPES[:1]
    yield Preprocess(scale=1 / 127.5, mean=(1.0,), layout="nchw"), NUMBERS, SHAPES
    yield Preprocess(std=(58.4,)), NUMBERS, ((5, 7), (3,))
    for dtype in ("float16", "float32", "float64", "int64", "int32"):
        yield Preprocess(dtype=dtype), [n for n in NUMBERS if n != "uint64"], SHAPES[:1]
    yield Preprocess(scale=0.01, mean=(0.4,), dtype="float16"), NUMBERS, SHAPES[:1]
    yield Preprocess(scale=0.1, mean=(3.0,), dtype="int8"), ["uint8", "float32"], SHAPES[:1]


CASES = list(cases())


def samples_of(dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(len(dtype) + shape[0])
    kind = np.dtype(dtype).kind
    if kind == "f":
        return (random.normal(size=shape) * 90 + 100).astype(dtype)
    largest = 2 if kind == "b" else min(np.iinfo(dtype).max, 255)
    return random.integers(0, largest, size=shape).astype(dtype)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_compiler()
    folder = tmp_path_factory.mktemp("probe")
    texts = [[f"all.back().{line};" for line in preprocess_lines(steps)] for steps, *_ in CASES]
    (folder / "cases.inc").write_text("\n".join(line for text in texts for line in ("all.emplace_back();", *text)))
    sources = [SOURCES / f"{name}.cpp" for name in ("json", "npy", "preprocess", "resize", "tensor")]
    flags = (*WARNINGS, "-O2", "-ffp-contract=off", f"-I{SOURCES}", f"-I{folder}")
    made = called(Path("g++"), *flags, *sources, Path(__file__).with_name("probe.cpp"), "-o", folder / "probe")
    assert made.returncode == 0, made.stderr
    return folder / "probe"


@pytest.mark.parametrize("number", range(len(CASES)), ids=[steps.describe() for steps, *_ in CASES])
def test_preprocessing_is_that_of_python_to_the_bit(number: int, probe: Path, tmp_path: Path) -> None:
    steps, dtypes, shapes = CASES[number]
    for dtype in dtypes:
        for shape in shapes:
            if steps.channels != "keep" and shape[-1] == 4:
                continue
            if len(steps.mean) == 3 and shape[-1] != 3:
                continue
            samples = samples_of(dtype, shape)
            np.save(tmp_path / "in.npy", samples)
            expected = np.ascontiguousarray(steps(samples))
            done = called(probe, "preprocess", number, tmp_path / "in.npy", tmp_path / "out.npy")
            assert done.returncode == 0, done.stderr
            made = np.load(tmp_path / "out.npy")
            assert (made.dtype, made.shape) == (expected.dtype, expected.shape)
            assert made.tobytes() == expected.tobytes(), (dtype, shape)


def test_halves_are_rounded_as_numpy_rounds_them(probe: Path, tmp_path: Path) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    fine = every[np.isfinite(every)].astype(np.float64)
    between = (fine[:-1] + fine[1:]) / 2
    ends = [65519.99, 65520.0, 1e300, 5e-324, -0.0, np.inf, -np.inf]
    values = np.concatenate([fine, between, np.nextafter(between, 0), ends])
    number = next(n for n, (steps, *_) in enumerate(CASES) if steps == Preprocess(dtype="float16"))
    np.save(tmp_path / "in.npy", values)
    assert called(probe, "preprocess", number, tmp_path / "in.npy", tmp_path / "out.npy").returncode == 0
    with np.errstate(over="ignore"):
        assert np.load(tmp_path / "out.npy").tobytes() == values.astype(np.float16).tobytes()


@pytest.mark.parametrize(
    ("steps", "samples", "words"),
    [
        (Preprocess(scale=0.1, mean=(3.0,), dtype="int8"), np.full((1, 2), 1e4, np.float32), "does not hold"),
        (Preprocess(scale=0.1, mean=(3.0,), dtype="int8"), np.full((1, 2), np.nan, np.float32), "does not hold"),
        (Preprocess(dtype="int64"), np.full((1, 2), 2.0**63), "does not hold"),
        (Preprocess(dtype="int64"), np.full((1, 2), 2**63, np.uint64), "does not hold"),
        (Preprocess(resize=(20,), crop=(16, 15)), np.zeros((1, 40, 30, 3), np.int32), "resize takes uint8"),
        (Preprocess(resize=(20,), crop=(16, 15)), np.zeros((40, 20, 3), np.uint8), "pictures (N, H, W, C)"),
        (Preprocess(resize=(20,), crop=(16, 15)), np.zeros((1, 0, 20, 3), np.uint8), "has no pixels to resize"),
        (Preprocess(channels="rgb", crop=(8, 7)), np.zeros((1, 4, 9, 3), np.uint8), "at least 8x7 is expected"),
        (Preprocess(channels="rgb", crop=(8, 7)), np.zeros((1, 9, 9, 4), np.uint8), "has 4 channels"),
        (Preprocess(**IMAGENET), np.zeros((1, 9, 9, 4), np.uint8), "mean has 3 numbers"),
    ],
)
def test_what_python_refuses_is_refused(
    steps: Preprocess, samples: np.ndarray[Any, Any], words: str, probe: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError):
        steps(samples)
    number = next(n for n, (each, *_) in enumerate(CASES) if each == steps)
    np.save(tmp_path / "in.npy", samples)
    done = called(probe, "preprocess", number, tmp_path / "in.npy", tmp_path / "out.npy")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert words in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1, -2.5e+3, true, false, null], "b": {"c": "d"}}',
        '"\\u00e9\\ud83d\\ude00\\n\\"\\/"',
        " [ ] ",
        "0",
        '""',
        "{}",
    ],
)
def test_json_is_read(text: str, probe: Path, tmp_path: Path) -> None:
    def printed(value: object) -> str:
        if isinstance(value, dict):
            return "".join(f"{{{key}:{printed(each)}}}" for key, each in sorted(value.items()))
        if isinstance(value, list):
            return "".join(f"[{printed(each)}]" for each in value)
        if value is None or isinstance(value, bool):
            return ""
        return f"'{value}'" if isinstance(value, str) and not isinstance(value, _Digits) else str(value)

    (tmp_path / "text").write_text(text)
    done = called(probe, "json", tmp_path / "text")
    expected = printed(json.loads(text, parse_float=_Digits, parse_int=_Digits))
    assert (done.returncode, done.stdout) == (0, f"{expected}\n")


class _Digits(str):
    """A number as it was written."""


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[1,]", '{"a":1,}', '{"a" 1}', '"\\ud800"', '"\\x"', '"\n"', "01", "1.", ".5", "1e", "nul", "'a'",
        "[1]]", '{"a":1,"a":2}', "[" * 100 + "]" * 100, '"\\u00g0"', '"', "+1", "NaN",
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(text: str, probe: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(text)
    done = called(probe, "json", tmp_path / "text")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no JSON at byte" in done.stderr


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is no .npy file"),
        (b"\x93NUMPY\x01\x00\xff\xff{     ", "is cut short"),
        (b"\x93NUMPY\x02\x00\x06\x00\x00\x00{'a'} ", "has no fortran_order"),
    ],
)
def test_what_is_no_array_is_refused(data: bytes, words: str, probe: Path, tmp_path: Path) -> None:
    (tmp_path / "in.npy").write_bytes(data)
    done = called(probe, "preprocess", 0, tmp_path / "in.npy", tmp_path / "out.npy")
    assert (done.returncode, words in done.stderr) == (1, True)


def test_arrays_that_numpy_writes_otherwise_are_refused(probe: Path, tmp_path: Path) -> None:
    def refusal(array: np.ndarray[Any, Any]) -> str:
        np.save(tmp_path / "in.npy", array)
        done = called(probe, "preprocess", 0, tmp_path / "in.npy", tmp_path / "out.npy")
        assert done.returncode == 1
        return done.stderr

    assert "is in Fortran order" in refusal(np.asfortranarray(np.zeros((2, 3))))
    assert "little-endian numbers are expected" in refusal(np.zeros(3, ">f4"))
    assert "little-endian numbers are expected" in refusal(np.zeros(3, np.complex64))
    np.save(tmp_path / "in.npy", np.zeros(3))
    (tmp_path / "in.npy").write_bytes((tmp_path / "in.npy").read_bytes()[:-1])
    assert "does not hold the 24 bytes" in called(probe, "preprocess", 0, tmp_path / "in.npy", "out.npy").stderr
