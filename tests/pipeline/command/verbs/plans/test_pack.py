"""The verb `pack`: its command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import Command


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "-o is missing: name the bundle to write, such as bundle.tar"),
        (["-o", "."], ".: is a folder; give the path of a file with -o"),
    ],
)
def test_pack_on_a_wrong_command_line(command: Command, plan: Path, arguments: list[str], said: str) -> None:
    found = command("pack", plan, *arguments)
    assert (found.status, said in found.err) == (2, True), found.err
