"""All that needs a GPU, in one run: builds, answers, calibration, timings, the runner's cost, with the real TensorRT.

Usage: scripts/gpu_check [FOLDER] [--work DIR] [--output FILE] [--backend NAME] [--dry-run]

FOLDER: trained networks (see `benchmarks/gpu_cases.py`); without it, a small network that is made here. Every step is a
command that can be given again. Where there is a GPU, a step that cannot be done is a failure (exit status 5), as is a
verdict out of bound, or a runner that costs too much. What this generation of TensorRT does not have (native INT8 from
11 on) is no step; runners of others are named where they are missing. Without a GPU: one sentence and exit status 3;
with --dry-run all that needs none: plans, ranges, models, and engines of TensorRT for RTX.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import gpu_report
from benchmarks.gpu_cases import Case, cases_from_folder, own_case, plan_text
from benchmarks.gpu_report import Found, Step
from benchmarks.runner import too_much
from engines import backend, cuda
from engines.capability import capability_of
from pipeline.errors import CheckFailed, Unavailable, exit_status

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = ("fp32", "fp16", "int8")
NATIVE = {
    "tensorrt": 'int8 = "native"\nnative_scales = "tensorrt"',
    "ranges": 'int8 = "native"\nnative_scales = "ranges"',
}
"""INT8 by TensorRT's own calibrator, from the samples and from our ranges."""


@dataclass
class Check:
    """One run: where it works, and what it has done."""

    work: Path
    backend: str
    build: str = ""
    """TOML for [build] of every plan for TensorRT."""
    cache: Path = Path()
    """Where the present case's kernel timings and calibration caches are kept."""
    steps: list[Step] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)

    def run(self, title: str, *command: str | Path, may_fail_verdicts: bool = False) -> str:
        """Run a command of this project as a step; what it printed. Empty where it failed."""
        words = [str(word) for word in command]
        environment = os.environ | {"XDG_CACHE_HOME": str(self.cache), "PYTHONPATH": str(ROOT)}
        print(f"gpu_check: {title}", file=sys.stderr, flush=True)
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        problem = "" if not done.returncode else f"exit status {done.returncode}: {_last_line(done.stderr)}"
        self.steps.append(Step(title, f"python -m {shlex.join(words)}", time.perf_counter() - began, problem))
        if problem:
            print(f"gpu_check: {title}: {problem}", file=sys.stderr, flush=True)
        return "" if done.returncode and not may_fail_verdicts else done.stdout

    def verb(self, title: str, verb: str, plan: Path) -> str:
        """One verb on a plan. ``run`` ends with 5 where a verdict is out of bound, and has its report all the same."""
        store = ("--store", self.work / "store")
        return self.run(title, "pipeline", verb, plan, *store, may_fail_verdicts=verb == "run")


def plans_of(case: Case, folder: Path, name: str, builds: Mapping[str, str]) -> dict[str, Path]:
    """The plans that are run for a case, written; ``builds``: of each title, TOML for [build]."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {}
    for title, build in builds.items():
        precisions, backends = (PRECISIONS, (name, "onnxruntime")) if title == "qdq" else (("fp32", "int8"), (name,))
        texts[title] = plan_text(case, f"report-{title}", precisions, backends, build)
    paths = {title: folder / f"{title}.toml" for title in texts}
    for title, path in paths.items():
        path.write_text(texts[title])
    return paths


def builds_of(also: str, *, native: bool) -> dict[str, str]:
    """Of each plan, TOML for [build]: Q/DQ beside ONNX Runtime, and native INT8 in two ways."""
    builds = {"qdq": 'int8 = "qdq"'} | ({f"native-{scales}": text for scales, text in NATIVE.items()} if native else {})
    return {title: f"{text}\n{also}" for title, text in builds.items()}


def whole(check: Check, case: Case, *, native: bool) -> None:
    """Everything for one network, on the GPU."""
    folder = check.work / case.name
    plans = plans_of(case, folder, check.backend, builds_of(check.build, native=native))
    check.cache = folder / "cache"
    reports: dict[str, dict[str, Any]] = {}
    for title, plan in plans.items():
        report = folder / f"report-{title}" / "report.json"
        if check.verb(f"{case.name}: {title}", "run", plan) and report.exists():
            reports[title] = json.loads(report.read_text())
    ranges = check.verb(f"{case.name}: our ranges", "calibrate", plans["qdq"]).strip()
    caches = sorted(check.cache.glob("trtforge/calibration/*.cache"), key=lambda file: file.stat().st_mtime)
    ratios: dict[str, float] = {}
    if native and ranges and caches:
        ratios = gpu_report.ratios(Path(ranges), caches[-1])
    elif native:
        check.steps.append(Step(f"{case.name}: TensorRT's own cache", "", 0.0, "it wrote none, or there are no ranges"))
    model = check.verb(f"{case.name}: FP32 model", "export", plans["qdq"]).strip()
    engines = engines_of(reports, check.backend)
    beside = timed_beside(check, case, model, engines) if model and engines else []
    costs = {name: cost for name, plan in engines.items() if (cost := cost_of(check, case, name, plan))}
    check.found.append(Found(case.name, reports, ratios, beside, costs))


def engines_of(reports: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, str]:
    """Variant -> plan, of that backend; native ones are told apart by the plan they come from."""
    found: dict[str, str] = {}
    for title, report in reports.items():
        for variant in report["variants"]:
            if variant["backend"] == name and (title == "qdq" or variant["precision"] == "int8"):
                found[variant["precision"] if title == "qdq" else f"int8 {title}"] = variant["artifact"]
    return found


def timed_beside(check: Check, case: Case, model: str, engines: Mapping[str, str]) -> list[dict[str, Any]]:
    """Other runners on the same plans; Polygraphy's must be there, for this project needs it anyway."""
    out = check.work / case.name / "beside.json"
    named = [part for name, plan in engines.items() for part in ("--engine", f"{name}={plan}")]
    options = ("--backend", check.backend, "--onnx", model, *named, "--json", str(out))
    check.run(f"{case.name}: beside other runners", "benchmarks.gpu_beside", *options)
    rows: list[dict[str, Any]] = json.loads(out.read_text()) if out.exists() else []
    for reason in dict.fromkeys(row["missing"] for row in rows if row["way"] == "polygraphy" and "missing" in row):
        check.steps.append(Step(f"{case.name}: beside other runners", "", 0.0, reason))
    return rows


def cost_of(check: Check, case: Case, name: str, plan: str) -> dict[str, Any]:
    """Our runner's cost for the host on one plan."""
    out = check.work / case.name / "cost.json"
    out.unlink(missing_ok=True)
    check.run(
        f"{case.name}: cost of the runner, {name}", "benchmarks.runner", plan, "--backend", check.backend, "--json", out
    )
    cost = dict(json.loads(out.read_text())) if out.exists() else {}
    if problem := too_much(cost.get("median_us", {})):
        check.steps.append(Step(f"{case.name}: cost of the runner, {name}", "", 0.0, problem))
    return cost


def contract(check: Check) -> None:
    """The tests that every backend passes; a skip is a failure here."""
    wanted = f"{check.backend} and not without_the_runtime and not compute_capability"
    wanted += " and not rtx" if check.backend == "tensorrt" else ""
    said = check.run("contract tests", "pytest", "-q", "-rs", "tests/engines/test_contract.py", "-k", wanted)
    skipped = [line for line in said.splitlines() if line.startswith("SKIPPED")]
    if skipped:
        check.steps.append(Step("contract tests", "", 0.0, f"{len(skipped)} skipped, the first: {skipped[0]}"))


def dry(check: Check, case: Case) -> None:
    """What of it needs no GPU: plans for each way, models and ranges for TensorRT, engines ahead of time."""
    plans_of(case, check.work / case.name, "tensorrt", builds_of(check.build, native=True))
    check.cache = check.work / case.name / "cache"
    ahead = "tensorrt_rtx"
    if reason := backend(ahead).why_not_build():
        check.steps.append(Step(f"{case.name}: engines ahead of time", "", 0.0, reason))
        plan = check.work / case.name / "qdq.toml"
        check.verb(f"{case.name}: models for TensorRT", "quantize", plan)
        return
    plans = plans_of(case, check.work / case.name / "rtx", ahead, builds_of("", native=False))
    check.verb(f"{case.name}: engines ahead of time", "build", plans["qdq"])


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="trained networks")
    parser.add_argument("--work", type=Path, default=Path(".trtforge/gpu_check"), help="plans, store, caches, reports")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/gpu.md", help="the page to write")
    parser.add_argument("--backend", default="tensorrt", choices=("tensorrt", "tensorrt_rtx"))
    parser.add_argument(
        "--build", default="", metavar="TOML", help="also for [build], such as 'external_kernels = false'"
    )
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: all that needs none; writes no page")
    given = parser.parse_args()
    if given.folder is not None and not given.folder.is_dir():
        parser.error(f"{given.folder}: is no folder; give one with trained networks")
    return given


def checked(given: argparse.Namespace) -> Check:
    """Run what can be run.

    Raises:
        Unavailable: there is no GPU, or no TensorRT, and it is no dry run.
        CheckFailed: a step failed.
    """
    reason = "" if given.dry_run else backend(given.backend).why_not_run()
    if reason:
        raise Unavailable(f"{reason} (scripts/gpu_check --dry-run does what needs none)")
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    check = Check(work, given.backend, given.build)
    cases = [own_case(work), *(cases_from_folder(given.folder.resolve()) if given.folder else ())]
    if given.folder and len(cases) == 1:
        raise Unavailable(f"{given.folder}: has none of the networks that are known; see benchmarks/gpu_cases.py")
    if given.dry_run:
        for case in cases:
            dry(check, case)
    else:
        native = capability_of(importlib.import_module(given.backend)).native_int8
        contract(check)
        for case in cases:
            whole(check, case, native=native)
        given.output.write_text(
            gpu_report.page(check.steps, check.found, cuda.versions() | backend(given.backend).versions())
        )
    return check


def main() -> None:
    given = arguments()
    try:
        check = checked(given)
        failed = [step for step in check.steps if step.problem]
        for step in failed:
            print(f"{step.title}: {step.problem}")
        num_done = len(check.steps) - len(failed)
        print(f"{num_done} steps done, {len(failed)} failed; {check.work if given.dry_run else given.output}")
        if failed:
            raise CheckFailed(f"{len(failed)} of {len(check.steps)} steps failed, see above")
        if given.dry_run:
            print("No engine was run: that needs a GPU.")
    except (CheckFailed, Unavailable) as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        sys.exit(exit_status(error))


if __name__ == "__main__":
    main()
