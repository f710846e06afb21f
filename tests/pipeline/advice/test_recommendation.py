"""Which variant is recommended, and that the sentence says why with the numbers."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from pipeline.advice.recommendation import OtherLoad, recommend
from pipeline.record import SIMULATION, MetricInfo, VariantRecord

TOP1 = MetricInfo(name="top1", unit="fraction of samples", higher_is_better=True, source_value=None)
MAE = MetricInfo(name="mae", unit="metres", higher_is_better=False, source_value=None)

Make = Callable[[str, float | None, int], VariantRecord]
Time = Callable[[VariantRecord, float, float | None], VariantRecord]


@pytest.fixture
def fp32(make_variant: Make, make_timed: Time) -> VariantRecord:
    return make_timed(make_variant("fp32@onnxruntime", 0.0, 2_000_000), 1.0, 1.0)


@pytest.fixture
def int8(make_variant: Make, make_timed: Time) -> VariantRecord:
    return make_timed(make_variant("int8@onnxruntime", 0.001, 500_000), 0.5, 2.0)


def test_a_fast_and_accurate_int8_is_shipped_with_its_numbers(fp32: VariantRecord, int8: VariantRecord) -> None:
    found = recommend([fp32, int8], TOP1, 0.005)
    assert (found.outcome, found.variant, found.max_metric_drop) == ("ship", "int8@onnxruntime", 0.005)
    for words in ("(p50, batch 1)", "2.00× as fast as FP32", "95 % interval 1.94 to 2.06", "top1 91.27 %"):
        assert words in found.sentence
    assert "0.10 points below FP32" in found.sentence
    assert "488 KiB instead of 1.91 MiB" in found.sentence


def test_a_drop_of_exactly_the_bound_passes_and_one_beyond_does_not(fp32: VariantRecord, int8: VariantRecord) -> None:
    exact = replace(int8, metric_drop=0.91 - 0.905)  # 0.0050000000000000044
    assert recommend([fp32, exact], TOP1, 0.005).variant == "int8@onnxruntime"
    beyond = replace(int8, metric_drop=0.0051)
    found = recommend([fp32, beyond], TOP1, 0.005)
    assert (found.outcome, found.variant) == ("stay", "fp32@onnxruntime")
    assert (
        "INT8 is excluded: int8@onnxruntime is 0.51 points below FP32 in top1, beyond the 0.50 points allowed"
        in found.sentence
    )


def test_a_slow_int8_does_not_pay(fp32: VariantRecord, make_variant: Make, make_timed: Time) -> None:
    slow = make_timed(make_variant("int8@onnxruntime", 0.0, 500_000), 1.25, 0.8)
    found = recommend([fp32, slow], TOP1, 0.005)
    assert (found.outcome, found.variant) == ("stay", "fp32@onnxruntime")
    assert "INT8 does not pay on this machine: int8@onnxruntime takes 1.25 ms, 0.80× as fast as fp32@onnxruntime." in (
        found.sentence
    )


def test_a_speedup_whose_interval_holds_one_is_too_close_to_call(
    fp32: VariantRecord, make_variant: Make, make_timed: Time
) -> None:
    close = make_timed(make_variant("int8@onnxruntime", 0.0, 500_000), 0.985, 1.015)  # 0.985 to 1.045
    found = recommend([fp32, close], TOP1, 0.005)
    assert found.outcome == "stay"
    assert "too close to call" in found.sentence


def test_the_fastest_of_all_backends_wins(
    fp32: VariantRecord, int8: VariantRecord, make_variant: Make, make_timed: Time
) -> None:  # fmt: skip
    other = make_timed(make_variant("fp16@tensorrt", 0.0, 900_000), 0.2, None)
    found = recommend([fp32, int8, other], TOP1, 0.005)
    assert found.variant == "fp16@tensorrt"
    assert "5.00× as fast as fp32@onnxruntime" in found.sentence
    assert "INT8 does not pay on this machine: int8@onnxruntime" in found.sentence
    assert "0.40× as fast as fp16@tensorrt" in found.sentence


def test_other_weights_are_no_reason_to_be_faster(
    fp32: VariantRecord, int8: VariantRecord, make_variant: Make, make_timed: Time
) -> None:
    pruned = make_timed(make_variant("pruned+fp32@onnxruntime", 0.004, 2_000_000), 0.99, 1.01)
    worse = make_timed(make_variant("pruned+int8@onnxruntime", 0.004, 500_000), 0.49, 2.04)
    better = make_timed(make_variant("tuned+int8@onnxruntime", 0.0, 500_000), 0.51, 1.96)
    assert recommend([fp32, pruned], TOP1, 0.005).variant == "fp32@onnxruntime"
    assert recommend([fp32, int8, pruned, worse], TOP1, 0.005).variant == "int8@onnxruntime"
    assert recommend([fp32, int8, pruned, worse, better], TOP1, 0.005).variant == "tuned+int8@onnxruntime"
    assert recommend([pruned], TOP1, 0.005).variant == "pruned+fp32@onnxruntime"


def test_int8_must_beat_the_fastest_fp32_not_only_its_own(
    fp32: VariantRecord, make_variant: Make, make_timed: Time
) -> None:  # fmt: skip
    slow_backend = [
        make_timed(make_variant("fp32@reference", 0.0, 2_000_000), 50.0, 1.0),
        make_timed(make_variant("int8@reference", 0.0, 500_000), 20.0, 2.5),
    ]
    assert recommend([fp32, *slow_backend], TOP1, 0.005).variant == "fp32@onnxruntime"


def test_an_untimed_int8_is_undecided_but_fp32_stays(fp32: VariantRecord, make_variant: Make) -> None:
    found = recommend([fp32, make_variant("int8@tensorrt", 0.0, 500_000)], TOP1, 0.005)
    assert found.variant == "fp32@onnxruntime"
    assert "INT8 is undecided: int8@tensorrt was not timed here." in found.sentence


def test_a_timed_variant_with_a_simulated_accuracy_is_not_recommended(fp32: VariantRecord, int8: VariantRecord) -> None:
    found = recommend([fp32, replace(int8, metric_measured_on=SIMULATION)], TOP1, 0.005)
    assert found.variant == "fp32@onnxruntime"
    assert "INT8 is excluded: int8@onnxruntime has only a simulated accuracy" in found.sentence


def test_a_variant_that_failed_validation_is_not_recommended(fp32: VariantRecord, int8: VariantRecord) -> None:
    found = recommend([fp32, replace(int8, failures=("cosine",))], TOP1, 0.005)
    assert found.variant == "fp32@onnxruntime"
    assert "failed validation" in found.sentence


def test_nothing_timed_is_undecided_and_says_what_accuracy_allows(make_variant: Make) -> None:
    simulated = replace(make_variant("int8@tensorrt", 0.001, 500_000), metric_measured_on=SIMULATION)
    found = recommend([make_variant("fp32@tensorrt", 0.0, 2_000_000), simulated], TOP1, 0.005)
    assert (found.outcome, found.variant) == ("undecided", "")
    assert "nothing was timed here (no NVIDIA driver on this machine" in found.sentence
    assert "int8@tensorrt qualifies in simulation: top1 91.27 %, 0.10 points below FP32" in found.sentence


def test_nothing_timed_and_nothing_accurate(make_variant: Make) -> None:
    found = recommend([make_variant("int8@tensorrt", 0.2, 500_000)], TOP1, 0.005)
    assert found.outcome == "undecided"
    assert "No reduced precision keeps top1 within the 0.50 points allowed" in found.sentence


def test_only_inaccurate_variants_is_undecided(int8: VariantRecord) -> None:
    found = recommend([replace(int8, metric_drop=0.3)], TOP1, 0.005)
    assert (found.outcome, found.variant) == ("undecided", "")
    assert "the fastest, int8@onnxruntime, is 30.00 points below FP32" in found.sentence


def test_without_a_metric_nothing_is_recommended(fp32: VariantRecord, int8: VariantRecord) -> None:
    found = recommend([fp32, int8], None, 0.005)
    assert found.outcome == "undecided"
    assert "the plan names no metric" in found.sentence
    assert "int8@onnxruntime 'probabilities' cosine 0.999, SQNR 32.5 dB." in found.sentence
    assert "fp32@onnxruntime" not in found.sentence


def test_a_metric_that_came_out_as_nan_is_no_recommendation(fp32: VariantRecord, int8: VariantRecord) -> None:
    found = recommend([fp32, replace(int8, metric=None, metric_drop=None)], TOP1, 0.005)
    assert found.variant == "fp32@onnxruntime"
    assert "int8@onnxruntime has no top1" in found.sentence


def test_where_lower_is_better_a_drop_is_above(fp32: VariantRecord, int8: VariantRecord) -> None:
    found = recommend([replace(fp32, metric=0.25), replace(int8, metric=0.2625, metric_drop=0.0125)], MAE, 0.02)
    assert "mae 0.2625, 0.0125 above FP32" in found.sentence


def test_an_unstable_timing_is_said(fp32: VariantRecord, int8: VariantRecord) -> None:
    shaky = int8.timed((replace(int8.by_batch[0], stable=False),))
    assert "The timing of int8@onnxruntime was unstable" in recommend([fp32, shaky], TOP1, 0.005).sentence
    assert "unstable" not in recommend([fp32, int8], TOP1, 0.005).sentence


def test_int8_alone_within_the_bound_is_shipped(int8: VariantRecord) -> None:
    alone = int8.timed((replace(int8.by_batch[0], speedup=None, speedup_interval=None),))
    found = recommend([alone], TOP1, 0.005)
    assert (found.outcome, found.variant) == ("ship", "int8@onnxruntime")
    assert "as fast as" not in found.sentence


def test_speed_is_not_decided_where_a_gate_would_not_decide_it(fp32: VariantRecord, int8: VariantRecord) -> None:
    quiet, busy, swamped = (
        recommend([fp32, int8], TOP1, 0.005, OtherLoad(share, 0.25, 0.9)) for share in (0.2, 0.4, 0.95)
    )
    assert quiet == recommend([fp32, int8], TOP1, 0.005, OtherLoad(None, 0.25, 0.9))
    assert quiet.outcome == busy.outcome == "ship"
    assert "other programs used" not in quiet.sentence
    assert "But other programs used 40% of the machine's CPU time" in busy.sentence
    assert "milliseconds and p99 do not" in busy.sentence
    assert (swamped.outcome, swamped.variant) == ("undecided", "")
    assert "95% of the machine's CPU time while engines were timed, above [gate] max_other_load_relative" in (
        swamped.sentence
    )
