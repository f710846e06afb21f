"""Which kind a user's path is; a made-up kind is one file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.artifact import OnnxModel
from pipeline.errors import ConfigError
from pipeline.sources.contract import source_from_path
from pipeline.sources.keras import KerasFile
from pipeline.sources.savedmodel import SavedModel


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", r"does not exist; give one of \.keras, \.h5, \.onnx, \.pt2, module:function"),
        ("folder", r"is none of .*, SavedModel folder \(with saved_model\.pb\), \.tflite; convert it"),
        ("model.pb", r"is none of \.keras, \.h5, \.onnx, \.pt2, module:function .*, SavedModel .*; convert it"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "model.pb").touch()
    with pytest.raises(ConfigError, match=words):
        source_from_path(tmp_path / name, "serving_default")


def test_a_source_is_told_by_its_ending(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "saved_model.pb").touch()
    (tmp_path / "c.onnx").touch()
    (tmp_path / "a.keras").write_bytes(b"PK\x03\x04")  # As a zip archive begins, and HDF5.
    (tmp_path / "b.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    assert source_from_path(tmp_path / "net", "two") == SavedModel(tmp_path / "net", "two")
    assert source_from_path(tmp_path / "a.keras", "") == KerasFile(tmp_path / "a.keras")
    assert source_from_path(tmp_path / "b.h5", "") == KerasFile(tmp_path / "b.h5")
    assert source_from_path(tmp_path / "c.onnx", "") == OnnxModel(tmp_path / "c.onnx")
