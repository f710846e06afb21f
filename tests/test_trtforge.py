"""`import trtforge`: the same as the commands, as functions."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import trtforge

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


def test_what_it_offers_is_frozen() -> None:
    assert trtforge.__all__ == [
        "Advice", "Record", "Report", "__version__", "advise", "errors", "init", "read_report", "run",
    ]  # fmt: skip
    arguments = {
        name: list(inspect.signature(getattr(trtforge, name)).parameters) for name in ("run", "advise", "init")
    }
    assert arguments == {
        "run": ["plan", "store", "settings", "progress"],
        "advise": ["plan", "everything", "store", "settings", "progress"],
        "init": ["source", "data", "labels", "metric", "store"],
    }


def test_a_plan_is_run(plan: Path) -> None:
    report = trtforge.run(plan, store=plan.parent / "store", settings=["validate.int8.max_metric_drop=1.0"])
    assert [variant.name for variant in report.record.variants] == ["fp32@onnxruntime", "int8@onnxruntime"]
    assert "fp32@onnxruntime" in str(report)
    assert trtforge.read_report(report.folder).record == report.record
    page = report._repr_html_()
    assert page.startswith(("<iframe srcdoc=", "<pre>"))


def test_a_technique_is_advised(plan: Path) -> None:
    settings = ['advise.bounds=["metric_drop <= 0.99", "size_mib <= 0.9 x baseline"]', "gate.sampled=false"]
    report = trtforge.advise(plan, store=plan.parent / "store", settings=settings)
    assert report.record.advice is not None
    assert isinstance(report.record.advice, trtforge.Advice)
    assert report.folder == plan.parent / "trtforge-advice"
    assert [rung.technique for rung in report.record.advice.rungs][:2] == ["none", "float16"]


def test_a_plan_is_drafted(tiny: Path) -> None:
    draft = trtforge.init("tiny.onnx", "data.npz", labels="y")
    assert draft.questions == {}
    assert 'metric = "top1"' in draft.text


def test_errors_are_those_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(trtforge.errors.ConfigError, match="cannot be read"):
        trtforge.run(tmp_path / "nowhere.toml", store=tmp_path / "store")
    with pytest.raises(trtforge.errors.ConfigError, match=r"report\.json"):
        trtforge.read_report(tmp_path)
