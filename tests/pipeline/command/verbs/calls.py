"""What the tests of the verbs ask of a call of the command, and of the folder that it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Said


def files(folder: Path) -> set[str]:
    """Everything in a folder, hidden or not, but the inputs."""
    return {path.name for path in folder.iterdir()} - {"tiny.onnx", "data.npz", "plan.toml"}


def one_sentence(said: Said, status: int, words: str) -> None:
    """The call failed with this status, printed nothing on stdout, and its last line on stderr begins so."""
    assert said.status == status, said.err
    assert said.out == ""
    assert "Traceback" not in said.err
    last = said.err.splitlines()[-1]
    assert last.startswith(f"trtforge: {words}"), last
