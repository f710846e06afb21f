"""Budgets are read strictly: what is allowed, in which spelling, and what is said of everything else."""

from __future__ import annotations

import pytest

from pipeline.errors import ConfigError
from pipeline.gate.budget import QUANTITIES, budget_from_text, budgets_from_texts

WHERE = "plan.toml: [gate] budgets"


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("p99_ms at batch 8 <= 12", "p99_ms at batch 8 <= 12"),
        ("  p50_ms<=1.03x baseline ", "p50_ms <= 1.03 x baseline"),
        ("energy_mj <= 0.97 × baseline", "energy_mj <= 0.97 x baseline"),
        ("throughput_per_s >= 4e2", "throughput_per_s >= 400"),
        ("p90_ms at batch 4 of fp16@tensorrt <= .5", "p90_ms of fp16@tensorrt at batch 4 <= 0.5"),
        ("metric_drop from baseline <= 0.01", "metric_drop from baseline <= 0.01"),
        ("agreement with baseline >= 0.98", "agreement with baseline >= 0.98"),
        ("metric_drop <= -0.001", "metric_drop <= -0.001"),
        ("metric <= 3.5", "metric <= 3.5"),
        ("memory_growth_mib_per_h at batch 8 <= 1", "memory_growth_mib_per_h at batch 8 <= 1"),
    ],
)
def test_a_budget_has_one_canonical_spelling(text: str, canonical: str) -> None:
    budget = budget_from_text(text, WHERE)
    assert budget.text == canonical
    assert budget_from_text(budget.text, WHERE) == budget


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p98_ms <= 3", "there is no quantity 'p98_ms'; did you mean 'p99_ms'? known: p50_ms, p90_ms"),
        ("latency <= 3", "there is no quantity 'latency'"),
        ("<= 3", "names no quantity; known: p50_ms"),
        ("p50_ms 3", "has no <= or >=; write a budget such as 'p99_ms at batch 8 <= 12'"),
        ("", "has no <= or >="),
        ("p50_ms >= 3", "'>=' does not bound the median latency of a query (p50_ms); write p50_ms <= …"),
        ("p50_ms < 3", "'<' does not bound the median latency of a query (p50_ms); write p50_ms <= …"),
        ("throughput_per_s <= 400", "write throughput_per_s >= …"),
        ("p50_ms <= 3 ms", "'ms' after the number is not 'x baseline'; the unit of p50_ms is part of its name"),
        ("p50_ms <= 1.03 x last-good", "'x last-good' after the number is not 'x baseline'"),
        ("p50_ms <= twice", "'twice' is not a bound; write a number"),
        ("p50_ms <= nan", "'nan' is not a bound"),
        ("p50_ms <= 1e999", "the bound is inf, which is no limit"),
        ("p50_ms <= 0", "the bound is 0, but the median latency of a query is above 0"),
        (
            "agreement >= 0.9 x baseline",
            "cannot be bounded by a multiple of the baseline's; write 'agreement with baseline",
        ),
        ("agreement >= 98", "the bound is 98, but the share of samples with the same arg max as FP32 is from 0 to 1"),
        ("agreement >= 0", "is from 0 to 1; write 0.98 for 98 %"),
        ("metric >= 0.99 x baseline", "write 'metric_drop from baseline <= 0.01'"),
        ("p50_ms at batch 0 <= 3", "'0' is not a batch size; write a whole number of at least 1"),
        ("p50_ms at batch 2 at batch 4 <= 3", "'at' is given twice"),
        ("size_mib at batch 2 <= 3", "size_mib is not measured by batch size, p50_ms, p90_ms"),
        ("p50_ms for int8 <= 3", "'for int8' has no meaning after p50_ms; 'of VARIANT', 'at batch N' may"),
        (
            "memory_growth_mib_per_h <= 2 x baseline",
            "memory_growth_mib_per_h cannot be bounded by a multiple of the baseline's; write the number alone",
        ),
        ("memory_growth_mib_per_h <= 0", "the bound is 0, but how fast the memory of a process that runs it grows is"),
        ("metric_drop with baseline <= 3", "'with baseline' has no meaning after metric_drop; 'of VARIANT', 'from"),
        ("p50_ms of <= 3", "'of' has no meaning after p50_ms"),
    ],
)
def test_what_is_no_budget_is_said_in_one_sentence(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        budget_from_text(text, WHERE)
    assert str(caught.value).startswith(f"{WHERE}: '{text}': ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_budget_is_an_error() -> None:
    with pytest.raises(ConfigError, match="there is no budget, so nothing could fail; write at least one, such as"):
        budgets_from_texts((), WHERE)


def test_the_same_thing_is_bounded_once() -> None:
    with pytest.raises(ConfigError, match="'p50_ms<=4' and 'p50_ms <= 3' bound the same quantity; leave one out"):
        budgets_from_texts(("p50_ms <= 3", "p50_ms<=4"), WHERE)
    both = budgets_from_texts(("p50_ms <= 3", "p50_ms <= 1.03 x baseline", "p50_ms at batch 8 <= 9"), WHERE)
    assert [budget.needs_baseline for budget in both] == [False, True, False]


def test_nodes_that_run_elsewhere_may_be_none_at_all() -> None:
    budget = budget_from_text("num_fallback_nodes of int8@onnxruntime_tensorrt <= 0", WHERE)
    assert (budget.variant, budget.bound, budget.quantity.kind) == ("int8@onnxruntime_tensorrt", 0, "fallback")
    for text, words in (
        ("num_fallback_nodes >= 3", "'>=' does not bound the number of nodes that the backend leaves to others"),
        (
            "num_fallback_nodes <= 1 x baseline",
            "cannot be bounded by a multiple of the baseline's; write the number alone",
        ),
        ("num_fallback_nodes at batch 8 <= 3", "num_fallback_nodes is not measured by batch size"),
    ):
        with pytest.raises(ConfigError, match=words):
            budget_from_text(text, WHERE)


def test_every_quantity_can_be_bounded() -> None:
    for name, quantity in QUANTITIES.items():
        budget = budget_from_text(f"{name} {quantity.relations[0]} 0.5", WHERE)
        assert budget.quantity is quantity
        assert budget.at_most == (quantity.relations[0] == "<=")
