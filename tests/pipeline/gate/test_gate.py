"""The gate end to end, on real engines: what may ship, and what is caught, with which sentence and exit status."""

from __future__ import annotations

import json
import math
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline.gate.record import SCHEMA_VERSION, GateRecord
from pipeline.json_record import record_from_json
from pipeline.latency.benchmark import queries_from_npz
from tests.pipeline.gate.gates import ANY_MACHINE, Engines, make_engines

if TYPE_CHECKING:
    from tests.conftest import Command

QUICK = (*ANY_MACHINE, "--num-threads", 1, "--no-html")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return make_engines(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gated_in(folder: Path) -> GateRecord:
    return record_from_json(folder / "gate.json", GateRecord, SCHEMA_VERSION, "")


def budgets(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--budget", text)]


def test_an_engine_that_keeps_its_budgets_may_ship(engines: Engines, here: Path, command: Command) -> None:
    data = ("--data", engines.data, "--labels", "y", "--metric", "top1", "--reference", engines.fp32)
    held = budgets(
        "p99_ms <= 60000", "p50_ms at batch 8 <= 10000", "throughput_per_s >= 0.01", "cold_start_ms <= 600000",
        "size_mib <= 1", "peak_memory_mib <= 4000", "metric >= 0.9", "metric_drop <= 0.05", "agreement >= 0.9",
    )  # fmt: skip
    said = command("gate", "--candidate", engines.int8, *data, *held, *QUICK)
    assert said.status == 0, said.err
    assert "model.onnx may ship" in said.out
    assert said.out.rstrip().endswith("trtforge-gate")

    gated = gated_in(here / "trtforge-gate")
    assert (gated.outcome, gated.exit_status, gated.baseline) == ("pass", 0, "")
    assert [check.quantity for check in gated.checks] == [text.split()[0] for text in held[1::2]]
    for check in gated.checks:
        assert check.estimate is not None
        assert check.low is not None
        assert check.high is not None
        assert check.low <= check.estimate <= check.high
        assert check.budget.split(" <=")[0].split(" >=")[0] in check.sentence
    size = next(check for check in gated.checks if check.quantity == "size_mib")
    assert size.estimate == engines.int8.stat().st_size / 2**20
    (accuracy,) = gated.accuracy
    assert accuracy.metric == accuracy.reference_metric == accuracy.agreement == 1.0

    (case, *_) = ET.parse(here / "trtforge-gate" / "gate.xml").getroot().iter("testcase")
    assert case.get("name") == "p99_ms at batch 1 <= 60000"
    assert "may ship" in (here / "trtforge-gate" / "gate.md").read_text()


def test_raw_latencies_are_kept(engines: Engines, here: Path, command: Command) -> None:
    said = command(
        "gate", "--candidate", engines.fp32, "--baseline", engines.int8, "--data", engines.data, *QUICK,
        *budgets("p50_ms <= 10000"), "-o", "out",
    )  # fmt: skip
    assert said.status == 0, said.err
    (measured,) = gated_in(here / "out").measured
    ours, theirs = (queries_from_npz(here / "out" / file) for file in (measured.queries_file, measured.baseline_file))
    assert len(ours.latency_ms) == len(theirs.latency_ms) == measured.num_queries
    assert int(ours.block[-1]) + 1 == measured.num_rounds
    p50 = measured.percentiles[0]
    assert p50.candidate_ms.estimate == pytest.approx(np.quantile(ours.latency_ms, 0.5, method="inverted_cdf"))
    assert p50.ratio is not None


@pytest.mark.parametrize(("bound", "status"), [("0.5", 5), ("0.0001", 0)])
def test_offline_goes_through_all_samples(
    engines: Engines, here: Path, command: Command, bound: str, status: int
) -> None:
    said = command(
        "gate", "--candidate", engines.slow, "--baseline", engines.fp32, "--data", engines.data, *QUICK,
        "--scenario", "offline", *budgets(f"throughput_per_s at batch 8 >= {bound} x baseline"),
    )  # fmt: skip
    assert said.status == status, said.err
    gated = gated_in(here / "trtforge-gate")
    assert "LoadGen's Offline scenario" in gated.protocol
    assert [check.outcome for check in gated.checks] == ["fail" if status else "pass"]


def test_a_slowed_down_engine_is_caught(engines: Engines, here: Path, command: Command) -> None:
    said = command(
        "gate", "--candidate", engines.slow, "--baseline", engines.fp32, "--data", engines.data, *QUICK,
        *budgets("p50_ms <= 1.03 x baseline", "throughput_per_s >= 0.97 x baseline", "size_mib <= 1"),
    )  # fmt: skip
    assert said.status == 5
    assert said.err.startswith("trtforge: must not ship: slow.onnx: p50_ms at batch 1 is ")
    assert " x the baseline's (99 % interval " in said.err
    assert ", above 1.03" in said.err
    assert ", below 0.97" in said.err
    gated = gated_in(here / "trtforge-gate")
    assert [check.outcome for check in gated.checks] == ["fail", "fail", "pass"]
    slower, throughput, _ = (check.estimate for check in gated.checks)
    assert slower is not None
    assert throughput is not None
    assert slower > 1.03
    assert throughput < 0.97
    root = ET.parse(here / "trtforge-gate" / "gate.xml").getroot()
    assert root.get("failures") == "2"


def test_a_mis_calibrated_engine_is_caught(engines: Engines, here: Path, command: Command) -> None:
    data = ("--data", engines.data, "--labels", "y", "--metric", "top1", "--reference", engines.fp32)
    held = budgets("metric_drop <= 0.01", "agreement >= 0.98", "metric >= 0.9")
    said = command("gate", "--candidate", engines.shrunk, *data, *held, *QUICK)
    assert said.status == 5
    gated = gated_in(here / "trtforge-gate")
    drop, agreement, metric = gated.checks
    assert [check.outcome for check in gated.checks] == ["fail", "fail", "fail"]
    assert drop.estimate is not None
    assert drop.low is not None
    assert drop.low > 0.1
    assert f"metric_drop is {drop.estimate:.4f} (99 % interval " in said.err
    assert ", above 0.01" in said.err
    assert agreement.estimate == pytest.approx(1 - drop.estimate)
    assert drop.advice == agreement.advice == "`trtforge bisect` names the layer at which its model goes wrong"
    assert metric.advice == "", "FP32 answers these samples well: the engine is to blame"
    assert gated.measured == (), "no budget asks for a latency"


def test_swapped_labels_are_caught(engines: Engines, here: Path, command: Command) -> None:
    data = ("--data", engines.data, "--labels", "swapped", "--metric", "top1", "--reference", engines.fp32)
    held = budgets("metric >= 0.9", "metric_drop <= 0.1", "agreement >= 0.9")
    said = command("gate", "--candidate", engines.int8, *data, *held, *QUICK)
    assert said.status == 5
    wrong, *right = gated_in(here / "trtforge-gate").checks
    assert wrong.outcome == "fail"
    assert [check.outcome for check in right] == ["pass", "pass"], "the engine answers as FP32 does"
    assert f"metric is {wrong.estimate:.4f}" in said.err
    assert "; FP32 itself has " in said.err
    assert "on these samples: check the labels and the data first" in said.err


def test_too_few_samples_do_not_decide(engines: Engines, here: Path, command: Command) -> None:
    data = ("--data", engines.data, "--limit", 20, "--reference", engines.fp32)
    held = budgets("agreement >= 0.98")
    said = command("gate", "--candidate", engines.int8, *data, *held, *QUICK)
    assert said.status == 6
    assert "agreement is 1.000 (99 % interval 0.7673 to 1.000), too uncertain to say whether >= 0.98 holds" in said.err
    assert (
        "evaluation samples such as these 20 would decide; or consider these samples only with sampled = false"
    ) in said.err
    assert command("gate", "--candidate", engines.int8, *data, *held, *QUICK, "--no-sampled").status == 0


def test_a_busy_machine_does_not_decide(engines: Engines, here: Path, command: Command) -> None:
    # The test itself is no other program, so the least load of all is requested.
    quick = (*QUICK, "--max-other-load", 0.0)
    held = budgets(
        "p50_ms <= 10000",
        "size_mib <= 1",
        "p50_ms <= 99 x baseline",
        "p99_ms <= 9999 x baseline",
        "throughput_per_s >= 0.0001 x baseline",
    )
    sides = ("--candidate", engines.fp32, "--baseline", engines.fp32)
    said = command("gate", *sides, "--data", engines.data, *quick, *held, "--max-other-load-relative", 1.0)
    gated = gated_in(here / "trtforge-gate")
    latency, size, beside, tail, throughput = gated.checks
    assert beside.outcome == throughput.outcome == "pass", "both sides met it"
    assert size.outcome == "pass", "load does not change it"
    if said.status == 0:
        pytest.skip("nothing else ran on this machine in the meantime")
    assert said.status == 6
    assert latency.outcome == tail.outcome == "not decided"
    assert any(
        note.endswith("p50, mean and throughput beside the baseline hold for a machine that is equally busy.")
        for note in gated.notes
    )
    strict = command("gate", *sides, "--data", engines.data, *quick, *held[4:6], "--max-other-load-relative", 0.0)
    assert strict.status == 6
    assert "above max_other_load_relative 0%; stop them" in strict.err
    assert ", within <= 10000; but this machine was too noisy to decide by: other programs used " in latency.sentence


def test_energy_without_a_gauge_is_not_decided(engines: Engines, here: Path, command: Command) -> None:
    quick = (*QUICK, *budgets("energy_mj <= 3"))
    said = command("gate", "--candidate", engines.fp32, "--data", engines.data, *quick)
    if said.status != 6:
        pytest.skip("this machine measures power")
    assert "energy_mj at batch 1 is not known: " in said.err
    assert "leave it out, or gate where power is measured" in said.err


def test_memory_that_grows(engines: Engines, here: Path, command: Command) -> None:
    """Five seconds are enough to say that it does not explode, and say how long would be for more."""
    memory = budgets(
        "memory_growth_mib_per_h <= 1e5", "memory_growth_mib_per_h at batch 4 <= 0.5",
        "device_memory_growth_mib_per_h <= 9",
    )  # fmt: skip
    quick = (*QUICK, "--max-seconds", 5, *memory)
    said = command("gate", "--candidate", engines.fp32, "--data", engines.data, *quick)
    assert said.status == 6, said.err
    coarse, fine, device = gated_in(here / "trtforge-gate").checks
    assert (coarse.outcome, fine.outcome, device.outcome) == ("pass", "not decided", "not decided")
    assert coarse.budget == "memory_growth_mib_per_h at batch 1 <= 100000"
    assert re.search(r"about [0-9,]+ s would be enough: raise max_seconds in \[gate.pairing\]", fine.advice)
    assert "the backend does not report device memory; leave it out, or gate on a GPU" in said.err
    with np.load(here / "trtforge-gate/samples/memory_growth-fp32.onnx-batch4.npz") as arrays:
        assert len(arrays["times_s"]) == len(arrays["process_mib"]) > 36


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--candidate is missing: name the engine that is to ship, or give a PLAN.toml"),
        (
            ("fp32.onnx",),
            "fp32.onnx: is not a plan (.toml); to gate an engine without one, write --candidate fp32.onnx",
        ),
        (("--candidate", "none.onnx"), "there is no budget, so nothing could fail"),
        (("--candidate", "none.onnx", "--budget", "p50_ms <= 3"), "none.onnx: does not exist"),
        (("--candidate", "fp32.onnx", "--budget", "p50_ms <= 3"), "--data is missing"),
        (("--candidate", "fp32.onnx", "--budget", "p50_ms <= 3 x baseline", "--data", "data.npz"), "no baseline to"),
        (("--candidate", "fp32.onnx", "--budget", "metric >= 1", "--data", "data.npz"), "there is no metric; name one"),
        (
            ("--candidate", "fp32.onnx", "--budget", "agreement >= 1", "--data", "data.npz"),
            "give --reference, or write",
        ),
        (("--candidate", "fp32.onnx", "--budget", "p50_ms at batch 999 <= 1", "--data", "data.npz"), "from 1 to 240"),
        (
            ("--candidate", "fp32.onnx", "--budget", "size_mib <= 1", "--data", "data.npz", "--baseline", "last.onnx"),
            "baseline 'last.onnx': there is no such engine; correct the path, or name a stored baseline",
        ),
        (
            ("--candidate", "fp32.onnx", "--budget", "size_mib <= 1", "--data", "data.npz", "--baseline", "old/good"),
            "baseline 'old/good': there is no such engine",
        ),
        (
            ("--candidate", "fp32.onnx", "--budget", "memory_growth_mib_per_h at batch 999 <= 1", "--data", "data.npz"),
            "from 1 to 240",
        ),
        (("--candidate", "fp32.onnx", "--budget", "p50_ms of x <= 1", "--data", "data.npz"), "no variant 'x'"),
    ],
)
def test_a_wrong_command_is_said(
    engines: Engines, here: Path, command: Command, arguments: tuple[str, ...], said: str
) -> None:
    for file in (engines.fp32, engines.data):
        shutil.copy(file, here)
    found = command("gate", *arguments)
    assert found.status == 2
    assert said in found.err
    assert not (here / "trtforge-gate").exists()


def test_the_metrics_direction_counts(engines: Engines, here: Path, command: Command) -> None:
    data = ("--data", engines.data, "--labels", "y", "--metric", "top1", *QUICK)
    said = command("gate", "--candidate", engines.fp32, *data, *budgets("metric <= 0.5"))
    assert said.status == 2
    assert "top1 is better when higher; write metric >= …" in said.err


def changed(engine: Path, to: Path, output: str, weight: float) -> Path:
    """A copy of the network with another name of its output, and all of its last weights this number."""
    model = onnx.load(engine)
    model.graph.node[-1].output[0] = model.graph.output[0].name = output
    (last,) = (tensor for tensor in model.graph.initializer if tensor.name == "weight")
    last.CopyFrom(numpy_helper.from_array(np.full((4, 4), weight, dtype=np.float32), "weight"))
    onnx.save(model, to)
    return to


def test_an_engine_that_answers_nan_must_not_ship(engines: Engines, here: Path, command: Command) -> None:
    broken = changed(engines.fp32, here / "nan.onnx", "scores", math.nan)
    data = ("--data", engines.data, "--labels", "y", "--reference", engines.fp32, *QUICK)
    said = command("gate", "--candidate", broken, *data, "--metric", "auc", *budgets("metric >= 0.1", "size_mib <= 1"))
    assert said.status == 5
    assert "metric is not a number: the outputs contain NaN, which meets no bound" in said.err
    held = budgets("metric >= 0.1", "agreement >= 0.1", "metric_drop <= 0.5")
    assert command("gate", "--candidate", broken, *data, "--metric", "top1", *held).status == 5
    assert [check.outcome for check in gated_in(here / "trtforge-gate").checks] == ["fail", "fail", "fail"]


def test_an_engine_that_is_replaced_meanwhile_is_caught(engines: Engines, here: Path, command: Command) -> None:
    """As by another job that sets the baseline. Here the metric does it, which is computed before anything is timed."""
    shutil.copy(engines.fp32, here / "mine.onnx")
    lines = ("import shutil", "def metric(outputs, labels):", f"    shutil.copy({str(engines.slow)!r}, 'mine.onnx')")
    (here / "replacing.py").write_text("\n".join([*lines, "    return 1.0", ""]))
    data = ("--data", engines.data, "--labels", "y", "--metric", "replacing:metric", "--no-sampled", *QUICK)
    for sides in (("mine.onnx", engines.fp32), (engines.fp32, "mine.onnx")):
        held = budgets("metric >= 0.1", "p50_ms <= 99 x baseline")
        said = command("gate", "--candidate", sides[0], "--baseline", sides[1], *data, *held)
        assert said.status == 2
        assert "mine.onnx: was replaced while " in said.err
        assert "mine.onnx was gated; gate again, while nobody else writes there" in said.err
        assert not (here / "trtforge-gate").exists()
        shutil.copy(engines.fp32, here / "mine.onnx")


def test_engines_of_different_networks_are_not_compared(engines: Engines, here: Path, command: Command) -> None:
    other = changed(engines.fp32, here / "other.onnx", "logits", 1.0)
    data = ("--data", engines.data, "--reference", other, *QUICK)
    said = command("gate", "--candidate", engines.fp32, *data, *budgets("agreement >= 0.5"))
    assert said.status == 2
    assert (
        "the engine answers scores (240, 4), FP32 answers logits (240, 4); compare engines of one network" in said.err
    )


def test_a_baseline_of_another_network_is_refused_also_where_only_sizes_are_compared(
    engines: Engines, here: Path, command: Command
) -> None:
    model = onnx.load(engines.fp32)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 32
    onnx.save(model, here / "other.onnx")
    held = ("--candidate", engines.fp32, "--data", engines.data, *QUICK, *budgets("size_mib <= 2 x baseline"))
    said = command("gate", *held, "--baseline", "other.onnx")
    assert said.status == 2
    assert (
        "baseline 'other.onnx': takes 'image' (N, 4, 32, 16), the candidate takes 'image' (N, 4, 16, 16); compare "
        "engines of one network" in said.err
    )


@pytest.mark.parametrize(("num_bytes", "status"), [(0, 2), (100, 4)])
def test_a_truncated_engine_as_baseline_is_caught_also_where_only_sizes_are_compared(
    engines: Engines, here: Path, command: Command, num_bytes: int, status: int
) -> None:
    (here / "cut.onnx").write_bytes(engines.fp32.read_bytes()[:num_bytes])
    held = ("--candidate", engines.fp32, "--data", engines.data, *QUICK, *budgets("size_mib <= 99 x baseline"))
    said = command("gate", *held, "--baseline", "cut.onnx")
    assert said.status == status
    assert f"cut.onnx: is {'empty; copy or build it again' if not num_bytes else 'not a whole ONNX file'}" in said.err


def test_a_page_that_cannot_be_drawn_is_told_first(
    engines: Engines, here: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.page.template.find_spec", lambda _name: None)
    quick = ("--data", engines.data, *QUICK[:-1], *budgets("size_mib <= 1"))
    said = command("gate", "--candidate", engines.fp32, *quick)
    assert said.status == 3
    assert "needs jinja2 and matplotlib; pip install 'trtforge[report]'" in said.err
    assert command("gate", "--candidate", engines.fp32, *quick, "--no-html").status == 0
    assert not (here / "trtforge-gate" / "gate.html").exists()


def test_a_folder_without_a_name_is_not_replaced(engines: Engines, here: Path, command: Command) -> None:
    quick = ("--data", engines.data, *QUICK, *budgets("size_mib <= 1"))
    said = command("gate", "--candidate", engines.fp32, *quick, "-o", ".")
    assert said.status == 2
    assert "has no name of its own, and could not be replaced; name a folder of its own" in said.err


def test_a_folder_of_others_is_left_alone(engines: Engines, here: Path, command: Command) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "thesis.txt").write_text("years of work")
    said = command(
        "gate", "--candidate", engines.fp32, "--data", engines.data, *budgets("size_mib <= 1"), "-o", "mine", *QUICK
    )
    assert said.status == 2
    assert "mine/thesis.txt exists, but a gate replaces its whole folder; name a folder of its own" in said.err
    assert (here / "mine" / "thesis.txt").read_text() == "years of work"


def test_gate_json_is_documented(engines: Engines, here: Path, command: Command) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "gate.md").read_text()
    said = command("gate", "--candidate", engines.fp32, "--data", engines.data, *budgets("p50_ms <= 9999"), *QUICK)
    assert said.status == 0

    def keys(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*(keys(item) for item in value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    found = json.loads((here / "trtforge-gate" / "gate.json").read_text())
    own = set(found) | keys(found["checks"]) | keys(found["measured"]) | keys(found["engines"])
    assert {key for key in own if f"`{key}`" not in page} == set()
