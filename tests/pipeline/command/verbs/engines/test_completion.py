"""The verb `completion`: a real bash completes by it; zsh and fish get the scripts that click writes for them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Command

ROOT = Path(__file__).resolve().parents[5]
COMPLETE = """
eval "$(trtforge completion bash)"
complete -p trtforge
compopt() { echo files; }
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_trtforge_completion trtforge
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    command = tmp_path / "bin" / "trtforge"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipeline "$@"\n')
    command.chmod(0o755)
    return os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        (["calib"], ["calibrate"]),
        (["quantize", "model.onnx", "--targ"], ["--target"]),
        (["quantize", "model.onnx", "--target", "tensor"], ["tensorrt"]),
        (["ranges", "me"], ["merge"]),
        (["export", "my_sav"], ["files"]),
    ],
)
def test_bash(words: list[str], completions: list[str], environment: dict[str, str]) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    command = [bash, "-c", COMPLETE, "bash", "trtforge", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    script, *replies = done.stdout.splitlines()
    assert "_trtforge_completion trtforge" in script
    assert [reply for reply in replies if reply] == completions


@pytest.mark.parametrize(("shell", "line"), [("zsh", "#compdef trtforge"), ("fish", "complete --no-files")])
def test_other_shells(shell: str, line: str, command: Command) -> None:
    said = command("completion", shell)
    assert (said.status, said.err) == (0, "")
    assert line in said.out
    assert "_TRTFORGE_COMPLETE" in said.out


def test_another_shell_is_one_sentence(command: Command) -> None:
    said = command("completion", "tcsh")
    assert said.status == 2
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in said.err
