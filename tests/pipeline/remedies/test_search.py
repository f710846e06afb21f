"""Where INT8 is out of bounds, a run tries what would hold, and says so with its cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import numpy_helper

from pipeline.artifact import Ranges
from pipeline.flow import run
from pipeline.plan import read_plan, tomllib
from pipeline.record import Remedy
from pipeline.remedies.search import find_remedies
from pipeline.remedies.trials import Trial
from pipeline.stages.quantize import Quantize
from pipeline.store import Store
from tests.pipeline.plan_folder import change

if TYPE_CHECKING:
    from tests.conftest import Command

METHOD = '[calibrate]\nmethod = "minmax"'


def remedies(folder: Path, store: Store) -> dict[str, Remedy]:
    plan = read_plan(folder / "plan.toml")
    made = run(plan, store, "validate")
    find_remedies(plan, store, made)
    return {variant.name: remedy for variant, remedy in made.remedies.items()}


def hold_to(folder: Path, sqnr_db: float) -> None:
    change(folder, "max_metric_drop = 0.3", f"max_metric_drop = 1.0\nmin_sqnr_db = {sqnr_db}")
    change(folder, '"fp32", "fp16", "int8"', '"fp32", "int8"')


def test_int8_within_its_bounds_needs_none(warm: Path) -> None:
    assert remedies(warm, Store(warm / "store")) == {}


def test_where_nothing_holds_all_that_was_tried_is_told(warm: Path) -> None:
    hold_to(warm, 300.0)
    store = Store(warm / "store")
    (remedy,) = remedies(warm, store).values()
    assert not remedy.holds
    assert remedy.toml == ""
    assert remedy.tried[0].startswith('[calibrate] method = "auto": top1 ')
    assert remedy.tried[1].startswith('[calibrate] method = "auto" and 1 layer left in FP32: top1 ')
    assert remedy.tried[2].startswith('[calibrate] method = "auto" and 3 layers left in FP32: top1 ')
    assert len(remedy.tried) == 3  # The next would leave nothing in INT8.
    assert all(trial in remedy.sentence for trial in remedy.tried)
    assert "bisect" in remedy.sentence
    again = Store(warm / "store")
    assert remedies(warm, again) == {"int8@onnxruntime": remedy}
    assert all(entry.served for entry in again.account)


def test_weights_of_4_bits_are_rounded_by_samples_before_layers_are_left_out(warm: Path) -> None:
    hold_to(warm, 300.0)
    change(warm, METHOD, f"{METHOD}\n[quantize]\nweight_bits = 4")
    (remedy,) = remedies(warm, Store(warm / "store")).values()
    assert [trial.split(": top1 ")[0] for trial in remedy.tried[:3]] == [
        '[calibrate] method = "auto"',
        '[calibrate] method = "auto" and [quantize] rounding = "gptq"',
        '[calibrate] method = "auto" and [quantize] rounding = "gptq" and 1 layer left in FP32',
    ]


def test_what_is_to_be_written_is_one_table(folder: Path) -> None:
    trial = Trial(Ranges(Path()), True, ("head",), 1, True)
    keys = {"rounding": "gptq", "exclude": ["head"]}
    assert tomllib.loads(trial.toml()) == {"calibrate": {"method": "auto"}, "quantize": keys}
    assert trial.plan(read_plan(folder / "plan.toml")).quantize == Quantize(rounding="gptq", exclude=("head",))
    assert Trial(Ranges(Path()), False, (), 0).toml() == ""


def spoil_the_dense_layer(folder: Path) -> None:
    """One weight of each column is so large that the others lose their bits; what it multiplies is always 0."""
    model = onnx.load(folder / "net.onnx")
    arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    arrays["gamma"][0], arrays["beta"][0], arrays["dense"][0] = 0.0, -1.0, 60.0
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    onnx.save(model, folder / "net.onnx")


def test_with_what_holds_the_plan_passes(folder: Path, command: Command) -> None:
    spoil_the_dense_layer(folder)
    change(folder, METHOD, "")
    hold_to(folder, 25.0)
    failed = command("run", folder / "plan.toml", "--store", folder / "store")
    assert failed.status == 5
    report = json.loads((folder / "trtforge-report" / "report.json").read_text())
    (remedy,) = [row["remedy"] for row in report["variants"] if row["remedy"]]
    assert remedy["holds"]
    assert "with 1 layer left in FP32: top1 " in remedy["sentence"]
    assert remedy["sentence"].endswith(
        "; INT8 then computes 1 of the convolutions and matrix products, 2 now. Write into the plan:"
    )
    assert tomllib.loads(remedy["toml"]) == {"quantize": {"exclude": ["MatMul_scores"]}}
    assert remedy["toml"].strip() in failed.out
    with (folder / "plan.toml").open("a") as plan:
        plan.write(remedy["toml"])
    passed = command("run", folder / "plan.toml", "--store", folder / "store")
    assert passed.status == 0, passed.err


def test_none_are_tried_where_the_plan_says_so(warm: Path) -> None:
    hold_to(warm, 300.0)
    change(warm, "html = false", "html = false\nnum_remedies = 0")
    assert remedies(warm, Store(warm / "store")) == {}
