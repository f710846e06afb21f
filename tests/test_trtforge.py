"""`import trtforge`: the same as the commands, as functions."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import trtforge
from pipeline.artifact import Ranges
from pipeline.command.cli import verb_files

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


RECORDS = [
    "Advice", "Supported", "Gated", "Linted", "Made", "MadeOfPlan", "VerbOutcome", "Record", "Report", "Timed",
    "ComparedOutputs",
]  # fmt: skip
ON_PLANS = {
    "run": ["plan", "store", "settings", "progress"],
    "advise": ["plan", "everything", "store", "settings", "progress"],
    "init": ["source", "data", "labels", "metric", "store"],
    "read_report": ["folder"],
}
ON_FILES = {
    "export": ["source", "options"],
    "support": ["model", "options"],
    "lint": ["model", "options"],
    "convert": ["source", "options"],
    "prune": ["model", "options"],
    "calibrate": ["model", "options"],
    "cast": ["model", "options"],
    "tune": ["model", "options"],
    "quantize": ["model", "options"],
    "ptq": ["model", "options"],
    "tolerate": ["model", "options"],
    "build": ["model", "options"],
    "refit": ["engine", "model", "options"],
    "infer": ["engine", "options"],
    "validate": ["reference", "candidate", "options"],
    "benchmark": ["engines", "options"],
    "gate": ["plan", "options"],
}
COMMAND_ONLY = {"ranges", "bisect", "baseline", "deliver", "doctor", "completion", "sign", "verify"}
"""Verbs on files that are for the terminal."""
QUICK = {"warmup_queries": 1, "warmup_seconds": 0, "min_queries": 8, "min_seconds": 0, "num_blocks": 4}


def test_what_it_offers_is_frozen() -> None:
    functions = {**ON_PLANS, **ON_FILES}
    assert sorted(trtforge.__all__) == sorted([*RECORDS, *functions, "__version__", "errors"])
    arguments = {name: list(inspect.signature(getattr(trtforge, name)).parameters) for name in functions}
    assert arguments == functions
    assert [name for name in functions if not getattr(trtforge, name).__doc__] == []


def test_every_verb_on_files_is_a_function() -> None:
    verbs = {name for name, file in verb_files().items() if file.parent.name in ("models", "engines")}
    assert verbs == {*ON_FILES, *COMMAND_ONLY}


def test_the_page_names_what_it_offers() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    assert [name for name in trtforge.__all__ if f"`{name}" not in page] == []


def test_files_go_from_one_verb_to_the_next(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trtforge.export("tiny.onnx", output="model.onnx")
    assert (str(model), model.size_bytes) == ("model.onnx", Path("model.onnx").stat().st_size)
    ranges = trtforge.calibrate(model, data="data.npz", method="minmax", input={"image": "image"}, output="ranges")
    int8 = trtforge.quantize(model, ranges=ranges, target="onnxruntime", exclude=["Gemm"], output="int8.onnx")
    assert isinstance(int8, trtforge.Made)
    assert isinstance(ranges.artifact, Ranges)
    verdict = trtforge.validate(model, int8, precision="int8", data="data.npz", labels="y", metric="top1")
    assert isinstance(verdict, trtforge.ComparedOutputs)
    assert verdict.metric is not None
    assert verdict.reference_metric is not None
    assert "scores" in str(verdict)
    times = trtforge.benchmark(model, int8, data="data.npz", batch_sizes=[1, 2], **QUICK)
    assert isinstance(times, trtforge.Timed)
    assert set(times.p50_ms) == {"model.onnx", "int8.onnx"}
    assert trtforge.lint(model, data="data.npz", labels="y").findings[0].severity == "note"
    assert trtforge.support(model, backend="onnxruntime").supported
    assert capsys.readouterr().out == ""


def test_a_gate_that_fails_is_no_error_until_it_is_asked(tiny: Path) -> None:
    decision = trtforge.gate(candidate="tiny.onnx", data="data.npz", budget=["size_mib <= 0.000001"], html=False)
    assert decision.outcome == "fail"
    assert decision.folder == Path("trtforge-gate")
    with pytest.raises(trtforge.errors.CheckFailed, match="must not ship"):
        decision.check()


def test_a_verb_takes_a_plan(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = trtforge.quantize(plan, store=plan.parent / "store", progress=False)
    assert isinstance(made, trtforge.MadeOfPlan)
    assert made["int8@onnxruntime"].path.is_file()
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    trtforge.quantize(plan, store=plan.parent / "store")
    assert "served" in capsys.readouterr().err


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
    with pytest.raises(trtforge.errors.ConfigError, match=r"nowhere\.onnx: does not exist"):
        trtforge.cast(tmp_path / "nowhere.onnx", output=tmp_path / "x.onnx")


def test_an_option_that_is_none_is_one_sentence(tiny: Path) -> None:
    with pytest.raises(trtforge.errors.ConfigError, match=r"calibrate: has no option 'metod'; did you mean 'method'\?"):
        trtforge.calibrate("tiny.onnx", metod="minmax")
    with pytest.raises(trtforge.errors.ConfigError, match=r"calibrate: Invalid value for '--method': 'x'"):
        trtforge.calibrate("tiny.onnx", method="x")
    with pytest.raises(trtforge.errors.ConfigError, match=r"-o is missing"):
        trtforge.calibrate("tiny.onnx")
