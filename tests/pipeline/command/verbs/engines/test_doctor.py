"""The verb `doctor`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from engines import backend

if TYPE_CHECKING:
    from tests.conftest import Command


def test_doctor_knows_every_backend(command: Command) -> None:
    said = command("doctor")
    assert (said.status, said.err) == (0, "")
    for name in ("onnxruntime", "reference", "tensorflow", "tensorrt", "tensorrt_rtx"):
        assert re.search(rf"^\W*{name} +\W (yes|no) ", said.out, re.MULTILINE)
        if reason := backend(name).why_not_run():
            assert f"{name}: {reason.removeprefix(f'{name}: ')}" in said.out.splitlines()
