"""What is said of techniques in general, against what was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.ladder.claims import Measured, checked_claims, contradicted
from pipeline.record import VariantRecord
from pipeline.techniques.record import CheckedBound, TechniqueRow
from tests.made import TOP1

MakeVariant = Callable[[str, float | None, int], VariantRecord]
MakeTimed = Callable[[VariantRecord, float, float | None], VariantRecord]

ROW = TechniqueRow(
    technique="integer",
    variant="int8@onnxruntime",
    outcome="pass",
    checks=(),
    size_ratio=0.24,
    compressed_bytes=100,
    compressed_ratio=0.3,
    metric_interval=(0.88, 0.93),
    drop_interval=(-0.002, 0.006),
    confidence=0.99,
    p_value=0.5,
    p50_interval_ms=(0.9, 1.1),
    measured_on="a CPU",
    seconds=3.0,
    claims=(),
)


def claims(measured: Measured) -> dict[str, bool | None]:
    return {claim.claim: claim.holds for claim in checked_claims(measured)}


@pytest.mark.parametrize(("ratio", "holds"), [(0.24, True), (0.25, True), (0.26, False), (1.1, False)])
def test_a_size_is_a_fact(make_variant: MakeVariant, ratio: float, holds: bool) -> None:
    measured = Measured(replace(ROW, size_ratio=ratio), make_variant("int8@onnxruntime", 0.002, 250), None, None, TOP1)
    assert claims(measured)["more than 75 % smaller"] is holds


@pytest.mark.parametrize(("speedup", "holds"), [(3.5, True), (3.0, None), (2.0, False)])
def test_a_speed_up_holds_by_its_whole_interval(
    make_variant: MakeVariant, make_timed: MakeTimed, speedup: float, holds: bool | None
) -> None:
    variant = make_timed(make_variant("int8@onnxruntime", 0.002, 250), 1.0, speedup)
    assert claims(Measured(ROW, variant, None, None, TOP1))["3 times as fast"] is holds


@pytest.mark.parametrize(
    ("low", "outcome", "holds"), [(-0.002, "", True), (0.001, "", None), (0.001, "pass", True), (-0.1, "fail", False)]
)
def test_a_loss_is_small_if_the_samples_do_not_show_it_or_the_bound_allows_it(
    make_variant: MakeVariant, low: float, outcome: str, holds: bool | None
) -> None:
    checks = (CheckedBound("metric_drop <= 0.01", outcome, ""),) if outcome else ()  # type: ignore[arg-type]
    row = replace(ROW, drop_interval=(low, 0.2), checks=checks)
    assert claims(Measured(row, make_variant("int8@onnxruntime", 0.002, 250), None, None, TOP1))["small loss"] is holds


def test_training_is_held_to_what_was_lost_without_it(make_variant: MakeVariant) -> None:
    row = replace(ROW, technique="quantization_aware_training")
    tuned, before = make_variant("tuned+int8@onnxruntime", 0.004, 250), make_variant("int8@onnxruntime", 0.003, 250)
    (claim,) = checked_claims(Measured(row, tuned, None, before, TOP1))
    assert (claim.claim, claim.holds) == ("least loss", False)
    assert claim.measured == "0.40 points below FP32; without training 0.30 points below FP32"


def test_pruning_changes_neither_size_nor_latency_and_compresses_better(
    make_variant: MakeVariant, make_timed: MakeTimed
) -> None:
    dense = make_timed(make_variant("int8@onnxruntime", 0.0, 1000), 1.0, 2.0)
    pruned = make_timed(make_variant("pruned+int8@onnxruntime", 0.01, 1001), 1.2, 1.7)
    dense, pruned = (replace(v, size_compressed_bytes={"gzip": size}) for v, size in ((dense, 900), (pruned, 600)))
    measured = Measured(replace(ROW, technique="pruning"), pruned, dense, None, TOP1)
    assert claims(measured) == {"same size on disk": True, "same latency": False, "compresses better": True}


def test_of_mends_nothing_is_claimed(make_variant: MakeVariant) -> None:
    row = replace(ROW, technique="equalization")
    assert claims(Measured(row, make_variant("equalized+int8@onnxruntime", 0.0, 250), None, None, TOP1)) == {}


def test_what_does_not_hold_is_listed(make_variant: MakeVariant) -> None:
    row = replace(ROW, size_ratio=0.5)
    measured = Measured(row, make_variant("int8@onnxruntime", 0.002, 250), None, None, TOP1)
    (line,) = contradicted([replace(row, claims=checked_claims(measured))])
    assert line == "int8@onnxruntime is 50.0 % smaller, not more than 75 % smaller"
