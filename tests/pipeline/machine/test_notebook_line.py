"""The line of progress below a notebook's cell, in a kernel of Jupyter."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.machine.notebook_line import ProgressState, is_notebook

ROOT = Path(__file__).resolve().parents[3]
CELLS = (
    """
import time
from pipeline.machine import progress
progress.PATIENCE_SECONDS = progress.NOTEBOOK_SECONDS = 0.05
with progress.working("infer <int8>"), progress.counting("samples", 8) as on_sample:
    for done in range(1, 9):
        on_sample(done)
        time.sleep(0.1)
with progress.working("validate int8"):
    time.sleep(0.3)
""",
    """
with progress.working("build int8"):
    time.sleep(0.3)
""",
    """
with progress.counting("samples of a quiet call", 8):
    time.sleep(0.3)
""",
)


def test_what_is_drawn() -> None:
    drawn = ProgressState("infer <int8>: samples", 3, 8, 12.4)
    assert drawn.text() == "trtforge: infer <int8>: samples 3/8, 12 s"
    assert "infer &lt;int8&gt;: samples 3/8, 12 s" in drawn.html()
    assert '<progress value="3" max="8">' in drawn.html()
    assert "<progress" not in ProgressState("export", 0, 0, 3).html(), "nothing is known of how far it is"
    assert not is_notebook()


@pytest.fixture(scope="module")
def messages() -> list[list[tuple[str, dict[str, Any]]]]:
    """By cell: what the kernel sent of outputs, in order."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    sent: list[list[tuple[str, dict[str, Any]]]] = [[] for _ in CELLS]

    class Client(nbclient.NotebookClient):  # type: ignore[misc, name-defined]
        def process_message(self, msg: dict[str, Any], cell: object, cell_index: int) -> object:
            sent[cell_index].append((msg["msg_type"], msg["content"]))
            return super().process_message(msg, cell, cell_index)

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    old = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)
    try:
        Client(book, timeout=300, kernel_name="python3").execute()
    finally:
        if old is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = old
    return sent


def texts(cell: list[tuple[str, dict[str, Any]]], kind: str) -> list[str]:
    return [content["data"]["text/plain"] for sent, content in cell if sent == kind]


def test_one_output_is_drawn_again_and_emptied(messages: list[list[tuple[str, dict[str, Any]]]]) -> None:
    first = messages[0]
    assert len(texts(first, "display_data")) == 1, "one output for all that is at work in a cell"
    shown = texts(first, "display_data") + texts(first, "update_display_data")
    assert any(text.startswith("trtforge: infer <int8>: samples ") and "/8, 0 s" in text for text in shown)
    assert any(text.startswith("trtforge: validate int8, ") for text in shown)
    assert shown[-1] == ""
    assert not any(kind == "stream" for kind, _ in first), "no plain lines beside it"


def test_each_cell_has_its_own(messages: list[list[tuple[str, dict[str, Any]]]]) -> None:
    assert texts(messages[1], "display_data")[0].startswith("trtforge: build int8, ")


def test_what_is_quiet_draws_nothing(messages: list[list[tuple[str, dict[str, Any]]]]) -> None:
    assert texts(messages[2], "display_data") == []
