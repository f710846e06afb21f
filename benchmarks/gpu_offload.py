"""What needs a GPU of the backends that leave a part of a model to others: `onnxruntime_tensorrt`, `onnxruntime_cuda`.

Usage: python -m benchmarks.gpu_offload WORK (alone, where there is `onnxruntime-gpu` and no TensorRT for Python);
`scripts/gpu_check` does it as well. Each step is a command; what a record should say and does not is a failed step.
Networks: one that TensorRT takes whole, one with Det in its middle, which no TensorRT has, and one of nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.gpu_steps import ROOT, Steps
from engines import backend
from engines.ort.sharing import CONTEXT, MODEL, description_of
from pipeline.errors import EXIT_STATUS, EngineError

BACKENDS = ("onnxruntime_tensorrt", "onnxruntime_cuda")
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
WEIGHT = f"float[4, 4, 1, 1] w = {{{', '.join(str((7 * n % 11 - 5) / 8) for n in range(16))}}}"
NETWORKS = {
    "whole": f"""{HEAD} whole (float[N, 4, 4, 4] x) => (float[N, 4, 4, 4] y) <{WEIGHT}>
{{ [first] a = Conv(x, w) [relu] b = Relu(a) [second] y = Conv(b, w) }}""",
    "divided": f"""{HEAD} divided (float[N, 4, 4, 4] x) => (float[N, 4, 4, 4] y)
<{WEIGHT}, int64[4] to = {{0, 4, 1, 1}}>
{{ [first] a = Conv(x, w) [relu] b = Relu(a) [det] d = Det(b) [shape] s = Reshape(d, to)
   [scale] c = Mul(b, s) [second] y = Conv(c, w) }}""",
    "foreign": f"{HEAD} foreign (float[N, 4, 4, 4] x) => (float[N, 4] y) {{ [det] y = Det(x) }}",
}
FALLBACK = {"whole": 0, "divided": 1}
"""Nodes that are not TensorRT's."""
SHAPES = tuple(
    part for word, size in (("min", 1), ("opt", 8), ("max", 16)) for part in (f"--{word}-shapes", f"x:{size}x4x4x4")
)
Run = Callable[..., str]


@dataclass(frozen=True)
class Offload:
    """Where it works, and what runs a step."""

    folder: Path
    run: Run
    """Title and words of `python -m`; what it printed."""
    failed: Callable[[str, str], None]
    """Told a title and a problem."""


def networks(folder: Path) -> dict[str, Path]:
    """Write the networks, and samples for them (``x.npz``)."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in NETWORKS.items():
        model = onnx.parser.parse_model(text)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, folder / f"{name}.onnx")
    x = np.random.default_rng(0).standard_normal((24, 4, 4, 4)).astype(np.float32)
    np.savez(folder / "x.npz", x=x)
    return {name: folder / f"{name}.onnx" for name in NETWORKS}


def offload(check: Offload) -> None:
    """All of it, for each backend that works here; why another does not is said."""
    models = networks(check.folder)
    for name in BACKENDS:
        if reason := backend(name).why_not_run():
            print(f"gpu_check: not checked: {reason}", file=sys.stderr)
            continue
        contract(check, name)
        for title in FALLBACK:
            engine = built(check, name, title, models[title])
            for problem in problems(name, title, engine):
                check.failed(f"{name}: {title}", problem)
    if not backend(BACKENDS[0]).why_not_run():
        refused(check, models["foreign"])


def contract(check: Offload, name: str) -> None:
    """The tests that every backend passes; a skip is a failure here."""
    tests = "tests/engines/backends/test_contract.py"
    told = check.run(
        f"{name}: contract tests", "pytest", "-q", "-rs", tests, "-k", f"{name} and not without_the_runtime"
    )
    if skipped := [line for line in told.splitlines() if line.startswith("SKIPPED")]:
        check.failed(f"{name}: contract tests", f"{len(skipped)} skipped, the first: {skipped[0]}")


def built(check: Offload, name: str, title: str, model: Path) -> Path:
    """The engine, validated against ONNX Runtime on the CPU and timed."""
    engine = check.folder / name / f"{title}.session"
    asked = ("--backend", name, *(SHAPES if backend(name).NEEDS_RANGES else ()), "-o", engine)
    check.run(f"{name}: {title}", "pipeline", "build", model, *asked)
    data = ("--backend", name, "--data", check.folder / "x.npz")
    loose = ("--atol", "0.05", "--rtol", "0.02", "--min-cosine", "0.999")
    check.run(f"{name}: {title}, judged", "pipeline", "validate", model, engine, *data, *loose)
    check.run(f"{name}: {title}, timed", "pipeline", "benchmark", engine, *data, "--min-seconds", "1", "--layers")
    return engine


def problems(name: str, title: str, engine: Path) -> Iterator[str]:
    """What the engine's own description should say and does not."""
    try:
        description = description_of(engine)
    except EngineError as error:
        yield str(error)
        return
    first, *others = description.shares
    elsewhere = sum(len(share.nodes) for share in others)
    if name != BACKENDS[0]:
        if not first.nodes:
            yield "no node runs on the GPU"
        return
    if elsewhere != FALLBACK[title]:
        yield f"{elsewhere} nodes run elsewhere, {FALLBACK[title]} were expected: {others}"
    wanted = MODEL if FALLBACK[title] else CONTEXT
    if description.model != wanted:
        yield f"the engine is {description.model}, {wanted} was expected: of {first.segments} segments"


def refused(check: Offload, model: Path) -> None:
    """A network of which TensorRT runs nothing is an error, and leaves nothing."""
    engine = check.folder / "foreign.session"
    check.run("a network of which TensorRT runs nothing", "benchmarks.gpu_offload", "--refused", model, engine)


def is_refused(model: Path, engine: Path) -> str:
    """Empty if it is refused as it should be; else what happened instead."""
    words = ("build", model, "--backend", BACKENDS[0], *SHAPES, "-o", engine)
    command = [sys.executable, "-m", "pipeline", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if engine.exists():
        return f"{engine} was left"
    if done.returncode != EXIT_STATUS[EngineError] or "no node runs on TensorRT" not in done.stderr:
        return f"exit status {done.returncode}: {done.stderr.strip()}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("work", type=Path, nargs="+", help="a folder to work in")
    parser.add_argument("--refused", action="store_true", help="WORK is a model that has to be refused, and an engine")
    options = parser.parse_args()
    if options.refused:
        sys.exit(is_refused(*options.work) or 0)
    work = options.work[0].resolve()
    steps = Steps(work / "steps")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(work / "cache")}

    def run(title: str, *words: str | Path) -> str:
        return steps.run(title, [str(word) for word in words], environment)

    offload(Offload(work / "offload", run, steps.failed))
    failed = [step for step in steps.steps if step.problem]
    print(json.dumps({"done": len(steps.steps) - len(failed), "failed": [vars(step) for step in failed]}, indent=1))
    sys.exit(1 if failed or not steps.steps else 0)


if __name__ == "__main__":
    main()
