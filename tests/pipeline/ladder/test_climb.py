"""One technique after another, made from the store and held to the bounds of a plan."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engines.torch_graph import library
from pipeline.errors import ConfigError
from pipeline.ladder.ascent import Ascent
from pipeline.ladder.climb import climb
from pipeline.plan import read_plan
from pipeline.record import Record
from pipeline.report.table import report_from_json
from pipeline.store import Store
from tests.pipeline.plan_folder import change, make_users_folder

if TYPE_CHECKING:
    from tests.conftest import Command

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

QUICK = """
[gate]
sampled = false
max_other_load = 1.0
max_other_load_relative = 1.0
max_drift = inf
[tune]
epochs = 2
[prune]
epochs = 2
[validate.retrained]
max_metric_drop = 1.0
"""


def advise_by(folder: Path, *lines: str) -> None:
    change(folder, "[report]", QUICK + "\n[advise]\n" + "\n".join(lines) + "\n\n[report]")


def climbed(folder: Path, *, everything: bool = False) -> Ascent:
    return climb(read_plan(folder / "plan.toml"), Store(folder / "store"), everything=everything)


def outcomes(ascent: Ascent) -> dict[str, str]:
    return {rung.technique: rung.outcome for rung in ascent.rungs}


def test_it_stops_at_the_first_technique_that_holds_all_bounds(warm: Path) -> None:
    advise_by(warm, 'bounds = ["metric_drop <= 0.5", "size_mib <= 0.9 x baseline"]')
    ascent = climbed(warm)
    tried = outcomes(ascent)
    assert tried["none"] == "does not hold"
    assert tried["float16"] == "holds"
    assert {tried[name] for name in list(tried)[2:]} <= {"not tried", "not possible"}
    assert [row.name for row in ascent.holding()] == ["fp16@onnxruntime"]
    assert "float16 holds all bounds" in {rung.why for rung in ascent.rungs}


def test_without_a_goal_all_of_post_training_is_tried(warm: Path) -> None:
    advise_by(warm, 'bounds = ["metric_drop <= 1"]'.replace("<= 1", "<= 0.99"))
    tried = outcomes(climbed(warm))
    assert [tried[name] for name in ("none", "float16", "dynamic_range", "integer")] == ["holds"] * 4
    assert tried["equalization"] == "not tried"


def test_where_accuracy_alone_is_bounded_by_nothing_the_reports_bound_is_taken_and_told(warm: Path) -> None:
    advise_by(warm, 'bounds = ["size_mib <= 0.9 x baseline"]', 'techniques = ["float16"]')
    ascent = climbed(warm)
    assert [bound.text for bound in ascent.bounds] == ["size_mib <= 0.9 x baseline", "metric_drop <= 0.01"]
    assert "metric_drop <= 0.01 was taken" in ascent.notes[0]
    assert list(outcomes(ascent)) == ["none", "float16"]


def test_a_loss_of_integers_is_mended_and_trained_for(warm: Path) -> None:
    """Agreement with FP32 that INT8 cannot have by any means: mends and training are tried, pruning is not."""
    advise_by(warm, 'bounds = ["metric_drop <= -0.5", "size_mib <= 0.9 x baseline"]')
    ascent = climbed(warm)
    tried = outcomes(ascent)
    assert tried["integer"] == tried["equalization"] == tried["mixed_precision"] == "does not hold"
    if not library.why_not():
        assert tried["quantization_aware_training"] == "does not hold"
    reasons = {rung.technique: rung.why for rung in ascent.rungs}
    assert reasons["pruning"].startswith("no bound on the compressed size is missed")
    assert reasons["other_ranges"] == ""
    assert reasons["rounding"] == "weights have 8 bits, which lose too little by rounding for data to win it back"


def test_weights_of_4_bits_that_lose_are_rounded_by_data(warm: Path) -> None:
    advise_by(
        warm,
        'bounds = ["metric_drop <= -0.5"]',
        'techniques = ["integer", "rounding"]',
        "[quantize]",
        "weight_bits = 4",
    )
    ascent = climbed(warm)
    rungs = {rung.technique: rung for rung in ascent.rungs}
    assert rungs["rounding"].outcome == "does not hold", rungs["rounding"].why
    assert rungs["rounding"].settings[-1] == 'quantize.rounding="gptq"'
    assert "rounded+int8@onnxruntime" in [row.name for row in ascent.rows]
    change(warm, "weight_bits = 4", 'weight_bits = 4\nrounding = "gptq"')
    why = {rung.technique: rung.why for rung in climbed(warm).rungs}
    assert why["rounding"] == "the plan's [quantize] rounding is gptq already"


def test_only_a_compressed_size_is_what_pruning_is_for(warm: Path) -> None:
    advise_by(warm, 'bounds = ["metric_drop <= 0.99", "size_compressed_mib <= 0.0005"]')
    ascent = climbed(warm)
    tried = outcomes(ascent)
    assert tried["equalization"] == tried["quantization_aware_training"] == "not tried"
    assert tried["pruning"] in ("holds", "does not hold")
    names = [row.name for row in ascent.rows]
    assert "pruned+int8@onnxruntime" in names
    sizes = {row.name: row.checks for row in ascent.rows}
    dense, pruned = (
        next(c.estimate for c in sizes[name] if c.quantity == "size_compressed_mib")
        for name in ("int8@onnxruntime", "pruned+int8@onnxruntime")
    )
    assert dense is not None
    assert pruned is not None
    assert pruned < dense


def test_each_rung_is_what_its_settings_make_of_the_plan(warm: Path) -> None:
    advise_by(warm, 'bounds = ["size_mib <= 0.9 x baseline"]', 'techniques = ["float16"]')
    ascent = climbed(warm)
    settings = ascent.rungs[1].settings
    plan = read_plan(warm / "plan.toml", settings)
    assert plan.variants.precisions == ("fp32", "fp16")
    assert plan.variants.networks == ("trained",)
    assert plan == ascent.rows[-1].plan


def test_a_mend_that_is_not_possible_does_not_end_the_ladder(warm: Path) -> None:
    """With labels, mixed precision is asked for a gain in the metric, which no mixture has."""
    change(warm, 'x_calibration" } }', 'x_calibration" }, labels = "y_calibration" }')
    arrays = dict(np.load(warm / "data.npz"))
    np.savez(warm / "data.npz", **arrays, y_calibration=np.arange(12) % 3)
    advise_by(warm, 'bounds = ["metric_drop <= -0.5"]', 'techniques = ["integer", "mixed_precision", "pruning"]')
    ascent = climbed(warm)
    rungs = {rung.technique: rung for rung in ascent.rungs}
    assert rungs["mixed_precision"].outcome == "not possible"
    assert "no mixture holds top1 at most -0.5 below FP32's" in rungs["mixed_precision"].why
    assert rungs["pruning"].outcome == "not tried"


def test_what_the_minutes_left_out_is_told_beside_the_choice(warm: Path, command: Command) -> None:
    advise_by(warm, 'bounds = ["metric_drop <= 0.99"]', "minutes = 0")
    record, _, status = advice_of(warm, command)
    assert status == 0
    assert record.advice is not None
    assert record.advice.variant == "fp32@onnxruntime"
    (step,) = record.advice.next_steps
    assert step.startswith("raise [advise] minutes: 3 of ")


def test_a_folder_that_holds_other_things_is_left_alone(folder: Path, command: Command) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "notes.txt").write_text("mine")
    advise_by(folder, 'folder = "mine"')
    told = command("advise", folder / "plan.toml", "--store", folder / "store")
    assert told.status == 2
    assert "[advise] folder: " in told.err


def test_no_technique_is_begun_after_the_minutes(warm: Path) -> None:
    advise_by(warm, 'bounds = ["size_mib <= 0.1 x baseline"]', "minutes = 0")
    ascent = climbed(warm, everything=True)
    reasons = {rung.why for rung in ascent.rungs if rung.outcome == "not tried"}
    assert reasons == {"the 0 minutes of [advise] were spent"}
    assert [row.name for row in ascent.rows] == ["fp32@onnxruntime"]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('bounds = ["p50 <= 3"]', "[advise] bounds: 'p50 <= 3': there is no quantity 'p50'; did you mean 'p50_ms'?"),
        ('bounds = ["p50_ms of fp32@onnxruntime <= 3"]', "leave out 'of' and 'from'"),
        ('bounds = ["metric <= 0.5"]', "top1 is better when higher"),
        ('hardware = "edgetpu"', "hardware is edgetpu, but no backend of [variants] is for it; add one of litert"),
        ('hardware = "tensorrt"', "[advise] hardware is tensorrt, but no backend of [variants] is for it"),
        ('techniques = ["flaot16"]', "techniques: there is no technique 'flaot16'; did you mean 'float16'?"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused_before_anything_is_made(folder: Path, lines: str, told: str) -> None:
    advise_by(folder, lines)
    with pytest.raises(ConfigError) as caught:
        climbed(folder)
    assert told in str(caught.value)
    assert not any((folder / "store").glob("export/*"))


def test_without_a_metric_something_else_must_bound_the_loss(folder: Path) -> None:
    change(folder, 'metric = "top1"\n', "")
    advise_by(folder, 'bounds = ["size_mib <= 1"]')
    with pytest.raises(ConfigError, match="nothing bounds what a technique may cost, and the plan names no metric"):
        climbed(folder)


@pytest.fixture(scope="module")
def advised(tmp_path_factory: pytest.TempPathFactory, store_of_a_run: Path) -> Path:
    """A user's folder in which `trtforge advise --all` is to be run; its store has what a run made."""
    folder = tmp_path_factory.mktemp("advised")
    make_users_folder(folder)
    shutil.copytree(store_of_a_run, folder / "store", symlinks=True)
    change(folder, "html = false", "html = true")
    advise_by(folder, 'bounds = ["metric_drop <= 0.5", "size_compressed_mib <= 0.9 x baseline"]')
    return folder


def advice_of(folder: Path, command: Command, *options: str) -> tuple[Record, str, int]:
    told = command("advise", folder / "plan.toml", "--store", folder / "store", *options)
    record = report_from_json(folder / "trtforge-advice" / "report.json")
    return record, told.out, told.status


@pytest.mark.slow
@pytest.mark.skipif(bool(library.why_not()), reason="needs PyTorch")
def test_all_techniques_stand_in_one_table_with_what_decides(advised: Path, command: Command) -> None:
    record, out, status = advice_of(advised, command, "--all")
    assert status == 0, out
    advice = record.advice
    assert advice is not None
    assert (advice.outcome, advice.technique, advice.variant) == ("pass", "float16", "fp16@onnxruntime")
    assert record.recommendation.variant == "fp16@onnxruntime"
    assert advice.toml == (
        '[variants]\nprecisions = ["fp32", "fp16"]\nbackends = ["onnxruntime"]\nnetworks = ["trained"]\n'
    )
    names = [row.variant for row in advice.rows]
    assert names == [variant.name for variant in record.variants]
    assert set(names) >= {
        "fp32@onnxruntime", "fp16@onnxruntime", "dynamic@onnxruntime", "int8@onnxruntime", "auto+int8@onnxruntime",
        "equalized+int8@onnxruntime", "rounded+int8@onnxruntime", "mixed+int8@onnxruntime", "tuned+int8@onnxruntime",
        "pruned+int8@onnxruntime", "pruned+tuned+int8@onnxruntime",
    }  # fmt: skip
    rows = {row.variant: row for row in advice.rows}
    half = rows["fp16@onnxruntime"]
    assert half.size_ratio < 1
    assert half.p50_interval_ms is not None
    assert half.drop_interval is not None
    assert [check.outcome for check in half.checks] == ["pass"] * 3  # Two bounds and the tolerances.
    assert {claim.claim for claim in half.claims} == {"more than 50 % smaller", "negligible loss"}
    assert rows["fp32@onnxruntime"].drop_interval is None
    assert set(record.trainings) == {"tuned+int8@onnxruntime", "pruned", "pruned+tuned+int8@onnxruntime"}
    assert set(record.mixtures) == {"mixed+int8@onnxruntime"}
    assert all(variant.size_compressed_bytes["gzip"] for variant in record.variants)
    page = (advised / "trtforge-advice" / "report.html").read_text()
    assert "Techniques" in page
    assert 'id="picture-advice-latency"' in page
    assert "Use float16" in out
    assert f"Measured on {half.measured_on}." in out
    shown = [" ".join(line.split()) for line in out.splitlines()]
    small = next(claim for claim in half.claims if claim.claim == "more than 50 % smaller")
    assert f"more than 50 % smaller fp16@onnxruntime {small.measured} {'yes' if small.holds else 'no'}" in shown

    again, _, _ = advice_of(advised, command, "--all")
    assert {run.stage for run in again.served if not run.from_store} == {"benchmark"}
    assert again.advice is not None
    assert [row.seconds for row in again.advice.rows] == [row.seconds for row in advice.rows]


def test_where_nothing_holds_the_nearest_is_named_and_what_to_try(warm: Path, command: Command) -> None:
    advise_by(warm, 'bounds = ["metric_drop <= 0.99", "size_mib <= 0.0001"]', 'techniques = ["float16", "integer"]')
    record, out, status = advice_of(warm, command)
    assert status == 5
    assert record.recommendation.outcome == "undecided"
    assert record.recommendation.sentence.startswith("No technique that was tried holds all bounds. Nearest is ")
    assert "Take a smaller network" in " ".join(out.split())
    assert json.loads((warm / "trtforge-advice" / "report.json").read_text())["advice"]["variant"] == ""


def test_too_few_samples_are_no_decision(warm: Path, command: Command) -> None:
    advise_by(warm, 'bounds = ["metric_drop <= 0.01", "size_mib <= 0.9 x baseline"]', 'techniques = ["float16"]')
    change(warm, "sampled = false", "sampled = true")
    record, out, status = advice_of(warm, command)
    assert status == 6, out
    assert record.recommendation.sentence.startswith(
        "Not decided: fp16@onnxruntime (float16) may hold all bounds, but "
    )
    assert record.advice is not None
    assert "evaluation samples such as these 24 would decide" in record.advice.next_steps[0]


def test_a_latency_is_held_beside_fp32(warm: Path) -> None:
    advise_by(warm, 'bounds = ["p50_ms <= 0.001 x baseline", "metric_drop <= 0.99"]', 'techniques = ["float16"]')
    ascent = climbed(warm)
    (half,) = [row for row in ascent.rows if row.name == "fp16@onnxruntime"]
    (latency,) = [check for check in half.checks if check.quantity == "p50_ms"]
    assert latency.relative
    assert latency.outcome == "fail"
    assert half.is_accurate()


def test_the_nearest_is_not_what_was_never_timed(warm: Path, command: Command) -> None:
    """INT8 that misses its tolerances is not timed; float16 misses the latency alone, and is nearer."""
    advise_by(
        warm, 'bounds = ["metric_drop <= 0.99", "p50_ms <= 0.001 x baseline"]', 'techniques = ["float16", "integer"]'
    )
    change(warm, "max_metric_drop = 0.3", "max_metric_drop = 0.99\nmin_cosine = 1.0")
    record, _, status = advice_of(warm, command)
    assert status == 5
    assert "Nearest is fp16@onnxruntime (float16): p50_ms at batch 1 is " in record.recommendation.sentence
