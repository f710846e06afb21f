"""Why something is made again: the first cause, in words."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline.flow import run
from pipeline.nightly.outcome import REFITTED
from pipeline.nightly.walk import walk
from pipeline.nightly.why import ONLY_WEIGHTS, History, why_made, why_missing
from pipeline.plan import read_plan
from pipeline.store import Missing, Store
from tests.conftest import Command, plan_in, tiny_in


@pytest.fixture(scope="module")
def as_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny plan and its store: it was run until validate, in a folder `work` beside this one."""
    work = tmp_path_factory.mktemp("why") / "work"
    work.mkdir()
    tiny_in(work)
    run(read_plan(plan_in(work)), Store(work / "store"), "validate")
    return work.rename(work.with_name("as_made"))


@pytest.fixture
def plan(as_made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The plan where it was run, with its store as the run left it."""
    work = as_made.with_name("work")
    shutil.copytree(as_made, work, symlinks=True)
    monkeypatch.chdir(work)
    yield work / "plan.toml"
    shutil.rmtree(work)


@pytest.fixture
def store(plan: Path) -> Path:
    return plan.parent / "store"


def causes(plan: Path, store: Path, *settings: str) -> list[str]:
    walked = walk(read_plan(plan, settings), store, "validate")
    return [] if walked.missing is None else why_missing(walked.missing, History(store))


def test_nothing_changed_and_a_walk_makes_nothing(plan: Path, store: Path) -> None:
    files = sorted(store.rglob("*"))
    assert causes(plan, store) == []
    causes(plan, store, "calibrate.method=mse")
    assert sorted(store.rglob("*")) == files


def test_options_of_the_first_stage_that_differs(plan: Path, store: Path) -> None:
    assert causes(plan, store, "calibrate.method=mse") == ["[calibrate] method minmax -> mse"]
    assert causes(plan, store, 'quantize.exclude=["convolved"]') == ["[quantize] exclude[0] none -> convolved"]
    assert causes(plan, store, "data.calibration.limit=10") == [
        f"lint: its data changed: {plan.parent / 'data.npz'} (12 samples) -> {plan.parent / 'data.npz'} (10 samples)"
    ]


def test_a_model_that_changed_is_named_also_where_export_was_made_already(plan: Path, store: Path) -> None:
    model = onnx.load(plan.parent / "tiny.onnx")
    (kernel,) = (tensor for tensor in model.graph.initializer if tensor.name == "kernel")
    kernel.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(kernel) * np.float32(0.5), "kernel"))
    onnx.save(model, plan.parent / "tiny.onnx")
    expected = [f"export: its source changed, {plan.parent / 'tiny.onnx'}"]
    assert causes(plan, store) == expected
    run(read_plan(plan), Store(store), "export")
    assert causes(plan, store) == expected, "what is missing now is lint's result, for the same cause"


def test_another_model_is_no_earlier_version_of_this_one(plan: Path, store: Path) -> None:
    other = plan.parent / "other"
    other.mkdir()
    for file in ("data.npz", "plan.toml"):
        shutil.copy(plan.parent / file, other / file)
    model = onnx.load(plan.parent / "tiny.onnx")
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[::-1]
    onnx.save(model, other / "tiny.onnx")
    assert causes(other / "plan.toml", store) == ["export: nothing like it is in the store"]


def test_a_result_that_is_gone_is_said_to_be(plan: Path, store: Path) -> None:
    shutil.rmtree(store / "calibrate")
    assert causes(plan, store) == ["calibrate: nothing like it is in the store"]


def test_damaged_records_are_skipped(plan: Path, store: Path) -> None:
    for file in (store / "calibrate").glob("*/recipe.json"):
        file.write_text("{")
    assert causes(plan, store, "calibrate.method=mse") == ["calibrate: nothing like it is in the store"]


def test_the_verb_tells_each_variant_and_of_a_digest(plan: Path, store: Path, command: Command) -> None:
    fresh = command("why", plan, "--store", store)
    assert (fresh.status, [line.partition(":")[2] for line in fresh.out.splitlines()]) == (
        0, [" up to date, 8 results", " up to date, 10 results"],
    )  # fmt: skip
    stale = command("why", plan, "int8@onnxruntime", "--set", "calibrate.method=mse", "--store", store)
    assert stale.out == "int8@onnxruntime: calibrate would be made: [calibrate] method minmax -> mse\n"
    again = read_plan(plan, ["calibrate.method=mse"])
    opened = Store(store)
    run(again, opened, "calibrate")
    digest = opened.account[-1].digest
    assert command("why", digest[:12], "--store", store).out == "[calibrate] method minmax -> mse\n"
    assert why_made(opened.find(digest), History(store)) == ["[calibrate] method minmax -> mse"]
    for record in (store / "calibrate").glob("*/result.json"):  # Which of them was served last says nothing of that.
        if record.parent.name != digest:
            os.utime(record, (2e9, 2e9))
    assert why_made(opened.find(digest), History(store)) == ["[calibrate] method minmax -> mse"]


def test_the_verb_refuses_what_has_no_meaning(plan: Path, store: Path, command: Command) -> None:
    assert command("why", plan, "--store", "none").err == (
        "trtforge: none: there is no store; run a plan first, or name its store with --store\n"
    )
    typo = command("why", plan, "int8@onnxruntim", "--store", store)
    assert typo.status == 2
    assert "there is no variant 'int8@onnxruntim'; did you mean 'int8@onnxruntime'?" in typo.err
    assert command("why", "abc", "int8@onnxruntime", "--store", store).status == 2


def test_refits_are_read_in_what_commands_tell_here_and_on_devices() -> None:
    text = """trtforge: build     fe636fdd586f  made in 1.4 s  fp32@tensorrt
trtforge: refit     7232e8391a0d  made in 0.8 s  fp16@tensorrt
[me@orin] trtforge: refit     8f0c11aa92b4  made in 12.5 s  pruned+int8@tensorrt
[me@orin] trtforge: refit     0fb3ac0de551  served  fp32@tensorrt
trtforge: why: trtforge: refit     7232e8391a0d  made in 0.8 s  another@tensorrt
"""
    assert REFITTED.findall(text) == ["fp16@tensorrt", "pruned+int8@tensorrt"]


def test_a_refit_whose_engine_is_gone_still_says_what_it_was(tmp_path: Path) -> None:
    recipe = {"stage": "refit", "inputs": [{"digest": "aa"}, {"digest": "bb"}], "versions": {}, "options": {}}
    missing = Missing("refit", "cc", "fp32@tensorrt", recipe, ("engine.plan", "model.onnx"))
    assert why_missing(missing, History(tmp_path)) == [ONLY_WEIGHTS]


def test_of_two_that_are_as_like_it_the_one_of_the_same_engine_counts(tmp_path: Path) -> None:
    def recipe(engine: str, samples: str) -> dict[str, Any]:
        inputs = [{"digest": engine}, {"digest": samples}]
        return {"stage": "infer", "inputs": inputs, "versions": {}, "options": {}, "source": "ab"}

    words = {"e1": "model.onnx", "e2": "build/model.onnx", "s1": "data.npz (64 samples)", "s2": "data.npz (76 samples)"}
    for made, (engine, samples) in enumerate((("e1", "s1"), ("e2", "s2"))):
        folder = tmp_path / "infer" / f"{engine}{samples}"
        folder.mkdir(parents=True)
        (folder / "recipe.json").write_text(json.dumps(recipe(engine, samples)))
        os.utime(folder / "recipe.json", (made, made))
        inputs = [words[engine], words[samples]]
        (folder / "result.json").write_text(json.dumps({"content": f"{made}", "inputs": inputs}))
    missing = Missing("infer", "cc", "fp32@tensorrt", recipe("e1", "s2"), (words["e1"], words["s2"]))
    assert why_missing(missing, History(tmp_path)) == [
        "infer: its samples changed: data.npz (64 samples) -> data.npz (76 samples)"
    ]
