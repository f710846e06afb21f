"""All that needs a GPU, in one run: builds, answers, calibration, timings, the runner's cost, with the real TensorRT.

Usage: scripts/gpu_check [FOLDER] [--work DIR] [--output FILE] [--backend NAME] [--resume] [--dry-run]

FOLDER: trained networks (see `benchmarks/gpu_cases.py`); without it, a small network that is made here. Every step is a
command that can be given again. Where there is a GPU, a step that cannot be done is a failure (exit status 5), as is a
verdict out of bound, or a runner that costs too much. What this generation of TensorRT does not have (native INT8 from
11 on) is no step; runners of others are named where they are missing. Without a GPU: one sentence and exit status 3;
with --dry-run all that needs none: plans, ranges, models, and engines of TensorRT for RTX.

The page is written after each step, so that a run that is cut off leaves what it has; `--resume` goes on from there.
What every step said is in DIR/steps, and a step that takes longer than --step-seconds is ended, and a failure.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import gpu_offload, gpu_refit, gpu_report
from benchmarks.gpu_cases import OPTIONS, Case, cases_from_folder, own_case, own_shapes, plan_text
from benchmarks.gpu_report import Found
from benchmarks.gpu_steps import ROOT, Steps
from benchmarks.runner import too_much
from engines import backend
from engines.cuda import device
from engines.elsewhere.worker import PYTHON_VARIABLE
from engines.nvinfer.capability import capability_of
from pipeline.errors import EXIT_STATUS, CheckFailed, Unavailable, exit_status

PRECISIONS = ("fp32", "fp16", "int8")
NATIVE = {
    "tensorrt": 'int8 = "native"\nnative_scales = "tensorrt"\nnative_batch_size = {batch_size}',
    "ranges": 'int8 = "native"\nnative_scales = "ranges"',
}
"""INT8 by TensorRT's own calibrator, from the samples and from our ranges."""
QDQ = "qdq"
"""Title of the plan that has every precision; those that begin with it have one alone, for when that one ends early."""
LOOSE = ("--atol", "0.05", "--rtol", "0.02", "--min-cosine", "0.999")
"""Wide enough for TF32 on any network; what the plans have is derived."""
NEEDED = ("ours", "polygraphy")
"""Ways that must be there beside each other."""


@dataclass
class Check:
    """One run: where it works, and what it has done."""

    work: Path
    backend: str
    steps: Steps
    build: str
    """TOML for [build] of every plan for TensorRT."""
    cache: Path
    """Where the present case's kernel timings and calibration caches are kept."""
    python: str = sys.executable
    """Has TensorRT, for the steps in which it is called in a process of its own."""
    elsewhere: str = ""
    """Likewise, while these steps are run."""
    found: list[Found] = field(default_factory=list)

    def run(self, title: str, *command: str | Path, status: int = 0) -> str:
        """Run a command of this project as a step; what it printed. Empty where it failed, but for ``status``."""
        paths = os.pathsep.join((str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])))
        environment = os.environ | {"XDG_CACHE_HOME": str(self.cache), "PYTHONPATH": paths}
        if self.elsewhere:
            environment[PYTHON_VARIABLE] = self.elsewhere
        return self.steps.run(title, [str(word) for word in command], environment, status=status)

    def verb(self, title: str, verb: str, plan: Path) -> str:
        """One verb on a plan. ``run`` ends with 5 where a verdict is out of bound, and has its report all the same."""
        store = ("--store", self.work / "store")
        return self.run(title, "pipeline", verb, plan, *store, status=EXIT_STATUS[CheckFailed] if verb == "run" else 0)

    def forget(self, file: Path) -> None:
        """What an earlier run has written there, unless it is to be taken up."""
        if not self.steps.resume:
            file.unlink(missing_ok=True)


def plans_of(case: Case, folder: Path, name: str, builds: Mapping[str, str]) -> dict[str, Path]:
    """The plans that are run for a case, written; ``builds``: of each title, TOML for [build]."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {}
    for title, build in builds.items():
        precisions, backends = (PRECISIONS, (name, "onnxruntime")) if title == QDQ else (("fp32", "int8"), (name,))
        texts[title] = plan_text(case, f"report-{title}", precisions, backends, build)
        if title == QDQ:
            texts |= {
                f"{QDQ}-{alone}": plan_text(case, f"report-{QDQ}-{alone}", (alone,), (name,), build)
                for alone in PRECISIONS
            }
    paths = {title: folder / f"{title}.toml" for title in texts}
    for title, path in paths.items():
        path.write_text(texts[title])
    return paths


def builds_of(case: Case, also: str, *, native: bool) -> dict[str, str]:
    """Of each plan, TOML for [build]: Q/DQ beside ONNX Runtime, and native INT8 in two ways."""
    size = case.native_batch_size()
    ways = {f"native-{scales}": text.format(batch_size=size) for scales, text in NATIVE.items()} if native else {}
    return {title: f"{text}\n{also}" for title, text in ({QDQ: 'int8 = "qdq"'} | ways).items()}


def whole(check: Check, case: Case, *, native: bool) -> None:
    """Everything for one network, on the GPU. What is found is there to be written from the first step on."""
    folder = check.work / case.name
    plans = plans_of(case, folder, check.backend, builds_of(case, check.build, native=native))
    check.cache = folder / "cache"
    found = Found(case.name, {}, {}, [], {})
    check.found.append(found)
    for title, plan in plans.items():
        if title.startswith(f"{QDQ}-") and QDQ in found.reports:
            continue
        report = folder / f"report-{title}" / "report.json"
        if check.verb(f"{case.name}: {title}", "run", plan) and report.exists():
            found.reports[title] = json.loads(report.read_text())
    ranges = check.verb(f"{case.name}: our ranges", "calibrate", plans[QDQ]).strip()
    caches = sorted(check.cache.glob("trtforge/calibration/*.cache"), key=lambda file: file.stat().st_mtime)
    if native and ranges and caches:
        found.ratios.update(gpu_report.ratios(Path(ranges), caches[-1]))
    elif native:
        check.steps.failed(f"{case.name}: TensorRT's own cache", "it wrote none, or there are no ranges")
    model = check.verb(f"{case.name}: FP32 model", "export", plans[QDQ]).strip()
    for name, engine in engines_of(found.reports, check.backend).items():
        if model:
            found.beside.extend(timed_beside(check, case, model, (name, engine)))
        if cost := cost_of(check, case, name, engine):
            found.costs[name] = cost
    check.steps.after_each()


def engines_of(reports: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, str]:
    """Variant -> plan, of that backend; native ones are told apart by the plan they come from."""
    found: dict[str, str] = {}
    for title, report in reports.items():
        for variant in report["variants"]:
            by_nodes = title.startswith(QDQ)
            if variant["backend"] == name and (by_nodes or variant["precision"] == "int8"):
                found[variant["precision"] if by_nodes else f"int8 {title}"] = variant["artifact"]
    return found


def timed_beside(check: Check, case: Case, model: str, engine: tuple[str, str]) -> list[dict[str, Any]]:
    """Other runners on the same plan; Polygraphy's must be there, for this project needs it anyway."""
    name, plan = engine
    title, out = f"{case.name}: {name} beside other runners", check.work / case.name / f"beside {name}.json"
    options = ("--backend", check.backend, "--onnx", model, "--engine", f"{name}={plan}", "--json", out)
    check.forget(out)
    check.run(title, "benchmarks.gpu_beside", *options)
    rows: list[dict[str, Any]] = json.loads(out.read_text()) if out.exists() else []
    for reason in dict.fromkeys(row["missing"] for row in rows if row["way"] in NEEDED and "missing" in row):
        check.steps.failed(title, reason)
    return rows


def cost_of(check: Check, case: Case, name: str, plan: str) -> dict[str, Any]:
    """Our runner's cost for the host on one plan."""
    title, out = f"{case.name}: cost of the runner, {name}", check.work / case.name / f"cost {name}.json"
    check.forget(out)
    check.run(title, "benchmarks.runner", plan, "--backend", check.backend, "--json", out)
    cost = dict(json.loads(out.read_text())) if out.exists() else {}
    if problem := too_much(cost.get("median_us", {})):
        check.steps.failed(title, problem)
    return cost


def with_options(check: Check) -> None:
    """The own network's FP32 engine in each further way that this generation has, judged; and offline, with streams."""
    data = ("--backend", check.backend, "--data", check.work / "own.npz", "--input", "image=x_test")
    folder, model = check.work / "own" / "options", check.work / "own.onnx"
    folder.mkdir(parents=True, exist_ok=True)

    own_kernels = ("--no-external-kernels",) if re.search(r"external_kernels\s*=\s*false", check.build) else ()

    def built(title: str, *flags: str) -> Path:
        plan = folder / f"{title}.plan"
        check.forget(plan)
        asked = (*own_kernels, "--backend", check.backend, "--precision", "fp32", *own_shapes(), *flags)
        check.run(f"own: {title}", "pipeline", "build", model, *asked, "-o", plan)
        return plan

    for title, (options, flags) in OPTIONS.items():
        try:
            backend(check.backend).refuse(options)
        except Unavailable:
            continue
        plan = built(title, *flags)
        if plan.exists() and title != "stripped":  # It has no weights to run with.
            check.run(f"own: {title}, judged", "pipeline", "validate", model, plan, *data, *LOOSE)
    plan = built("as usual")
    if plan.exists():
        offline = ("--scenario", "offline", "--batch-sizes", "1,8", "--min-seconds", "1")
        check.run("own: offline", "pipeline", "benchmark", plan, *data, *offline)


def refitted(check: Check, case: Case) -> None:
    """The own network's engines with other weights, and one without any, filled."""
    own_kernels = ("--no-external-kernels",) if re.search(r"external_kernels\s*=\s*false", check.build) else ()
    data = ("--backend", check.backend, "--data", check.work / "own.npz", "--input", "image=x_test")
    folder, steps = check.work / "own" / "refit", (check.run, check.steps.failed)
    refit = gpu_refit.RefitCheck(folder, check.backend, *steps, check.build, own_kernels, (*data, *LOOSE))
    gpu_refit.refits(refit, case, check.work / "own.onnx")


def elsewhere(check: Check) -> None:
    """The own network once more, with TensorRT called in a process of another Python, as on JetPack 5."""
    check.elsewhere, said = check.python, "in a process of its own"
    data = ("--backend", check.backend, "--data", check.work / "own.npz", "--input", "image=x_test")
    model, plan = check.work / "own.onnx", check.work / "own" / "elsewhere.plan"
    own_kernels = ("--no-external-kernels",) if re.search(r"external_kernels\s*=\s*false", check.build) else ()
    check.forget(plan)
    check.run(f"own: {said}, what is here", "pipeline", "doctor")
    asked = (*own_kernels, "--backend", check.backend, "--precision", "fp32", *own_shapes())
    check.run(f"own: {said}, built", "pipeline", "build", model, *asked, "-o", plan)
    if plan.exists():
        timed = ("pipeline", "benchmark", plan, *data, "--batch-sizes", "1,8", "--min-seconds", "1")
        check.run(f"own: {said}, judged", "pipeline", "validate", model, plan, *data, *LOOSE)
        check.run(f"own: {said}, timed", *timed)
        check.run(f"own: {said}, offline", *timed, "--scenario", "offline")
    contract(check, f"contract tests {said}")
    check.elsewhere = ""


def contract(check: Check, title: str = "contract tests") -> None:
    """The tests that every backend passes; a skip is a failure here."""
    wanted = f"{check.backend} and not without_the_runtime and not compute_capability"
    wanted += " and not rtx and not onnxruntime" if check.backend == "tensorrt" else ""
    # TensorRT warns of names that its next generation will not have, which is what this project lives with.
    quiet = ("-W", "ignore::DeprecationWarning")
    said = check.run(title, "pytest", "-q", "-rs", *quiet, "tests/engines/backends/test_contract.py", "-k", wanted)
    skipped = [line for line in said.splitlines() if line.startswith("SKIPPED")]
    if skipped:
        check.steps.failed(title, f"{len(skipped)} skipped, the first: {skipped[0]}")


def dry(check: Check, case: Case) -> None:
    """What of it needs no GPU: plans for each way, models and ranges for TensorRT, engines ahead of time."""
    plans_of(case, check.work / case.name, "tensorrt", builds_of(case, check.build, native=True))
    check.cache = check.work / case.name / "cache"
    ahead = "tensorrt_rtx"
    if reason := backend(ahead).why_not_build():
        check.steps.failed(f"{case.name}: engines ahead of time", reason)
        plan = check.work / case.name / f"{QDQ}.toml"
        check.verb(f"{case.name}: models for TensorRT", "quantize", plan)
        return
    plans = plans_of(case, check.work / case.name / "rtx", ahead, builds_of(case, "", native=False))
    check.verb(f"{case.name}: engines ahead of time", "build", plans[QDQ])


def dry_elsewhere(check: Check) -> None:
    """TensorRT is asked for in a process of another Python, up to where it needs a GPU."""
    check.elsewhere = check.python
    check.run("in a process of its own, what is here", "pipeline", "doctor")
    check.elsewhere = ""


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
    parser.add_argument(
        "--elsewhere",
        default=sys.executable,
        metavar="PYTHON",
        help="has TensorRT and pycuda, to be asked in a process",
    )
    parser.add_argument("--step-seconds", type=float, default=1800.0, help="a step that takes longer is ended")
    parser.add_argument("--resume", action="store_true", help="take what earlier runs in --work have done as it is")
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
    steps = Steps(work / "steps", given.step_seconds, given.resume)
    check = Check(work, given.backend, steps, given.build, work / "cache", given.elsewhere)
    cases = [own_case(work), *(cases_from_folder(given.folder.resolve()) if given.folder else ())]
    if given.folder and len(cases) == 1:
        raise Unavailable(f"{given.folder}: has none of the networks that are known; see benchmarks/gpu_cases.py")
    if given.dry_run:
        for case in cases:
            dry(check, case)
        dry_elsewhere(check)
        return check
    versions = device.versions() | backend(given.backend).versions()

    def write(*, whole: bool = False) -> None:
        given.output.write_text(gpu_report.page(check.steps.steps, check.found, versions, whole=whole))

    check.steps.after_each = write
    native = capability_of(importlib.import_module(given.backend)).native_int8
    check.run("what is here", "pipeline", "doctor")
    contract(check)
    for case in cases:
        try:
            whole(check, case, native=native)
            if case.name == "own":
                with_options(check)
                refitted(check, case)
                if given.backend == "tensorrt":
                    elsewhere(check)
        except Exception as error:  # noqa: BLE001  # The other networks shall have their turn: nobody is there to see it.
            check.steps.failed(case.name, f"{type(error).__name__}: {error}")
    gpu_offload.offload(gpu_offload.Offload(work / "offload", check.run, check.steps.failed))
    write(whole=True)
    return check


def main() -> None:
    given = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that the step under way is ended too.
    try:
        check = checked(given)
        failed = [step for step in check.steps.steps if step.problem]
        for step in failed:
            print(f"{step.title}: {step.problem}")
        num_done = len(check.steps.steps) - len(failed)
        print(f"{num_done} steps done, {len(failed)} failed; {check.work if given.dry_run else given.output}")
        if failed:
            raise CheckFailed(f"{len(failed)} of {len(check.steps.steps)} steps failed, see above")
        if given.dry_run:
            print("No engine was run: that needs a GPU.")
    except (CheckFailed, Unavailable) as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        sys.exit(exit_status(error))


if __name__ == "__main__":
    main()
