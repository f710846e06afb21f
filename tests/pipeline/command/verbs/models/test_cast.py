"""The verb `cast` on files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from tests.pipeline.command.verbs.calls import files

if TYPE_CHECKING:
    from tests.conftest import Command


def test_cast(command: Command, ranges: Path) -> None:
    said = command("cast", "tiny.onnx", "--ranges", ranges, "-o", "fp16.onnx")
    assert (said.status, said.out) == (0, "fp16.onnx\n")
    model = onnx.load("fp16.onnx")
    assert {t.data_type for t in model.graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert files(ranges.parent) == {"ranges", "fp16.onnx"}


def test_a_model_written_over_an_engine_takes_its_record_away(command: Command, ranges: Path) -> None:
    assert command("build", "tiny.onnx", "--backend", "reference", "-o", "x.onnx").status == 0
    assert Path("x.onnx.json").is_file()
    assert command("cast", "tiny.onnx", "--ranges", ranges, "-o", "x.onnx").status == 0
    assert not Path("x.onnx.json").exists()
