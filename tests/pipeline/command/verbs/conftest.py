"""What the tests of the verbs start from: ranges, an INT8 model, answers and a finished run of the tiny network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pipeline.accuracy.comparison import read_outputs, write_outputs

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.fixture
def ranges(command: Command, tiny: Path) -> Path:
    """The tiny network's ranges, read as min-max."""
    said = command("calibrate", "tiny.onnx", "--data", "data.npz", "--method", "minmax", "-o", "ranges")
    assert said.status == 0, said.err
    return tiny / "ranges"


@pytest.fixture
def int8(command: Command, ranges: Path) -> Path:
    """The tiny network in INT8 for ONNX Runtime."""
    said = command("quantize", "tiny.onnx", "--ranges", ranges, "--target", "onnxruntime", "-o", "int8.onnx")
    assert said.status == 0, said.err
    return ranges.parent / "int8.onnx"


@pytest.fixture
def outputs(command: Command, tiny: Path) -> tuple[Path, Path]:
    """The tiny network's answers, and the same with every score raised by 0.5 and the best two of sample 0 swapped."""
    assert command("infer", "tiny.onnx", "--data", "data.npz", "-o", "fp32.json").status == 0
    scores = read_outputs(tiny / "fp32.json")["scores"].astype(np.float32) + np.float32(0.5)
    order = np.argsort(scores[0])
    scores[0, order[-2:]] = scores[0, order[:-3:-1]]
    write_outputs(tiny / "other.json", "other", [{"scores": scores}])
    return tiny / "fp32.json", tiny / "other.json"


@pytest.fixture
def ran(command: Command, plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan after a whole run, with its store and report. The first test that asks runs it, others get copies."""
    kept = tmp_path_factory.getbasetemp() / "ran"
    if not kept.exists():
        said = command("run", plan)
        assert said.status == 0, said.err
        kept.mkdir()
        for name in (".trtforge", "trtforge-report"):
            shutil.copytree(plan.parent / name, kept / name)
    else:
        shutil.copytree(kept, plan.parent, dirs_exist_ok=True)
    return plan
