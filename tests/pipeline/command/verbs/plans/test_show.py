"""The verb `show`: where a result came from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tests.pipeline.command.verbs.calls import one_sentence

if TYPE_CHECKING:
    from tests.conftest import Command


def test_show_walks_back_to_the_model(command: Command, ran: Path) -> None:
    verdict = Path(command("validate", ran).out.splitlines()[-1].split("\t")[1])
    said = command("show", verdict.parent.name[:10])
    assert (said.status, said.err) == (0, "")
    lines = [line for line in said.out.splitlines() if re.match(r" *[a-z]+ [0-9a-f]{12}", line)]
    indented = [(len(line) - len(line.lstrip()), line.split()[0]) for line in lines]
    assert indented[:2] == [(0, "validate"), (2, "infer")]
    chain = [(2, "infer"), (4, "build"), (6, "quantize"), (8, "calibrate"), (10, "export")]
    assert [entry for entry in indented if entry in chain][-5:] == chain
    assert "(as above)" in said.out
    assert 'method "minmax"' in said.out
    assert re.search(r'from outside: \{"digest": "([0-9a-f]{64})"\}', said.out)
    one_sentence(command("show", "xyz"), 2, "digest 'xyz': no result in .trtforge; ")
    one_sentence(command("show", ""), 2, "digest '': ")


def test_show_of_a_measurement(command: Command, ran: Path) -> None:
    entry = next(Path(".trtforge/benchmark").iterdir())
    said = command("show", entry.name)
    assert said.out.startswith(f"benchmark {entry.name}  {entry}\n")
    assert len(re.findall(r"^  build ", said.out, re.MULTILINE)) == 2


def test_show_of_nothing(command: Command, tiny: Path) -> None:
    one_sentence(command("show", "abc"), 2, ".trtforge: there is no store; run a plan first, or name its store with")
    assert not Path(".trtforge").exists()
