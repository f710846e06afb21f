"""What a verb on a plan says on stderr when it ends."""

from __future__ import annotations

import pytest

from pipeline.command.plan_run import tell_time
from pipeline.store import Entry, Spent


def test_the_end_says_where_the_time_went(capsys: pytest.CaptureFixture[str]) -> None:
    account = [
        Entry("export", "a", False, 4.0, 5.5),
        Entry("infer", "b", False, 3.0, 6.0, "fp32@onnxruntime"),
        Entry("infer", "c", True, 2.5, 2.0, "int8@onnxruntime"),
        Entry("cast", "d", True, 0.01, 0.01),
    ]
    tell_time(account, Spent(12.0, 14.0))
    assert capsys.readouterr().out == ""
    tell_time(account, Spent(1.9, 14.0))
    assert capsys.readouterr().err == ""
    tell_time(account, Spent(12.0, 14.0))
    assert capsys.readouterr().err.splitlines() == [
        "trtforge: where the time went    wall s    CPU s",
        "trtforge:   infer                     5.5      8.0",
        "trtforge:   export                    4.0      5.5",
        "trtforge:   the rest                  2.5      0.5",
        "trtforge:   total                    12.0     14.0",
    ]
