"""The page on data is held to the code: its commands run, and its tables have every code and key."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibration.lint.finding import CODES

if TYPE_CHECKING:
    from tests.conftest import Command

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_page_has_every_code_and_every_key() -> None:
    assert re.findall(r"^\| `(\w+)` \| (?:error|warning|note) \|", PAGE, flags=re.MULTILINE) == list(CODES)
    table = PAGE[PAGE.index("| key of settling.json |") :]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == ["reading", "tensors", "points", "settled_at"]


def test_the_pages_commands_run(command: Command, tiny: Path) -> None:
    (tiny / "tiny.onnx").rename("model.onnx")
    random = np.random.default_rng(9)
    for name in ("calibration.npz", "evaluation.npz"):
        np.savez(name, image=random.normal(size=(24, 4, 8, 8)).astype(np.float32), y=np.arange(24) % 3)
    lines = re.findall(r"^\$ (.*)$", PAGE, flags=re.MULTILINE)
    assert len(lines) == 3
    for line in lines[1:]:
        said = command(*shlex.split(line)[1:])
        assert said.status == 0, f"{line}\n{said.err}"
        assert re.fullmatch(r"note\tlabels\t\w+\.npz: 24 labelled samples, .*\n", said.out), line
