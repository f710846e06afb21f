"""What is chosen among rows: where nothing names a goal, the fastest of what holds, and what is open is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.advice.recommendation import OtherLoad
from pipeline.gate.record import Check
from pipeline.ladder.ascent import Ascent
from pipeline.ladder.decision import LadderNumbers, choose
from pipeline.ladder.row import Row
from tests.pipeline.ladder.test_claims import ROW, MakeTimed, MakeVariant
from tests.pipeline.ladder.test_climb import advise_by, climbed

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

P50_MS = {"fp32@onnxruntime": 2.0, "fp16@onnxruntime": 1.0, "int8@onnxruntime": 3.0}


@pytest.fixture
def ascent(warm: Path) -> Ascent:
    advise_by(warm, 'bounds = ["agreement >= 0.5"]', 'techniques = ["float16", "integer"]')
    return climbed(warm)


def left_open(row: Row) -> Row:
    """A row of which one bound is not decided."""
    (bound, *others) = row.checks
    check = replace(bound, outcome="not decided", sentence="agreement is too uncertain", advice="give more samples")
    assert isinstance(check, Check)
    return replace(row, checks=(check, *others))


def numbers_of(ascent: Ascent, make_variant: MakeVariant, make_timed: MakeTimed) -> LadderNumbers:
    variants = {row.name: make_timed(make_variant(row.name, 0.0, 1000), P50_MS[row.name], 1.0) for row in ascent.rows}
    rows = {row.name: replace(ROW, variant=row.name) for row in ascent.rows}
    return LadderNumbers(ascent, rows, variants, None, OtherLoad(0.0, 1.0))


def test_the_fastest_of_what_holds_is_chosen(ascent: Ascent, make_variant: MakeVariant, make_timed: MakeTimed) -> None:
    choice = choose(numbers_of(ascent, make_variant, make_timed))
    assert choice.row is not None
    assert choice.row.name == "fp16@onnxruntime"
    assert choice.next_steps == ()


def test_what_is_faster_and_not_decided_is_told_with_what_would_decide(
    ascent: Ascent, make_variant: MakeVariant, make_timed: MakeTimed
) -> None:
    ascent.rows = [row if row.is_plain() else left_open(row) for row in ascent.rows]
    choice = choose(numbers_of(ascent, make_variant, make_timed))
    assert choice.row is not None
    assert (choice.outcome, choice.row.name) == ("pass", "fp32@onnxruntime")
    assert choice.sentence.endswith(
        "so the fastest of what holds is chosen. Not decided of what is faster: fp16@onnxruntime; of "
        "fp16@onnxruntime, p50 0.999 ms: agreement is too uncertain."
    )
    assert choice.next_steps == ("give more samples",)
