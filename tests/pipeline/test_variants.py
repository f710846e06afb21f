"""Which variants a plan has, and in which order."""

from __future__ import annotations

from pathlib import Path

from pipeline.plan import read_plan
from pipeline.variants import variants
from tests.pipeline.plan_folder import change


def test_variants_come_backend_by_backend_in_the_plans_order(folder: Path) -> None:
    change(folder, 'precisions = ["fp32", "fp16", "int8"]', 'precisions = ["int8", "fp32"]')
    change(folder, 'backends = ["onnxruntime"]', 'backends = ["reference", "onnxruntime"]')
    plan = read_plan(folder / "plan.toml")
    names = ["int8@reference", "fp32@reference", "int8@onnxruntime", "fp32@onnxruntime"]
    assert [variant.name for variant in variants(plan, "benchmark")] == names
    assert [variant.name for variant in variants(plan, "quantize")] == ["int8@reference", "int8@onnxruntime"]
    assert list(variants(plan, "cast")) == []
