"""The verb `report` on a `report.json`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.pipeline.command.verbs.calls import files, one_sentence

if TYPE_CHECKING:
    from tests.conftest import Command


def test_report_prints_and_draws_again(command: Command, ran: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    report = ran.parent / "trtforge-report" / "report.json"
    said = command("report", report, "-o", "elsewhere/page.html")
    assert said.status == 0, said.err
    assert "fp32@onnxruntime" in said.out
    assert command("report", report.parent).out == command("report", report).out
    assert said.out.splitlines()[-1] == "elsewhere/page.html"
    assert "<svg" in Path("elsewhere/page.html").read_text()
    assert files(Path("elsewhere")) == {"page.html"}


def test_report_of_something_else(command: Command, tiny: Path) -> None:
    one_sentence(command("report", "none.json"), 2, "none.json: cannot be read (No such file or directory); correct")
    Path("x.json").write_text("[1]")
    one_sentence(command("report", "x.json"), 2, "x.json: schema_version is None, this program reads ")
