"""The report's stage: a run's results become one record, and a folder that is replaced whole or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from engines.backends import reference
from pipeline.artifact import Verdict
from pipeline.errors import ConfigError, Unavailable
from pipeline.flow import run
from pipeline.plan import Plan, read_plan
from pipeline.record import ENGINE, SIMULATION, Record
from pipeline.report import write
from pipeline.report.table import report_from_json
from pipeline.report.write import write_report
from pipeline.results import Results
from pipeline.store import Store
from tests.made import QUICK_PROTOCOL

NET = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3] x) => (float[N, 3] y) <float[3, 3] w = {2, 0, 0, 0, 2, 0, 0, 0, 2}> { y = MatMul (x, w) }
"""

PLAN = (
    """
[model]
source = "net.onnx"
[data]
metric = "top1"
calibration = { path = "data.npz", limit = 8 }
evaluation = { path = "data.npz", labels = "labels" }
[data.preprocess]
scale = 0.5
[variants]
precisions = ["fp32", "int8"]
backends = ["onnxruntime", "reference"]
[calibrate]
method = "minmax"
[benchmark]
batch_sizes = [1, 2]
largest_batch = "p50_ms <= 60000"
largest_batch_seconds = 600
"""
    + QUICK_PROTOCOL
    + """
[report]
html = false
"""
)

AWAY = "reference: no such device here"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Results, Store]:
    """One run to its end, with a backend that builds here and cannot run here."""
    folder = tmp_path_factory.mktemp("run")
    onnx.save(onnx.parser.parse_model(NET), folder / "net.onnx")
    x = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)
    np.savez(folder / "data.npz", x=x, labels=x.argmax(axis=1))
    (folder / "plan.toml").write_text(PLAN)
    plan, store = read_plan(folder / "plan.toml"), Store(folder / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "why_not_run", lambda: AWAY)
        return plan, run(plan, store, "benchmark"), store


@pytest.fixture
def plan(finished: tuple[Plan, Results, Store], tmp_path: Path) -> Plan:
    """The plan, its report going to a new folder."""
    found = finished[0]
    return replace(found, report=replace(found.report, folder=str(tmp_path / "report")))


@pytest.fixture
def made(finished: tuple[Plan, Results, Store]) -> Results:
    return finished[1]


@pytest.fixture
def store(finished: tuple[Plan, Results, Store]) -> Store:
    return finished[2]


def report(plan: Plan, made: Results, store: Store) -> Record:
    return write_report(plan, made, store.account)


def test_what_is_written_is_what_is_returned(plan: Plan, made: Results, store: Store) -> None:
    record = report(plan, made, store)
    assert report_from_json(Path(plan.report.folder) / "report.json") == record


def test_timed_and_simulated_variants_stand_side_by_side(plan: Plan, made: Results, store: Store) -> None:
    found = {variant.name: variant for variant in report(plan, made, store).variants}
    assert list(found) == ["fp32@onnxruntime", "int8@onnxruntime", "fp32@reference", "int8@reference"]
    for name, variant in found.items():
        away = name.endswith("@reference")
        assert variant.metric_measured_on == (SIMULATION if away else ENGINE)
        assert variant.latency_missing == (AWAY if away else "")
        assert (variant.latency_ms is None) is away
        assert [timing.batch_size for timing in variant.by_batch] == ([] if away else [1, 2])
        assert Path(variant.artifact).stat().st_size == variant.size_bytes
        assert variant.metric is not None
        if (largest := variant.largest_batch) is None:
            assert away
        else:
            assert (largest.name, largest.bound, largest.low, largest.engine_max) == (
                name,
                "p50_ms <= 60000",
                4096,
                4096,
            )
            assert largest.sentence in variant.notes
    assert found["fp32@onnxruntime"].speedup == 1.0
    assert found["int8@onnxruntime"].speedup is not None
    assert found["int8@reference"].placement == "tensorrt"


def test_the_record_says_what_was_run_on_what(plan: Plan, made: Results, store: Store) -> None:
    record = report(plan, made, store)
    assert record.plan.digest == plan.digest()
    assert record.model.source == "net.onnx"
    assert [spec.name for spec in record.model.inputs] == ["x"]
    assert record.metric is not None
    assert record.metric.source_value == 1.0, "the labels are the source's own answers"
    assert record.data.evaluation.num_samples == 16
    assert [entry.stage for entry in record.served][:2] == ["export", "infer"]
    shared = (
        "8 of 8 calibration samples are evaluation samples too: the accuracy of INT8 is overestimated; keep them apart"
    )
    assert shared in [finding.sentence for finding in record.lint]
    assert record.settling is not None
    assert record.settling.num_samples == 8


def test_preprocessing_is_written_beside_both_data_sets(plan: Plan, made: Results, store: Store) -> None:
    """A wrong normalisation costs points and nothing complains: so everyone can read which one it was."""
    data = report(plan, made, store).data
    assert data.calibration is not None
    assert "0.5" in data.calibration.preprocess
    assert data.calibration.preprocess == data.evaluation.preprocess == plan.data.preprocess.describe()


def test_raw_latencies_lie_where_the_record_says(plan: Plan, made: Results, store: Store) -> None:
    record = report(plan, made, store)
    files = [timing.queries_file for variant in record.variants for timing in variant.by_batch]
    assert len(set(files)) == 4
    for file in files:
        with np.load(Path(plan.report.folder) / file) as stored:
            assert len(stored["latency_ms"]) >= 8


def test_tensors_come_worst_first(plan: Plan, made: Results, store: Store) -> None:
    ratios = [tensor.sqnr_db for tensor in report(plan, made, store).tensors]
    known = [ratio for ratio in ratios if ratio is not None]
    assert len(known) >= 2
    assert known == sorted(known)
    assert ratios[: len(known)] == known, "those without a ratio at the end"


def test_a_metric_that_is_nan_is_none_and_crashes_nothing(
    plan: Plan, made: Results, store: Store, tmp_path: Path
) -> None:
    variant = next(variant for variant in made.verdicts if variant.precision.is_integer)
    verdict = made.verdicts[variant].read() | {"metric": float("nan"), "metric_drop": float("nan"), "passed": False}
    verdict["failures"] = ["top1 is nan"]
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    broken = replace(made, verdicts=made.verdicts | {variant: Verdict(tmp_path / "verdict.json")})
    html = replace(plan, report=replace(plan.report, html=True))
    found = {v.name: v for v in report(html, broken, store).variants}[variant.name]
    assert (found.metric, found.metric_drop, found.failures) == (None, None, ("top1 is nan",))
    assert "top1 is nan" in (Path(plan.report.folder) / "report.html").read_text()


def test_a_run_without_a_metric_has_none(plan: Plan, made: Results, store: Store) -> None:
    bare = replace(plan, data=replace(plan.data, metric=""))
    assert report(bare, made, store).metric is None


def test_nothing_timed_is_no_protocol(plan: Plan, made: Results, store: Store) -> None:
    untimed = replace(made, timings=None, not_timed=dict.fromkeys(made.engines, AWAY))
    record = report(plan, untimed, store)
    assert record.protocol is None
    assert all(variant.latency_ms is None for variant in record.variants)
    assert record.recommendation.outcome == "undecided"


# The folder.


def contents(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_without_html_there_is_none_and_with_it_there_is(plan: Plan, made: Results, store: Store) -> None:
    folder = Path(plan.report.folder)
    report(plan, made, store)
    without = contents(folder)
    assert "report.html" not in without
    report(replace(plan, report=replace(plan.report, html=True)), made, store)
    assert contents(folder) == without | {"report.html"}


def test_an_older_report_is_replaced_as_a_whole(plan: Plan, made: Results, store: Store) -> None:
    folder = Path(plan.report.folder)
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / "fp16@tensorrt-batch1.npz").touch()
    (folder / "report.html").write_text("older")
    (folder / "report.json").write_text("older")
    report(plan, made, store)
    assert "report.html" not in contents(folder)
    assert "samples/fp16@tensorrt-batch1.npz" not in contents(folder)
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == [], "no leavings beside it"


def test_a_report_that_fails_leaves_the_older_one(
    plan: Plan, made: Results, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object) -> None:
        raise Unavailable("report.html: needs matplotlib; pip install 'trtforge[report]'")

    report(plan, made, store)
    before = (Path(plan.report.folder) / "report.json").read_bytes()
    monkeypatch.setattr(write, "write_html", fail)
    with pytest.raises(Unavailable, match="needs matplotlib"):
        report(replace(plan, report=replace(plan.report, html=True)), made, store)
    assert (Path(plan.report.folder) / "report.json").read_bytes() == before


@pytest.mark.parametrize("name", ["thesis.tex", "data", ".git", "samples"])
def test_a_folder_with_anything_else_in_it_is_never_replaced(
    plan: Plan, made: Results, store: Store, name: str
) -> None:
    folder = Path(plan.report.folder)
    folder.mkdir()
    (folder / name).write_text("years of work")
    with pytest.raises(ConfigError, match=rf"\[report\] folder: .*{name} exists.*name a folder of its own"):
        report(plan, made, store)
    assert (folder / name).read_text() == "years of work"
    assert contents(folder) == {name}


def test_an_empty_folder_is_as_good_as_none(plan: Plan, made: Results, store: Store) -> None:
    Path(plan.report.folder).mkdir()
    report(plan, made, store)
    assert "report.json" in contents(Path(plan.report.folder))


def test_a_file_in_the_folders_place_is_never_replaced(plan: Plan, made: Results, store: Store) -> None:
    Path(plan.report.folder).write_text("notes")
    with pytest.raises(ConfigError, match="a report replaces its whole folder"):
        report(plan, made, store)
    assert Path(plan.report.folder).read_text() == "notes"


def test_the_plans_own_folder_is_never_replaced(made: Results, store: Store, tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(PLAN.replace("[report]", '[report]\nfolder = "."'))
    own = read_plan(tmp_path / "plan.toml")
    with pytest.raises(ConfigError, match=r"plan\.toml exists"):
        report(own, made, store)
    assert contents(tmp_path) == {"plan.toml"}
