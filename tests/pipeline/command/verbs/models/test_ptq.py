"""`.tflite` files a step at a time: `calibrate`, `ptq`, `build`, and what is no such file or of another format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Command
from tests.tflite_files import TfliteWriter, save_cosine_in_int8, save_dense_in_int8, save_linear, save_residual

pytest.importorskip("ai_edge_quantizer", reason="ai-edge-quantizer is not installed")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A float network and samples."""
    monkeypatch.chdir(tmp_path)
    save_residual(tmp_path / "m.tflite")
    np.savez("s.npz", x=np.random.default_rng(0).uniform(-1, 1, (24, 8)).astype(np.float32))
    return tmp_path


def test_from_a_float_file_to_an_engine(folder: Path, command: Command) -> None:
    for line in (
        "calibrate m.tflite --data s.npz -o ranges",
        "ptq m.tflite --ranges ranges -o int8.tflite",
        "build int8.tflite --backend litert --precision int8 -o engine.tflite",
        "infer engine.tflite --backend litert --data s.npz -o outputs.json",
    ):
        said = command(*line.split())
        assert (said.status, said.out) == (0, f"{line.split()[-1]}\n"), said.err
    assert (folder / "engine.tflite").read_bytes() == (folder / "int8.tflite").read_bytes()


def test_samples_of_another_shape(folder: Path, command: Command) -> None:
    np.savez("s.npz", x=np.zeros((24, 9), np.float32))
    said = command("calibrate", "m.tflite", "--data", "s.npz", "-o", "ranges")
    assert said.status == 2
    assert "input 'x' is float32 (1, 9), the model takes (1, 8); convert the data" in said.err


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("ptq m.tflite -o o.tflite", 2, "int8: needs ranges; run `trtforge calibrate`, and give --ranges"),
        ("ptq nowhere.tflite -o o.tflite", 2, "nowhere.tflite: does not exist; give a .tflite file"),
        ("ptq s.npz -o o.tflite", 4, "s.npz: is not a .tflite file, bytes 4 to 8 are"),
        ("build m.tflite -o o.onnx", 2, "m.tflite: is in the format tflite, onnxruntime builds from onnx; give such a"),
        ("build cos.tflite --backend litert --precision int8 -o o.tflite", 4, "COS 'turned'; in int8 all are expected"),
        ("build open.tflite --backend litert -o o.tflite", 4, "input 'x' is (?, 3), a fixed shape is expected"),
        ("build cut.tflite --backend litert -o o.tflite", 4, "cut.tflite: is not a whole .tflite file"),
        ("build m.tflite --backend litert --precision int8 -o o.tflite", 4, "the file is in fp32; ask for fp32, or"),
        ("build short.tflite --backend litert -o o.tflite", 4, "short.tflite: is not a .tflite file, bytes 4 to 8 are"),
        ("calibrate short.tflite --data s.npz -o r", 4, "short.tflite: is not a .tflite file, bytes 4 to 8 are"),
        ("ptq flex.tflite --precision dynamic -o o.tflite", 4, "FlexErf 'y' is no operator of TensorFlow Lite's own"),
        ("calibrate flex.tflite --data s.npz -o r", 4, "FlexErf 'y' is no operator of TensorFlow Lite's own"),
        ("ptq open.tflite --precision dynamic -o o.tflite", 4, "input 'x' is (?, 3), a fixed shape is expected"),
        ("ptq int8.tflite --precision dynamic -o o.tflite", 4, "int8.tflite: is in int8 already, so that there is no"),
        ("quantize m.tflite --ranges r -o o.onnx", 2, "is a .tflite file, an ONNX file is expected; `trtforge export"),
        ("cast m.tflite --data s.npz -o o.onnx", 2, "m.tflite: is a .tflite file, an ONNX file is expected; `trtforge"),
        ("lint m.tflite --data s.npz", 2, "m.tflite: is a .tflite file, an ONNX file is expected; `trtforge export m."),
        (
            "bisect m.tflite int8.tflite --data s.npz",
            2,
            "int8.tflite: takes input 'x' as (1, 3), m.tflite as (1, 8); give two files of one network",
        ),
        (
            "validate m.tflite int8.tflite --data s.npz",
            2,
            "m.tflite: is a .tflite file, which onnxruntime does not run",
        ),
        ("infer m.tflite --data s.npz -o o.json", 2, "m.tflite: is a .tflite file, which onnxruntime does not"),
    ],
)
def test_what_is_refused(folder: Path, command: Command, line: str, status: int, words: str) -> None:
    save_cosine_in_int8(folder / "cos.tflite")
    save_linear(folder / "open.tflite", batch=-1)
    save_dense_in_int8(folder / "int8.tflite")
    (folder / "short.tflite").write_bytes(b"TFL3")
    writer = TfliteWriter()
    x, y = writer.tensor("x", (1, 8)), writer.tensor("y", (1, 8))
    writer.operator("FlexErf", [x], [y])
    writer.save(folder / "flex.tflite", [x], [y])
    (folder / "cut.tflite").write_bytes((folder / "m.tflite").read_bytes()[:500])
    said = command(*line.split())
    assert said.status == status
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not list(folder.glob("o.*"))
