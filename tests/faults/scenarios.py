"""What is tried: calls of the command in a folder, what each makes, and whether that is whole."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from pipeline.artifact import digest_of_path
from pipeline.gate.baseline import generations, stored_baseline
from pipeline.output import checked_record, record_of
from tests.pipeline.nightly.fleets import FLEET
from tests.pipeline.plan_folder import PLAN, network

STORE = ".trtforge"
DATA = ("--data", "data.npz", "--input", "image=x_calibration")
EVALUATION = ("--data", "data.npz", "--input", "image=x_evaluation")
SHAPES = tuple(f"--{which}-shapes=image:{n}x4x8x8" for which, n in (("min", 1), ("opt", 4), ("max", 8)))
PREPARING = (
    ("calibrate", "net.onnx", *DATA, "--method", "minmax", "-o", "ranges"),
    ("calibrate", "net.onnx", *EVALUATION, "--method", "minmax", "-o", "other-ranges"),
    ("quantize", "net.onnx", "--ranges", "ranges", "-o", "int8.onnx"),
)
"""Calls after `prepare`, for the verbs that need their results."""
GATE = (
    "gate",
    "--candidate",
    "int8.onnx",
    "--baseline",
    "net.onnx",
    *EVALUATION,
    "--budget",
    "size_mib <= 40",
    "--no-html",
)
GATES = ((*GATE, "-o", "gate-1"), (*GATE[:2], "other.onnx", *GATE[3:], "-o", "gate-2"))
ONE_PLAN = FLEET.replace("*/plan.toml", "plan.toml")
SET, BASELINE = ("baseline", "set", "good"), (f"{STORE}/baselines/good",)
CHANGING = ("timings", "gate", "report", "nightly", ".tar")
"""In the names of targets: with times inside, so that no two are equal."""


@dataclass(frozen=True)
class Scenario:
    """One call of the command in a folder that `prepare` made."""

    name: str
    arguments: tuple[str, ...]
    targets: tuple[str, ...]
    """What it makes in the folder, beside the store."""
    before: tuple[tuple[str, ...], ...] = ()
    """Calls that make what is there before."""
    statuses: tuple[int, ...] = (0,)
    """How it may end where nothing happens."""
    days_ago: int = 0
    """So long before the call results were last used."""


def _verbs() -> Iterator[Scenario]:
    """Each verb with a target: as new, and in the place of an older one that was made of another model."""
    ranges = ("--ranges", "ranges")
    table: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
        "export": (("export", "{model}", "-o", "new.onnx"), ("new.onnx",), ()),
        "calibrate": (("calibrate", "{model}", *DATA, "-o", "new-ranges"), ("new-ranges",), ()),
        "cast": (("cast", "net.onnx", *ranges, "-o", "new.onnx"), ("new.onnx",), ("export", "other.onnx")),
        "quantize": (("quantize", "net.onnx", *ranges, "-o", "new.onnx"), ("new.onnx",), ("export", "other.onnx")),
        "build": (("build", "{model}", *SHAPES, "-o", "engine.onnx"), ("engine.onnx", "engine.onnx.json"), ()),
        "infer": (("infer", "{model}", *EVALUATION, "-o", "outputs.json"), ("outputs.json",), ()),
        "lint": (("lint", "{model}", *EVALUATION, "-o", "findings.json"), ("findings.json",), ()),
        "bisect": (("bisect", "net.onnx", "int8.onnx", *EVALUATION, "-o", "suspects.json"), ("suspects.json",), ()),
        "benchmark": (
            ("benchmark", "{model}", "--min-queries=8", "--min-seconds=0", "--warmup-seconds=0", *EVALUATION,
             "-o", "timings.json"), ("timings.json",), (),
        ),
        "validate": (
            ("validate", "net.onnx", "int8.onnx", "--precision", "int8", *EVALUATION, "-o", "verdict.json"),
            ("verdict.json",), (),
        ),
        "ranges convert": (
            ("ranges", "convert", "ranges", "--tensorrt", "8.5.2", "-o", "new.cache"), ("new.cache",), (),
        ),
        "ranges merge": (("ranges", "merge", "ranges", "other-ranges", "-o", "new-ranges"), ("new-ranges",), ()),
    }  # fmt: skip
    for name, (arguments, targets, other) in table.items():
        of = tuple(argument.format(model="net.onnx") for argument in arguments)
        old = (*other, "-o", targets[0]) if other else tuple(a.format(model="other.onnx") for a in arguments)
        statuses = (0, 5) if name == "validate" else (0,)
        yield Scenario(name, of, targets, statuses=statuses)
        yield Scenario(f"{name} again", of, targets, (old,), statuses)


RUN = ("run", "plan.toml")
NIGHTLY = ("nightly", "fleet.toml", "--always")
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("run", RUN, ("trtforge-report",)),
        Scenario("run again", RUN, ("trtforge-report",), (RUN,)),
        Scenario("pack", ("pack", "plan.toml", "-o", "bundle.tar"), ("bundle.tar",), (RUN,)),
        Scenario("pack again", ("pack", "plan.toml", "-o", "bundle.tar"), ("bundle.tar",),
                 (RUN, ("pack", "plan.toml", "-o", "bundle.tar"))),
        Scenario("gate", (*GATE, "-o", "new-gate"), ("new-gate",), statuses=(0, 6)),
        Scenario("gate again", (*GATE, "-o", "new-gate"), ("new-gate",), ((*GATE, "-o", "new-gate"),), (0, 6)),
        Scenario("baseline set", (*SET, "gate-2"), BASELINE, (*GATES, (*SET, "gate-1"))),
        Scenario("baseline rollback", ("baseline", "rollback", "good", "--to", "1"), BASELINE,
                 (*GATES, (*SET, "gate-1"), (*SET, "gate-2")), (0, 2)),
        Scenario("nightly", NIGHTLY, ("nightly",), statuses=(0, 3)),
        Scenario("nightly again", NIGHTLY, ("nightly",), (NIGHTLY,), (0, 3)),
        Scenario("store gc", ("store", "gc", "--delete"), (), (RUN,), days_ago=30),
        *_verbs(),
    )
}  # fmt: skip


def prepare(folder: Path) -> None:
    """A network, another of its shape, their data, and a plan; what the verbs need beside."""
    folder.mkdir()
    onnx.save(network(), folder / "net.onnx")
    other = network()
    for tensor in other.graph.initializer:
        if tensor.name == "kernel":
            tensor.CopyFrom(onnx.numpy_helper.from_array(1.5 * onnx.numpy_helper.to_array(tensor), "kernel"))
    onnx.save(other, folder / "other.onnx")
    images = np.random.default_rng(12).normal(size=(36, 4, 8, 8)).astype(np.float32)
    np.savez(
        folder / "data.npz", x_calibration=images[:12], x_evaluation=images[12:], y_evaluation=np.arange(24) % 3
    )  # fmt: skip
    plan = PLAN.replace('"fp32", "fp16", "int8"', '"fp32", "int8"').replace("max_metric_drop = 0.3", "derived = false")
    plan = f"{plan}\n[validate.fp32]\nderived = false\n[gate]\nmax_other_load = 1.0\n"
    plan = plan.replace("[benchmark.protocol]", "[benchmark]\nmonitor_ms = 0\n[benchmark.protocol]")
    (folder / "plan.toml").write_text(plan)
    (folder / "fleet.toml").write_text(ONE_PLAN)


def let_pass(days: int, folder: Path) -> None:
    """Results were last used so many days ago."""
    then = time.time() - days * 86_400
    for record in folder.glob(f"{STORE}/*/*/result.json"):
        os.utime(record, (then, then))


def results_in_store(folder: Path) -> dict[str, str]:
    """Recipe -> content, of what does not hold times."""
    return {
        f"{entry.parent.parent.name}/{entry.parent.name}": json.loads(entry.read_text())["content"]
        for entry in folder.glob(f"{STORE}/*/*/result.json")
        if entry.parent.parent.name not in ("benchmark", "build")
    }


def state_of(target: Path) -> str:
    """What there is: nothing, or the digest of it without times; an engine's with its record.

    Raises:
        Exception: it is half.
    """
    if f"{target.parent.name}/{target.name}" in BASELINE[0]:
        return _baseline_state(target)
    if target.name.endswith(".onnx.json"):
        return "with its engine"
    if not target.exists():
        return "nothing"
    if target.is_dir() and (target / "report.json").is_file():
        for variant in json.loads((target / "report.json").read_text())["variants"]:
            for timing in variant["by_batch"]:
                np.load(target / timing["queries_file"])
        return "whole"
    if any(word in target.name for word in CHANGING):
        for file in target.rglob("*.json") if target.is_dir() else [target] if target.suffix == ".json" else []:
            json.loads(file.read_text())
        return "whole"
    checked_record(target)
    if target.with_name(f"{target.name}.json").is_file():
        assert record_of(target)["backend"] == "onnxruntime"
    return digest_of_path(target)


def _baseline_state(folder: Path) -> str:
    """Its generations by their engines, the current one, which is whole, with a star, withdrawn ones in brackets."""
    name, store, words = folder.name, folder.parent.parent, []
    baseline = stored_baseline(name, store)
    for generation in generations(name, store):
        digest = generation.record.engine.digest[:8]
        if generation.is_current:
            assert baseline is not None
            assert baseline.record == generation.record
        words.append(f"{digest}*" if generation.is_current else f"({digest})" if generation.withdrawn_on else digest)
    return " ".join(words) or "nothing"


def litter(folder: Path, expected: set[str]) -> list[str]:
    """What lies there beside what is expected; work folders of the store included."""
    left = [path.name for path in folder.iterdir() if path.name not in expected]
    places = (f"{STORE}/tmp/*", f"{STORE}/baselines/.*.????????", f"{STORE}/pins/.*.????????", "nightly/**/.*.????????")
    work = (path for where in places for path in folder.glob(where))
    return left + [str(path.relative_to(folder)) for path in work]


def copied(template: Path, folder: Path) -> Path:
    """A fresh copy of a prepared folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder, symlinks=True)
    return folder
