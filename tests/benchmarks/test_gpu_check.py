"""`scripts/gpu_check` as far as it goes without a GPU: plans, models, engines ahead of time, and the page's numbers."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu_beside, gpu_check, gpu_report
from benchmarks.gpu_cases import BATCHES, cases_from_folder, own_case, plan_text
from benchmarks.gpu_report import Found
from benchmarks.gpu_steps import Step, Steps
from calibration.ranges.ranges_file import ranges_from_folder
from calibration.ranges.trt_cache import Cache, bytes_from_cache
from engines import backend
from engines.contract import DYNAMIC, GpuUse, TensorSpec
from engines.cuda import device
from pipeline.plan import read_plan
from tests.engines.nvinfer.pretended import PretendedContext, PretendedGpu, pretended_trt, runner_of
from tests.engines.python38 import python38

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check"


def gpu_checked(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *options], capture_output=True, text=True, check=False)


def test_without_a_gpu_it_says_so_in_one_sentence() -> None:
    if not backend("tensorrt").why_not_run():
        pytest.skip("there is a GPU with TensorRT here")
    done = gpu_checked()
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("gpu_check: tensorrt: is not installed; on a Jetson: ")
    assert done.stderr.endswith(" (scripts/gpu_check --dry-run does what needs none)\n")
    assert done.stderr.count("\n") == 1


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    done = gpu_checked(str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("nowhere: is no folder; give one with trained networks")
    done = gpu_checked(str(tmp_path), "--dry-run", "--work", str(tmp_path / "work"))
    assert done.returncode == 3
    assert "has none of the networks that are known" in done.stderr


def test_a_dry_run_makes_everything_but_what_runs(tmp_path: Path) -> None:
    here = ("--elsewhere", str(python38()))
    done = gpu_checked("--dry-run", "--work", str(tmp_path), "--build", "external_kernels = false", *here)
    assert done.returncode == 0, done.stderr
    doctor = (tmp_path / "steps" / "in-a-process-of-its-own-what-is-here.out").read_text()
    assert f"tensorrt: is called in a process of {python38()} (3.8." in doctor
    assert done.stdout.endswith(f"2 steps done, 0 failed; {tmp_path}\nNo engine was run: that needs a GPU.\n")
    plans = {path.name for path in (tmp_path / "own").glob("*.toml")}
    alone = {f"qdq-{precision}.toml" for precision in ("fp32", "fp16", "int8")}
    assert plans == {"qdq.toml", "native-tensorrt.toml", "native-ranges.toml"} | alone
    for name in plans:
        plan = read_plan(tmp_path / "own" / name)
        assert "tensorrt" in plan.variants.backends
        assert plan.benchmark.batch_sizes == BATCHES
        assert not plan.build.external_kernels
    if not backend("tensorrt_rtx").why_not_build():
        made = list((tmp_path / "store" / "build").glob("*/model.rtx.plan"))
        records = [json.loads(plan.with_name("record.json").read_text()) for plan in made]
        assert sorted(record["precision"] for record in records) == ["fp16", "fp32", "int8"]


def test_networks_of_a_folder(tmp_path: Path) -> None:
    own_case(tmp_path)
    (case,) = cases_from_folder(tmp_path)
    assert case.name == "own"
    (tmp_path / "plan.toml").write_text(plan_text(case, "report", ("int8",), ("tensorrt",), 'int8 = "native"'))
    plan = read_plan(tmp_path / "plan.toml")
    assert plan.model.inputs["image"].max == (32, 3, 32, 32)
    assert plan.data.metric == "", "it has no labels"
    assert plan.build.int8 == "native"
    with np.load(tmp_path / "own.npz") as stored:
        np.savez(tmp_path / "own.npz", **stored, y_test=np.zeros(len(stored["x_test"]), int))
    (labelled,) = cases_from_folder(tmp_path)
    (tmp_path / "plan.toml").write_text(plan_text(labelled, "report", ("int8",), ("tensorrt",), ""))
    assert read_plan(tmp_path / "plan.toml").data.metric == "top1"


def test_tensorrts_calibrator_gets_whole_batches(tmp_path: Path) -> None:
    own_case(tmp_path)
    with np.load(tmp_path / "own.npz") as stored:
        np.savez(tmp_path / "own.npz", **dict(stored) | {"x_calib": np.zeros((500, 3, 32, 32), np.float32)})
    (case,) = cases_from_folder(tmp_path)
    builds = gpu_check.builds_of(case, "", native=True)
    plans = gpu_check.plans_of(case, tmp_path / "plans", "tensorrt", builds)
    assert read_plan(plans["native-tensorrt"]).build.native_batch_size == 10, "of which 50 are 500"


def test_thresholds_beside_tensorrts_cache(tmp_path: Path) -> None:
    """Our ranges beside a cache that has the same thresholds, but for one that is twice as large."""
    own_case(tmp_path)
    check = checked(tmp_path)
    command = ("calibrate", tmp_path / "own.onnx", "--data", tmp_path / "own.npz", "--input", "image=x_calib")
    assert check.run("ranges", "pipeline", *command, "-o", tmp_path / "ranges"), check.steps.steps
    ours = ranges_from_folder(tmp_path / "ranges").tensors
    scales = {name: one.amax / 127 for name, one in ours.items() if one.amax > 0}
    scales["b"] *= 2
    cache = tmp_path / "calibration.cache"
    cache.write_bytes(bytes_from_cache(Cache("TRT-8503-EntropyCalibration2", scales | {"unknown": 1.0})))
    ratios = gpu_report.ratios(tmp_path / "ranges", cache)
    assert ratios.pop("b") == pytest.approx(0.5)
    assert ratios.keys() | {"b"} == scales.keys()
    assert list(ratios.values()) == pytest.approx([1.0] * len(ratios))
    page = "\n".join(gpu_report._ratios(Found("own", {}, ratios | {"b": 0.5}, [], {})))
    assert "0 %: 0.5000" in page
    assert "- `b`: 0.5000" in page


def checked(folder: Path, **steps: Any) -> gpu_check.Check:
    return gpu_check.Check(folder, "tensorrt", Steps(folder / "steps", **steps), "", folder / "cache")


def test_a_command_that_fails_is_a_step_that_failed(tmp_path: Path) -> None:
    check = checked(tmp_path)
    assert check.run("own: nothing", "pipeline", "build", tmp_path / "nowhere.onnx") == ""
    assert check.steps.steps[0].problem.startswith("exit status 2: trtforge: ")
    assert check.steps.steps[0].problem.endswith(f"({tmp_path}/steps/own-nothing.err)"), "all that it said is there"


def test_what_a_step_says_at_last_may_be_printed(tmp_path: Path) -> None:
    """As pytest does."""
    (tmp_path / "printing.py").write_text("print('2 failed'); exit(1)")
    steps = Steps(tmp_path / "steps")
    steps.run("printing", ["printing"], os.environ | {"PYTHONPATH": str(tmp_path)})
    assert steps.steps[0].problem == f"exit status 1: 2 failed ({tmp_path}/steps/printing.out)"


def test_steps_find_what_the_caller_put_on_pythonpath(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a TensorRT that lies in a folder of its own."""
    (tmp_path / "elsewhere.py").write_text("import pipeline; print(pipeline.__file__)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert checked(tmp_path).run("found", "elsewhere").startswith(str(ROOT)), "this project's own comes first"
    monkeypatch.delenv("PYTHONPATH")
    assert checked(tmp_path).run("not found", "elsewhere") == ""


HANGING = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
print(child.pid, flush=True)
time.sleep(1000)
"""


def is_alive(process: int) -> bool:
    """Neither gone, nor waiting for somebody to ask how it ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_command_that_hangs_is_ended_with_what_it_started(tmp_path: Path) -> None:
    (tmp_path / "hanging.py").write_text(HANGING)
    steps = Steps(tmp_path / "steps", seconds=8)
    assert steps.run("hanging", ["hanging"], os.environ | {"PYTHONPATH": str(tmp_path)}) == ""
    assert steps.steps[0].problem == f"not done after 8 s, and ended ({tmp_path}/steps/hanging.err)"
    child, until = int((tmp_path / "steps" / "hanging.out").read_text()), time.monotonic() + 300
    while is_alive(child):
        assert time.monotonic() < until, "the child lives on"
        time.sleep(0.05)


def test_what_was_done_is_not_done_again_where_a_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "counting.py").write_text(
        "import sys; from pathlib import Path; file = Path(sys.argv[1]); file.open('a').write('x'); "
        "print(file.read_text()); sys.exit(int(sys.argv[2]))"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    def said(title: str, status: int, *, resume: bool = True) -> str:
        steps = Steps(tmp_path / "steps", resume=resume)
        return steps.run(title, ["counting", str(tmp_path / title), str(status)], environment, status=5).strip()

    assert [said("works", 0), said("works", 0)] == ["x", "x"]
    assert [said("verdict", 5), said("verdict", 5)] == ["x", "x"], "it has its report"
    assert [said("breaks", 4), said("breaks", 4)] == ["", ""]
    assert (tmp_path / "breaks").read_text() == "xx", "what failed is tried again"
    assert said("works", 0, resume=False) == "xx"


class Scripted(Steps):
    """Answers instead of a machine with a GPU, for what is done with the answers."""

    broken: tuple[str, ...] = ()

    def run(self, title: str, words: list[str], environment: Mapping[str, str], *, status: int = 0) -> str:
        problem = "exit status 4: no" if title in self.broken else ""
        self.steps.append(Step(title, " ".join(words), 0.1, problem))
        self.after_each()
        if problem:
            return ""
        if words[:2] == ["pipeline", "run"]:
            plan = read_plan(Path(words[2]))
            (Path(words[2]).parent / plan.report.folder).mkdir()
            report = {"variants": [variant(p, b) for b in plan.variants.backends for p in plan.variants.precisions]}
            (Path(words[2]).parent / plan.report.folder / "report.json").write_text(json.dumps(report))
        if words[:2] == ["pipeline", "build"]:
            Path(words[-1]).touch()
        if words[0] == "benchmarks.gpu_beside":
            row = BESIDE | {"engine": words[words.index("--engine") + 1].partition("=")[0]}
            rows = [row, row | {"way": "trtexec", "missing": "trtexec: is not on PATH"}]
            Path(words[-1]).write_text(json.dumps(rows))
        if words[0] == "benchmarks.runner":
            median_us = {"by hand": 10.0, "ours": 13.0, "ours, CUDA graph": 16.0 if "fp16" in words[1] else 9.0}
            Path(words[-1]).write_text(json.dumps({"where": "a GPU", "median_us": median_us}))
        return "model.onnx\n" if "export" in words else "done\n"


def variant(precision: str, name: str) -> dict[str, Any]:
    latency = {"mean": 0.2, "p50": 0.2, "p90": 0.25, "p95": 0.25, "p99": 0.3}
    split = {"host_to_device_ms": 0.01, "compute_ms": 0.15, "device_to_host_ms": 0.002, "enqueue_ms": 0.004}
    row = {"batch_size": 8, "latency_ms": latency, "throughput_per_s": 40000.0, "split_ms": split}
    found = {"name": f"{precision}@{name}", "precision": precision, "backend": name, "artifact": f"{precision}.plan"}
    numbers: dict[str, Any] = {
        "size_bytes": 2048,
        "metric": 0.9,
        "metric_drop": 0.001,
        "num_int8": 4,
        "num_quantizable": 5,
    }
    numbers |= {
        "notes": ["CUDA graph: not captured"] if precision == "fp16" else [],
        "latency_missing": "it did not run",
    }
    timed = [] if name == "onnxruntime" and precision == "int8" else [row]
    return found | numbers | {"failures": [], "by_batch": timed, "device_memory_mib": 30.0}


BESIDE = {"engine": "fp32", "batch": 8, "way": "polygraphy", "p50_ms": 0.3, "device_p50_ms": None, "most_apart": 0.0}


def test_what_is_made_of_the_answers(tmp_path: Path) -> None:
    check = gpu_check.Check(tmp_path, "tensorrt", Scripted(tmp_path / "steps"), "", tmp_path / "cache")
    pages: list[str] = []

    def write() -> None:
        pages.append(gpu_report.page(check.steps.steps, check.found, {"gpu": "a GPU"}, whole=False))

    check.steps.after_each = write
    gpu_check.whole(check, own_case(tmp_path), native=True)
    (found,) = check.found
    assert list(found.reports) == ["qdq", "native-tensorrt", "native-ranges"]
    assert list(found.costs) == ["fp32", "fp16", "int8", "int8 native-tensorrt", "int8 native-ranges"]
    assert [step.problem for step in check.steps.steps if step.problem] == [
        "it wrote none, or there are no ranges",
        "ours, CUDA graph 6.0 µs more than by hand (10.0 µs), at most 5 µs or 2% is wanted",
    ]
    page = gpu_report.page(check.steps.steps, check.found, {"gpu": "a GPU", "tensorrt": "8.5.3.1"})
    assert (
        "| native-tensorrt | int8@tensorrt | 2 | 4 of 5 | 0.9 | 0.001 | passed | 8 | 0.2000 | 0.3000 | 40,000 |" in page
    )
    assert "| qdq | fp32@tensorrt | 8 | 0.0100 | 0.1500 | 0.0020 | 0.0040 | 30 |" in page
    assert "| qdq | int8@onnxruntime | 2 | 4 of 5 | 0.9 | 0.001 | passed | it did not run | | | |" in page
    assert "- qdq, fp16@tensorrt: CUDA graph: not captured" in page
    assert "| fp32 | 8 | trtexec | trtexec: is not on PATH | | | | |" in page
    assert "| fp16 | 10.00 | 13.00 | +3.00 | 16.00 | +6.00 |" in page
    assert "$ benchmarks.runner fp16.plan --backend tensorrt --json" in page
    assert "Not finished" not in page
    assert len(pages) > len(check.steps.steps), "after each step there is a page"
    assert "**Not finished**" in pages[3]
    assert "| qdq | fp32@tensorrt | 8 |" in pages[3], "what was found is in it before the network is done"


def test_engines_in_each_way_that_the_generation_has(tmp_path: Path) -> None:
    if reason := backend("tensorrt_rtx").why_not_build():
        pytest.skip(reason)
    steps = Scripted(tmp_path / "steps")
    build = "external_kernels = false"
    gpu_check.with_options(gpu_check.Check(tmp_path, "tensorrt_rtx", steps, build, tmp_path / "cache"))
    titles = [step.title for step in steps.steps]
    assert titles == ["own: level 5", "own: level 5, judged", "own: as usual", "own: offline"], "it has no others"
    assert "--optimization-level 5 -o" in steps.steps[0].command
    assert "--no-external-kernels" in steps.steps[0].command
    assert "--max-shapes image:32x3x32x32" in steps.steps[0].command


def test_a_plan_that_ends_early_leaves_each_precision_its_turn(tmp_path: Path) -> None:
    steps = Scripted(tmp_path / "steps")
    steps.broken = ("own: qdq", "own: qdq-int8")
    check = gpu_check.Check(tmp_path, "tensorrt", steps, "", tmp_path / "cache")
    gpu_check.whole(check, own_case(tmp_path), native=False)
    (found,) = check.found
    assert list(found.reports) == ["qdq-fp32", "qdq-fp16"]
    assert list(found.costs) == ["fp32", "fp16"]
    assert [step.title for step in steps.steps if step.problem == "exit status 4: no"] == ["own: qdq", "own: qdq-int8"]


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretendedGpu:
    """Our runner on a pretended GPU, for what is timed beside others."""
    gpu = PretendedGpu()
    trt = pretended_trt(gpu, lambda: PretendedContext(gpu))

    @contextmanager
    def ours(name: str, plan: Path, use: GpuUse) -> Iterator[Any]:
        with runner_of(gpu, tmp_path, trt, use) as runner:
            yield runner

    monkeypatch.setattr(gpu_beside, "ours", ours)
    monkeypatch.setenv("PATH", str(tmp_path))
    return gpu


GIVEN = argparse.Namespace(backend="tensorrt", onnx=Path("none.onnx"), seconds=0.05)


def test_beside_each_other_with_what_is_there(pretended: PretendedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def polygraphys(name: str, plan: Path) -> Iterator[Any]:
        yield lambda feed: {"y": feed["x"] * 2 + 0.25}

    monkeypatch.setattr(gpu_beside, "polygraphys", polygraphys)
    rows = {row["way"]: row for row in gpu_beside._all_of(GIVEN, ("fp32", Path("a.plan")), 2)}
    assert list(rows) == [
        "ONNX Runtime CUDA, fp32", "ours", "ours, no CUDA graph", "polygraphy",
        "ours, 1 in flight", "ours, 2 in flight", "ours, 4 in flight", "trtexec",
    ]  # fmt: skip
    assert rows["ONNX Runtime CUDA, fp32"]["missing"].startswith("onnxruntime: ")
    assert rows["trtexec"]["missing"] == "trtexec: is not on PATH"
    assert rows["ours"]["most_apart"] == 0
    assert rows["polygraphy"]["most_apart"] == pytest.approx(0.25)
    assert rows["ours"]["device_p50_ms"] > 0
    assert rows["polygraphy"]["device_p50_ms"] is None
    assert all(rows[f"ours, {number} in flight"]["samples_per_s"] > 0 for number in (1, 2, 4))


def test_what_breaks_beside_ours_is_missing_and_no_more(
    pretended: PretendedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def polygraphys(name: str, plan: Path) -> Iterator[Any]:
        def infer(feed: object) -> None:
            raise RuntimeError("no libcudart")

        yield infer

    monkeypatch.setattr(gpu_beside, "polygraphys", polygraphys)
    rows = {row["way"]: row for row in gpu_beside._all_of(GIVEN, ("fp32", Path("a.plan")), 2)}
    assert rows["polygraphy"]["missing"] == "RuntimeError: no libcudart"
    assert rows["ours"]["p50_ms"] > 0
    (row,) = gpu_beside._all_of(GIVEN, ("fp32", Path("a.plan")), 9)
    assert row["way"] == "ours"
    assert "the engine's profile goes from (1, 2) to (4, 2)" in row["missing"]


TRTEXEC = """#!/bin/sh
[ "$1" = "--loadEngine=broken.plan" ] && { echo "no engine" >&2; exit 1; }
rest="max = 0.9 ms, mean = 0.21 ms"
echo "[11/25/2026-18:00:00] [I] Throughput: 5000 qps"
echo "[11/25/2026-18:00:00] [I] Latency: min = 0.1 ms, $rest, median = 0.2 ms, percentile(99%) = 0.29 ms"
echo "[11/25/2026-18:00:00] [I] Enqueue Time: min = 0.1 ms, $rest, median = 0.004 ms, percentile(99%) = 0.1 ms"
echo "[11/25/2026-18:00:00] [I] H2D Latency: min = 0.01 ms, $rest, median = 0.03 ms, percentile(99%) = 0.1 ms"
echo "[11/25/2026-18:00:00] [I] GPU Compute Time: min = 0.1 ms, $rest, median = 0.15 ms, percentile(99%) = 0.19 ms"
echo "[11/25/2026-18:00:00] [I] D2H Latency: min = 0.01 ms, $rest, median = 0.02 ms, percentile(99%) = 0.1 ms"
echo "[11/25/2026-18:00:00] [I] Total GPU Compute Time: 3 s"
echo "$@" > "$(dirname "$0")/given"
"""
"""Its lines, and their order, are those of samples/common/sampleReporting.cpp in NVIDIA's TensorRT repository."""


def test_trtexec_where_it_is_and_where_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = (TensorSpec("image", "float32", (DYNAMIC, 3, 32, 32)),)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (tmp_path / "trtexec").write_text(TRTEXEC)
    (tmp_path / "trtexec").chmod(0o755)
    row = gpu_beside.trtexecs(("fp32", Path("fp32.plan")), inputs, 8, 1.0)
    assert (row["p50_ms"], row["device_p50_ms"]) == (0.2, 0.15)
    assert "--shapes=image:8x3x32x32" in (tmp_path / "given").read_text()
    row = gpu_beside.trtexecs(("fp32", Path("broken.plan")), inputs, 8, 1.0)
    assert row["missing"] == "trtexec: ended with 1 (no engine)"
    (tmp_path / "trtexec").unlink()
    row = gpu_beside.trtexecs(("fp32", Path("fp32.plan")), inputs, 8, 1.0)
    assert row["missing"] == "trtexec: is not on PATH"


def test_inputs_are_drawn_alike() -> None:
    inputs = (TensorSpec("image", "float32", (DYNAMIC, 2)), TensorSpec("size", "int64", (3,)))
    first, second = gpu_beside.drawn(inputs, 4), gpu_beside.drawn(inputs, 4)
    assert first["image"].shape == (4, 2)
    assert first["size"].dtype == np.int64
    np.testing.assert_array_equal(first["image"], second["image"])


def test_beside_wants_a_gpu(tmp_path: Path) -> None:
    if not device.why_no_gpu():
        pytest.skip("there is a GPU here")
    command = [sys.executable, "-m", "benchmarks.gpu_beside", "--onnx", "a.onnx", "--engine", "a=b", "--json", "c"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
