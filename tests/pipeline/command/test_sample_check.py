"""Verbs that calibrate check their samples first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.mark.parametrize("verb", ["calibrate", "cast", "quantize"])
def test_verbs_that_calibrate_check_their_samples(command: Command, pictures: Path, verb: str) -> None:
    given = (verb, "quadrants.onnx", "--data", "wrong.npz", "--labels", "y", "-o", "made")
    said = command(*given)
    assert said.status == 2
    assert "which is not by chance" in said.err
    assert not (pictures / "made").exists()
    said = command(*given, "--allow", "range")
    assert said.status == (4 if verb == "quantize" else 0)  # Nothing in it can be INT8.
    assert said.err.count("which is not by chance") == 1, "what is allowed is said all the same"
    assert command(*given, "--allow", "rang").err.startswith("trtforge: allow has 'rang', which no finding has")
