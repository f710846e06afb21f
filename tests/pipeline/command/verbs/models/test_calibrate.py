"""The verb `calibrate` on files: the folder that it writes, and data that it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.pipeline.command.verbs.calls import files, one_sentence

if TYPE_CHECKING:
    from tests.conftest import Command


def test_calibrate(command: Command, tiny: Path) -> None:
    said = command("calibrate", "tiny.onnx", "--data", "data.npz", "--limit", 8, "--method", "mse", "-o", "ranges")
    assert (said.status, said.out) == (0, "ranges\n")
    assert said.err.splitlines() == [
        "trtforge: few: data.npz: 8 distinct samples, at least 16 are needed to see if ranges settle; add "
        "representative ones, some hundreds are usual",
        "trtforge: ranges: 8 samples are too few to tell whether ranges converged; add samples",
    ]
    assert files(tiny) == {"ranges"}
    assert files(tiny / "ranges") == {"ranges.json", "histograms.npz", "settling.json"}
    record = json.loads((tiny / "ranges" / "ranges.json").read_text())
    assert "mse" in json.dumps(record)
    image = np.load(tiny / "data.npz")["image"]
    chosen = image[[i * 24 // 8 for i in range(8)]]
    assert record["tensors"]["image"]["max"] == pytest.approx(float(chosen.max()))
    assert record["tensors"]["image"]["min"] == pytest.approx(float(chosen.min()))


def test_calibrate_again_replaces_its_own_folder(command: Command, ranges: Path) -> None:
    before = (ranges / "ranges.json").read_bytes()
    said = command("calibrate", "tiny.onnx", "--data", "data.npz", "--limit", 4, "-o", ranges)
    assert said.status == 0
    assert (ranges / "ranges.json").read_bytes() != before
    assert files(ranges.parent) == {"ranges"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--data", "none"), "none: does not exist; correct the path, or give module:function"),
        (
            ("--data", "empty"),
            "empty: holds no .npz, no .npy and no picture (.jpg, .png, .bmp, .webp, .tif); put ",
        ),
        (("--data", "tiny.onnx"), "tiny.onnx: is a '.onnx' file, .npz, .npy or a folder is expected; "),
        (("--data", "shape.npz"), "shape.npz: input 'image' is float32 (1, 4, 8, 7), the model takes (N, 4, 8, 8); "),
        (("--data", "dtype.npz"), "dtype.npz: input 'image' is float64 (1, 4, 8, 8), the model takes float32; "),
        (("--data", "nan.npz"), "nan.npz: input 'image' has NaN in sample 5, numbers are expected; "),
        (("--data", "data.npz", "--input", "image"), "--input 'image': is not NAME=KEY; write --input image=x_test"),
        (("--data", "data.npz", "--input", "imag=y"), "data.npz: inputs names 'imag', the model's inputs are 'image'"),
        (("--data", "data.npz", "--input", "image=z"), "data.npz: "),
        (("--data", "data.npz", "--limit", -1), "data.npz: limit is -1, 0 (all) or more is expected; correct it"),
        (("--data", "data.npz", "--batch-size", 0), "batch_size is 0, but must be at least 1; correct it"),
        (("--data", "data.npz", "--preprocess", "scale = "), "--preprocess 'scale = ': Invalid value "),
        (("--data", "data.npz", "--preprocess", "scale=1}\ny={"), "--preprocess 'scale=1}\\ny={': "),
        (("--data", "data.npz", "--preprocess", "scal = 2"), "--preprocess: unknown key 'scal'; did you mean 'scale'?"),
        (("--data", "data.npz", "--preprocess", "scale = '2'"), "--preprocess: [scale] is '2', a text, but takes a nu"),
        (("--data", "data.npz", "--preprocess", "scale = 0"), "--preprocess: scale is [0], a 0 in it leaves no signal"),
        (("--data", "data.npz", "--preprocess", "crop = [4, 4]"), "data.npz: "),
    ],
)
def test_bad_data(command: Command, tiny: Path, options: tuple[object, ...], said: str) -> None:
    image = np.load("data.npz")["image"]
    broken = image.copy()
    broken[5, 1, 2, 3] = np.nan
    np.savez("shape.npz", image=image[..., :7])
    np.savez("dtype.npz", image=image.astype(np.float64))
    np.savez("nan.npz", image=broken)
    Path("empty").mkdir()
    before = files(tiny)
    found = command("calibrate", "tiny.onnx", *options, "-o", "ranges")
    assert found.status == 2, found.err
    assert found.out == ""
    assert found.err.replace("\n", "\\n").startswith(f"trtforge: {said}")
    assert files(tiny) == before


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("data.npz", "data.npz: is a file; give the path of a folder with -o"),
        ("taken", "taken: is a folder with other files in it; give a new path with -o"),
        (".", ".: has no name of its own; give a new path with -o"),
        ("taken/..", "taken/..: has no name of its own; give a new path with -o"),
        ("/dev/null", "/dev/null: is a file; give the path of a folder with -o"),
        ("data.npz/x", "data.npz/x: cannot be written (File exists); give another path with -o"),
    ],
)
def test_where_no_ranges_can_be_written(command: Command, tiny: Path, target: str, said: str) -> None:
    Path("taken").mkdir()
    Path("taken/mine.txt").write_text("mine")
    one_sentence(command("calibrate", "tiny.onnx", "--data", "data.npz", "-o", target), 2, said)
    assert files(tiny) == {"taken"}
    assert files(tiny / "taken") == {"mine.txt"}


@pytest.mark.parametrize(
    ("verb", "status", "sentence"),
    [
        ("calibrate", 4, "int8.onnx: has Q/DQ nodes already, so that there is no INT8 to make of it; give the FP32 "),
        ("quantize", 2, "--data: has no effect for int8.onnx, which came quantized and needs no data; drop it"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_a_model_that_is_int8_already_is_refused_before_it_is_run(
    command: Command, verb: str, status: int, sentence: str
) -> None:
    assert command("quantize", "tiny.onnx", "--data", "data.npz", "--limit", 4, "-o", "int8.onnx").status == 0
    said = command(verb, "int8.onnx", "--data", "data.npz", "-o", "made")
    one_sentence(said, status, sentence)
    assert len(said.err.splitlines()) == 1
    assert command("cast", "int8.onnx", "--data", "data.npz", "--limit", 4, "-o", "fp16.onnx").status == 0
