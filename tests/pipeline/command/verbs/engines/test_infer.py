"""The verb `infer` on files: answers of an engine, by any backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.accuracy.comparison import read_outputs
from tests.pipeline.command.verbs.calls import files

if TYPE_CHECKING:
    from tests.conftest import Command


def test_build_and_infer_on_onnx_runtime(command: Command, int8: Path) -> None:
    built = command("build", int8, "--precision", "int8", "-o", "engine.onnx")
    assert (built.status, built.out) == (0, "engine.onnx\n"), built.err
    record = json.loads(Path("engine.onnx.json").read_text())
    assert (record["backend"], record["precision"]) == ("onnxruntime", "int8")
    said = command("infer", "engine.onnx", "--data", "data.npz", "--batch-size", 7, "-o", "outputs.json")
    assert (said.status, said.out, said.err) == (0, "outputs.json\n", "")
    assert {name: array.shape for name, array in read_outputs(Path("outputs.json")).items()} == {"scores": (24, 3)}
    assert files(int8.parent) == {"ranges", "int8.onnx", "engine.onnx", "engine.onnx.json", "outputs.json"}


def test_the_reference_agrees_with_onnx_runtime(command: Command, outputs: tuple[Path, Path]) -> None:
    assert command("infer", "tiny.onnx", "--backend", "reference", "--data", "data.npz", "-o", "r.json").status == 0
    said = command("validate", outputs[0], "r.json", "--atol", 1e-4)
    assert said.status == 0, said.err
    assert said.out.startswith("passed")
