"""What native libraries write on the terminal is kept off the screen, and not lost."""

from __future__ import annotations

import os

import pytest

from engines.quiet import quiet


def test_what_is_kept_off_the_screen_is_in_the_debug_log(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG"), pytest.raises(KeyError), quiet():
        os.environ[str(os.write(2, b"from C++\n"))]
    assert capfd.readouterr().err == ""
    assert caplog.messages == ["from C++"]
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "afterwards\n"
