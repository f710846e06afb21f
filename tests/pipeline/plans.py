"""The least plan, written to a file, and what is said of one that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import ConfigError, exit_status
from pipeline.plan import read_plan

LEAST = """
[model]
source = "model.onnx"
[data]
calibration = "calibration.npz"
evaluation = "evaluation.npz"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str) -> str:
    """The one sentence about a plan that cannot be read, without the file's path."""
    path = written(folder, text)
    with pytest.raises(ConfigError) as caught:
        read_plan(path)
    assert exit_status(caught.value) == 2
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(f"{path}: ")
    return said.removeprefix(f"{path}: ")
