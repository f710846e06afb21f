"""A fleet of tiny plans that is gated on sizes alone, which no busy machine changes."""

from __future__ import annotations

import shutil
from pathlib import Path

FLEET = """
[fleet]
plans = ["*/plan.toml"]

[nightly]
budgets = ["size_mib <= 1.0 x baseline"]
html = false

[device.here.set.gate]
pays = false
html = false
"""

UNGATED = """
[fleet]
plans = ["*/plan.toml"]
until = "build"

[nightly]
html = false

[device.here.set.variants]
precisions = ["fp32"]
"""
"""FP32 alone, built and not judged."""


def fleet_of(plan: Path, *names: str, text: str = FLEET) -> Path:
    """A fleet file beside folders of these names, each with the tiny network's plan of its own."""
    folder = plan.parent / "fleet"
    for name in names:
        (folder / name).mkdir(parents=True)
        for file in ("tiny.onnx", "data.npz", "plan.toml"):
            shutil.copy(plan.parent / file, folder / name / file)
    fleet = folder / "fleet.toml"
    fleet.write_text(text)
    return fleet


def change(file: Path, old: str, new: str) -> None:
    """Put one text in place of another."""
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
