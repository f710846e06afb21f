"""The survey of all backends that `trtforge doctor` prints."""

from __future__ import annotations

import pytest

from engines import BACKENDS
from engines.availability import survey
from engines.errors import Unavailable


def test_survey() -> None:
    states = survey()
    assert tuple(state.name for state in states) == BACKENDS
    for state in states:
        assert state.can_build == (not state.why_not_build)
        assert state.can_run == (not state.why_not_run)
        assert state.install
        assert state.versions or not (state.can_build or state.can_run)
    reference = states[BACKENDS.index("reference")]
    assert (reference.can_build, reference.can_run) == (True, True)


def test_survey_of_a_runtime_that_is_installed_and_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, str]:
        raise Unavailable("reference: cannot be imported (libgomp.so.1 is missing)")

    monkeypatch.setattr("engines.backends.reference.versions", broken)
    state = survey()[BACKENDS.index("reference")]
    assert (state.can_build, state.can_run, state.versions) == (False, False, {})
    assert state.why_not_build == state.why_not_run == "reference: cannot be imported (libgomp.so.1 is missing)"
