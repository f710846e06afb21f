"""The notebooks run from top to bottom, and are kept with their outputs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from engines.backends import litert, tensorflow, tensorrt_rtx
from engines.torch_graph import library

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
MOST_SECONDS = 900
"""Of a cell, on a machine that is busy with other work."""

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "post_training_tflite", "pruning", "quantization_aware_training", "tensorrt_from_savedmodel", "which_technique",
    ]  # fmt: skip


LEAVES = {
    "post_training_tflite": "trtforge-gate/gate.json",
    "pruning": "pruned_int8.onnx",
    "quantization_aware_training": "tuned4.onnx",
    "tensorrt_from_savedmodel": "int8.engine",
    "which_technique": "trtforge-advice/report.json",
}
"""The last file that each writes."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_kept_with_its_outputs_and_without_errors(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)
    assert "/tmp/" not in path.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    for module in ("sklearn", "matplotlib"):
        pytest.importorskip(module, reason=f"{module} is not installed")
    lacking = [reason for reason in (tensorflow.why_not_run(), litert.why_not_run(), library.why_not()) if reason]
    if lacking:
        pytest.skip(lacking[0])
    if path.stem == "tensorrt_from_savedmodel" and (reason := tensorrt_rtx.why_not_build()):
        pytest.skip(reason)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    shutil.copy(path, tmp_path / path.name)
    book = nbformat.read(tmp_path / path.name, 4)
    client = nbclient.NotebookClient(
        book, timeout=MOST_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert (tmp_path / LEAVES[path.stem]).is_file()
