"""What every verb does alike: on a plan, without what it needs, and where nothing can be written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.pipeline.command.verbs.calls import files, one_sentence

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.mark.parametrize(
    ("verb", "printed"),
    [
        ("export", r"\S+/export/[0-9a-f]{64}/model\.onnx\n"),
        ("calibrate", r"\S+/calibrate/[0-9a-f]{64}/ranges\n"),
        ("quantize", r"int8@onnxruntime\t\S+/quantize/[0-9a-f]{64}/model\.onnx\n"),
        ("build", r"fp32@onnxruntime\t\S+/build/\S+\nint8@onnxruntime\t\S+/build/\S+\n"),
    ],
)
def test_a_verb_on_a_plan_prints_what_it_made(command: Command, ran: Path, verb: str, printed: str) -> None:
    said = command(verb, ran)
    assert said.status == 0, said.err
    assert re.fullmatch(printed, said.out)
    assert all(Path(line.split("\t")[-1]).exists() for line in said.out.splitlines())


def test_a_verb_that_has_nothing_to_make_of_a_plan_is_refused(command: Command, ran: Path) -> None:
    one_sentence(
        command("cast", ran), 2, f"{ran}: [variants] has nothing that `cast` writes, which is fp16 in onnx files"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("quantize", "plan.toml", "--target", "tensorrt"),
        ("calibrate", "plan.toml", "-o", "x"),
        ("build", "plan.toml", "--precision", "int8"),
        ("validate", "plan.toml", "tiny.onnx"),
        ("benchmark", "plan.toml", "tiny.onnx"),
        ("report", "plan.toml", "-o", "x.html"),
        ("export", "plan.toml", "--no-fold"),
    ],
)
def test_options_beside_a_plan_are_refused_not_ignored(
    command: Command, plan: Path, arguments: tuple[str, ...]
) -> None:
    said = command(*arguments)
    assert said.status == 2
    assert said.out == ""
    assert re.match(r"trtforge: \S+: has no effect together with a plan; ", said.err)
    assert files(plan.parent) == set()


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("calibrate", "tiny.onnx", "-o", "r"), 2, "--data is missing: name samples; this tool never makes up data"),
        (("calibrate", "tiny.onnx", "--data", "data.npz"), 2, "-o is missing: name the folder to write the ranges to"),
        (("quantize", "tiny.onnx", "--data", "data.npz"), 2, "-o is missing: name the ONNX file to write"),
        (("build", "tiny.onnx"), 2, "-o is missing: name the engine to write"),
        (("infer", "tiny.onnx", "--data", "data.npz"), 2, "-o is missing: name the file for the outputs"),
        (("infer", "tiny.onnx", "-o", "o.json"), 2, "--data is missing: "),
        (("validate", "a.json"), 2, "CANDIDATE is missing: name outputs or an engine to validate"),
        (("validate", "tiny.onnx", "tiny.onnx"), 2, "--data is missing: "),
        (("benchmark", "tiny.onnx"), 2, "--data is missing: "),
        (("calibrate", "no.onnx", "--data", "data.npz", "-o", "r"), 2, "no.onnx: does not exist; give an ONNX file"),
        (("cast", ".", "--data", "data.npz", "-o", "r"), 2, ".: is a folder; give an ONNX file"),
        (("infer", "no.onnx", "--data", "data.npz", "-o", "o"), 2, "no.onnx: does not exist; give an engine that "),
        (("infer", ".", "--data", "data.npz", "-o", "o"), 2, ".: is a folder; give an engine that "),
        (
            ("infer", "/dev/null", "--data", "data.npz", "-o", "o"),
            2,
            "/dev/null: is a device or a pipe, not a file; give an",
        ),
        (("infer", "data.npz", "--data", "data.npz", "-o", "o"), 4, "data.npz: "),
        (("validate", "no.json", "no.json"), 2, "no.json: does not exist; give a file that `trtforge infer` or"),
        (
            ("export", "no", "-o", "x.onnx"),
            2,
            "no: does not exist; give one of .keras, .h5, .onnx, .pt2, module:function (PyTorch), SavedModel folder",
        ),
        (
            ("export", ".", "-o", "x.onnx"),
            2,
            ".: is none of .keras, .h5, .onnx, .pt2, module:function (PyTorch), SavedModel folder",
        ),
        (
            ("export", "data.npz", "-o", "x.onnx"),
            2,
            "data.npz: is none of .keras, .h5, .onnx, .pt2, module:function (PyTorch), SavedModel folder",
        ),
        (("build", "data.npz", "-o", "x.onnx"), 4, "data.npz: is not a whole ONNX file ("),
        (("quantize", "tiny.onnx", "--ranges", "no", "-o", "x"), 2, "no/ranges.json: cannot be read (No such file"),
        (
            ("quantize", "tiny.onnx", "--ranges", "no", "--data", "data.npz", "-o", "x"),
            2,
            "--data: has no effect together with --ranges; drop one of the two",
        ),
        (
            ("quantize", "tiny.onnx", "--ranges", "no", "--method", "auto", "-o", "x"),
            2,
            "--method auto: runs the model on samples; give --data instead of --ranges",
        ),
    ],
)
def test_what_is_missing(command: Command, tiny: Path, arguments: tuple[str, ...], status: int, said: str) -> None:
    one_sentence(command(*arguments), status, said)
    assert files(tiny) == set()


def test_a_truncated_model(command: Command, tiny: Path) -> None:
    Path("half.onnx").write_bytes(Path("tiny.onnx").read_bytes()[:-40])
    for arguments in (
        ("calibrate", "half.onnx", "--data", "data.npz", "-o", "x"),
        ("quantize", "half.onnx", "--data", "data.npz", "-o", "x"),
        ("build", "half.onnx", "-o", "x"),
        ("export", "half.onnx", "-o", "x"),
    ):
        one_sentence(command(*arguments), 4, "half.onnx: is not a whole")
    one_sentence(command("infer", "half.onnx", "--data", "data.npz", "-o", "x"), 4, "half.onnx: ")
    assert files(tiny) == {"half.onnx"}


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("taken", "taken: is a folder; give the path of a file with -o"),
        ("data.npz/x", "data.npz/x: cannot be written (File exists); give another path with -o"),
        ("/proc/trtforge/x", "/proc/trtforge/x: cannot be written (No such file or directory); give another path"),
        ("/dev/null", "/dev/null: is not a plain file, and would be replaced by one; give the path of a file with -o"),
    ],
)
@pytest.mark.parametrize("verb", ["export", "build", "infer", "validate", "benchmark", "cast", "quantize"])
def test_where_nothing_can_be_written(command: Command, tiny: Path, verb: str, target: str, said: str) -> None:
    Path("taken").mkdir()
    given = {"validate": ["tiny.onnx", "tiny.onnx"]}.get(verb, ["tiny.onnx"])
    if verb not in ("export", "build"):
        given += ["--data", "data.npz"]
    one_sentence(command(verb, *given, "-o", target), 2, said)
    assert files(tiny) == {"taken"}
    assert Path("/dev/null").is_char_device()
