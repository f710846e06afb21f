"""The nearest of the names there are."""

from __future__ import annotations

from pipeline.spelling import nearest


def test_nearest_offers_one_name_and_lists_all() -> None:
    assert nearest("fp61", ["fp32", "fp16"]) == "; did you mean 'fp16'? known: fp32, fp16"
    assert nearest("xyz", ("fp32", "fp16")) == "; known: fp32, fp16"
