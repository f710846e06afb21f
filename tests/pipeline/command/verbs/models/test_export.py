"""The verb `export` on files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from tests.pipeline.command.verbs.calls import files

if TYPE_CHECKING:
    from tests.conftest import Command


def test_export_of_an_onnx_file(command: Command, tiny: Path) -> None:
    said = command("export", "tiny.onnx", "-o", "made/model.onnx")
    assert (said.status, said.out, said.err) == (0, "made/model.onnx\n", "")
    onnx.checker.check_model(str(tiny / "made" / "model.onnx"), full_check=True)
    assert files(tiny) == {"made"}
    assert files(tiny / "made") == {"model.onnx"}
