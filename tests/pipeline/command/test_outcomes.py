"""What verbs come to: the same lines on a terminal, as text, in rich and in a notebook."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.artifact import OnnxModel, Tuned
from pipeline.command.outcomes import Made, MadeOfPlan, VerbOutcome, tell
from pipeline.errors import CheckFailed


class Remarked(VerbOutcome):
    """A table with a name in brackets, and a sentence beside it."""

    def print_to(self, console: Console) -> None:
        console.print("a[b]c", style="bold red")

    def remarks(self):  # type: ignore[no-untyped-def]
        yield "it was odd"


def test_it_is_printed_with_remarks_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Remarked())
    assert capsys.readouterr() == ("a[b]c\n", "trtforge: it was odd\n")


def test_it_shows_itself_everywhere() -> None:
    shown = Remarked()
    assert str(shown) == repr(shown) == "a[b]c"
    page = shown._repr_html_()
    assert page.startswith("<pre ")
    assert "color: #800000" in page
    assert "a[b]c" in page
    text = io.StringIO()
    Console(file=text, force_jupyter=False).print(shown)
    assert text.getvalue() == "a[b]c\n"
    Console(file=text, color_system="standard", force_terminal=True, force_jupyter=False).print(shown)
    assert "\x1b[1;31ma" in text.getvalue()


def test_what_was_made_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"1234")
    (tmp_path / "ranges").mkdir()
    (tmp_path / "ranges" / "ranges.json").write_bytes(b"12")
    model, folder = Made(OnnxModel(tmp_path / "model.onnx")), Made(Tuned(tmp_path))
    assert Path(model) == model.path == tmp_path / "model.onnx"
    assert (model.size_bytes, folder.size_bytes) == (4, 6)
    assert str(model.path) in model._repr_html_()


def test_lines_for_programs_are_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    long = OnnxModel(Path("folder" * 40))
    tell(MadeOfPlan({"int8@onnxruntime": long, "bad\x1bname": long}))
    assert capsys.readouterr().out == f"int8@onnxruntime\t{long.path}\nbad\\x1bname\t{long.path}\n"


def test_failures_end_the_command() -> None:
    MadeOfPlan({}).check()
    with pytest.raises(CheckFailed, match="out of tolerance: a: too far; b: too far"):
        MadeOfPlan({}, ("a: too far", "b: too far")).check()
